"""What every view of the explorer gives back. A view is a function of its inputs; no browser is needed."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanobackpack.analysis.results import Result


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of a model, and how to make it again."""

    html: str
    """What is shown; all texts of the model and of its user are escaped."""
    results: list[Result] = field(default_factory=list)
    """The numbers that are shown, for the download."""
    drawn: list[Any] = field(default_factory=list)
    """Those of them that the picture for the download shows, each by its `plot`."""
    python: str = ""
    """The call that gives these numbers in Python."""
    command: str = ""
    """The command that gives them in a terminal."""
    state: dict[str, str] = field(default_factory=dict)
    """What restores the view, as the query of its address."""

    def png(self) -> bytes:
        """Draw what is `drawn`, one below the other."""
        from matplotlib.image import imread, imsave  # slow to import, and needed for pictures alone

        with tempfile.TemporaryDirectory() as folder:
            file, pictures = Path(folder, "view.png"), []
            for result in self.drawn:
                result.plot(str(file))
                pictures.append(imread(file))
            width = max(picture.shape[1] for picture in pictures)
            wide = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=1) for p in pictures]
            imsave(file, np.concatenate(wide))
            return file.read_bytes()


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
