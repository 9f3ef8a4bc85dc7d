"""A card for each sense of some words: what it is about, what it predicts, and where in a text it adds most.

    nanobackpack cards --out_dir=out-en --words king love
    nanobackpack cards --init_from=words-small --words king --held_out=text.txt --contexts=5 --json=cards.json

A card has the tokens that the sense scores highest and lowest, the words whose same sense is nearest, and
places in a text: with the word in brackets, and what the sense adds to the logit of the token that truly
follows, as `explain` splits it. The share behind a sense says how much of what the word does later is by it.
A label is three words that it scores far higher than others do, if it does so more than by chance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nanobackpack.analysis.results import report
from nanobackpack.commands.senses import warn_of_pieces
from nanobackpack.config import AnalysisConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.cost import CostConfig, open_windows

if TYPE_CHECKING:
    from nanobackpack.analysis.cards import SenseCards
    from nanobackpack.model.backpack import LanguageModel


@dataclass(frozen=True, kw_only=True)
class CardsConfig(AnalysisConfig, CostConfig):
    """A card for each sense of some words."""

    words: tuple[str, ...] = ()
    """Words to look at."""
    k: int = 6
    """Tokens in each list of a card."""
    contexts: int = 3
    """Places in the text for each sense, before different tokens (0: read no text)."""
    limit: int = 1 << 20
    """Tokens of the text to read, at most (0: all)."""
    bos: Literal["auto"] = "auto"
    """No effect: a text is read in windows, as in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "contexts", 0)
        if not self.words:
            raise InputError("words is empty: give at least one, as in --words king love")


def main(settings: CardsConfig) -> None:
    report(settings, lambda model: cards(model, settings))


def cards(model: LanguageModel, settings: CardsConfig) -> list[SenseCards]:
    """Make the cards of each word, with places in the text if there is one."""
    from nanobackpack.analysis.cards import sense_cards
    from nanobackpack.analysis.contexts import find_contexts
    from nanobackpack.analysis.senses import Senses

    senses, found = Senses(model), None  # refuses a GPT before anything is read
    warn_of_pieces(senses, settings.words)
    if settings.contexts:
        try:
            _, windows = open_windows(model, settings)
            found = find_contexts(model, settings.words, windows, settings.contexts, settings.limit)
        except InputError as error:
            if settings.held_out:
                raise
            warnings.warn(f"no places in a text are shown: give one with --held_out ({error})", stacklevel=2)
    return [sense_cards(senses, word, settings.k, found) for word in settings.words]
