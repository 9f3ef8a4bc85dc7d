"""Log-probabilities of parts of texts: what last-word, sentence-pair and re-ranking tests have in common.

Letters: B batch, T time (positions), D width, V vocabulary, N scored tokens.


Test sets on disk: pairs of words with a score, and JSON lines.

Every reader raises InputError with file, line and what was expected; blank lines are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import reading
from nanobackpack.safe.files import display_path, parse_json, read_text


class Row(NamedTuple):
    """Token ids of which those from `start` on are to be predicted from all before them; start >= 1."""

    ids: list[int]
    start: int


class Score(NamedTuple):
    """Of one row: the sum of the log-probabilities in nats, and whether each token was the likeliest."""

    log_p: float
    exact: bool


def score(model: LanguageModel, rows: Sequence[Row], batch_size: int = 16, title: str = "") -> list[Score]:
    """Score each row, in batches of like length. A row longer than block_size loses its beginning.

    Padded ids take part in the softmax (as in training) but are never the likeliest.
    Raises: ValueError for a row with nothing before `start`, or more than block_size tokens from there on.
    """
    size, device = model.config.block_size, model.wte.weight.device
    inputs, targets = [], []
    for ids, start in rows:
        if not 1 <= start < len(ids) or len(ids) - start > size:
            raise ValueError(f"cannot score tokens {start} to {len(ids)} with block_size={size}")
        inputs.append(ids[:-1][-size:])
        targets.append(ids[start:])
    found: dict[int, Score] = {}
    order = sorted(range(len(rows)), key=lambda i: len(inputs[i]))
    with reading(model), tqdm(total=len(rows), desc=title, unit="row", disable=None, leave=False) as bar:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            scores = _score(model, [inputs[i] for i in batch], [targets[i] for i in batch], device)
            found.update(zip(batch, scores, strict=True))
            bar.update(len(batch))
    return [found[i] for i in range(len(rows))]


def _score(
    model: LanguageModel, inputs: list[list[int]], targets: list[list[int]], device: torch.device
) -> list[Score]:
    """The last positions of each input predict its targets; padding on the right cannot be seen by them."""
    T = max(map(len, inputs))
    ids = torch.tensor([row + [0] * (T - len(row)) for row in inputs], device=device)  # (B, T)
    at = [
        (b, len(x) - len(y) + i)
        for b, (x, y) in enumerate(zip(inputs, targets, strict=True))
        for i in range(len(y))
    ]
    rows, positions = torch.tensor(at, device=device).T  # (N) each
    logits = model(ids, at=(rows, positions)).logits  # (N, V)
    wanted = torch.tensor([i for y in targets for i in y], device=device)  # (N)
    log_p = logits.log_softmax(dim=1).gather(1, wanted[:, None])[:, 0]  # (N)
    exact = logits[:, : model.config.n_token].argmax(dim=1) == wanted  # (N)
    lengths = [len(y) for y in targets]
    return [
        Score(p.sum().item(), bool(e.all()))
        for p, e in zip(log_p.split(lengths), exact.split(lengths), strict=True)
    ]


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
                f"{display_path(path)}, line {number}: {line[:60]!r} is not two words and a number in column "
                f"{column + 1}, with {between} between columns, as {name} has"
            ) from None
        pairs.append(pair)
    if len(pairs) < 2:
        raise InputError(f"{display_path(path)} has {len(pairs)} pairs: a correlation needs two or more")
    return pairs


def read_json_lines(
    path: str | Path, fields: tuple[str, ...], check: Callable[[dict[str, str]], str | None] = lambda _: None
) -> list[dict[str, str]]:
    """The named text fields of each line of a JSON lines file; `check` says what is wrong with a line."""
    rows = []
    for number, line in lines(path):
        value, wrong = parse_json(line, f"{display_path(path)}, line {number}"), None
        if not isinstance(value, dict):
            wrong = "not a JSON object"
        else:
            missing = [f for f in fields if not isinstance(value.get(f), str) or not value[f].strip()]
            wrong = f"no text under {missing[0]!r}" if missing else check(value)
        if wrong:
            raise InputError(f"{display_path(path)}, line {number}: {wrong}")
        rows.append({f: value[f] for f in fields})
    if not rows:
        raise InputError(f"{display_path(path)} has no lines: give a file of JSON lines")
    return rows


def control_sets() -> dict[str, Any]:
    """The papers' topics with their words, nouns and prompts of the bias tests, and cases of other edits."""
    text = resources.files("nanobackpack.evaluate").joinpath("control_sets.json").read_text(encoding="utf-8")
    return json.loads(text)
