"""Files written whole or not at all, files read within limits, and how messages name them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from nanobackpack.errors import InputError

MEGABYTE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Replacement:
    """New files that take the places of others at the end of a `with`, in order, or if an error occurs never.

    All lie on the disk before the first gets its name, so that neither a power cut leaves half a file, nor a
    full disk half of them.
    """

    def __enter__(self) -> Replacement:
        self._temporary: dict[Path, Path] = {}  # by the places they are to take
        return self

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Opens the new file for `path`, to be written before the next step."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        self._temporary[path] = temporary
        try:
            with open(temporary, "xb") as file:  # x: never through a link that someone put there
                yield file
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in _FULL and not error.filename:  # a failed write does not say of what
                error.filename = display_path(path)
            raise

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            for path, temporary in self._temporary.items() if kind is None else ():
                os.replace(temporary, path)
            for folder in {path.parent for path in self._temporary} if kind is None else ():
                _sync_folder(folder)
        finally:
            for temporary in self._temporary.values():
                temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """A `Replacement` of one file; `before` is called when it lies on the disk and has not got its name."""
    with Replacement() as new:
        with new.open(path) as file:
            yield file
        before()


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # not every file system does that
            os.fsync(handle)
        os.close(handle)


def sha256(path: Path, read: Callable[[int], object] = lambda n: None) -> str:
    """The SHA-256 of a file, in hex; `read` is told of the bytes as they are read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            read(len(chunk))
    return digest.hexdigest()


def verify(path: Path, expected: str, remedy: str, read: Callable[[int], object] = lambda n: None) -> None:
    """Refuse a file that does not have the SHA-256 which meta.json gives; `remedy` says what to do then."""
    if sha256(path, read) != expected:
        raise InputError(f"{display_path(path)} is damaged: its sha256 is not the one in meta.json: {remedy}")


def remove_stale(folder: Path) -> None:
    """Deletes what `replacing` left in `folder` when its process was killed; never what one still writes."""
    for path in folder.glob(".*.tmp"):
        ours = re.fullmatch(r"\..+\.(?:bin|json|jsonl|png|pt)\.(\d+)\.tmp", path.name)
        if ours and not _running(int(ours[1])):
            path.unlink(missing_ok=True)


def _running(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would not be harmless
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def display_path(path: str | Path) -> str:
    """A path as messages show it: relative where it lies below the current folder."""
    path = Path(path)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return (path.relative_to(Path.cwd()) if below else path).as_posix()


def check_writable(path: str) -> None:
    """Raises InputError if a file cannot be written there; an empty path means none is asked for."""
    if path and not Path(path).parent.is_dir():
        raise InputError(
            f"cannot write {path}: there is no folder {display_path(Path(path).parent)}, make it first"
        )
    if path and Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder, give the name of a file")


def plain_name(name: object) -> bool:
    """Whether a name found in a file can only mean something in that file's own folder."""
    return isinstance(name, str) and name == Path(name).name != ".." and "\0" not in name and len(name) < 256


def read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; links are followed, as model hubs are made of them.

    Raises: OSError; InputError for anything else, such as a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{display_path(path)} is not a file")
    if path.stat().st_size > limit:
        raise InputError(f"{display_path(path)} has more than {limit:,} bytes, too many for such a file")
    with open(path, "rb") as file:
        return file.read(limit)  # a file that says it is empty may still be endless


def read_json(path: Path, limit: int = MEGABYTE) -> Any:
    """What a JSON file of at most `limit` bytes holds. Raises: OSError; InputError as parse_json."""
    return parse_json(read_bytes(path, limit), display_path(path))


def parse_json(text: bytes | str, source: str) -> Any:
    """What a JSON text means. Raises: InputError unless every reader would agree on it: UTF-8, no name
    twice in an object, finite numbers, not nested beyond what Python takes."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice in an object")
        return values

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError("a number is not finite")
        return value

    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=once, parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise InputError(f"{source} is not JSON to be read here: it nests too deeply") from None
    except UnicodeDecodeError:
        raise InputError(f"{source} is not UTF-8") from None
    except ValueError as error:
        raise InputError(f"{source} is not JSON ({error})") from None


_TEXT_BYTES = 1 << 30  # of a text that is read whole


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, its line ends untouched. Raises InputError if there is none."""
    if path.is_dir():
        raise InputError(f"{display_path(path)} is a folder: give a text file")
    try:
        text = read_bytes(path, _TEXT_BYTES).decode()
    except OSError as error:
        raise InputError(f"cannot read {display_path(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{display_path(path)} is not UTF-8 text (byte {error.start} cannot be read): convert it first"
        ) from None
    if not text:
        raise InputError(f"{display_path(path)} is empty: give a file with text")
    return text
