"""A card for each sense of a word: what it predicts, which words are like it, and where it is used.

senses = nb.Senses(model)
print(sense_cards(senses, "king").table())
found = find_contexts(model, ["king"], windows)       # contexts.py: places in a text
print(sense_cards(senses, "king", contexts=found).table())
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanobackpack.analysis import results
from nanobackpack.analysis.contexts import Context, Contexts
from nanobackpack.analysis.results import Scored
from nanobackpack.analysis.senses import Senses
from nanobackpack.errors import escape_controls

LISTS = ("top", "bottom", "nearest")


@dataclass(frozen=True, kw_only=True)
class SenseCard:
    """One sense of a word."""

    word: str
    sense: int
    label: str
    """What it is about, in a few words; "no clear theme" where it singles out nothing."""
    top: list[Scored]
    """The tokens it scores highest, with E · C."""
    bottom: list[Scored]
    """The tokens it scores lowest."""
    nearest: list[Scored]
    """The tokens whose same sense points the same way, with the cosine."""
    contexts: list[Context]
    """Where it adds most to what follows; none without a text."""
    share: float | None
    """How much of what the word does to later predictions is by this sense (`Contexts.share`)."""


@dataclass(frozen=True, kw_only=True)
class SenseCards(results.Result):
    """The cards of one word, sense 0 first."""

    word: str
    cards: list[SenseCard]
    occurrences: int | None = None
    """Of the word in the text that was read; None without a text."""

    def table(self) -> str:
        return f"# {self.title}\n" + "\n".join(map(_shown, self.cards))

    def records(self) -> list[dict[str, Any]]:
        """List the cards, one row each; of what is listed on a card the tokens."""
        return [
            {
                "word": card.word,
                "sense": card.sense,
                "label": card.label,
                "share": card.share,
                **{
                    name: [token for token, _ in getattr(card, name)] for name in ("top", "bottom", "nearest")
                },
                "contexts": ["".join(c.tokens) for c in card.contexts],
            }
            for card in self.cards
        ]


def sense_cards(
    senses: Senses, word: str, k: int = 8, contexts: Mapping[str, Contexts] | None = None
) -> SenseCards:
    """Make the cards of a word, with k tokens in each list."""
    found = contexts[word] if contexts else None
    K = senses.model.config.n_sense_vector
    top = senses.sense_projection(word, k)
    bottom = senses.sense_projection(word, k, bottom=True)
    nearest = senses.nearest(word, k)
    cards = [
        SenseCard(
            word=word,
            sense=sense,
            label=", ".join(token.strip() for token, _ in top[sense][:3]),
            top=top[sense],
            bottom=bottom[sense],
            nearest=nearest[sense],
            contexts=found.contexts[sense] if found else [],
            share=found.share[sense] if found and found.share else None,
        )
        for sense in range(K)
    ]
    title = word if found is None else f"{word}, {found.occurrences:,} times in the text"
    return SenseCards(
        title=title, word=word, cards=cards, occurrences=None if found is None else found.occurrences
    )


def _shown(card: SenseCard) -> str:
    """Show a card as some lines, a context on one line with the word in brackets."""
    share = "" if card.share is None else f" ({card.share:.0%})"
    lines = [f"  sense {card.sense}{share}: {escape_controls(card.label)}"]
    for name in LISTS:
        lines.append(f"    {name:8} " + "  ".join(repr(token) for token, _ in getattr(card, name)))
    for c in card.contexts:
        before, after = "".join(c.tokens[: c.source]), "".join(c.tokens[c.source + 1 :])
        text = " ".join(f"{before[-40:]}[{c.tokens[c.source]}]{after[-40:]}".split())
        lines.append(
            f"    {c.contribution:+.2f}    {escape_controls(text)} → {c.next!r}, likeliest {c.predicted!r}"
        )
    return "\n".join(lines)
