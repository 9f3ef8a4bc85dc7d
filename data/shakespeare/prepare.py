"""Tiny Shakespeare by GPT-2's tokens: train.bin (301,966 tokens) and val.bin (36,059). Run from anywhere:

python data/shakespeare/prepare.py                          # downloads the text and the tokenizer, once
python data/shakespeare/prepare.py --input FILE --tokenizer FOLDER      # local copies of them
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
    """Tiny Shakespeare by GPT-2's tokens: the first 90 % of the characters are for training."""


def main(settings: Settings) -> None:
    corpus = from_files(settings.input) if settings.input else prepare.shakespeare(HERE)
    settings.write(HERE, {"": corpus}, split_tail(0.1), framed=False)


if __name__ == "__main__":
    cli.run(main, Settings)
