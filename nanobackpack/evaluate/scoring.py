"""What the evaluation modules share: scores of parts of texts, test sets on disk, the papers' word lists.

    texts = [TextToScore(tokenizer.encode("the cat sat"), start=2)]
    score_texts(model, texts)      # log p("e cat sat" | "th") with a character model

Letters: B batch, T time (positions), V vocabulary, N scored tokens.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nanobackpack.analysis.results import check_finite
from nanobackpack.config import ReadConfig
from nanobackpack.errors import InputError, escape_controls, first_few
from nanobackpack.evaluate.controls import ControlsConfig
from nanobackpack.safe.files import display_path, parse_json, read_text

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel

# --- Scores ---------------------------------------------------------------------------------------


class TextToScore(NamedTuple):
    """Token ids, of which those from `start` (1 or more) on are predicted, each from all before it."""

    ids: list[int]
    start: int


class TextScore(NamedTuple):
    """The sum of the log-probabilities in nats, and whether each token was the likeliest."""

    log_p: float
    exact: bool


def score_texts(
    model: LanguageModel, texts: Sequence[TextToScore], batch_size: int = 16, title: str = ""
) -> list[TextScore]:
    """Score each text. One longer than block_size loses its beginning, with a warning.

    Padded ids take part in the softmax (as in training) but are never the likeliest.
    """
    from tqdm import tqdm

    from nanobackpack.analysis.prompts import cut_to_context
    from nanobackpack.runtime import eval_mode

    size = model.config.block_size
    inputs, targets = [], []
    for ids, start in texts:
        if not 1 <= start < len(ids) or len(ids) - start > size:
            raise ValueError(f"cannot score tokens {start} to {len(ids)} with block_size={size}")
        inputs.append(ids[:-1])
        targets.append(ids[start:])
    inputs = cut_to_context(model, inputs)
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(texts)), key=lambda i: len(inputs[i]))
    scores: dict[int, TextScore] = {}
    bar = tqdm(total=len(texts), desc=escape_controls(title), unit="row", disable=None, leave=False)
    with eval_mode(model) as model, bar:
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            found = _score_batch(model, [inputs[i] for i in batch], [targets[i] for i in batch])
            scores.update(zip(batch, found, strict=True))
            bar.update(len(batch))
    return [scores[i] for i in range(len(texts))]


def _score_batch(model: LanguageModel, inputs: list[list[int]], targets: list[list[int]]) -> list[TextScore]:
    """Score the targets, which the last positions of each input predict."""
    import torch

    from nanobackpack.runtime import pad_right

    device = model.wte.weight.device
    # Logits are computed only where a target is predicted.
    rows: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    for row, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        rows += [row] * len(y)
        positions += range(len(x) - len(y), len(x))
        wanted += y
    at = torch.tensor(rows, device=device), torch.tensor(positions, device=device)  # (N) each
    logits = model(pad_right(inputs, device), at=at).logits  # (N, V)
    ids = torch.tensor(wanted, device=device)  # (N)
    log_p = logits.log_softmax(dim=1).gather(1, ids[:, None])[:, 0]  # (N)
    check_finite(log_p, "the log-probability of a text")
    exact = logits[:, : model.config.n_token].argmax(dim=1) == ids  # (N)
    lengths = [len(y) for y in targets]
    return [
        TextScore(p.sum().item(), bool(e.all()))
        for p, e in zip(log_p.split(lengths), exact.split(lengths), strict=True)
    ]


def encode_or_none(encode: Callable[[str], list[int]], text: str) -> list[int] | None:
    """Encode a text with `tokenizer.encode`, a word with `word_ids`; None if it does not know a character."""
    try:
        return encode(text)
    except InputError:
        return None


# --- Test sets ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TestSetConfig(ReadConfig, ControlsConfig):
    """What the programs that read a test set of JSON lines share."""

    data: str | tuple[str, ...] = ""
    """A file of JSON lines, or several."""
    limit: int = 0
    """Only the first so many items of a file (0: all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise InputError("data is empty: name a file of JSON lines, as in --data test.jsonl")


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, with their numbers."""
    # Not splitlines: it also splits at characters that JSON strings may hold.
    for number, line in enumerate(read_text(Path(path)).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def read_json_lines(
    path: str | Path, fields: tuple[str, ...], check: Callable[[dict[str, str]], str | None] = lambda _: None
) -> list[dict[str, str]]:
    """Read the text fields of each line of a JSON lines file; `check` says what is wrong with a line."""
    rows = []
    for number, line in numbered_lines(path):
        where = f"{display_path(path)}, line {number}"
        value = parse_json(line, where)
        if not isinstance(value, dict):
            raise InputError(f"{where}: not a JSON object")
        for field in fields:
            if not isinstance(value.get(field), str) or not value[field].strip():
                raise InputError(f"{where}: no text under {field!r}")
        if wrong := check(value):
            raise InputError(f"{where}: {wrong}")
        rows.append({field: value[field] for field in fields})
    if not rows:
        raise InputError(f"{display_path(path)} has no lines: give a file of JSON lines")
    return rows


def read_columns(path: str | Path, n: int, names: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield of each row of a CSV or TSV file where it stands and n of its cells: those of the columns with
    these names, as in "word,translation", or without names the first n."""
    text, wanted = read_text(Path(path)), [name.strip() for name in names.split(",") if name.strip()]
    if wanted and len(wanted) != n:
        raise InputError(f"columns {names!r} are {len(wanted)}, and {n} are needed, with commas between them")
    head = text.lstrip("\ufeff").partition("\n")[0]
    rows = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=max("\t,;", key=head.count))
    at = [] if wanted else list(range(n))
    try:
        for row in rows:
            where = f"{display_path(path)}, line {rows.line_num}"
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not at:
                if missing := [name for name in wanted if name not in cells]:
                    raise InputError(f"{where}: no column {missing[0]!r}, there are {first_few(cells)}")
                at = [cells.index(name) for name in wanted]
            elif len(cells) <= max(at):
                raise InputError(f"{where}: {len(cells)} cells, and column {max(at) + 1} is needed")
            else:
                yield where, [cells[i] for i in at]
    except csv.Error as error:
        raise InputError(f"{display_path(path)}, line {rows.line_num}: not CSV ({error})") from None


def control_sets() -> dict[str, Any]:
    """Read the papers' topics with their words, nouns and prompts of the bias tests, and cases of edits."""
    text = resources.files("nanobackpack.evaluate").joinpath("control_sets.json").read_text(encoding="utf-8")
    return json.loads(text)
