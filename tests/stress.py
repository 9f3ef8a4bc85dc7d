"""Stress: many inputs, faults or steps, counted. Run from the repository root:

    python -m tests.stress fuzz --n 100000 --seed 0
    python -m tests.stress kill --n 200 --seed 0        # also faults, load, save: stress_training.py

Each part is a function that returns the rows of its table; the last column counts what must not be, and
the exit status is 1 if it is not 0 everywhere.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # pytest's way of finding what lies beside

from fuzz_targets import TARGETS
from stress_training import PARTS as TRAINING

Rows = dict[str, dict[str, int]]  # what was tried → column → count
HANG_S = 60  # an input that takes longer is a failure


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


class alarm:
    """Raise TimeoutError in what takes longer; what hangs in a library's code ends the process."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self.ring)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def ring(self, *unused: object) -> None:
        raise TimeoutError(f"more than {self.seconds} s")


def table(rows: Rows) -> str:
    """Rows of counts with their sum, aligned."""
    columns = list(next(iter(rows.values())))
    total = {c: sum(row[c] for row in rows.values()) for c in columns}
    lines = [["", *columns]]
    lines += [[name, *(f"{row[c]:,}" for c in columns)] for name, row in {**rows, "all": total}.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


PARTS = {"fuzz": fuzz, **TRAINING}


def main() -> int:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a training heeds nohup, and nohup is inherited
    rows = tyro.extras.subcommand_cli_from_dict(PARTS, prog="python -m tests.stress")
    print(table(rows))
    return int(any(list(row.values())[-1] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
