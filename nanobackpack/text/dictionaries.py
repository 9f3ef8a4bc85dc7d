"""Dictionaries as text to train on, a line for each meaning: " king : a male sovereign; ruler of a kingdom".

    corpus, split = read_dictionaries([Path("dict-wn_3.0-37_all.deb")], held_out=0.02)

Two dictionaries of Debian are read, as a package (.deb) or what it holds (.dict.dz). Their licences differ:
    dict-wn     WordNet 3.0 of Princeton University: free for any purpose, if its notice is kept
    dict-gcide  GNU's edition of Webster's dictionary of 1913, enlarged: GPL 2 or later
Of both only meanings and examples are taken. Lists of synonyms, antonyms and links are left out, so that a
model learns what words mean from sentences. Proper names and species, which WordNet writes with capitals, are
left out too: of each many are said to be the same.
"""

from __future__ import annotations

import gzip
import io
import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from nanobackpack.errors import InputError, first_line
from nanobackpack.safe.files import display_path, read_bytes
from nanobackpack.safe.texts import unpack_xz
from nanobackpack.text.corpus import Corpus, Piece, find_files
from nanobackpack.text.splits import SEED, Counts, Split

_MAX_BYTES = 1 << 27  # of a dictionary; the larger one has 40 MB
_BRACKETS = re.compile(r"\s*\[[^\[\]]*\]")
# WordNet: "    n 1: a male sovereign; ruler of a kingdom [syn: ...]", the part of speech where it is new.
_WORDNET_SENSE = re.compile(r"^ {4}(?:(?:n|v|adj|adv) ?)?(?:\d+)?: ", re.MULTILINE)
# GCIDE: 'Doctor \Doc"tor\ (d[o^]k"t[~e]r), n. [L.]', then paragraphs '1. A teacher. "..." --Bacon.'
_GCIDE_HEAD = re.compile(r"(?P<word>[^\\]+?) +\\[^\\]*\\,?\s*(\([^)]*\))?[^\[\n]*(\[[^\]]*\])?[^\n]*(\n|$)")
_GCIDE_NUMBER = re.compile(r"^(\d+\.\s*)?(\([a-z]\)\s*)?")
_GCIDE_AUTHOR = re.compile(r"\s*--\s*[A-Z][^-]*$")
_GCIDE_NOTE = re.compile(r"Note|Syn\b|Usage|See\b|Cf\.|Same as", re.IGNORECASE)


def read_dictionaries(paths: Sequence[str | Path], held_out: float) -> tuple[Corpus, Split]:
    """Make a corpus of which each line is a document, and hold out a share of the headwords, with all lines.

    Lines begin with a space, as words inside a text do: a headword has the tokens of that word elsewhere.
    They come in a random order, the same each time: in that of the alphabet a word would be learned beside
    those spelled alike.
    """
    files = find_files(paths, (".deb", ".dz"))
    found = dict.fromkeys(pair for file in files for pair in meanings(file))

    def is_held_out(word: str) -> bool:
        return zlib.crc32(word.encode()) < held_out * (1 << 32)

    # Synonyms have the same definition in WordNet. One that is held out must not be learned from another
    # word, so the lines of other words that have it are dropped.
    unseen = {meaning for word, meaning in found if is_held_out(word)}
    lines = [f" {word} : {meaning}" for word, meaning in found if is_held_out(word) or meaning not in unseen]
    random.Random(SEED).shuffle(lines)
    words = {word for word, _ in found}
    note = f"all lines of {sum(map(is_held_out, words)):,} of {len(words):,} headwords"

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        for piece in pieces:
            yield "val" if is_held_out(piece.text[1:].partition(" : ")[0]) else "train", piece

    title = ", ".join(map(display_path, files))
    corpus = Corpus(title, 0, lambda progress=None: map(Piece, lines))
    return corpus, Split(("train", "val"), assign, lambda counts: note)


def meanings(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the meanings in a dictionary, as ("king", "a male sovereign; ruler of a kingdom")."""
    name, text = _unpack(file)
    if name not in _READERS:
        raise InputError(f"{display_path(file)} has the dictionary {name}: only wn and gcide can be read")
    # An entry begins at the margin, all else is indented.
    for entry in re.split(r"\n(?=\S)", text):
        if not entry.startswith("00-database"):
            yield from _READERS[name](entry)


def _wordnet(entry: str) -> Iterator[tuple[str, str]]:
    word, _, body = entry.partition("\n")
    if word.islower():
        for meaning in _WORDNET_SENSE.split(body)[1:]:
            yield word, _plain(meaning)


def _gcide(entry: str) -> Iterator[tuple[str, str]]:
    if head := _GCIDE_HEAD.match(entry):
        for paragraph in re.split(r"\n\s*\n", entry[head.end() :]):
            meaning = _GCIDE_NUMBER.sub("", _GCIDE_AUTHOR.sub("", _plain(paragraph)))
            # What GCIDE took from WordNet is in dict-wn; what is short leads to another word.
            if "[WordNet" not in paragraph and len(meaning.split()) > 2 and not _GCIDE_NOTE.match(meaning):
                yield head["word"].lower(), meaning


_READERS: dict[str, Callable[[str], Iterator[tuple[str, str]]]] = {"wn": _wordnet, "gcide": _gcide}


def _plain(text: str) -> str:
    """Leave out what stands in brackets, and write the rest on one line."""
    return " ".join(re.sub("[{}]", "", _BRACKETS.sub("", text)).split())


def _unpack(file: Path) -> tuple[str, str]:
    """Return the name of a dictionary, wn or gcide, and its text."""
    content, name = read_bytes(file, _MAX_BYTES), file.name
    try:
        if file.suffix == ".deb":
            with tarfile.open(fileobj=io.BytesIO(_data_of_package(content))) as files:
                member = next(member for member in files if member.name.endswith(".dict.dz"))
                packed = files.extractfile(member)
                assert packed
                content, name = packed.read(_MAX_BYTES), Path(member.name).name
        with gzip.open(io.BytesIO(content)) as unpacked:
            text = unpacked.read(_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError, ValueError, StopIteration, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{display_path(file)} holds no dictionary ({first_line(error)})") from None
    return name.removesuffix(".dict.dz"), text


def _data_of_package(content: bytes) -> bytes:
    """Unpack data.tar.xz, one of the files in a package: each has a head of 60 bytes and an even length."""
    at = len(b"!<arch>\n")
    while head := content[at : at + 60]:
        size = int(head[48:58])
        if head.startswith(b"data.tar.xz"):
            with unpack_xz(io.BytesIO(content[at + 60 : at + 60 + size]), _MAX_BYTES) as unpacked:
                return unpacked.read(_MAX_BYTES)
        at += 60 + size + size % 2
    raise ValueError("no data.tar.xz in it")
