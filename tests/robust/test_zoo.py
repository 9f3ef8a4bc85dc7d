"""The zoo: no hostile file is run, harms, or takes long or much; each gets one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from zoo import BEASTS, PROOF, write
from zoo.__main__ import LOADERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the keeper asks Linux for its peak memory")
ROOT = Path(__file__).resolve().parents[2]
MAX_MB, MAX_S = 100, 10  # more than any beast takes, far less than what they ask for


def fed(folder: Path, meals: list[str]) -> dict[str, dict[str, Any]]:
    """What came of each BEAST:LOADER. A process that dies of one is followed by another for the rest."""
    results: dict[str, dict[str, Any]] = {}
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    while left := [m for m in meals if m not in results]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.robust.zoo", folder, *left],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"meal"')]
        results |= {row["meal"]: row for row in rows}
        if done.returncode:
            assert len(rows) < len(left), done.stderr
            message = f"exit status {done.returncode}: {done.stderr[-1500:]}"
            results[left[len(rows)]] = {"outcome": "died", "message": message, "did": [], "mb": 0, "s": 0}
    return results


@pytest.mark.slow
def test_nothing_in_the_zoo_does_harm(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of a name that comes twice
        for name in BEASTS:
            write(name, tmp_path / name)
    meals = [f"{name}:{loader}" for name in BEASTS for loader in BEASTS[name].loaders]
    assert {meal.split(":")[1] for meal in meals} == LOADERS.keys() - {"unsafe"}
    careless = ["ckpt-mkdir", "ckpt-system", "ckpt-open", "zip-bomb", "ckpt-pipe"]
    rows = fed(tmp_path, [*meals, *(f"{name}:unsafe" for name in careless)]).values()
    *rows, mkdir, system, opened, bomb, pipe = rows
    bad = []
    for meal, row in zip(meals, rows, strict=True):
        outcome, message = row["outcome"], row["message"]
        refused = outcome == "refused" and message and len(message.splitlines()) == 1 and len(message) < 600
        right = refused or (outcome == "opened" and BEASTS[meal.split(":")[0]].harmless)
        if not right or row["did"] or row["mb"] > MAX_MB or row["s"] > MAX_S:
            bad.append(f"{meal}: {row}")
    assert not bad, "\n".join(bad)
    # The keeper sees what a careless loader lets happen, and ends what takes forever.
    for row in (mkdir, system, opened):
        assert f"left ['{PROOF}'] behind" in row["did"]
        assert len(row["did"]) > 1  # the audit hook saw it too
    assert bomb["mb"] > MAX_MB
    assert pipe["outcome"] == "died"


def test_the_zoo_is_large() -> None:
    assert len(BEASTS) >= 200
    assert all(beast.why and beast.loaders for beast in BEASTS.values())
