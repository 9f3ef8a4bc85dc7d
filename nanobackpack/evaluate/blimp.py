"""BLiMP (Warstadt et al. 2020): of two sentences that differ in one point, is the grammatical one likelier?

    nanobackpack blimp --out_dir=out --data blimp/
    nanobackpack blimp --out_dir=out --data anaphor_gender_agreement.jsonl --limit 100

A folder stands for its .jsonl files, one phenomenon each: JSON lines with `sentence_good` and `sentence_bad`.
Backpacks and GPTs alike (Table 2 of the Backpack paper). The whole sentence is scored. Its first token needs
something before it: the token that begins a document, or else the one that ends it, as the harness lm-eval
has it. With `--bos=False`, and where a tokenizer has neither, both are scored from their second token on, and
pairs that differ in the first lose that difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanobackpack.analysis import results
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls, scoring
from nanobackpack.evaluate.controls import Evaluation, Figure, mean_of
from nanobackpack.safe.files import display_path
from nanobackpack.text.words import bos_ids, needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Bos

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class BlimpConfig(scoring.TestSetConfig):
    """How often a model prefers the grammatical one of two sentences."""

    data: tuple[str, ...] = ()
    """Files of JSON lines, one test set each, or folders of them."""
    batch_size: int = 32
    """Sentences at a time."""


@dataclass(frozen=True, kw_only=True)
class Blimp(Evaluation):
    """How often the grammatical sentence is the likelier one, for each of S test sets."""

    names: list[str]
    """S."""
    accuracy: list[float]
    """S: share of pairs whose good sentence has the higher probability; a tie is an error."""
    n: list[int]
    """S: pairs scored."""
    left_out: list[int]
    """S: pairs left out, for characters the tokenizer does not know or length."""
    equal: list[int]
    """S: pairs left out, since both sentences are the same for this tokenizer."""

    @property
    def mean(self) -> float:
        """Mean accuracy of the test sets, each counting the same, as BLiMP's overall score."""
        return sum(self.accuracy) / len(self.accuracy)

    def table(self) -> str:
        columns = (
            [*self.names, "mean"],
            [f"{100 * accuracy:.1f} %" for accuracy in (*self.accuracy, self.mean)],
            [str(n) for n in (*self.n, sum(self.n))],
            [str(n) for n in (*self.left_out, sum(self.left_out))],
            [str(n) for n in (*self.equal, sum(self.equal))],
        )
        head = ["test set", "accuracy", "pairs", "left out", "equal"]
        return results.table(self.title, head, list(zip(*columns, strict=True)))


def main(settings: BlimpConfig) -> None:
    files = files_in(settings.data)
    sets = {file.stem: read_sentence_pairs(file)[: settings.limit or None] for file in files}
    controls.report(
        settings, lambda model: blimp(model, sets, settings.bos, settings.batch_size), counts=True
    )


def blimp(model: LanguageModel, sets: dict[str, Pairs], bos: Bos = "auto", batch_size: int = 16) -> Blimp:
    """Score named sets of (good, bad) sentences; bos: auto puts a token before them if there is one."""
    tokenizer = needs_tokenizer(model.tokenizer)
    if bos == "auto":
        bos = tokenizer.bos_id is not None or tokenizer.eos_id is not None
    accuracy, n, left_out, equal = [], [], [], []
    figures: dict[str, Figure] = {}
    for name, pairs in sets.items():
        # A pair is scored only if both of its sentences can be, and if they are not the same.
        both = [[_to_score(model, sentence, bos) for sentence in pair] for pair in pairs]
        texts = [text for pair in both if None not in pair and pair[0] != pair[1] for text in pair if text]
        same = sum(good is not None and good == bad for good, bad in both)
        unknown = len(pairs) - same - len(texts) // 2
        if not texts:
            raise InputError(
                f"{name}: no pair can be scored: this tokenizer does not know the characters of {unknown}, "
                f"and in {same} both sentences are the same"
            )
        scores = [score.log_p for score in scoring.score_texts(model, texts, batch_size, name)]
        correct = [good > bad for good, bad in zip(scores[::2], scores[1::2], strict=True)]
        accuracy.append(sum(correct) / len(correct))
        figures[name] = mean_of(correct)
        n.append(len(correct))
        left_out.append(unknown)
        equal.append(same)
    return Blimp(
        title="sentence pairs (chance: 50 %)",
        figures=figures,
        names=list(sets),
        accuracy=accuracy,
        n=n,
        left_out=left_out,
        equal=equal,
    )


def _to_score(model: LanguageModel, sentence: str, bos: Bos) -> scoring.TextToScore | None:
    """Prepare a sentence; None if it cannot be scored: whole sentences are compared, so none is cut."""
    tokenizer = needs_tokenizer(model.tokenizer)
    ids = scoring.encode_or_none(tokenizer.encode, sentence)
    if ids is None or tokenizer.unknown_id in ids:
        return None
    ids = bos_ids(tokenizer, bos) + ids
    return scoring.TextToScore(ids, 1) if 2 <= len(ids) <= model.config.block_size + 1 else None


def files_in(given: tuple[str, ...]) -> list[Path]:
    """List the files given, and the .jsonl files of the folders given."""
    paths = [Path(path) for path in given]
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"{display_path(paths[0])} has no .jsonl files: name the folder that BLiMP came in")
    return files


def read_sentence_pairs(path: str | Path) -> Pairs:
    """Read the (good, bad) sentences of a file."""
    fields = ("sentence_good", "sentence_bad")
    return [(row["sentence_good"], row["sentence_bad"]) for row in scoring.read_json_lines(path, fields)]
