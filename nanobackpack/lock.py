"""One run at a time in a folder: the system's lock on a file in it, which a dead process cannot hold."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nanobackpack.config import InputError
from nanobackpack.files import shown

NAME = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock while this lasts; takes an empty folder away again.

    The lock is the kernel's, which releases it however the process ends: what a killed one left behind is
    taken over. Where a file system has no locks, none is held.
    Raises: InputError naming the process that holds it, or if something else has the file's name; OSError
    if the folder cannot be written.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _open(path)
    try:
        file.seek(0)
        file.truncate()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()  # fails unless it is empty


def _open(path: Path) -> IO[str]:
    """The lock's file, locked. Raises: InputError if another process has it locked, or it is no such file."""
    # What a stranger's folder holds is not followed, nor waited for: it will be emptied.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        if _foreign(path):
            raise InputError(f"{shown(path)} is a link or no regular file, so no run made it: remove it")
        file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise InputError(
                f"{shown(path.parent)} is in use by {holder}: "
                "stop that run first, or give this one another --out_dir"
            ) from None
        except FileNotFoundError:
            pass
        file.close()  # its holder took it away in between: try again


def _foreign(path: Path) -> bool:
    """Whether something lies there that is not a file of this folder alone."""
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(there.st_mode) or there.st_nlink > 1


def _lock(file: IO[str]) -> None:
    """Raises: BlockingIOError if another process has it locked."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # a byte that nobody reads
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        who = json.load(file)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
