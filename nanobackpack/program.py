"""A program from its first moment to its last: its streams, Ctrl-C, errors in one line, the exit status.

    program.guard(main)      # call main, and exit with what it returns

What this file imports is there at once, so that Ctrl-C is heard while the rest, torch above all, is imported.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from nanobackpack.errors import InputError, ProcessLost, escape_controls, is_out_of_memory

SPINS = "10000"  # of some 50 ns each; the library's own number is 300,000
QUICK_S = 2.0  # several Ctrl-C within this time are one
STDOUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # names of the file that is printed to
_heard_s = -QUICK_S  # when the last Ctrl-C came that was not one of several


def guard(main: Callable[[], int | None]) -> NoReturn:
    """Call main and exit with what it returns (None: 0).

    Bad input prints one line and exits with 2, Ctrl-C with 130. Bugs keep their traceback; warnings are shown
    as notes. Of several processes only the first to fail prints its line; those it leaves behind exit with 1.
    """
    with contextlib.suppress(ValueError):  # in another thread than the main one Ctrl-C does not come
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # elsewhere nohup may ignore it
            signal.signal(signal.SIGINT, _interrupt)
    try:
        share_processors()
        prepare_streams()
        status = _status_of(main)
    except KeyboardInterrupt:
        status = 130
    # Python ends in peace: nothing is lost any more.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ignore_closed_stdout():  # or Python's own flush fails at exit, with another exit status
        sys.stderr.flush()
    sys.exit(status)


def _status_of(main: Callable[[], int | None]) -> int | None:
    """Call main; return the exit status, after the line that an error prints."""
    try:
        with warnings.catch_warnings():
            print_once = functools.cache(_print_line)  # what is read twice is noted once
            warnings.showwarning = lambda message, *_: print_once(f"note: {message}")
            status = main()
        sys.stdout.flush()
        return status
    except InputError as error:
        return fail(str(error))
    except ProcessLost as error:
        return fail(str(error), 1)
    except BrokenPipeError:  # the reader went away, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(
            "out of memory: take a smaller --batch_size or --num_samples, if there is one, or shorter texts"
        )


# --- Beside other programs --------------------------------------------------------------------


def share_processors() -> None:
    """Let threads that wait for each other sleep soon, so that other programs get their turn.

    PyTorch's threads meet hundreds of times in a training step, at the end of each operation. By default one
    that waits keeps its processor busy for 15 ms, and on a machine that has other things to do the thread it
    waits for is standing in line for that very processor: a step takes many times as long (docs/LOG.md). So
    spin for 0.5 ms, longer than nearly all of the pauses between two operations that threads share.

    PyTorch's library of threads on Linux reads this when torch is imported. What the user has set stays.
    """
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        os.environ["GOMP_SPINCOUNT"] = SPINS


# --- Streams ----------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable, whoever started the program and wherever they lead."""
    # Those that are closed, as services have them, lead nowhere from now on. Otherwise the next file that is
    # opened would take their place, and what is printed would be written into it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (stays open)
    # A character that their encoding does not have is written as \u5374.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # one that was a file when it was opened, and is none any more
                stream.reconfigure(errors="backslashreplace")


def protect_terminal() -> None:
    """From now on print control characters as \\x1b if stdout is a terminal, which would obey them.

    They come from models and files. A file or a pipe gets them as they are.
    """
    stream = sys.stdout
    if stream.isatty():
        write = stream.write
        stream.write = lambda text: write(escape_controls(text))  # type: ignore[method-assign]


@contextlib.contextmanager
def ignore_closed_stdout() -> Iterator[None]:
    """Let a run go on when the terminal or pipe that it prints to is closed: its lines then go nowhere."""
    try:
        yield
    except OSError:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # the other one may still be there
                stream.flush()
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- Ctrl-C -----------------------------------------------------------------------------------


def _interrupt(number: int, frame: FrameType | None) -> None:
    """What Ctrl-C does: raise KeyboardInterrupt, but end at once while a module is imported.

    Libraries take an exception in their imports for something else, or print it. Nothing is half-written
    then that kill -9 would not leave as well.
    """
    while frame:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(130)
        frame = frame.f_back
    if is_new_ctrl_c():
        raise KeyboardInterrupt


def is_new_ctrl_c() -> bool:
    """Tell whether a Ctrl-C that comes now counts, and is not one of several in quick succession."""
    global _heard_s
    now = time.monotonic()
    if now - _heard_s < QUICK_S:
        return False
    _heard_s = now
    return True


# --- Errors in one line -----------------------------------------------------------------------


def fail(message: str, status: int = 2) -> int:
    """Print the one line of an error, unless another process of the job has printed one already."""
    if _is_first_to_fail():
        _print_line(f"error: {message}")
    return status


def _print_line(text: str) -> None:
    """Print a line to stderr, in which there may be the name of a file."""
    print(escape_controls(" ".join(text.split("\n"))), file=sys.stderr, flush=True)


def _is_first_to_fail() -> bool:
    """Tell whether no other process of this job has reported an error: one line is enough for all.

    torchrun keeps a store for its processes: who counts to 1 there is the first. If it cannot be asked, the
    line is printed: twice is better than not at all.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or "TORCHELASTIC_USE_AGENT_STORE" not in os.environ:
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore

    try:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        counters = TCPStore(*address, timeout=timedelta(seconds=10))
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        return counters.add(f"nanobackpack errors {restart}", 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True
