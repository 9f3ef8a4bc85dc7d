"""Tiny Shakespeare by characters: train.bin and val.bin in this folder. Run from anywhere:

python data/shakespeare_char/prepare.py                     # downloads 1.1 MB, once
python data/shakespeare_char/prepare.py --input FILE        # any text of yours instead
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import cli, prepare
from nanobackpack.files import shown
from nanobackpack.tokenizers import build

HERE = Path(__file__).resolve().parent
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZE_BYTES = 1_115_394


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Tiny Shakespeare by characters."""

    input: str = ""
    """Text file to use; empty: download Tiny Shakespeare."""
    out: str = ""
    """Folder to write to; empty: the folder of this script."""


def main(settings: Settings) -> None:
    path = Path(settings.input) if settings.input else HERE / "input.txt"
    if not settings.input:
        prepare.download(URL, path, SHA256, SIZE_BYTES)
    text, out = prepare.read_text(path), Path(settings.out or HERE)
    source = shown(path) if settings.input else URL
    meta = prepare.write_dataset(out, text, build("char", text), val_fraction=0.1, source=source)
    print(prepare.summary(meta, out))


if __name__ == "__main__":
    cli.run(main, Settings)
