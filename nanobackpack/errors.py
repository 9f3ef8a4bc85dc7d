"""Errors that are shown in one line, and what their messages are made of."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from operator import index
from typing import Any

# What a terminal obeys instead of showing it: control characters but for line ends and tabs, and the marks
# that turn the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# What the system, and torch on any device, say when memory runs out, or cannot even be asked for.
_NO_MEMORY = (
    "out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc",
    "bad allocation", "storage size calculation overflowed", "invalid buffer size",
)  # fmt: skip


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
    try:
        text = " ".join(reprlib.repr(value).split())
    except ValueError:  # Python shows no integer of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def first_few(names: Iterable[object]) -> str:
    """List the first of many names, found in a file or a folder, in one short line."""
    first = [f"{name!s:.60}" for name in list(names)[:5]]
    return ", ".join(first[:4] + ["..."] * (len(first) > 4)) or "nothing"


def escape_controls(text: str) -> str:
    """Write the characters that a terminal would obey as \\x1b, \\r, \\u202e."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a lack of memory."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def first_line(error: BaseException) -> str:
    """Return what went wrong, for a message: the system's word or an error's first line, cut if long."""
    reason = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    line = reason.splitlines()[0]
    return line if len(line) <= 200 else line.split(". ")[0][:200]


class ProcessLost(Exception):
    """Another process of the job ended or cannot be reached."""
