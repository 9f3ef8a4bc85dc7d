"""LAMBADA (Paperno et al. 2016): predict the last word of a passage from all that comes before it.

    nanobackpack lambada --out_dir=out --data lambada_test.jsonl
    nanobackpack lambada --init_from=gpt2 --data lambada_test.jsonl --limit 500 --json gpt2.json

The file holds JSON lines with `text`. A word is right if each of its tokens is the likeliest; the perplexity
is per word, exp(-mean log p(word)), as in Table 2 of the Backpack paper. Backpacks and GPTs alike. `--bos`
begins each passage with the token that begins a document. A passage longer than block_size loses its
beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanobackpack.analysis import results
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls, scoring
from nanobackpack.evaluate.controls import Evaluation, mean_of
from nanobackpack.text.words import bos_ids, needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Bos


@dataclass(frozen=True, kw_only=True)
class LambadaConfig(scoring.TestSetConfig):
    """How well a model predicts the last word of passages."""

    data: str = ""
    """A file of JSON lines with `text`."""
    batch_size: int = 16
    """Passages at a time."""


@dataclass(frozen=True, kw_only=True)
class Lambada(Evaluation):
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
        return results.table(self.title, [], rows)


def main(settings: LambadaConfig) -> None:
    passages = read_passages(settings.data)[: settings.limit or None]
    controls.report(
        settings, lambda model: lambada(model, passages, settings.bos, settings.batch_size), counts=True
    )


def lambada(model: LanguageModel, passages: Sequence[str], bos: Bos = False, batch_size: int = 16) -> Lambada:
    """Score the last word of each passage, given as much of the passage as block_size allows."""
    tokenizer = needs_tokenizer(model.tokenizer)
    before, unknown = bos_ids(tokenizer, bos), tokenizer.unknown_id
    texts = []
    for passage in passages:
        context, word = split_last(passage)
        context_ids = scoring.encode_or_none(tokenizer.encode, context)
        whole = scoring.encode_or_none(tokenizer.encode, context + word)
        if context_ids is None or whole is None:
            continue
        # The word's tokens are those that the passage has beyond its context: a space may be joined to them.
        word_ids = whole[len(context_ids) :]
        ids, n_before = before + context_ids + word_ids, len(before) + len(context_ids)
        if unknown not in ids and n_before and 0 < len(word_ids) <= model.config.block_size:
            texts.append(scoring.TextToScore(ids, n_before))
    if not texts:
        raise InputError("no passage can be scored: this tokenizer does not know their characters")
    scores = scoring.score_texts(model, texts, batch_size, "passages")
    return Lambada(
        title="last words",
        figures={
            "log perplexity": mean_of([-score.log_p for score in scores]),
            "accuracy": mean_of([score.exact for score in scores]),
        },
        perplexity=math.exp(-sum(s.log_p for s in scores) / len(scores)),
        accuracy=sum(s.exact for s in scores) / len(scores),
        n=len(texts),
        left_out=len(passages) - len(texts),
    )


def read_passages(path: str | Path) -> list[str]:
    """Read the passages of a file of JSON lines."""
    return [row["text"] for row in scoring.read_json_lines(path, ("text",), _check)]


def _check(row: dict[str, str]) -> str | None:
    return None if len(row["text"].split()) > 1 else "a passage needs two words or more"


def split_last(text: str) -> tuple[str, str]:
    """Split a passage into what stands before its last word, and that word with the space before it."""
    text = text.rstrip()
    start = len(text) - len(text.split()[-1])
    while text[start - 1].isspace():
        start -= 1
    return text[:start], text[start:]
