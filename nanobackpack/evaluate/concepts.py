"""Concepts: is there a sense that tells the words of a list from all others?

    nanobackpack concepts --init_from=words-small --words red green blue yellow brown white black pink
    nanobackpack concepts --out_dir=out --words FILE:colours.txt       # one word a line

Each word of the list in turn is hidden. The others, against the rest of the vocabulary, give a direction: the
difference of their mean sense vectors, of length 1 each. AUC is how often the hidden word lies further along
it than one that is not in the list: 0.5 is chance, 1 means that the sense knows the list. p is the share of
500 random lists of that length for which the best of all senses does as well, so it holds for as many senses
as there are. The words to tell the list from are at most 1000, written alike (a space before them, letters
only) and about as frequent, or a list of frequent words would be known by that. Beside the senses stands E.

Letters: P words compared, n of them in the list, R rows (senses, and E), D width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanobackpack.analysis import results
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError, first_few
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import mean_of
from nanobackpack.evaluate.scoring import encode_or_none, numbered_lines
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Tokenizer

OTHERS, DRAWS = 1000, 499  # words to tell the list from; random lists, with the list itself 500


@dataclass(frozen=True, kw_only=True)
class ConceptsConfig(AnalysisConfig, controls.ControlsConfig):
    """How well each sense tells the words of a list from others."""

    words: tuple[str, ...] = ()
    """The list, or FILE:colours.txt with one word a line."""


@dataclass(frozen=True, kw_only=True)
class Concepts(controls.Evaluation):
    """AUC and p of R measures."""

    measures: list[str]
    """R: sense 0 ..., E."""
    auc: list[float]
    p: list[float]
    """R: of senses corrected for their number."""

    def table(self) -> str:
        order = sorted(range(len(self.auc)), key=lambda row: -self.auc[row])
        rows = [[self.measures[row], f"{self.auc[row]:.3f}", f"{self.p[row]:.3f}"] for row in order]
        return results.table(self.title, ["", "AUC", "p"], rows)


def main(settings: ConceptsConfig) -> None:
    words = list(settings.words)
    if len(words) == 1 and words[0].startswith("FILE:"):
        words = [line.strip() for _, line in numbered_lines(words[0].removeprefix("FILE:"))]
    if len(set(words)) < 4:
        raise InputError("a concept needs at least 4 words, as in --words red green blue yellow")
    controls.report(settings, lambda model: concepts(model, words), lambda model: concepts(model, words, 0))


def concepts(model: LanguageModel, words: Sequence[str], draws: int = DRAWS) -> Concepts:
    """Measure how well each sense, and E, tells some words from others."""
    import torch
    from torch.nn.functional import normalize

    from nanobackpack.model.backpack import BackpackLM

    tokenizer = needs_tokenizer(model.tokenizer)
    listed = one_token_ids(tokenizer, words)
    ids = [*listed, *other_ids(model, listed)]
    n, P, draw = len(listed), len(ids), torch.Generator().manual_seed(0)
    lists = [torch.arange(n), *(torch.randperm(P, generator=draw)[:n] for _ in range(draws))]
    vectors = [model.wte.weight.detach()[ids]]  # R of (P, D)
    if isinstance(model, BackpackLM):
        vectors = [*model.sense_vectors(ids).unbind(dim=1), *vectors]
    found, means = [], []
    for row in vectors:
        units = normalize(row.cpu().float(), dim=1)
        units = units - units.mean(dim=0)
        products = units @ units.T  # (P, P)
        each = [hidden_word(products[some], some) for some in lists]  # of each list (n)
        found.append(each[0])
        means.append(torch.stack([share.mean() for share in each]))  # (1 + draws)
    shares, chance = torch.stack(found), torch.stack(means)  # (R, n), (R, 1 + draws)
    auc, K, figures = chance[:, 0].clone(), len(vectors) - 1, {"E": mean_of(shares[-1])}
    if K:
        # The best of K senses is good by chance too. So it is compared with the best of each random list, and
        # for the interval chosen on each half of the words, and measured on the other.
        chance[:K] = chance[:K].amax(dim=0).clone()
        first = torch.arange(n) % 2 == 0
        a, b = (shares[:K, half].mean(dim=1).argmax() for half in (first, ~first))
        figures["sense of the other half"] = mean_of(torch.where(first, shares[b], shares[a]))
        figures["sense of the other half − E"] = figures["sense of the other half"] - figures["E"]
    null = chance[:, 1:] >= auc[:, None]  # (R, draws)
    return Concepts(
        title=f"{first_few(tokenizer.token(i).strip() for i in listed)}: {n} words told from {P - n} others",
        figures=figures,
        measures=[*(f"sense {sense}" for sense in range(K)), "E"],
        auc=auc.tolist(),
        p=((1 + null.sum(dim=1)) / (1 + draws)).tolist(),
    )


def hidden_word(products: Tensor, listed: Tensor) -> Tensor:
    """Give for each of n listed words the share of other words that lie less far along the direction of the
    list without it (n), of the products (n, P) of those words with all."""
    along = products.sum(dim=0) - products  # (n, P)
    own = along.gather(1, listed[:, None])  # (n, 1)
    below = (along < own).float() + (along == own).float() / 2  # (n, P)
    return (below.sum(dim=1) - below[:, listed].sum(dim=1)) / (products.size(1) - len(listed))


def one_token_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Give the ids of the words that are one token each; a note names the others."""
    rows = {word: encode_or_none(tokenizer.word_ids, word) or [] for word in words}
    if long := [word for word, row in rows.items() if len(row) != 1]:
        warnings.warn(f"left out, since they are not one token: {first_few(long)}", stacklevel=2)
    if len(found := dict.fromkeys(row[0] for row in rows.values() if len(row) == 1)) < 4:
        raise InputError(
            f"{len(found)} of {len(rows)} words are one token here, and 4 are needed: give others"
        )
    return list(found)


def other_ids(model: LanguageModel, listed: Sequence[int]) -> list[int]:
    """Choose words to tell the listed ones from: written alike, and about as frequent in the training text.
    Where its counts are not known, the ids stand for that: tokenizers number frequent tokens first."""
    import torch

    tokenizer, counts, V = needs_tokenizer(model.tokenizer), model.token_counts, model.config.n_token
    tokens = [tokenizer.token(i) for i in range(V)]
    forms = [(token.startswith(" "), token.strip().isalpha()) for token in tokens]
    wanted, own = {forms[i] for i in listed}, set(listed)
    others = [i for i in range(V) if forms[i] in wanted and i not in own]
    if len(others) < 20:
        raise InputError(f"{len(others)} other words of the vocabulary are written alike, and 20 are needed")
    # By its place among all tokens, the most frequent first.
    order = torch.arange(V) if counts is None else counts[:V].argsort(descending=True, stable=True)
    place = torch.empty(V, dtype=torch.long).scatter_(0, order, torch.arange(V))
    found, each = torch.tensor(others), math.ceil(OTHERS / len(listed))
    nearest = [(place[found] - place[i]).abs().argsort(stable=True)[:each] for i in listed]
    return found[torch.cat(nearest).unique()].tolist()
