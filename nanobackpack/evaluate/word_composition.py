"""How the tokens of a word share its weight, sense by sense, and whether that depends on the context.

    nanobackpack word_composition --out_dir=out-zh --word 新闻 --sentences sentences.txt
    nanobackpack word_composition --out_dir=out-zh --word 曹操 --sentences sentences.txt --plot shares.png

`sentences` is a text file with one sentence a line; lines without the word are passed over, and so, with a
note, are those longer than block_size or with characters the model does not know. Each row of the table is a
sense: the mean share of each token, and how far the first one's share strays from its mean. A model that has
learned nothing shares weight evenly everywhere: consistent is only what strays less than the untrained do.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanobackpack.analysis.results import Composition
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.scoring import numbered_lines

if TYPE_CHECKING:
    from nanobackpack.analysis.senses import Senses


@dataclass(frozen=True, kw_only=True)
class WordCompositionConfig(AnalysisConfig, controls.ControlsConfig):
    """How the tokens of a word share its weight over some sentences."""

    word: str = ""
    """A word of two tokens or more."""
    sentences: str = ""
    """A text file with one sentence a line."""
    plot: str = ""
    """Also draw the mean shares to this PNG."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sentences:
            raise InputError("sentences is empty: name a text file with one sentence a line")


@dataclass(frozen=True, kw_only=True)
class WordComposition(Composition, controls.Evaluation):
    """How the tokens of a word share its weight; figures are means over its occurrences."""


def main(settings: WordCompositionConfig) -> None:
    from nanobackpack.analysis.senses import Senses

    lines = list(numbered_lines(settings.sentences))
    controls.report(
        settings, lambda model: word_composition(Senses(model, settings.bos), settings.word, lines)
    )


def word_composition(senses: Senses, word: str, lines: list[tuple[int, str]]) -> WordComposition:
    """Analyse the sentences, given with their numbers, that the model can read; warn of the others."""
    sentences, left_out = [], []
    for number, line in lines:
        try:
            senses.encode(line)
            sentences.append(line)
        except InputError as error:
            left_out.append(f"line {number}: {error}")
    if left_out:
        warnings.warn(f"{len(left_out)} sentences are left out, the first in {left_out[0]}", stacklevel=2)
    found = senses.word_composition(word, sentences)
    strays = found.deviation.cpu()  # (S, K)
    return WordComposition(
        **vars(found),
        figures={
            "deviation, mean of all senses": controls.mean_of(strays.mean(dim=1)),
            "deviates by less than 0.1": controls.mean_of((strays < 0.1).double().mean(dim=1)),
        },
    )
