"""Write a page about a model, to send: training, samples, senses, and three predictions explained exactly.

    nanobackpack report demo.html --out_dir=out-demo
    nanobackpack report king.html --out_dir=out-en --words king love --prompts "My lord, the king" "The queen"

It is one file of HTML that opens from disk, asks no other machine for anything, and runs nothing but what
says the number of a cell. Words and prompts that are not given are chosen: frequent words, and beginnings of
what the model itself writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanobackpack.config import LoadConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import check_writable, writing


@dataclass(frozen=True, kw_only=True)
class ReportConfig(LoadConfig):
    """Which model, and what of it the page shows."""

    paths: tuple[str, ...] = ()
    """The page to write, as out.html."""
    words: tuple[str, ...] = ()
    """Words whose senses are shown."""
    prompts: tuple[str, ...] = ()
    """Texts whose next token is explained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) != 1:
            raise InputError("give one file to write, as in nanobackpack report out.html --out_dir=out")


def main(settings: ReportConfig) -> None:
    from nanobackpack.app.report import report
    from nanobackpack.train.checkpoint import load_model_of

    path = settings.paths[0]
    check_writable(path)
    model = load_model_of(settings)
    text = report(model, settings.model_path, settings.words, settings.prompts, settings.seed)
    with writing(path) as file:
        file.write(text.encode())
    print(f"wrote {path}: open it in a browser")
