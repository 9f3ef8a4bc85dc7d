"""Words as tokens: the ids that stand for a word, where it stands in a prompt, and how prompts begin."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nanobackpack.errors import InputError, WrongType

if TYPE_CHECKING:
    from nanobackpack.text.tokenizer import Bos, TextOrIds, Tokenizer


def needs_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer of a model; refuse a model that came without one."""
    if tokenizer is None:
        raise InputError(
            "this model came without a tokenizer, so words cannot be looked up: a model folder needs its "
            "tokenizer.json, a nanoBackpackLM checkpoint its data/DATASET here"
        )
    return tokenizer


def several(texts: Sequence[TextOrIds]) -> Sequence[TextOrIds]:
    """Refuse one text where a list of texts is wanted: Python would take it for a list of characters."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise WrongType("texts", "a list of texts", texts)
    return texts


def bos_ids(tokenizer: Tokenizer, wanted: Bos = True) -> list[int]:
    """Return what prompts begin with: the id that begins a document if it is wanted, or nothing."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if wanted == "auto":
        return [] if bos is None else [bos]
    if not wanted:
        return []
    first = eos if bos is None else bos  # GPT-2 has one token between documents: it ends and begins them
    if first is None:
        raise InputError("bos=True: this tokenizer has no token that begins a document, take bos=False")
    return [first]


def token_id(tokenizer: Tokenizer, word: TextOrIds | int) -> int:
    """Return the id of a word that must be one token."""
    ids = tokenizer.word_ids([word] if isinstance(word, int) else word)
    if len(ids) > 1:
        parts = ", ".join(repr(tokenizer.token(i)) for i in ids)
        raise InputError(
            f"{word!r} is {len(ids)} tokens here ({parts}), but one is needed: give a word of one token"
        )
    return ids[0]


def first_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Return the first token of each word, which stands for it where the papers take one token a word.

    A warning names those of several tokens: the first may be a poor piece, such as " di" of " diaries".
    """
    found = []
    for word in words:
        ids = tokenizer.word_ids(word)
        found.append(ids[0])
        if len(ids) > 1:
            first = tokenizer.token(ids[0])
            warnings.warn(f"{word!r} is {len(ids)} tokens: its first, {first!r}, stands for it", stacklevel=2)
    return found


def find_word(tokenizer: Tokenizer, ids: Sequence[int], word: TextOrIds) -> list[slice]:
    """Find a word among ids: each occurrence as a span of positions, with or without a space."""
    forms = [tokenizer.word_ids(word)]
    if isinstance(word, str) and tokenizer.named(word) is None:
        forms.append(tokenizer.encode(word))
    found = {
        (start, start + len(form))
        for form in forms
        for start in range(len(ids) - len(form) + 1)
        if list(ids[start : start + len(form)]) == form
    }
    return [slice(*span) for span in sorted(found)]
