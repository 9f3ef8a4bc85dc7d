"""Guards of a run: one at a time in a folder, stopped by signals between two steps, told why it failed.

    with guard_run(config), StopSignals() as stop:
        while not stop.received:
            train_step()  # which no signal cuts short
    start_aside(work)()  # which Ctrl-C leaves behind

A run that fails says what to change: less memory, or where the step that went wrong is written down.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from nanobackpack.config import changed_settings
from nanobackpack.errors import InputError, is_out_of_memory
from nanobackpack.program import is_new_ctrl_c
from nanobackpack.safe.files import display_path, replacing

if TYPE_CHECKING:
    from nanobackpack.config import TrainConfig

T = TypeVar("T")
LOCK = "run.lock"
# What a run writes into its folder, in the order in which `put_aside` moves it: once ckpt.pt has gone, nobody
# takes what is left for a whole run.
RUN_FILES = (
    "ckpt_prev*.pt", "ckpt_[0-9]*.pt", "ckpt.pt", "best.pt",
    "config.json", "metrics.jsonl", "loss.png", "bad_step.json", "events.out.tfevents.*",
)  # fmt: skip
STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # USR1: Slurm's warning before the time is up


@contextmanager
def guard_run(config: TrainConfig, rank: int = 0) -> Iterator[None]:
    """Lock the folder of a run (its first process does), and turn running out of memory into advice."""
    lock = lock_folder(Path(config.out_dir)) if rank == 0 else nullcontext()
    with lock, within_memory(config):
        yield


# --- One run in a folder ----------------------------------------------------------------------


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock; an InputError names the process that holds it already."""
    # The lock is the system's, on an open file: however a process ends, kill -9 included, it is free again.
    # The library filelock would not do: before its version 4 an attempt empties the file, and with it the
    # name of the holder, or a file elsewhere that is linked here; and it never takes the file away again.
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    file = _open_locked(path)
    try:
        # Say who holds it, for the message to the next one.
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n")
        file.flush()
        yield
    finally:
        # Remove the file while it is still ours, then the folders that were made for nothing.
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # the folder may have been moved
                path.unlink()
        file.close()
        with suppress(OSError):
            for empty in made:
                empty.rmdir()  # fails unless it is empty


def _open_locked(path: Path) -> IO[str]:
    """Open the lock's file and lock it."""
    # The folder may come from elsewhere and the file will be emptied: follow no link, wait for no pipe.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        if _is_foreign(path):
            raise InputError(f"{display_path(path)} is a link or not a file, so no run made it: remove it")
        file = os.fdopen(os.open(path, flags, 0o666), "r+", encoding="utf-8")
        try:
            _lock(file)
            # A holder that ends removes the file: is this one still the file of that name?
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
        file.close()  # removed in between: try again


def _is_foreign(path: Path) -> bool:
    """Tell whether there is something that is not a file of this folder alone."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(found.st_mode) or found.st_nlink > 1


def _lock(file: IO[str]) -> None:
    """Lock an open file; BlockingIOError if another process has it locked."""
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
            pass  # a file system without locks: go on without


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


# --- The run that was in a folder before ------------------------------------------------------


def put_aside(folder: Path, overwrite: bool) -> str:
    """Move an earlier run's files to a sub-folder, or delete them; return a note, "" if there are none.

    A process that is killed meanwhile loses nothing, and the next new run goes on with the move.
    """
    files = [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern))]
    older = folder / "older-unfinished"
    # Settings, an empty log and its picture are of a run that ended before its first step: nothing to keep.
    log, little = folder / "metrics.jsonl", {"config.json", "metrics.jsonl", "loss.png"}
    is_little = {path.name for path in files} <= little and log.is_file() and not log.stat().st_size
    if (not files or is_little) and not older.exists():
        return ""
    if overwrite:
        for path in files:
            path.unlink()
        return f"the run that was in {display_path(folder)} is replaced"
    # The sub-folder gets its name when it has them all, so that no run is ever in two.
    older.mkdir(exist_ok=True)
    for path in files:
        path.replace(older / path.name)
    taken = [int(p.name[6:]) for p in folder.glob("older-*") if re.fullmatch("[0-9]{1,9}", p.name[6:])]
    older = older.rename(folder / f"older-{max(taken, default=0) + 1}")
    flags = shlex.join(["--init_from=resume", f"--out_dir={display_path(older)}"])
    how = f"; go on with it by {flags}" if (older / "ckpt.pt").exists() else ""
    return f"the run that was in {display_path(folder)} is now in {display_path(older)}{how}"


# --- Signals ----------------------------------------------------------------------------------


class Stopped(Exception):
    """A signal asked the run to end."""


class StopSignals:
    """Remember the first signal that asks the run to stop, so that the step under way is finished and saved.

    received   the signal's number, 0 while there is none
    alone      a Ctrl-C that comes later ends the run at once, but several in quick succession are one. Not so
               one of several processes, which may get the first Ctrl-C twice: from the terminal and from
               torchrun.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only
        for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
            # What nohup, or a shell, told the process to ignore stays ignored; but a run in the background of
            # a script, where Ctrl-C is ignored too, still ends when someone sends it SIGINT.
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        is_new = number == signal.SIGINT and is_new_ctrl_c()
        if self.received and is_new and self.alone:
            raise KeyboardInterrupt
        self.received = self.received or number


@contextmanager
def ending_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a program as Ctrl-C does, so that its temporary files are removed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python delivers signals to the main thread only
    # What nohup told the process to ignore stays ignored.
    before = {n: signal.signal(n, end) for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Work that hears no signal ----------------------------------------------------------------


def start_aside(work: Callable[[], T]) -> Callable[..., T]:
    """Start work that hears no signal, as that of a library in Rust, in a thread of its own.

    Returns a function that waits for its result. Ctrl-C while it waits leaves the work behind, to end with
    the process at the latest; so does TimeoutError after `limit` seconds of time and of the processor's time.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # a panic of Rust is no Exception
            outcome.set_exception(error)

    def result(limit: float = float("inf")) -> T:
        # A process that is suspended, or one of many, uses little of the processor's time.
        begin = time.monotonic(), time.process_time()
        while not wait([outcome], timeout=0.2).done:
            if min(time.monotonic() - begin[0], time.process_time() - begin[1]) > limit:
                raise TimeoutError(f"no end after {limit:.0f} seconds")
        return outcome.result()

    threading.Thread(target=run, daemon=True).start()  # a daemon: the process ends without it
    return result


# --- Out of memory ----------------------------------------------------------------------------


@contextmanager
def within_memory(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory, a GPU's or the machine's, into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise InputError(f"out of memory: {less_memory(config)}") from error


def less_memory(config: TrainConfig) -> str:
    """Suggest settings that learn the same in less memory."""
    B, n_micro = config.batch_size, config.gradient_accumulation_steps
    advice = []
    if B > 1:
        # The smallest factor, or the whole of a number that has no small one.
        factor = next((p for p in range(2, min(B, 1000)) if B % p == 0), B)
        advice.append(
            f"--batch_size={B // factor} --gradient_accumulation_steps={n_micro * factor}, "
            f"which are {B * n_micro} sequences a step as before"
        )
    if not config.recompute:
        advice.append("--recompute=True")
    return "take " + ", or ".join([*advice, "a smaller --block_size or model"])


# --- A step that went wrong -------------------------------------------------------------------


def report_bad_step(
    config: TrainConfig, what: str, step: int, lr: float, saved_step: int, batches: list[Any] | None
) -> InputError:
    """Write down what a step that went wrong saw, and the command that reaches it again; return the error.

    batches: of each micro-batch of process 0 the inputs and targets, (B, T) each; None in the other
    processes, which write nothing.
    """
    path = Path(config.out_dir) / "bad_step.json"
    if batches is not None:
        # The same run, from its last checkpoint or its beginning, until just after that step.
        begin = "resume" if saved_step >= 0 else config.init_from
        again = dataclasses.replace(config, max_iters=step + 1, log_interval=1, init_from=begin)
        flags = [f"--{name}={value}" for name, value in changed_settings(again).items()]
        report = {
            "step": step,
            "learning_rate": lr,
            "seed": config.seed,
            "last_saved_step": saved_step,
            "what": what,
            "command": shlex.join(["nanobackpack", "train", *flags]),
            "batches": [{"inputs": x.tolist(), "targets": y.tolist()} for x, y in batches],
        }
        with replacing(path) as file:
            file.write(json.dumps(report).encode())
    saved = f"{path.with_name('ckpt.pt')} holds step {saved_step}"
    return InputError(
        f"{what} (learning rate {lr:g}, seed {config.seed}); "
        f"{saved if saved_step >= 0 else 'nothing was saved yet'}, and {display_path(path)} tells "
        "what the step saw and how to repeat it: lower --learning_rate or --grad_clip"
    )
