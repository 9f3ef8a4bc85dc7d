"""Files written whole or not at all, and how messages name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nanobackpack.config import InputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` at the end, or never, if an error occurs."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
