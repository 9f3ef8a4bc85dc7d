"""Training: what a run consists of (`Trainer.__init__`), and its loop on one page (`Trainer.run`).

    status = train(TrainConfig(dataset="shakespeare_char", max_iters=2000))

All randomness of a step follows from (seed, step): which windows it sees and its dropout masks. So a resumed
run goes on exactly, and how often it evaluates or logs changes nothing in what it learns.

Several processes run the same loop on different windows (parallel.py). They share each step's gradient, its
loss, and whether to stop, so they take every decision alike; rank 0 alone writes and speaks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from nanobackpack.config import TrainConfig
from nanobackpack.model.backpack import Output
from nanobackpack.model.kernels import UniqueIds, unique_ids
from nanobackpack.runtime import (
    autocast,
    eval_mode,
    generator,
    keep_memory,
    pick_compile,
    pick_device,
    pick_dtype,
    seed_of,
)
from nanobackpack.safe.files import display_path
from nanobackpack.safe.run import Stopped, StopSignals, guard_run, report_bad_step
from nanobackpack.text.data import open_data
from nanobackpack.text.meta import SPLITS
from nanobackpack.train.checkpoint import BEST, LAST, BackgroundWriter
from nanobackpack.train.log import Log, duration, model_flops_utilisation
from nanobackpack.train.optim import learning_rate, make_optimizer
from nanobackpack.train.parallel import Processes, joined
from nanobackpack.train.resume import describe_world_size_change, initial_model, restore

INIT, BATCH, DROPOUT, EVAL = range(4)  # the purposes randomness is drawn for


class Trainer:
    """A run: its data, model and optimizer, and how far it is; alone, or as one of several processes."""

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        # Where it runs, and in what numbers.
        self.processes = processes or Processes(pick_device(config.device))
        self.device = self.processes.device
        self.dtype = pick_dtype(config.dtype, self.device)
        self.is_compiled = pick_compile(config.compile, self.device)

        # The data. Its checksums are compared once on each machine.
        self.data = open_data(config)
        unchecked = self.data.verify_files() if self.processes.is_local_first else []

        # The model to start from: fresh, another one's weights, or this run's own from its last checkpoint.
        # From here on the settings say what its architecture is, and the data must suit it.
        torch.manual_seed(seed_of(config.seed, INIT))
        initial = initial_model(config, self.data)
        self.config = config = initial.config
        self.model = initial.model
        for split in SPLITS:
            self.data.check_length(split, config.block_size)
        if not self.data.vocab_size:
            self.data.check_ids(self.model.config.vocab_size)

        # What takes a step: the model on its device, perhaps compiled or spread over the processes; the
        # optimizer; and for float16 the scaler, which keeps small gradients from vanishing.
        self.model.context.recompute = config.recompute
        self.forward = self.processes.wrap(self.model, config.distributed, self.is_compiled)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # The first step whose loss was not finite (-1: none). On the device: looking at it would stall it.
        self.bad_step = torch.tensor(-1, device=self.device)

        # How far it is: at the beginning, or where the last checkpoint left it.
        state = initial.state
        self.step, self.best_val_loss = restore(initial, self.optimizer, self.scaler, self.processes)
        self.saved_step = self.step if state else -1  # the step in ckpt.pt (-1: none of this run)
        tokenizer = self.data.tokenizer or self.model.tokenizer
        self.tokenizer_json = tokenizer.to_json() if tokenizer else None
        # The same id in the checkpoints of a run and in config.json beside them tells them from those of an
        # earlier run. A run that goes on keeps its id; an evaluation saves nothing, and has none.
        self.run_id = None if config.eval_only else secrets.token_hex(8)
        if state:
            self.run_id = state.get("run")

        # What it reports and leaves behind.
        self.stop = StopSignals(alone=not self.processes.is_distributed)
        self.writer = BackgroundWriter(Path(config.out_dir), config.keep_last, initial.source)
        self.origin, self.notes = initial.origin, list(initial.notes)
        if state and (note := describe_world_size_change(state, config, self.processes.world_size)):
            self.notes.append(note)
        if unchecked:
            files = f"{n} files" if (n := len(unchecked)) > 1 else "1 file"
            self.notes.append(
                f"{files} of data too large to be checked, from {display_path(unchecked[0])} on"
            )

    # --- The loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Train to max_iters; return the exit status: 0, or 130 after Ctrl-C."""
        config = self.config
        self.log = log = Log(config, self.step, self.run_id, enabled=self.processes.rank == 0)
        log.introduce(
            self.model, self.data, self.processes, self.dtype, self.tokens_per_step, self.origin, self.notes
        )
        start_s = timed_s = time.perf_counter()
        timed_step = self.step
        with self.stop, contextlib.closing(log), self.writer:
            try:
                while not config.eval_only and self.step < config.max_iters:
                    # Every so often, save the state and see how well the model predicts.
                    if self.step % config.eval_interval == 0:
                        self.save_and_evaluate()
                        timed_s, timed_step = time.perf_counter(), self.step

                    # One step: forward, backward, update.
                    loss = self.train_step(learning_rate(self.step, config))
                    self.step += 1
                    log.advance()

                    # Report it, if it is one to be reported: only then does the GPU have to be waited for.
                    if self.step % config.log_interval == 0 or self.step == 1:
                        self.check_finite()
                        ms = 1000 * (time.perf_counter() - timed_s) / (self.step - timed_step)
                        self.report_step(loss.item(), ms)
                        timed_s, timed_step = time.perf_counter(), self.step

                    # Keep a checkpoint for good, if asked to.
                    every = config.backup_checkpoint_step
                    if every and self.step % every == 0:
                        self.save(f"ckpt_{self.step}.pt")

                    # Could the last checkpoint be written? Did a signal ask to stop?
                    self.writer.check()
                    self.check_stop()

                # All steps are done.
                self.save_and_evaluate()
                self.finish(time.perf_counter() - start_s)
            except Stopped:
                # A signal came, between two steps or in an evaluation: save, and say how to go on.
                if config.eval_only:
                    log.say("stopped")
                else:
                    self.save(LAST)
                    self.writer.wait()
                    log.say(
                        f"stopped at step {self.step}, saved in {Path(config.out_dir) / LAST}: "
                        "go on with the same command and --init_from=resume"
                    )
        return 130 if self.stop.received == signal.SIGINT else 0

    def train_step(self, lr: float) -> Tensor:
        """Take one optimizer step over all micro-batches; return their mean loss (scalar, on the device)."""
        config = self.config
        n_micro = config.gradient_accumulation_steps
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # Dropout masks are those of this step, whatever was drawn before.
        if config.dropout:
            torch.manual_seed(seed_of(config.seed, DROPOUT, self.step, self.processes.rank))

        # Add up the gradients of the micro-batches; the processes average theirs in the last one.
        total = torch.zeros((), device=self.device)
        for micro in range(n_micro):
            with self.processes.sync_on_last(self.forward, last=micro == n_micro - 1):
                loss = self.loss(self.forward, *self.train_batch(micro)) / n_micro
                self.scaler.scale(loss).backward()
            total += loss.detach()
        total = self.processes.mean(total)

        # Shorten a gradient that is too long.
        if config.grad_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)

        # Remember the first step that went wrong. On a CPU looking costs nothing, and spares the weights.
        is_bad = ~total.isfinite() & (self.bad_step < 0)
        self.bad_step = torch.where(is_bad, self.step, self.bad_step)
        if self.device.type == "cpu":
            self.check_finite()

        # Update the weights.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def train_batch(self, micro: int) -> tuple[Tensor, Tensor]:
        """Return micro-batch `micro` of this step: inputs and targets, (B, T) int64 each, on the CPU."""
        config, B = self.config, self.config.batch_size
        # Number all micro-batches of all steps and processes; each stands for B windows in a shuffled order.
        number = self.step * config.gradient_accumulation_steps + micro
        number = (number * self.processes.world_size + self.processes.rank) * B
        return self.data.shuffled("train", number, B, config.block_size, seed_of(config.seed, BATCH))

    def loss(self, model: Callable[..., Output], x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch that is on the CPU, by the model or what was compiled of it."""
        unique = self.unique_ids(x)
        with autocast(self.device, self.dtype):
            out = model(self.to_device(x), self.to_device(y), unique=unique, loss_only=True)
        assert out.loss is not None
        return out.loss

    def unique_ids(self, x: Tensor) -> UniqueIds | None:
        """Find the different tokens of a batch for the model, unless it may just as well do so itself.

        On a GPU it would have to wait until their number is known, and compiled code would be interrupted. So
        they are found here, on the CPU; padded to one of few numbers, for each of which code is compiled.
        """
        if self.device.type == "cpu" and not self.is_compiled:
            return None
        unique = unique_ids(x, self.model.config.vocab_size, 1 if self.device.type == "cpu" else 1024)
        return UniqueIds(self.to_device(unique.ids), self.to_device(unique.where))

    def to_device(self, t: Tensor) -> Tensor:
        """Move a tensor to the device; from pinned memory it is copied to a GPU while that computes."""
        if self.device.type == "cuda":
            t = t.pin_memory()
        return t.to(self.device, non_blocking=True)

    # --- Evaluation ---------------------------------------------------------------------------

    def save_and_evaluate(self) -> None:
        """Save first, since an evaluation can take long; then keep the state if it is the best yet."""
        if self.step > 0 and self.step != self.saved_step and not self.config.eval_only:
            self.save(LAST)
        (train_loss, _), (val_loss, parts) = (self.estimate(split) for split in SPLITS)
        note = ""
        if val_loss < self.best_val_loss:
            self.best_val_loss = val_loss
            if self.step > 0 and not self.config.eval_only:
                self.save(BEST)
                note = ", the best so far"
        self.log.record(step=self.step, train_eval_loss=train_loss, val_loss=val_loss, **parts)
        self.log.say(f"step {self.step}: train loss {train_loss:.4f}, val loss {val_loss:.4f}{note}")

    def estimate(self, split: str) -> tuple[float, dict[str, float]]:
        """Return the mean loss in nats over eval_iters batches of `split`, the same windows each time.

        Of several languages each gets its share of the batches, and counts as often as in training; their
        losses are returned too, as {"de_val_loss": ...}.
        """
        draw = generator(self.config.seed, EVAL, SPLITS.index(split))
        parts = self.data.parts(split)
        n_batch = math.ceil(self.config.eval_iters / len(parts))
        losses = {p: self.mean_loss(self.eval_batch(p, draw) for _ in range(n_batch)) for p in parts}
        mean = sum(weight * losses[part] for part, weight in parts.items())
        return mean, {f"{part}_loss": loss for part, loss in losses.items() if part != split}

    def eval_batch(self, split: str, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a random batch of `split`, as train_batch."""
        return self.data.batch(split, self.config.batch_size, self.config.block_size, draw)

    def whole_split(self, split: str) -> float:
        """Return the mean loss in nats over all of `split`, each token but the first predicted once."""
        return self.mean_loss(self.data.windows(split, self.config.batch_size, self.config.block_size))

    def mean_loss(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean loss in nats over all tokens of `batches`, which the processes share out."""
        losses, sizes = [], []
        with eval_mode(self.model):
            for (x, y), counts in self.processes.deal(batches):
                self.check_stop()
                losses.append(self.loss(self.model, x, y))
                sizes.append(y.numel() * counts)
        # Weigh each batch by its tokens, in float64; what other processes did comes in at the end.
        n_tokens = torch.tensor(sizes, dtype=torch.float64)  # (batches)
        nats = torch.stack(losses).cpu().double() @ n_tokens
        nats, total = self.processes.sum(torch.stack([nats, n_tokens.sum()]))
        return (nats / total).item()

    def finish(self, elapsed_s: float) -> None:
        """Report the loss over the whole validation split, and that the run is over."""
        nats = self.whole_split("val")
        bits = nats / math.log(2)
        end = {"event": "end", "step": self.step, "val_loss_full": nats, "val_bits_per_token": bits}
        text = f"whole validation split: loss {nats:.4f} nats per token"
        if per_token := self.data.chars_per_token("val"):
            end["val_bits_per_char"] = bits / per_token
            text += f", {bits / per_token:.4f} bits per character"
        self.log.record(**end, elapsed_s=elapsed_s)
        self.log.say(f"{text}; {duration(elapsed_s)} in all, everything in {Path(self.config.out_dir)}/")

    # --- Reporting, saving, stopping ----------------------------------------------------------

    @property
    def tokens_per_step(self) -> int:
        config = self.config
        n_micro = config.gradient_accumulation_steps * self.processes.world_size
        return config.batch_size * config.block_size * n_micro

    def report_step(self, loss: float, ms: float) -> None:
        """Report the step just done, which took `ms` milliseconds."""
        n_sequences = self.config.batch_size * self.config.gradient_accumulation_steps  # of this process
        mfu = model_flops_utilisation(self.model.config, n_sequences, ms, self.device)
        lr = self.optimizer.param_groups[0]["lr"]
        self.log.report_step(self.step, loss, lr, ms, self.tokens_per_step, mfu)

    def save(self, name: str) -> None:
        """Begin to write the whole state of the run to out_dir/name, from rank 0; never one gone wrong."""
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
            self.writer.save(name, state)
        if name == LAST:
            self.saved_step = self.step

    def check_finite(self) -> None:
        """End the run if a step's loss was not a finite number."""
        if (step := int(self.bad_step)) >= 0:
            self.fail(f"the loss of step {step} is not a finite number", step)

    def fail(self, what: str, step: int) -> NoReturn:
        """End the run for a step that went wrong; what it saw is written down."""
        batches = None
        if self.processes.rank == 0:
            self.step = step
            batches = [self.train_batch(micro) for micro in range(self.config.gradient_accumulation_steps)]
        lr = learning_rate(step, self.config)
        raise report_bad_step(self.config, what, step, lr, self.saved_step, batches)

    def check_stop(self) -> None:
        """End the run if any of the processes got a signal: all of them, at the same step."""
        received = self.processes.max(self.stop.received)
        if received:  # a signal that comes while they agree waits for the next time
            self.stop.received = received
            raise Stopped


def train(config: TrainConfig) -> int:
    """Run a training, as one of its processes if torchrun started several; return the exit status."""
    keep_memory(not config.recompute)
    with (
        joined(config.device, config.backend, config.timeout_s) as processes,
        guard_run(config, processes.rank),
    ):
        return Trainer(config, processes).run()
