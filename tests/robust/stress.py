"""Stress: many inputs, faults or steps, counted. Run from the repository root:

    python -m tests.robust.stress fuzz --n 100000 --seed 0
    python -m tests.robust.stress kill --n 200 --seed 0        # also faults, load, save

Each part is a function that returns the rows of its table; the last column counts what must not be, and
the exit status is 1 if it is not 0 everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where pytest looks too: for test_trainer,
sys.path.insert(0, str(Path(__file__).resolve().parent))  # and for what lies here

from faults import FAULTS
from fuzz_targets import TARGETS
from jobs import LIMIT_S, Job, World, difference
from test_trainer import TEXT, saved, temporary

from nanobackpack import load_model
from nanobackpack.analysis import results
from nanobackpack.runtime import keep_memory
from nanobackpack.train.checkpoint import BackgroundWriter
from nanobackpack.train.trainer import Trainer

Rows = dict[str, dict[str, int]]  # what was tried → column → count
HANG_S = 60  # an input that takes longer is a failure


def sum_of(rows: Rows, column: str) -> int:
    return sum(row[column] for row in rows.values())


# --- Random input -----------------------------------------------------------------------------


def fuzz(n: int = 100_000, seed: int = 0, only: str = "") -> Rows:
    """Random inputs to everything that reads them, n in all; `only` names one kind.

    Each is made from (seed, kind, number) alone; the first failures of a kind are printed with these.
    """
    kinds = {only: TARGETS[only]} if only else TARGETS
    rows: Rows = {kind: {"inputs": 0, "clean errors": 0, "successes": 0, "failures": 0} for kind in kinds}
    torch.set_num_threads(1)
    os.environ["RUST_BACKTRACE"] = "0"  # a panic in a library is caught, and takes two lines of stderr
    for i in tqdm(range(n), unit="input", disable=None):
        kind = list(kinds)[i % len(kinds)]
        row = rows[kind]
        row["inputs"] += 1
        key = f"{seed} {kind} {i // len(kinds)}"
        torch.manual_seed(seed)
        try:
            with alarm(HANG_S):
                row["successes" if kinds[kind](random.Random(key)) else "clean errors"] += 1
        except BaseException as error:  # a panic in a library is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            row["failures"] += 1
            if row["failures"] <= 3:
                tqdm.write(f"{key!r} failed:\n{traceback.format_exc()}", file=sys.stderr)
    return rows


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def ring(*unused: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# --- Trainings that are killed and hindered ---------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "one process": {"gradient_accumulation_steps": 1, "dropout": 0.0},
    "accumulation, dropout": {},
    "several languages": {"dataset": "languages"},
    "muon, wider": {"optimizer": "muon", "n_embd": 128},
    "two processes": {"n": 2},
}
EARLIER = 7  # the seed of the run before
KILLED = {"eval_interval": 3, "backup_checkpoint_step": 20}


def kill(n: int = 200, seed: int = 0, only: str = "", steps: int = 60) -> Rows:
    """kill -9 runs n times at random moments, every tenth time inside a save; each is resumed until it ends,
    and must end as one that nothing happened to. Each begins in the folder of an earlier run, which must end
    up whole in a folder of its own. `only` names one kind of run, `steps` is how long each is."""
    columns = ("runs", "killed", "inside a save", "survived", "lost")
    rows: Rows = {name: dict.fromkeys(columns, 0) for name in ([only] if only else RUNS)}
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=n, unit="kill", disable=None) as bar:
        world = World(Path(folder))
        world.finished(seed=EARLIER)  # the first job starts the server
        for name in itertools.cycle(list(rows)):
            row, before = rows[name], rows[name]["killed"]
            wrong = _killed_run(world, name, steps, rows, draw, n, bar)
            row["runs"] += 1
            row["lost" if wrong else "survived"] += row["killed"] - before
            if wrong:
                tqdm.write(f"{name}: {wrong}", file=sys.stderr)
            if sum_of(rows, "killed") >= n:
                return rows
    raise AssertionError("a cycle has no end")


def _killed_run(
    world: World, name: str, steps: int, rows: Rows, draw: random.Random, n: int, bar: Any
) -> str:
    """One run, killed and resumed until it ends; in what it differs from an undisturbed one."""
    changes = KILLED | {"max_iters": steps} | {k: v for k, v in RUNS[name].items() if k != "n"}
    if "dataset" in changes:
        changes["dataset"] = str(world.languages)
    n_process = RUNS[name].get("n", 1)
    whole, earlier = world.finished(n_process, **changes), world.finished(seed=EARLIER)
    out = world.place() / "out"
    shutil.copytree(earlier, out)
    while True:
        has_saved = (out / "ckpt.pt").is_file() and saved(out)["config"]["seed"] != EARLIER
        begun = "resume" if has_saved else "scratch"
        job = Job(world.config(out, init_from=begun, **changes), n=n_process)
        if sum_of(rows, "killed") >= n:
            job.ends_within(LIMIT_S)
        elif sum_of(rows, "inside a save") < (sum_of(rows, "killed") + 1) // 10:
            job.wait_for(lambda: any(p.name.startswith(".ckpt") for p in temporary(out)))
        else:
            job.ends_within(draw.uniform(0, world.seconds(whole)))
        if not job.running:
            status, printed = job.result()
            if status or (lost := difference(out / "older-1", earlier)):
                return f"status {status}: {printed[-800:]}" if status else f"of the earlier run {lost}"
            return difference(out, whole)
        job.kill(draw.randrange(n_process) if draw.random() < 0.5 else None)
        if not job.ends_within(60):
            job.kill()
            return "the other process goes on"
        rows[name]["killed"] += 1
        rows[name]["inside a save"] += bool(temporary(out))
        bar.update()


def faults(n: int = 10, seed: int = 0, only: str = "") -> Rows:
    """Every fault of faults.py, n times; `only` names one."""
    rows: Rows = {name: {"injected": 0, "survived": 0, "lost": 0} for name in ([only] if only else FAULTS)}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for i, name in tqdm(list(itertools.product(range(n), rows)), unit="fault", disable=None):
            wrong = FAULTS[name](world, random.Random(f"{seed} {name} {i}"))
            rows[name]["injected"] += 1
            rows[name]["lost" if wrong else "survived"] += 1
            if wrong:
                tqdm.write(f"{name}, number {i}: {wrong}", file=sys.stderr)
    return rows


# --- For long ---------------------------------------------------------------------------------


class Watch:
    """Memory, open files and time of this process, looked at now and then."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int, float]] = []  # (number, bytes, handles, seconds)

    def look(self, number: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        handles = len(os.listdir("/proc/self/fd"))
        self.samples.append((number, pages * os.sysconf("SC_PAGE_SIZE"), handles, time.perf_counter()))

    def row(self) -> dict[str, int]:
        """Growth by a straight line through the samples but the first fifth, which warms up."""
        number, n_bytes, handles, seconds = np.array(self.samples[len(self.samples) // 5 :]).T
        slope = np.polyfit(number, n_bytes, 1)[0]  # bytes a step
        steps_us = np.diff(seconds) / np.diff(number) * 1e6
        half = len(steps_us) // 2
        slower = float(np.median(steps_us[half:]) / np.median(steps_us[:half]) - 1)
        grown, more = slope * number[-1], int(handles[-1] - handles[0])
        return {
            "done": int(number[-1]),
            "MB at the end": round(n_bytes[-1] / 1e6),
            "bytes grown per 1,000": round(slope * 1000),
            "handles grown": more,
            "µs each": round(float(np.median(steps_us))),
            "% slower in the end": round(100 * slower),
            "not flat": int(grown > max(10e6, 0.02 * n_bytes[0]) or more > 0 or slower > 0.5),
        }


class Watched(Trainer):
    """A training that looks at itself a hundred times."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.watch = Watch()

    def train_step(self, lr: float) -> torch.Tensor:
        if self.step % max(1, self.config.max_iters // 100) == 0:
            self.watch.look(self.step)
        return super().train_step(lr)


def load(n: int = 100_000, seed: int = 0) -> Rows:
    """n steps of a tiny model that saves and evaluates every 50 steps, and a tenth as many prompts."""
    torch.set_num_threads(1)
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        often: dict[str, Any] = {"eval_interval": 50, "eval_iters": 1, "log_interval": 10, "dropout": 0.0}
        often |= {"gradient_accumulation_steps": 1, "seed": seed}
        config = world.config(Path(folder) / "out", max_iters=n, **often)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer = Watched(config)
            trainer.run()
        rows["steps"] = trainer.watch.row()
        model, watch, draw = load_model(config.out_dir), Watch(), random.Random(seed)
        assert model.tokenizer is not None
        for i in tqdm(range(n // 10), unit="prompt", disable=None):
            if i % max(1, n // 1000) == 0:
                watch.look(i)
            start = draw.randrange(len(TEXT) - 30)
            ids = model.tokenizer.encode(TEXT[start : start + draw.randrange(1, 30)])
            model.tokenizer.decode(model.generate(torch.tensor([ids]), 8)[0].tolist())
        rows["prompts"] = watch.row()
    return rows


def save(n: int = 5, megabytes: int = 500, folder: str = ".") -> Rows:
    """How long training waits for a save, and how long it takes: n times a state of that size."""
    keep_memory()  # as a training does
    state = {"model": {str(i): torch.rand(megabytes * 2500) for i in range(100)}}  # 100 tensors of 1 %
    waits, wholes, row = [], [], {"saves": n, "ms waited": 0, "ms in all": 0, "failed": 0}
    with tempfile.TemporaryDirectory(dir=folder) as place, BackgroundWriter(Path(place), 2, None) as saver:
        for _ in range(n):
            begin = time.perf_counter()
            saver.save("ckpt.pt", state)
            waits.append(time.perf_counter() - begin)
            saver.wait()
            wholes.append(time.perf_counter() - begin)
    row["ms waited"], row["ms in all"] = (round(1000 * float(np.median(t))) for t in (waits, wholes))
    return {f"{megabytes} MB": row}


PARTS = {"fuzz": fuzz, "kill": kill, "faults": faults, "load": load, "save": save}


def table(rows: Rows) -> str:
    """Rows of counts with their sum, aligned."""
    columns = list(next(iter(rows.values())))
    total = {c: sum_of(rows, c) for c in columns}
    lines = [[name, *(f"{row[c]:,}" for c in columns)] for name, row in {**rows, "all": total}.items()]
    return results.table("", ["", *columns], lines)


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a training heeds nohup, and nohup is inherited
    rows = tyro.extras.subcommand_cli_from_dict(PARTS, prog="python -m tests.robust.stress")
    print(table(rows))
    return int(any(list(row.values())[-1] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
