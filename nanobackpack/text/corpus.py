"""Where documents come from: local files in many layouts, or data sets of the hub, never held in memory.

    corpus = from_files(["notes/", "more.jsonl.gz"])
    for piece in corpus.read():
        print(piece.text, end="\n\n" if piece.closes else "")

A document is read in one or more pieces, so that one of any length takes little memory. Texts are cut where
all our tokenizers cut them anyway: the tokens of the pieces are those of the whole text.
"""

from __future__ import annotations

import functools
import glob
import gzip
import importlib
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from nanobackpack.errors import InputError, first_line, short_repr
from nanobackpack.safe.files import display_path
from nanobackpack.safe.untrusted import count_values, unpack_xz

PIECE_CHARS = 1 << 16
_WORD_CHARS = 1 << 18  # a text this long without a space is cut anywhere
_MAX_LINE_CHARS = 1 << 25  # of a line that must be read whole
_MAX_VALUES = 1 << 19  # in a line of JSON, since each may take a hundred times its length
_MAX_XZ_BYTES = 1 << 27  # of memory to unpack .xz with; xz -9 asks for half of it
_WORD_END = re.compile(r"\S(?=\s)")
_LAST_END = re.compile(r".*\S(?=[\r\n])|.*\S(?=\s)", re.DOTALL)  # of a line, else of a word

KINDS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")  # what is looked for in folders, packed or not

Progress = Callable[[int], object]
"""Is told how many more bytes of a file have been read."""
Segments = Callable[[dict[str, Any]], Sequence[str]]
"""The texts of a record, in order: one, or several to be separated by eos_id."""


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
    paths: Sequence[str | Path], segments: Segments | None = None, kind: str | None = None
) -> Corpus:
    """Make a corpus of files, of folders (searched for SUFFIXES) and of globs.

    kind: text (the file is one document), lines (each line is one), json (each line is a record), parquet;
    None: by the file's name, text if that does not tell. segments: what to take from a record, by default
    its "text".
    """
    files = find_files(paths)

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        for path in files:
            read_kind = _READERS[kind or KINDS.get(_unpacked(path).suffix, "text")]
            packed_size, n_chars = path.stat().st_size, 0
            with _report_read_errors(path):
                for piece in read_kind(path, segments or field("text"), progress):
                    n_chars += len(piece.text)
                    _check_growth(path, packed_size, n_chars)
                    yield piece

    return Corpus(", ".join(map(display_path, paths)), sum(p.stat().st_size for p in files), read)


def from_hub(name: str, segments: Segments, config: str | None = None, **options: Any) -> Corpus:
    """Make a corpus of a data set of the hub; `options` go to datasets.load_dataset."""

    @functools.cache  # downloaded when they are first read
    def records() -> Any:
        datasets = _extra("datasets")
        _extra("huggingface_hub").utils.logging.set_verbosity_error()  # the last failure is reported here
        try:
            return datasets.load_dataset(name, config, split="train", **options)
        except Exception as error:  # no network, no such name, no space: each has its own type
            raise InputError(
                f"cannot fetch {name} from the hub ({first_line(error)}): give local files with --input"
            ) from None

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        for columns in records().iter(batch_size=256):
            for values in zip(*columns.values(), strict=True):
                record = dict(zip(columns, values, strict=True))
                yield from document(_texts(record, segments, name))

    return Corpus(f"{name} on the hub", 0, read)


def chained(corpora: Sequence[Corpus]) -> Corpus:
    """Make a corpus of several, one after the other."""

    def read(progress: Progress = lambda n: None) -> Iterator[Piece]:
        for corpus in corpora:
            yield from corpus.read(progress)

    return Corpus(", ".join(c.title for c in corpora), sum(c.n_bytes for c in corpora), read)


def separated(corpus: Corpus, mark: str) -> Corpus:
    """Make documents of what stands between the marks; line ends around a mark belong to it."""

    def read(*args: Any) -> Iterator[Piece]:
        held = ""  # since the last mark
        for piece in corpus.read(*args):
            *texts, held = (held + piece.text).split(mark)
            if len(held) > _MAX_LINE_CHARS:
                raise InputError(f"{corpus.title} has {_MAX_LINE_CHARS:,} characters without a {mark!r}")
            if piece.closes:
                texts, held = [*texts, held], ""
            for text in texts:
                yield from document([text.strip("\r\n")])

    return corpus._replace(read=read)


def field(name: str) -> Segments:
    """Make a function that takes one field of a record."""
    return lambda record: [record[name]]


# --- Cutting -----------------------------------------------------------------------------------


def document(segments: Sequence[str]) -> Iterator[Piece]:
    """Cut a document into pieces: none, if there is nothing but space in it."""
    if any(map(str.strip, segments)):
        for i, segment in enumerate(segments):
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
            # grow, up to a limit.
            end = _WORD_END.search(held, searched) and _LAST_END.match(held)
            if not end and len(held) < _WORD_CHARS:
                searched = len(held) - 1
                break
            at = end.end() if end else _WORD_CHARS
            yield Piece(held[:at], opens, False)
            held, opens, searched = held[at:], False, 0
    yield Piece(held, opens, True)


# --- Files -------------------------------------------------------------------------------------


def find_files(paths: Iterable[str | Path], suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """List the files given, those with one of `suffixes` below the folders given, those that globs match.

    They are sorted, each there once; each path must give at least one.
    """
    wanted = ", ".join(f"*{suffix}" for suffix in suffixes)
    files: set[Path] = set()
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = [p for p in path.rglob("*") if _unpacked(p).suffix in suffixes and p.is_file()]
            if not found:
                raise InputError(f"{display_path(path)} has no {wanted} files: give another folder")
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


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in _UNPACK else path


def _check_growth(path: Path, packed_size: int, size: int) -> None:
    """Refuse a file that unpacks to a thousand times its size: texts of people never do."""
    if size > _MAX_LINE_CHARS + 1000 * packed_size:
        raise InputError(f"{display_path(path)} unpacks to more than 1,000 times its size: give it unpacked")


# The readers of the kinds of files.


def _read_text(path: Path, segments: Segments, progress: Progress) -> Iterator[Piece]:
    with _open_text(path, progress) as file:
        first = file.read(PIECE_CHARS)
        if first:  # an empty file holds no document
            yield from cut(itertools.chain([first], iter(lambda: file.read(PIECE_CHARS), "")))


def _read_lines(path: Path, segments: Segments, progress: Progress) -> Iterator[Piece]:
    with _open_text(path, progress) as file:
        for _, line in _numbered(path, file):
            yield from document([line.rstrip("\r\n")])


def _numbered(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, none too long: a small packed file may hold one that fills all memory."""
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_CHARS), ""), 1):
        if len(line) == _MAX_LINE_CHARS and not line.endswith("\n"):
            raise InputError(
                f"{display_path(path)}, line {number}, has {_MAX_LINE_CHARS:,} characters or more"
            )
        yield number, line


def _read_json(path: Path, segments: Segments, progress: Progress) -> Iterator[Piece]:
    with _open_text(path, progress) as file:
        for number, line in _numbered(path, file):
            if line.isspace():
                continue
            where = f"{display_path(path)}, line {number},"
            if count_values(line, _MAX_VALUES) > _MAX_VALUES:
                raise InputError(f"{where} has more than {_MAX_VALUES:,} values")
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not JSON ({error}): give JSON lines") from None
            if not isinstance(record, dict):
                raise InputError(f"{where} is not a JSON object: give JSON lines")
            yield from document(_texts(record, segments, where))


def _read_parquet(path: Path, segments: Segments, progress: Progress) -> Iterator[Piece]:
    parquet, compute = _extra("pyarrow.parquet"), _extra("pyarrow.compute")
    # What the file says of its size, before any of it is read.
    meta = parquet.read_metadata(path)
    n_bytes = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    _check_growth(path, path.stat().st_size, max(meta.num_rows, n_bytes))
    schema = meta.schema.to_arrow_schema()
    names = [column.name for column in schema if _holds_text(column.type)]
    # Only columns of text are read, and as dictionaries: a small file may name one long text in many rows.
    raw = io.BufferedReader(_Watched(path, progress))
    with raw, parquet.ParquetFile(raw, read_dictionary=names) as file:
        for batch in file.iter_batches(batch_size=256, columns=names):
            columns = {n: c for n, c in zip(batch.schema.names, batch.columns, strict=True) if n in names}
            for name, column in columns.items():
                if (compute.max(compute.utf8_length(column.dictionary)).as_py() or 0) >= _MAX_LINE_CHARS:
                    raise InputError(
                        f"{display_path(path)} has a text of {_MAX_LINE_CHARS:,} characters or more "
                        f"in its column {short_repr(name)}"
                    )
            for row in range(batch.num_rows):
                # A field that was not read is None: an error if it is wanted, as in JSON if it is no text.
                record = dict.fromkeys(schema.names) | {n: c[row].as_py() for n, c in columns.items()}
                yield from document(_texts(record, segments, display_path(path)))


def _holds_text(column_type: Any) -> bool:
    return str(getattr(column_type, "value_type", column_type)) in ("string", "large_string", "string_view")


_READERS = {"text": _read_text, "lines": _read_lines, "json": _read_json, "parquet": _read_parquet}


def _texts(record: dict[str, Any], segments: Segments, where: str) -> list[str]:
    """Return what `segments` takes from a record: one or more texts."""
    try:
        texts: Sequence[Any] = segments(record)
    except KeyError as error:
        raise InputError(
            f"{where} has no field {error}: it has {short_repr(list(record)).strip('[]') or 'none'}"
        ) from None
    except (TypeError, AttributeError):  # it is not text, but was taken for it
        texts = [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where} has a field that should be text and is not: {short_repr(record)}")
    # JSON can name half a character, which is no Unicode text.
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


class _Watched(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self.progress = progress

    def readinto(self, buffer: Any) -> int:
        n = super().readinto(buffer) or 0
        self.progress(n)
        return n


@contextmanager
def _open_text(path: Path, progress: Progress) -> Iterator[IO[str]]:
    """Open the text of a file, unpacked, its line ends untouched, cut into lines at "\\n" alone."""
    with io.BufferedReader(_Watched(path, progress)) as raw:
        packed = _UNPACK[path.suffix](raw) if path.suffix in _UNPACK else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            yield file


_UNPACK: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".xz": lambda raw: unpack_xz(raw, _MAX_XZ_BYTES),
    ".zst": lambda raw: _extra("zstandard").ZstdDecompressor().stream_reader(raw, read_across_frames=True),
}


@contextmanager
def _report_read_errors(path: Path) -> Iterator[None]:
    """Turn what can go wrong while a file is read into an InputError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(
            f"{display_path(path)} is not UTF-8 text ({error.reason}): convert it first"
        ) from None
    except Exception as error:  # those of pyarrow and zstandard cannot be named where these are not installed
        known = isinstance(error, OSError | EOFError | lzma.LZMAError | zlib.error)
        if not known and type(error).__module__.partition(".")[0] not in ("pyarrow", "zstandard", "zstd"):
            raise
        raise InputError(f"cannot read {display_path(path)}: {first_line(error)}") from None


def _extra(module: str) -> Any:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise InputError(f"{name} is not installed: pip install 'nanobackpack[data]'") from None
