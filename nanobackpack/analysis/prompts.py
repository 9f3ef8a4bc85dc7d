"""Prompts as a model reads them: where they begin, what of them is cut, and whether training had their like.

    ids = as_read(model, tokenizer.prompt_ids("Once a "))     # warns: the training text has no ' ' like this

How often each id occurs in the training text is counted when it is prepared; a model that does not know this
says nothing about it.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanobackpack.errors import InputError, short_repr
from nanobackpack.safe.files import with_lf
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Tokenizer


def cleaned(text: str, newlines: str = "lf", normalize: str = "none") -> str:
    """Return a prompt as `prepare` would read it from a file: without a byte order mark, its line ends "\\n"
    and its letters composed if they are to be."""
    text = text.removeprefix("\ufeff")
    text = with_lf(text) if newlines == "lf" else text
    return unicodedata.normalize("NFC", text) if normalize == "nfc" else text


def warn_of_names(tokenizer: Tokenizer, text: str, where: str, way: str) -> None:
    """Warn if a text that is read as it stands has names of special tokens."""
    if named := [name for name in tokenizer.special if name in text]:
        warnings.warn(f"{where} has {named[0]!r}, which is read as text: {way}", stacklevel=1)


def usual_start(model: LanguageModel) -> list[int]:
    """Return the ids that texts from nothing begin with: what begins a document, else a line end, else the
    most frequent token; the first that the training text has, as far as that is known."""
    tokenizer, counts = needs_tokenizer(model.tokenizer), model.token_counts
    line_end = tokenizer.encode("\n") if tokenizer.kind != "char" or tokenizer.id("\n") is not None else []
    for ids in (tokenizer.prompt_ids(""), line_end):
        if ids and (counts is None or counts[ids[-1]]):
            return ids
    if counts is None:
        raise InputError("this tokenizer has no token to begin a text with, not even a new line")
    frequent = counts.argsort(descending=True, stable=True).tolist()
    return [next((i for i in frequent if "\ufffd" not in tokenizer.decode([i])), frequent[0])]


def as_read(model: LanguageModel, ids: list[int]) -> list[int]:
    """Return what a model reads of a prompt: its end, if it is longer than the context. Warn of what is cut,
    and of a last token that never occurs in the training text."""
    tokenizer, counts = needs_tokenizer(model.tokenizer), model.token_counts
    (ids,) = cut_to_context(model, [ids])
    if counts is not None and not counts[ids[-1]]:
        text = tokenizer.decode(ids[-1:])
        way = "end it in another word"
        if text.isspace():
            way = "leave the line end out" if "\n" in text else "leave the space at its end out"
        elif ids[-1] in tokenizer.special.values():
            way = "give a text"
        what = f"the prompt ends in {tokenizer.token(ids[-1])!r}, which the training text does not have"
        warnings.warn(f"{what}, so what follows is a guess: {way}", stacklevel=1)
    return ids


def cut_to_context(model: LanguageModel, rows: Sequence[list[int]]) -> list[list[int]]:
    """Cut rows of ids that are longer than the context on the left, and warn of it."""
    size = model.config.block_size
    if long := [row for row in rows if len(row) > size]:
        what = f"{len(long):,} of {len(rows):,} texts are longer than block_size={size}: their beginnings are"
        if len(rows) == 1:
            begin = short_repr(needs_tokenizer(model.tokenizer).decode(long[0][-size:][:20]).strip("\ufffd"))
            what = f"the prompt has {len(long[0]):,} tokens, this model reads {size}: all before {begin} is"
        warnings.warn(f"{what} cut", stacklevel=1)
    return [row[-size:] for row in rows]
