"""What a model has learned of the planted language: it reads texts, and the truth of each word is known.

    texts = Reading(model, draw(Language(), 600, seed=2))
    texts.distance(texts.log_p(), Language())       # KL(language ‖ model), in nats a text
    learned(model, 600) | carriers(model, 600)      # figures by name

Letters: N texts, T tokens of a text and its end, V vocabulary, K senses, D width, M pronouns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanobackpack.evaluate.language import CITIES, COLOURS, NOUNS, Language, draw
from nanobackpack.text.words import needs_tokenizer, token_id

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import BackpackLM, LanguageModel
    from nanobackpack.model.edits import EditLike

LANGUAGE = Language()
CHOOSE, TEST = 1, 2  # seeds of the texts that something is chosen on, and of those that it is measured on

Figures = dict[str, float]
"""What was measured of a model, by name."""


class Reading:
    """Texts before a model: what it predicts at each position, and where which words are to come."""

    def __init__(self, model: LanguageModel, texts: Sequence[str]) -> None:
        import torch

        from nanobackpack.runtime import pad_right

        self.model, self.texts, self.tokenizer = model, texts, needs_tokenizer(model.tokenizer)
        end = self.tokenizer.eos_id or 0
        rows = [[end, *self.tokenizer.encode(text), end] for text in texts]
        ids = pad_right(rows, model.wte.weight.device)  # (N, T + 1)
        self.read, self.next = ids[:, :-1], ids[:, 1:]  # (N, T) each
        self.at = torch.arange(self.read.size(1), device=ids.device)  # (T)
        lengths = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
        self.real = self.at < lengths[:, None]  # (N, T): the rest is padding

    def tokens(self, words: Sequence[str]) -> Tensor:
        return self.read.new_tensor([token_id(self.tokenizer, word) for word in words])

    def log_p(self, edits: EditLike = ()) -> Tensor:
        """Predict, under edits: (N, T, V)."""
        from nanobackpack.runtime import eval_mode

        with eval_mode(self.model) as model:
            return model(self.read, edits=edits).logits.log_softmax(dim=2)

    def expects(self, words: Sequence[str]) -> Tensor:
        """Find the positions where one of the words comes next, (N, T)."""
        return self.next.unsqueeze(2).eq(self.tokens(words)).any(dim=2) & self.real

    def latest(self, words: Sequence[str]) -> Tensor:
        """Find the latest of the words at each position: its token, or -1, (N, T)."""
        hit = self.read.unsqueeze(2).eq(self.tokens(words)).any(dim=2)  # (N, T)
        at = self.at.where(hit, -1).cummax(dim=1).values  # (N, T)
        return self.read.gather(1, at.clamp(min=0)).where(at >= 0, -1)

    def distance(self, log_p: Tensor, language: Language) -> float:
        """Estimate KL(language ‖ model) in nats a text, if the texts are drawn from the language."""
        of_next = log_p.gather(2, self.next[..., None])[..., 0]  # (N, T)
        truth = sum(map(language.log_p, self.texts))
        return (truth - of_next[self.real].double().sum().item()) / len(self.texts)

    def odds(self, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log p(he)/p(she) where a pronoun comes next, and the token of its noun, (M) each."""
        where = self.expects(["he", "she"])
        he, she = self.tokens(["he", "she"])
        return (log_p[..., he] - log_p[..., she])[where], self.latest(NOUNS)[where]

    def true_odds(self, nouns: Tensor) -> Tensor:
        """Look up the planted log odds of he against she, of tokens of nouns (M)."""
        truth = nouns.new_zeros(nouns.shape, dtype=self.model.wte.weight.dtype)  # (M)
        for noun, p in LANGUAGE.he.items():
            truth[nouns == self.tokens([noun])] = math.log(p / (1 - p))
        return truth


def share(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()


def learned(model: LanguageModel, n: int) -> Figures:
    """Measure what a model knows of the language; of the bias, the slope of its log odds on the true ones."""
    texts = Reading(model, draw(LANGUAGE, n, TEST))
    log_p = texts.log_p()
    odds, nouns = texts.odds(log_p)  # (M) each
    right = log_p.argmax(dim=2) == texts.next  # (N, T)
    return {
        "learned: distance": texts.distance(log_p, LANGUAGE),
        "learned: bias, %": 100 * slope(odds, texts.true_odds(nouns)),
        "learned: cities, %": share(right[texts.expects(list(CITIES.values()))]),
        "learned: flags, %": share(right[texts.expects(COLOURS)]),
    }


def carriers(model: BackpackLM, n: int) -> Figures:
    """Divide a Backpack's bias, which is a sum over the senses of all tokens, by whose senses they are: the
    noun's, or those of words after and before it, which the context weighs by what the noun is. And say how
    much of its weight the sense that looks at the noun most gives it: without that nothing can be carried."""
    import torch

    texts = Reading(model, draw(LANGUAGE, n, TEST))
    where, noun = texts.expects(["he", "she"]), texts.latest(NOUNS)
    he, she = model.wte.weight.detach()[texts.tokens(["he", "she"])]
    pull = model.sense_vectors() @ (he - she)  # (V, K): what each sense of each token says for he
    weights = model.contextualization(texts.read).transpose(1, 2)[where]  # (M, K, T): before each pronoun
    row, at = where.nonzero().unbind(dim=1)  # (M) each: the text, and the position before the pronoun
    parts = (weights * pull[texts.read[row]].mT).sum(dim=1)  # (M, T): of each token read
    its = (texts.read[row] == noun[where][:, None]) & (texts.at <= at[:, None])  # (M, T): it may come twice
    after = texts.at > texts.at.where(its, -1).amax(dim=1, keepdim=True)  # (M, T)
    truth = texts.true_odds(noun[where])  # (M)
    sums = {"the noun": its, "words after it": after, "words before it": ~its & ~after}
    looking = torch.where(its[:, None], weights, 0).sum(dim=2).mean(dim=0)  # (K)
    return {"carried: weight on the noun, %": 100 * looking.max().item()} | {
        f"carried: by the senses of {name}, %": 100 * slope(torch.where(of, parts, 0).sum(dim=1), truth)
        for name, of in sums.items()
    }


def slope(y: Tensor, x: Tensor) -> float:
    """Fit y = slope · x, (M) each."""
    return ((y @ x) / (x @ x)).item()
