"""Several runs side by side on one device, as a study with many models and seeds needs them.

    losses = train_together([config_a, config_b, ...], jobs=4, minutes=10)     # nats a token; None: not done

A small model leaves most of a GPU idle, so several share it. With `minutes` the runs are as long as leaves
time for all: a step is timed while all others take theirs, and each run gets that number of steps, with its
schedule made to fit. So all are whole, and of the same length.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from nanobackpack.config import TrainConfig

_TIMED_STEPS = 20
_PATIENCE_S = 120  # for all processes to start


def train_together(configs: Sequence[TrainConfig], jobs: int, minutes: float = 0) -> list[float | None]:
    """Train each, `jobs` at a time; return their losses over the whole validation split.

    What a run says goes to its out_dir/log.txt. One that is not done when the time is over is ended, and has
    no loss.
    """
    jobs = min(jobs, len(configs))
    end = time.monotonic() + 60 * minutes if minutes else None
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, spawn, _begin, (spawn.Barrier(jobs),))
    late: set[Future[float]] | None = None
    try:
        if end:
            timed = [pool.submit(_seconds_a_step, config) for config in configs[:jobs]]
            slowest = max(future.result() for future in timed)
            rounds = -(-len(configs) // jobs)
            # A tenth of the time is for evaluations.
            steps = max(1, int(0.9 * (end - time.monotonic()) / slowest / rounds))
            print(f"{1000 * slowest:.0f} ms a step, {jobs} at a time: time for {steps:,} steps", flush=True)
            configs = [shortened(config, steps) for config in configs]
        futures = [pool.submit(_train_one, config) for config in configs]
        _, late = wait(futures, end and max(0.0, end - time.monotonic()))
        return [None if future in late else future.result() for future in futures]
    finally:
        for process in multiprocessing.active_children() if late or late is None else ():
            process.kill()
        pool.shutdown(cancel_futures=True)


def shortened(config: TrainConfig, steps: int) -> TrainConfig:
    """The same run in at most so many steps, its evaluations and its schedule in proportion."""
    share = min(1.0, steps / config.max_iters)
    names = ("max_iters", "lr_decay_iters", "warmup_iters", "eval_interval")
    fewer: dict[str, Any] = {name: max(1, int(share * getattr(config, name))) for name in names}
    return dataclasses.replace(config, **fewer)


_barrier: Any = None  # where the processes meet before they are timed


def _begin(barrier: Any) -> None:
    """Begin a process of the pool: several of them have a core each."""
    import torch

    global _barrier
    _barrier = barrier
    if barrier.parties > 1:
        torch.set_num_threads(1)


def _seconds_a_step(config: TrainConfig) -> float:
    """Time a training step, once the other processes take theirs too."""
    from nanobackpack.train.trainer import Trainer

    trainer = Trainer(config)
    float(trainer.train_step(0.0))
    _barrier.wait(_PATIENCE_S)
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        loss = trainer.train_step(0.0)
    float(loss)  # waits for a GPU
    return (time.perf_counter() - start) / _TIMED_STEPS


def _train_one(config: TrainConfig) -> float:
    from nanobackpack.train.log import read_metrics
    from nanobackpack.train.trainer import train

    out_dir = Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with open(out_dir / "log.txt", "w", encoding="utf-8") as log, redirect_stdout(log):
        status = train(config)
    assert status == 0
    return float(read_metrics(out_dir / "metrics.jsonl")[-1]["val_loss_full"])
