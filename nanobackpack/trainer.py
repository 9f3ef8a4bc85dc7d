"""Training: everything a run is, and its loop on one page (`Trainer.run`).

All randomness of a step follows from (seed, step): which windows it sees and its dropout masks. So a
resumed run goes on exactly, and how often it evaluates or logs changes nothing in what it learns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from nanobackpack import checkpoint
from nanobackpack.config import InputError, ModelConfig, TrainConfig
from nanobackpack.data import SPLITS, TokenData
from nanobackpack.files import replacing
from nanobackpack.flops import flops_per_step, peak_flops
from nanobackpack.kernels import TokenTypes, token_types
from nanobackpack.layers import Output
from nanobackpack.metrics import Log, describe, duration, plot_losses
from nanobackpack.optim import learning_rate, make_optimizer
from nanobackpack.runtime import (
    autocast,
    generator,
    keep_memory,
    pick_compile,
    pick_device,
    pick_dtype,
    seed_of,
)

INIT, BATCH, DROPOUT, EVAL = range(4)  # the purposes randomness is drawn for


class Stopped(Exception):
    """A signal asked the run to end."""


class Trainer:
    """A run: its data, model, optimizer, and how far it is.

    Raises: InputError for settings, data or a checkpoint that cannot be used, before anything is
    written.
    """

    def __init__(self, config: TrainConfig) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "several processes are not supported yet: start python train.py without torchrun"
            )
        self.config = config
        self.out_dir = Path(config.out_dir)
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        compiled = pick_compile(config.compile, self.device)

        folder = Path(config.dataset)
        self.data = TokenData(
            folder if folder.is_dir() else Path("data") / config.dataset,
            None if config.data_bin_dtype == "auto" else config.data_bin_dtype,
        )
        tokenizer_json = self.data.tokenizer.to_json() if self.data.tokenizer else None
        for split in SPLITS:
            self.data.check_length(split, config.block_size)
        # Without meta.json the ids are taken for GPT-2's, 50257 padded to 50304 as nanoBackpackLM does.
        known = self.data.vocab_size
        model_config = config.model_config(known or 50304, 0 if known else 50257)
        if not known:
            self.data.check_ids(model_config.vocab_size)

        self.step = 0  # optimizer steps done
        self.best_val_loss = math.inf
        resumed, source = None, self.out_dir / "ckpt.pt"
        if config.init_from == "resume":
            resumed = checkpoint.read(source)
            check_same(resumed, model_config, tokenizer_json, source)
        torch.manual_seed(seed_of(config.seed, INIT))
        self.model = checkpoint.build(model_config)
        self.model.to(self.device).train()
        self.model.context.recompute = config.recompute
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if resumed:
            self.step, self.best_val_loss = checkpoint.restore(
                resumed, self.model, self.optimizer, self.scaler, source
            )
        self.forward = torch.compile(self.model) if compiled else self.model

        self.tokenizer_json = tokenizer_json
        self.saved_step = self.step if resumed else -1  # the step in ckpt.pt (-1: none of this run)
        self.stop_signal = 0  # the signal that asked the run to end
        # First step whose loss was not finite (-1: none). On the device: looking at it would stall it.
        self.bad_step = torch.tensor(-1, device=self.device)

    # --- The loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Train to max_iters; return the exit status: 0, or 130 after Ctrl-C.

        Raises: InputError if the loss stops being a number; the last good checkpoint is kept.
        """
        config = self.config
        self.out_dir.mkdir(parents=True, exist_ok=True)
        with replacing(self.out_dir / "config.json") as f:
            f.write(json.dumps(dataclasses.asdict(config), indent=2).encode())
        self.log = log = Log(self.out_dir, self.step, config.max_iters)
        self.introduce()
        start_s = mark_s = time.perf_counter()
        mark_step = self.step
        try:
            with self.signals():
                while not config.eval_only and self.step < config.max_iters:
                    if self.step % config.eval_interval == 0:
                        self.save_and_evaluate()
                        mark_s, mark_step = time.perf_counter(), self.step
                    lr = learning_rate(self.step, config)
                    loss = self.train_step(lr)
                    self.step += 1
                    log.advance()
                    if self.step % config.log_interval == 0 or self.step == 1:
                        self.check_finite()
                        ms = 1000 * (time.perf_counter() - mark_s) / (self.step - mark_step)
                        self.report(loss.item(), self.optimizer.param_groups[0]["lr"], ms)
                        mark_s, mark_step = time.perf_counter(), self.step
                    every = config.backup_checkpoint_step
                    if every and self.step % every == 0:
                        self.save(f"ckpt_{self.step}.pt")
                    self.check_stop()
                self.save_and_evaluate()
                self.finish(time.perf_counter() - start_s)
        except Stopped:
            if config.eval_only:
                log.say("stopped")
            else:
                self.save("ckpt.pt")
                log.say(
                    f"stopped at step {self.step}, saved in {self.out_dir / 'ckpt.pt'}: "
                    "go on with the same command and --init_from=resume"
                )
        finally:
            log.close()
            plot_losses(log.path, self.out_dir / "loss.png")
        return 130 if self.stop_signal == signal.SIGINT else 0

    def train_step(self, lr: float) -> Tensor:
        """One optimizer step over all micro-batches; returns their mean loss (scalar, on the device)."""
        config = self.config
        n_micro = config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if config.dropout:
            torch.manual_seed(seed_of(config.seed, DROPOUT, self.step))
        total = torch.zeros((), device=self.device)
        for micro in range(n_micro):
            loss = self.loss(self.forward, *self.train_batch(micro)) / n_micro
            self.scaler.scale(loss).backward()
            total += loss.detach()
        if config.grad_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        bad = ~total.isfinite() & (self.bad_step < 0)
        self.bad_step = torch.where(bad, self.step, self.bad_step)
        if self.device.type == "cpu":  # looking costs nothing here, and spares the weights
            self.check_finite()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    # --- Evaluation ---------------------------------------------------------------------------

    def save_and_evaluate(self) -> None:
        """Save first, since an evaluation can take long; then keep the state if it is the best yet."""
        if self.step > 0 and self.step != self.saved_step and not self.config.eval_only:
            self.save("ckpt.pt")
        train, val = (self.estimate(split) for split in SPLITS)
        note = ""
        if val < self.best_val_loss:
            self.best_val_loss = val
            if self.step > 0 and not self.config.eval_only:
                self.save("best.pt")
                note = ", the best so far"
        self.log.record(step=self.step, train_eval_loss=train, val_loss=val)
        self.log.say(f"step {self.step}: train loss {train:.4f}, val loss {val:.4f}{note}")

    @torch.no_grad()
    def estimate(self, split: str) -> float:
        """Mean loss in nats over eval_iters batches of `split`, the same windows at each evaluation."""
        draw = generator(self.config.seed, EVAL, SPLITS.index(split))
        total = torch.zeros((), device=self.device)
        with self.evaluating():
            for _ in range(self.config.eval_iters):
                self.check_stop()
                total += self.loss(self.model, *self.eval_batch(split, draw))
        return total.item() / self.config.eval_iters

    @torch.no_grad()
    def whole_split(self, split: str) -> float:
        """Mean loss in nats over all of `split`, each token but the first predicted once."""
        total, n = torch.zeros((), device=self.device, dtype=torch.float64), 0
        with self.evaluating():
            for x, y in self.data.windows(split, self.config.batch_size, self.config.block_size):
                self.check_stop()
                total += self.loss(self.model, x, y) * y.numel()
                n += y.numel()
        return total.item() / n

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def finish(self, elapsed_s: float) -> None:
        """The last word on a run: its loss over the whole validation split."""
        nats = self.whole_split("val")
        bits = nats / math.log(2)
        end = {"event": "end", "step": self.step, "val_loss_full": nats, "val_bits_per_token": bits}
        text = f"whole validation split: loss {nats:.4f} nats per token"
        if per_token := self.data.chars_per_token("val"):
            end["val_bits_per_char"] = bits / per_token
            text += f", {bits / per_token:.4f} bits per character"
        self.log.record(**end, elapsed_s=elapsed_s)
        self.log.say(f"{text}; {duration(elapsed_s)} in all, everything in {self.out_dir}/")

    # --- Small parts --------------------------------------------------------------------------

    def train_batch(self, micro: int) -> tuple[Tensor, Tensor]:
        """Micro-batch number `micro` of this step: inputs and targets, (B, T) int64 each, on the CPU."""
        config, B = self.config, self.config.batch_size
        number = (self.step * config.gradient_accumulation_steps + micro) * B
        return self.data.shuffled("train", number, B, config.block_size, seed_of(config.seed, BATCH))

    def eval_batch(self, split: str, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch of `split`, as train_batch."""
        return self.data.batch(split, self.config.batch_size, self.config.block_size, draw)

    def loss(self, model: Callable[..., Output], x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch that is on the CPU, by the model or what was compiled of it."""
        types = token_types(x, self.model.config.vocab_size, 1 if self.device.type == "cpu" else 1024)

        def move(t: Tensor) -> Tensor:
            if self.device.type == "cuda":
                t = t.pin_memory()  # so that the copy can overlap with computing
            return t.to(self.device, non_blocking=True)

        on_device = TokenTypes(move(types.types), move(types.rows))
        with autocast(self.device, self.dtype):
            out = model(move(x), move(y), types=on_device, loss_only=True)
        assert out.loss is not None
        return out.loss

    def save(self, name: str) -> None:
        """Write the whole state of the run to out_dir/name.

        Raises: InputError, and keeps what is there, if a loss or a weight is not a finite number.
        """
        self.check_finite()
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            self.fail(f"step {self.step - 1} left weights that are not finite numbers", self.step - 1)
        state = {
            "model": self.model.state_dict(),
            "model_args": dataclasses.asdict(self.model.config),
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.tokenizer_json,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iter_num": self.step,
            "best_val_loss": self.best_val_loss,
        }
        checkpoint.save(self.out_dir / name, state)
        if name == "ckpt.pt":
            self.saved_step = self.step

    def introduce(self) -> None:
        n = self.model.num_params()
        tokens = self.config.batch_size * self.config.block_size
        tokens *= self.config.gradient_accumulation_steps
        self.log.say(f"settings ({self.out_dir / 'config.json'} has all):\n{describe(self.config)}")
        self.log.say(
            f"{self.model.config.model_name} with {n:,} parameters on {self.device} in "
            f"{str(self.dtype).removeprefix('torch.')}, {tokens:,} tokens per step of "
            f"{len(self.data.splits['train']):,} in {self.data.folder}"
            + (f", from step {self.step}" if self.step else "")
        )
        if self.config.decay_lr and 0 < self.config.max_iters < self.config.warmup_iters:
            self.log.say(
                f"note: the learning rate warms up for {self.config.warmup_iters} steps, "
                f"longer than the {self.config.max_iters} of this run"
            )

    def report(self, loss: float, lr: float, ms: float) -> None:
        config = self.config
        tokens_per_step = config.batch_size * config.block_size * config.gradient_accumulation_steps
        rate = tokens_per_step / ms * 1000
        left = duration((config.max_iters - self.step) * ms / 1000)
        extra, note = {}, ""
        if peak := peak_flops(self.device):  # else tokens/s must do
            flops = flops_per_step(self.model.config, config.batch_size * config.gradient_accumulation_steps)
            extra["mfu"] = flops / peak / ms * 1000
            note = f"MFU {extra['mfu']:.1%}, "
        self.log.record(step=self.step, train_loss=loss, lr=lr, ms_per_step=ms, tokens_per_s=rate, **extra)
        self.log.say(
            f"step {self.step:>6}/{config.max_iters}: loss {loss:.4f}, {ms:.1f} ms/step, "
            f"{rate:,.0f} tokens/s, {note}{left} left"
        )

    def check_finite(self) -> None:
        step = int(self.bad_step)
        if step >= 0:
            self.fail(f"the loss of step {step} is not a finite number", step)

    def fail(self, what: str, step: int) -> NoReturn:
        """End the run for numbers that went astray. Raises: InputError, always."""
        last = f"{self.out_dir / 'ckpt.pt'} holds step {self.saved_step}"
        raise InputError(
            f"{what} (learning rate {learning_rate(step, self.config):g}, seed {self.config.seed}); "
            f"{last if self.saved_step >= 0 else 'nothing was saved yet'}: "
            "lower --learning_rate or --grad_clip"
        )

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the run between two steps; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return

        def remember(number: int, frame: object) -> None:
            self.stop_signal = number
            signal.signal(signal.SIGINT, signal.default_int_handler)

        old = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def check_stop(self) -> None:
        if self.stop_signal:
            raise Stopped


def check_same(old: dict[str, object], new: ModelConfig, tokenizer: str | None, source: Path) -> None:
    """Refuse to resume a checkpoint with a model or tokenizer of another shape; dropout may change.

    Raises: InputError listing old and new values.
    """
    if old.get("format") != checkpoint.FORMAT:
        raise InputError("only checkpoints of nanobackpack can be resumed; --init_from=scratch starts anew")
    before, after = dataclasses.asdict(checkpoint.config_of(old, source)), dataclasses.asdict(new)
    differ = [f"{k} {before[k]} → {v}" for k, v in after.items() if before[k] != v]
    differ = [d for d in differ if not d.startswith("dropout ")]
    if old.get("tokenizer") != tokenizer:
        differ.append("another tokenizer")
    if differ:
        raise InputError(
            f"the checkpoint does not fit these settings ({', '.join(differ)}): "
            "give the settings it was trained with, or --init_from=scratch"
        )


def train(config: TrainConfig) -> int:
    """Run a training; returns the exit status."""
    keep_memory(not config.recompute)
    return Trainer(config).run()
