"""Files written whole or not at all, and how messages name them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nanobackpack.config import InputError


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` at the end, or never, if an error occurs.

    It lies on the disk before it gets its name, so that no power cut leaves half a file; `before` is called
    in between.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def shown(path: str | Path) -> str:
    """A path as messages show it: relative where it lies below the current folder."""
    path = Path(path)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return (path.relative_to(Path.cwd()) if below else path).as_posix()


def check_place(path: str) -> None:
    """Raises InputError if a file cannot be written there; an empty path means none is asked for."""
    if path and not Path(path).parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {shown(Path(path).parent)}, make it first")
    if path and Path(path).is_dir():
        raise InputError(f"cannot write {path}: it is a folder, give the name of a file")
