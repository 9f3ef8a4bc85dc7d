"""What every view of the explorer gives back. A view is a function of its inputs; no browser is needed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nanobackpack.analysis.results import Result


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of a model, and how to make it again."""

    html: str
    """What is shown; all texts of the model and of its user are escaped."""
    results: list[Result] = field(default_factory=list)
    """The numbers that are shown, for the download."""
    python: str = ""
    """The call that gives these numbers in Python."""
    command: str = ""
    """The command that gives them in a terminal."""
    state: dict[str, str] = field(default_factory=dict)
    """What restores the view, as the query of its address."""


def python_of(source: str, *lines: str) -> str:
    """Write Python that opens a model, by the name or path it was opened with, and reads its senses."""
    first = ("import nanobackpack as nb", "", f"model = nb.load_model({source!r})")
    return (
        "\n".join((*first, 'senses = nb.Senses(model, bos="auto", special=True, typed=True)', *lines)) + "\n"
    )


def command_of(verb: str, source: str, *flags: str) -> str:
    """Write the command of a verb for this model, as a shell reads it."""
    model = f"--{'out_dir' if Path(source).is_dir() else 'init_from'}={source}"
    return shlex.join(["nanobackpack", verb, model, *flags])
