"""Many languages by XLM-R's tokens: LANGUAGE_train.bin, LANGUAGE_val.bin, LANGUAGE_evaluation.bin. First put
LANGUAGE.txt or LANGUAGE.txt.xz, one document a line, beside this file, or name them. Run from anywhere:

python data/common_crawl/prepare.py
python data/common_crawl/prepare.py --input de.txt.xz fr.txt.xz --shards 100    # LANGUAGE/LANGUAGE_0.bin, ...
python data/common_crawl/prepare.py --languages am sr                           # CC-100 of the hub
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli
from nanobackpack.config import at_least
from nanobackpack.errors import InputError
from nanobackpack.text import prepare
from nanobackpack.text.corpus import Corpus, field, find_files, from_files, from_hub
from nanobackpack.text.splits import deal_shards, fraction, split_random

HERE = Path(__file__).resolve().parent
HUB = "statmt/cc100"


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """Common Crawl, many languages: some documents of each are for evaluation, then some for validation."""

    input: tuple[str, ...] = ()
    """Files LANGUAGE.txt or LANGUAGE.txt.xz, or folders of them; empty: those beside this script."""
    languages: tuple[str, ...] = ()
    """Languages of CC-100 to fetch from the hub instead."""
    shards: int = 0
    """Write so many shards of equal share for each language instead of three splits (0: no)."""
    tokenizer: str = "xlm-250k"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "shards", 0)


def corpora(settings: Settings) -> dict[str, Corpus]:
    """The documents of each language."""
    if settings.languages and settings.input:
        raise InputError("--languages fetches from the hub and --input reads files: give one of them")
    if settings.languages:
        options = {"revision": "refs/convert/parquet"}  # what the hub made of it, with no code to run
        return {name: from_hub(HUB, field("text"), name, **options) for name in settings.languages}
    try:
        files = find_files(settings.input or [HERE], [".txt"])
    except InputError as error:
        raise InputError(
            f"{error}; https://data.statmt.org/cc-100 has LANGUAGE.txt.xz of 100 languages"
        ) from None
    names = [path.name.split(".")[0] for path in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"there are two files of the language {twice[0]!r}: give one")
    return {name: from_files([path], kind="lines") for name, path in zip(names, files, strict=True)}


def main(settings: Settings) -> None:
    found = corpora(settings)
    split = split_random(evaluation=fraction(0.001, 10_000, 0.1), val=fraction(0.0005, 5_000, 0.05))
    if settings.shards:
        split = deal_shards(settings.shards)
    prefix = "{0}/{0}_" if settings.shards else "{0}_"
    by_prefix = {prefix.format(name): corpus for name, corpus in found.items()}
    settings.write(HERE, by_prefix, split, dtype="uint32", languages=list(found))


if __name__ == "__main__":
    cli.run(main, Settings)
