"""Files written whole or not at all, files read within limits, and how messages name them.

    with replacing(path) as file:
        file.write(b"...")
    settings = read_json(path)

A new file takes the place of the old one when all of it is on the disk. A file that is read whole has a limit
to its size, and JSON is taken if every reader would agree on what it says. Text is UTF-8, or UTF-16 or UTF-32
with a byte order mark, which is never part of it.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nanobackpack.errors import InputError, first_line
from nanobackpack.program import STDOUT

MEGABYTE = 1 << 20
_MAX_TEXT_BYTES = 1 << 30  # of a text that is read whole
BAD_BYTE = re.compile(
    "[\udc80-\udcff\0]"
)  # a byte that is no UTF-8, as "surrogateescape" decodes it, or a NUL
UNFINISHED = ".unfinished.json"  # lists the new files of a folder that do not all have their places yet
_TEMPORARY = re.compile(r"\.(.+\.(?:bin|json|jsonl|png|pt))\.(\d+)(?:\.\w+)?\.tmp")  # the name of a new file
_OWN = secrets.token_hex(4)  # in another container there may be a process of the same number
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def display_path(path: str | Path) -> str:
    """Show a path in a message: relative where it lies below the current folder."""
    path = Path(path)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return (path.relative_to(Path.cwd()) if below else path).as_posix()


# --- Writing ----------------------------------------------------------------------------------


class Replacement:
    """New files that take the places of others at the end of a `with`, in order, or after an error never.

    All are on the disk before the first gets its name: a power cut leaves no half file, a full disk not some
    of several. A `folder` is given where several below it belong together: a list there names them until all
    have their places, and whoever opens the folder calls `finish_replacing`, should the process be killed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._temporary: dict[Path, Path] = {}  # the place of each → where it is written

    def __enter__(self) -> Replacement:
        return self

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Open the new file for `path`, to be written before the next one."""
        temporary = _temporary(path)
        temporary.unlink(missing_ok=True)
        self._temporary[path] = temporary
        try:
            with open(temporary, "xb") as file:  # x: never through a link that someone put there
                yield file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in _DISK_FULL and not error.filename:  # a failed write does not say of what
                error.filename = display_path(path)
            raise

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        folders = {path.parent for path in self._temporary}
        try:
            if kind is None and self._folder:
                names = [path.relative_to(self._folder).as_posix() for path in self._temporary.values()]
                _sync_folders(folders)
                with replacing(self._folder / UNFINISHED) as file:
                    file.write(json.dumps(names).encode())
                self._temporary.clear()  # from here on the new files count
                try:
                    finish_replacing(self._folder)
                finally:  # a signal may have come in between
                    finish_replacing(self._folder)
            elif kind is None:
                for path, temporary in self._temporary.items():
                    os.replace(temporary, path)
                _sync_folders(folders)
        finally:
            for temporary in self._temporary.values():
                temporary.unlink(missing_ok=True)


def finish_replacing(folder: Path) -> None:
    """Give the new files below `folder` their places, if a process was killed as it did that."""
    unfinished = folder / UNFINISHED
    try:
        names = read_json(unfinished)
    except FileNotFoundError:
        return
    paths = [folder / str(name) for name in names] if isinstance(names, list) else []
    # The folder may come from elsewhere: nothing outside of it is touched.
    places = {
        path: path.with_name(name[1])
        for path in paths
        if (name := _TEMPORARY.fullmatch(path.name))
        and path.parent.resolve().is_relative_to(folder.resolve())
    }
    if not places or len(places) < len(paths):
        raise InputError(f"{display_path(unfinished)} is damaged: remove it, and make the folder anew")
    for path, place in places.items():
        with suppress(FileNotFoundError):  # it has its place already
            os.replace(path, place)
    _sync_folders({path.parent for path in places})
    unfinished.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Replace one file; `before` is called when the new one is on the disk, just before it gets its name."""
    with Replacement() as new:
        with new.open(path) as file:
            yield file
        before()


def _temporary(path: Path) -> Path:
    """Name the place where the new file for `path` is written, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.{_OWN}.tmp")


def _sync_folders(folders: Iterable[Path]) -> None:
    """Bring the names in folders to the disk."""
    for folder in folders if os.name == "posix" else ():
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # not every file system can
            os.fsync(handle)
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Delete what `replacing` left in `folder` when its process was killed."""
    # What a live process writes stays: preparing data holds no lock, and although a run does, other programs
    # may write into its folder (--json=out/senses.json).
    for path in folder.glob(".*.tmp"):
        ours = _TEMPORARY.fullmatch(path.name)
        if ours and not _is_running(int(ours[2])):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def check_writable(path: str) -> None:
    """Refuse a place where `writing` could not write, before any work is done; "" asks for no file."""
    place = Path(path)
    if not path or path in STDOUT:
        return
    try:
        if place.is_dir():
            raise InputError(f"cannot write {path}: it is a folder, give the name of a file")
        if not place.parent.is_dir():
            folder = display_path(place.parent)
            raise InputError(f"cannot write {path}: there is no folder {folder}, make it first")
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if place.is_file() or not place.exists():
            temporary = _temporary(Path(os.path.realpath(place)))
            temporary.touch(exist_ok=False)
            temporary.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {first_line(error)}") from None


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Write the file that the user names: whole or not at all, and a link stays, as its target is replaced.

    A device or a pipe is written into.
    """
    place, is_stdout = Path(path), str(path) in STDOUT
    if is_stdout or (place.exists() and not place.is_file()):
        # What is printed to may be a file, which is not to begin anew.
        with open(os.dup(1) if is_stdout else place, "wb") as file:
            yield file
    else:
        with replacing(Path(os.path.realpath(place))) as file:
            yield file


# --- Reading ----------------------------------------------------------------------------------


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; a folder, a device or a pipe is an InputError."""
    # Links are followed, since the cache of a model hub is made of them.
    if path.exists() and not path.is_file():
        raise InputError(f"{display_path(path)} is not a file")
    if (n_bytes := path.stat().st_size) > limit:
        raise InputError(f"{display_path(path)} has more than {limit:,} bytes, too many for such a file")
    with open(path, "rb") as file:
        return file.read(n_bytes) if n_bytes else b""  # those of the kernel say so, and some never end


def read_json(path: Path, limit: int = MEGABYTE) -> Any:
    """Read a JSON file of at most `limit` bytes."""
    return parse_json(read_bytes(path, limit), display_path(path))


def parse_json(text: bytes | str, source: str) -> Any:
    """Parse a JSON text if every reader would agree on it: finite numbers, no name twice in an object, and
    nested no deeper than Python can follow."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice in an object")
        return values

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError("a number is not finite")
        return value

    text = decode_text(text, source) if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise InputError(f"{source} is not JSON to be read here: it nests too deeply") from None
    except ValueError as error:
        raise InputError(f"{source} is not JSON ({error})") from None


def read_text(path: Path) -> str:
    """Read a text whole, its line ends untouched; an empty one is an InputError."""
    if path.is_dir():
        raise InputError(f"{display_path(path)} is a folder: give a text file")
    try:
        text = decode_text(read_bytes(path, _MAX_TEXT_BYTES), display_path(path))
    except OSError as error:
        raise InputError(f"cannot read {display_path(path)}: {error.strerror}") from None
    if not text:
        raise InputError(f"{display_path(path)} is empty: give a file with text")
    return text


def with_lf(text: str) -> str:
    """Turn the line ends of Windows, "\\r\\n", and of old Macs, "\\r", into "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def text_encoding(start: bytes) -> str:
    """Tell how a text is encoded that begins so: its byte order mark, which is not part of it, says so."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # before UTF-16, whose mark begins alike
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decode_text(content: bytes, source: str) -> str:
    """Decode a text, without its byte order mark; errors name `source`."""
    try:
        if "\0" not in (text := content.decode(text_encoding(content))):
            return text
    except UnicodeDecodeError:
        pass
    raise bad_text([content], source)


def bad_text(parts: Iterable[bytes], source: str, remedy: str = "") -> InputError:
    """Say where a text has its first byte that is no UTF-8, or its first NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    offset, line = 0, 1
    for part in itertools.chain(parts, [b""]):
        text = decoder.decode(part, not part)
        found = BAD_BYTE.search(text)
        good = text[: found.start()] if found else text
        offset, line = offset + len(good.encode()), line + good.count("\n")
        if found:
            break
    byte = text[len(good) :][:1].encode(errors="surrogateescape")
    place = f"byte {offset:,} (line {line:,})"
    what = f"has a NUL at {place}" if byte == b"\0" else f"is not UTF-8 text: {place} is 0x{byte.hex()}"
    # The likeliest: of UTF-16 most letters have a NUL, the second of two bytes in UTF-16LE.
    wide = "UTF-16BE" if byte == b"\0" and offset % 2 == 0 else "UTF-16LE"
    encoding = wide if "\0" in text else "WINDOWS-1252"
    return InputError(
        f"{source} {what}: convert it, as `iconv -f {encoding} -t UTF-8` does if it is {encoding}{remedy}"
    )


def sha256(path: Path, read: Callable[[int], object] = lambda n: None) -> str:
    """Return the SHA-256 of a file, in hex; `read` is told how many bytes were read, for a progress bar."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(MEGABYTE):
            digest.update(chunk)
            read(len(chunk))
    return digest.hexdigest()


def verify(path: Path, expected: str, remedy: str, read: Callable[[int], object] = lambda n: None) -> None:
    """Refuse a file that does not have the SHA-256 which meta.json gives; `remedy` says what to do then."""
    if sha256(path, read) != expected:
        raise InputError(f"{display_path(path)} is damaged: its sha256 is not the one in meta.json: {remedy}")


def plain_name(name: object) -> bool:
    """Tell whether a name found in a file can only mean something in that file's own folder."""
    return (
        isinstance(name, str) and name == Path(name).name != ".." and name.isprintable() and len(name) < 256
    )
