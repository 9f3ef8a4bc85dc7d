"""Lend a larger model what a small one has learned: what an edit changes is added (Hewitt et al. 2024).

    >>> both = Ensemble(nb.load_model("gpt2-large"), small, nb.control.load("edit.safetensors", small))
    >>> both.generate("The capital of Mauritius is", 10)

    logits = logits of the larger + weight · (log p of the small one, edited - log p as it was)

Both must have the same tokens. It generates as a model does, and is scored as one (evaluate/scoring.py).
Letters: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel, Output, Positions, with_loss
from nanobackpack.model.edits import EditLike, Edits
from nanobackpack.model.generate import KVCache
from nanobackpack.model.texts import generate


class Ensemble(nn.Module):
    """A larger model, and a small one with and without edits. Edits of a call are of the larger one."""

    def __init__(
        self, large: LanguageModel, small: LanguageModel, edits: EditLike, weight: float = 1.0
    ) -> None:
        super().__init__()
        ours, theirs = small.config.n_token, large.config.n_token
        if ours != theirs:
            raise InputError(f"an ensemble needs models of the same tokens, not {ours:,} and {theirs:,}")
        if small.tokenizer and large.tokenizer and (differ := small.tokenizer.difference(large.tokenizer)):
            raise InputError(f"an ensemble needs models of the same tokens: {differ}")
        self.large, self.small, self.weight = large, small, weight
        self.lent = small.edits_in_force(edits)
        size = min(large.config.block_size, small.config.block_size)
        self.config, self.tokenizer = replace(large.config, block_size=size), large.tokenizer
        self.token_counts = large.token_counts

    generate = generate

    @property
    def wte(self) -> nn.Embedding:
        return self.large.wte

    def forward(
        self, input_ids: Tensor, targets: Tensor | None = None, unique: Any = None, loss_only: bool = False,
        edits: EditLike = (), at: Positions = None,
    ) -> Output:  # fmt: skip
        """As that of a model."""
        logits = self.large(input_ids, unique=unique, edits=edits, at=at).logits
        tuned, plain = (self.small(input_ids, unique=unique, edits=e, at=at).logits for e in (self.lent, ()))
        return with_loss(self._lend(logits, tuned, plain), targets, loss_only)

    def _lend(self, logits: Tensor, tuned: Tensor, plain: Tensor) -> Tensor:
        """Add the difference; padded ids, of which the models may have different numbers, get none."""
        n = self.config.n_token
        gained = tuned.log_softmax(dim=-1)[..., :n] - plain.log_softmax(dim=-1)[..., :n]
        return logits + self.weight * F.pad(gained, (0, logits.size(-1) - n))

    def edits_in_force(self, edits: EditLike | Edits = ()) -> Edits:
        return self.large.edits_in_force(edits)

    def new_cache(self, edits: EditLike | Edits = (), capacity: int | None = None) -> Caches:
        models = (self.large, edits), (self.small, self.lent), (self.small, ())
        capacity = min(capacity or self.config.block_size, self.config.block_size)
        return Caches([model.new_cache(some, capacity) for model, some in models])

    def next_logits(self, input_ids: Tensor, cache: Caches) -> Tensor:
        models = self.large, self.small, self.small
        parts = zip(models, cache.parts, strict=True)
        return self._lend(*(model.next_logits(input_ids, part) for model, part in parts))  # (B, V)


class Caches:
    """Caches that see the same text."""

    def __init__(self, parts: list[KVCache]) -> None:
        self.parts = parts

    @property
    def length(self) -> int:
        return self.parts[0].length

    def clear(self) -> None:
        for part in self.parts:
            part.clear()

    def expand(self, n: int) -> None:
        for part in self.parts:
            part.expand(n)

    def select(self, rows: Tensor) -> None:
        for part in self.parts:
            part.select(rows)
