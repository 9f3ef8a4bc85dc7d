"""Errors that are shown in one line, and what their messages are made of."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from operator import index
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used: one line with the value, what is allowed, and the way out.

    The command line prints it and exits with status 2. It is a ValueError; a plain ValueError is for Python
    code that calls a model, or `generate`, with ids, shapes or numbers that cannot be. Every other exception
    is a bug of ours.
    """

    def __init__(self, message: str) -> None:
        # A message may quote a file or an argument, whose control characters must not reach a terminal.
        super().__init__("".join(c if c.isprintable() else " " for c in message))


class WrongType(InputError, TypeError):
    """What Python code gets that passes a value of another type than is wanted: a TypeError."""

    def __init__(self, name: str, wanted: str, value: Any) -> None:
        array = hasattr(value, "dtype")  # of any library
        shown = f"{tuple(value.shape)} {value.dtype}" if array else short_repr(value)
        super().__init__(f"{name} must be {wanted}, not {shown} ({type(value).__name__})")


def whole_numbers(name: str, wanted: str, values: Any) -> list[int]:
    """Return the numbers of a list, an array or a tensor; nothing is rounded, and no text is read as one."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    try:
        if isinstance(listed, bytes):  # a text too, though Python takes it for numbers
            raise TypeError
        return [index(value) for value in listed]
    except TypeError:
        raise WrongType(name, wanted, values) from None


def short_repr(value: object) -> str:
    """Show a value in one short line, however large, deep or repetitive it is."""
    text = " ".join(reprlib.repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def first_few(names: Iterable[object]) -> str:
    """List the first of many names, found in a file or a folder, in one short line."""
    first = [f"{name!s:.60}" for name in list(names)[:5]]
    return ", ".join(first[:4] + ["..."] * (len(first) > 4)) or "nothing"


def first_line(error: BaseException) -> str:
    """Return what went wrong, for a message: the system's word or an error's first line, cut if long."""
    reason = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    line = reason.splitlines()[0]
    return line if len(line) <= 200 else line.split(". ")[0][:200]


class ProcessLost(Exception):
    """Another process of the job ended or cannot be reached."""
