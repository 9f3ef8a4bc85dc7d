"""Your own texts: files, globs, and folders searched for *.txt, *.md, *.jsonl and *.parquet (also packed as
.gz, .xz or .zst) become data/NAME/. Run:

python data/textfiles/prepare.py notes.txt essays/ --name=mine               # byte-level BPE of 8192 tokens
python data/textfiles/prepare.py notes.txt essays/ --name=mine --tokenizer=char --val=0.1
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli
from nanobackpack.errors import InputError
from nanobackpack.safe.files import display_path
from nanobackpack.text import prepare
from nanobackpack.text.corpus import from_files
from nanobackpack.text.splits import split_tail

DATA = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Settings(prepare.Settings):
    """Your own texts as a data set."""

    paths: tuple[str, ...] = ()
    """Text files, globs, and folders to search."""
    input: tuple[str, ...] = ()
    """More of them."""
    tokenizer: str = "bpe:8192"
    """char, bpe:N (made from the texts), gpt2, a hub name, or a tokenizer's file or folder."""
    name: str = "mine"
    """Name of the data set, its folder under data/."""
    val: float = 0.05
    """Part of the text held out for validation, its end."""
    out: str = ""
    """Folder to write to; empty: data/NAME."""


def main(settings: Settings) -> None:
    name, out = settings.name, Path(settings.out or DATA / settings.name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"name={name!r} is not a plain folder name: use letters, digits, _ - .")
    if (out / "prepare.py").exists():
        raise InputError(f"{display_path(out)} has its own prepare.py: choose another --name")
    corpus = from_files([*settings.paths, *settings.input])
    settings.write(out, {"": corpus}, split_tail(settings.val))
    flags = f"--dataset={display_path(out) if settings.out else name} --out_dir=out-{name}"
    print(f"now train with\n  python train.py config/train_shakespeare_char.py {flags}")


if __name__ == "__main__":
    cli.run(main, Settings)
