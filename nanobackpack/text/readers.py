"""Files of many layouts, packed or not, read a document at a time and never held in memory.

    reading = Reading(Segments(("title", "body")))
    for document in READERS["json"](Path("tales.jsonl.gz"), reading):
        ...

A document is a list of texts or, of a text file, an iterator of its parts. What a reading left out is told
at its end, in a note of one line.
"""

from __future__ import annotations

import csv
import glob
import gzip
import importlib
import io
import itertools
import json
import lzma
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from nanobackpack.errors import InputError, first_line, short_repr
from nanobackpack.safe.files import BAD_BYTE, bad_text, display_path, text_encoding, with_lf
from nanobackpack.safe.texts import count_values, unpack_xz

MAX_LINE_CHARS = 1 << 25  # of a line or a record that must be read whole
_BLOCK = 1 << 16  # that a file is read in
_MAX_VALUES = 1 << 19  # in a record, since each may take a hundred times its length
_PART_CHARS = 1 << 19  # of JSON that is looked at together, unless a record is longer
_PATIENCE = 10_000  # records that are read if none of them has a text
_NAMED = 6  # kinds of files that a note names
_MAX_XZ_BYTES = 1 << 27  # of memory to unpack .xz with; xz -9 asks for half of it
_BETWEEN_JSON = re.compile("[ \t\r\n,\ufeff]*")

KINDS = {".txt": "text", ".md": "text", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
KINDS |= dict.fromkeys((".jsonl", ".ndjson", ".json"), "json")
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".parquet")  # what is looked for in folders, packed or not

Progress = Callable[[int], object]
"""Is told how many more bytes of a file have been read."""
Document = list[str] | Iterator[str]
"""Its texts, none if there is no text in it; or the parts of its only text."""


class Segments(NamedTuple):
    """What to take from a record: the fields of these names, and what makes of their texts one or several.

    Several are separated by eos_id. A dot in a name leads to a field inside a field.
    """

    fields: tuple[str, ...] = ("text",)
    make: Callable[..., list[str]] = lambda *texts: list(texts)


# --- Which files, and how they are read ----------------------------------------------------------


def find_files(paths: Iterable[str | Path], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """List the files given, those with one of `suffixes` below the folders given, those that globs match.

    They are sorted, each there once; each path must give at least one.
    """
    wanted = ", ".join(f"*{suffix}" for suffix in suffixes)
    files: set[Path] = set()
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            # Hidden ones are copies and remains of other programs, such as .ipynb_checkpoints.
            there = {p for p in path.rglob("*") if "/." not in f"/{p.relative_to(path).as_posix()}"}
            there = {p for p in there if p.is_file()}
            found = [p for p in there if unpacked(p).suffix.lower() in suffixes]
            left = there.difference(found)  # what is passed over
            kinds = Counter(f"*{p.suffix}" if p.suffix else "without an ending" for p in left).most_common()
            others = ", ".join(
                [f"{n:,} {kind}" for kind, n in kinds[:_NAMED]] + ["..."] * (len(kinds) > _NAMED)
            )
            if not found:
                has = f"has no {wanted} files{', only ' if left else ''}{others}"
                raise InputError(f"{display_path(path)} {has}: name files, or another folder")
            if left and suffixes is SUFFIXES:
                passed = f"passed over {len(left):,} file{'s' * (len(left) > 1)} in {display_path(path)}"
                warnings.warn(f"{passed}: {others}; name files to read them too", stacklevel=1)
        elif not path.exists():
            found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
            if not found:
                raise InputError(f"cannot read {display_path(path)}: No such file or directory")
        elif not path.is_file():  # it is read more than once, which a pipe or a device does not allow
            raise InputError(f"{display_path(path)} is not a file")
        files.update(found)
    if not files:
        raise InputError(f"no text given: name one or more files, or folders with {wanted}")
    return sorted(files)


def unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _UNPACK else path


def check_growth(path: Path, packed_size: int, size: int) -> None:
    """Refuse a file that unpacks to a thousand times its size: texts of people never do."""
    if size > MAX_LINE_CHARS + 1000 * packed_size:
        raise InputError(f"{display_path(path)} unpacks to more than 1,000 times its size: give it unpacked")


@dataclass
class Reading:
    """How files are read, and what one reading of them left out."""

    segments: Segments
    progress: Progress = lambda n: None
    strict: bool = False  # a record without text is an error; else it is skipped
    errors: Literal["strict", "replace", "skip"] = "strict"  # of bytes that are no UTF-8, and NULs
    newlines: Literal["lf", "keep"] = "lf"

    source: str = ""  # the file that is read now, as messages name it
    records: int = 0
    skipped: int = 0  # records without text
    problem: str = ""  # of the first of these
    bad_bytes: int = 0

    @contextmanager
    def file(self, path: Path) -> Iterator[None]:
        """Turn what can go wrong while a file is read into an InputError."""
        self.source = display_path(path)
        try:
            yield
        except UnicodeError:
            remedy = ", or go on without such bytes: --errors=replace or --errors=skip"
            with _open(path) as raw:
                raise bad_text(iter(lambda: raw.read(_BLOCK), b""), self.source, remedy) from None
        except Exception as error:  # those of pyarrow and zstandard cannot be named where these are missing
            known = isinstance(error, OSError | EOFError | lzma.LZMAError | zlib.error)
            if not known and type(error).__module__.partition(".")[0] not in ("pyarrow", "zstandard", "zstd"):
                raise
            raise InputError(f"cannot read {self.source}: {first_line(error)}") from None

    def report(self) -> None:
        """Tell what was left out; that no record has a text is an error."""
        if self.skipped and self.skipped == self.records:
            raise InputError(self.problem)
        if self.skipped:
            what = f"{self.skipped:,} of {self.records:,} records had no text: skipped"
            warnings.warn(f"{what}; the first: {self.problem}", stacklevel=1)
        if self.bad_bytes:
            done = "left out" if self.errors == "skip" else "replaced"
            warnings.warn(f"{self.bad_bytes:,} bytes were no UTF-8 text: {done}", stacklevel=1)

    def error(self, place: str, problem: str) -> InputError:
        return InputError(f"{self.source}, {place}, {problem}")

    def parts(self, path: Path, size: int, by_line: bool = False) -> Iterator[str]:
        """Yield the text of a file in parts of `size` characters, or in its lines if these are no longer."""
        errors = "strict" if self.errors == "strict" else "surrogateescape"
        newline = None if self.newlines == "lf" else "\n"  # None turns "\r\n" and "\r" into "\n"
        with _open(path, self.progress) as raw:
            file = io.TextIOWrapper(raw, text_encoding(raw.peek(4)), errors, newline)
            read = file.readline if by_line else file.read
            for part in iter(lambda: read(size), ""):
                if errors == "strict" and "\0" in part:
                    raise UnicodeError
                if errors != "strict":
                    part, n = BAD_BYTE.subn("" if self.errors == "skip" else "\ufffd", part)
                    self.bad_bytes += n
                yield part

    def lines(self, path: Path, longest: int = MAX_LINE_CHARS) -> Iterator[str]:
        """Yield the lines of a file, none too long: a small packed file may hold one that fills memory."""
        for number, line in enumerate(self.parts(path, longest, by_line=True), 1):
            if len(line) == longest and not line.endswith("\n"):
                raise self.error(f"line {number:,}", f"has {longest:,} characters or more")
            yield line

    def texts(self, place: str, record: dict[str, Any]) -> list[str]:
        """Return the texts of a record; none if a field is missing or no text, or if all are blank."""
        self.records += 1
        # A name that is not there may lead to a field inside a field.
        values = [
            record[name] if name in record else dict(_flat(record)).get(name) for name in self.segments.fields
        ]
        if all(type(value) is str for value in values):
            texts = [self._clean(text) for text in self.segments.make(*values)]
            if any(map(str.strip, texts)):
                return texts
        self.problem = self.problem or str(self.error(place, self._problem(record)))
        self.skipped += 1
        if self.strict or self.skipped == self.records == _PATIENCE:
            raise InputError(self.problem)
        return []

    def _clean(self, text: str) -> str:
        text = with_lf(text) if self.newlines == "lf" else text
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can name half a character, which is no Unicode text
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text

    def _problem(self, record: dict[str, Any]) -> str:
        """Say why a record has no text, and what it has."""
        found = dict(_flat(record))
        wrong = [name for name in self.segments.fields if not isinstance(found.get(name, 0), str | None)]
        if not wrong:
            return f"has no text in {' and '.join(map(repr, self.segments.fields))}"
        name, value = wrong[0], found.get(wrong[0])
        has = f"has no field {name!r}" if value is None else f"has {short_repr(value)} in {name!r}, no text"
        for other, value in found.items():
            first = value[0] if isinstance(value, list) and value else None
            # A conversation is [{"role": ..., "content": ...}, ...] or [{"from": ..., "value": ...}, ...].
            if isinstance(first, dict) and first.keys() & {"role", "from"}:
                path = f".{other[:40]}[].{'value' if 'value' in first else 'content'}"
                how = f"""as `jq -c '{{text: [{path}] | join("\\n")}}'` does with JSON"""
                return f"{has}: {short_repr(other)} is a list of messages, make them one text first, {how}"
            if isinstance(first, dict) and len(found) == 1:
                return f"{has}: {short_repr(other)} is a list, take it out: jq -c '.{other[:40]}[]'"
        # The longest text comes first, and what is no text last.
        names = sorted(
            found.keys() - {name}, key=lambda name: -len(found[name]) if isinstance(found[name], str) else 1
        )
        if not names:
            return f"{has}: it has no other field"
        return f"{has}: it has {short_repr(names).strip('[]')}, and --field=NAME takes another"


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record and, by names with dots, those inside its fields."""
    for name, value in record.items():
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# --- Each kind of file ---------------------------------------------------------------------------


def _read_text(path: Path, reading: Reading) -> Iterator[Document]:
    parts = reading.parts(path, _BLOCK)
    if first := next(parts, ""):  # an empty file holds no document
        yield itertools.chain([first], parts)


def _read_lines(path: Path, reading: Reading) -> Iterator[Document]:
    for line in reading.lines(path):
        yield [line.rstrip("\r\n")]


def _read_json(path: Path, reading: Reading) -> Iterator[Document]:
    """Read JSON lines, one array of records, or records in any layout. A bare text is a record too."""
    decode = json.JSONDecoder().raw_decode
    held, line = "", 1  # what is not read yet, and its first line
    in_array: bool | None = None  # not known yet
    number = wanted = 0
    # A part is a line, and most often a record. Where it is not all of one, twice as much is held before the
    # next try, so that a record of many lines is not read again and again.
    for part in itertools.chain(reading.parts(path, _PART_CHARS, by_line=True), [None]):
        held += part or ""
        if part is not None and len(held) < wanted:
            continue
        if len(held) > _MAX_VALUES and count_values(held, _MAX_VALUES) > _MAX_VALUES:
            raise reading.error(f"line {line:,}", f"has more than {_MAX_VALUES:,} values")
        at = counted = 0
        while (at := _BETWEEN_JSON.match(held, at).end()) < len(held):  # type: ignore[union-attr]
            if in_array is None or held[at] == "]":
                in_array = in_array is None and held[at] == "["
                if held[at] in "[]":
                    at += 1
                    continue
            line, counted = line + held.count("\n", counted, at), at
            try:
                record, at = decode(held, at)
            except (ValueError, RecursionError) as error:
                where, what = getattr(error, "pos", 0), getattr(error, "msg", str(error))
                if part is not None and (where > len(held.rstrip()) - 10 or what.startswith("Unterminated")):
                    break  # it may go on
                raise reading.error(f"line {line:,}", f"is not JSON: {what}") from None
            number += 1
            place = f"record {number:,}" if in_array else f"line {line:,}"
            record = {"text": record} if isinstance(record, str) else record
            if not isinstance(record, dict):
                how = """`jq -c '{text: [.[].content] | join("\\n")}'` makes one text of a list of messages"""
                raise reading.error(place, f"is not a JSON object: give JSON lines; {how}")
            yield reading.texts(place, record)
        line += held.count("\n", counted, at)
        held = held[at:]
        wanted = 2 * len(held)
        if len(held) > MAX_LINE_CHARS:
            raise reading.error(f"line {line:,}", f"has {MAX_LINE_CHARS:,} characters or more")


def _read_csv(path: Path, reading: Reading) -> Iterator[Document]:
    """Read the rows below a header. Between cells stands a tab in .tsv, else what the header has most of."""
    lines = reading.lines(path, MAX_LINE_CHARS >> 3)  # a cell of one character takes far more
    head = next(lines, "")
    delimiter = "\t" if ".tsv" in path.suffixes else max(",;\t", key=head.count)
    csv.field_size_limit(MAX_LINE_CHARS)
    rows = csv.reader(itertools.chain([head], lines), delimiter=delimiter, strict=True)
    try:
        names, number = next(rows, []), rows.line_num + 1
        for row in rows:
            if any(row[len(names) :]):
                raise csv.Error(
                    f"{len(row)} cells for {len(names)} names: put text with {delimiter!r} in quotes"
                )
            if row:  # a blank line is none
                record = dict(itertools.zip_longest(names, row[: len(names)]))
                yield reading.texts(f"line {number:,}", record)
            number = rows.line_num + 1
    except csv.Error as error:
        raise reading.error(f"line {rows.line_num:,}", f"is not CSV ({error})") from None


def _read_parquet(path: Path, reading: Reading) -> Iterator[Document]:
    parquet, compute = optional("pyarrow.parquet"), optional("pyarrow.compute")
    # What the file says of its size, before any of it is read.
    meta = parquet.read_metadata(path)
    n_bytes = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    check_growth(path, path.stat().st_size, max(meta.num_rows, n_bytes))
    # Only the columns of text that are wanted are read; of the others a record has blank values.
    blank = dict(_flat({column.name: _blank(column.type) for column in meta.schema.to_arrow_schema()}))
    names = [name for name in reading.segments.fields if isinstance(blank.get(name), str)]
    number = 0
    # Texts come as dictionaries: a small file may name one long text in many rows.
    raw = io.BufferedReader(_Watched(path, reading.progress))
    with raw, parquet.ParquetFile(raw, read_dictionary=names) as file:
        for batch in file.iter_batches(batch_size=4096, columns=names):
            columns = []
            for name in names:
                outer, *inner = [name] if name in batch.schema.names else name.split(".")
                column = compute.struct_field(batch.column(outer), inner) if inner else batch.column(outer)
                # The dictionary may be that of many batches: only what this one uses becomes Python's.
                used = column.indices.unique()
                texts = column.dictionary.take(used)
                texts.validate(full=True)  # it is UTF-8
                texts = dict(zip(used.to_pylist(), texts.to_pylist(), strict=True))
                columns.append([texts[i] for i in column.indices.to_pylist()])
            for row in zip(*columns, strict=True) if columns else itertools.repeat((), batch.num_rows):
                number += 1
                record = blank | dict(zip(names, row, strict=True))
                yield reading.texts(f"row {number:,}", record)


def _blank(kind: Any) -> Any:
    """Make a value to show for a type of pyarrow's: "" for text."""
    types = optional("pyarrow.types")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_struct(kind):
        return {part.name: _blank(part.type) for part in kind}
    if types.is_list(kind) or types.is_large_list(kind):
        return [_blank(kind.value_type)]
    return "" if str(kind) in ("string", "large_string", "string_view") else kind


READERS: dict[str, Callable[[Path, Reading], Iterator[Document]]] = {
    "text": _read_text,
    "lines": _read_lines,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


# --- Opening files, packed or not ----------------------------------------------------------------


@contextmanager
def _open(path: Path, progress: Progress = lambda n: None) -> Iterator[Any]:
    # A file of the kernel may never end, and says that it is empty: so it is.
    with io.BufferedReader(_Watched(path if path.stat().st_size else Path(os.devnull), progress)) as raw:
        yield io.BufferedReader(_UNPACK[path.suffix](raw)) if path.suffix in _UNPACK else raw


class _Watched(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self.progress = progress

    def readinto(self, buffer: Any) -> int:
        n = super().readinto(buffer) or 0
        self.progress(n)
        return n


_UNPACK: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".xz": lambda raw: unpack_xz(raw, _MAX_XZ_BYTES),
    ".zst": lambda raw: optional("zstandard").ZstdDecompressor().stream_reader(raw, read_across_frames=True),
}


def optional(module: str) -> Any:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise InputError(f"{name} is not installed: pip install 'nanobackpack[data]'") from None
