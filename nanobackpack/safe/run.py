"""One run at a time in a folder: the system's lock on a file in it, which a dead process cannot hold.

What a run says and leaves behind when it cannot go on: out of memory, or numbers that went astray."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import display_path, replacing

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
            raise InputError(
                f"{display_path(path)} is a link or no regular file, so no run made it: remove it"
            )
        file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                return file
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise InputError(
                f"{display_path(path.parent)} is in use by {holder}: "
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


_NO_MEMORY = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")


@contextmanager
def within_memory(config: TrainConfig) -> Iterator[None]:
    """Turns running out of memory, of a GPU or of the machine, into advice. Raises: InputError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(f"out of memory: {less_memory(config)}") from error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in _NO_MEMORY)


def less_memory(config: TrainConfig) -> str:
    """Settings that learn the same in less memory."""
    B, n_micro = config.batch_size, config.gradient_accumulation_steps
    advice = []
    if B > 1:
        factor = next(p for p in range(2, B + 1) if B % p == 0)
        advice.append(
            f"--batch_size={B // factor} --gradient_accumulation_steps={n_micro * factor}, "
            f"which are {B * n_micro} sequences a step as before"
        )
    if not config.recompute:
        advice.append("--recompute=True")
    return "take " + ", or ".join([*advice, "a smaller --block_size or model"])


def report_bad_step(
    path: Path, config: TrainConfig, step: int, lr: float, saved_step: int, batches: list[Any], **values: Any
) -> None:
    """Write down a step that went wrong: what it saw, and the command that comes to it again.

    batches: of each micro-batch of process 0 the inputs and targets, (B, T) each.
    """
    begin = "resume" if saved_step >= 0 else config.init_from
    again = dataclasses.replace(config, max_iters=step + 1, log_interval=1, init_from=begin)
    flags = [
        f"--{f.name}={getattr(again, f.name)}"
        for f in dataclasses.fields(again)
        if getattr(again, f.name) != f.default
    ]
    report = {
        "step": step,
        "learning_rate": lr,
        "seed": config.seed,
        "last_saved_step": saved_step,
        **values,
        "command": shlex.join(["python", "train.py", *flags]),
        "batches": [{"inputs": x.tolist(), "targets": y.tolist()} for x, y in batches],
    }
    with replacing(path) as file:
        file.write(json.dumps(report).encode())
