"""Text <-> token ids: one class over the `tokenizers` library, stored as one self-contained JSON.

Characters only so far; a tokenizer.json of another kind can be read and used, but not made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers

from nanobackpack.config import InputError
from nanobackpack.files import MEGABYTE, read_bytes, replacing, shown
from nanobackpack.foreign import check_tokenizer


class Tokenizer:
    """Turns text into content ids (never special tokens) and back.

    >>> tokenizer = Tokenizer.char("banana")
    >>> tokenizer.encode("nab"), tokenizer.decode([1, 0, 2])
    ([2, 0, 1], 'ban')
    """

    def __init__(self, inner: hf.Tokenizer) -> None:
        inner.no_truncation()  # a foreign tokenizer.json may ask for either; our texts stay whole
        inner.no_padding()
        self._inner = inner
        self._ids: dict[str, int] = inner.get_vocab()
        self._symbols: dict[int, str] = {i: symbol for symbol, i in self._ids.items()}
        self.kind = _kind(inner)
        """char, or the type of the library's model: bpe, wordpiece, unigram, wordlevel."""

    @classmethod
    def char(cls, text: str) -> Tokenizer:
        """One symbol for each different character of `text`, numbered in code point order."""
        return cls.from_symbols(sorted(set(text)))

    @classmethod
    def from_symbols(cls, symbols: Sequence[str]) -> Tokenizer:
        """A character tokenizer that gives symbols[i] the id i.

        Raises InputError unless `symbols` are one or more distinct single characters.
        """
        for symbol in symbols:
            if len(symbol) != 1 or "\ud800" <= symbol <= "\udfff":
                raise InputError(f"{symbol!r} cannot be a symbol: it is not one Unicode character")
        if not symbols or len(set(symbols)) < len(symbols):
            raise InputError("a character tokenizer needs one or more characters, all different")
        vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
        inner = hf.Tokenizer(models.WordLevel(vocabulary, unk_token=""))
        inner.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        return cls(inner)

    @classmethod
    def from_json(cls, text: str, source: str = "the tokenizer") -> Tokenizer:
        """The inverse of `to_json`. Raises InputError, naming `source`, on anything else."""
        check_tokenizer(text, source)
        with _library(f"{source} is not a tokenizer.json"):
            tokenizer = cls(hf.Tokenizer.from_str(text))
        if tokenizer.vocab_size > 2 * len(tokenizer._ids) + 1000 or len(tokenizer._symbols) < len(
            tokenizer._ids
        ):
            raise InputError(f"{source} does not number its tokens: they must have the ids 0, 1, 2, ...")
        return tokenizer

    def to_json(self) -> str:
        """All of the tokenizer as one JSON text."""
        return self._inner.to_str()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a tokenizer.json. Raises InputError if it is missing or malformed."""
        command = prepare_command(Path(path).parent)
        try:
            text = read_bytes(Path(path), 100 * MEGABYTE).decode()
            return cls.from_json(text, shown(path))
        except OSError as error:
            raise InputError(f"cannot read {shown(path)} ({error.strerror}): {command}") from None
        except ValueError as error:  # not UTF-8, or not a tokenizer
            reason = error if isinstance(error, InputError) else f"{shown(path)} is not UTF-8"
            raise InputError(f"{reason}: {command}") from None

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, atomically."""
        with replacing(Path(path)) as file:
            file.write(self.to_json().encode())

    @property
    def vocab_size(self) -> int:
        """Number of ids, from 0 to the highest one; no padding."""
        return max(self._symbols, default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Raises InputError for a character a char tokenizer does not know."""
        if self.kind != "char":
            with _library("this tokenizer cannot encode the text"):
                return self._inner.encode(text, add_special_tokens=False).ids
        self._check_known(text)
        return [self._ids[c] for c in text]  # what the library returns, many times faster

    def encode_array(self, text: str, dtype: np.dtype[Any]) -> np.ndarray:
        """As `encode`, but an array (N,) of `dtype`: a fraction of the memory for a long text."""
        if self.kind != "char":
            return np.array(self.encode(text), dtype)
        self._check_known(text)
        return np.fromiter(map(self._ids.__getitem__, text), dtype, len(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Raises InputError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        symbols = [self.token(i) for i in ids]
        if self.kind == "char":
            return "".join(symbols)
        with _library("this tokenizer cannot decode the ids"):
            return self._inner.decode(ids, skip_special_tokens=False)

    def token(self, id: int) -> str:
        """How one id is shown in tables. Raises InputError for an id outside the vocabulary."""
        try:
            return self._symbols[id]
        except KeyError:
            raise InputError(
                f"id {id} is not in the vocabulary: ids go from 0 to {self.vocab_size - 1}"
            ) from None

    def id(self, token: str) -> int | None:
        """The id of a token, None if there is no such token."""
        return self._ids.get(token)

    def _check_known(self, text: str) -> None:
        unknown = set(text) - self._ids.keys()
        if unknown:
            at, c = next((i, c) for i, c in enumerate(text) if c in unknown)
            raise InputError(
                f"unknown character {c!r} (U+{ord(c):04X}) at position {at}: this tokenizer knows "
                f"only the {len(self._ids)} different characters of the text it was made from"
            )


@contextmanager
def _library(problem: str) -> Iterator[None]:
    """Turns what the library raises, bare Exceptions and panics, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{problem} ({reason})") from None


def build(name: str, text: str) -> Tokenizer:
    """The tokenizer called `name`, made from `text`. Raises InputError for any name but "char"."""
    if name != "char":
        raise InputError(f"tokenizer={name!r} is not supported yet: only 'char' is available so far")
    return Tokenizer.char(text)


def _kind(inner: hf.Tokenizer) -> str:
    """The kind of a tokenizer; what `from_symbols` makes is recognised by what it does."""
    kind = type(inner.model).__name__.lower()
    single = kind == "wordlevel" and inner.normalizer is None and inner.pre_tokenizer is not None
    single = single and all(len(symbol) == 1 for symbol in inner.get_vocab())
    single = single and len(inner.pre_tokenizer.pre_tokenize_str("ab \n")) == 4
    return "char" if single else kind


def prepare_command(folder: Path) -> str:
    """What to run to make the data set in `folder`."""
    if (folder / "prepare.py").is_file():
        return f"make it with `python {shown(folder)}/prepare.py`"
    name = folder.resolve().name
    return f"make it with `python data/textfiles/prepare.py FILE --name={name}`"
