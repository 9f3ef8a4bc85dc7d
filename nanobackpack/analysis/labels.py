"""What a sense is about, in three words: the tokens that it singles out; or "no clear theme".

The tokens that a sense scores highest are often those that most senses score high, and the word itself. So
scores are measured against those that the senses of all tokens give, z = (E_v · C - mean) / deviation, and
the word is left out. And as every direction scores some tokens highest, the mean of the three largest z must
be above that of 95 % of random senses, drawn with the mean and covariance of the model's own.
Letters: V tokens, D width, K senses, N of whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nanobackpack.analysis.senses import Senses
from nanobackpack.model.edits import Edit
from nanobackpack.runtime import generator
from nanobackpack.text.tokenizer import Tokenizer

NO_THEME = "no clear theme"
WORDS = 3  # in a label
TOKENS, DRAWN = 1024, 500  # whose senses are taken for those of all; random senses


class Scale:
    """What scores are like in one model."""

    def __init__(self, senses: Senses) -> None:
        self.E = senses.embedding  # (V, D)
        # Ids are often in the order of how frequent tokens are: take some of all kinds.
        ids = torch.linspace(0, len(self.E) - 1, min(len(self.E), TOKENS)).long().tolist()
        C = senses.model.sense_vectors(ids).flatten(0, 1)  # (N·K, D)
        self.mean, covariance = C.mean(dim=0), C.T.cov(correction=0)  # (D), (D, D)
        self.sd = ((self.E @ covariance) * self.E).sum(dim=1).clamp(min=1e-12).sqrt()  # (V)
        values, vectors = torch.linalg.eigh(covariance.cpu().double())
        draws = torch.randn(DRAWN, len(values), generator=generator(0), dtype=torch.float64)
        random = self.mean + (draws @ (vectors * values.clamp(min=0).sqrt()).T).to(self.mean)  # (N, D)
        self.threshold = torch.cat([peak(self.z(some)) for some in random.split(50)]).quantile(0.95)

    def z(self, C: Tensor) -> Tensor:
        """Give z of each token under senses C (N, D): (N, V)."""
        return (C - self.mean) @ self.E.T / self.sd


def peak(z: Tensor) -> Tensor:
    """Give the mean of the largest z (N, V): (N)."""
    return z.topk(min(WORDS, z.size(1)), dim=1).values.mean(dim=1)


_SCALES: WeakKeyDictionary[Senses, tuple[tuple[Edit, ...], Scale]] = WeakKeyDictionary()


def labels(senses: Senses, word: str) -> list[str]:
    """Label each of the K senses of a word."""
    edits, tokenizer = senses.model.edits, senses.tokenizer
    if senses not in _SCALES or _SCALES[senses][0] != edits:
        _SCALES[senses] = edits, Scale(senses)
    scale = _SCALES[senses][1]
    z = scale.z(senses.word_senses(word))  # (K, V)
    z[:, tokenizer.word_ids(word)] = -torch.inf
    best, clear = z.topk(min(2 * WORDS, z.size(1))).indices.tolist(), peak(z) > scale.threshold
    return [_text(tokenizer, ids) if ok else NO_THEME for ids, ok in zip(best, clear, strict=True)]


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Show the first words of ids: "bird" and " bird" are one, and a part of a character has no text."""
    texts = {i: tokenizer.decode([i]).strip() for i in ids}
    shown = dict.fromkeys(t if t and "\ufffd" not in t else tokenizer.token(i) for i, t in texts.items())
    return ", ".join([*shown][:WORDS])
