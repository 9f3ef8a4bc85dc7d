"""What a run says and leaves behind when it cannot go on: out of memory, or numbers that went astray."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nanobackpack.config import InputError, TrainConfig
from nanobackpack.files import replacing

_NO_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")


@contextmanager
def within_memory(config: TrainConfig) -> Iterator[None]:
    """Turns running out of memory, of a GPU or of the machine, into advice. Raises: InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(f"out of memory: {less_memory(config)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _NO_MEMORY)


def less_memory(config: TrainConfig) -> str:
    """Settings that learn the same in less memory."""
    B, n_micro = config.batch_size, config.gradient_accumulation_steps
    advice = []
    if B > 1:
        factor = next(p for p in range(2, B + 1) if B % p == 0)
        advice.append(
            f"--batch_size={B // factor} --gradient_accumulation_steps={n_micro * factor}, "
            f"which are {B * n_micro} sequences a step as before"
        )
    if not config.recompute:
        advice.append("--recompute=True")
    return "take " + ", or ".join([*advice, "a smaller --block_size or model"])


def report_bad_step(
    path: Path, config: TrainConfig, step: int, lr: float, saved_step: int, batches: list[Any], **values: Any
) -> None:
    """Write down a step that went wrong: what it saw, and the command that comes to it again.

    batches: of each micro-batch of process 0 the inputs and targets, (B, T) each.
    """
    begin = "resume" if saved_step >= 0 else config.init_from
    again = dataclasses.replace(config, max_iters=step + 1, log_interval=1, init_from=begin)
    flags = [
        f"--{f.name}={getattr(again, f.name)}"
        for f in dataclasses.fields(again)
        if getattr(again, f.name) != f.default
    ]
    report = {
        "step": step,
        "learning_rate": lr,
        "seed": config.seed,
        "last_saved_step": saved_step,
        **values,
        "command": shlex.join(["python", "train.py", *flags]),
        "batches": [{"inputs": x.tolist(), "targets": y.tolist()} for x, y in batches],
    }
    with replacing(path) as file:
        file.write(json.dumps(report).encode())
