"""Training: everything a run is, and its loop on one page (`Trainer.run`).

All randomness of a step follows from (seed, step): which windows it sees and its dropout masks. So a
resumed run goes on exactly, and how often it evaluates or logs changes nothing in what it learns.

Several processes run the same loop on different windows (distributed.py). They share each step's gradient,
its loss, and whether to stop, so they take every decision alike; rank 0 alone writes and speaks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import Output
from nanobackpack.model.kernels import UniqueIds, unique_ids
from nanobackpack.runtime import (
    autocast,
    generator,
    keep_memory,
    pick_compile,
    pick_device,
    pick_dtype,
    seed_of,
)
from nanobackpack.safe.files import display_path, remove_stale, replacing
from nanobackpack.safe.run import locked, report_bad_step, within_memory
from nanobackpack.text.data import open_data
from nanobackpack.text.meta import SPLITS
from nanobackpack.train import checkpoint
from nanobackpack.train.checkpoint import LAST, BackgroundWriter
from nanobackpack.train.log import Log, NoLog, describe, duration, flops_per_step, import_wandb, peak_flops
from nanobackpack.train.optim import learning_rate, make_optimizer
from nanobackpack.train.parallel import Processes, joined
from nanobackpack.train.resume import restore, start

INIT, BATCH, DROPOUT, EVAL = range(4)  # the purposes randomness is drawn for
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # USR1: Slurm's before the time is up


class Stopped(Exception):
    """A signal asked the run to end."""


class Trainer:
    """A run: its data, model, optimizer, and how far it is; alone, or as one of several processes.

    Raises: InputError for settings, data or a checkpoint that cannot be used, before anything is
    written.
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        self.config = config
        self.out_dir = Path(config.out_dir)
        self.processes = processes or Processes(pick_device(config.device))
        self.device = self.processes.device
        self.dtype = pick_dtype(config.dtype, self.device)
        compiled = pick_compile(config.compile, self.device)
        if config.wandb_log:
            import_wandb()  # if it is missing say so now

        self.data = open_data(config)
        unchecked = self.data.check_sums() if self.processes.is_local_first else []
        torch.manual_seed(seed_of(config.seed, INIT))
        begin = start(config, self.data)
        self.config = config = begin.config
        self.model, self.note, resumed = begin.model, begin.note, begin.resumed
        for split in SPLITS:
            self.data.check_length(split, config.block_size)
        if not self.data.vocab_size:
            self.data.check_ids(self.model.config.vocab_size)
        tokenizer = self.data.tokenizer or self.model.tokenizer

        self.step = 0  # optimizer steps done
        self.best_val_loss = math.inf
        self.model.context.recompute = config.recompute
        self.forward = self.processes.wrap(self.model, config.distributed, compiled)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if resumed and begin.source:
            self.step, self.best_val_loss = restore(
                resumed, self.model, self.optimizer, self.scaler, self.processes, begin.source
            )
        self.said = list(begin.said)  # lines on what is not as it was, or as it should be
        if resumed and (
            line := checkpoint.describe_world_size_change(resumed, config, self.processes.world_size)
        ):
            self.said.append(line)
        if unchecked:
            files = f"{n} files" if (n := len(unchecked)) > 1 else "1 file"
            self.said.append(f"{files} of data too large to be checked, from {display_path(unchecked[0])} on")

        fresh = None if config.eval_only else secrets.token_hex(8)
        self.run_id = resumed.get("run") if resumed else fresh  # of None, nobody can tell the states apart
        self.tokenizer_json = tokenizer.to_json() if tokenizer else None
        self.saver = BackgroundWriter(self.out_dir, config.keep_last, begin.source)
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
        self.log = log = self.open_log()
        self.introduce()
        start_s = mark_s = time.perf_counter()
        mark_step = self.step
        with self.signals(), contextlib.closing(log), self.saver:
            try:
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
                    self.saver.check()
                    self.check_stop()
                self.save_and_evaluate()
                self.finish(time.perf_counter() - start_s)
            except Stopped:
                if config.eval_only:
                    log.say("stopped")
                else:
                    self.save(LAST)
                    self.saver.wait()
                    log.say(
                        f"stopped at step {self.step}, saved in {self.out_dir / 'ckpt.pt'}: "
                        "go on with the same command and --init_from=resume"
                    )
        return 130 if self.stop_signal == signal.SIGINT else 0

    def train_step(self, lr: float) -> Tensor:
        """One optimizer step over all micro-batches; returns their mean loss (scalar, on the device)."""
        config = self.config
        n_micro = config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if config.dropout:
            torch.manual_seed(seed_of(config.seed, DROPOUT, self.step, self.processes.rank))
        total = torch.zeros((), device=self.device)
        for micro in range(n_micro):
            with self.processes.sync_on_last(self.forward, last=micro == n_micro - 1):
                loss = self.loss(self.forward, *self.train_batch(micro)) / n_micro
                self.scaler.scale(loss).backward()
            total += loss.detach()
        total = self.processes.mean(total)
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
            self.save(LAST)
        (train, _), (val, parts) = (self.estimate(split) for split in SPLITS)
        note = ""
        if val < self.best_val_loss:
            self.best_val_loss = val
            if self.step > 0 and not self.config.eval_only:
                self.save("best.pt")
                note = ", the best so far"
        self.log.record(step=self.step, train_eval_loss=train, val_loss=val, **parts)
        self.log.say(f"step {self.step}: train loss {train:.4f}, val loss {val:.4f}{note}")

    def estimate(self, split: str) -> tuple[float, dict[str, float]]:
        """Mean loss in nats over eval_iters batches of `split`, the same windows at each evaluation.

        Of several languages each gets its share of the batches, and counts as often as in training; their
        losses are returned too, as {"de_val_loss": ...}.
        """
        draw = generator(self.config.seed, EVAL, SPLITS.index(split))
        parts = self.data.parts(split)
        n_batch = math.ceil(self.config.eval_iters / len(parts))
        losses = {p: self.mean_loss(self.eval_batch(p, draw) for _ in range(n_batch)) for p in parts}
        mean = sum(weight * losses[part] for part, weight in parts.items())
        return mean, {f"{part}_loss": loss for part, loss in losses.items() if part != split}

    def whole_split(self, split: str) -> float:
        """Mean loss in nats over all of `split`, each token but the first predicted once."""
        return self.mean_loss(self.data.windows(split, self.config.batch_size, self.config.block_size))

    @torch.no_grad()
    def mean_loss(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Mean loss in nats over all tokens of `batches`, which the processes share out."""
        losses, sizes = [], []
        self.model.eval()
        try:
            for (x, y), counts in self.processes.deal(batches):
                self.check_stop()
                losses.append(self.loss(self.model, x, y))
                sizes.append(y.numel() * counts)
        finally:
            self.model.train()
        n = torch.tensor(sizes, dtype=torch.float64)  # (batches)
        total = torch.stack(losses).cpu().double() @ n
        nats, tokens = self.processes.sum(torch.stack([total, n.sum()]))
        return (nats / tokens).item()

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
        number = self.step * config.gradient_accumulation_steps + micro
        number = (number * self.processes.world_size + self.processes.rank) * B
        return self.data.shuffled("train", number, B, config.block_size, seed_of(config.seed, BATCH))

    def eval_batch(self, split: str, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch of `split`, as train_batch."""
        return self.data.batch(split, self.config.batch_size, self.config.block_size, draw)

    def loss(self, model: Callable[..., Output], x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch that is on the CPU, by the model or what was compiled of it."""
        types = unique_ids(x, self.model.config.vocab_size, 1 if self.device.type == "cpu" else 1024)

        def move(t: Tensor) -> Tensor:
            if self.device.type == "cuda":
                t = t.pin_memory()  # so that the copy can overlap with computing
            return t.to(self.device, non_blocking=True)

        on_device = UniqueIds(move(types.ids), move(types.inverse))
        with autocast(self.device, self.dtype):
            out = model(move(x), move(y), tokens=on_device, loss_only=True)
        assert out.loss is not None
        return out.loss

    def save(self, name: str) -> None:
        """Begin to write the whole state of the run to out_dir/name, from rank 0.

        Raises: InputError, and keeps what is there, if a loss or a weight is not a finite number.
        """
        self.check_finite()
        weights, optimizer = self.processes.state_of(self.model, self.optimizer)
        if self.processes.max(not all(bool(t.isfinite().all()) for t in weights.values())):
            self.fail(f"step {self.step - 1} left weights that are not finite numbers", self.step - 1)
        state = {
            "model": weights,
            "model_args": dataclasses.asdict(self.model.config),
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.tokenizer_json,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "iter_num": self.step,
            "best_val_loss": self.best_val_loss,
            "world_size": self.processes.world_size,
            "data": self.data.fingerprint(),
            "run": self.run_id,
        }
        if self.processes.rank == 0:
            self.saver.save(name, state)
        if name == LAST:
            self.saved_step = self.step

    def open_log(self) -> Log:
        """The run's log, begun with its settings in config.json; of several processes only rank 0 has one."""
        if self.processes.rank:
            return NoLog()
        self.out_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(self.out_dir)
        settings = dataclasses.asdict(self.config) | ({"run": self.run_id} if self.run_id else {})

        def begin() -> None:  # before the log: from here on the folder is this run's, see check_run
            with replacing(self.out_dir / "config.json") as f:
                f.write(json.dumps(settings, indent=2).encode())

        return Log(self.out_dir, self.step, self.config, begin)

    @property
    def tokens_per_step(self) -> int:
        config = self.config
        micro_batches = config.gradient_accumulation_steps * self.processes.world_size
        return config.batch_size * config.block_size * micro_batches

    def introduce(self) -> None:
        n, world_size = self.model.num_params(), self.processes.world_size
        where = f"{world_size} × {self.device.type} ({self.config.distributed})"
        self.log.say(f"settings ({self.out_dir / 'config.json'} has all):\n{describe(self.config)}")
        self.log.say(
            f"{self.model.config.model_name} with {n:,} parameters "
            f"on {where if world_size > 1 else self.device} in "
            f"{str(self.dtype).removeprefix('torch.')}, {self.tokens_per_step:,} tokens per step of "
            f"{self.data.n_tokens('train'):,} in {self.data.folder}"
            + (f", from step {self.step}" if self.step else "")
            + (f"; {self.note}" if self.note else "")
        )
        if self.config.decay_lr and 0 < self.config.max_iters < self.config.warmup_iters:
            self.said.append(
                f"note: the learning rate warms up for {self.config.warmup_iters} steps, "
                f"longer than the {self.config.max_iters} of this run"
            )
        for line in self.said:
            self.log.say(line)

    def report(self, loss: float, lr: float, ms: float) -> None:
        config = self.config
        rate = self.tokens_per_step / ms * 1000
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
        rate, report = learning_rate(step, self.config), self.out_dir / "bad_step.json"
        last = f"{self.out_dir / LAST} holds step {self.saved_step}"
        if self.processes.rank == 0:
            self.step = step
            batches = [self.train_batch(micro) for micro in range(self.config.gradient_accumulation_steps)]
            report_bad_step(report, self.config, step, rate, self.saved_step, batches, what=what)
        raise InputError(
            f"{what} (learning rate {rate:g}, seed {self.config.seed}); "
            f"{last if self.saved_step >= 0 else 'nothing was saved yet'}, {display_path(report)} "
            f"what the step saw "
            "and how to repeat it: lower --learning_rate or --grad_clip"
        )

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let signals end the run between two steps; a second Ctrl-C ends it at once, if it is one process:
        of several each may hear the first one twice, from torchrun too. What nohup ignores stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return

        def remember(number: int, frame: object) -> None:
            self.stop_signal = number
            if not self.processes.is_distributed:
                signal.signal(signal.SIGINT, signal.default_int_handler)

        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        heard = [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) != signal.SIG_IGN]
        old = {n: signal.signal(n, remember) for n in heard}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def check_stop(self) -> None:
        """Raises: Stopped, if any of the processes got a signal: in all of them at once."""
        agreed = self.processes.max(self.stop_signal)
        if agreed:  # a signal that came while they agreed stays for the next time
            self.stop_signal = agreed
            raise Stopped


def train(config: TrainConfig) -> int:
    """Run a training, as one of its processes if torchrun started several; returns the exit status.

    Raises: InputError for what cannot be used or done, in one line.
    """
    keep_memory(not config.recompute)
    with joined(config.device, config.backend, config.timeout_s) as processes:
        alone = locked(Path(config.out_dir)) if processes.rank == 0 else contextlib.nullcontext()
        with alone, within_memory(config):
            return Trainer(config, processes).run()
