"""Your own texts: files, and folders searched for *.txt and *.md, become data/NAME/. Run:

python data/textfiles/prepare.py notes.txt essays/ --tokenizer=char --name=mine --val=0.1
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli, prepare
from nanobackpack.config import InputError
from nanobackpack.files import shown
from nanobackpack.tokenizers import build

DATA = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Your own texts as a data set."""

    paths: tuple[str, ...] = ()
    """Text files, and folders to search for *.txt and *.md."""
    tokenizer: str = "char"
    """How to cut the text into tokens: char."""
    name: str = "mine"
    """Name of the data set, its folder under data/."""
    val: float = 0.1
    """Part of the text held out for validation."""
    out: str = ""
    """Folder to write to; empty: data/NAME."""


def main(settings: Settings) -> None:
    name, out = settings.name, Path(settings.out or DATA / settings.name)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"name={name!r} is not a plain folder name: use letters, digits, _ - .")
    if (out / "prepare.py").exists():
        raise InputError(f"{shown(out)} has its own prepare.py: choose another --name")
    text = "\n".join(map(prepare.read_text, prepare.text_files(settings.paths)))
    tokenizer, source = build(settings.tokenizer, text), ", ".join(settings.paths)
    meta = prepare.write_dataset(out, text, tokenizer, val_fraction=settings.val, source=source)
    flags = f"--dataset={shown(out) if settings.out else name} --out_dir=out-{name}"
    print(prepare.summary(meta, out), "\nnow train with", sep="\n")
    print("  python train.py config/train_shakespeare_char.py", flags)


if __name__ == "__main__":
    cli.run(main, Settings)
