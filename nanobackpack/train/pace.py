"""How many threads make a step fastest just now, found by trying.

    with contextlib.closing(Pace()) as pace:
        with pace.step(): ...      # on so many threads

Threads meet at the end of every operation. Where other programs want the processors too, all of them wait for
the one whose turn it is not, and a step of a small model takes several times as long. Fewer threads wait
less. But they add numbers up in another order, so the last digits of a run come to depend on what else the
machine did. So only runs that are short of time do this: their learning rates follow the clock anyway.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Generator, Iterator

import torch

TURN, TRUST_S = 4, 15.0  # steps with one number of threads before the next, and how long the best one is kept


def best_threads(most: int) -> Generator[int, float, None]:
    """Yield the number of threads for each step, from 1 to `most`; it is sent the seconds the step took."""
    some = sorted({1, max(1, most // 2), most})
    while True:
        # Try each number twice, in turns, since the other programs come and go.
        seconds: dict[int, list[float]] = {n: [] for n in some}
        for n in some * 2:
            for _ in range(TURN):
                seconds[n].append((yield n))
        best = min(some, key=lambda n: statistics.median(seconds[n]))
        # Trust the result for a while.
        end = time.monotonic() + TRUST_S
        while time.monotonic() < end:
            yield best


class Pace:
    """The number of threads of each step. In the end it is what it was."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.choices = best_threads(self.most)
        self.n = next(self.choices)

    def close(self) -> None:
        torch.set_num_threads(self.most)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run a step on the number of threads that is next, and take its time."""
        torch.set_num_threads(self.n)
        start = time.perf_counter()
        yield
        self.n = self.choices.send(time.perf_counter() - start)
