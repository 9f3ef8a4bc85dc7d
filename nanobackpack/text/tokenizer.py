"""Text <-> token ids: one class over the `tokenizers` library, stored as one self-contained JSON file.

    tokenizer = make_tokenizer("bpe:8192", texts)  made from texts: char, or byte-level BPE of N tokens
    ids = tokenizer.encode("To be")
    tokenizer.word_ids("sky")                      the ids of a word as it stands inside a text: " sky"

Text becomes content ids only: what looks like a special token in a text is ordinary text. Whoever needs a
special token asks for it by its role, `bos_id` begins a document, `eos_id` ends it, or for all that the text
names with special=True.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from nanobackpack.errors import InputError, WrongType, first_line, short_repr, whole_numbers
from nanobackpack.safe.files import MEGABYTE, decode_text, display_path, read_bytes, writing
from nanobackpack.safe.run import start_aside
from nanobackpack.safe.texts import check_tokenizer
from nanobackpack.text.wordpiece import join_words

TextOrIds = str | Sequence[int]
"""A text, or its ids."""
Bos = bool | Literal["auto"]
"""Whether prompts begin with the token that begins a document; "auto": if the tokenizer has one, as
`Tokenizer.prompt_ids` and so `nanobackpack sample` does."""

END_OF_TEXT = "<|endoftext|>"
# What the special tokens are called in BERT, XLM-R, GPT-2 and their kin, by their role.
BOS = ("[CLS]", "<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<BOS>", "<|startoftext|>")
EOS = ("[SEP]", "</s>", END_OF_TEXT, "<|end_of_text|>", "<eos>", "[EOS]", "<EOS>", "<|im_end|>")
UNKNOWN = ("[UNK]", "<unk>")
MARKS = (*BOS, *EOS, "[PAD]", "<pad>")  # these stand around texts, never in them
SPECIAL = (*MARKS, *UNKNOWN, "[MASK]", "<mask>")

_MAX_BYTES = 100 * MEGABYTE  # of a tokenizer's file; the largest known have a third of that
_PATIENCE_S = 5.0  # that a library may work on a text, and a second more for each
_CHARS_A_SECOND = 100_000  # characters, which slow tokenizers encode ten times over
_TOKENS_BEFORE = 200  # that are looked at to continue a text
_RUN_CHARS = 1024  # the longest word that BPE is trained on
_LONG_RUN = re.compile(rf"(?:\A|\b)(?:\w{{{_RUN_CHARS + 1},}}|\W{{{_RUN_CHARS + 1},}})")
# Special tokens that stand for no text at all, in the spellings that there are: [UNK], <pad>, <|mask|>.
_NO_TEXT = re.compile(r"[<\[]\|?(unk|unknown|pad|padding|mask|unused\d*)\|?[>\]]", re.IGNORECASE)


class Tokenizer:
    """Turns text into content ids (never special tokens) and back.

    >>> tokenizer = Tokenizer.char("banana")
    >>> tokenizer.encode("nab"), tokenizer.decode([1, 0, 2])
    ([2, 0, 1], 'ban')
    """

    def __init__(self, inner: hf.Tokenizer, made_as: str = "") -> None:
        self.made_as = made_as
        """As bpe:8192, even if it got fewer ids; "": it was not made here, or it is not known."""
        # A foreign tokenizer.json may ask for things that would change our texts or make ids random.
        inner.no_truncation()
        inner.no_padding()
        if isinstance(inner.model, models.BPE):
            inner.model.dropout = None
        inner.encode_special_tokens = True  # that is: as ordinary text
        self._inner = inner
        self._patterns: set[str] = set()  # parts with a stranger's pattern, which may never end on a text
        self._ids: dict[str, int] = inner.get_vocab()
        self._symbols: dict[int, str] = {i: symbol for symbol, i in self._ids.items()}
        self._composes = isinstance(inner.normalizer, normalizers.NFC)
        self._shown: dict[int, str] = {}
        self.kind = _kind(inner)
        """char, or the type of the library's model: bpe, wordpiece, unigram, wordlevel."""
        special = {t.content: i for i, t in inner.get_added_tokens_decoder().items() if t.special}
        self.special: dict[str, int] = special
        """The special tokens: their ids, by name."""
        self.bos_id: int | None = next((special[name] for name in BOS if name in special), None)
        """Begins each document: [CLS], <s>; None if documents begin with their text."""
        self.eos_id: int | None = next((special[name] for name in EOS if name in special), None)
        """Ends each document, and separates its parts: [SEP], </s>, <|endoftext|>; None if nothing does."""
        unknown = [name for name in (*UNKNOWN, getattr(inner.model, "unk_token", None)) if name in self._ids]
        self.unknown_id: int | None = self._ids[unknown[0]] if unknown else None
        """Stands for what the tokenizer cannot spell: [UNK]; None if it can spell everything, or refuses."""
        no_text = {i for name, i in special.items() if _NO_TEXT.fullmatch(name)}
        no_text |= {self._ids[name] for name in unknown} - {self.eos_id}  # GPT-2 calls its one token both
        self.unsampled_ids = sorted(no_text)
        """Stand for no text, and are never sampled: [UNK], [PAD], [MASK]."""

        # Characters are looked up in a table, far faster than the library does it: the id of each code point,
        # -1 where there is none. One more entry, -1 too, stands for all code points above the table.
        self._table = np.empty(0, np.int32)
        if self.kind == "char":
            self._table = np.full(max(map(ord, self._ids)) + 2, -1, np.int32)
            self._table[[ord(symbol) for symbol in self._ids]] = list(self._ids.values())

    @classmethod
    def char(cls, text: str) -> Tokenizer:
        """Make a symbol of each different character of `text`, numbered in code point order."""
        return cls.from_symbols(sorted(set(text)))

    @classmethod
    def from_symbols(cls, symbols: Sequence[str]) -> Tokenizer:
        """Make a character tokenizer that gives symbols[i], a single character, the id i."""
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
    def from_json(cls, text: str, source: str = "the tokenizer", made_as: str = "") -> Tokenizer:
        """Make what `to_json` describes, from untrusted text too; errors name `source`."""
        parts = check_tokenizer(text, source)
        with report_library_errors(f"{source} is not a tokenizer.json"):
            tokenizer = cls(hf.Tokenizer.from_str(_without_pad(parts, text)), made_as)
            chain = ("normalizer", "pre_tokenizer", "decoder")
            tokenizer._patterns = {part for part in chain if "'Regex'" in str(parts.get(part))}
            added = {token["content"]: token["id"] for token in parts.get("added_tokens", ())}
            tokenizer.check_numbers(source, added)
            # Encode something: that fails if there is no token for what the tokenizer does not know.
            if tokenizer.kind != "char":
                tokenizer._encode(["Can it encode? 能"], tokenizer._inner)
        return tokenizer

    def to_json(self) -> str:
        """Write all of the tokenizer as one JSON text."""
        return self._inner.to_str()

    @classmethod
    def load(cls, path: str | Path, made_as: str = "") -> Tokenizer:
        """Read a tokenizer.json."""
        return cls.from_json(read_file(Path(path)), display_path(path), made_as)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, whole or not at all."""
        with writing(path) as file:
            file.write(self.to_json().encode())

    def composing(self) -> Tokenizer:
        """Make a tokenizer like this one that first makes one character of a letter and its accents (NFC)."""
        inner = hf.Tokenizer.from_str(self.to_json())
        nfc, others = normalizers.NFC(), inner.normalizer
        inner.normalizer = normalizers.Sequence([nfc, others]) if others else nfc
        composing = Tokenizer(inner, self.made_as)
        composing._patterns = self._patterns
        return composing

    def difference(self, other: Tokenizer) -> str:
        """Name the first id that does not mean the same token in both; "" if all do."""
        for i in range(max(self.vocab_size, other.vocab_size)) if self._ids != other._ids else ():
            if (a := self._symbols.get(i)) != (b := other._symbols.get(i)):
                return f"id {i} is {a!r} in one and {b!r} in the other"
        return ""

    @property
    def vocab_size(self) -> int:
        """Number of ids, from 0 to the highest one; no padding."""
        return max(self._symbols, default=-1) + 1

    @property
    def padded_size(self) -> int:
        """Embedding rows of a model: at least one is padding, as in nanoBackpackLM; none for characters.

        That is the next multiple of 64 above vocab_size: 50257 becomes 50304, 64 becomes 128.
        """
        n = self.vocab_size
        return n if self.kind == "char" else (n // 64 + 1) * 64

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of `text`. A char tokenizer refuses a character that it does not know.

        special: names of special tokens in the text, such as <|endoftext|>, become these tokens.
        """
        if not isinstance(text, str):
            raise WrongType("the text", "a str", text)
        if self.kind == "char":
            return self._look_up(text).tolist()
        named = special and any(name in text for name in self.special)
        inner = self._reading_names if named else self._inner
        with report_library_errors("this tokenizer cannot encode the text", [text]):
            if self._patterns - {"decoder"}:
                return self._encode([text], inner)[0].ids
            return inner.encode(text, add_special_tokens=False).ids

    @cached_property
    def _reading_names(self) -> hf.Tokenizer:
        """The same tokenizer, but names of special tokens in a text are these tokens."""
        return hf.Tokenizer.from_str(self.to_json())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode many texts at once, by all threads of the library: an array (N,) for each."""
        if self.kind == "char":
            return [self._look_up(text) for text in texts]
        with report_library_errors("this tokenizer cannot encode the text", texts):
            encodings = self._encode(texts, self._inner)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def _encode(self, texts: Sequence[str], inner: hf.Tokenizer) -> list[hf.Encoding]:
        """Encode texts by all threads of the library, within a time that is generous."""
        result = start_aside(lambda: inner.encode_batch_fast(texts, add_special_tokens=False))
        return result(_PATIENCE_S + sum(map(len, texts)) / _CHARS_A_SECOND)

    def text_ids(self, text: TextOrIds, special: bool = False) -> list[int]:
        """Return the ids of a text, `special` as in `encode`; a text that is given as ids is checked."""
        if isinstance(text, str):
            return self.encode(text, special)
        ids = whole_numbers("a text", "a str or a list of token ids", text)
        for i in ids:
            self.token(i)  # raises for an id that does not exist
        return ids

    def word_ids(self, word: TextOrIds) -> list[int]:
        """Return the ids of a word as it stands inside a text.

        That is " word" for tokenizers that join the space to the word, as GPT-2's does and the papers' tests
        ask for. A word that begins with a space or is given as ids is taken as it is; the name of a token, a
        special one or as `token` shows it, is that token.
        """
        if isinstance(word, str) and (named := self.named(word)) is not None:
            return [named]
        if not isinstance(word, str) or self.kind == "char" or word[:1].isspace():
            ids = self.text_ids(word)
        else:
            ids = self.encode(" " + word) if word else []
            while ids and not self.decode(ids[:1]).strip():  # here the space is a token of its own: drop it
                ids = ids[1:]
        if not ids:
            raise InputError("an empty word has no senses: give at least one character")
        if isinstance(word, str) and self.unknown_id in ids:
            raise InputError(f"unknown word {word!r}: this tokenizer has no tokens for all of it")
        return ids

    def prompt_ids(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a prompt: as a document begins, without eos_id at its end.

        An empty text, or one of which no ids are left, starts a new document; [] if no token does that.
        special: as in `encode`.
        """
        ids = self.encode(text, special)
        if self.bos_id is not None:
            return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]
        return ids or ([] if self.eos_id is None else [self.eos_id])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, which must be in the vocabulary."""
        ids = whole_numbers("ids", "a list of numbers", ids)
        symbols = [self._symbol(i) for i in ids]
        if self.kind == "char":
            return "".join(symbols)
        if self.kind == "wordpiece":
            return join_words(symbols, self._inner.model.continuing_subword_prefix)
        return self._text(ids)

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """Return what `ids` add to the text of `before`: the space between two words too, unlike `decode`.

        What the first ids add does not depend on those that follow, so that a text can be shown as it grows.
        It does on what is before: a quotation mark there may be open.
        """
        last = [i for i in before[-_TOKENS_BEFORE:] if i not in (self.bos_id, self.eos_id)]
        return self.decode([*last, *ids])[len(self.decode(last)) :]

    def token(self, index: int) -> str:
        """Show one id, which must be in the vocabulary, as tables do: such that `word_ids` reads it back.

        That is its text, with its id where the text as a word is not this token: " the", "ing<#278>". A part
        of a character has no text of its own: "<#447>".
        """
        if index not in self._shown:
            shown = self._plain(index)
            with suppress(InputError):  # no word, or an unknown one
                if self.word_ids(shown) == [index]:
                    return self._shown.setdefault(index, shown)
            self._shown[index] = f"{shown}<#{index}>"
        return self._shown[index]

    def _plain(self, index: int) -> str:
        symbol = self._symbol(index)
        if not isinstance(self._inner.decoder, decoders.ByteLevel):
            return symbol
        text = self._text([index])
        return "" if "\ufffd" in text else text

    def named(self, word: str) -> int | None:
        """Return the id that a word names: <|endoftext|>, ing<#278>, <#278>, of BERT's ##ing; else None."""
        if word in self.special or word in UNKNOWN or (self.kind == "wordpiece" and word.startswith("##")):
            return self._ids.get(word)
        parts = re.fullmatch("(.*)<#([0-9]{1,9})>", word, re.DOTALL)
        if not parts or self.kind == "char" or int(parts[2]) not in self._symbols:
            return None
        return int(parts[2]) if parts[1] in ("", self._plain(int(parts[2]))) else None

    def id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token)

    def _text(self, ids: list[int]) -> str:
        with report_library_errors("this tokenizer cannot decode the ids"):
            if "decoder" not in self._patterns:
                return self._inner.decode(ids, skip_special_tokens=False)
            result = start_aside(lambda: self._inner.decode_batch([ids], skip_special_tokens=False))
            return result(_PATIENCE_S + len(ids) / _CHARS_A_SECOND)[0]

    def _symbol(self, index: int) -> str:
        if index not in self._symbols:
            last = self.vocab_size - 1
            raise InputError(f"id {index} is not in the vocabulary: ids go from 0 to {last}")
        return self._symbols[index]

    def _look_up(self, text: str) -> np.ndarray:
        text = unicodedata.normalize("NFC", text) if self._composes else text
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")  # (N,) code points
        ids = self._table[np.minimum(points, len(self._table) - 1)]  # (N,)
        if len(ids) and ids.min() < 0:
            at = int(ids.argmin())
            raise InputError(
                f"unknown character {text[at]!r} (U+{ord(text[at]):04X}) at position {at}: this tokenizer "
                f"knows only the {len(self._ids)} different characters of the text it was made from"
                + self._other_form(text, at)
            )
        return ids

    def _other_form(self, text: str, at: int) -> str:
        """Tell whether an unknown character is known in another form: é as one character, or as two."""
        near = text[max(at - 1, 0) : at + 4]  # an accent follows its letter
        forms: dict[Literal["NFC", "NFD"], str] = {"NFC": "one character", "NFD": "several characters"}
        for form, what in forms.items():
            other = unicodedata.normalize(form, near)
            if other != near and set(other) <= self._ids.keys():
                return f", where this letter is {what} ({form}): give --normalize=nfc to prepare and sample"
        return ""

    def check_numbers(self, source: str, added: dict[str, Any]) -> None:
        """Refuse ids that two tokens share, or so high that a model would need far more rows than tokens;
        and added tokens that did not get their id, for the library takes the next one that is free."""
        for token, i in added.items():
            if self._ids.get(token) != i:
                what = f"{source}: the added token {short_repr(token)} cannot have the id {short_repr(i)}"
                raise InputError(f"{what}: added tokens must have ids of their own, and leave none out")
        n = len(self._ids)
        if self.vocab_size > 2 * n + 1000 or len(self._symbols) < n:
            raise InputError(f"{source} does not number its tokens: they must have the ids 0, 1, 2, ...")


def _kind(inner: hf.Tokenizer) -> str:
    """Tell the kind of a tokenizer; what `from_symbols` makes is recognised by what it does."""
    kind = type(inner.model).__name__.lower()
    plain = isinstance(inner.normalizer, normalizers.NFC | None)
    if kind != "wordlevel" or not plain or inner.pre_tokenizer is None:
        return kind
    single = all(len(symbol) == 1 for symbol in inner.get_vocab())
    return "char" if single and len(inner.pre_tokenizer.pre_tokenize_str("ab \n")) == 4 else kind


def _without_pad(parts: dict[str, Any], text: str) -> str:
    """Leave out the [PAD] and [UNK] that other programs add to characters: they are padded ids of a model."""
    if parts["model"].get("type") != "WordLevel" or {*map(len, parts["model"]["vocab"])} != {1}:
        return text
    added = parts.get("added_tokens", [])
    parts["added_tokens"] = [token for token in added if not _NO_TEXT.fullmatch(token["content"])]
    return text if parts["added_tokens"] == added else json.dumps(parts)


@contextmanager
def report_library_errors(problem: str, texts: Iterable[str] = ()) -> Iterator[None]:
    """Turn what the tokenizers library raises, bare Exceptions and panics of Rust, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # a panic is no Exception
        # Often it is half a character, such as a byte of the command line that could not be decoded.
        for at, c in enumerate("".join(texts)):
            if "\ud800" <= c <= "\udfff":
                problem = f"unknown character {c!r} (U+{ord(c):04X}) at position {at}"
                raise InputError(f"{problem}: it is not Unicode text") from None
        reason = first_line(error)
        if isinstance(error, TimeoutError) or "retry-limit" in reason:
            reason = "a pattern in it tries possibilities without end: take another tokenizer"
        raise InputError(f"{problem} ({reason})") from None


def read_file(path: Path) -> str:
    """Read a file of a tokenizer: text, and no larger than the largest known are."""
    try:
        return decode_text(read_bytes(path, _MAX_BYTES), display_path(path))
    except OSError as error:
        raise InputError(f"cannot read {display_path(path)} ({error.strerror})") from None


# --- Tokenizers made here ----------------------------------------------------------------------


def is_made(name: str) -> bool:
    """Tell whether a tokenizer of that name is made from texts: char and bpe:N, if N is possible."""
    if name.startswith("bpe:"):
        number, least = name.removeprefix("bpe:"), len(pre_tokenizers.ByteLevel.alphabet()) + 1
        if not (re.fullmatch("[0-9]{1,8}", number) and least <= int(number) <= 1 << 24):
            raise InputError(f"tokenizer={name!r}: N of bpe:N must be a number from {least} up, as bpe:8192")
        return True
    return name == "char"


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """Make char or bpe:N from texts.

    bpe:N is byte-level BPE with at most N ids: <|endoftext|>, the 256 bytes, and the most frequent merges.
    Where a text has no spaces, its runs of letters are cut to learn these, but never when it is encoded.
    """
    if not is_made(name):
        raise ValueError(f"{name} is not made from texts")
    if name == "char":
        symbols: set[str] = set()
        for text in texts:
            symbols.update(text)
        return Tokenizer.from_symbols(sorted(symbols))
    inner = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=int(name.removeprefix("bpe:")),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    cuts: list[int] = []
    start_aside(lambda: inner.train_from_iterator(_without_long_runs(texts, cuts), trainer))()
    if cuts:
        warnings.warn(
            f"runs of more than {_RUN_CHARS:,} letters without a space ({len(cuts):,} of them) were cut to "
            "make the tokenizer, and for that alone: the text is encoded as it is",
            stacklevel=2,
        )
    return Tokenizer(inner, made_as=name)


def _without_long_runs(texts: Iterable[str], cuts: list[int]) -> Iterator[str]:
    """Cut the runs of letters, or of anything else, that training would take hours for: each of its merges
    goes through every word that has it. Enter in `cuts` where these runs begin."""
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            cuts.append(run.start())
            for at in range(run.start() + _RUN_CHARS, run.end(), _RUN_CHARS):
                yield text[start:at]
                start = at
        yield text[start:]


def byte_level(model: models.BPE) -> hf.Tokenizer:
    inner = hf.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner
