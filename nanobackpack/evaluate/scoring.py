"""Log-probabilities of parts of texts: what last-word, sentence-pair and re-ranking tests have in common.

Letters: B batch, T time (positions), D width, V vocabulary, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from nanobackpack.kernels import linear
from nanobackpack.layers import LanguageModel
from nanobackpack.runtime import reading


class Row(NamedTuple):
    """Token ids of which those from `start` on are to be predicted from all before them; start >= 1."""

    ids: list[int]
    start: int


class Score(NamedTuple):
    """Of one row: the sum of the log-probabilities in nats, and whether each token was the likeliest."""

    log_p: float
    exact: bool


def score(model: LanguageModel, rows: Sequence[Row], batch_size: int = 16, title: str = "") -> list[Score]:
    """Score each row, in batches of like length. A row longer than block_size loses its beginning.

    Padded ids take part in the softmax (as in training) but are never the likeliest.
    Raises: ValueError for a row with nothing before `start`, or more than block_size tokens from there on.
    """
    size, device = model.config.block_size, model.wte.weight.device
    inputs, targets = [], []
    for ids, start in rows:
        if not 1 <= start < len(ids) or len(ids) - start > size:
            raise ValueError(f"cannot score tokens {start} to {len(ids)} with block_size={size}")
        inputs.append(ids[:-1][-size:])
        targets.append(ids[start:])
    found: dict[int, Score] = {}
    order = sorted(range(len(rows)), key=lambda i: len(inputs[i]))
    with reading(model), tqdm(total=len(rows), desc=title, unit="row", disable=None, leave=False) as bar:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            scores = _score(model, [inputs[i] for i in batch], [targets[i] for i in batch], device)
            found.update(zip(batch, scores, strict=True))
            bar.update(len(batch))
    return [found[i] for i in range(len(rows))]


def _score(
    model: LanguageModel, inputs: list[list[int]], targets: list[list[int]], device: torch.device
) -> list[Score]:
    """The last positions of each input predict its targets; padding on the right cannot be seen by them."""
    T = max(map(len, inputs))
    ids = torch.tensor([row + [0] * (T - len(row)) for row in inputs], device=device)  # (B, T)
    h = model.hidden(ids, None, model.active().on_any_row())  # (B, T, D)
    at = [
        (b, len(x) - len(y) + i)
        for b, (x, y) in enumerate(zip(inputs, targets, strict=True))
        for i in range(len(y))
    ]
    rows, positions = torch.tensor(at, device=device).T  # (N) each
    logits = linear(h[rows, positions], model.wte.weight).float()  # (N, V)
    wanted = torch.tensor([i for y in targets for i in y], device=device)  # (N)
    log_p = logits.log_softmax(dim=1).gather(1, wanted[:, None])[:, 0]  # (N)
    exact = logits[:, : model.config.n_token].argmax(dim=1) == wanted  # (N)
    lengths = [len(y) for y in targets]
    return [
        Score(p.sum().item(), bool(e.all()))
        for p, e in zip(log_p.split(lengths), exact.split(lengths), strict=True)
    ]
