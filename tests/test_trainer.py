"""Training: the loop, what it writes, stopping and going on; on tiny real models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import nanobackpack as nb
from nanobackpack.commands.sample import main as sample
from nanobackpack.config import SampleConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.runtime import generator
from nanobackpack.text.corpus import from_files
from nanobackpack.text.prepare import write_dataset, write_tokens
from nanobackpack.text.splits import fraction, split_random
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.log import plot_losses, read_metrics
from nanobackpack.train.optim import learning_rate
from nanobackpack.train.pace import best_threads
from nanobackpack.train.trainer import Trainer, train

ROOT = Path(__file__).resolve().parents[1]
TEXT = "".join(f"{i % 7} foxes jump over {i % 5} lazy dogs.\n" for i in range(80))
UNLIKE = ("config", "data", "run", "token_counts", "elapsed_s")
TIMINGS = {"ms_per_step", "tokens_per_s", "elapsed_s"}


def write_foxes(folder: Path, text: str = TEXT) -> Path:
    """A data set of characters in that folder."""
    write_dataset(folder, text, Tokenizer.char(text), val_fraction=0.1, source="a test")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_foxes(tmp_path_factory.mktemp("data") / "foxes")


def tiny(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """A run of a few milliseconds per step."""
    settings: dict[str, Any] = {
        "dataset": str(data), "out_dir": str(out), "device": "cpu", "compile": False,
        "n_layer": 2, "n_head": 2, "n_embd": 16, "n_sense_vector": 2, "block_size": 8, "batch_size": 4,
        "max_iters": 5, "eval_interval": 2, "eval_iters": 1, "learning_rate": 1e-2, "min_lr": 1e-3,
        "warmup_iters": 2, "lr_decay_iters": 20, "beta2": 0.99,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


def saved(out: Path, name: str = "ckpt.pt") -> dict[str, Any]:
    return torch.load(out / name, weights_only=True)


def records(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, every line of it standard JSON."""

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def without_timings(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in metrics]


def identical(a: Any, b: Any) -> bool:
    """Whether two states are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return bool(a == b)


def learned(out: Path, name: str = "ckpt.pt") -> dict[str, Any]:
    """All a checkpoint holds but its settings, its time, and what is known of the run and its data."""
    return {k: v for k, v in saved(out, name).items() if k not in UNLIKE}


def finite(state: dict[str, Any]) -> bool:
    return all(bool(t.isfinite().all()) for t in state["model"].values())


def temporary(out: Path) -> list[Path]:
    return [p for p in out.rglob("*") if ".tmp" in p.name]


# --- A run and what it writes -----------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run; tests read it and change nothing."""
    config = tiny(data, tmp_path_factory.mktemp("run") / "deep" / "out", max_iters=7, eval_interval=3)
    with mock.patch("nanobackpack.train.log.plot_losses", plot_losses):  # the real one
        assert train(config) == 0
    return config


def test_a_run_leaves_its_files(run: TrainConfig) -> None:
    out = Path(run.out_dir)
    names = {p.name for p in out.iterdir()}
    assert names == {"ckpt.pt", "ckpt_prev.pt", "best.pt", "config.json", "metrics.jsonl", "loss.png"}
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    settings = dataclasses.asdict(run) | {"run": saved(out)["run"]}
    assert json.loads((out / "config.json").read_text()) == settings


def test_metrics_have_the_promised_keys(run: TrainConfig) -> None:
    metrics = records(Path(run.out_dir))
    steps = [r for r in metrics if "train_loss" in r]
    evaluations = [r for r in metrics if "val_loss" in r]
    *_, end = metrics
    assert len(steps) + len(evaluations) + 1 == len(metrics)
    for r in steps:
        assert r.keys() >= {"step", "train_loss", "lr", "ms_per_step", "tokens_per_s"}
        assert r["ms_per_step"] > 0
        assert r["tokens_per_s"] == pytest.approx(4 * 8 * 1000 / r["ms_per_step"])
        assert r["lr"] == learning_rate(r["step"] - 1, run)
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6, 7]  # exactly max_iters
    assert [r["step"] for r in evaluations] == [0, 3, 6, 7]
    assert all(r.keys() >= {"step", "train_eval_loss", "val_loss"} for r in evaluations)
    assert end["event"] == "end"
    assert end["step"] == 7
    assert end["elapsed_s"] > 0
    assert end["val_bits_per_token"] == pytest.approx(end["val_loss_full"] / math.log(2))
    assert end["val_bits_per_char"] == pytest.approx(end["val_bits_per_token"])  # a token is a character


def test_a_checkpoint_is_self_contained_and_holds_plain_values(run: TrainConfig) -> None:
    state = saved(Path(run.out_dir))
    assert state["iter_num"] == 7
    assert state["config"] == dataclasses.asdict(run)
    vocab_size = len(set(TEXT))
    assert state["model_args"] == dataclasses.asdict(run.model_config(vocab_size))
    assert Tokenizer.from_json(state["tokenizer"]).encode("fox") == Tokenizer.char(TEXT).encode("fox")
    assert set(state["optimizer"]) == {"state", "param_groups"}
    steps = {float(s["step"]) for s in state["optimizer"]["state"].values()}
    assert steps == {7.0}


def test_a_finished_run_loads_as_a_model(run: TrainConfig) -> None:
    model = nb.load_model(run.out_dir)
    assert isinstance(model, nb.BackpackLM)
    assert not model.training
    assert model.config.vocab_size == len(set(TEXT))
    assert model.tokenizer is not None
    assert model.tokenizer.decode(model.tokenizer.encode("lazy dogs")) == "lazy dogs"
    assert identical(dict(model.state_dict()), dict(saved(Path(run.out_dir))["model"]))


def test_best_is_the_state_of_the_lowest_validation_loss(run: TrainConfig) -> None:
    evaluations = {r["step"]: r["val_loss"] for r in records(Path(run.out_dir)) if "val_loss" in r}
    best = saved(Path(run.out_dir), "best.pt")
    assert best["iter_num"] == min(evaluations, key=lambda step: evaluations[step])
    assert best["best_val_loss"] == min(evaluations.values())


def test_whole_split_loss_is_the_plain_one(run: TrainConfig, data: Path) -> None:
    model = nb.load_model(Path(run.out_dir) / "ckpt.pt")
    ids = torch.from_numpy(np.fromfile(data / "val.bin", "<u2").astype(np.int64))
    assert (len(ids) - 1) % 8, "the last window must be a partial one"
    total, predicted = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 8):
            piece = ids[start : start + 9]
            logp = model(piece[None, :-1]).logits[0].double().log_softmax(-1)
            total -= float(logp.gather(1, piece[1:, None]).sum())
            predicted += len(piece) - 1
    assert predicted == len(ids) - 1
    assert records(Path(run.out_dir))[-1]["val_loss_full"] == pytest.approx(total / predicted, abs=1e-5)


def test_whole_split_loss_does_not_depend_on_the_batch_size(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny(data, tmp_path))
    block_size = trainer.config.block_size
    losses = [trainer.mean_loss(trainer.data.windows("val", b, block_size)) for b in (1, 3, 64)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_console_lines(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(data, tmp_path / "out", max_iters=5, log_interval=2, eval_interval=100))
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar where nobody watches
    lines = re.findall(r"^step +(\d+)/5: loss \d+\.\d{4}, .* ms/step, .* tokens/s, .* left$", out, re.M)
    assert lines == ["1", "2", "4"]
    assert "learning_rate=0.01" in out
    assert "config.json" in out
    assert re.search(r"[\d,]+ parameters on cpu in float32, 32 tokens per step", out)
    assert "bits per character" in out


def test_no_steps_is_an_evaluation(data: Path, tmp_path: Path) -> None:
    assert train(tiny(data, tmp_path, max_iters=0)) == 0
    assert [r.get("event", "eval") for r in records(tmp_path)] == ["eval", "end"]


class Worsening(Trainer):
    """Spoils the weights at step 4, so that the best state is not the last one."""

    def train_step(self, lr: float) -> Tensor:
        loss = super().train_step(lr)
        if self.step == 4:
            with torch.no_grad():
                self.model.wte.weight *= -30
        return loss


@pytest.mark.parametrize(("always", "name"), [(True, "ckpt.pt"), (False, "best.pt")])
def test_a_run_stands_for_its_last_or_best_state(data: Path, tmp_path: Path, always: bool, name: str) -> None:
    config = tiny(data, tmp_path, max_iters=6, always_save_checkpoint=always, learning_rate=1e-2)
    Worsening(config).run()
    assert (saved(tmp_path)["iter_num"], saved(tmp_path, "best.pt")["iter_num"]) == (6, 4)
    model = nb.load_model(tmp_path)
    assert identical(dict(model.state_dict()), dict(saved(tmp_path, name)["model"]))


def test_backup_checkpoints(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path / "some", max_iters=5, backup_checkpoint_step=2, eval_interval=100))
    assert {p.name for p in (tmp_path / "some").glob("ckpt_[0-9]*")} == {"ckpt_2.pt", "ckpt_4.pt"}
    assert saved(tmp_path / "some", "ckpt_2.pt")["iter_num"] == 2
    assert nb.load_model(tmp_path / "some" / "ckpt_4.pt").tokenizer is not None
    train(tiny(data, tmp_path / "none", max_iters=3, backup_checkpoint_step=0))
    assert not list((tmp_path / "none").glob("ckpt_[0-9]*"))


def test_eval_only_trains_nothing(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "fresh", eval_only=True)
    assert train(config) == 0
    metrics = records(tmp_path / "fresh")
    assert [r.get("event", "eval") for r in metrics] == ["eval", "end"]
    assert metrics[-1]["step"] == 0
    assert not list((tmp_path / "fresh").glob("*.pt"))
    # Of a finished run: its own loss, and its checkpoints as they were.
    out = tmp_path / "out"
    train(tiny(data, out))
    before = {p.name: p.read_bytes() for p in out.glob("*.pt")}
    loss = records(out)[-1]["val_loss_full"]
    train(tiny(data, out, eval_only=True, init_from="resume", max_iters=99))
    assert {p.name: p.read_bytes() for p in out.glob("*.pt")} == before
    assert records(out)[-1]["val_loss_full"] == loss
    assert records(out)[-1]["step"] == 5


# --- What is learned --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"sense_network": "paper", "bias": True, "dropout": 0.05}, {"model_name": "gpt2"}],
    ids=["nano", "paper", "gpt2"],
)
def test_every_model_learns_a_simple_text(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny(
        data, tmp_path, max_iters=60, lr_decay_iters=60, batch_size=16, eval_interval=500,
        learning_rate=2e-2, log_interval=60, **changes,
    )  # fmt: skip
    assert train(config) == 0
    metrics = records(tmp_path)
    first = next(r["val_loss"] for r in metrics if r.get("step") == 0)
    assert first == pytest.approx(math.log(len(set(TEXT))), abs=0.3)
    assert metrics[-1]["val_loss_full"] < 0.5 * first
    model = nb.load_model(tmp_path)
    assert type(model) is (nb.GPT if "model_name" in changes else nb.BackpackLM)
    assert model.config.sense_network == config.sense_network


def test_bfloat16_trains_and_keeps_float32_weights(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path, dtype="bfloat16", max_iters=3))
    state = saved(tmp_path)
    assert finite(state)
    assert {t.dtype for t in state["model"].values()} == {torch.float32}


class Windows(Trainer):
    """Trains on 12 windows given once, cut into micro-batches in their order."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.given = self.data.batch("train", 12, config.block_size, generator(7))
        self.taken = 0
        self.grads: list[dict[str, Tensor]] = []
        self.optimizer.register_step_pre_hook(self.keep_grads)

    def train_batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        part = slice(self.taken, self.taken + self.config.batch_size)
        self.taken = (self.taken + self.config.batch_size) % 12
        return self.given[0][part], self.given[1][part]

    def keep_grads(self, *_: object) -> None:
        named = self.model.named_parameters()
        self.grads.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def test_a_batch_of_12_is_3_micro_batches_of_4(data: Path, tmp_path: Path) -> None:
    one = Windows(tiny(data, tmp_path, batch_size=12, grad_clip=0.0))
    three = Windows(tiny(data, tmp_path, batch_size=4, gradient_accumulation_steps=3, grad_clip=0.0))
    losses = [t.train_step(1e-3).item() for t in (one, three)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(one.grads) == len(three.grads) == 1  # one optimizer step each
    assert one.grads[0].keys() == three.grads[0].keys() == dict(one.model.named_parameters()).keys()
    for name, grad in one.grads[0].items():
        torch.testing.assert_close(three.grads[0][name], grad, rtol=1e-4, atol=1e-7, msg=name)
    a, b = one.model.state_dict(), three.model.state_dict()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4  # Adam magnifies rounding, up to lr


def test_gradients_are_clipped_to_the_norm_asked_for(data: Path, tmp_path: Path) -> None:
    def norm(grad_clip: float) -> float:
        trainer = Windows(tiny(data, tmp_path, batch_size=12, grad_clip=grad_clip))
        trainer.train_step(1e-3)
        return math.sqrt(sum(float(g.square().sum()) for g in trainer.grads[0].values()))

    free = norm(0.0)
    assert free > 0.1
    assert norm(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert norm(free * 2) == pytest.approx(free, rel=1e-5)


def test_a_run_repeats_bit_for_bit_and_follows_its_seed(data: Path, tmp_path: Path) -> None:
    changes = {"dropout": 0.2, "gradient_accumulation_steps": 2}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) * seed + 5)  # what happened before must not matter
        train(tiny(data, tmp_path / name, seed=seed, **changes))
    assert identical(learned(tmp_path / "a"), learned(tmp_path / "b"))
    assert without_timings(records(tmp_path / "a")) == without_timings(records(tmp_path / "b"))
    a, c = saved(tmp_path / "a")["model"], saved(tmp_path / "c")["model"]
    assert not torch.equal(a["wte.weight"], c["wte.weight"])


def test_dropout_masks_differ_between_steps(data: Path, tmp_path: Path) -> None:
    """On one repeated window, all that can differ between losses is the masks."""
    trainer = Windows(tiny(data, tmp_path, batch_size=4, dropout=0.5))
    losses = []
    for trainer.step in range(3):
        trainer.taken = 0
        losses.append(trainer.train_step(0.0).item())
    assert len(set(losses)) == 3


def test_evaluation_windows_are_fixed_and_without_dropout(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, Tensor]] = []
    trainer = Trainer(tiny(data, tmp_path, dropout=0.5, eval_iters=2))
    draw_batch = trainer.data.batch

    def watched_batch(split: str, *args: Any) -> tuple[Tensor, Tensor]:
        x, y = draw_batch(split, *args)
        seen.append((split, x))
        return x, y

    trainer.data.batch = watched_batch  # type: ignore[assignment, method-assign]
    before = trainer.estimate("val"), trainer.estimate("val"), trainer.estimate("train")
    assert before[0] == before[1]
    for trainer.step in range(3):
        trainer.train_step(1e-2)
    assert trainer.model.training
    assert trainer.estimate("val") != before[0]
    by_split = [(s, x) for s, x in seen if s == "val"]
    assert len(by_split) == 6
    for i in (0, 1):  # eval_iters=2 windows, the same ones each time, and two different ones
        assert torch.equal(by_split[i][1], by_split[i + 2][1])
        assert torch.equal(by_split[i][1], by_split[i + 4][1])
    assert not torch.equal(by_split[0][1], by_split[1][1])


# --- Stopping and going on --------------------------------------------------------------------

HARD = {"dropout": 0.2, "gradient_accumulation_steps": 2, "max_iters": 9, "eval_interval": 4}
HARD |= {"grad_clip": 0.5, "log_interval": 2}


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(tiny(data, out, **HARD))
    return out


def assert_same_run(out: Path, other: Path) -> None:
    assert identical(learned(out), learned(other))
    assert identical(learned(out, "best.pt"), learned(other, "best.pt"))
    assert without_timings(records(out)) == without_timings(records(other))


def test_a_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """Wherever it was stopped: after its first step, after an evaluation, on its last one; and it stays as it
    is when nothing is left to do."""
    for stop in (1, 5, 8, 9, 9):
        torch.manual_seed(stop)
        train(
            tiny(data, tmp_path, **HARD | {"max_iters": stop}, init_from="resume" if stop > 1 else "scratch")
        )
        assert saved(tmp_path)["iter_num"] == stop
    assert_same_run(tmp_path, uninterrupted)


class Interrupted(Trainer):
    """Ctrl-C comes in the middle of step 6."""

    def train_step(self, lr: float) -> Tensor:
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)
        return super().train_step(lr)


def test_ctrl_c_saves_and_the_run_goes_on_exactly(
    data: Path, tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert Interrupted(tiny(data, tmp_path, **HARD)).run() == 130
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    out = capsys.readouterr().out
    assert "stopped at step 7" in out
    assert "--init_from=resume" in out
    assert saved(tmp_path)["iter_num"] == 7  # the step under way is finished first
    assert (tmp_path / "loss.png").is_file()
    assert all("event" not in r for r in records(tmp_path))
    train(tiny(data, tmp_path, **HARD, init_from="resume"))
    assert_same_run(tmp_path, uninterrupted)


class InterruptedEvaluation(Trainer):
    def estimate(self, split: str) -> float:
        signal.raise_signal(signal.SIGINT)
        return super().estimate(split)


def test_ctrl_c_in_an_evaluation_changes_no_trained_state(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path, max_iters=4, eval_interval=4))  # so that going on starts by evaluating
    before = learned(tmp_path), learned(tmp_path, "best.pt")
    again = tiny(data, tmp_path, max_iters=9, eval_interval=4, init_from="resume")
    assert InterruptedEvaluation(again).run() == 130
    assert identical(before, (learned(tmp_path), learned(tmp_path, "best.pt")))


def test_ctrl_c_in_eval_only_saves_nothing(data: Path, tmp_path: Path) -> None:
    """Fresh weights must not take the place of trained ones."""
    train(tiny(data, tmp_path))
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.pt")}
    assert InterruptedEvaluation(tiny(data, tmp_path, eval_only=True)).run() == 130
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.pt")} == before


STAYS = "the learning rate stays at min_lr=0.001 from step "


@pytest.fixture(scope="module")
def four_of_five(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after 4 steps of 5, the last of them at a rate of 0.00775."""
    out = tmp_path_factory.mktemp("four")
    train(tiny(data, out, max_iters=4, lr_decay_iters=5, eval_interval=9))
    return out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_iters": 9, "lr_decay_iters": 6}, f"{STAYS}6 on: --lr_decay_iters=9 would let it fall"),
        ({"max_iters": 9, "lr_decay_iters": 3}, f"{STAYS}4 on: --lr_decay_iters=9 would let it fall"),
        ({"max_iters": 9, "lr_decay_iters": 9}, "the learning rate rises from 0.00775 to 0.00831, as its"),
        ({"max_iters": 9, "decay_lr": False}, "the learning rate rises from 0.00775 to 0.01"),
        ({"max_iters": 9, "lr_decay_iters": 9, "learning_rate": 5e-3}, ""),
        ({"max_iters": 4}, "no step is left: the run is at step 4, max_iters=4; raise it, and"),
        ({"max_iters": 3}, "no step is left: the run is at step 4, max_iters=3; raise it, and"),
        ({"max_iters": 3, "eval_only": True}, ""),
        ({"max_iters": 5}, ""),
    ],
)
def test_going_on_says_what_the_learning_rate_will_be(
    data: Path, four_of_five: Path, changes: dict[str, Any], said: str
) -> None:
    config = tiny(data, four_of_five, **{"lr_decay_iters": 5} | changes, init_from="resume")
    notes = [note for note in Trainer(config).notes if note and not note.startswith("settings that are new")]
    assert [note.startswith(said) for note in notes] == [True] * bool(said)


class Clock:
    """A clock that goes on by a second for each training step, and stands still otherwise; and the numbers of
    threads that the steps ran on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.threads: set[int] = set()
        step = Trainer.train_step

        def train_step(trainer: Trainer, lr: float) -> Tensor:
            self.now += 1
            self.threads.add(torch.get_num_threads())
            return step(trainer, lr)

        monkeypatch.setattr(Trainer, "train_step", train_step)
        monkeypatch.setattr("nanobackpack.train.trainer.time", mock.Mock(perf_counter=lambda: self.now))


def test_a_run_ends_whole_when_its_time_is_up(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    timed: dict[str, Any] = {"max_iters": 300, "lr_decay_iters": 300, "max_minutes": 0.2, "eval_interval": 9}
    # Ctrl-C after seven seconds; a day later the run goes on with those that are left.
    config = tiny(data, tmp_path, **timed)
    assert Interrupted(config).run() == 130
    clock.now += 86400
    capsys.readouterr()
    assert train(tiny(data, tmp_path, **timed, init_from="resume")) == 0
    said = capsys.readouterr().out
    assert "0.2 minutes are over after 12 steps" in said
    assert "the learning rate" not in said
    # All is there: the last state, the last evaluation and the end; and the rate has come down.
    assert saved(tmp_path)["iter_num"] == 12
    *_, last_step, evaluation, end = records(tmp_path)
    assert (evaluation["step"], end["event"], end["step"]) == (12, "end", 12)
    rates = [r["lr"] for r in records(tmp_path) if "train_loss" in r]
    assert rates[:2] == [learning_rate(step, config) for step in range(2)]
    assert max(rates) > 9.5e-3
    assert last_step["lr"] < 1.7e-3
    assert rates[2:] == sorted(rates[2:], reverse=True)
    # Again the same: no time is left.
    assert train(tiny(data, tmp_path, **timed, init_from="resume")) == 0
    assert "no time is left" in capsys.readouterr().out


def test_a_run_with_time_enough_learns_as_without_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    for out, limit in (("free", 0), ("timed", 5.6 / 60)):
        config = tiny(data, tmp_path / out, lr_decay_iters=5, eval_interval=9, max_minutes=limit)
        assert train(config) == 0
    assert identical(learned(tmp_path / "free"), learned(tmp_path / "timed"))


@pytest.mark.parametrize(("compiled", "tried"), [(False, {2, 4}), (True, {4})])
def test_a_late_run_tries_how_many_threads_are_best(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool, tried: set[int]
) -> None:
    """And then has as many as before. Code that is compiled would have to be compiled for each number."""
    clock, before = Clock(monkeypatch), torch.get_num_threads()
    trainer = Trainer(tiny(data, tmp_path, max_iters=300, lr_decay_iters=300, max_minutes=0.2))
    trainer.is_compiled = compiled
    try:
        torch.set_num_threads(4)
        assert trainer.run() == 0
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert clock.threads == tried


def paced(seconds: dict[int, float], n: int) -> list[int]:
    """On how many threads n steps run that take so many seconds on each number of them."""
    numbers = best_threads(max(seconds))
    tried = [next(numbers)]
    while len(tried) < n:
        slow = 9 if len(tried) == 3 else 1  # one step was slow by chance
        tried.append(numbers.send(seconds[tried[-1]] * slow))
    return tried


def test_the_fastest_number_of_threads_is_kept_for_a_while() -> None:
    """Half as many are tried in turns; the best stays for a while; then all is tried again."""
    for seconds, trials, best in (
        ({5: 4.0, 2: 2.0, 1: 3.0}, (5, 2, 5, 2, 2, 1, 2, 1), 2),
        ({5: 4.0, 2: 5.0, 1: 3.0}, (5, 2, 5, 2), 5),
        ({5: 4.0, 2: 3.0, 1: 2.0}, (5, 2, 5, 2, 2, 1, 2, 1), 1),
        ({1: 1.0}, (), 1),
    ):
        first = [n for n in trials for _ in range(4)]
        assert paced(seconds, len(first) + 205) == first + [best] * 200 + (first or [best] * 5)[:5]


def test_trying_threads_costs_little() -> None:
    """However slow the steps are, and however much slower with fewer threads."""
    seconds = {n: 6400.0 / n for n in (64, 32, 1)}
    assert sum(seconds[n] for n in paced(seconds, 216)) < 1.05 * 216 * seconds[64]


def test_a_run_in_a_thread_needs_no_signals(data: Path, tmp_path: Path) -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(train(tiny(data, tmp_path, max_iters=2))))
    thread.start()
    thread.join(60)
    assert statuses == [0]


def test_resume_with_other_shapes_lists_old_and_new(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    changes = {"n_embd": 32, "n_layer": 3, "block_size": 16, "bias": True}
    with pytest.raises(InputError) as error:
        train(tiny(data, tmp_path / "out", **HARD | changes, init_from="resume"))
    message = str(error.value)
    for text in ("n_embd 16 → 32", "n_layer 2 → 3", "block_size 8 → 16", "bias False → True"):
        assert text in message
    assert "n_head" not in message
    assert "\n" not in message
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_resume_with_another_tokenizer_is_refused(data: Path, tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "out")
    other = write_foxes(tmp_path / "other", TEXT.replace("x", "X"))  # as many symbols, but not the same ones
    with pytest.raises(InputError, match=r"another tokenizer: id \d+ is '.' in one and 'X' in"):
        train(tiny(other, tmp_path / "out", **HARD, init_from="resume"))
    more, n = write_foxes(tmp_path / "more", TEXT + "?!"), len(set(TEXT))
    with pytest.raises(InputError, match=f"vocab_size {n} → {n + 2}"):
        train(tiny(more, tmp_path / "out", **HARD, init_from="resume"))


def test_a_tokenizer_written_otherwise_is_the_same(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path, max_iters=2))
    state = saved(tmp_path)
    state["tokenizer"] = json.dumps(json.loads(state["tokenizer"]), indent=1)
    torch.save(state, tmp_path / "ckpt.pt")
    assert train(tiny(data, tmp_path, max_iters=3, init_from="resume")) == 0


def test_a_run_says_which_settings_follow_the_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(data, tmp_path / "out", max_iters=2))
    train(tiny(data, tmp_path / "out", max_iters=3, init_from="resume"))
    assert "as the checkpoint has it" not in capsys.readouterr().out
    for init_from in ("resume", str(tmp_path / "out")):
        train(tiny(data, tmp_path / "out", max_iters=4, init_from=init_from, n_embd=768, n_layer=12))
        out = capsys.readouterr().out.splitlines()
        assert out.count("as the checkpoint has it: n_layer=2, n_embd=16") == 1


def test_a_foreign_checkpoint_is_not_resumed(data: Path, tmp_path: Path) -> None:
    torch.save({"model": {}, "model_args": {}, "iter_num": 3}, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="only checkpoints of nanobackpack"):
        train(tiny(data, tmp_path, init_from="resume"))


# --- A loss that is no number -----------------------------------------------------------------


class Poisoned(Trainer):
    """A weight turns into nonsense before step `at`."""

    at = 5

    def train_step(self, lr: float) -> Tensor:
        if self.step == self.at:
            with torch.no_grad():
                self.model.wte.weight[:, 0] = math.nan
        return super().train_step(lr)


def test_a_loss_that_is_no_number_stops_the_run(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, max_iters=20, eval_interval=4, log_interval=7, learning_rate=2e-3)
    with pytest.raises(InputError) as error:
        Poisoned(config).run()
    message = str(error.value)
    assert "step 5 " in message
    assert "ckpt.pt holds step 4" in message
    assert "--learning_rate" in message
    assert "\n" not in message
    state = saved(tmp_path)
    assert state["iter_num"] == 4
    assert finite(state)
    assert finite(saved(tmp_path, "best.pt"))
    assert not temporary(tmp_path)
    assert [r["step"] for r in records(tmp_path) if "train_loss" in r] == [1]
    assert (tmp_path / "loss.png").is_file()
    nb.load_model(tmp_path)
    assert train(tiny(data, tmp_path, max_iters=6, init_from="resume")) == 0  # and it goes on from there


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    checkpoint.save_checkpoint(path, {"iter_num": 3})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save_checkpoint(path, {"model": torch.ones(1000), "iter_num": lambda: 4})
    assert checkpoint.read_checkpoint(path)["iter_num"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


class PoisonedFirst(Poisoned):
    at = 0


def test_a_checkpoint_of_an_earlier_run_is_not_called_ours(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing was saved"):
        PoisonedFirst(tiny(data, tmp_path / "fresh", eval_interval=100)).run()
    train(tiny(data, tmp_path / "used", max_iters=3))
    with pytest.raises(InputError, match="step 0 ") as error:
        PoisonedFirst(tiny(data, tmp_path / "used", eval_interval=100)).run()
    assert "holds step 0" not in str(error.value)
    assert saved(tmp_path / "used" / "older-1")["iter_num"] == 3


def before_step_3(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something then, when nothing is being written."""
    step = Trainer.train_step

    def train_step(self: Trainer, lr: float) -> torch.Tensor:
        if self.step == 3:
            self.writer.wait()
            do()
        return step(self, lr)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("left", ["", "run.lock", "config.json"])
def test_a_run_ends_when_its_folder_is_moved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """It writes nothing more where that was, whatever is there now, and can go on from where it is."""
    out, moved = tmp_path / "out", tmp_path / "moved"

    def move() -> None:
        out.rename(moved)
        if left:
            out.mkdir()
            (out / left).write_text('{"run": "another"}')

    before_step_3(monkeypatch, move)
    with pytest.raises(InputError, match="out was moved, removed or taken by another run"):
        train(tiny(data, out, log_interval=99 if left else 1))
    assert [p.read_text() for p in out.glob("*")] == ['{"run": "another"}'] * bool(left)
    monkeypatch.undo()
    assert train(tiny(data, moved, init_from="resume")) == 0
    assert [r["step"] for r in records(moved) if "val_loss" in r] == [0, 2, 4, 5]


def test_a_log_that_is_removed_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, and when the run is resumed: the curve has not all steps."""
    before_step_3(monkeypatch, (tmp_path / "metrics.jsonl").unlink)
    train(tiny(data, tmp_path))
    assert (
        capsys.readouterr().out.count("metrics.jsonl was removed or replaced: the run adds to what is") == 1
    )
    assert [r["step"] for r in records(tmp_path)] == [4, 4, 5, 5, 5]
    train(tiny(data, tmp_path, init_from="resume", max_iters=6))
    assert "steps before 5 are missing" in capsys.readouterr().out


@pytest.mark.parametrize("rate", [1e30, 1e39])
def test_an_absurd_learning_rate_stops_the_run(data: Path, tmp_path: Path, rate: float) -> None:
    """1e30: huge weights, then no number; 1e39: infinite weights, though the loss before was fine."""
    config = tiny(
        data, tmp_path, max_iters=20, eval_interval=1, learning_rate=rate, decay_lr=False, grad_clip=0.0
    )
    with pytest.raises(InputError, match=r"step \d+"):
        train(config)
    assert not temporary(tmp_path)
    for path in tmp_path.glob("*.pt"):
        assert finite(saved(tmp_path, path.name)), path.name


def test_weights_spoiled_by_the_last_step_are_not_a_success(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path, max_iters=2))
    config = tiny(data, tmp_path, max_iters=3, learning_rate=1e39, decay_lr=False, init_from="resume")
    with pytest.raises(InputError, match="step"):
        train(config)
    state = saved(tmp_path)
    assert finite(state)
    assert state["iter_num"] == 2
    records(tmp_path)


# --- Data -------------------------------------------------------------------------------------


def test_data_too_short_is_one_line_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    n = (data / "val.bin").stat().st_size // 2
    with pytest.raises(InputError, match=rf"block_size={n}.*--block_size") as error:
        train(tiny(data, tmp_path / "out", block_size=n))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert train(tiny(data, tmp_path / "out", block_size=n - 1, max_iters=1)) == 0  # just enough


def test_a_legacy_folder_of_gpt2_ids(tmp_path: Path) -> None:
    """Only train.bin and val.bin: GPT-2's vocabulary, padded as nanoBackpackLM does."""
    ids = np.arange(0, 50257, 97, dtype="<u2")
    assert ids.max() > 50000
    folder = tmp_path / "legacy"
    folder.mkdir()
    ids.tofile(folder / "train.bin")
    ids[::-2].tofile(folder / "val.bin")
    out = tmp_path / "out"
    narrow = {"n_embd": 4, "n_layer": 1, "max_iters": 1, "eval_iters": 1, "eval_interval": 100}
    assert train(tiny(folder, out, **narrow)) == 0
    model = nb.load_model(out)
    assert (model.config.vocab_size, model.config.n_token, model.tokenizer) == (50304, 50257, None)
    assert "val_bits_per_char" not in records(out)[-1]


def test_ids_beyond_the_vocabulary_are_one_line(tmp_path: Path) -> None:
    """Of some other tokenizer, as nobody says which."""
    for split in ("train", "val"):
        np.full(600, 50304, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    with pytest.raises(InputError, match="50304"):
        train(tiny(tmp_path, tmp_path / "out", n_embd=4, n_layer=1, max_iters=1))


# --- Metrics ----------------------------------------------------------------------------------


def test_a_line_cut_short_is_left_out_when_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    train(tiny(data, tmp_path, max_iters=3))
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 4, "train_lo')
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["event"] == "end"
    train(tiny(data, tmp_path, max_iters=4, init_from="resume"))
    assert [r["step"] for r in records(tmp_path) if "train_loss" in r] == [1, 2, 3, 4]
    assert [r["event"] for r in records(tmp_path) if "event" in r] == ["end"]


@pytest.mark.parametrize(
    "lines",
    [
        f'{{"step": -1{"0" * 400}, "train_loss": 1.0}}',
        '{"step": 1, "train_loss": 1e308}\n{"step": 2, "train_loss": -1e308}',
        '{"step": 1, "val_loss": NaN}\n{"step": 2, "val_loss": Infinity}\n{"step": 3, "val_loss": 2.0}',
    ],
)
def test_a_log_with_absurd_numbers_is_drawn(tmp_path: Path, lines: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines + "\n")
    plot_losses(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").is_file()


def test_a_run_does_not_fail_for_its_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*paths: Path) -> None:
        raise ValueError("of the library\nthat draws")

    monkeypatch.setattr("nanobackpack.train.log.plot_losses", fails)
    assert train(tiny(data, tmp_path, max_iters=1)) == 0
    assert "loss.png is not drawn (of the library)" in capsys.readouterr().out


# --- wandb ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_wandb_gets_the_same_numbers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: nothing leaves the machine, and the file it would send lies in out_dir."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(data, tmp_path, wandb_log=True, wandb_project="foxes", wandb_run_name="first")
    assert train(config) == 0
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()  # in blocks of 32 KB, each with a header that can part a word
    content = b"".join(written[i + 7 : i + 32768] for i in range(0, len(written), 32768))
    names = {k for r in records(tmp_path) for k in r if k not in ("step", "event")}
    assert {"train_loss", "val_loss", "val_loss_full"} <= names
    for name in [*names, "foxes", "first", "n_sense_vector"]:
        assert name.encode() in content, name


def test_wandb_continues_its_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := mock.MagicMock())
    out, moved, settings = tmp_path / "out", tmp_path / "out" / "older-1", {"wandb_log": True}
    train(tiny(data, out, max_iters=2, **settings))
    first = saved(out)["run"]
    train(tiny(data, out, max_iters=3, **settings, init_from="resume"))
    train(tiny(data, out, max_iters=2, **settings, wandb_project="p", wandb_run_name="n"))
    train(tiny(data, moved, max_iters=4, **settings, init_from="resume"))
    train(tiny(data, moved, **settings, init_from="resume", eval_only=True))
    monkeypatch.setenv("WANDB_RUN_ID", "a fork")
    train(tiny(data, moved, max_iters=5, **settings, init_from="resume"))
    second, named = saved(out)["run"], ("nanobackpack", "foxes backpack-lm")
    told = [call.kwargs for call in wandb.init.call_args_list]
    assert [(k["project"], k["name"]) for k in told] == [named, named, ("p", "n"), named, named, named]
    assert [k["id"] for k in told] == [first, first, second, first, None, "a fork"]
    assert [k["resume"] for k in told] == ["allow"] * 4 + [None, "allow"]


def test_a_run_goes_on_when_wandb_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", wandb := mock.MagicMock())
    log = wandb.init.return_value.log
    log.side_effect = [None, None, BrokenPipeError("the service\nis gone")]  # in step 2
    assert train(tiny(data, tmp_path, wandb_log=True, eval_interval=9)) == 0
    assert [call.kwargs["step"] for call in log.call_args_list] == [0, 1, 2]
    assert capsys.readouterr().out.count("note: wandb fails (the service): from here on only ") == 1
    assert [r["step"] for r in records(tmp_path) if "lr" in r] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_wandb_without_an_account_is_one_line(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path / "out", wandb_log=True)
    flags = [f"--{k}={v}" for k, v in dataclasses.asdict(config).items() if v != getattr(TrainConfig(), k)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    run = subprocess.run(
        [sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, text=True, capture_output=True,
        env=kept | {"NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path), "WANDB_SILENT": "true"},
    )  # fmt: skip
    assert run.returncode == 2
    assert re.fullmatch(r"error: wandb does not start: .*WANDB_MODE=offline\n", run.stderr)
    assert not list((tmp_path / "out").glob("*.json*"))


# --- The other trackers -----------------------------------------------------------------------


def numbers_of(records: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """What trackers are told of the lines of metrics.jsonl: a number for each name and step."""
    return {(k, r["step"]): v for r in records if "event" not in r for k, v in r.items() if k != "step"}


@pytest.mark.slow
def test_trackio_continues_its_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: all numbers of metrics.jsonl, of both parts, stand in one run of the project."""
    trackio = pytest.importorskip("trackio")  # needs a newer huggingface-hub than the oldest we take
    from trackio.sqlite_storage import SQLiteStorage

    for module in ("trackio", "trackio.sqlite_storage"):  # TRACKIO_DIR was read when it was imported
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio")
    out, settings = tmp_path / "out", {"tracker": "trackio", "wandb_project": "foxes"}
    train(tiny(data, out, max_iters=3, **settings))
    train(tiny(data, out, max_iters=5, **settings, init_from="resume"))
    train(tiny(data, out, **settings, init_from="resume", eval_only=True))
    name, kept = f"foxes backpack-lm {saved(out)['run'][:8]}", numbers_of(records(out))
    train(tiny(data, out, max_iters=1, **settings, wandb_run_name="other"))
    other = f"other {saved(out)['run'][:8]}"
    assert {run.name for run in trackio.Api().runs("foxes")} == {name, "foxes backpack-lm", other}
    lines = SQLiteStorage.get_logs("foxes", name)
    assert [r["step"] for r in lines if "lr" in r] == [1, 2, 3, 4, 5]
    told = {(k, r["step"]): v for r in lines for k, v in r.items()}
    assert {k: told[k] for k in kept} == kept


@pytest.mark.slow
def test_tensorboard_continues_its_run(data: Path, tmp_path: Path) -> None:
    """A run that goes back to an earlier checkpoint, as after a kill, forgets what came after it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, settings = tmp_path / "out", {"tracker": "tensorboard"}

    def told(folder: Path) -> dict[tuple[str, int], float]:
        events = EventAccumulator(str(folder)).Reload()
        assert "n_sense_vector" in str(events.Tensors("settings/text_summary"))
        found = [((tag, e.step), e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        assert len(found) == len(dict(found))  # nothing stands there twice
        return dict(found)

    train(tiny(data, out, max_iters=3, **settings))
    shutil.copy(out / "ckpt.pt", tmp_path)
    train(tiny(data, out, max_iters=5, **settings, init_from="resume"))
    shutil.copy(tmp_path / "ckpt.pt", out)
    with pytest.warns(
        UserWarning, match="tracker=tensorboard goes before wandb_log=True: wandb is told nothing"
    ):
        train(tiny(data, out, max_iters=4, **settings, wandb_log=True, init_from="resume"))
    found, kept = told(out), numbers_of(records(out))
    assert {k: found[k] for k in kept} == pytest.approx(kept, rel=1e-6)
    assert {step for _, step in found} == {0, 1, 2, 3, 4}
    # A new run takes the events of the older one out of its way, and an evaluation is apart.
    train(tiny(data, out, max_iters=2, **settings))
    train(tiny(data, out, **settings, init_from="resume", eval_only=True))
    assert [max(step for _, step in told(out / f)) for f in ("older-1", ".", "evaluation")] == [4, 2, 2]


# --- Tokenizers: which one counts, how a prompt begins, what is padding -----------------------

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", ".", *dict.fromkeys(TEXT.replace(".", "").split())]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The foxes by words, in documents [CLS] ... [SEP]."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "foxes.txt").write_text(TEXT)
    corpus = from_files([folder / "foxes.txt"], kind="lines")
    write_tokens(folder / "data", {"": corpus}, str(folder / "vocab.txt"), split_random(val=fraction(0.1)))
    return folder


def test_padded_ids_are_never_sampled_from_a_trained_model(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(words / "data", tmp_path, tokenizer_name=str(words / "vocab.txt")))
    model = nb.load_model(tmp_path, "auto")
    assert (model.config.vocab_size, model.config.n_token) == (64, len(VOCABULARY))
    assert model.tokenizer is not None
    capsys.readouterr()
    sampling = {"num_samples": 20, "max_new_tokens": 20, "temperature": 100.0, "top_k": 0}  # nearly uniform
    for start in ("\n", "foxes", ""):
        sample(SampleConfig(out_dir=str(tmp_path), device="cpu", start=start, **sampling))
        texts = capsys.readouterr().out.split("\n" + "-" * 15 + "\n")[:-1]
        assert len(texts) == 20
        assert all(re.match(rf"{start}([ .]|$)" if start.strip() else "(?! )", text) for text in texts)
        found = set(" ".join(texts).replace(".", " . ").split())
        assert found <= set(VOCABULARY)
    senses = nb.Senses(model).sense_projection("foxes", k=64)
    assert {len(row) for row in senses} == {len(VOCABULARY)}


def test_a_tokenizer_serves_where_the_data_has_none(words: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("train.bin", "val.bin"):
        shutil.copy(words / "data" / name, bare)
    vocabulary = str(words / "vocab.txt")
    train(tiny(bare, tmp_path / "out", tokenizer_name=vocabulary))
    train(tiny(words / "data", tmp_path / "same"))
    assert identical(learned(tmp_path / "out"), learned(tmp_path / "same"))
    train(tiny(bare, tmp_path / "none"))  # taken for GPT-2's
    model = nb.load_model(tmp_path / "none", vocabulary)
    assert (model.config.vocab_size, model.config.n_token) == (50304, len(VOCABULARY))


def test_another_tokenizer_than_the_data_has_is_refused(words: Path, data: Path, tmp_path: Path) -> None:
    for name in ("char", "bpe:300", "gpt2", "chinese-character-bert"):
        with pytest.raises(InputError, match=f"tokenizer_name='{name}'"):
            Trainer(tiny(words / "data", tmp_path / "out", tokenizer_name=name))
    with pytest.raises(InputError, match=r"vocab\.txt"):
        Trainer(tiny(data, tmp_path / "out", tokenizer_name=str(words / "vocab.txt")))
    assert not (tmp_path / "out").exists()
    train(tiny(data, tmp_path / "char", tokenizer_name="char"))
    with pytest.raises(InputError, match=r"vocab\.txt"):
        nb.load_model(tmp_path / "char", str(words / "vocab.txt"))
