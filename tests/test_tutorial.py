"""The code of docs/tutorial.md runs from top to bottom; only its training is shorter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_it_has_as_many_lines_as_it_says() -> None:
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len(lines) <= int(re.findall(r"# A Backpack in (\d+) lines", PAGE)[0])


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "n_steps = 600\n" in CODE
    with torch.random.fork_rng():
        exec(CODE.replace("n_steps = 600", "n_steps = 5"), {})
    printed = capsys.readouterr().out
    assert printed.count("sense ") == 8 + 3  # a table of 8 senses, 3 contributions
    assert "before" in printed
