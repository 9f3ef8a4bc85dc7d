"""From text to token files: downloads, reading, splitting, and the data/*/prepare.py scripts."""

from __future__ import annotations

import functools
import hashlib
import http.server
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nanobackpack import prepare
from nanobackpack.config import InputError
from nanobackpack.data import Meta, TokenData
from nanobackpack.tokenizers import Tokenizer, build

ROOT = Path(__file__).resolve().parents[1]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
TEXT = "To be, or not to be.\r\n" * 10


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


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
    prepare.download(f"{server}/{name}", path, SHA256, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["input.txt"]
    assert capfd.readouterr() == ("", "")  # no progress bar outside a terminal
    (tmp_path / "www" / name).unlink()
    prepare.download(f"{server}/{name}", path, SHA256, len(CONTENT))  # what is there is reused


@pytest.mark.parametrize(
    ("content", "reason"),
    [(CONTENT[:-1], "fewer than"), (CONTENT + b"!", "more than"), (CONTENT[:-1] + b"!", "sha256")],
)
def test_download_of_another_file(server: str, tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "www" / "file").write_bytes(content)
    with pytest.raises(InputError) as error:
        prepare.download(f"{server}/file", tmp_path / "input.txt", SHA256, len(CONTENT))
    assert reason in message(error)
    assert "--input FILE" in str(error.value)
    assert not list(tmp_path.glob("*input.txt*"))


def test_download_fails(server: str, tmp_path: Path):
    for url in (f"{server}/nothing", "http://127.0.0.1:1/x", (tmp_path / "none").as_uri()):
        with pytest.raises(InputError) as error:
            prepare.download(url, tmp_path / "input.txt", SHA256, len(CONTENT))
        assert url in message(error)
        assert "--input FILE" in str(error.value)
    assert QuietHandler.requests == 2


def test_download_never_overwrites_a_text_of_the_user(tmp_path: Path):
    path = tmp_path / "input.txt"
    path.write_text("my own")
    with pytest.raises(InputError) as error:
        prepare.download("http://127.0.0.1:1/x", path, SHA256, len(CONTENT))
    assert "input.txt is not the file" in message(error)
    assert path.read_text() == "my own"


# --- Reading and writing -----------------------------------------------------------------------


def test_read_text_keeps_line_ends(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n\xc3\xa9")
    assert prepare.read_text(path) == "one\r\ntwo\rthree\né"


def test_read_text_errors(tmp_path: Path):
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "folder").mkdir()
    reasons = {
        "none": "No such file",
        "folder": "is a folder",
        "empty": "is empty",
        "latin": "is not UTF-8 text (byte 3 ",
    }
    for name, reason in reasons.items():
        with pytest.raises(InputError) as error:
            prepare.read_text(tmp_path / name)
        assert name in message(error)
        assert reason in str(error.value)


def test_write_dataset(tmp_path: Path):
    tokenizer = build("char", TEXT)
    meta = prepare.write_dataset(tmp_path, TEXT, tokenizer, val_fraction=0.1, source="Hamlet")
    assert meta.tokens == meta.chars == {"train": 198, "val": 22}
    assert meta.dtype == "uint16"
    assert meta.vocab_size == len(set(TEXT))
    assert Meta.load(tmp_path / "meta.json") == meta
    for split, part in {"train": TEXT[:198], "val": TEXT[198:]}.items():
        content = (tmp_path / f"{split}.bin").read_bytes()
        assert tokenizer.decode(np.frombuffer(content, "<u2").tolist()) == part
        assert meta.sha256[f"{split}.bin"] == hashlib.sha256(content).hexdigest()
    files = {"train.bin", "val.bin", "tokenizer.json", "meta.json"}
    assert {p.name for p in tmp_path.iterdir()} == files
    report = prepare.summary(meta, tmp_path)
    assert "Hamlet" in report
    assert "198 tokens" in report
    assert "22 tokens" in report
    assert len({line.rindex(" tokens") for line in report.splitlines() if "tokens" in line}) == 1


def test_write_dataset_takes_parts(tmp_path: Path):
    meta = prepare.write_dataset(
        tmp_path, iter([TEXT, TEXT]), build("char", TEXT), val_fraction=0.5, source=""
    )
    assert meta.chars == {"train": len(TEXT), "val": len(TEXT)}


@pytest.mark.parametrize(("n", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_dtype_holds_the_vocabulary(tmp_path: Path, n: int, dtype: str):
    text = "".join(chr(0x10000 + i) for i in range(n))
    tokenizer = Tokenizer.char(text)
    meta = prepare.write_dataset(tmp_path, text, tokenizer, val_fraction=0.5, source="")
    assert meta.dtype == dtype
    assert TokenData(tmp_path).splits["val"][-1] == n - 1


def test_write_dataset_errors(tmp_path: Path):
    tokenizer = Tokenizer.char(TEXT)

    def write(text: str = TEXT, val: float = 0.1, folder: Path = tmp_path / "out") -> str:
        with pytest.raises(InputError) as error:
            prepare.write_dataset(folder, text, tokenizer, val_fraction=val, source="")
        assert not (tmp_path / "out").exists()
        return message(error)

    for val in (0, 1, -1, float("nan")):
        assert f"val={val}" in write(val=val)
    assert "10 characters" in write(TEXT[:10])
    assert "val part" in write(TEXT[:10])
    assert "train part" in write(TEXT[:3], 0.9)
    assert "too few" in write("")
    assert "'z' (U+007A) at position 3" in write("To z" + TEXT)
    (tmp_path / "file").touch()
    assert "cannot write to" in write(folder=tmp_path / "file")


def test_text_files(tmp_path: Path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/z.md", "b/deep/y.txt", "b/skipped.py", "a.dat"):
        (tmp_path / name).touch()
    paths = [str(tmp_path / p) for p in ("b", "a.dat", "b/z.md")]
    found = [p.relative_to(tmp_path).as_posix() for p in prepare.text_files(paths)]
    assert found == ["a.dat", "b/deep/y.txt", "b/z.md"]
    (tmp_path / "none").mkdir()
    for given, reason in (([], "no text given"), ([str(tmp_path / "none")], "none has no *.txt")):
        with pytest.raises(InputError) as error:
            prepare.text_files(given)
        assert reason in message(error)


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

    def run(self, name: str, *args: object) -> tuple[object, str, str]:
        path = str(ROOT / "data" / name / "prepare.py")
        self.monkeypatch.setattr(sys, "argv", [path, *map(str, args)])
        self.monkeypatch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(path, run_name="__main__")
        return exit.value.code or 0, *self.capfd.readouterr()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Script:
    return Script(monkeypatch, capfd)


def test_shakespeare_char(script: Script, tmp_path: Path):
    if not SHAKESPEARE.exists():
        pytest.skip("the text is not here (../shared/data/tinyshakespeare), and tests download none")
    out = script("shakespeare_char", "--input", SHAKESPEARE, "--out", tmp_path)
    assert "1,003,854" in out
    assert "111,540" in out
    data = TokenData(tmp_path)
    assert data.vocab_size == 65
    assert data.meta is not None
    assert data.meta.tokens == {"train": 1_003_854, "val": 111_540}
    assert data.tokenizer is not None
    assert data.tokenizer.decode(data.splits["train"][:14].tolist()) == "First Citizen:"


def test_shakespeare_char_with_a_text_of_yours(script: Script, tmp_path: Path):
    path, out = tmp_path / "mine.txt", tmp_path / "out"
    path.write_bytes(TEXT.encode())
    script("shakespeare_char", f"--input={path}", f"--out={out}")
    assert TokenData(out).vocab_size == len(set(TEXT))
    error = script.error("shakespeare_char", f"--input={tmp_path / 'none.txt'}", f"--out={out}")
    assert "none.txt" in error


def test_pydocs_char_from_another_folder(tmp_path: Path):
    command = [sys.executable, str(ROOT / "data/pydocs_char/prepare.py"), "--out=made"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("made, from pydoc_data.topics")
    meta = TokenData(tmp_path / "made").meta
    assert meta is not None
    assert meta.tokens["train"] == int(sum(meta.tokens.values()) * 0.9) > 100_000


def test_textfiles(script: Script, tmp_path: Path):
    (tmp_path / "b.md").write_text("second " * 10)
    (tmp_path / "a.txt").write_text("first " * 10)
    made = tmp_path / "made"
    args = ("--tokenizer=char", "--name=mine", "--val=0.2", "--out", made)
    out = script("textfiles", tmp_path, *args)
    command = f"--dataset={made.as_posix()} --out_dir=out-mine"
    assert f"python train.py config/train_shakespeare_char.py {command}" in out
    data = TokenData(made)
    assert data.tokenizer is not None
    ids = np.concatenate([data.splits["train"], data.splits["val"]]).tolist()
    assert data.tokenizer.decode(ids) == "first " * 10 + "\n" + "second " * 10
    assert data.meta is not None
    assert data.meta.chars == {"train": 104, "val": 27}


def test_textfiles_in_the_data_folder(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setattr(prepare, "write_dataset", lambda out, *args, **named: written.append(out))
    monkeypatch.setattr(prepare, "summary", lambda meta, out: "done")
    (tmp_path / "a.txt").write_text("first")
    out = script("textfiles", tmp_path / "a.txt", "--name=my_notes")
    assert written == [ROOT / "data" / "my_notes"]
    assert "--dataset=my_notes --out_dir=out-my_notes" in out


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "no text given"),
        (["a.txt", "--name=../up"], "not a plain folder name"),
        (["a.txt", "--name=.hidden"], "not a plain folder name"),
        (["a.txt", "--name=textfiles"], "own prepare.py"),
        (["a.txt", "--tokenizer=bpe"], "only 'char'"),
        (["a.txt", "--val=2"], "val=2.0 is out of range"),
    ],
)
def test_textfiles_errors(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    reason: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("first " * 10)
    assert reason in script.error("textfiles", *args)
