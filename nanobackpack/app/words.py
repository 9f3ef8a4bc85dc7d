"""What do the senses of a word mean? A card for each sense, those of several words side by side.

view = words(model, ["king", "queen"], source="out-en")
suggest(model, "ki")        # ["king", "kind", ...]
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from urllib.parse import urlencode

from nanobackpack.analysis.cards import SenseCard, sense_cards
from nanobackpack.analysis.contexts import Context, Contexts, find_contexts
from nanobackpack.analysis.labels import NO_THEME
from nanobackpack.analysis.senses import Senses
from nanobackpack.app import html
from nanobackpack.app.characters import shown_tokens, text_of
from nanobackpack.app.view import View, command_of, python_of
from nanobackpack.errors import InputError
from nanobackpack.evaluate.cost import open_windows
from nanobackpack.evaluate.perplexity import PerplexityConfig
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import needs_tokenizer

MOST = 4  # words side by side
_READ = 1 << 13  # tokens of the text in which contexts are looked for
_PLACES = 2  # of each sense
_BEFORE, _AFTER = 60, 40  # characters of a context that are shown


def words(
    model: LanguageModel,
    words: Sequence[str],
    *,
    k: int = 8,
    source: str = "out",
    senses: Senses | None = None,
    contexts: Mapping[str, Contexts] | None = None,
    click: bool = True,
) -> View:
    """Show cards of the senses of words, with `contexts` in which they count if some were found. `senses` are
    the model's, if they are at hand: these know already what is near. `click` adds links of the explorer."""
    asked = list(dict.fromkeys(word for word in words if word))
    if not asked:
        raise InputError("no word is given: type one, such as king")
    senses = senses or Senses(model, bos="auto", special=True, typed=True)
    found = [sense_cards(senses, word, k, contexts) for word in asked]
    said: list[str] = []
    pieces: list[str] = []
    for same in sorted(
        zip(*(cards.cards for cards in found), strict=True), key=_rank
    ):  # a sense of each word
        pieces += [_card(senses.tokenizer, card, len(found) > 1, click) for card in same]
    shape = f"--n:{len(found)}" if len(found) > 1 else None
    for word in asked:
        if len(ids := senses.tokenizer.word_ids(word)) > 1:
            shown = shown_tokens(senses.tokenizer, [senses.tokenizer.token(i) for i in ids])
            parts = ", ".join(map(repr, shown))
            said.append(f"{word!r} is {len(ids)} tokens ({parts}): shown is the mean of their senses")
    return View(
        html=html.show(html.note(*said), html.tag("div", *pieces, class_="nb-cards", style=shape)),
        results=[*found],
        drawn=[*found],
        python=python_of(
            source,
            f"words = {asked!r}",
            "from nanobackpack.analysis.cards import sense_cards",
            *(["from nanobackpack.app.words import contexts_of"] if contexts else []),
            f"contexts = {f'contexts_of(model, words, {source!r})' if contexts else None}",
            "for word in words:",
            f"    print(sense_cards(senses, word, k={k}, contexts=contexts).table())",
        ),
        command=command_of(
            "cards",
            source,
            f"--k={k}",
            *([f"--contexts={_PLACES}", f"--limit={_READ}"] if contexts else ["--contexts=0"]),
            "--words",
            *asked,
        ),
        state={"words": ",".join(asked)},
    )


def contexts_of(model: LanguageModel, words: Sequence[str], source: str) -> dict[str, Contexts] | None:
    """Find where senses of words count most in the text that was held out; None if that is not here."""
    try:
        _, windows = open_windows(model, _Where(init_from=source))
    except InputError:
        return None
    return find_contexts(model, words, windows, _PLACES, _READ)


class _Where(PerplexityConfig):
    """Where the text is: beside the run."""

    held_out = ""


def suggest(model: LanguageModel, prefix: str, n: int = 20) -> list[str]:
    """List words of one token that begin with some letters, the more frequent ones first."""
    tokenizer, counts = needs_tokenizer(model.tokenizer), model.token_counts
    begin = prefix.strip().casefold()
    ids = [i for i, text in enumerate(_texts(tokenizer)) if text.casefold().startswith(begin) and text]
    if counts is not None:
        ids.sort(key=lambda i: -int(counts[i]))
    # A token that is no word, but the rest of one, is shown with its id, and not suggested.
    shown = ((i, tokenizer.token(i)) for i in ids if i not in tokenizer.special.values())
    return list(islice((text.strip(" ") for i, text in shown if not text.endswith(f"<#{i}>")), n))


@lru_cache(maxsize=4)
def _texts(tokenizer: Tokenizer) -> list[str]:
    """List the text of each token, without blanks around it."""
    return [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab_size)]


def first_words(words: Sequence[str]) -> list[str]:
    """Give the words that stand side by side, and say which do not."""
    if rest := words[MOST:]:
        names = ", ".join(map(repr, rest[:20]))
        warnings.warn(f"{len(words)} words are given: shown are the first {MOST}, not {names}", stacklevel=2)
    return [*words[:MOST]]


def _rank(same: Sequence[SenseCard]) -> tuple[bool, float]:
    """Put cards with a clear theme first, and of these the sense that does most, where a text has shown it,
    or else the one that scores a token highest."""
    clear = [card for card in same if card.label != NO_THEME]
    strengths = [card.top[0].score if card.share is None else card.share for card in clear or same]
    return not clear, -max(strengths) if clear else same[0].sense


def _card(tokenizer: Tokenizer, card: SenseCard, named: bool, click: bool) -> str:
    title = f"{card.word} · sense {card.sense}" if named else f"sense {card.sense}"
    share = f"{card.share:.0%} of its effect" if card.share is not None else ""
    rows = {
        "says": html.tokens(token for token, _ in card.top),
        "not": html.tokens(token for token, _ in card.bottom),
        "is like": html.tokens(token for token, _ in card.nearest),
    }
    lists = (html.tag("dt", name) + html.tag("dd", tokens) for name, tokens in rows.items())
    link = ""
    if click:
        query = urlencode({"tab": "steer", "scale": json.dumps([[card.word, card.sense, 0]])})
        link = html.tag("a", "steer it", href=f"?{query}")
    heading = html.tag("h4", html.tag("span", html.escape(title)), html.tag("small", share), link)
    label = html.tag(
        "p", html.escape(card.label), class_="nb-label" if card.label != NO_THEME else "nb-about"
    )
    places = [_context(tokenizer, context) for context in card.contexts]
    return html.tag("article", heading, label, html.tag("dl", *lists), *places, class_="nb-card")


def _context(tokenizer: Tokenizer, context: Context) -> str:
    """Show a place in a text: the word marked, and at its end what follows, which the sense helped to say."""
    before = text_of(tokenizer, context.tokens[: context.source])[-_BEFORE:]
    after = text_of(tokenizer, context.tokens[context.source + 1 :])[-_AFTER:]
    return html.tag(
        "p",
        html.escape(before),
        html.tag("mark", html.escape(context.tokens[context.source])),
        html.escape(after),
        html.tag("b", " → ", html.token(context.next)),
        html.tag("small", f" {html.signed(context.contribution)}"),
        class_="nb-context",
    )
