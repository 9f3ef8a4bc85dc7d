"""OpenWebText by GPT-2's tokens, <|endoftext|> after each document. Run from anywhere:

python data/openwebtext/prepare.py                          # the hub's copy, some 40 GB of text
python data/openwebtext/prepare.py --input FOLDER           # a local copy: parquet, jsonl or txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli
from nanobackpack.text import prepare
from nanobackpack.text.corpus import field, from_files, from_hub
from nanobackpack.text.splits import fraction, split_random

HERE = Path(__file__).resolve().parent
HUB = "Skylion007/openwebtext"


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """OpenWebText: 0.05 % of the documents are for validation."""

    input: tuple[str, ...] = ()
    """Local files (parquet, jsonl, txt; also .gz, .xz, .zst) or folders; empty: fetch it from the hub."""


def main(settings: Settings) -> None:
    corpus = from_files(settings.input) if settings.input else from_hub(HUB, field("text"))
    settings.write(HERE, {"": corpus}, split_random(val=fraction(0.0005)))


if __name__ == "__main__":
    cli.run(main, Settings)
