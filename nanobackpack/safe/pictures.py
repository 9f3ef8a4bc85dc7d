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
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False}), opened as file:
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
    from matplotlib import font_manager, ft2font

    def missing_in(path: str, characters: set[str]) -> set[str]:
        font = ft2font.FT2Font(path)
        return {c for c in characters if not font.get_char_index(ord(c))}

    own = font_manager.findfont("DejaVu Sans")
    chosen, lacking = ["DejaVu Sans"], missing_in(own, {c for c in text if c.isprintable()})
    # Those of the system, looked for anew: what matplotlib remembers may be older than the newest font.
    for path in sorted(font_manager.findSystemFonts()) if lacking else ():
        with contextlib.suppress(OSError, RuntimeError):  # a damaged font, or one of pictures
            if (left := missing_in(path, lacking)) < lacking:
                font_manager.fontManager.addfont(path)
                chosen.append(ft2font.FT2Font(path).family_name)
                lacking = left
    return chosen, "".join(sorted(lacking))
