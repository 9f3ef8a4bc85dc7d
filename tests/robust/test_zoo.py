"""The zoo: no hostile file is run, harms, or takes long or much; each gets one clear line."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from nanobackpack.errors import InputError
from nanobackpack.safe.untrusted import load_untrusted

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
    from zoo import BEASTS, PROOF, write  # 350 MB of memory, which only what feeds the zoo needs
    from zoo.__main__ import LOADERS  # imports all that they need

    assert len(BEASTS) >= 200
    assert all(beast.why and beast.loaders for beast in BEASTS.values())
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


class Told:
    """A storage, or a tensor of it, as a pickle of torch tells of them: they need not exist."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        storage, offset, shape, strides = self.what
        return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict())


def old_file(path: Path, tensors: list[Told], names: object, numbers: list[list[float]]) -> Path:
    """A file of torch before 1.6: five pickles, and the numbers of each storage after their count."""
    content = io.BytesIO()
    pickler = type("", (pickle.Pickler,), {"persistent_id": lambda _, x: x.what if is_storage(x) else None})
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, dict(enumerate(tensors)), names):
        pickler(content, 2).dump(value)
    for row in numbers:
        content.write(len(row).to_bytes(8, "little") + torch.tensor(row).numpy().tobytes())
    path.write_bytes(content.getvalue())
    return path


def is_storage(x: object) -> bool:
    return isinstance(x, Told) and x.what[0] == "storage"


def test_tensors_lie_within_the_storages_that_an_old_file_names(tmp_path: Path) -> None:
    """Else torch would give them what lay in memory before, or make a storage longer."""
    from zoo.torch_files import laughs

    a, b = (Told("storage", torch.FloatStorage, key, "cpu", 6, None) for key in "ab")
    bytes_of_a = Told("storage", torch.ByteStorage, "a", "cpu", 24, None)
    sound = [Told(a, 0, (2, 3), (3, 1)), Told(b, 2, (2, 2), (1, 2))]
    rows = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]
    opened = load_untrusted(old_file(tmp_path / "good.pt", sound, ["b", "a"], rows[::-1]))
    assert [t.tolist() for t in opened.values()] == [[rows[0][:3], rows[0][3:]], [[8, 10], [9, 11]]]
    for n, (what, tensors, names, numbers) in enumerate([
        ("that it names", sound, [], rows),
        ("that it names", sound, ["a", "a"], rows),
        ("that it names", sound, {"a": 0, "b": 0}, rows),
        ("that it names", sound, [laughs(list), laughs(list)], rows),
        ("another size", sound, ["a", "b"], [rows[0][:3], rows[0] + rows[1][3:]]),
        ("two sizes or kinds", [sound[0], Told(bytes_of_a, 0, (24,), (1,))], ["a"], rows[:1]),
        ("too few numbers", [sound[0], Told(b, 3, (2, 2), (1, 2))], ["a", "b"], rows),
        ("share bytes", [sound[0], Told(b, 0, (2, 2), (1, 1))], ["a", "b"], rows),
    ]):  # fmt: skip
        with pytest.raises(InputError, match=what):
            load_untrusted(old_file(tmp_path / f"{n}.pt", tensors, names, numbers))
