"""Heat maps: a table of numbers as colours, blue below 0 and red above, as a PNG or for a notebook.

    draw("a.png", "a title", Grid(torch.tensor([[0.5, -1.0]]), ["sense 0"], ["'a'", "'b'"]))

Letters: R rows, N columns.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nanobackpack.errors import escape_controls
from nanobackpack.safe.files import writing
from nanobackpack.safe.pictures import picture

if TYPE_CHECKING:
    from torch import Tensor


class Grid(NamedTuple):
    """What a heat map shows: values (R, N), names for rows and columns, and texts (R, N) or none."""

    values: Tensor
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[str]] = ()


def draw(path: str, title: str, grid: Grid) -> None:
    """Write the heat map of a grid as a PNG."""
    values, rows, columns, cells = grid
    shown = values.float().cpu()
    limit = shown.abs().max().item() or 1.0  # the same to both sides, so that 0 is white
    size = max(5.0, 2.5 + (1.1 if cells else 0.4) * len(columns)), max(3.0, 1.5 + 0.35 * len(rows))
    text = "".join([title, *rows, *columns, *(cell for row in cells for cell in row)])
    with picture(writing(path), size, text) as figure:
        axes = figure.subplots()
        image = axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        # parse_math=False: a $ in a token is a $, not the beginning of a formula.
        axes.set_xticks(range(len(columns)), columns, rotation=0 if cells else 90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(textwrap.fill(title, int(8 * size[0])), parse_math=False)  # as wide as the picture
        for r, row in enumerate(cells):
            for n, text in enumerate(row):
                color = "white" if shown[r, n].abs() > 0.6 * limit else "black"  # legible on dark cells
                axes.text(n, r, text, ha="center", va="center", fontsize=8, color=color, parse_math=False)
        figure.colorbar(image)


def to_html(title: str, grid: Grid) -> str:
    """Give it as an HTML table, which tells the number where the mouse points; all texts are escaped."""
    limit, values = grid.values.abs().max().item() or 1.0, grid.values.tolist()

    def cell(r: int, n: int) -> str:
        strength, colour = abs(values[r][n]) / limit, "178,24,43" if values[r][n] > 0 else "33,102,172"
        style = f"background:rgba({colour},{strength:.2f})" + (";color:white" if strength > 0.6 else "")
        tip = html.escape(f"{grid.rows[r]}, {grid.columns[n]}: {values[r][n]:.4g}")
        text = html.escape(grid.cells[r][n]) if grid.cells else ""
        return f'<td style="{style}" title="{tip}">{text}</td>'

    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in ("", *grid.columns))]
    for r, label in enumerate(grid.rows):
        lines.append(f"<th>{html.escape(label)}</th>" + "".join(cell(r, n) for n in range(len(values[r]))))
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><caption>{html.escape(escape_controls(title))}</caption>\n{rows}\n</table>"
