"""Python's own help texts by characters, from the standard library: needs no network. Run:

python data/pydocs_char/prepare.py
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from nanobackpack import cli
from nanobackpack.text import prepare
from nanobackpack.text.tokenizer import make_tokenizer

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Python's help texts by characters."""

    out: str = ""
    """Folder to write to; empty: the folder of this script."""


def main(settings: Settings) -> None:
    text = "\n".join(topics[name] for name in sorted(topics))
    source = f"pydoc_data.topics of Python {platform.python_version()}"
    out = Path(settings.out or HERE)
    meta = prepare.write_dataset(out, text, make_tokenizer("char", [text]), val_fraction=0.1, source=source)
    print(prepare.summary(meta, out))


if __name__ == "__main__":
    cli.run(main, Settings)
