"""Corpora: every layout gives the same documents, and cutting a text changes none of its tokens."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobackpack.errors import InputError
from nanobackpack.text import corpus
from nanobackpack.text.corpus import Piece, chained, cut, document, field, find_files, from_files, from_hub
from nanobackpack.text.tokenizer import make_tokenizer

DOCUMENTS = ["One document.\nIn two lines.", "第二个文档：你好！", "The third\r\nis \U0001f600"]


def joined(pieces: Iterator[Piece]) -> list[str]:
    """The texts of documents that have one segment each."""
    texts: list[str] = []
    inside = False
    for piece in pieces:
        assert piece.opens != inside
        texts.append(piece.text) if piece.opens else texts.append(texts.pop() + piece.text)
        inside = not piece.closes
    assert not inside
    return texts


# --- Cutting -----------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from("ab1.,'  \n\n\n\r\t\u00a0\u3000\x1c中é"), max_size=300)
BPE = make_tokenizer("bpe:300", ["aab ab. 'b 11\n\n ab,a\n a\n\r\n ab\n ab\r\n中中\n"])


@given(TEXT, st.integers(1, 50), st.integers(1, 40))
@settings(max_examples=300)
def test_pieces_have_the_tokens_of_the_whole(text: str, size: int, step: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_CHARS", size)
        pieces = list(cut(text[i : i + step] for i in range(0, len(text), step)))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.opens for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.closes for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    ids = [i for array in BPE.encode_batch([piece.text for piece in pieces]) for i in array.tolist()]
    assert ids == BPE.encode(text)


@pytest.mark.parametrize(("text", "longest"), [("a b c\n" * 99, 20), ("a b " * 500, 40), ("中" * 999, 40)])
def test_pieces_are_short(text: str, longest: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "PIECE_CHARS", 10)
    monkeypatch.setattr(corpus, "_WORD_CHARS", 30)
    pieces = list(document([text]))
    assert max(len(piece.text) for piece in pieces) <= longest
    assert joined(iter(pieces)) == [text]


def test_segments_of_a_document():
    assert list(document(["title", "content"])) == [Piece("title", True, True), Piece("content", False, True)]
    assert list(document(["", "x"])) == [Piece("", True, True), Piece("x", False, True)]
    assert list(document(["", " \n"])) == []


# --- Layouts -----------------------------------------------------------------------------------


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": d}, ensure_ascii=False) + "\n" for d in documents).encode()


def write_text(path: Path) -> None:
    for i, text in enumerate(DOCUMENTS):
        (path / f"{i}.txt").write_bytes(text.encode())


def write_parquet(path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": DOCUMENTS}), path / "a.parquet")


def write_xz(path: Path) -> None:
    parts = [lzma.compress(json_lines(part), preset=9) for part in (DOCUMENTS[:1], [], DOCUMENTS[1:])]
    (path / "a.jsonl.xz").write_bytes(bytes(8).join(parts) + bytes(4))  # streams, and zeros between them


def write_zst(path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    half = [zstandard.compress(json_lines(part)) for part in (DOCUMENTS[:1], DOCUMENTS[1:])]
    (path / "a.jsonl.zst").write_bytes(b"".join(half))  # two frames


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "text": write_text,
    "json lines": lambda path: (path / "a.jsonl").write_bytes(json_lines(DOCUMENTS)),
    "gz": lambda path: (path / "a.jsonl.gz").write_bytes(gzip.compress(json_lines(DOCUMENTS))),
    "xz": write_xz,
    "zst": write_zst,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path):
    LAYOUTS[layout](tmp_path)
    (tmp_path / "skipped.py").write_text("no text")
    for given_as in (tmp_path, tmp_path / "*[!y]", *[tmp_path / "[a-z].*"] * (layout != "text")):
        found = from_files([given_as])
        for _ in range(2):  # it can be read again
            assert joined(found.read()) == DOCUMENTS
    assert found.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".py")
    read: list[int] = []
    list(found.read(read.append))
    assert sum(read) >= found.n_bytes / (2 if layout == "parquet" else 1)  # which skips what nobody wants


def test_brackets_in_a_text_are_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_MAX_VALUES", 5)
    texts = ['[{,"\\' * 9, '\\"[[[[[[' * 2]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts) + b'{"text": "a\\ud83d \\ud83d\\ude00 \\ufeff"}\n')
    half = "a\ufffd \U0001f600 \ufeff"  # half a character is replaced
    assert joined(from_files([tmp_path]).read()) == [*texts, half]
    (tmp_path / "b.jsonl").write_text('{"text": "", "x": [1, 2, 3, 4, 5]}')
    with pytest.raises(InputError, match=r"b.jsonl, line 1, has more than 5 values"):
        joined(from_files([tmp_path]).read())


def test_lines(tmp_path: Path):
    content = "one\r\n\n  \ntwo\u2028still\x0btwo\nthree".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(content))
    for name in ("a.txt", "b.txt.xz"):
        lines = joined(from_files([tmp_path / name], kind="lines").read())
        assert lines == ["one", "two\u2028still\x0btwo", "three"]


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data")
    assert joined(from_hub(str(tmp_path / "data"), field("text")).read()) == DOCUMENTS
    with pytest.raises(InputError, match=r"cannot fetch nobody/nothing .*: give local files with --input"):
        next(from_hub("nobody/nothing", field("text")).read())


def test_chained():
    corpora = [corpus.Corpus("a", 1, lambda progress=None: document(["x"])), corpus.from_text("y", "b")]
    both = chained(corpora)
    assert (both.title, both.n_bytes, joined(both.read())) == ("a, b", 1, ["x", "y"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', "line 3, is not JSON"),
        ("a.jsonl", b'["x"]\n', "line 1, is not a JSON object"),
        ("a.jsonl", b'{"content": "x", "id": 1}\n', "has no field 'text': it has 'content', 'id'"),
        ("a.jsonl", b'{"text": 5}\n', "should be text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9], ""),
        ("a.jsonl.xz", lzma.compress(b'{"text": "x"}\n' * 99)[:-9], "its end is missing"),
        ("a.jsonl.zst", b"no zst", ""),
        ("a.parquet", b"no parquet", ""),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}.* {reason}"):
        list(from_files([tmp_path / name]).read())


def test_find_files(tmp_path: Path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/z.md", "b/deep/y.txt", "b/deep/x.txt.xz", "b/skipped.py", "b/skipped.gz", "a.dat"):
        (tmp_path / name).touch()
    paths = [tmp_path / p for p in ("b", "a.dat", "b/z.md", "b/*/*.txt")]
    found = [p.relative_to(tmp_path).as_posix() for p in find_files(paths)]
    assert found == ["a.dat", "b/deep/x.txt.xz", "b/deep/y.txt", "b/z.md"]
    (tmp_path / "none").mkdir()
    for wrong, reason in (
        ([], "no text given"),
        ([tmp_path / "none"], r"none has no \*\.txt"),
        ([tmp_path / "gone.txt"], "gone.txt: No such file"),
        ([tmp_path / "*.gone"], r"\*\.gone: No such file"),
    ):
        with pytest.raises(InputError, match=reason):
            find_files(wrong)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in ("pyarrow.parquet", "zstandard", "datasets"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for name in ("a.parquet", "a.txt.zst"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=r"pip install 'nanobackpack\[data\]'"):
            list(from_files([tmp_path / name]).read())
    with pytest.raises(InputError, match=r"datasets is not installed"):
        list(from_hub("x", field("text")).read())
