"""The slow programs that ours are measured against: the formula as it is written, and loops in Python.

They use a model's own weights and parts, so that only the way of computing differs. No dropout here.

Letters: B batch, T time (positions), D width, K senses, V vocabulary, N tokens.
"""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.model.backpack import GPT
from nanobackpack.model.kernels import causal_softmax


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of ids (B, T), the senses of each position computed anew."""
    e = model.wte(ids)  # (B, T, D)
    h = model.context(e)  # (B, T, D)
    if isinstance(model, GPT):
        return h @ model.wte.weight.T  # (B, T, V)
    # As kernels.sense_sum_plain, but without its table of unique ids: looking senses up there takes time.
    q, k = model.alpha.queries_and_keys(h)  # (B, K, T, D/K) each
    alpha = causal_softmax(q @ k.mT)  # (B, K, T, T)
    senses = model.senses(e).transpose(1, 2)  # (B, K, T, D)
    o = (alpha.to(senses.dtype) @ senses).sum(dim=1)  # (B, T, D)
    return o @ model.wte.weight.T  # (B, T, V)


def plain_loss(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of targets (B, T)."""
    return F.cross_entropy(plain_logits(model, ids).flatten(0, 1), targets.flatten())


@torch.no_grad()
def plain_generate(model: Any, ids: Tensor, n: int, temperature: float) -> Tensor:
    """Continue ids (B, T) by n tokens, recomputing the last block_size positions for each of them."""
    for _ in range(n):
        logits = plain_logits(model, ids[:, -model.config.block_size :])[:, -1, : model.config.n_token]
        if temperature == 0:
            new = logits.argmax(dim=1, keepdim=True)  # (B, 1)
        else:
            new = torch.multinomial((logits / temperature).softmax(dim=1), 1)  # (B, 1)
        ids = torch.cat([ids, new], dim=1)
    return ids


def plain_nearest(table: Tensor, word: Tensor, k: int) -> list[list[tuple[float, int]]]:
    """For each sense of a word (K, D) the k tokens of table (N, K, D) with the most similar one: a cosine and
    a heap for each token and sense, as nanoBackpackLM does it."""
    heaps: list[list[tuple[float, int]]] = [[] for _ in word]
    for i, senses in enumerate(table):
        for heap, sense, own in zip(heaps, senses, word, strict=True):
            heapq.heappush(heap, (F.cosine_similarity(sense, own, dim=0).item(), i))
            if len(heap) > k:
                heapq.heappop(heap)
    return heaps
