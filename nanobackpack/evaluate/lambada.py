"""LAMBADA (Paperno et al. 2016): predict the last word of a passage from the passage before it.

A word counts as right if each of its tokens is the likeliest; the perplexity is that of words,
exp(-mean log p(word)), as the Backpack paper reports (Table 2). The file holds JSON lines with `text`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanobackpack.analysis.results import Result, aligned
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import Row, read_json_lines, score
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.text.tokenizer import Bos, bos_ids, needs_tokenizer, text_ids, unknown_id


@dataclass(frozen=True, kw_only=True)
class LastWord(Result):
    """How well last words are predicted."""

    perplexity: float
    """exp of the mean negative log-likelihood of a word, over all of its tokens."""
    accuracy: float
    """Share of words all of whose tokens are the likeliest."""
    n: int
    """Passages scored."""
    left_out: int
    """Passages left out: characters the tokenizer does not know, or a word longer than block_size."""

    def table(self) -> str:
        rows = [
            ["perplexity", f"{self.perplexity:.2f}"],
            ["accuracy", f"{100 * self.accuracy:.2f} %"],
            ["passages", f"{self.n}, {self.left_out} left out"],
        ]
        return f"# {self.title}\n{aligned(rows)}"


def read(path: str | Path) -> list[str]:
    """The passages of a file of JSON lines. Raises: InputError naming the line that is wrong."""
    return [row["text"] for row in read_json_lines(path, ("text",), _one_word)]


def _one_word(row: dict[str, str]) -> str | None:
    return None if len(row["text"].split()) > 1 else "a passage needs two words or more"


def split_last(text: str) -> tuple[str, str]:
    """A passage as what stands before its last word, and that word with the space before it."""
    text = text.rstrip()
    start = len(text) - len(text.split()[-1])
    while text[start - 1].isspace():
        start -= 1
    return text[:start], text[start:]


def last_word(
    model: LanguageModel, passages: Sequence[str], bos: Bos = False, batch_size: int = 16
) -> LastWord:
    """Score the last word of each passage, given as much of the passage as block_size allows.

    With `bos` each passage begins with the token that begins a document.
    Raises: InputError for a model without tokenizer, or if no passage can be scored.
    """
    tokenizer = needs_tokenizer(model.tokenizer)
    before = bos_ids(tokenizer, bos)
    unknown = unknown_id(tokenizer)
    rows = []
    for passage in passages:
        context, word = split_last(passage)
        try:
            start = before + text_ids(tokenizer, context)
            end = text_ids(tokenizer, context + word)[len(start) - len(before) :]
        except InputError:  # a character that the tokenizer does not know
            continue
        if unknown not in start + end and start and 0 < len(end) <= model.config.block_size:
            rows.append(Row(start + end, len(start)))
    if not rows:
        raise InputError("no passage can be scored: this tokenizer does not know their characters")
    scores = score(model, rows, batch_size, "passages")
    return LastWord(
        title="last words",
        perplexity=math.exp(-sum(s.log_p for s in scores) / len(scores)),
        accuracy=sum(s.exact for s in scores) / len(scores),
        n=len(rows),
        left_out=len(passages) - len(rows),
    )
