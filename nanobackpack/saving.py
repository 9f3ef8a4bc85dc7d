"""The states of a run on disk: written in the background, the last few kept, and found again."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nanobackpack import checkpoint
from nanobackpack.config import InputError, brief
from nanobackpack.files import shown

LAST = "ckpt.pt"


class Saver:
    """Writes the states of a run into its folder, one at a time, while training goes on.

    `resumed` is the file the run goes on from, if it does. States of a run before it stay until this one
    saves, and never beside those of this one; nor does a damaged ckpt.pt take the place of the one before it.
    """

    def __init__(self, folder: Path, keep_last: int, resumed: Path | None) -> None:
        self.folder = folder
        self._previous = [folder / name for name in previous(keep_last)]
        self._first = resumed is None
        self._last_is_whole = resumed is not None and resumed.name == LAST
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread:
            self._thread.join()
        if error is None:
            self.check()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Begin to write a state: returns when it is copied to memory of the host.

        Raises: InputError if the one before could not be written.
        """
        self.wait()
        held = on_host(state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have arrived
        self._thread = threading.Thread(target=self._write, args=(name, held))
        self._thread.start()

    def wait(self) -> None:
        """Return when the last state is on the disk. Raises: InputError if it could not be written."""
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises: InputError if a state could not be written."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, name: str, state: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            checkpoint.save(path, state, self._keep if name == LAST else lambda: None)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's, of a write that failed
            kept = f"; {LAST} is still the state before" if (self.folder / LAST).is_file() else ""
            self._error = InputError(
                f"cannot write {shown(path)} ({_reason(error)}){kept}: make room or mend the disk, "
                "then go on with the same command and --init_from=resume"
            )
            self._error.__cause__ = error
        except Exception as error:  # a bug of ours, to be shown where someone looks
            self._error = error

    def _keep(self) -> None:
        """Give the states that are there their new names; at no moment is there none called ckpt.pt."""
        kept = [] if self._first else self._previous
        others = [self.folder / "best.pt"] if self._first else []
        for path in (*self.folder.glob("ckpt_prev*.pt"), *others):
            if path not in kept:
                path.unlink(missing_ok=True)
        if self._last_is_whole:
            for newer, older in reversed(list(itertools.pairwise([self.folder / LAST, *kept]))):
                if newer.is_file():
                    _copy(newer, older)
        self._first, self._last_is_whole = False, True


def previous(keep_last: int) -> list[str]:
    """The names of the states before ckpt.pt, newest first."""
    return [f"ckpt_prev{i if i > 1 else ''}.pt" for i in range(1, keep_last)]


def _copy(source: Path, target: Path) -> None:
    """Put a file under another name too: a second name for it, or where there is no such thing a copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def on_host(state: Any) -> Any:
    """A copy of a state whose tensors are on the CPU; from a GPU it may still be under way."""
    if isinstance(state, Tensor):
        gpu = state.device.type == "cuda"
        host = torch.empty_like(state, device="cpu", pin_memory=gpu, requires_grad=False)
        return host.copy_(state.detach(), non_blocking=gpu)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state


def last_state(folder: Path) -> tuple[dict[str, Any], Path, str]:
    """The newest whole state of the run in a folder: its content, its file, and a line if a newer one is
    damaged.

    Raises: InputError if there is none.
    """
    problem: InputError | None = None
    for name in (LAST, *previous(len(list(folder.glob("ckpt_prev*.pt"))) + 1)):
        path = folder / name
        try:
            state = checkpoint.read(path)
            checkpoint.check_run(state, path)
        except InputError as error:
            problem = problem or error
        else:
            note = f"{problem}: going on from {name}, step {brief(state.get('iter_num'))}" if problem else ""
            return state, path, note
    assert problem
    raise problem


def _reason(error: BaseException) -> str:
    """The system's word for what went wrong, however torch wrapped it."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
