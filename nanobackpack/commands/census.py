"""Say what every sense does over a text: what removing it costs, what it adds to the logits, where it looks.

    nanobackpack census --out_dir=out-en
    nanobackpack census --init_from=words-small --held_out=text.txt --plot=census.png --json=census.json

A row a sense: what the loss rises by without it, in nats a token, with 95 % intervals over windows; its share
of the logits' variance; the entropy of α and the positions it is spread over; α on the token itself, the one
before and the window's first; the length of its vectors; the sense most like it (mean cosine). Then what all
senses a little smaller cost, and the mean of three untrained models. analysis/census.py has the formulas, and
says when a sense is dead or a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from nanobackpack.analysis.results import report
from nanobackpack.config import AnalysisConfig
from nanobackpack.evaluate.controls import intervals, mean_of, untrained
from nanobackpack.evaluate.cost import CostConfig, open_windows

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.analysis.census import Census
    from nanobackpack.model.backpack import LanguageModel

UNTRAINED_WINDOWS = 10  # models that know nothing differ little from window to window


@dataclass(frozen=True, kw_only=True)
class CensusConfig(AnalysisConfig, CostConfig):
    """What every sense does over a text."""

    bos: Literal["auto"] = "auto"
    """No effect: windows of a text are read as in training."""
    limit: int = 100
    """Windows of the text to read, the first ones (0: all)."""
    controls: bool = True
    """Also count three untrained copies of the model."""
    plot: str = ""
    """Also draw cost, variance and α of each sense to this PNG."""


def main(settings: CensusConfig) -> None:
    report(settings, lambda model: measure(model, settings))


def measure(model: LanguageModel, settings: CensusConfig) -> Census:
    """Count the senses, with intervals, and those of untrained models if the settings ask for them."""
    from nanobackpack.analysis.census import census

    name, windows = open_windows(model, settings)
    found = census(model, first(windows, settings.limit))
    columns = {str(sense): mean_of(values, found.sizes) for sense, values in enumerate(found.by_window.T)}
    others = []
    for seed in range(3 if settings.controls else 0):
        some = first(open_windows(model, settings)[1], UNTRAINED_WINDOWS)
        others.append(census(untrained(model, seed), some))
    title = f"what every sense does: {found.tokens:,} tokens of {name}, loss {found.loss:.4f}"
    return replace(found, title=title, interval=list(intervals(columns).values()), untrained=others)


def first(batches: Iterator[tuple[Tensor, Tensor]], limit: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first windows of batches, all for 0."""
    left = limit
    for x, y in batches:  # (B, T) each
        yield (x[:left], y[:left]) if limit else (x, y)
        left -= len(x)
        if limit and left <= 0:
            return
