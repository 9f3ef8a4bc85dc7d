"""Every command of the README, as it stands there, run in a copy of the repository: only the sizes shrink.

Without a network, on purpose: what would be downloaded must fail in one line that shows the way out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
from conftest import save_tiny

from nanobackpack import cli
from nanobackpack.commands import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ((?:python|make|nanobackpack) [^#\n]*)", README, re.MULTILINE)

OTHERS = [  # more of the page's scripts
    "python experiments/perplexity.py --out_dir=out-shakespeare-char",
    "python experiments/perplexity_per_language.py --out_dir=backpack_xlm",
    *(f"python data/{name}/prepare.py" for name in ("shakespeare", "openwebtext", "clue_small", "tigerbot")),
    "python data/common_crawl/prepare.py",
]

# What a command needs to be quick; the rest of it is run as written.
TINY = "--n_layer=2 --n_head=2 --n_embd=16 --block_size=32 --batch_size=4 --max_iters=3 --eval_iters=2"
TEXT = (
    "My lord, the king and his queen love her son.\nBefore we proceed, hear me speak from the heart.\n" * 200
)


def extra(command: str) -> list[str]:
    if "train.py" in command or "nanobackpack train" in command:
        return [*TINY.split(), "--device=cpu"]
    if "sample.py" in command or "nanobackpack sample" in command:
        return ["--num_samples=2", "--max_new_tokens=20"]
    return []


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a user has it, with the few files that the README's examples call theirs."""
    folder = tmp_path_factory.mktemp("readme") / "nanobackpack"
    ignore = shutil.ignore_patterns(".*", "out*", "tests", "*.bin", "meta.json", "input.txt", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignore)
    for name in ("shakespeare.txt", "don_quixote.txt"):
        (folder / name).write_text(TEXT, encoding="utf-8")
    (folder / "stories.txt").write_text(TEXT.replace("\n", "\n<|endoftext|>\n"), encoding="utf-8")
    (folder / "tales.jsonl").write_text(f"{json.dumps({'body': TEXT})}\n" * 30, encoding="utf-8")
    (folder / "poem.txt").write_text("My lord, love the king.", encoding="utf-8")
    (folder / "prompts.txt").write_text("My lord\nThe king\n", encoding="utf-8")
    return folder


def run(copy: Path, *args: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a process of its own, without a network."""
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    env = os.environ | {"https_proxy": nowhere, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(args, cwd=copy, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def run_here(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """As `run`, but in this process, which has imported torch already."""
    program, *flags = words
    monkeypatch.setattr(sys, "argv", flags if program == "python" else words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(flags[0], run_name="__main__") if program == "python" else main(flags)
    return int(end.value.code or 0), *capfd.readouterr()


@pytest.mark.slow
def test_readme_commands(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the README's order, each of them works on what the ones before it made."""
    # What a browser is for runs until Ctrl-C: test_browser.py.
    commands = [c for c in COMMANDS if not c.startswith(("make ", "nanobackpack explore"))] + OTHERS
    assert sum(c.startswith("nanobackpack ") for c in commands) >= 9
    monkeypatch.chdir(copy)
    for command in commands:
        words = [*shlex.split(command), *extra(command)]
        if "prepare.py" in command:  # wants the network, or texts that are not here
            status, _, err = run(copy, sys.executable, *words[1:])
            assert (status, err.count("\n")) == (2, 1), command + err
            assert err.startswith("error: "), command
            if "shakespeare_char" not in command:
                continue
            assert "cannot download" in err
            assert "--input" in err
            words += ["--input", "shakespeare.txt"]
        status, out, err = run_here(words, monkeypatch, capfd)
        if "backpack_xlm" in command:  # a model of many languages, which takes more than a test has
            assert (status, err.count("\n")) == (2, 1), err
            assert "nanobackpack train backpack_xlm_micro" in err
            continue
        assert (status, err) == (0, ""), command
        assert out, command
    made = {p.name for p in (copy / "out-shakespeare-char").iterdir()}
    files = {"ckpt.pt", "best.pt", "metrics.jsonl", "config.json", "loss.png"}
    assert made - {"ckpt_prev.pt"} == files | {"older-1"}  # the page trains twice into one folder


def test_the_first_lines_of_python_run(tmp_path: Path) -> None:
    """On a tiny model, whose numbers are others."""
    save_tiny(tmp_path / "out-zh", "天曹操丕却说子下津色水意", n_sense_vector=8)
    block = re.search(r"```python\n(>>> .*?)```", README, re.DOTALL)
    assert block
    lines = [line[4:] for line in block[1].splitlines() if line.startswith((">>> ", "... "))]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(lines).replace('"out-zh"', repr(str(tmp_path / "out-zh"))), {})
    assert printed.getvalue().startswith("# 天\n  sense 5  '")
    assert re.fullmatch(r"(\[\S+\s+\S+\]\n){2}", printed.getvalue().split("\n", 2)[2])


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "config" / "README.md"]


def test_every_command_of_docs_and_help_texts_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    pages = [*PAGES, *(ROOT / "nanobackpack").rglob("*.py")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    commands = re.findall(r"^    nanobackpack (\w.*?)(?:   .*)?$", text, re.MULTILINE)
    assert len(commands) > 60
    for command in commands:
        verb, *flags = shlex.split(command, comments=True)
        verb = verb.replace("-", "_")
        if verb in VERBS and "mine.py" not in flags:  # a config file of the user's own
            module = import_module(f"nanobackpack.{VERBS[verb][0]}")
            cli.parse(get_type_hints(module.main)["settings"], flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.slow
def test_make_demo(copy: Path) -> None:
    """make demo, from data to senses; without a network it says so and takes Python's help texts."""
    venv = Path(sys.executable).parents[1]
    make = ["make", "demo", "-o", "setup", f"VENV={venv}", "DEMO_FLAGS=" + TINY]
    status, out, err = run(copy, *make, "SHAKESPEARE=")
    assert status == 0, err
    assert "cannot download" in err
    assert "Python's own help texts" in out
    assert "whole validation split" in out
    assert "sense 3" in out
    assert "wrote out-demo/report.html" in out
    # With the text beside the repository it is taken: what make would run says so.
    status, out, err = run(copy, *make, "SHAKESPEARE=shakespeare.txt", "--dry-run")
    assert (status, err) == (0, "")
    assert "data/shakespeare_char/prepare.py --input=shakespeare.txt" in out
