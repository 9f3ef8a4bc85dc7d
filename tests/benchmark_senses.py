"""Neighbours of a word for all senses: ours next to Python loops over a vocabulary of GPT-2's size.

    python tests/benchmark_senses.py
    python tests/benchmark_senses.py --quick --json neighbours.json

The model has random weights, which costs the same. The loops run over a sample of the tokens, and their
time is scaled to all of them:

    per sense   one step for each token and sense, a cosine and a heap, as nanoBackpackLM does
    per token   one step for each token, the cosines of all its senses at once
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack import ModelConfig, Senses, cli
from nanobackpack.analysis.results import aligned, write_json
from nanobackpack.runtime import pick_device
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import build_model


@dataclass(frozen=True, kw_only=True)
class NeighbourConfig:
    """Time to find the nearest tokens of a word in all of its senses."""

    quick: bool = False
    """A small vocabulary: seconds instead of minutes."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, ..."""
    sample: int = 500
    """Tokens the loops run over."""
    json: str = ""
    """File for the results."""


def main(config: NeighbourConfig) -> None:
    V = 2000 if config.quick else 50257
    settings = ModelConfig(vocab_size=V, n_layer=1, sense_network="paper", bias=True)  # K=16, D=768
    model = build_model(settings).eval().to(pick_device(config.device))
    model.tokenizer = Tokenizer.from_symbols([chr(0x10000 + i) for i in range(V)])
    senses, word = Senses(model), chr(0x10000 + 7)

    start = time.perf_counter()
    table = senses.directions()
    made_s = time.perf_counter() - start
    ours = median_s(lambda: senses.nearest(word, k=6).scores.cpu(), 9)
    words = [chr(0x10000 + i) for i in range(32)]
    together = median_s(lambda: [r.scores.cpu() for r in senses.nearest_many(words, k=6)], 3) / len(words)
    sample, mine = table[:, : config.sample], table[:, 7]  # (K, N, D), (K, D)
    scale = V / sample.size(1)
    per_sense = median_s(lambda: loop_per_sense(sample[:, : config.sample // 4], mine), 3) * 4 * scale
    per_token = median_s(lambda: loop_per_token(sample, mine), 3) * scale
    rows = {
        "nearest": ours,
        "nearest_many, a word of 32": together,
        "loop per sense": per_sense,
        "loop per token": per_token,
        "making the table, once": made_s,
    }
    head = ["", "seconds", "of nearest", "of nearest_many"]
    shown = [[name, f"{s:.3f}", f"{s / ours:.2f}", f"{s / together:.1f}"] for name, s in rows.items()]
    threads, gb = torch.get_num_threads(), table.nbytes / 1e9
    print(f"V={V} K=16 D=768, {table.device}, {threads} threads, table {gb:.2f} GB")
    print(aligned([head, *shown]))
    write_json(config.json, {"V": V, "sample": config.sample, "seconds": rows})


def median_s(run: Callable[[], object], n: int) -> float:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def loop_per_sense(table: Tensor, mine: Tensor) -> list[list[tuple[float, int]]]:
    """The 6 nearest of each sense, from table (K, N, D), one cosine at a time."""
    heaps: list[list[tuple[float, int]]] = [[] for _ in mine]
    for heap, senses, c in zip(heaps, table, mine, strict=True):
        for i, sense in enumerate(senses):
            push(heap, F.cosine_similarity(sense, c, dim=0).item(), i)
    return heaps


def loop_per_token(table: Tensor, mine: Tensor) -> list[list[tuple[float, int]]]:
    """The same, the cosines of a token's senses at once."""
    heaps: list[list[tuple[float, int]]] = [[] for _ in mine]
    for i in range(table.size(1)):
        for heap, cosine in zip(heaps, F.cosine_similarity(table[:, i], mine, dim=1).tolist(), strict=True):
            push(heap, cosine, i)
    return heaps


def push(heap: list[tuple[float, int]], score: float, i: int) -> None:
    heapq.heappush(heap, (score, i))
    if len(heap) > 6:
        heapq.heappop(heap)


if __name__ == "__main__":
    cli.run(main, NeighbourConfig)
