"""TigerBot's Chinese pretraining texts by Chinese BERT's tokens, [CLS] ... [SEP]. Run from anywhere:

python data/tigerbot/prepare.py                             # the hub's copy
python data/tigerbot/prepare.py --input FOLDER              # a local copy: parquet or jsonl
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli
from nanobackpack.text import prepare
from nanobackpack.text.corpus import field, from_files, from_hub
from nanobackpack.text.splits import fraction, split_random

HERE = Path(__file__).resolve().parent
HUB = "TigerResearch/pretrain_zh"


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """TigerBot: 0.1 % of the documents are for evaluation, then 0.05 % for validation."""

    input: tuple[str, ...] = ()
    """Local files (parquet, jsonl; also .gz, .xz, .zst) or folders; empty: fetch it from the hub."""
    tokenizer: str = "chinese-character-bert"


def main(settings: Settings) -> None:
    text = field("content")
    corpus = from_files(settings.input, text) if settings.input else from_hub(HUB, text)
    settings.write(HERE, {"": corpus}, split_random(evaluation=fraction(0.001), val=fraction(0.0005)))


if __name__ == "__main__":
    cli.run(main, Settings)
