"""What each sense of some words predicts: the tokens it scores highest, then those it scores lowest.

    nanobackpack senses --out_dir=out-zh --words 天 武 快 冯
    nanobackpack senses --init_from=stanfordnlp/backpack-gpt2 --words tasty quickly --k 6 --sense 12
    nanobackpack senses --out_dir=out --words tasty --plot tasty.png
    nanobackpack senses --out_dir=out --words tasty --neighbours

A sense vector lives in the space of the output embedding, so E · C(x)_l is a logit lens on a sense: a score
for each token of the vocabulary. experiments/sense_vector.py is made to be changed, to look at other things.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nanobackpack.analysis.results import Ranking, report
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError

if TYPE_CHECKING:
    from nanobackpack.analysis.senses import Senses
    from nanobackpack.model.backpack import LanguageModel


@dataclass(frozen=True, kw_only=True)
class SenseConfig(AnalysisConfig):
    """What the senses of some words predict: for each sense the tokens it scores highest and lowest."""

    words: tuple[str, ...] = ("a", "e", "c", "s", "t")
    """Words to look at."""
    k: int = 5
    """Tokens to list for each sense."""
    sense: int = -1
    """Only this sense, counted from 0 (-1: all)."""
    neighbours: bool = False
    """List instead the tokens whose senses point the same way as the word's (cosine, not E · C)."""
    plot: str = ""
    """Also draw the first word's table to this PNG; the colour is the score."""
    strict: bool = True
    """Accepted for nanoBackpackLM's command; unknown weights are refused either way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.words:
            raise InputError("words is empty: give at least one, as in --words a e c")


def main(settings: SenseConfig) -> None:
    report(settings, lambda model: listings(model, settings))


def listings(model: LanguageModel, settings: SenseConfig) -> list[list[Ranking]]:
    """List for each word what the settings ask for: the highest and the lowest scores, or neighbours."""
    from nanobackpack.analysis.senses import Senses

    senses, k = Senses(model, settings.bos), settings.k
    warn_of_pieces(senses, settings.words)
    sense: int | Literal["all"] = "all" if settings.sense < 0 else settings.sense
    if settings.neighbours:
        return [[ranking] for ranking in senses.nearest_many(settings.words, k, sense)]
    return [
        [senses.sense_projection(word, k, bottom=bottom, sense=sense) for bottom in (False, True)]
        for word in settings.words
    ]


def warn_of_pieces(senses: Senses, words: Sequence[str]) -> None:
    """Say which words are several tokens, and what is shown of them."""
    for word in words:
        if len(ids := senses.tokenizer.word_ids(word)) > 1:
            parts = ", ".join(repr(senses.tokenizer.token(i)) for i in ids)
            what = f"{word!r} is {len(ids)} tokens ({parts}): shown is the mean of their senses"
            warnings.warn(what, stacklevel=3)
