"""Training: what a run consists of (`Trainer.__init__`), and its loop on one page (`Trainer.run`).

    status = train(TrainConfig(dataset="shakespeare_char", max_iters=2000))

All randomness of a step follows from (seed, step): which windows it sees and its dropout masks. So a resumed
run goes on exactly, and how often it evaluates or logs changes nothing in what it learns.

Several processes run the same loop on different windows (parallel.py). They share each step's gradient, its
loss, and whether to stop, so they take every decision alike; rank 0 alone writes and prints.
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
from nanobackpack.model.flops import flops_per_step, peak_flops
from nanobackpack.model.kernels import UniqueIds, unique_ids
from nanobackpack.runtime import (
    autocast,
    check_memory,
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
from nanobackpack.train.checkpoint import BEST, GO_ON, LAST, BackgroundWriter, tokenizer_entries
from nanobackpack.train.log import Log, describe_settings, duration
from nanobackpack.train.optim import describe_schedule, learning_rate, make_optimizer, step_due
from nanobackpack.train.pace import Pace
from nanobackpack.train.parallel import Processes, joined
from nanobackpack.train.resume import (
    check_agreement,
    describe_world_size_change,
    initial_model,
    load_optimizer_state,
)

INIT, BATCH, DROPOUT, EVAL = range(4)  # the purposes randomness is drawn for


class Trainer:
    """A run: its data, model and optimizer, and how far it is; alone, or as one of several processes."""

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        # Where it runs, and with which type of number.
        self.processes = processes or Processes(pick_device(config.device))
        self.device = self.processes.device
        self.dtype = pick_dtype(config.dtype, self.device)
        self.is_compiled = pick_compile(config.compile, self.device)

        # The data. Its checksums are compared once on each machine.
        self.data = open_data(config)
        unchecked = self.data.verify_files() if self.processes.is_local_first else []

        # The model to start from: fresh, another one's weights, or this run's own from its last checkpoint.
        # From here on the settings say what its architecture is.
        torch.manual_seed(seed_of(config.seed, INIT))
        initial = initial_model(config, self.data)
        check_agreement(self.processes, initial, self.data, self.dtype)
        self.config = config = initial.config
        self.model = initial.model
        # Weights, gradients, two averages, and what goes in and out of the blocks: do at least these fit?
        if not self.processes.is_distributed:
            given = config.batch_size * config.block_size * config.n_embd * (self.model.config.n_block + 1)
            copies = 1 if config.eval_only else 4
            check_memory("this run", 4 * (copies * self.model.num_params() + given), self.device)

        # What takes a step: the model on its device, perhaps compiled or spread over the processes; the
        # optimizer; and for float16 the scaler, which keeps small gradients from vanishing.
        self.model.context.recompute = config.recompute
        # The kernels of a model of characters end before Python has started the next, so a GPU had better
        # replay a recording of them (docs/RESULTS.md). Gradients that add up over micro-batches would lie in
        # memory that the next replay writes over.
        alone = not self.processes.is_distributed and config.gradient_accumulation_steps == 1
        few = self.model.config.vocab_size <= self.model.config.n_embd
        replay = few and alone and self.device.type == "cuda"
        self.forward = self.processes.wrap(self.model, config.distributed, self.is_compiled, replay)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # The first step whose loss was not finite (-1: none). Reading it would make the CPU wait for a GPU.
        self.bad_step = torch.tensor(-1, device=self.device)

        # How far it is: at the beginning, or where the last checkpoint left it.
        if state := initial.state:
            load_optimizer_state(initial, self.optimizer, self.scaler, self.processes)
        self.step: int = state["iter_num"] if state else 0
        self.best_val_loss: float = state["best_val_loss"] if state else math.inf
        self.saved_step = self.step if state else -1  # the step in ckpt.pt (-1: none of this run)
        # Its clock, which goes on where the checkpoint left it, for max_minutes.
        self.began_s = time.perf_counter() - (state.get("elapsed_s") or 0 if state else 0)
        tokenizer = self.data.tokenizer or self.model.tokenizer
        self.tokenizer_entries = tokenizer_entries(tokenizer)
        # The run's id, written into its checkpoints and config.json, so that a checkpoint of an earlier run
        # in the same folder is recognised. A run that goes on keeps its id; an evaluation saves nothing.
        new_id = None if config.eval_only else secrets.token_hex(8)
        self.run_id = state.get("run") if state else new_id

        # What it reports and leaves behind.
        self.stop = StopSignals(alone=not self.processes.is_distributed)
        self.writer = BackgroundWriter(Path(config.out_dir), config.keep_last, initial.source)
        self.origin = initial.origin
        group = self.optimizer.param_groups[0]
        last_rate = group["lr"] / group["lr_scale"] if state else None
        self.notes = [
            *initial.notes,
            describe_world_size_change(state, config, self.processes.world_size) if state else "",
            "" if config.eval_only else describe_schedule(config, self.step, last_rate, self.time_used()),
            describe_unchecked(unchecked),
        ]

    # --- The loop -----------------------------------------------------------------------------

    def run(self) -> int:
        """Train to max_iters or for max_minutes; return the exit status: 0, or 130 after Ctrl-C."""
        config = self.config
        self.log = log = Log(config, self.step, self.run_id, enabled=self.processes.rank == 0)
        self.introduce()
        start_s = time.perf_counter()
        self.start_timing()
        with self.stop, contextlib.closing(log), self.writer, contextlib.closing(Pace()) as pace:
            try:
                while (
                    not config.eval_only and self.step < config.max_iters and (used := self.time_used()) < 1
                ):
                    # Every so often, save the state and see how well the model predicts.
                    if self.step % config.eval_interval == 0:
                        self.save_and_evaluate()
                        self.start_timing()

                    # One step: forward, backward, update. A run that is late tries how many threads are best;
                    # code that is compiled would have to be compiled for each number.
                    late = step_due(config, used) > self.step
                    tries = late and self.device.type == "cpu" and not self.is_compiled
                    with pace.step() if tries else contextlib.nullcontext():
                        loss = self.train_step(learning_rate(self.step, config, used))
                    self.step += 1
                    log.advance()

                    # Report some of the steps: each report waits for the GPU.
                    if self.step % config.log_interval == 0 or self.step == 1:
                        self.report_step(loss)
                        self.start_timing()

                    # Keep a checkpoint for good, if asked to.
                    every = config.backup_checkpoint_step
                    if every and self.step % every == 0:
                        self.save(f"ckpt_{self.step}.pt")

                    # Could the last checkpoint be written? Did a signal ask to stop?
                    self.writer.check()
                    self.check_stop()

                # All steps are done, or the time is up.
                if not config.eval_only and self.step < config.max_iters:
                    log.say(f"{config.max_minutes:g} minutes are over after {self.step} steps")
                self.save_and_evaluate()
                self.finish(time.perf_counter() - start_s)
            except Stopped:
                # A signal came, between two steps or in an evaluation.
                self.save_before_stopping()
        return 130 if self.stop.received == signal.SIGINT else 0

    def time_used(self) -> float:
        """Return the share of max_minutes that is over, the same in all processes; 0 without a limit."""
        if not self.config.max_minutes:
            return 0.0
        ms = round(1000 * (time.perf_counter() - self.began_s))
        return self.processes.max(ms) / (60_000 * self.config.max_minutes)

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
                loss = self.loss(self.forward, *self.train_batch(self.step, micro)) / n_micro
                self.scaler.scale(loss).backward()
            total += loss.detach()
        total = self.processes.mean(total)

        # Shorten a gradient that is too long.
        if config.grad_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)

        # Remember the first step that went wrong. On a CPU look at once, before it spoils the weights.
        is_bad = ~total.isfinite() & (self.bad_step < 0)
        self.bad_step = torch.where(is_bad, self.step, self.bad_step)
        if self.device.type == "cpu":
            self.check_finite()

        # Update the weights.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def train_batch(self, step: int, micro: int) -> tuple[Tensor, Tensor]:
        """Return micro-batch `micro` of a step: inputs and targets, (B, T) int64 each, on the CPU."""
        config, B = self.config, self.config.batch_size
        # Number all micro-batches of all steps and processes; each stands for B windows in a shuffled order.
        number = step * config.gradient_accumulation_steps + micro
        number = (number * self.processes.world_size + self.processes.rank) * B
        return self.data.shuffled("train", number, B, config.block_size, seed_of(config.seed, BATCH))

    def loss(self, model: Callable[..., Output], x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch that is on the CPU; `model` is self.forward or self.model."""
        unique = self.find_unique(x)
        with autocast(self.device, self.dtype):
            out = model(self.to_device(x), self.to_device(y), unique=unique, loss_only=True)
        assert out.loss is not None
        return out.loss

    def find_unique(self, x: Tensor) -> UniqueIds | None:
        """Find the distinct tokens of a batch on the CPU; None where the model may as well do so itself.

        On a GPU the model would have to wait until their number is known, and compiled code would be
        interrupted. They are padded, so that code is compiled for only a few numbers of tokens.
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

        Several languages get equally many batches, and each counts as often as it is drawn in training; the
        loss of each is returned too, as {"de_val_loss": ...}.
        """
        config, B, T = self.config, self.config.batch_size, self.config.block_size
        draw = generator(config.seed, EVAL, SPLITS.index(split))
        parts, losses = self.data.parts(split), {}
        n_batch = math.ceil(config.eval_iters / len(parts))
        for part in parts:
            losses[part] = self.mean_loss(self.data.batch(part, B, T, draw) for _ in range(n_batch))
        mean = sum(weight * losses[part] for part, weight in parts.items())
        return mean, {f"{part}_loss": loss for part, loss in losses.items() if part != split}

    def mean_loss(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean loss in nats over all tokens of `batches`, which the processes share out."""
        losses, sizes = [], []
        # By self.model, not self.forward: compiled code would be compiled again, for eval mode and for each
        # shorter batch, and DDP is not needed where there are no gradients to average.
        self.model.eval()  # its own mode, for once: FSDP's parts have no twins, as eval_mode makes them
        with torch.no_grad():
            for (x, y), is_own in self.processes.deal(batches):
                self.check_stop()
                losses.append(self.loss(self.model, x, y))
                sizes.append(y.numel() if is_own else 0)
        self.model.train()
        # Weigh each batch by its tokens, in float64, and add what the other processes computed.
        n_tokens = torch.tensor(sizes, dtype=torch.float64)  # (batches)
        nats = torch.stack(losses).cpu().double() @ n_tokens
        nats, total = self.processes.sum(torch.stack([nats, n_tokens.sum()]))
        return (nats / total).item()

    def finish(self, elapsed_s: float) -> None:
        """Report the loss over the whole validation split, and that the run is over."""
        config = self.config
        nats = self.mean_loss(self.data.windows("val", config.batch_size, config.block_size))
        bits = nats / math.log(2)
        end = {"event": "end", "step": self.step, "val_loss_full": nats, "val_bits_per_token": bits}
        text = f"whole validation split: loss {nats:.4f} nats per token"
        if per_token := self.data.chars_per_token("val"):
            end["val_bits_per_char"] = bits / per_token
            text += f", {bits / per_token:.4f} bits per character"
        self.log.record(**end, elapsed_s=elapsed_s)
        self.log.say(f"{text}; {duration(elapsed_s)} in all, everything in {Path(config.out_dir)}/")

    # --- Reporting, saving, stopping ----------------------------------------------------------

    @property
    def tokens_per_step(self) -> int:
        config = self.config
        n_micro = config.gradient_accumulation_steps * self.processes.world_size
        return config.batch_size * config.block_size * n_micro

    def introduce(self) -> None:
        """Say what is about to be trained and how, and what is worth knowing beforehand."""
        config, processes, say = self.config, self.processes, self.log.say
        where = f"{processes.world_size} × {processes.device.type} ({config.distributed})"
        say(f"settings ({Path(config.out_dir) / 'config.json'} has all):\n{describe_settings(config)}")
        say(
            f"{config.model_name} with {self.model.num_params():,} parameters "
            f"on {where if processes.is_distributed else self.device} "
            f"in {str(self.dtype).removeprefix('torch.')}, {self.tokens_per_step:,} tokens per step of "
            f"{self.data.n_tokens('train'):,} in {self.data.folder}"
            + (f", from step {self.step}" if self.step else "")
            + (f"; {self.origin}" if self.origin else "")
        )
        for note in filter(None, self.notes):
            say(note)

    def start_timing(self) -> None:
        """Time steps from here on."""
        self.timed_s, self.timed_step = time.perf_counter(), self.step

    def report_step(self, loss: Tensor) -> None:
        """Record and print the step just done, and how long the steps took since the last report."""
        self.check_finite()
        ms = 1000 * (time.perf_counter() - self.timed_s) / (self.step - self.timed_step)
        rate = self.tokens_per_step / ms * 1000
        left_s = (self.config.max_iters - self.step) * ms / 1000
        if limit := self.config.max_minutes:
            left_s = max(0.0, min(left_s, 60 * limit - (time.perf_counter() - self.began_s)))
        lr, train_loss = self.optimizer.param_groups[0]["lr"], loss.item()
        # Model FLOPs utilisation (MFU): how much of what the device can do the model's operations were.
        known, shown = {}, ""
        if peak := peak_flops(self.device):
            n_sequences = self.config.batch_size * self.config.gradient_accumulation_steps  # of this process
            known["mfu"] = flops_per_step(self.model.config, n_sequences) / peak / ms * 1000
            shown = f"MFU {known['mfu']:.1%}, "
        self.log.record(
            step=self.step, train_loss=train_loss, lr=lr, ms_per_step=ms, tokens_per_s=rate, **known
        )
        self.log.say(
            f"step {self.step:>6}/{self.config.max_iters}: loss {train_loss:.4f}, {ms:.1f} ms/step, "
            f"{rate:,.0f} tokens/s, {shown}{duration(left_s)} left"
        )

    def save(self, name: str) -> None:
        """Begin to write the state of the run to out_dir/name, from rank 0; end the run if it is broken."""
        self.check_finite()
        weights, optimizer = self.processes.state_of(self.model, self.optimizer)
        if self.processes.max(not all(bool(t.isfinite().all()) for t in weights.values())):
            self.fail(f"step {self.step - 1} left weights that are not finite numbers", self.step - 1)
        state = {
            "model": weights,
            "model_args": dataclasses.asdict(self.model.config),
            "config": dataclasses.asdict(self.config),
            **self.tokenizer_entries,
            "token_counts": self.model.token_counts,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "iter_num": self.step,
            "best_val_loss": self.best_val_loss,
            "elapsed_s": round(time.perf_counter() - self.began_s),
            "world_size": self.processes.world_size,
            "data": self.data.fingerprint(),
            "run": self.run_id,
        }
        if self.processes.rank == 0:
            self.log.check_folder()
            self.writer.save(name, state)
        if name == LAST:
            self.saved_step = self.step

    def check_finite(self) -> None:
        """End the run if a step's loss was not a finite number."""
        if (step := int(self.bad_step)) >= 0:
            self.fail(f"the loss of step {step} is not a finite number", step)

    def fail(self, what: str, step: int) -> NoReturn:
        """End the run for a step that went wrong; write down what it saw."""
        batches = None
        if self.processes.rank == 0:
            n_micro = self.config.gradient_accumulation_steps
            batches = [self.train_batch(step, micro) for micro in range(n_micro)]
        lr = learning_rate(step, self.config, self.time_used())
        raise report_bad_step(self.config, what, step, lr, self.saved_step, batches)

    def check_stop(self) -> None:
        """End the run if any of the processes got a signal: all of them, at the same step."""
        received = self.processes.max(self.stop.received)
        if received:  # a signal that comes while they agree waits for the next time
            self.stop.received = received
            raise Stopped

    def save_before_stopping(self) -> None:
        """Save the state of a run that a signal stopped, and say how to go on; an evaluation has none."""
        if self.config.eval_only:
            return self.log.say("stopped")
        self.save(LAST)
        self.writer.wait()
        self.log.say(f"stopped at step {self.step}, saved in {Path(self.config.out_dir) / LAST}: {GO_ON}")


def describe_unchecked(files: list[Path]) -> str:
    """Say how many files of data are too large for their checksums to be compared; "" if none."""
    if not files:
        return ""
    count = f"{len(files)} files" if len(files) > 1 else "1 file"
    return f"{count} of data too large to be checked, from {display_path(files[0])} on"


def train(config: TrainConfig) -> int:
    """Run a training, as one of its processes if torchrun started several; return the exit status."""
    # Keep freed memory for speed, unless the run recomputes activations because it is short of memory.
    keep_memory(not config.recompute)
    with (
        joined(config.device, config.backend, config.timeout_s) as processes,
        guard_run(config, processes.rank),
    ):
        return Trainer(config, processes).run()
