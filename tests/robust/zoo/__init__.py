"""A zoo of hostile files, each in a folder of its own: what strangers could send.

Each beast names the loaders it is fed to and why it is hostile. test_zoo.py opens them in a process that
watches what they do (keeper.py). Nothing harmful comes of the files themselves: what they try to call
is `os.mkdir`, on a folder named PROOF in the current one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import checkpoints, datasets, models, pickles, texts  # noqa: F401 (they fill BEASTS)
from .loaders import LOADERS
from .registry import BEASTS

__all__ = ["BEASTS", "LOADERS", "write"]


def write(name: str, folder: Path) -> None:
    """Write one beast into a new folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    BEASTS[name].make(folder)
