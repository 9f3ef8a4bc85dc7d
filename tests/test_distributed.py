"""Several processes on this machine's CPU, connected over loopback.

Most are forks of one process that has imported torch (jobs.py), a few are started by torchrun itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_tiny
from hypothesis import given
from hypothesis import strategies as st
from jobs import LIMIT_S, Job, before_steps
from test_trainer import (
    ROOT,
    TEXT,
    finite,
    records,
    saved,
    temporary,
    tiny,
    without_timings,
    write_foxes,
)

import nanobackpack as nb
from nanobackpack import cli
from nanobackpack.commands.sample import main as sample
from nanobackpack.config import SampleConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.model.generate import choose
from nanobackpack.runtime import pick_device
from nanobackpack.train import checkpoint, optim, resume
from nanobackpack.train.parallel import Processes, joined
from nanobackpack.train.trainer import Trainer, train

CPU = torch.device("cpu")
WIDE = {"n_embd": 32}  # V <= D: the sum runs over logits instead of vectors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foxes(tmp_path_factory.mktemp("data") / "foxes")


def flags(config: Any) -> list[str]:
    fields = dataclasses.fields(config)
    return [f"--{f.name}={v}" for f in fields if (v := getattr(config, f.name)) != f.default]


def launch(agent: list[str], command: list[str], **env: str) -> subprocess.Popen[str]:
    """A torchrun agent; nothing of ours in its environment but what a user's shell would have."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *agent, *command],
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | env,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status, output and errors; it may not hang."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()  # does nothing to one that has ended
    return process.returncode, out, err


def torchrun(*command: str, n: int = 2, **env: str) -> tuple[int, str, str]:
    return result(launch(["--standalone", f"--nproc_per_node={n}"], list(command), **env))


def train_on(config: TrainConfig, n: int = 2, before: Callable[[], None] | None = None) -> str:
    """Train on n processes; returns what they print."""
    status, printed = Job(config, n=n, before=before).result()
    assert status == 0, printed
    assert "error" not in printed
    return printed


def check_muon() -> None:
    """Each process shall make some of the matrices orthogonal, whole; in float32 whatever the processor."""
    optim._fast_dtype = in_float32
    orthogonalize = optim.orthogonalize

    def some(matrices: Any) -> Any:
        if hasattr(matrices, "to_local"):
            own = matrices.to_local().shape
            assert own[0] < matrices.shape[0]
            assert own[1:] == matrices.shape[1:]
        return orthogonalize(matrices)

    optim.orthogonalize = some


def in_float32(device: torch.device) -> torch.dtype:
    """How Muon computes where runs are compared: bfloat16 magnifies what another order of sums makes."""
    return torch.float32


def assert_equal_losses(a: Path, b: Path) -> None:
    """The losses of all steps within 1e-5; of the evaluation before the first step within 1e-6."""
    first, second = (without_timings(records(out)) for out in (a, b))
    assert len(first) == len(second)
    for r, s in zip(first, second, strict=True):
        assert r == pytest.approx(s, abs=1e-6 if r["step"] == 0 else 1e-5)


# --- Two processes are one with twice the accumulation ----------------------------------------

# 3 batches to evaluate: one process gets a filler. A higher rate magnifies rounding: at 1e-2 one process with
# 2 x 8 sequences and one with 4 x 4 differ by 2e-5 after 20 steps, and two processes no less.
STEPS = {"max_iters": 20, "eval_interval": 10, "eval_iters": 3, "learning_rate": 1e-3, "min_lr": 1e-4}
SHORT = STEPS | {"max_iters": 6, "eval_interval": 3}


def test_ddp(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path / "one", **SHORT, gradient_accumulation_steps=4))
    out = train_on(tiny(data, tmp_path / "two", **SHORT, gradient_accumulation_steps=2))
    assert_equal_losses(tmp_path / "one", tmp_path / "two")
    assert out.count("step 0: train loss") == 1  # only one of them speaks
    assert "on 2 × cpu (ddp)" in out
    assert "128 tokens per step" in out
    made = [{p.name for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert made[0] == made[1]
    ours, one = saved(tmp_path / "two")["model"], saved(tmp_path / "one")["model"]
    assert max(float((ours[k] - one[k]).abs().max()) for k in one) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distributed", "changes"),
    [
        ("fsdp", WIDE),
        ("ddp", {"sense_network": "paper", "bias": True, "recompute": True}),
        ("fsdp", {"model_name": "gpt2", "grad_clip": 0.05}),
    ],
    ids=["wide", "paper", "gpt2"],
)
def test_every_model(data: Path, tmp_path: Path, distributed: str, changes: dict[str, Any]) -> None:
    train(tiny(data, tmp_path / "one", **SHORT | changes, gradient_accumulation_steps=4))
    shared = SHORT | changes | {"distributed": distributed, "gradient_accumulation_steps": 2}
    train_on(tiny(data, tmp_path / "two", **shared))
    assert_equal_losses(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_muon_on_uneven_slices(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes have 6, 6 and 4 rows of a matrix of 16."""
    monkeypatch.setattr(optim, "_fast_dtype", in_float32)
    muon = SHORT | {"optimizer": "muon", "context_network": "modern"}
    train(tiny(data, tmp_path / "one", **muon, gradient_accumulation_steps=6))
    shared = muon | {"distributed": "fsdp", "gradient_accumulation_steps": 2}
    train_on(tiny(data, tmp_path / "three", **shared), n=3, before=check_muon)
    assert_equal_losses(tmp_path / "one", tmp_path / "three")
    ours, one = saved(tmp_path / "three")["model"], saved(tmp_path / "one")["model"]
    assert max(float((ours[k] - one[k]).abs().max()) for k in one) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled(data: Path, tmp_path: Path) -> None:
    compiled = SHORT | {"compile": True, "n_layer": 1}
    train(tiny(data, tmp_path / "one", **compiled, gradient_accumulation_steps=4))
    for how in ("ddp", "fsdp"):
        train_on(tiny(data, tmp_path / how, **compiled, distributed=how, gradient_accumulation_steps=2))
        assert_equal_losses(tmp_path / "one", tmp_path / how)


@pytest.mark.slow
def test_three_processes_and_a_dropout_of_their_own(data: Path, tmp_path: Path) -> None:
    """With dropout no two runs can be equal; but the processes stay so, or the loss would not fall."""
    steps = {"max_iters": 60, "eval_interval": 60, "learning_rate": 2e-2, "lr_decay_iters": 60}
    train_on(tiny(data, tmp_path, dropout=0.1, **steps), n=3)
    losses = [r["val_loss"] for r in records(tmp_path) if "val_loss" in r]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_two_nodes(data: Path, tmp_path: Path) -> None:
    """The page's commands, with one process a node and both nodes here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    train(tiny(data, tmp_path / "one", **SHORT, gradient_accumulation_steps=2))
    command = [str(ROOT / "train.py"), *flags(tiny(data, tmp_path / "two", **SHORT))]
    nodes = [
        launch(
            ["--nproc_per_node=1", "--nnodes=2", f"--node_rank={rank}", "--master_addr=127.0.0.1",
             f"--master_port={port}"],
            command,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    (status, out, err), other = map(result, nodes)
    assert (status, other[0]) == (0, 0), err + other[2]
    assert out.count("step 0: train loss") == 1
    assert other[1] == ""
    assert_equal_losses(tmp_path / "one", tmp_path / "two")


# --- What each of them does -------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 9))
def test_dealing_and_sharing_leave_nothing_out(n: int, world_size: int) -> None:
    processes = [Processes(CPU, rank, world_size) for rank in range(world_size)]
    dealt = [list(p.deal(range(n))) for p in processes]
    assert len({len(items) for items in dealt}) == 1  # a sharded model hangs if they differ
    assert sorted(item for items in dealt for item, is_own in items if is_own) == list(range(n))
    assert all(item in range(n) for items in dealt for item, _ in items)
    shares = [p.share(n) for p in processes]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert not n or 0 in shares[0]  # rank 0 shows the first sample as it grows


def test_processes_see_disjoint_windows_and_together_those_of_one(tmp_path: Path) -> None:
    ids = np.arange(600, dtype="<u2")  # all different: a window is known by its first
    for split in ("train", "val"):
        ids.tofile(tmp_path / f"{split}.bin")
    n_windows = 599 // 8 - 1  # of one pass through the text

    def windows(rank: int, world_size: int, accumulation: int) -> list[set[int]]:
        """Those of each step."""
        settings = {"n_embd": 4, "n_layer": 1, "batch_size": 3, "gradient_accumulation_steps": accumulation}
        trainer = Trainer(tiny(tmp_path, tmp_path / "out", **settings))
        trainer.processes = Processes(CPU, rank, world_size)
        seen = []
        for trainer.step in range(n_windows // 18):
            batches = [trainer.train_batch(trainer.step, micro) for micro in range(accumulation)]
            seen.append({first for x, _ in batches for first in x[:, 0].tolist()})
        return seen

    one, ours = windows(0, 1, 6), [windows(rank, 3, 2) for rank in range(3)]
    assert all(len(step) == 6 for seen in ours for step in seen)
    assert [set.union(*step) for step in zip(*ours, strict=True)] == one
    assert len(set.union(*one)) == 18 * len(one)  # none twice, in a step or in the pass


def test_other_ranks_drop_other_units(data: Path, tmp_path: Path) -> None:
    losses = set()
    for rank in range(3):
        trainer = Trainer(tiny(data, tmp_path, dropout=0.5))
        batch = trainer.train_batch(0, 0)
        trainer.processes = Processes(CPU, rank, 1)
        trainer.train_batch = lambda step, micro, batch=batch: batch  # type: ignore[method-assign, misc]
        losses.add(trainer.train_step(0.0).item())
    assert len(losses) == 3


def test_a_generator_for_each_row_is_that_row_alone() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))

    def split_random(rows: range) -> list[int]:
        return choose(
            logits[rows.start : rows.stop], generator=[torch.Generator().manual_seed(i) for i in rows]
        ).tolist()

    assert split_random(range(6)) == split_random(range(4)) + split_random(range(4, 6))
    assert split_random(range(1)) == choose(logits[:1], generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("num_samples", [1, 5])
def test_sampling_prints_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_samples: int
) -> None:
    settings: dict[str, Any] = {"num_samples": num_samples, "max_new_tokens": 30, "device": "cpu"}
    config = SampleConfig(out_dir=str(save_tiny(tmp_path / "run", "abcdefg")), start="ab", **settings)
    sample(config)
    alone = capsys.readouterr().out
    assert alone.count("-" * 15) == num_samples
    assert Job(config, n=2, work=sample).result() == (0, alone)


# --- Checkpoints are the same file however many wrote them ------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fsdp_to_one_process_and_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """On two sharded processes, then alone, then sharded again: as if alone all the way."""
    monkeypatch.setattr(optim, "_fast_dtype", in_float32)
    before = check_muon if optimizer == "muon" else None
    steps = STEPS | {"optimizer": optimizer}
    alone, shared = (steps | {"gradient_accumulation_steps": n} for n in (6, 3))
    out = tmp_path / "out"
    train_on(tiny(data, out, **shared | {"max_iters": 3}, distributed="fsdp"), before=before)
    model = nb.load_model(out)
    assert model.tokenizer is not None
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert saved(out)["world_size"] == 2
    train(tiny(data, out, **alone | {"max_iters": 6}, init_from="resume"))
    said = train_on(tiny(data, out, **shared, init_from="resume", distributed="fsdp"), before=before)
    assert "processes: 2 now, 1 before: sums are in another order" in said
    train(tiny(data, tmp_path / "alone", **alone))
    last, whole = (without_timings(records(folder))[-12:] for folder in (out, tmp_path / "alone"))
    for r, s in zip(last, whole, strict=True):  # steps, evaluations and the end
        assert r == pytest.approx(s, abs=1e-5)
    ours, other = saved(out), saved(tmp_path / "alone")
    assert ours.keys() == other.keys()
    assert ours["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    torch.testing.assert_close(ours["optimizer"]["state"], other["optimizer"]["state"], rtol=1e-3, atol=1e-6)


def test_what_another_number_of_processes_cannot_keep_is_said(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    describe, old = resume.describe_world_size_change, {"world_size": 4, "config": dataclasses.asdict(config)}
    assert describe(old, config, 4) == ""
    assert describe({"config": old["config"]}, config, 1) == ""  # before there were several
    assert "sees 8 sequences, not 16" in describe(old, config, 2)
    twice = dataclasses.replace(config, gradient_accumulation_steps=2)
    assert "another order" in describe(old, twice, 2)
    assert "other units" in describe(old, dataclasses.replace(twice, dropout=0.1), 2)


# --- When something goes wrong ----------------------------------------------------------------


def failing(kind: str) -> None:
    """From now on rank 1 goes wrong in step 3, as `kind` says."""

    def fail(trainer: Trainer) -> None:
        if trainer.step == 3 and trainer.processes.rank == 1:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "terminated":
                os.kill(os.getpid(), signal.SIGTERM)
            if kind == "nan":
                with torch.no_grad():
                    trainer.model.wte.weight[:, 0] = torch.nan
            if kind == "input":
                raise InputError("the wrong file: take another")
            assert kind != "bug", "ours"

    before_steps(fail)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distributed", "kind", "line"),
    [
        ("ddp", "input", "the wrong file: take another"),
        ("fsdp", "bug", r"another process of this job ended .*"),
        ("fsdp", "killed", r"another process of this job ended .*"),
        ("ddp", "nan", r"the loss of step 3 is not a finite number .*ckpt.pt holds step 2, .*"),
    ],
)
def test_one_failing_ends_all(data: Path, tmp_path: Path, distributed: str, kind: str, line: str) -> None:
    out = tmp_path / "out"
    job = Job(tiny(data, out, max_iters=1000, distributed=distributed), n=2, before=partial(failing, kind))
    assert job.ends_within(LIMIT_S)
    assert all(process.exitcode for process in job.ranks)
    said = re.findall(r"^error: (.*)$", job.printed, re.M)
    assert any(re.fullmatch(line, words) for words in said), job.printed
    assert ("AssertionError: ours" in job.printed) == (kind == "bug")
    assert saved(out)["iter_num"] == 2
    assert finite(saved(out))
    assert not temporary(out)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "out", max_iters=1000, distributed="fsdp")
    status, printed = Job(config, n=2, before=partial(failing, "terminated")).result()
    assert status == 0, printed
    assert "stopped at step 4, saved" in printed
    assert saved(tmp_path / "out")["iter_num"] == 4


@pytest.mark.slow
def test_sigterm_to_the_job_saves(data: Path, tmp_path: Path) -> None:
    """As a cluster's scheduler sends it to torchrun, which passes it on."""
    config = tiny(data, tmp_path, max_iters=100_000, eval_interval=100_000)
    process = launch(["--standalone", "--nproc_per_node=2"], [str(ROOT / "train.py"), *flags(config)])
    assert process.stdout is not None
    while not re.match(r"step +\d+0/", line := process.stdout.readline()):
        assert line, process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    _, out, err = result(process)
    stopped = re.search(r"stopped at step (\d+)", out)
    assert stopped, err
    assert saved(tmp_path)["iter_num"] == int(stopped[1])
    assert train(tiny(data, tmp_path, max_iters=int(stopped[1]) + 1, init_from="resume")) == 0


@pytest.mark.slow
def test_a_bad_setting_is_one_line_however_many(tmp_path: Path) -> None:
    flags = ["--device=cpu", f"--out_dir={tmp_path / 'out'}", "--dataset=nowhere"]
    status, out, err = torchrun(str(ROOT / "train.py"), *flags)
    assert status == 1  # torchrun's own, whatever its processes' are; theirs it reports
    assert "exitcode  : 2" in err
    assert len(re.findall(r"^error: .*nowhere", err, re.M)) == err.count("error: ") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_several_processes_without_torchrun_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=r"WORLD_SIZE=8.*torchrun"), joined("cpu"):
        pass


SECOND = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("WORLD_SIZE", value) for value in ("two", "0", "9" * 5000)),
        *(("RANK", value) for value in ("", "2 ", "2")),
        ("LOCAL_RANK", "-1"),
        *(("MASTER_PORT", value) for value in ("http", "70000", "0", "")),
        *(("MASTER_ADDR", value) for value in ("", "300.1.1.1", "127.0.0.1:1", "a" * 300, "a\x1b[2J")),
    ],
)
def test_an_environment_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    for variable, number in (SECOND | {name: value}).items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(SystemExit) as stop:
        cli.guard(lambda: joined("cpu").__enter__() and None)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {name}=")
    assert len(line) < 300


def test_an_address_where_nobody_answers_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable, number in SECOND.items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(InputError, match=r"process 1 of 2 cannot reach .*127\.0\.0\.1"):
        joined("cpu", timeout_s=1).__enter__()
    assert capfd.readouterr().err == ""  # nothing of torch's C++


# --- What they must agree on ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"seed": 7}, r"seed 1337 → 7\)"),
        ({"learning_rate": 0.5, "optimizer": "muon"}, r"optimizer adamw → muon, learning_rate 0.01 → 0.5\)"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1 → 2"),
        ({"n_layer": 3, "dropout": 0.1, "n_embd": 32}, "n_layer 2 → 3, n_embd 16 → 32, dropout 0.0 → 0.1"),
        ({"dataset": "backwards"}, r"train.bin sha256 \w+ → sha256 \w+, val.bin .*, text \d+ → \d+"),
        ({"dataset": "other letters"}, "tokenizer.json sha256 "),
        ({"dataset": "backwards without sums"}, r"text \d+ → \d+\)"),
        ({"init_from": "model"}, r"init_from scratch → other weights, weights 0 → \d+"),
        ({"dtype": "bfloat16"}, "dtype torch.float32 → torch.bfloat16"),
        ({"version": "9.9"}, r"nanobackpack .* → 9.9\)"),
        ({"dataset": "copied", "out_dir": "x", "overwrite": True, "device": "auto", "wandb_log": True}, ""),
    ],
)
def test_a_process_that_differs_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], differs: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("copied", TEXT), ("backwards", TEXT[::-1]), ("other letters", TEXT.upper())):
        write_foxes(tmp_path / name, text)
        shutil.copytree(tmp_path / name, tmp_path / f"{name} without sums")
        (tmp_path / f"{name} without sums" / "meta.json").unlink()
    model = tiny(data, tmp_path).model_config(len(set(TEXT)))
    checkpoint.save_model(checkpoint.build_model(model), tmp_path / "model")
    told: list[Any] = []  # of three processes the one in the middle differs from the first call on
    monkeypatch.setattr(Processes, "gather", lambda self, v: told.extend(v) or [told[0], *v, told[0]])

    def start(**changes: Any) -> None:
        monkeypatch.setattr(resume, "__version__", changes.pop("version", "0"))
        trainer = Trainer(tiny(data, tmp_path, **changes))
        initial = resume.initial_model(trainer.config, trainer.data)
        resume.check_agreement(Processes(CPU, 1, 3), initial, trainer.data, trainer.dtype)

    bare = {"dataset": "copied without sums"} if "without" in changes.get("dataset", "") else {}
    start(**bare)
    words = rf"RANK 1 differs from the others \(theirs → its own: {differs}"
    with pytest.raises(InputError, match=words) if differs else contextlib.nullcontext():
        start(**changes)


def test_states_of_different_steps_or_runs_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart on two disks, one of which did not get the last saves."""
    trainer = Trainer(tiny(data, tmp_path))
    initial = resume.initial_model(trainer.config, trainer.data)
    told: list[Any] = []
    monkeypatch.setattr(Processes, "gather", lambda self, v: told.extend(v) or [told[0], *v])

    def start(**state: Any) -> None:
        goes_on = dataclasses.replace(initial, state=state)
        resume.check_agreement(Processes(CPU, 1, 2), goes_on, trainer.data, trainer.dtype)

    start(iter_num=20, run="a")
    with pytest.raises(InputError, match=r"RANK 1 .*step 20 → 10, run a → b\)"):
        start(iter_num=10, run="b")


def test_the_device_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto", 1) == pick_device("cpu", 1) == CPU
    with pytest.raises(InputError, match="is for one process"):
        pick_device("cuda:0", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [pick_device(name, 1) for name in ("auto", "cuda")] == [torch.device("cuda:1")] * 2
    with pytest.raises(InputError, match="--nproc_per_node=2"):
        pick_device("auto", 2)
