"""Tiny Shakespeare by characters: train.bin and val.bin in this folder. Run from anywhere:

python data/shakespeare_char/prepare.py                     # downloads 1.1 MB, once
python data/shakespeare_char/prepare.py --input FILE        # any text of yours instead
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli
from nanobackpack.text import prepare
from nanobackpack.text.corpus import from_files
from nanobackpack.text.splits import split_tail

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """Tiny Shakespeare by characters: the first 90 % are for training."""

    input: tuple[str, ...] = ()
    """Text file to use; empty: download Tiny Shakespeare."""
    tokenizer: str = "char"
    """char, or another kind: see data/shakespeare."""


def main(settings: Settings) -> None:
    corpus = from_files(settings.input) if settings.input else prepare.shakespeare(HERE)
    settings.write(HERE, {"": corpus}, split_tail(0.1), framed=False)


if __name__ == "__main__":
    cli.run(main, Settings)
