"""BLiMP (Warstadt et al. 2020): of two sentences that differ in one point, the grammatical one should be
likelier. Files hold JSON lines with `sentence_good` and `sentence_bad`, one phenomenon a file.

The whole sentence is scored. Its first token needs something before it: BOS, with `bos`; without, both
sentences are scored from their second token on, and pairs that differ in the first lose that difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack.analysis.results import Result, aligned
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import Row, read_json_lines, score
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.text.tokenizer import Bos, bos_ids, needs_tokenizer, text_ids, unknown_id

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class SentencePairs(Result):
    """How often the grammatical sentence is the likelier one, for each of S test sets."""

    names: list[str]
    """S."""
    accuracy: list[float]
    """S: share of pairs whose good sentence has the higher probability; a tie is an error."""
    n: list[int]
    """S: pairs scored."""
    left_out: list[int]
    """S: pairs left out, for characters the tokenizer does not know or length."""

    @property
    def mean(self) -> float:
        """Mean accuracy of the test sets, each counting the same, as BLiMP's overall score."""
        return sum(self.accuracy) / len(self.accuracy)

    def table(self) -> str:
        rows = [["test set", "accuracy", "pairs", "left out"]]
        for name, accuracy, n, left_out in zip(self.names, self.accuracy, self.n, self.left_out, strict=True):
            rows.append([name, f"{100 * accuracy:.1f} %", str(n), str(left_out)])
        rows.append(["mean", f"{100 * self.mean:.1f} %", str(sum(self.n)), str(sum(self.left_out))])
        return f"# {self.title}\n{aligned(rows)}"


def read(path: str | Path) -> Pairs:
    """(good, bad) for each line. Raises: InputError naming the line that is wrong."""
    fields = ("sentence_good", "sentence_bad")
    return [(row["sentence_good"], row["sentence_bad"]) for row in read_json_lines(path, fields)]


def sentence_pairs(
    model: LanguageModel, sets: dict[str, Pairs], bos: Bos = False, batch_size: int = 16
) -> SentencePairs:
    """Score named sets of (good, bad) sentences.

    Raises: InputError for a model without tokenizer, or a set none of whose pairs can be scored.
    """
    results = [_accuracy(model, name, pairs, bos, batch_size) for name, pairs in sets.items()]
    return SentencePairs(
        title="sentence pairs",
        names=list(sets),
        accuracy=[correct / n for correct, n in results],
        n=[n for _, n in results],
        left_out=[len(pairs) - n for pairs, (_, n) in zip(sets.values(), results, strict=True)],
    )


def _accuracy(model: LanguageModel, name: str, pairs: Pairs, bos: Bos, batch_size: int) -> tuple[int, int]:
    """Of one set: pairs that are right, and pairs scored."""
    rows: list[Row] = []
    for pair in pairs:
        both = [_row(model, sentence, bos) for sentence in pair]
        rows += [row for row in both if row is not None] if None not in both else []
    if not rows:
        raise InputError(f"{name}: no pair can be scored, this tokenizer does not know their characters")
    scores = score(model, rows, batch_size, name)
    good, bad = scores[::2], scores[1::2]
    return sum(g.log_p > b.log_p for g, b in zip(good, bad, strict=True)), len(good)


def _row(model: LanguageModel, sentence: str, bos: Bos) -> Row | None:
    """A sentence to be scored, None if it cannot be: whole sentences are compared, so none is cut."""
    tokenizer = needs_tokenizer(model.tokenizer)
    before = bos_ids(tokenizer, bos)
    try:
        ids = before + text_ids(tokenizer, sentence)
    except InputError:  # a character that the tokenizer does not know
        return None
    fits = 2 <= len(ids) <= model.config.block_size + 1
    return Row(ids, 1) if fits and unknown_id(tokenizer) not in ids else None
