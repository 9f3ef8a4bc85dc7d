"""Untrusted texts: tokenizers, JSON and packed text, looked at before a library reads them.

    check_tokenizer(text, "its name")     a tokenizer.json, before the tokenizers library reads it
    count_values(line, limit)             a line of JSON, before Python makes objects of it
    unpack_xz(file, limit)                a text packed with xz, within so much memory

None of these libraries runs what is in a file, but each may take all memory or never end.
"""

from __future__ import annotations

import base64
import io
import lzma
import unicodedata
from typing import Any, BinaryIO

from nanobackpack.errors import InputError, short_repr
from nanobackpack.safe.files import parse_json

# --- Tokenizers -------------------------------------------------------------------------------

# A tokenizer is a chain of parts; each may make several characters (or ids) of one, and so multiply a text.
_CHAINS = (("normalizer", "pre_tokenizer"), ("post_processor",), ("decoder",))  # text, ids, and back
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")  # where parts have parts
# How many characters those that are not looked into make of one; others make one, or stop growing, as NFKD.
_GROWTH = {"BertNormalizer": 3, "ByteLevel": 4, "Metaspace": 2, "BPEDecoder": 2, "CTC": 2}
_MAX_GROWTH = 1000  # GPT-2's chain makes 4 of one at most, the longest real ones below 200
_MAX_PARTS = 200
# The time for a word grows with the square of the longest that WordPiece looks into, and that for a character
# with the longest token of Unigram and of these marks. Known ones have 100, 16 and (as [UNK]) 5 characters.
_MAX_WORD = 200
_MARKS = (
    "continuing_subword_prefix", "end_of_word_suffix", "unk_token",  # of models
    "prefix", "suffix", "pad_token", "word_delimiter_token",  # of decoders
)  # fmt: skip


def check_tokenizer(text: str, source: str) -> dict[str, Any]:
    """Look through a tokenizer.json for parts with which the tokenizers library would take all memory;
    return what is in it.

    Those are tables longer than the file, very many parts, chains that make a text 1,000 times longer, and
    words so long that the library would never end.
    """
    tokenizer = parse_json(text, source)
    if not isinstance(tokenizer, dict) or "model" not in tokenizer:
        raise InputError(f"{source} is not a tokenizer.json: it has no entry 'model'")
    model = tokenizer["model"] if isinstance(tokenizer["model"], dict) else {}
    vocabulary, longest = model.get("vocab"), model.get("max_input_chars_per_word", 100)
    if isinstance(vocabulary, list):  # of Unigram
        longest = max(
            (len(str(entry[0])) for entry in vocabulary if isinstance(entry, list) and entry), default=0
        )
    _check_marks(model, source)
    if not isinstance(longest, int) or longest > _MAX_WORD:
        raise InputError(f"{source} has words of {short_repr(longest)} characters: {_MAX_WORD} are allowed")
    for chain in _CHAINS:
        growth, parts = 1, [tokenizer.get(name) for name in chain]
        for n, part in enumerate(parts):  # which grows while it is read
            if not isinstance(part, dict):
                continue  # null, or what the library refuses
            growth *= _growth(part, source)
            _check_marks(part, source)
            parts += (inner for name in _LISTS if isinstance(part.get(name), list) for inner in part[name])
            if growth > _MAX_GROWTH or n > _MAX_PARTS:
                raise InputError(
                    f"{source}: its {' and '.join(chain)} could make a text {_MAX_GROWTH:,} times longer, "
                    f"or have more than {_MAX_PARTS} parts"
                )
    return tokenizer


def _check_marks(part: dict[str, Any], source: str) -> None:
    """Refuse a part with a text that takes the library long to look at, as for each character it does."""
    for name in _MARKS:
        if len(str(part.get(name))) > _MAX_WORD:
            raise InputError(f"{source}: its {name} has more than {_MAX_WORD} characters")


def _growth(part: dict[str, Any], source: str) -> int:
    """Tell how many characters a part can make of one, its inner parts aside."""
    kind = part.get("type")
    if not isinstance(kind, str):  # the library would guess
        raise InputError(f"{source} has a part without a type")
    if isinstance(table := part.get("precompiled_charsmap"), str):
        # The size of a double array, the array, then the texts that it maps to, each ended by a zero.
        try:
            data = base64.b64decode(table)
        except ValueError:
            data = b""
        if len(data) < 4 or (size := int.from_bytes(data[:4], "little")) > len(data) - 4:
            raise InputError(f"{source} has a precompiled_charsmap that is damaged")
        return max(map(_longest, data[4 + size :].decode(errors="replace").split("\0")))
    if kind == "Replace":
        pattern, new = part.get("pattern"), _longest(part.get("content"))
        is_text = isinstance(pattern, dict) and pattern.get("String")
        return max(1, new) if is_text else 1 + new  # a pattern may match what is between two characters
    if kind == "TemplateProcessing":
        return max(1, str(part.get("single")).count("'Sequence'"))  # so often it repeats the text
    return _GROWTH.get(kind, 1) + _longest(part.get("prepend", ""))


def _longest(text: object) -> int:
    """Return the length of a text when later parts have decomposed it as far as can be: \ufdfa becomes 18."""
    return len(unicodedata.normalize("NFKD", str(text)[: _MAX_GROWTH + 1]))


# --- Texts -------------------------------------------------------------------------------------


def count_values(line: str, limit: int) -> int:
    """Count the values in a line of JSON, exactly enough to tell whether there are more than `limit`."""
    # Each value but the first begins after one of these characters, but texts may hold them too. Where they
    # are too many, count the texts; where these are not, count only what lies outside of them.
    n = sum(map(line.count, "[{,"))
    if n > limit:
        line = line.replace("\\\\", "").replace('\\"', "")  # all quotes now begin or end a text
        n = line.count('"') // 2
        if n <= limit:
            n = sum(part.count(c) for part in line.split('"')[::2] for c in "[{,")
    return n


def unpack_xz(raw: BinaryIO, limit: int) -> BinaryIO:
    """Read what is in a file of .xz, as lzma.open does, but with at most `limit` bytes of memory."""
    return io.BufferedReader(_Unxz(raw, limit))


class _Unxz(io.RawIOBase):
    def __init__(self, raw: BinaryIO, limit: int) -> None:
        self._raw, self._limit = raw, limit
        self._stream = lzma.LZMADecompressor(memlimit=limit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            packed = self._raw.read(1 << 16) if self._stream.needs_input or self._stream.eof else b""
            if self._stream.eof:  # zeros may follow, and another stream
                packed = (self._stream.unused_data + packed).lstrip(b"\0")
                if not packed:
                    return 0
                self._stream = lzma.LZMADecompressor(memlimit=self._limit)
            elif self._stream.needs_input and not packed:
                raise EOFError("its end is missing")
            data = self._stream.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)
