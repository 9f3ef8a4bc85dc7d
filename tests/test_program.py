"""Programs as services, pipes and terminals of all kinds run them; Ctrl-C at any moment."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from nanobackpack import program
from nanobackpack.errors import InputError, escape_controls
from nanobackpack.safe.files import check_writable, writing
from nanobackpack.safe.pictures import picture
from nanobackpack.text.data import open_dataset

ROOT = Path(__file__).resolve().parents[1]
NO_FOLDER = "there is no folder"
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def shell(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell does with a command, in which `run` is this package's program."""
    program = f'run() {{ "{sys.executable}" -m nanobackpack "$@"; }}\n{command}'
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60", **env}
    return subprocess.run(["bash", "-c", program], cwd=folder, env=env, capture_output=True, timeout=120)


# --- Beside other programs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "set_to"),
    [
        ({}, "10000"),
        ({"OMP_NUM_THREADS": "1"}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_spin_for_a_short_time_unless_the_user_says_how(
    given: dict[str, str], set_to: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", given)
    program.share_processors()
    assert given.get("GOMP_SPINCOUNT") == set_to


def test_the_library_of_threads_hears_of_it_and_importing_the_package_changes_nothing() -> None:
    torch = importlib.util.find_spec("torch")
    assert torch
    found = [str(file) for file in Path(str(torch.origin)).parent.glob("lib/libgomp*.so*")]
    if not found:
        pytest.skip("this PyTorch has another library of threads")
    code = f"""
import ctypes, os, nanobackpack
from nanobackpack import commands, program
nanobackpack.TrainConfig
assert "GOMP_SPINCOUNT" not in os.environ
program.guard(lambda: ctypes.CDLL({found[0]!r}) and None)
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    env |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr


# --- Streams ----------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("encoding", ["gbk", "ascii"])
def test_any_encoding_will_do(encoding: str, tmp_path: Path) -> None:
    done = shell("run explain --help && run train '却é\u202e😀'", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    # The examples keep their lines, whatever the width.
    assert (
        '    nanobackpack explain --prompt "The nurse said that" --next he --versus she --plot heat.png'
        in (done.stdout.decode(encoding).splitlines())
    )
    assert "\\U0001f600" in done.stderr.decode(encoding)


@posix
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_lose_nothing(closed: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc\n" * 50)
    done = shell(f"run prepare text --tokenizer=char --out=data {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    # What is printed did not get into a file that was opened in place of stdout.
    assert open_dataset(tmp_path / "data").verify_files() == []


@posix
def test_json_alone_comes_out_of_stdout(folder: Path) -> None:
    (folder / "out").write_text("before\n")
    done = shell("run senses --out_dir=. --device=cpu --words a --json=/dev/stdout >> out", folder)
    assert (done.returncode, done.stderr.count(b"# a\n")) == (0, 1)
    before, _, found = (folder / "out").read_text().partition("\n")
    assert (before, json.loads(found)[0][0]["title"]) == ("before", "a")


def test_a_terminal_gets_no_control_characters() -> None:
    pty = pytest.importorskip("pty")
    text = "a\x1b[31m\r\b\x9b\u202e天\t\n"
    shown = "a\\x1b[31m\\r\\x08\\x9b\\u202e天\t\n"
    assert escape_controls(text) == shown
    code = (
        "from nanobackpack import cli, config\n"
        f"def main(settings): print({text!r}, end=''); raise OSError(2, 'gone', 'b\\x1b')\n"
        "cli.run(main, config.LoadConfig, [])"
    )
    outer, inner = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], stdout=inner, stderr=subprocess.PIPE, env=env)
    assert os.read(outer, 999).decode() == shown.replace("\n", "\r\n")
    os.close(inner), os.close(outer)
    assert (done.returncode, done.stderr) == (2, b"error: b\\x1b: gone\n")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=env).stdout.decode() == text


# --- Files that the user names ----------------------------------------------------------------


@posix
def test_links_and_pipes_are_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")  # which is not there yet
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link", "link", "pipe"):
        check_writable(str(tmp_path / name))
        with writing(tmp_path / name) as file:
            file.write(b"new")
    assert (tmp_path / "target").read_bytes() == os.read(reader, 9) == b"new"
    os.close(reader)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "pipe").is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "target", "pipe"}
    check_writable("/dev/null")


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/x.json", NO_FOLDER), (".", "it is a folder"), ("a" * 300, "."), ("file/x", NO_FOLDER)],
)
def test_places_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^cannot write .*{message}"):
        check_writable(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_characters_without_a_font_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [])
    for text in ("却 a", "aé∑", "from $\\frac$ on"):  # the last is no formula, and no error
        with (
            warnings.catch_warnings(record=True) as notes,
            picture(writing(tmp_path / "a.png"), (2, 2), text) as figure,
        ):
            figure.suptitle(text)
        assert [("'却'" in str(note.message), "apt install" in str(note.message)) for note in notes] == (
            [(True, True)] * (text[0] == "却")
        )


# --- Ctrl-C -----------------------------------------------------------------------------------


@posix
def test_ctrl_c_while_a_program_starts(folder: Path) -> None:
    """From the moment that the program is there; Python itself takes a while before."""
    code = (
        "import os, sys; from nanobackpack.commands import run; os.write(1, b'!')\n"
        "run('sample', ['--out_dir=run', '--device=cpu', '--num_samples=999', '--start=a'])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for wait_s, times in ((0.05, 5), (0.4, 1), (1.2, 5)):  # in tyro, in torch
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder.parent, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            process.stdout.read(1)
            time.sleep(wait_s)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
            assert (process.stderr.read(), process.wait(60)) == (b"", 130)
