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

TURN, TRUST = 4, 200  # steps with one number of threads before the next, and how many keep the best one


def best_threads(most: int) -> Generator[int, float, None]:
    """Yield the number of threads for each step, from 1 to `most`; it is sent the seconds the step took."""
    while True:
        # Are half as many faster? Take each twice, in turns, since the other programs come and go.
        best, half = most, most // 2
        while half:
            seconds: dict[int, list[float]] = {best: [], half: []}
            for n in (best, half) * 2:
                for _ in range(TURN):
                    seconds[n].append((yield n))
            if statistics.median(seconds[half]) > statistics.median(seconds[best]):
                break
            best, half = half, half // 2
        # Trust the result for a while: far longer than it took, even if half as many are half as fast.
        for _ in range(TRUST):
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
