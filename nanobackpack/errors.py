"""What can go wrong: errors that are shown in one line."""

from __future__ import annotations

import reprlib


class InputError(ValueError):
    """What the user gave cannot be used: one line with the value, what is allowed, and the way out.

    The command line prints it and exits with status 2; every other exception is a bug of ours.
    """

    def __init__(self, message: str) -> None:
        # It may quote a file or an argument, whose control characters must not reach a terminal.
        super().__init__("".join(c if c.isprintable() else " " for c in message))


def short_repr(value: object) -> str:
    """A value in one short line, however large, deep or repetitive it is."""
    text = " ".join(reprlib.repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


class ProcessLost(Exception):
    """Another process of the job ended or cannot be reached."""
