"""Text → ids as analysis and evaluation need them: prompts, words, and where words stand in a prompt.

Nothing is added to a text unless asked for: ids are content ids, and the tokens that begin and end a
document (BOS, EOS) come apart. A text may also be given as its ids, a list of numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

from nanobackpack.config import InputError
from nanobackpack.tokenizers import Tokenizer

Text = str | Sequence[int]
Bos = bool | Literal["auto"]
"""Whether prompts begin with the token that begins a document; "auto": if the tokenizer has one, as
`Tokenizer.prompt_ids` and so sample.py does."""


class Encoded(NamedTuple):
    """The content ids of a text, and the ids that begin and end a document (None: there is none)."""

    ids: list[int]
    bos: int | None
    eos: int | None


def encode(tokenizer: Tokenizer, text: Text) -> Encoded:
    """A text as it stands. Raises: InputError for a character or an id that the tokenizer does not know."""
    if isinstance(text, str):
        ids = tokenizer.encode(text)
    else:
        ids = [int(i) for i in text]
        for i in ids:
            tokenizer.token(i)  # raises for an id that does not exist
    return Encoded(ids, tokenizer.bos_id, tokenizer.eos_id)


def needs_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Raises InputError for a model that came without one."""
    if tokenizer is None:
        raise InputError(
            "this model came without a tokenizer, so words cannot be looked up: a model folder needs its "
            "tokenizer.json, a nanoBackpackLM checkpoint its data/DATASET here"
        )
    return tokenizer


def bos_ids(tokenizer: Tokenizer, wanted: Bos = True) -> list[int]:
    """What prompts begin with: the id that begins a document if it is wanted, or nothing. GPT-2's
    tokenizer has one id for the end of a document and the beginning of the next.

    Raises: InputError if it is wanted and there is none.
    """
    _, bos, eos = encode(tokenizer, [])
    if wanted == "auto":
        return [] if bos is None else [bos]
    if not wanted:
        return []
    if bos is None and eos is None:
        raise InputError("bos=True: this tokenizer has no token that begins a document, take bos=False")
    return [eos if bos is None else bos]  # type: ignore[list-item]


def word_ids(tokenizer: Tokenizer, word: Text) -> list[int]:
    """The ids of a word as it stands inside a text.

    That is " word" for tokenizers that join the space to the word, as GPT-2's does and the papers' tests
    ask for; a space that is a token of its own is left away. A word that begins with a space or is given
    as ids is taken as it is.
    Raises: InputError for a word that is empty or has characters the tokenizer does not know.
    """
    if not isinstance(word, str) or tokenizer.kind == "char" or word[:1].isspace():
        ids = encode(tokenizer, word).ids
    else:
        ids = encode(tokenizer, " " + word).ids if word else []
        while ids and not tokenizer.decode(ids[:1]).strip():
            ids = ids[1:]
    if not ids:
        raise InputError("an empty word has no senses: give at least one character")
    if isinstance(word, str) and unknown_id(tokenizer) in ids:
        raise InputError(f"unknown word {word!r}: this tokenizer has no tokens for all of it")
    return ids


def token_id(tokenizer: Tokenizer, word: Text | int) -> int:
    """The id of a word that is one token. Raises: InputError, also if it is several."""
    ids = word_ids(tokenizer, [word] if isinstance(word, int) else word)
    if len(ids) > 1:
        parts = ", ".join(repr(tokenizer.token(i)) for i in ids)
        raise InputError(
            f"{word!r} is {len(ids)} tokens here ({parts}), but one is needed: give a word of one token"
        )
    return ids[0]


def first_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """The first token of each word, which stands for it where the papers' control takes one token a word,
    even where that is a poor piece such as " di" of " diaries"; a warning then names it.

    Raises: InputError for a word that is empty or unknown.
    """
    found = []
    for word in words:
        ids = word_ids(tokenizer, word)
        found.append(ids[0])
        if len(ids) > 1:
            first = tokenizer.token(ids[0])
            warnings.warn(f"{word!r} is {len(ids)} tokens: its first, {first!r}, stands for it", stacklevel=2)
    return found


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what a tokenizer cannot spell, None if it has none."""
    found = (tokenizer.id(name) for name in ("[UNK]", "<unk>"))
    return next((i for i in found if i is not None), None)


def spans(tokenizer: Tokenizer, ids: Sequence[int], word: Text) -> list[slice]:
    """Where a word stands among ids: each occurrence as a span of positions, whether or not a space
    is joined to it. Raises: as `word_ids`."""
    forms = [word_ids(tokenizer, word)]
    if isinstance(word, str) and (bare := encode(tokenizer, word).ids) not in forms:
        forms.append(bare)
    found = {
        (start, start + len(form))
        for form in forms
        for start in range(len(ids) - len(form) + 1)
        if list(ids[start : start + len(form)]) == form
    }
    return [slice(*span) for span in sorted(found)]
