"""CLUE's Chinese corpora by Chinese BERT's tokens, each document [CLS] ... [SEP]. First put the folders
wiki_zh_2019, webtext2019zh and new2016zh of https://github.com/brightmart/nlp_chinese_corpus, or some of
them, beside this file, or name the folder they are in. Run from anywhere:

python data/clue_small/prepare.py
python data/clue_small/prepare.py --input FOLDER
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanobackpack import cli
from nanobackpack.errors import InputError
from nanobackpack.safe.files import display_path
from nanobackpack.text import prepare
from nanobackpack.text.corpus import chained, field, from_files
from nanobackpack.text.splits import fraction, split_random

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """CLUE: 0.1 % of the documents are for evaluation, then 0.05 % for validation."""

    input: tuple[str, ...] = ()
    """Folders that contain wiki_zh_2019, webtext2019zh, new2016zh; empty: the folder of this script."""
    tokenizer: str = "chinese-character-bert"


def wiki(record: dict[str, Any]) -> list[str]:
    """An article without its title, which a blank line ends."""
    title, blank, text = record["text"].partition("\n\n")
    return [text if blank else title]


def web(record: dict[str, Any]) -> list[str]:
    """A question and its answer, with [SEP] between them."""
    return [record["title"] + record["desc"], record["content"]]


PARTS = {
    "wiki_zh_2019/**/wiki*": wiki,
    "webtext2019zh/web_text_zh_*.json": web,
    "new2016zh/news2016zh_*.json": field("content"),
}


def main(settings: Settings) -> None:
    corpora = []
    for folder in map(Path, settings.input or [HERE]):
        there = [(folder / p, text) for p, text in PARTS.items() if (folder / p.split("/")[0]).is_dir()]
        if not there:
            raise InputError(
                f"{display_path(folder)} has no wiki_zh_2019, webtext2019zh or new2016zh: get them from "
                "https://github.com/brightmart/nlp_chinese_corpus, or name their folder with --input"
            )
        corpora += [from_files([files], text, kind="json") for files, text in there]
    settings.write(
        HERE, {"": chained(corpora)}, split_random(evaluation=fraction(0.001), val=fraction(0.0005))
    )


if __name__ == "__main__":
    cli.run(main, Settings)
