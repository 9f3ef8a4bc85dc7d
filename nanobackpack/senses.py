"""Read what a Backpack's senses mean: analysis that changes nothing in the model.

A sense vector lives in the space of the output embedding, so E · C(x)_l scores every token of the
vocabulary: the words sense l of x speaks for, and those it speaks against (paper, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nanobackpack.backpack import BackpackLM
from nanobackpack.config import InputError
from nanobackpack.layers import LanguageModel
from nanobackpack.tokenizers import Tokenizer


class Scored(NamedTuple):
    """A token and its score under a sense (a dot product, not a probability)."""

    token: str
    score: float


class Senses:
    """The senses of one Backpack. Raises: InputError for a model without senses or tokenizer."""

    def __init__(self, model: LanguageModel) -> None:
        if not isinstance(model, BackpackLM):
            raise InputError("this model is a GPT and has no senses: open a Backpack")
        if model.tokenizer is None:
            raise InputError("this model came without a tokenizer, so words cannot be looked up")
        self.model = model
        self.tokenizer: Tokenizer = model.tokenizer

    def word_senses(self, word: str) -> Tensor:
        """C of a word, (K, D): the mean over its tokens. Raises: InputError for an unknown character."""
        ids = self.tokenizer.encode(word)
        if not ids:
            raise InputError("an empty word has no senses: give at least one character")
        return self.model.sense_vectors(ids).mean(dim=0)  # (K, D)

    @torch.no_grad()
    def projection(self, word: str) -> Tensor:
        """E · C(word), (K, V): how much each sense speaks for each real token; padding left out."""
        embedding = self.model.wte.weight[: self.model.config.n_token]  # (V, D)
        return self.word_senses(word) @ embedding.T  # (K, V)

    def sense_projection(self, word: str, k: int = 5, bottom: bool = False) -> list[list[Scored]]:
        """For each sense of the word the k tokens it speaks for most, or with `bottom` against most."""
        scores = self.projection(word)  # (K, V)
        best = scores.topk(min(k, scores.size(1)), dim=1, largest=not bottom)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            [Scored(self.tokenizer.token(i), s) for i, s in zip(ids, values, strict=True)]
            for ids, values in rows
        ]


def table(word: str, rows: list[list[str]]) -> str:
    """The top tokens of each sense of a word as an aligned table, one sense a line."""
    cells = [[repr(token) for token in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"# {word}"]
    for i, row in enumerate(cells):
        padded = "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        lines.append(f"  sense {i:<3} {padded.rstrip()}")
    return "\n".join(lines)
