"""A card for each sense of a word: what it is about, which tokens it scores, and where it is used.

senses = nb.Senses(model)
print(sense_cards(senses, "king").table())
found = find_contexts(model, ["king"], windows)       # contexts.py: places in a text
print(sense_cards(senses, "king", contexts=found).table())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nanobackpack.analysis import heat_map, results
from nanobackpack.analysis.contexts import Context, Contexts
from nanobackpack.analysis.labels import labels
from nanobackpack.analysis.results import Scored
from nanobackpack.analysis.senses import Senses
from nanobackpack.errors import escape_controls


@dataclass(frozen=True, kw_only=True)
class SenseCard:
    """One sense of a word."""

    word: str
    sense: int
    label: str  # three words that it singles out, or "no clear theme"
    top: list[Scored]  # the tokens with the highest E · C
    bottom: list[Scored]  # those with the lowest
    nearest: list[Scored]  # the tokens whose same sense points the same way, with the cosine
    contexts: list[Context]  # where it adds most to what follows; none without a text
    share: float | None  # how much of what the word does to later predictions is by it (Contexts.share)


@dataclass(frozen=True, kw_only=True)
class SenseCards(results.Result):
    """The cards of one word, of sense 0 first."""

    word: str
    cards: list[SenseCard]
    occurrences: int | None  # of the word in the text; None without a text

    def table(self) -> str:
        return "\n".join([f"# {self.title}", *(line for card in self.cards for line in _lines(card))])

    def records(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = results.to_json_values(self.cards)
        return rows

    def plot(self, path: str) -> None:
        """Write the tokens that each sense scores highest as a PNG."""
        scores = torch.tensor([[score for _, score in card.top] for card in self.cards])  # (K, N)
        senses, ranks = [f"sense {card.sense}" for card in self.cards], map(str, range(1, scores.size(1) + 1))
        tokens = [[repr(token) for token, _ in card.top] for card in self.cards]
        heat_map.draw(path, self.title, heat_map.Grid(scores, senses, [*ranks], tokens))


def sense_cards(
    senses: Senses, word: str, k: int = 8, contexts: Mapping[str, Contexts] | None = None
) -> SenseCards:
    """Make the cards of a word, with k tokens in each list, and what find_contexts has found of it."""
    found, names = contexts[word] if contexts else None, labels(senses, word)
    top, bottom = (senses.sense_projection(word, k, bottom=bottom) for bottom in (False, True))
    nearest = senses.nearest(word, k)
    cards = [
        SenseCard(
            word=word,
            sense=sense,
            label=names[sense],
            top=top[sense],
            bottom=bottom[sense],
            nearest=nearest[sense],
            contexts=found.contexts[sense] if found else [],
            share=found.share[sense] if found and found.share else None,
        )
        for sense in range(len(names))
    ]
    title, times = (f"{word}, {found.occurrences:,} times", found.occurrences) if found else (word, None)
    return SenseCards(title=title, word=word, cards=cards, occurrences=times)


def _lines(card: SenseCard) -> list[str]:
    """Show a card, in its contexts the word in brackets."""
    share = "" if card.share is None else f" ({card.share:.0%})"
    lines = [f"  sense {card.sense}{share}: {escape_controls(card.label)}"]
    for name in ("top", "bottom", "nearest"):
        lines.append(f"    {name:9}" + "  ".join(repr(token) for token, _ in getattr(card, name)))
    for c in card.contexts:
        before, word, after = (
            "".join(c.tokens[: c.source]),
            c.tokens[c.source],
            "".join(c.tokens[c.source + 1 :]),
        )
        space = word[: len(word) - len(word.lstrip())]
        after = after if len(after) < 60 else f"{after[:20]} … {after[-30:]}"
        text = " ".join(f"{before[-40:]}{space}[{word.lstrip()}]{after}".split())
        there = f"{c.next!r}, likeliest {c.predicted!r}"
        lines.append(f"    {c.contribution:+.2f}    {escape_controls(text)} → {there}")
    return lines
