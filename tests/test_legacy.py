"""nanoBackpackLM's page: docs/legacy_commands.md has its commands, and tests that exist; the shortest run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanobackpack import cli
from nanobackpack.commands import sample
from nanobackpack.config import SampleConfig, TrainConfig
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.trainer import train

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "legacy_commands.md").read_text(encoding="utf-8")
PAGE = ROOT.parent / "shared" / "seed" / "nanoBackpackLM-page.txt"
TESTS = sorted(set(re.findall(r"(test_\w+\.py)::(test_\w+)", TABLE)))


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not here")
def test_every_command_of_the_page_is_listed() -> None:
    page = re.sub(r"\\\n\s*", "", PAGE.read_text(encoding="utf-8"))  # a command over several lines
    commands = re.findall(r"\$ ((?:python|torchrun) .*?)(?=\.?$| script\. )", page, re.MULTILINE)
    assert len(commands) >= 17
    for command in commands:
        assert f"`{command}`" in TABLE, command


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_every_test_named_is_there(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def run(kind: type, *flags: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(train if kind is TrainConfig else sample.main, kind, flags)
    return int(stop.value.code or 0)


def test_train_and_sample_without_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python train.py` takes data/openwebtext and writes out/, `python sample.py` reads it."""
    monkeypatch.chdir(tmp_path)
    text = "Before we proceed any further, hear me speak.\n" * 30
    folder = Path("data") / "openwebtext"
    write_dataset(folder, text, Tokenizer.char(text), val_fraction=0.1, source="a test")
    sizes = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=2"]
    assert run(TrainConfig, *sizes, "--max_iters=2", "--eval_iters=2", "--device=cpu") == 0
    assert Path("out", "ckpt.pt").exists()
    capsys.readouterr()
    short = ["--max_new_tokens=5", "--device=cpu"]
    assert run(SampleConfig, *short) == 0
    assert capsys.readouterr().out.count("-" * 15) == 10
    Path("prompt.txt").write_text("hear me", encoding="utf-8")
    assert run(SampleConfig, *short, "--start=FILE:prompt.txt") == 0
    assert capsys.readouterr().out.count("hear me") == 10
