"""Test sets on disk: pairs of words with a score, and JSON lines.

Every reader raises InputError with file, line and what was expected; blank lines are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nanobackpack.config import InputError
from nanobackpack.files import parse_json, shown
from nanobackpack.prepare import read_text


class Pair(NamedTuple):
    """Two words and how alike people find them."""

    first: str
    second: str
    score: float


class Format(NamedTuple):
    """How a lexical test set is written: what separates columns, where the pair and its score stand."""

    separator: str | None  # None: any white space
    score: int  # column of the score; the words are columns 0 and 1
    header: bool


FORMATS = {
    "simlex": Format("\t", 3, True),  # SimLex-999 (Hill et al. 2015)
    "simverb": Format("\t", 3, False),  # SimVerb-3500 (Gerz et al. 2016)
    "rg65": Format(";", 2, False),  # Rubenstein and Goodenough 1965
    "ws353": Format(",", 2, True),  # WordSim-353 (Finkelstein et al. 2002)
    "wordsim240": Format(None, 2, False),  # Chinese
    "wordsim297": Format(None, 2, False),  # Chinese
}


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers."""
    text = read_text(Path(path)).removeprefix("\ufeff")
    # Not splitlines: it also splits at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def read_pairs(name: str, path: str | Path) -> list[Pair]:
    """The pairs of the lexical test set `name` (a key of FORMATS). Words stay as they are written."""
    if name not in FORMATS:
        raise InputError(f"unknown test set {name!r}: there are {', '.join(FORMATS)}")
    separator, column, header = FORMATS[name]
    pairs = []
    for number, line in lines(path):
        if header and number == 1:
            continue
        cells = [cell.strip() for cell in line.split(separator)]
        try:
            pair = Pair(cells[0], cells[1], float(cells[column]))
            if not (pair.first and pair.second and math.isfinite(pair.score)):
                raise ValueError
        except (IndexError, ValueError):
            between = {None: "white space", "\t": "tabs"}.get(separator, f"{separator!r}")
            raise InputError(
                f"{shown(path)}, line {number}: {line[:60]!r} is not two words and a number in column "
                f"{column + 1}, with {between} between columns, as {name} has"
            ) from None
        pairs.append(pair)
    if len(pairs) < 2:
        raise InputError(f"{shown(path)} has {len(pairs)} pairs: a correlation needs two or more")
    return pairs


def read_json_lines(
    path: str | Path, fields: tuple[str, ...], check: Callable[[dict[str, str]], str | None] = lambda _: None
) -> list[dict[str, str]]:
    """The named text fields of each line of a JSON lines file; `check` says what is wrong with a line."""
    rows = []
    for number, line in lines(path):
        value, wrong = parse_json(line, f"{shown(path)}, line {number}"), None
        if not isinstance(value, dict):
            wrong = "not a JSON object"
        else:
            missing = [f for f in fields if not isinstance(value.get(f), str) or not value[f].strip()]
            wrong = f"no text under {missing[0]!r}" if missing else check(value)
        if wrong:
            raise InputError(f"{shown(path)}, line {number}: {wrong}")
        rows.append({f: value[f] for f in fields})
    if not rows:
        raise InputError(f"{shown(path)} has no lines: give a file of JSON lines")
    return rows
