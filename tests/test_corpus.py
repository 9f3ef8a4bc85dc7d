"""Corpora: every layout gives the same documents, and cutting a text changes none of its tokens."""

from __future__ import annotations

import gzip
import json
import lzma
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import numbered_lines
from nanobackpack.safe.files import read_json, read_text
from nanobackpack.text import corpus, readers
from nanobackpack.text.corpus import (
    Piece,
    Segments,
    chained,
    composed,
    cut,
    document,
    find_files,
    from_files,
    from_hub,
)
from nanobackpack.text.tokenizer import make_tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer

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


@pytest.mark.filterwarnings("ignore:passed over")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path):
    LAYOUTS[layout](tmp_path)
    (tmp_path / "skipped.py").write_text("no text")
    for given_as in (tmp_path, tmp_path / "*[!y]", *[tmp_path / "[a-z].*"] * (layout != "text")):
        found = from_files([given_as])
        for _ in range(2):  # it can be read again
            assert joined(found.read()) == [text.replace("\r\n", "\n") for text in DOCUMENTS]
        assert joined(from_files([given_as], newlines="keep").read()) == DOCUMENTS
    assert found.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir() if p.suffix != ".py")
    read: list[int] = []
    list(found.read(read.append))
    assert sum(read) >= found.n_bytes / (2 if layout == "parquet" else 1)  # which skips what nobody wants


def test_brackets_in_a_text_are_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "_MAX_VALUES", 5)
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
    assert joined(from_hub(str(tmp_path / "data"), Segments()).read()) == DOCUMENTS
    with pytest.raises(InputError, match=r"cannot fetch nobody/nothing .*: give local files with --input"):
        next(from_hub("nobody/nothing", Segments()).read())


def test_chained():
    corpora = [corpus.Corpus("a", 1, lambda progress=None: document(["x"])), corpus.from_text("y", "b")]
    both = chained(corpora)
    assert (both.title, both.n_bytes, joined(both.read())) == ("a, b", 1, ["x", "y"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"caf\xe9", r"byte 3 \(line 1\) is 0xe9: convert .* -f WINDOWS-1252 .* --errors=replace"),
        (
            "a.txt.gz",
            gzip.compress(b"a\n" * 99_999 + b"\xc3", mtime=0),
            r"byte 199,998 \(line 100,000\) is 0xc3",
        ),
        ("a.txt", "a\nb".encode("utf-16-le"), r"has a NUL at byte 1 \(line 1\): convert .* -f UTF-16LE"),
        ("a.txt", "a\nb".encode("utf-16-be"), r"has a NUL at byte 0 \(line 1\): convert .* -f UTF-16BE"),
        ("a.jsonl", '{"text": "中"}\n'.encode("utf-16-le"), "has a NUL at byte 1"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', "line 3, is not JSON"),
        ("a.jsonl", b'{"text": "x"\n{"text": "y"}\n', "line 1, is not JSON"),
        ("a.json", b'[{"text": "x"},\n{"text": "y"', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n5\n', "line 2, is not a JSON object"),
        ("a.json", b'["x", ["y"]]', "record 2, is not a JSON object"),
        ("a.jsonl", b'{"n": 1, "a": {"b": "xyz"}, "c": "x"}', "no field 'text': it has 'a.b', 'c', 'n', and"),
        ("a.jsonl", b'{"text": ["x", "y"]}\n', r"has \['x', 'y'\] in 'text', no text: it has no other"),
        (
            "a.jsonl",
            b'[{"role": "user", "content": "Hi"}]\n[]',
            r"line 2, is not a JSON object.*\.content",
        ),
        ("a.jsonl", b'{"text": null}\n{"text": " "}', "line 1, has no text in 'text'"),
        ("a.jsonl", b'{"x": [{"role": "user", "content": "Hi!"}]}', r"a list of messages.*\.x\[\]\.content"),
        ("a.jsonl", b'{"text": [{"from": "human", "value": "Hi!"}]}', r"list of messages.*\.text\[\]\.value"),
        ("a.json", b'{"data": [{"text": "x"}]}', r"'data' is a list, take it out: jq -c '\.data\[\]'"),
        ("a.csv", b"id,body\n1,xyz\n", "line 2, has no field 'text': it has 'body', 'id'"),
        ("a.csv", b"id,text\n1,x, y\n", "line 2, is not CSV .3 cells for 2 names"),
        ("a.csv", b'id,text\n1,"x\n', "is not CSV .unexpected end"),
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


# --- Texts as they come ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_no_text(encoding: str, tmp_path: Path):
    contents = {
        "a.txt": "é中", "b.jsonl": '{"text": "é中"}\n', "c.json": '[{"text": "é中"}]', "d.csv": "text\né中\n",
        "e.tsv": "text\tid\né中\t1", "vocab.txt": "[UNK]\n[CLS]\n[SEP]\né\n中", "tokenizer_config.json": "{}",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode(encoding))
    files = [tmp_path / name for name in contents][:5]
    assert joined(from_files(files).read()) == ["é中"] * 5
    assert "".join(line for _, line in numbered_lines(files[0])) == read_text(files[0]) == "é中"
    assert read_json(files[2]) == [{"text": "é中"}]
    assert load_tokenizer(str(tmp_path)).id("[UNK]") == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_line_ends_at_the_border_of_pieces(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "PIECE_CHARS", size)
    text = "a\r\nb\rc\r\n\r\nd\n\r"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    for name in ("a.txt", "a.jsonl"):
        assert joined(from_files([tmp_path / name]).read()) == ["a\nb\nc\n\nd\n\n"]
        assert joined(from_files([tmp_path / name], newlines="keep").read()) == [text]


@pytest.mark.parametrize(("errors", "text"), [("replace", "caf\ufffd\n\ufffd.\ufffd"), ("skip", "caf\n.")])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_bad_bytes_are_counted(errors: str, text: str, name: str, tmp_path: Path):
    row = {"a.txt": b"%s", "a.jsonl": b'{"text": "%s"}', "a.csv": b'text\n"%s"'}[name]
    bad = b"caf\xe9\n\0.\xc3"
    (tmp_path / name).write_bytes(row % (bad.replace(b"\n", b"\\n") if name == "a.jsonl" else bad))
    with pytest.warns(UserWarning, match="^3 bytes were no UTF-8 text: (replaced|left out)$"):
        assert joined(from_files([tmp_path / name], errors=errors).read()) == [text]


# What a cut may not part: letters with accents, the parts of a Korean one, and these after spaces.
LETTERS = ["a", "e\u0301", "e\u0323\u0301", "é", "中", "a  ", "a\n\u0301"]
LETTERS += ["\u1100", "\u1100\u1161", "\u1100\u1161\u11a8"]


@given(st.lists(st.sampled_from(LETTERS), max_size=40).map("".join), st.integers(3, 9))
@settings(max_examples=200)
def test_pieces_can_be_composed(text: str, size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_CHARS", size)
        patch.setattr(corpus, "_WORD_CHARS", size + 2)
        whole = "".join(piece.text for piece in composed(corpus.from_text("x" + text, "")).read())
    assert whole == unicodedata.normalize("NFC", "x" + text)


# --- Records -----------------------------------------------------------------------------------

RECORDS: list[tuple[str, str, str]] = [  # name, field, content with the texts "one", "two"
    ("lines.jsonl", "text", '{"text": "one"}\n\n{"text": "two"}'),
    ("crlf.ndjson", "text", '{"text": "one"}\r\n{"text": "two"}\r\n'),
    ("array.json", "text", ' [{"text": "one"}, {"text": "two"}]\n'),
    ("texts.json", "text", '["one",\n"two"]'),
    ("pretty.json", "text", json.dumps([{"text": "one", "x": [1]}, {"text": "two"}], indent=2)),
    ("objects.json", "text", '{\n  "text":\n"one"\n}\n{\n"text": "two"}'),
    ("joined.jsonl", "text", '{"text": "one"}\n\ufeff{"text": "two"}\n'),
    ("nested.jsonl", "a.b", '{"a": {"b": "one"}}\n{"a.b": "two", "a": null}'),
    ("cells.csv", "text", 'id,text\n1,one\n\n2,"two"\n'),
    ("cells.tsv", "two words", "id\ttwo words\n1\tone\n2\ttwo\t\n"),
    ("german.csv", "Text", '"Nr";"Text"\n1;one\n2;two'),
    ("column.csv", "text", "text\none\ntwo\n"),
    ("dots.csv", "a.b", "a.b,c\none,1\ntwo,2"),
]


@pytest.mark.parametrize(("name", "field", "content"), RECORDS)
def test_records(name: str, field: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / name).write_bytes(content.encode())
    (tmp_path / (name + ".gz")).write_bytes(gzip.compress(content.encode()))
    for part_chars in (1 << 19, 7):  # the second cuts within records
        monkeypatch.setattr(readers, "_PART_CHARS", part_chars)
        for path in (tmp_path / name, tmp_path / (name + ".gz")):
            assert joined(from_files([path], Segments((field,))).read()) == ["one", "two"]


SKIPPED = {
    "a.jsonl": b'{"text": "x"}\n{"text": null}\n{}\n{"text": 5}\n{"text": " "}\n',
    "a.json": b'[{"text": "x"}, {"text": null}, {"id": 1}, {"text": ["y"]}, {"text": ""}]',
    "a.csv": b"id,text\n1,x\n2\n3,\n4,\n5,  \n",
    "a.parquet": b"",
}
PLACES = ["line 2", "record 2", "line 3", "row 2"]


@pytest.mark.parametrize(("name", "place"), [*zip(SKIPPED, PLACES, strict=True)])
def test_records_without_text_are_skipped(name: str, place: str, tmp_path: Path):
    (tmp_path / name).write_bytes(SKIPPED[name])
    if name == "a.parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": ["x", None, "", " ", None]}), tmp_path / name)
    note = rf"^4 of 5 records had no text: skipped; the first: .*{name}, {place}, has no text in 'text'$"
    with pytest.warns(UserWarning, match=note):
        assert joined(from_files([tmp_path / name]).read()) == ["x"]
    with pytest.raises(InputError, match=rf"{name}, {place}, has no text in 'text'"):
        list(from_files([tmp_path / name], strict=True).read())


def test_columns_in_columns(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"n": [1, 2, 3], "a": [{"b": {"c": "one"}}, None, {"b": {"c": "two"}}], "l": [["x"]] * 3}
    table["chat"] = [[{"role": "user", "content": "Hi!"}]] * 3
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=r"1 of 3 records .* row 2, has no text in 'a.b.c'"):
        assert joined(from_files([tmp_path], Segments(("a.b.c",))).read()) == ["one", "two"]
    for name, reason in (
        ("n", "has .*int64.* in 'n', no"),
        ("chat", "list of messages"),
        ("l", "in 'l', no"),
    ):
        with pytest.raises(InputError, match=rf"a.parquet, row 1, .*{reason}"):
            list(from_files([tmp_path], Segments((name,))).read())


def test_a_wrong_field_is_noticed_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "_PATIENCE", 3)
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 3 + "no JSON")
    with pytest.raises(InputError, match=r"line 1, has no field 'text': it has 'body', and --field=NAME"):
        list(from_files([tmp_path]).read())


@pytest.mark.filterwarnings("ignore:passed over")
def test_find_files(tmp_path: Path):
    for folder in ("deep", ".ipynb_checkpoints"):
        (tmp_path / "b" / folder).mkdir(parents=True)
    names = "b/z.md b/deep/y.TXT b/deep/x.txt.xz b/skipped.py b/skipped.gz a.dat b/.c.py b/._z.md"
    for name in (*names.split(), "b/.ipynb_checkpoints/z-checkpoint.md"):
        (tmp_path / name).touch()
    paths = [tmp_path / p for p in ("b", "a.dat", "b/z.md", "b/*/*.TXT")]
    found = [p.relative_to(tmp_path).as_posix() for p in find_files(paths)]
    assert found == ["a.dat", "b/deep/x.txt.xz", "b/deep/y.TXT", "b/z.md"]
    with pytest.warns(UserWarning, match=r"^passed over 2 files in .*/b: 1 \*\.(py|gz), 1 \*\.(py|gz); name"):
        from_files(paths)
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
        list(from_hub("x", Segments()).read())
