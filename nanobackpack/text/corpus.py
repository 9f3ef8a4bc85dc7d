"""The stream of documents, from files or a data set of the hub, never held in memory.

    corpus = from_files(["notes/", "more.jsonl.gz"])
    for piece in corpus.read():
        print(piece.text, end="\n\n" if piece.closes else "")

A document is read in one or more pieces, so that one of any length takes little memory. Texts are cut where
all our tokenizers cut them anyway: the tokens of the pieces are those of the whole text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanobackpack.errors import InputError, first_line
from nanobackpack.safe.files import display_path
from nanobackpack.text.readers import (
    KINDS,
    MAX_LINE_CHARS,
    READERS,
    Progress,
    Reading,
    Segments,
    check_growth,
    find_files,
    optional,
    unpacked,
)

PIECE_CHARS = 1 << 16
_WORD_CHARS = 1 << 18  # a text this long without a space is cut between letters
_WORD_END = re.compile(r"\S(?=\s)")
_LAST_END = re.compile(r".*\S(?=[\r\n])|.*\S(?=\s)", re.DOTALL)  # of a line, else of a word
_LETTER_END = re.compile(r".+(?=[^\W\u1160-\u11ff])", re.DOTALL)  # neither accents nor parts of Korean follow


class Piece(NamedTuple):
    """A piece of a document.

    A document of several texts, such as a question and its answer, has eos_id between them too: each of them
    closes, and only the first opens.
    """

    text: str
    opens: bool = True  # the document begins with it, and bos_id comes before it
    closes: bool = True  # eos_id follows it


class Corpus(NamedTuple):
    """Documents that can be read again and again, each time in the same order."""

    title: str  # where they come from, for people
    n_bytes: int  # of the files, packed as they are; 0 if not known
    read: Callable[..., Iterator[Piece]]
    """read(progress: Progress) -> the pieces."""


def from_text(text: str, title: str) -> Corpus:
    """Make a corpus of one document that is in memory."""
    return Corpus(title, 0, lambda progress=None: document([text]))


def from_files(
    paths: Sequence[str | Path], segments: Segments | None = None, kind: str | None = None, **options: Any
) -> Corpus:
    """Make a corpus of files, of folders (searched for SUFFIXES) and of globs.

    kind: text (the file is one document), lines (each line is one), json, csv, parquet (each record is one);
    None: by the file's name, text if that does not tell. segments: what to take from a record, by default its
    "text". options: strict, errors and newlines of a Reading.
    """
    files = find_files(paths)

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        reading = Reading(segments or Segments(), progress, **options)
        for path in files:
            packed_size, n_chars = path.stat().st_size, 0
            with reading.file(path):
                is_kind = kind or KINDS.get(unpacked(path).suffix.lower(), "text")
                for texts in READERS[is_kind](path, reading):
                    for piece in document(texts) if isinstance(texts, list) else cut(texts):
                        n_chars += len(piece.text)
                        check_growth(path, packed_size, n_chars)
                        yield piece
        reading.report()

    return Corpus(", ".join(map(display_path, paths)), sum(p.stat().st_size for p in files), read)


def from_hub(
    name: str, segments: Segments, config: str | None = None, strict: bool = False, **options: Any
) -> Corpus:
    """Make a corpus of a data set of the hub, as it is; `options` go to datasets.load_dataset."""

    @functools.cache  # downloaded when they are first read
    def records() -> Any:
        datasets = optional("datasets")
        optional("huggingface_hub").utils.logging.set_verbosity_error()  # the last failure is reported here
        try:
            return datasets.load_dataset(name, config, split="train", **options)
        except Exception as error:  # no network, no such name, no space: each has its own type
            raise InputError(
                f"cannot fetch {name} from the hub ({first_line(error)}): give local files with --input"
            ) from None

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        reading = Reading(segments, progress, strict, newlines="keep", source=name)
        batches = records().iter(batch_size=256)
        rows = (dict(zip(c, row, strict=True)) for c in batches for row in zip(*c.values(), strict=True))
        for number, record in enumerate(rows, 1):
            yield from document(reading.texts(f"row {number:,}", record))
        reading.report()

    return Corpus(f"{name} on the hub", 0, read)


def chained(corpora: Sequence[Corpus]) -> Corpus:
    """Make a corpus of several, one after the other."""

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        for corpus in corpora:
            yield from corpus.read(progress)

    return Corpus(", ".join(c.title for c in corpora), sum(c.n_bytes for c in corpora), read)


def composed(corpus: Corpus) -> Corpus:
    """Write each letter with its accents as one character, where there is one: Unicode's form NFC."""

    def read(*args: Any) -> Iterator[Piece]:
        for piece in corpus.read(*args):
            yield piece._replace(text=unicodedata.normalize("NFC", piece.text))

    return corpus._replace(read=read)


def separated(corpus: Corpus, mark: str) -> Corpus:
    """Make documents of what stands between the marks; line ends around a mark belong to it."""

    def read(*args: Any) -> Iterator[Piece]:
        held = ""  # since the last mark
        for piece in corpus.read(*args):
            *texts, held = (held + piece.text).split(mark)
            if len(held) > MAX_LINE_CHARS:
                raise InputError(f"{corpus.title} has {MAX_LINE_CHARS:,} characters without a {mark!r}")
            if piece.closes:
                texts, held = [*texts, held], ""
            for text in texts:
                yield from document([text.strip("\r\n")])

    return corpus._replace(read=read)


# --- Cutting -----------------------------------------------------------------------------------


def document(segments: Sequence[str]) -> Iterator[Piece]:
    """Cut a document into pieces: none, if there is nothing but space in it."""
    if any(map(str.strip, segments)):
        for i, segment in enumerate(segments):
            if len(segment) <= PIECE_CHARS:
                yield Piece(segment, i == 0)
                continue
            parts = (segment[at : at + PIECE_CHARS] for at in range(0, len(segment), PIECE_CHARS))
            yield from cut(parts, opens=i == 0)


def cut(parts: Iterable[str], opens: bool = True) -> Iterator[Piece]:
    """Cut a text that comes in parts into pieces of PIECE_CHARS or a little less.

    A cut is made before a line end that follows something else than space: there GPT-2's pattern, BERT's
    and XLM-R's cut too. So do they before a space, where a line is longer than a piece.
    """
    held, searched = "", 0  # read and not yet yielded; how much of it has no space
    for part in parts:
        held += part
        while len(held) > PIECE_CHARS:
            # At the last line end; in a long line at its last space; where there is neither let the piece
            # grow, and cut at a letter in the end.
            end = _WORD_END.search(held, searched) and _LAST_END.match(held)
            if not end and len(held) < _WORD_CHARS:
                searched = len(held) - 1
                break
            end = end or _LETTER_END.match(held, 0, _WORD_CHARS + 1)
            at = end.end() if end else _WORD_CHARS
            yield Piece(held[:at], opens, False)
            held, opens, searched = held[at:], False, 0
    yield Piece(held, opens, True)
