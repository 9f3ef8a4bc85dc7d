"""The HTML that the explorer and the report are made of: each function gives one piece of a page.

    show(section("Why 'she'?", heat_map(why)), note("a warning"))   # a view is pieces put together

Every text of a model, a file or a user goes through `escape`, most often by `token` or as an attribute of
`tag`. Pieces do not run anything by themselves: style.css gives them their looks, in the dark too, and
hover.js says what a cell holds where the mouse, a finger or the keyboard points. Letters: T tokens of a
prompt, K senses.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import torch

from nanobackpack.errors import escape_controls

if TYPE_CHECKING:
    from nanobackpack.analysis.results import Contributions


def escape(text: object) -> str:
    """Write a text such that a browser shows it and obeys nothing in it; control characters are spelled."""
    return html.escape(escape_controls(str(text)))


def tag(name: str, *inner: str, **attributes: object) -> str:
    """Write an element: `inner` is HTML already, attributes are escaped; class_ is class, data_at data-at."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    written = "".join(f' {key}="{escape(value)}"' for key, value in pairs if value is not None)
    return f"<{name}{written}>{''.join(inner)}</{name}>"


@cache
def file(name: str) -> str:
    """Read style.css or hover.js."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def show(*pieces: str) -> str:
    """Put pieces together: what style.css applies to."""
    return tag("div", *pieces, class_="nb")


# --- Texts --------------------------------------------------------------------------------------


def section(title: str, *pieces: str, about: str = "") -> str:
    """Give pieces a heading, and a line that says how to read them."""
    line = tag("p", escape(about), class_="nb-about") if about else ""
    return tag("section", tag("h3", escape(title)), line, *pieces)


def columns(*pieces: str) -> str:
    """Put pieces side by side where there is room."""
    return tag("div", *(tag("div", piece) for piece in pieces), class_="nb-columns")


def note(*texts: str, kind: str = "note") -> str:
    """Say each text in a line of its own; kind: note or error."""
    return "".join(tag("p", escape(text), class_=f"nb-{kind}") for text in texts)


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """Show rows of texts, under the names of their columns if there are any."""
    lines = [tag("tr", *(tag("th", escape(name), scope="col") for name in head))] if head else []
    lines += [tag("tr", *(tag("td", escape(cell)) for cell in row)) for row in rows]
    return tag("div", tag("table", *lines, class_="nb-table"), class_="nb-scroll")


def token(text: str) -> str:
    """Show a token: soft marks for blanks, and for the id where it is no word; all of it on a closer look."""
    marks = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "␣" if text.isspace() else "·"}
    word, number = re.fullmatch(r"(.*?)((?:<#\d+>)?)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    parts = [tag("i", marks[c]) if c in marks else escape(c) for c in word]
    parts += [tag("small", number[1:-1])] if number else []
    return tag("span", *parts, class_="nb-token", dir="auto", title=repr(text))


def quoted(text: str) -> str:
    """Write a token into a sentence: without the space that most words begin with."""
    return repr(text.strip(" ") or text)


def tokens(texts: Iterable[str]) -> str:
    """Show tokens one after the other."""
    return tag("span", *map(token, texts), class_="nb-tokens")


def percent(share: float) -> str:
    """Write a probability as people read it."""
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign: +1.20, −0.35."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: no −0


def digits_for(top: float) -> int:
    """Say how many digits after the point tell numbers up to `top` apart: 1 from 1 up, 2 from 0.1 up, ..."""
    return max(1, 1 - math.floor(math.log10(top))) if top > 0 else 1


# --- Numbers ------------------------------------------------------------------------------------


def bars(
    names: Sequence[str],
    shares: Sequence[float],
    *,
    chosen: Sequence[str] = (),
    click: bool = True,
    top: float | None = None,
) -> str:
    """Show a distribution: a bar for each token.

    With `click` each is a button with its token as data-token, to explain it, beside one with data-versus, to
    compare it. `chosen` are the token that is explained, and the one that it is compared with. `top` is the
    share that a full bar stands for, by default the largest.
    """
    top = top or max(shares, default=1.0) or 1.0
    lines = []
    for name, share in zip(names, shares, strict=True):
        fill = tag("span", tag("span", style=f"--v:{share / top:.4f}"), class_="nb-track")
        inner = token(name), fill, tag("span", percent(share), class_="nb-number")
        if click:
            line = _button(*inner, pressed=name in chosen[:1], class_="nb-bar", data_token=name)
            says = f"compare with {name!r}"
            line += _button(
                "vs", pressed=name in chosen[1:], class_="nb-versus", data_versus=name, title=says
            )
        else:
            line = tag("span", *inner, class_="nb-bar")
        lines.append(tag("li", line))
    return tag("ol", *lines, class_="nb-bars")


def _button(*inner: str, pressed: bool, **attributes: object) -> str:
    return tag("button", *inner, type="button", aria_pressed=str(pressed).lower(), **attributes)


def chips(texts: Sequence[str], weights: Sequence[Sequence[float]] = (), sense: int = 0) -> str:
    """Show the tokens of a text as a model reads it; if it has senses with how much one of the K of each
    counts, and a button for each sense."""
    if not weights:
        return tag("div", *(tag("span", token(text), class_="nb-chip") for text in texts), class_="nb-chips")
    marked = []
    for text, row in zip(texts, weights, strict=True):
        all_of_it = " ".join(f"{weight:.3f}" for weight in row)
        look = {"class_": "nb-chip", "style": f"--v:{row[sense]:.3f}", "data_weights": all_of_it}
        marked.append(tag("span", token(text), **look))
    buttons = [_button(str(k), pressed=k == sense, data_overlay=k) for k in range(len(weights[0]))]
    label = tag("span", "α of sense")
    group = tag("div", label, *buttons, class_="nb-senses", role="group", aria_label="sense")
    return tag("div", tag("div", *marked, class_="nb-chips"), group, class_="nb-overlay")


def heat_map(why: Contributions, most: int = 64) -> str:
    """Show a logit as a table of what each sense (column) of each token (row) adds to it, and the sums.

    Each cell tells its token, sense, weight α and contribution to the mouse, a finger and the arrow keys. The
    numbers are the library's own, and the corner is the sum of them all: the logit. Of more than `most`
    tokens the first share a row.
    """
    names, values, weights = why.tokens, why.contributions.double(), why.weights  # (T, K) both
    if left := max(0, len(names) - most):  # what stands far before is one row
        names = [f"… {left} before", *names[left:]]
        values, weights = (
            torch.cat([x[:left].sum(dim=0, keepdim=True), x[left:]]) for x in (values, weights)
        )
    alphas, (T, K) = weights.tolist(), values.shape
    top, total = values.abs().max().item() or 1.0, values.sum().item()
    by_token, by_sense = values.sum(dim=1).tolist(), values.sum(dim=0).tolist()
    digits = digits_for(top)
    head = [tag("th", name, scope="col") for name in ("sense", *map(str, range(K)), "sum")]
    rows = []
    for j, (name, numbers) in enumerate(zip(names, values.tolist(), strict=True)):
        told = [
            f"{name!r}, sense {k}: weight {alphas[j][k]:.4f}, adds {v:+.4f}" for k, v in enumerate(numbers)
        ]
        cells = [_cell(j, k, v, told[k], digits, top) for k, v in enumerate(numbers)]
        cells.append(_cell(j, K, by_token[j], f"{name!r}, all its senses: {by_token[j]:+.4f}", digits))
        rows.append(tag("tr", tag("th", token(name), scope="row"), *cells))
    sums = [
        _cell(T, k, value, f"sense {k} of all tokens: {value:+.4f}", digits)
        for k, value in enumerate(by_sense)
    ]
    says = f"all together: {total:+.4f}; the model's own logit: {why.logit:+.4f}"
    sums.append(_cell(T, K, total, says, digits))
    grid = tag(
        "table",
        tag("thead", tag("tr", *head)),
        tag("tbody", *rows),
        tag("tfoot", tag("tr", tag("th", "sum", scope="row"), *sums)),
        role="grid",
        aria_label=why.title,
    )
    says = tag("output", "point at a cell, or walk with the arrow keys", class_="nb-says", aria_live="polite")
    return tag("figure", says, tag("div", grid, class_="nb-scroll"), class_="nb-map")


def _cell(row: int, column: int, value: float, says: str, digits: int, top: float = 0.0) -> str:
    """Write a cell: its colour where `top` is the strongest, else a sum; the numbers that are large."""
    v = abs(value) / top if top else 0.0
    kind = f"nb-{'up' if value > 0 else 'down'}{' nb-strong' if v > 0.5 else ''}" if top else "nb-sum"
    return tag(
        "td",
        tag("b", signed(value, digits)) if v > 0.15 or not top else "",
        class_=kind,
        style=f"--v:{v:.3f}" if top else None,
        tabindex=0 if row == column == 0 else -1,  # one stop of the Tab key, then arrows
        data_at=f"{row},{column}",
        data_says=says,
    )
