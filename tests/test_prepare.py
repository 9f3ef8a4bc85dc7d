"""From text to token files: downloads, reading, splitting, and the data/*/prepare.py scripts."""

from __future__ import annotations

import functools
import hashlib
import http.server
import itertools
import json
import lzma
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from conftest import tiny_model

from nanobackpack import TrainConfig, commands, load_model
from nanobackpack.commands.prepare import RECIPES
from nanobackpack.errors import InputError
from nanobackpack.safe.download import download
from nanobackpack.safe.files import UNFINISHED, read_text
from nanobackpack.text import prepare
from nanobackpack.text.corpus import Corpus, Piece, document, from_files, from_text
from nanobackpack.text.data import TokenData, open_data, open_dataset
from nanobackpack.text.meta import KNOWN, Meta
from nanobackpack.text.prepare import summary, write_dataset, write_tokens
from nanobackpack.text.splits import deal_shards, fraction, split_random, split_tail
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer
from nanobackpack.train.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
TEXT = "To be, or not to be.\r\n" * 10


# --- Downloads ---------------------------------------------------------------------------------


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        if self.path == "/flaky" and self.requests == 1:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine that serves the files of tmp_path/www."""
    (tmp_path / "www").mkdir()
    QuietHandler.requests = 0
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CONTENT = b"some text\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("name", ["file", "flaky"])  # flaky fails once and works the second time
def test_download(server: str, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "www" / name).write_bytes(CONTENT)
    path = tmp_path / "new" / "input.txt"
    download(f"{server}/{name}", path, SHA256, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["input.txt"]
    assert capfd.readouterr() == ("", "")  # no progress bar outside a terminal
    (tmp_path / "www" / name).unlink()
    download(f"{server}/{name}", path, SHA256, len(CONTENT))  # what is there is reused


def test_download_fails(server: str, tmp_path: Path):
    nowhere = {f"{server}/none": "404", "http://127.0.0.1:1/x": "refused", (tmp_path / "x").as_uri(): ""}
    others = {"short": CONTENT[:-1], "long": CONTENT + b"!", "changed": CONTENT[:-1] + b"!"}
    reasons = {"short": "fewer than", "long": "more than", "changed": "sha256"}
    for name, content in others.items():
        (tmp_path / "www" / name).write_bytes(content)
    for url, reason in (nowhere | {f"{server}/{name}": reason for name, reason in reasons.items()}).items():
        with pytest.raises(InputError, match=f"cannot download {url} .*{reason}.*--input FILE"):
            download(url, tmp_path / "input.txt", SHA256, len(CONTENT))
        assert not list(tmp_path.glob("*input.txt*"))
    assert QuietHandler.requests == 8  # each is tried twice


def test_download_never_overwrites_a_text_of_the_user(tmp_path: Path):
    path = tmp_path / "input.txt"
    path.write_text("my own")
    with pytest.raises(InputError, match=r"input\.txt is not the file"):
        download("http://127.0.0.1:1/x", path, SHA256, len(CONTENT))
    assert path.read_text() == "my own"


# --- Reading and writing -----------------------------------------------------------------------


def test_read_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n\xc3\xa9")
    assert read_text(tmp_path / "a.txt") == "one\r\ntwo\rthree\né"
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "folder").mkdir()
    wrong = {"none": "No such file", "folder": "folder", "empty": "empty", "latin": "not UTF-8 text: byte 3 "}
    for name, reason in wrong.items():
        with pytest.raises(InputError, match=f"/{name}.* {reason}"):
            read_text(tmp_path / name)


def test_write_dataset(tmp_path: Path):
    tokenizer = make_tokenizer("char", TEXT)
    meta = prepare.write_dataset(tmp_path, TEXT, tokenizer, val_fraction=0.1, source="Hamlet")
    assert meta.tokens == meta.chars == {"train": 198, "val": 22}
    assert (meta.dtype, meta.vocab_size) == ("uint16", len(set(TEXT)))
    assert Meta.load(tmp_path / "meta.json") == meta
    for split, part in {"train": TEXT[:198], "val": TEXT[198:]}.items():
        content = (tmp_path / f"{split}.bin").read_bytes()
        assert tokenizer.decode(np.frombuffer(content, "<u2").tolist()) == part
        assert meta.sha256[f"{split}.bin"] == hashlib.sha256(content).hexdigest()
    files = {"train.bin", "val.bin", "counts.bin", "tokenizer.json", "meta.json"}
    assert {p.name for p in tmp_path.iterdir()} == files
    report = prepare.summary(meta, tmp_path)
    assert all(part in report for part in ("Hamlet", "198 tokens", "22 tokens"))
    assert len({line.rindex(" tokens") for line in report.splitlines() if "tokens" in line}) == 1


@pytest.mark.parametrize(("n", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_dtype_holds_the_vocabulary(tmp_path: Path, n: int, dtype: str):
    text = "".join(chr(0x10000 + i) for i in range(n))
    meta = prepare.write_dataset(tmp_path, text, Tokenizer.char(text), val_fraction=0.5, source="")
    assert meta.dtype == dtype
    assert TokenData(tmp_path).splits["val"][-1] == n - 1


def test_write_dataset_errors(tmp_path: Path):
    tokenizer = Tokenizer.char(TEXT)

    def write(text: str = TEXT, val: float = 0.1, folder: Path = tmp_path / "out") -> str:
        with pytest.raises(InputError) as error:
            prepare.write_dataset(folder, text, tokenizer, val_fraction=val, source="")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "val=0" in write(val=0)
    assert "10 characters, too few: its val part" in write(TEXT[:10])
    assert "is empty" in write("")
    assert "'z' (U+007A) at position 3" in write("To z" + TEXT)
    (tmp_path / "file").touch()
    assert "cannot write to" in write(folder=tmp_path / "file")


# --- Streams of documents -----------------------------------------------------------------------

BPE = make_tokenizer("bpe:300", [TEXT])
DOCS = [f"Document {i}:\n to be {'or not ' * (i % 7)}\nto be." for i in range(300)]


def documents_of(ids: np.ndarray, end: int) -> list[list[int]]:
    """Token ids cut after each end mark."""
    assert ids[-1] == end
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]]


def corpus_of(documents: list[str], read_more: Callable[[], None] = lambda: None) -> Corpus:
    """Documents in memory; read_more is called after the last one."""

    def read(progress: object = None) -> Iterator[Piece]:
        for text in documents:
            yield from document([text])
        read_more()

    return Corpus("documents", 0, read)


def read_ids(folder: Path, name: str) -> np.ndarray:
    meta = Meta.load(folder / "meta.json")
    content = next(folder.rglob(f"{name}.bin")).read_bytes()
    assert meta.sha256[f"{name}.bin"] == hashlib.sha256(content).hexdigest()
    ids = np.frombuffer(content, "<u2" if meta.dtype == "uint16" else "<u4")
    assert len(ids) == meta.tokens[name]
    return ids


def text_of(folder: Path) -> str:
    """All text of a data set, the training part first."""
    data = TokenData(folder)
    return data.tokenizer.decode(np.concatenate([data.splits["train"], data.splits["val"]]).tolist())


@pytest.mark.parametrize("batch_chars", [1, 1000, 1 << 20])
def test_documents_end_with_their_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_chars: int):
    monkeypatch.setattr(prepare, "_BATCH_CHARS", batch_chars)
    split = split_random(evaluation=fraction(0.1), val=fraction(0.05))
    meta = prepare.write_tokens(tmp_path, {"": corpus_of(DOCS)}, BPE, split)
    assert meta.source == "documents"
    held = {name: documents_of(read_ids(tmp_path, name), 0) for name in ("train", "val", "evaluation")}
    assert [len(held[name]) for name in ("train", "val", "evaluation")] == [255, 15, 30]
    assert meta.chars["val"] == sum(len(BPE.decode(ids[:-1])) for ids in held["val"])
    found = [BPE.decode(ids[:-1]) for documents in held.values() for ids in documents]
    assert sorted(found) == sorted(DOCS)
    assert held["train"] == [[*BPE.encode(d), 0] for d in DOCS if [*BPE.encode(d), 0] in held["train"]]
    # Each id of the text to train on is counted; what an older data set left behind is not taken for that.
    counts = TokenData(tmp_path).token_counts()
    assert counts is not None
    assert counts.tolist() == np.bincount(read_ids(tmp_path, "train"), minlength=BPE.vocab_size).tolist()
    (tmp_path / "counts.bin").write_bytes(np.roll(counts.numpy(), 1).astype("<i8")[:-1].tobytes() + b"\1" * 8)
    assert TokenData(tmp_path).token_counts() is None


def test_one_long_text_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nanobackpack.text.corpus.PIECE_CHARS", 50)
    (tmp_path / "a.txt").write_text("\n".join(DOCS))
    prepare.write_tokens(tmp_path / "out", {"": from_files([tmp_path])}, BPE, split_tail(0.25))
    text = "\n".join(DOCS)
    cut = int(len(text) * 0.75)
    assert read_ids(tmp_path / "out", "train").tolist() == BPE.encode(text[:cut])  # it does not end here
    assert read_ids(tmp_path / "out", "val").tolist() == [*BPE.encode(text[cut:]), 0]


MARK = "<|endoftext|>"


@pytest.mark.parametrize(
    ("between", "size"),
    [(f"\n{MARK}\n", 3), (MARK, 1 << 16), (f"\r\n{MARK}\r\n", 3), (f"\n{MARK}{MARK}\n\n", 1 << 16)],
)
def test_documents_separated_by_a_mark(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str, size: int
):
    """With --separator each text between two marks is a document; else the marks are text, with a note."""
    monkeypatch.setattr("nanobackpack.text.corpus.PIECE_CHARS", size)
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(between.join(DOCS[:30]) + between, newline="")
    Path("b.txt").write_text("another file", newline="")
    _, _, err = script.verb("a.txt", "b.txt", "--tokenizer=bpe:300", "--split=tail")
    assert f"note: a.txt, b.txt has {MARK} " in err
    assert f"give --separator='{MARK}'" in err
    assert 0 not in read_ids(Path("data/mine"), "train")
    args = ("--tokenizer=bpe:300", f"--separator={MARK}", "--val=0.2", "--split=tail")
    _, _, err = script.verb("a.txt", "b.txt", *args)
    assert "note" not in err
    data = TokenData(Path("data/mine"))
    ids = np.concatenate([data.splits["train"], data.splits["val"]])
    assert data.tokenizer.eos_id == 0
    texts = [data.tokenizer.decode(document[:-1]) for document in documents_of(ids, 0)]
    assert texts == [*DOCS[:30], "another file"]


def test_text_that_the_tokenizer_does_not_know_is_counted(tmp_path: Path, chinese: Path):
    """The share of [UNK] by split, and the characters behind it: not those that were near to one."""
    text = "天地“玄” 黄…天地\n" * 19 + "天地玄 黄天地a“\n"
    tokenizer = load_tokenizer(str(chinese))
    meta = write_dataset(tmp_path / "zh", text, tokenizer, val_fraction=0.05, source="texts")
    assert meta == Meta.load(tmp_path / "zh" / "meta.json")
    assert meta.unknown_share == {"train": 3 / 9, "val": 1 / 8}
    assert meta.unknown_characters == {"“": 20, "”": 19, "…": 19}
    assert "\n  32.40% of the tokens are unknown to the tokenizer: '“' 20 times, '”' 19 t" in summary(
        meta, tmp_path
    )
    known = write_dataset(tmp_path / "all", text, Tokenizer.char(text), val_fraction=0.05, source="texts")
    assert (known.unknown_share["train"], "unknown" in summary(known, tmp_path)) == (0, False)


def test_a_data_set_is_found_by_the_name_it_was_made_with(tmp_path: Path):
    """Even if its BPE got fewer ids than were asked for, as prepare says; so is a run on it."""
    corpora = {"": from_text("to be or not to be " * 9, "the text")}
    meta = write_tokens(tmp_path, corpora, "bpe:400", split_tail(0.2))
    assert 257 < meta.vocab_size < 400
    assert "\n  bpe:400 has no more: each word" in summary(meta, tmp_path)
    data = open_data(TrainConfig(dataset=str(tmp_path), tokenizer_name="bpe:400"))
    model = tiny_model(vocab_size=400, vocab_used=meta.vocab_size)
    model.tokenizer = data.tokenizer
    save_model(model, tmp_path / "ckpt.pt")
    assert load_model(tmp_path / "ckpt.pt", "bpe:400").tokenizer.to_json() == data.tokenizer.to_json()
    with pytest.raises(InputError, match="tokenizer_name='bpe:401' is not"):
        load_model(tmp_path / "ckpt.pt", "bpe:401")


def test_characters_have_a_line_end_between_documents(tmp_path: Path):
    prepare.write_tokens(tmp_path, {"": corpus_of(DOCS)}, "char", split_tail(0.5))
    assert text_of(tmp_path) == "\n".join(DOCS)


def test_a_tokenizer_is_trained_on_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "_TRAIN_CHARS", 1000)
    texts = prepare._sample([corpus_of(DOCS), corpus_of(["last"] * 300)], 0.1)
    assert 58 <= len(texts) <= 60
    assert 29 <= texts.count("last") <= 30
    monkeypatch.setattr(prepare, "_TRAIN_WORD_BYTES", 200)
    words = [f"word{i:04}" for i in range(1000)]  # each of them new
    kept = prepare._sample([corpus_of(words)], 1.0)
    assert 100 <= 8 * len(kept) <= 200
    numbers = np.array([int(word[4:]) for word in kept])
    assert numbers[0] == 0
    assert np.diff(numbers).max() < 2 * np.diff(numbers).min()  # spread evenly over all
    assert numbers[-1] > 900
    prepare.write_tokens(tmp_path, {"": corpus_of(DOCS)}, "bpe:280", split_tail(0.5))
    assert TokenData(tmp_path).vocab_size == 280


def test_what_is_interrupted_leaves_the_old_files(tmp_path: Path):
    old = prepare.write_tokens(tmp_path, {"": corpus_of(DOCS)}, BPE, split_tail(0.5))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    calls = iter(["counting", "encoding"])

    def read_more() -> None:
        if next(calls) == "encoding":  # when most of it is written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.write_tokens(tmp_path, {"": corpus_of(DOCS[:99], read_more)}, BPE, split_tail(0.5))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert TokenData(tmp_path).meta == old


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    out = tmp_path / "out"
    calls = iter([int, int, lambda: os.kill(os.getpid(), signal.SIGKILL)])  # the third time it writes
    if (child := os.fork()) == 0:
        try:
            read_more = lambda: next(calls)()  # noqa: E731
            prepare.write_tokens(out, {"": corpus_of(DOCS, read_more)}, "char", split_tail(0.5))
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    left = [p.name for p in out.iterdir()]
    assert len(left) == 2
    assert all(name.endswith(".tmp") for name in left)  # nothing has its final name
    running, mine = out / f".other.bin.{os.getpid()}.tmp", out / "mine.txt"
    running.touch()
    mine.touch()
    prepare.write_tokens(out, {"": corpus_of(DOCS)}, BPE, split_tail(0.5))
    files = {"train.bin", "val.bin", "counts.bin", "tokenizer.json", "meta.json"}
    assert {p.name for p in out.iterdir()} == files | {running.name, mine.name}


def write_set(folder: Path, layout: str, documents: list[str]) -> None:
    """A data set of one text, or of packs in two languages."""
    if layout == "text":
        prepare.write_tokens(folder, {"": corpus_of(documents)}, "char", split_tail(0.5))
        return
    corpora = {f"{n}/{n}_": corpus_of(documents) for n in ("de", "fr")}
    prepare.write_tokens(folder, corpora, "char", deal_shards(3), languages=("de", "fr"))


def killing(after: int) -> Callable[[Path, Path], None]:
    """os.replace, which kills the process when it has renamed so many files."""
    rename, left = os.replace, iter(range(after))

    def replace(old: Path, new: Path) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(old, new)

    return replace


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("layout", ["text", "packs"])
def test_a_set_that_is_there_is_replaced_whole_or_not_at_all(tmp_path: Path, layout: str):
    write_set(tmp_path / "old", layout, DOCS[:50])
    write_set(tmp_path / "new", layout, DOCS[:30])
    old, new = (open_dataset(tmp_path / name).meta for name in ("old", "new"))
    for n in itertools.count():  # renames until the process is killed
        folder = tmp_path / f"{n}"
        shutil.copytree(tmp_path / "old", folder)
        if (child := os.fork()) == 0:
            try:
                with mock.patch("os.replace", killing(n)):
                    write_set(folder, layout, DOCS[:30])
            finally:
                os._exit(0)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        data = open_dataset(folder)
        assert data.verify_files() == []
        assert data.meta == (new if n else old)
        write_set(folder, layout, DOCS[:30])
        assert {p.relative_to(folder) for p in folder.rglob("*")} == {
            p.relative_to(tmp_path / "new") for p in (tmp_path / "new").rglob("*")
        }
        if not killed:
            break
    assert n == 1 + sum(p.is_file() for p in (tmp_path / "new").rglob("*"))


@pytest.mark.parametrize(
    "names",
    [[], 3, {}, [1], ["train.bin"], ["../.a.bin.1.tmp"], ["x/../../.a.bin.1.tmp"], ["link/.a.bin.1.tmp"]],
)
def test_a_list_of_new_files_from_elsewhere_touches_nothing_outside(tmp_path: Path, names: object):
    folder, outside = tmp_path / "data", tmp_path / ".a.bin.1.tmp"
    write_set(folder, "text", DOCS)
    outside.touch()
    (folder / "link").symlink_to(tmp_path)
    (folder / UNFINISHED).write_text(json.dumps(names))
    with pytest.raises(InputError, match=f"{UNFINISHED} is damaged: remove it"):
        open_dataset(folder)
    assert outside.exists()
    (folder / UNFINISHED).unlink()
    assert open_dataset(folder).verify_files() == []


def test_what_an_older_set_left_is_not_taken_for_the_new_one(tmp_path: Path):
    three = split_random(evaluation=fraction(0.1), val=fraction(0.1))
    prepare.write_tokens(tmp_path / "a", {"": corpus_of(DOCS)}, BPE, three)
    assert set(open_dataset(tmp_path / "a").splits) == {"train", "val", "evaluation"}
    prepare.write_tokens(tmp_path / "a", {"": corpus_of(DOCS)}, "char", split_tail(0.1))
    assert set(open_dataset(tmp_path / "a").splits) == {"train", "val"}
    for languages, n in (["de", "fr"], 9), (["de"], 3):
        corpora = {f"{name}/{name}_": corpus_of(DOCS) for name in languages}
        prepare.write_tokens(tmp_path / "b", corpora, BPE, deal_shards(n), languages=languages)
        data = open_dataset(tmp_path / "b")
        assert data.meta is not None
        assert data.n_tokens("train") == sum(
            v for k, v in data.meta.tokens.items() if not k.endswith(f"_{n - 1}")
        )


INTERRUPTED = """
import os, sys
from nanobackpack import commands
from nanobackpack.text import prepare
encoded = prepare._encoded
def interrupted(*args):
    number = int(sys.argv.pop())
    for batch in encoded(*args):
        yield batch
        os.kill(os.getpid(), number)
prepare._encoded = interrupted
commands.main(["prepare", "a.txt", "--tokenizer=char", *sys.argv[1:-1]])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_leave_no_temporary_files(tmp_path: Path, name: str):
    (tmp_path / "a.txt").write_text("To be, or not to be.\n" * 99)
    number = getattr(signal, name)
    command = [sys.executable, "-c", INTERRUPTED, str(int(number))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert set(tmp_path.rglob("*")) == {tmp_path / "a.txt", tmp_path / "data"}


# --- The scripts -------------------------------------------------------------------------------


class Script:
    """Runs data/<name>/prepare.py as `python` does, but in this process, which is much faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, name: str, *args: object) -> str:
        """The output of a run that succeeds."""
        status, out, err = self.run(name, *args)
        assert (status, err) == (0, "")
        return out

    def error(self, name: str, *args: object) -> str:
        """The one line of a run that fails."""
        status, out, err = self.run(name, *args)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    def verb(self, *args: str) -> tuple[object, str, str]:
        """`nanobackpack prepare`: exit status, output, errors."""
        return self.ending(lambda: commands.main(["prepare", *args]))

    def run(self, name: str, *args: object) -> tuple[object, str, str]:
        path = str(ROOT / "data" / name / "prepare.py")
        self.monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        self.monkeypatch.setattr(sys, "path", sys.path.copy())
        return self.ending(lambda: runpy.run_path(path, run_name="__main__"))

    def ending(self, program: Callable[[], object]) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            program()
        return end.value.code or 0, *self.capfd.readouterr()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    return Script(monkeypatch, capfd)


def test_the_verb_in_an_empty_folder(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Your own texts and known data sets go to data/NAME below the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("first " * 99)
    status, out, err = script.verb("a.txt", "--name=notes", "--tokenizer=char")
    assert (status, err) == (0, "")
    assert "nanobackpack train shakespeare_char --dataset=notes --out_dir=out-notes" in out
    assert open_dataset("notes").n_tokens("train") == int(0.95 * 594)
    for args in (("shakespeare_char", "a.txt"), ("shakespeare_char", "--input=a.txt"), ("pydocs_char",)):
        assert f"data/{args[0]}, from" in script.verb(*args)[1]
        assert open_dataset(args[0]).tokenizer is not None
    # What is left out of records is said in notes.
    Path("b.jsonl").write_bytes(b'{"meta": {"body": "caf\xe9\\r\\n"}}\n{}\n' * 9)
    args = ("b.jsonl", "--field=meta.body", "--tokenizer=char", "--name=b")
    status, out, err = script.verb(*args, "--errors=skip")
    assert (status, err.count("\n")) == (0, 2)
    assert "note: 9 of 18 records had no text: skipped; the first: b.jsonl, line 2, has no field" in err
    assert "note: 9 bytes were no UTF-8 text: left out" in err
    assert text_of(Path("data/b")) == "\n".join(["caf\n"] * 9)
    for wrong, reason in (
        (args, "b.jsonl is not UTF-8 text: byte 22 (line 1) is 0xe9"),
        ((*args, "--errors=skip", "--strict"), "b.jsonl, line 2, has no field 'meta.body'"),
        (("tigerbot", "a.txt", "--shards=3"), "--shards is for common_crawl, not for tigerbot"),
        (("pydocs_char", "a.txt"), "leave --input out"),
        (("a.txt", "--name=openwebtext"), "data/openwebtext is the folder of a known data set"),
        (("clue_small",), "data/clue_small has no wiki_zh_2019"),
        (("openwebtexts",), "openwebtexts is neither a file nor a known data set: did you mean openwebtext?"),
        (("my.txt",), "my.txt: No such file"),
    ):
        status, out, err = script.verb(*wrong)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert reason in err


@pytest.mark.parametrize("name", RECIPES)
def test_every_known_data_set_has_its_script(script: Script, name: str):
    assert name in (*KNOWN, "textfiles")
    assert f"python data/{name}/prepare.py" in script(name, "--help")


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the text is not here, and tests download none")
def test_shakespeare(script: Script, tmp_path: Path):
    out = script("shakespeare_char", "--input", SHAKESPEARE, "--out", tmp_path)
    assert all(n in out for n in ("1,003,854", "111,540"))
    assert TokenData(tmp_path).vocab_size == 65
    assert text_of(tmp_path) == SHAKESPEARE.read_text(encoding="utf-8")
    tokenizer = SHAKESPEARE.parents[1] / "gpt2"
    out = script("shakespeare", "--input", SHAKESPEARE, "--tokenizer", tokenizer, "--out", tmp_path)
    assert all(n in out for n in ("301,966", "36,059"))


def test_pydocs_char_from_another_folder(tmp_path: Path):
    command = [sys.executable, str(ROOT / "data/pydocs_char/prepare.py"), "--out=made"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("made, from pydoc_data.topics")
    meta = TokenData(tmp_path / "made").meta
    assert meta.tokens["train"] == int(sum(meta.tokens.values()) * 0.9) > 100_000


TRAIN_VAL_EVALUATION = ("train", "val", "evaluation")
CHINESE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"0123456789abcdefghijklmnopqrstuvwxyz天地玄黄宇宙洪荒日月"]


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    """A tiny Chinese vocabulary."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(CHINESE), encoding="utf-8")
    return path


def write_records(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def held_texts(folder: Path, *names: str) -> list[str]:
    """The documents of splits, as tokens in a row, sorted."""
    found = []
    for name in names:
        text = "".join(CHINESE[i] for i in read_ids(folder, name))
        assert text.startswith("[CLS]")
        found += ["[CLS]" + part for part in text.split("[CLS]")[1:]]
    return sorted(found)


def test_clue_small(script: Script, tmp_path: Path, chinese: Path):
    data, out = tmp_path / "clue", tmp_path / "out"
    for i, folder in enumerate(("AA", "AB")):
        write_records(data / "wiki_zh_2019" / folder / "wiki_00", [{"text": f"天地\n\n玄{i}\n\n黄"}])
    write_records(data / "wiki_zh_2019" / "AC" / "wiki_01", [{"text": "宙"}, {"text": "宙\n\n"}])
    for i, part in enumerate(("train", "valid", "testa")):
        record = {"title": f"日{i}", "desc": "月", "content": "洪 [SEP] 荒"}  # a typed mark is no mark
        write_records(data / "webtext2019zh" / f"web_text_zh_{part}.json", [record])
    for i, part in enumerate(("train", "valid")):
        record = {"content": f"宇{i}", "title": "天", "source": "地"}
        write_records(data / "new2016zh" / f"news2016zh_{part}.json", [record])
    args = ("clue_small", "--input", data, "--tokenizer", chinese, "--out", out)
    status, _, err = script.run(*args)
    assert (status, err.count("\n")) == (0, 1)
    assert "note: 1 of 4 records had no text: skipped; the first" in err  # an article without text
    typed = "[UNK]" * 3  # [, sep and ], each unknown to so small a vocabulary
    assert held_texts(out, "train", "val", "evaluation") == sorted(
        ["[CLS]宙[SEP]"]
        + [f"[CLS]玄{i}黄[SEP]" for i in range(2)]
        + [f"[CLS]日{i}月[SEP]洪{typed}荒[SEP]" for i in range(3)]
        + [f"[CLS]宇{i}[SEP]" for i in range(2)]
    )
    assert [len(held_texts(out, name)) for name in ("train", "val", "evaluation")] == [6, 1, 1]
    assert TokenData(out).vocab_size == len(CHINESE)
    write_records(data / "new2016zh" / "news2016zh_train.json", [{"content": None}])
    assert "1 of 2 records had no text" in script.run(*args)[2]


def test_tigerbot(script: Script, tmp_path: Path, chinese: Path):
    write_records(tmp_path / "a.jsonl", [{"content": f"天{i}", "title": "地"} for i in range(10)])
    script("tigerbot", "--input", tmp_path / "a.jsonl", "--tokenizer", chinese, "--out", tmp_path / "out")
    whole = [f"[CLS]天{i}[SEP]" for i in range(10)]
    assert held_texts(tmp_path / "out", "train", "val", "evaluation") == whole


def test_openwebtext(script: Script, tmp_path: Path):
    BPE.save(tmp_path / "tokenizer.json")
    write_records(tmp_path / "in" / "a.jsonl", [{"text": text} for text in DOCS])
    args = ("--input", tmp_path / "in", "--tokenizer", tmp_path / "tokenizer.json", "--num_proc", 1)
    script("openwebtext", *args, "--out", tmp_path / "out")
    assert [len(documents_of(read_ids(tmp_path / "out", name), 0)) for name in ("train", "val")] == [299, 1]
    (tmp_path / "one.txt").write_text("one document")
    none = tmp_path / "none"
    assert "prepare FILE" in script.error("openwebtext", tmp_path / "one.txt", *args[2:], "--out", none)
    assert not none.exists()


def test_common_crawl(script: Script, tmp_path: Path, chinese: Path):
    documents = [a + b for a in "天地玄黄" for b in "天地玄黄宇宙洪荒日月"]
    (tmp_path / "zh.txt").write_text("\n".join(documents), encoding="utf-8")
    with lzma.open(tmp_path / "de.txt.xz", "wt", encoding="utf-8") as file:
        file.write("".join(f"{i} a b\n" for i in range(10, 30)))
    args = ("--input", tmp_path / "zh.txt", tmp_path / "de.txt.xz", "--tokenizer", chinese)
    script("common_crawl", *args, "--out", tmp_path / "out")
    meta = Meta.load(tmp_path / "out" / "meta.json")
    assert (meta.languages, meta.dtype) == (["de", "zh"], "uint32")
    names = [f"zh_{split}" for split in TRAIN_VAL_EVALUATION]
    assert held_texts(tmp_path / "out", *names) == sorted(f"[CLS]{text}[SEP]" for text in documents)
    assert [len(held_texts(tmp_path / "out", name)) for name in names] == [34, 2, 4]
    assert list(meta.tokens) == [f"{language}_{s}" for language in ("de", "zh") for s in TRAIN_VAL_EVALUATION]
    assert (tmp_path / "out" / "de_val.bin").stat().st_size == 4 * meta.tokens["de_val"]
    out = script("common_crawl", *args, "--shards", 10, "--out", tmp_path / "packs")
    shards = [f"zh_{i}" for i in range(10)]
    assert held_texts(tmp_path / "packs", *shards) == sorted(f"[CLS]{text}[SEP]" for text in documents)
    assert {p.name for p in (tmp_path / "packs" / "zh").iterdir()} == {f"{name}.bin" for name in shards}
    tokens = Meta.load(tmp_path / "packs" / "meta.json").tokens
    assert {tokens[name] for name in shards} == {16}  # four documents of two characters each
    assert f"zh_*.bin {160} tokens" in " ".join(out.split())
    assert open_dataset(tmp_path / "packs").n_tokens("train") == sum(tokens.values()) * 9 // 10
    no = ("--out", tmp_path / "no")
    assert "too few for 100 shards" in script.error("common_crawl", *args, *no, "--shards", 100)
    assert "give one of them" in script.error("common_crawl", *args, *no, "--languages", "am")
    (tmp_path / "zh.txt.gz").touch()
    assert "two files of the language 'zh'" in script.error("common_crawl", "--input", tmp_path)


def test_textfiles(script: Script, tmp_path: Path):
    (tmp_path / "b.md").write_text("second " * 30)
    (tmp_path / "a.txt").write_text("first " * 30)
    made = tmp_path / "made"
    args = ("textfiles", tmp_path / "a.txt", tmp_path / "b.md")
    args += ("--tokenizer=char", "--name=mine", "--val=0.2", "--out", made)
    assert "of the text, 2 blocks of about 39 characters from 2 of 2 long documents" in script(*args)
    assert {"first", "second"} <= set(text_of(made)[-70:].split())  # a part of each file
    out = script(*args, "--split=tail")
    assert "held out: 20.2% of the text, its end" in out
    assert f"nanobackpack train shakespeare_char --dataset={made.as_posix()} --out_dir=out-mine" in out
    data = open_dataset(made)
    assert [data.n_tokens(split) for split in ("train", "val")] == [312, 79]
    assert text_of(made) == "first " * 30 + "\n" + "second " * 30


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "no text given"),
        (["a.txt", "--name=../up"], "not a plain folder name"),
        (["a.txt", "--name=textfiles"], f"{ROOT / 'data/textfiles'} is the folder of a known data set"),
        (["a.txt", f"--out={ROOT / 'data/tigerbot'}"], "folder of a known data set"),
        (["a.txt", "--tokenizer=bpe:x"], "tokenizer='bpe:x'"),
        (["a.txt", "--num_proc=-1"], "num_proc=-1"),
        (["a.txt", "--val=2"], "val=2.0 is out of range"),
    ],
)
def test_textfiles_errors(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], reason: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("first " * 10)
    assert reason in script.error("textfiles", *args)
