"""What every view of the explorer gives back. A view is a function of its inputs; no browser is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

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
