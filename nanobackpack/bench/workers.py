"""How it is measured: a process for each program that is compared, and the clock that lets them take turns.

    bench = Bench("cpu", quick=True)
    bench.ask("ours", setup, "step")    # milliseconds of a training step, measured in the process of ours
    bench.steps(setup)                  # {"plain": 61.2, "ours": 24.8, "gpt": 14.8}: medians
    bench.close()

Whether a process keeps the memory it frees, and how long its threads wait for each other, is settled for the
whole process. So no two programs may share one.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from nanobackpack.bench.work import ModelWork, Setup, Text, TextWork
from nanobackpack.runtime import keep_memory, pick_device

KINDS = ("plain", "ours", "gpt")
LIBRARY = ("transformers", "exported")  # what the transformers library has: its GPT-2, and our export
COLUMNS = ("ours", "plain", "gpt", *LIBRARY)
SECONDS = (20.0, 1.5)  # how long the programs take turns for one row, and how long with --quick

_held: tuple[Setup | Text | None, Any] = (None, None)  # what this process works on


def call(kind: str, device: str, setup: Setup | Text, method: str, args: tuple[Any, ...]) -> Any:
    """In the process of a program: do what is asked for, and keep the model until another is wanted."""
    global _held
    if not is_stock(kind):
        keep_memory(kind != "ours recompute")
    if _held[0] != setup:
        _held = (None, None)  # free one model before the next is built
        work: Any = TextWork if isinstance(setup, Text) else ModelWork
        if kind in LIBRARY:
            from nanobackpack.bench.library import LibraryWork  # transformers: slow to import

            work = LibraryWork
        _held = (setup, work(kind, setup, pick_device(device)))
    return getattr(_held[1], method)(*args)


def is_stock(kind: str) -> bool:
    """Whether the program runs on PyTorch as it comes, in the environment that its users have."""
    return kind.startswith("plain") or kind in LIBRARY


class Bench:
    """The processes of the programs, each started when it is first asked."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.workers: dict[str, ProcessPoolExecutor] = {}
        self.known: dict[tuple[Setup, tuple[str, ...]], dict[str, float]] = {}

    def worker(self, kind: str) -> ProcessPoolExecutor:
        """The process of that kind."""
        if kind not in self.workers:
            # The threads of stock PyTorch wait for each other as it pleases (program.py).
            stock: Any = (os.unsetenv, ("GOMP_SPINCOUNT",)) if is_stock(kind) else ()
            self.workers[kind] = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), *stock)
        return self.workers[kind]

    def ask(self, kind: str, setup: Setup | Text, method: str, *args: Any) -> Any:
        """What a method returns in the process of that kind. Raises BrokenProcessPool if the process died."""
        return self.worker(kind).submit(call, kind, self.device, setup, method, args).result()

    def task(self, kind: str, setup: Setup | Text, method: str, *args: Any) -> Callable[[], float]:
        return functools.partial(self.ask, kind, setup, method, *args)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.shutdown()
        self.workers.clear()

    def turns(self, tasks: Mapping[str, Callable[[], float]], least: int, warm: int = 1) -> dict[str, float]:
        """The median of what each task returns; they take turns for some seconds, and `least` times. First
        each runs `warm` times unmeasured: it starts threads, fills tables and caches, compiles."""
        for task in [*tasks.values()] * warm:
            task()
        results: dict[str, list[float]] = {name: [] for name in tasks}
        end, rounds = time.perf_counter() + SECONDS[self.quick], 0
        while rounds < least or time.perf_counter() < end:
            for name, task in tasks.items():
                time.sleep(0.02)  # the threads of the one before spin for a while: wait until they sleep
                results[name].append(task())
            rounds += 1
        return {name: statistics.median(values) for name, values in results.items()}

    def steps(self, setup: Setup, kinds: tuple[str, ...] = KINDS) -> dict[str, float]:
        """Milliseconds of a training step of each kind."""
        if (setup, kinds) not in self.known:
            tasks = {kind: self.task(kind, setup, "step") for kind in kinds}
            warm = 4 if "cuda" in self.device else 1  # compiles for each number of different ids
            self.known[setup, kinds] = self.turns(tasks, 2 if self.quick else 5, warm)
        return self.known[setup, kinds]
