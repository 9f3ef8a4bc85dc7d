"""Lexical similarity (Backpack paper, Table 4): does the cosine of two words' vectors rank pairs of words
as people do? Spearman's ρ between the two, for the rows of E, all senses end to end (flat), each sense, and
the least cosine of all senses (min, eq. 14).

A word of several tokens is the mean of their vectors (avg), its first token (first), or its contextualized
senses; the paper takes the better of the first two for each model. Words are taken as they stand, with the
space before them where the tokenizer joins it; no BOS. A GPT has only E, its input embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.analysis.results import Result, aligned
from nanobackpack.analysis.senses import Pooling, Senses
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import Pair
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.text.tokenizer import Tokenizer, needs_tokenizer, word_ids


@dataclass(frozen=True, kw_only=True)
class LexicalSimilarity(Result):
    """Spearman's ρ of R measures on S test sets, for P ways to make a vector of a word's tokens."""

    sets: list[str]
    """S."""
    poolings: list[str]
    """P."""
    measures: list[str]
    """R: E, flat, sense 0 ..., min; of a GPT only E."""
    rho: Tensor
    """(R, S, P); NaN where a measure is undefined: the same for all pairs, or E of contextualized senses."""
    n: list[int]
    """S: pairs compared."""
    coverage: list[float]
    """S: their share of the test set; the others have characters that the tokenizer does not know."""

    def table(self) -> str:
        head = ["", *(f"{name} {pooling}" for name in self.sets for pooling in self.poolings)]
        blank = [""] * (len(self.poolings) - 1)
        rows = [head]
        for measure, values in zip(self.measures, self.rho.flatten(1).tolist(), strict=True):
            rows.append([measure, *("–" if v != v else f"{v:.3f}" for v in values)])
        rows.append(["pairs", *(cell for n in self.n for cell in (str(n), *blank))])
        rows.append(["coverage", *(cell for c in self.coverage for cell in (f"{100 * c:.1f} %", *blank))])
        return f"# {self.title}\n{aligned(rows)}"


def lexical_similarity(
    model: LanguageModel, sets: Mapping[str, Sequence[Pair]], poolings: Sequence[Pooling] = ("avg", "first")
) -> LexicalSimilarity:
    """Compare the cosines of words with people's scores, on named test sets.

    Raises: InputError for a model without tokenizer, an unknown pooling, a set of which less than two
    pairs can be spelled, or without SciPy (extra `analysis`).
    """
    tokenizer = needs_tokenizer(model.tokenizer)
    for pooling in poolings:
        if pooling not in get_args(Pooling):
            raise InputError(f"pooling={pooling!r} is unknown: it must be {' or '.join(get_args(Pooling))}")
    kept = {name: [p for p in pairs if _spelled(tokenizer, p)] for name, pairs in sets.items()}
    for name, pairs in kept.items():
        if len(pairs) < 2:
            raise InputError(
                f"{name}: this tokenizer can spell {len(pairs)} of {len(sets[name])} pairs, not 2"
            )
    words = sorted({word for pairs in kept.values() for p in pairs for word in (p.first, p.second)})
    index = {word: i for i, word in enumerate(words)}
    senses = Senses(model) if isinstance(model, BackpackLM) else None
    columns: list[list[Tensor]] = [[] for _ in kept]  # (S, P) of (R)
    for pooling in poolings:
        vectors = _embeddings(model, tokenizer, words, pooling).cpu().double()  # (N, D)
        table = None if senses is None else senses.many_senses(words, pooling).cpu().double()  # (N, K, D)
        for column, pairs in zip(columns, kept.values(), strict=True):
            a, b = (torch.tensor([index[w] for w in side]) for side in list(zip(*pairs, strict=True))[:2])
            gold = [p.score for p in pairs]
            column.append(torch.tensor([spearman(m, gold) for m in _measures(vectors, table, a, b)]))
    K = 0 if senses is None else model.config.n_sense_vector
    return LexicalSimilarity(
        title="Spearman's ρ with human judgements",
        sets=list(kept),
        poolings=list(poolings),
        measures=["E"] + (["flat", *(f"sense {i}" for i in range(K)), "min"] if K else []),
        rho=torch.stack([torch.stack(column, dim=1) for column in columns], dim=1),
        n=[len(pairs) for pairs in kept.values()],
        coverage=[len(kept[name]) / len(sets[name]) for name in kept],
    )


def spearman(measure: Tensor, gold: Sequence[float]) -> float:
    """Spearman's rank correlation of N cosines with N scores; NaN if either are all the same.

    Cosines that differ by the errors of float64 alone, as those of pairs of equal words, share their rank.
    """
    try:
        from scipy.stats import spearmanr
    except ImportError:
        raise InputError("correlations need SciPy: pip install 'nanobackpack[analysis]'") from None
    values = measure.double().round(decimals=9)
    if values.isnan().any() or values.unique().numel() < 2 or len(set(gold)) < 2:
        return float("nan")
    return float(spearmanr(values.numpy(), gold).statistic)


def _measures(vectors: Tensor, senses: Tensor | None, a: Tensor, b: Tensor) -> list[Tensor]:
    """Of N pairs (a, b) the measures R, each (N): cosines of E, flat, every sense, and their min.

    In float64 on the CPU: float32 would break the ties of words that share their first token.
    """
    measures = [F.cosine_similarity(vectors[a], vectors[b], dim=1)]
    if senses is not None:
        measures.append(F.cosine_similarity(senses[a].flatten(1), senses[b].flatten(1), dim=1))
        each = F.cosine_similarity(senses[a], senses[b], dim=2)  # (N, K)
        measures += [*each.T, each.amin(dim=1)]
    return measures


def _embeddings(model: LanguageModel, tokenizer: Tokenizer, words: list[str], pooling: Pooling) -> Tensor:
    """E of N words, (N, D): mean or first token; NaN for contextualized, which E is not."""
    E = model.wte.weight.detach()
    rows = [E[word_ids(tokenizer, word)] for word in words]
    if pooling == "contextualized":
        return E.new_full((len(words), E.size(1)), torch.nan)
    return torch.stack([row[0] if pooling == "first" else row.mean(dim=0) for row in rows])


def _spelled(tokenizer: Tokenizer, pair: Pair) -> bool:
    """Whether a tokenizer has tokens for all of both words."""
    try:
        return all(word_ids(tokenizer, word) for word in (pair.first, pair.second))
    except InputError:
        return False
