"""Runs, edits and data written by an earlier commit keep opening, and go on as they would have then.

tests/golden/old_run was written by the commit named in its expected.json:

    data/                             a few lines of text, by characters
    adamw/, muon/                     two runs on it with dropout, stopped by a signal at step 7 of 12
    edits.safetensors                 one edit of each kind for a Backpack, for the model in adamw/
    edits_last_row.safetensors        an AmplifyInWord with a setting that no longer exists
    baked.pt                          that model with the first two edits baked in
    expected.json, .safetensors       what that commit logged when it resumed the runs, and what it computed
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nanobackpack as nb
from nanobackpack.config import TrainConfig
from nanobackpack.train.trainer import train

OLD = Path(__file__).parent / "golden" / "old_run"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
TENSORS = load_file(OLD / "expected.safetensors")
TIMINGS = {"ms_per_step", "tokens_per_s", "elapsed_s"}


def same_machine() -> bool:
    """Whether sums are rounded as they were then: the same torch on the same kind of CPU."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    return (
        torch.__version__ == EXPECTED["torch"]
        and (cpu[1] if cpu else platform.processor()) == EXPECTED["cpu"]
    )


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def sha256_of_weights(path: Path) -> str:
    sha = hashlib.sha256()
    for name, t in sorted(torch.load(path, weights_only=True)["model"].items()):
        sha.update(name.encode() + t.numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_old_run_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    out = tmp_path / name
    logged = records(out)
    settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
    del settings["run"]
    settings |= {"init_from": "resume", "out_dir": str(out), "dataset": str(tmp_path / "data")}
    assert train(TrainConfig(**settings)) == 0

    now, then = records(out), logged + EXPECTED["runs"][name]["metrics"]
    assert now[: len(logged)] == logged
    if same_machine():
        assert now == then
        assert sha256_of_weights(out / "ckpt.pt") == EXPECTED["runs"][name]["weights_sha256"]
    else:  # another CPU rounds its sums otherwise
        assert [record.keys() for record in now] == [record.keys() for record in then]
        for a, b in zip(now, then, strict=True):
            words = {key for key, value in b.items() if isinstance(value, str)}
            assert all(a[key] == (b[key] if key in words else pytest.approx(b[key], rel=1e-3)) for key in b)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_old_model_computes_and_samples_the_same(name: str) -> None:
    model = nb.load_model(OLD / name)
    ids = TENSORS["ids"]
    assert model.tokenizer.decode(ids[0].tolist()) == "foxes ju"
    torch.testing.assert_close(model(ids).logits, TENSORS[f"{name}.logits"], rtol=0, atol=1e-5)
    new = model.generate(ids, 12, top_k=5, generator=torch.Generator().manual_seed(1))
    assert new.tolist() == TENSORS[f"{name}.sampled"].tolist()


def test_an_old_edit_file_opens_and_steers_the_same() -> None:
    model = nb.load_model(OLD / "adamw")
    edits = nb.control.load(OLD / "edits.safetensors", model)
    kinds = ["ScaleSense", "ReplaceSenses", "TopicControl", "AmplifyInWord"]
    assert [type(edit).__name__ for edit in edits] == kinds
    logits = model(TENSORS["ids"], edits=edits).logits
    assert (logits - TENSORS["adamw.logits"]).abs().max() > 1e-3
    torch.testing.assert_close(logits, TENSORS["edited.logits"], rtol=0, atol=1e-5)


def test_an_old_baked_model_opens() -> None:
    logits = nb.load_model(OLD / "baked.pt")(TENSORS["ids"]).logits
    torch.testing.assert_close(logits, TENSORS["baked.logits"], rtol=0, atol=1e-5)


def test_old_edits_of_the_last_row_alone_are_refused() -> None:
    """The setting was never used by a program, and is gone; False, as every file has it, still opens."""
    with pytest.raises(nb.InputError, match="last row alone"):
        nb.control.load(OLD / "edits_last_row.safetensors")
