"""Settings that cannot be: a table of each with what its one line must say. Flags are in test_cli.py.

Every field gets a value of the wrong type and, if it is a number, some out of range; pairs contradict each
other; and what the machine does not have is found when a program starts, before anything is written.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from nanobackpack import cli
from nanobackpack.commands import sample
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.config import ModelConfig, SampleConfig, TrainConfig
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint, trainer

KINDS = (TrainConfig, SampleConfig, SenseConfig, ModelConfig)


def line_of(config_type: type, main: Any, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program says that ends with status 2: one line."""
    with pytest.raises(SystemExit) as stop:
        cli.run(main, config_type, argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


def accepted(config: object) -> int:
    raise AssertionError(f"accepted: {config}")


# --- Every field ------------------------------------------------------------------------------


def wrong_types() -> list[tuple[type, str, object]]:
    """For each field of each kind a value of a type that it does not take."""
    cases = []
    for kind in KINDS:
        for name, hint in get_type_hints(kind).items():
            wrong = {int: 1.5, float: "much", bool: 1, str: 7}.get(hint, {"a": 1})
            cases.append((kind, name, wrong))
    return cases


@pytest.mark.parametrize(("kind", "name", "value"), wrong_types())
def test_a_wrong_type_in_a_config_file(
    kind: type, name: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{name} = {value!r}\n", encoding="utf-8")
    message = line_of(kind, accepted, [str(file)], capsys)
    assert f"{name}={value!r} has the wrong type: it must be " in message


# The numbers that may not be 0, and those that have an upper end; no number may be below 0 or no number.
POSITIVE = [
    "n_layer", "n_head", "n_embd", "block_size", "n_sense_vector", "vocab_size", "batch_size",
    "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval", "lr_decay_iters",
    "num_samples", "max_new_tokens", "k", "top_p",
]  # fmt: skip
BELOW_ONE = ("dropout", "beta1", "beta2")


def out_of_range() -> list[tuple[type, str, object]]:
    """For each number of each kind what lies just outside of its range."""
    cases: list[tuple[type, str, object]] = []
    for kind in KINDS:
        for name, hint in get_type_hints(kind).items():
            if hint not in (int, float):
                continue
            below = -2 if name == "sense" else -1  # its -1 stands for all
            cases.append((kind, name, below if hint is int else -1e-9))
            cases += [(kind, name, 0)] * (name in POSITIVE)
            cases += [(kind, name, 1.0)] * (name in BELOW_ONE)
            cases += [(kind, name, v) for v in (math.nan, math.inf) if hint is float]
    return [
        *cases,
        (SampleConfig, "top_p", 1.0000001),
        (ModelConfig, "vocab_used", 50305),
        (TrainConfig, "xlm_alpha", 1.1),
    ]


@pytest.mark.parametrize(("kind", "name", "value"), out_of_range())
def test_a_number_out_of_range(
    kind: type, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{name}={value}" in line_of(kind, accepted, [f"--{name}={value}"], capsys)


def test_the_ends_of_ranges_are_taken() -> None:
    """So that the tables above are not true of everything."""
    for name in ("temperature", "top_k", "seed"):
        assert getattr(cli.parse(SampleConfig, [f"--{name}=0"]), name) == 0
    for name in ("dropout", "weight_decay", "grad_clip", "warmup_iters", "max_iters", "beta1", "min_lr"):
        assert getattr(cli.parse(TrainConfig, [f"--{name}=0"]), name) == 0
    for name in POSITIVE:
        kind = next(k for k in KINDS if name in {f.name for f in dataclasses.fields(k)})
        others = ["--warmup_iters=0"] if kind is TrainConfig else []
        others += ["--n_head=1", "--n_sense_vector=1"] if name == "n_embd" else []
        assert getattr(cli.parse(kind, [f"--{name}=1", *others]), name) == 1


# --- Pairs that contradict each other ----------------------------------------------------------

PAIRS = [
    ("--n_head=5", "n_head=5 does not divide n_embd=768"),
    ("--n_embd=100", "n_head=12 does not divide n_embd=100"),
    ("--n_sense_vector=7", "n_sense_vector=7 does not divide n_embd=768"),
    ("--n_embd=24 --n_head=2", "n_sense_vector=16 does not divide n_embd=24"),
    ("--min_lr=1", "min_lr=1 is above learning_rate=0.0006"),
    ("--learning_rate=1e-5", "min_lr=6e-05 is above learning_rate=1e-05"),
    ("--lr_decay_iters=100", "warmup_iters=2000 is above lr_decay_iters=100"),
    ("--warmup_iters=700000", "warmup_iters=700000 is above lr_decay_iters=600000"),
]


@pytest.mark.parametrize(("flags", "message"), PAIRS)
def test_a_contradiction(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in line_of(TrainConfig, accepted, flags.split(), capsys)


def test_without_decay_its_settings_contradict_nothing() -> None:
    config = cli.parse(TrainConfig, ["--decay_lr=False", "--min_lr=1", "--warmup_iters=700000"])
    assert config.min_lr == 1


# --- What only a program can find --------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "d", "abcd" * 50, Tokenizer.char("abcd"), val_fraction=0.2, source="test")
    return tmp_path / "d"


SMALL = "--device=cpu --n_layer=1 --n_head=1 --n_embd=8 --n_sense_vector=1 --block_size=4 --warmup_iters=0"
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
AT_START = [
    ("--block_size=40", "val.bin has 40 tokens, too few for block_size=40, which needs 41"),
    ("--block_size=200", "too few for block_size=200"),
    ("--dataset=nowhere", "data/nowhere does not exist: make it with"),
    ("--data_bin_dtype=uint32", "dtype='uint32' contradicts"),
    ("--init_from=resume", "no checkpoint"),
    ("--device=tpu", "device='tpu' is not here: this machine has"),
    ("--device=cuda:99", "device='cuda:99' is not here: this machine has"),
    pytest.param("--device=cuda", "device='cuda' is not here: this machine has cpu", marks=NO_CUDA),
    ("--dtype=float16", "dtype=float16 needs a CUDA device, not cpu"),
    ("--compile=True", "compile=True needs a C++ compiler, not found here: take --compile=False"),
    ("--wandb_log=True", "wandb"),
]


@pytest.mark.parametrize(("flags", "message"), AT_START)
def test_a_run_that_cannot_start(
    flags: str, message: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(data))  # where no compiler is
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
    out = data.parent / "out"
    argv = [*SMALL.split(), f"--dataset={data}", f"--out_dir={out}", *flags.split()]
    assert message in line_of(TrainConfig, trainer.train, argv, capsys)
    assert not out.exists()


def test_a_sample_that_cannot_start(
    tmp_path: Path, speller: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"model": speller.state_dict(), "model_args": dataclasses.asdict(speller.config)}
    checkpoint.save_checkpoint(tmp_path / "ckpt.pt", state | {"tokenizer": speller.tokenizer.to_json()})
    cases = [
        ("--start=xyz", "unknown character 'x'"),
        ("--start=", "the prompt is empty"),
        (f"--start=FILE:{tmp_path / 'no.txt'}", "cannot read"),
        ("--device=tpu", "device='tpu' is not here"),
        ("--dtype=float16", "dtype=float16 needs a CUDA device"),
        ("--out_dir=nowhere", "no model at nowhere"),
    ]
    for flag, message in cases:
        argv = ["--device=cpu", f"--out_dir={tmp_path}", flag]
        assert message in line_of(SampleConfig, sample.main, argv, capsys)


def test_a_warm_up_longer_than_the_run_is_noted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = dict(pair.removeprefix("--").split("=") for pair in SMALL.split())
    sizes: dict[str, Any] = {k: int(v) for k, v in settings.items() if v.isdecimal()} | {"warmup_iters": 3}
    config = TrainConfig(**sizes, device="cpu", dataset=str(data), out_dir=str(data / "out"), max_iters=2)
    assert trainer.train(config) == 0
    assert "warms up for 3 steps, longer than the 2 of this run" in capsys.readouterr().out
