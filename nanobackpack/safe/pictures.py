"""Pictures: a figure that is written as a PNG, in fonts that have its characters.

with picture(writing("a.png"), (8, 5), title) as figure:
    figure.subplots().set_title(title)
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from nanobackpack.errors import short_repr

if TYPE_CHECKING:
    from matplotlib.figure import Figure


DEFAULT = "DejaVu Sans"  # the font that comes with matplotlib


@contextlib.contextmanager
def picture(
    opened: contextlib.AbstractContextManager[BinaryIO], size: tuple[float, float], text: str = ""
) -> Iterator[Figure]:
    """Yield a figure of `size` inches to draw in, and write it to the file at the end.

    `text` is all that will be written in it. Characters that no font here has become boxes, and a note says
    how to get one.
    """
    import matplotlib  # slow to import, and needed for pictures alone
    import matplotlib.figure

    fonts, missing = fonts_for(text)
    with matplotlib.rc_context({"font.family": fonts}), opened as file:
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        yield figure
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the note says it once
            figure.savefig(file, format="png", dpi=120)
    if missing:
        warnings.warn(
            f"no font here has {short_repr(missing)}, boxes stand for them in the picture: install one, for "
            "Chinese with `apt install fonts-noto-cjk` or `brew install --cask font-noto-sans-cjk-sc`, and "
            "draw it again",
            stacklevel=2,
        )


def fonts_for(text: str) -> tuple[list[str], str]:
    """Choose fonts that have the characters of a text, matplotlib's own first; also return those none has."""
    from matplotlib import ft2font

    chosen = [DEFAULT]
    lacking = {c for c in text if c.isprintable()}
    for name, path in _installed_fonts():
        if not lacking:
            break
        if name.startswith("Last Resort"):  # it has a box for every character
            continue
        with contextlib.suppress(OSError, RuntimeError):  # a damaged font, or one of pictures
            font = ft2font.FT2Font(path)
            if has := {c for c in lacking if font.get_char_index(ord(c))}:
                chosen.append(name)
                lacking -= has
    return list(dict.fromkeys(chosen)), "".join(sorted(lacking))


def _installed_fonts() -> Iterator[tuple[str, str]]:
    """Yield the name and the file of matplotlib's own font, the fonts it knows, and those installed since."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = list(manager.ttflist)
    yield DEFAULT, font_manager.findfont(DEFAULT)
    yield from ((font.name, font.fname) for font in known)
    for path in sorted(set(font_manager.findSystemFonts()) - {font.fname for font in known}):
        with contextlib.suppress(Exception):  # not every file can be read
            manager.addfont(path)
        yield manager.ttflist[-1].name, path
