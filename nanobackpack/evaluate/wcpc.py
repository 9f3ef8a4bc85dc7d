"""Chinese word prediction with long context (WPLC, Ge et al. 2021; "wcpc" in nanoBackpackLM).

    nanobackpack wcpc --out_dir=out-zh --data dev.json
    nanobackpack wcpc --out_dir=out-zh --data dev.json --protocol v2

Predict a word that is left out of a text, one mask a token: is it the first guess, or among the first 3?

    v1   3 beams over the masks, from the text before them alone
    v2   10 beams, ranked again by their log-probability plus that of the text after the masks

The original takes logarithms of raw logits and multiplies probabilities; here log-probabilities are added.
The file holds JSON lines with `masked_text`, with one `<mask>` for each character of the word, and
`correct_word`: it is meant for tokenizers of one token a character. A text longer than block_size loses its
beginning. Backpacks and GPTs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from nanobackpack.analysis import results
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls, scoring
from nanobackpack.evaluate.controls import Evaluation, mean_of
from nanobackpack.text.words import bos_ids, needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Bos, Tokenizer

MASK = "<mask>"
PUNCTUATION = [*',，。！!；;?？"”“、：:「」【】`…', "……"]  # never guessed
BEAMS = {"v1": 3, "v2": 10}


@dataclass(frozen=True, kw_only=True)
class WcpcConfig(scoring.TestSetConfig):
    """How often a model finds the word left out of a text."""

    data: str = ""
    """A file of JSON lines with `masked_text` and `correct_word`."""
    protocol: Literal["v1", "v2"] = "v1"
    """v1: from the text before the word; v2: 10 beams, ranked again by the text after it."""


class MaskedText(NamedTuple):
    """A text with a word left out."""

    before: str
    n_masks: int
    after: str
    word: str


@dataclass(frozen=True, kw_only=True)
class Wcpc(Evaluation):
    """How often the word is the first guess, or among the first three."""

    top1: float
    top3: float
    n: int
    """Items predicted."""
    left_out: int
    """Items left out, for characters that the tokenizer does not know or length."""
    guesses: list[list[str]]
    """Of each item predicted the first three words, best first."""

    def table(self) -> str:
        rows = [
            ["top-1", f"{100 * self.top1:.2f} %"],
            ["top-3", f"{100 * self.top3:.2f} %"],
            ["items", f"{self.n}, {self.left_out} left out"],
        ]
        return results.table(self.title, [], rows)


def main(settings: WcpcConfig) -> None:
    items = read_masked_texts(settings.data)[: settings.limit or None]
    controls.report(settings, lambda model: wcpc(model, items, settings.protocol, settings.bos), counts=True)


def wcpc(
    model: LanguageModel,
    items: Sequence[MaskedText],
    protocol: Literal["v1", "v2"] = "v1",
    bos: Bos = False,
) -> Wcpc:
    """Predict the word of each item. Of a text longer than block_size the end is read, and with v2 at most
    half of block_size after the masks."""
    from tqdm import tqdm

    guesses, words = [], []
    for item in tqdm(items, desc="items", unit="item", disable=None, leave=False):
        found = _guess(model, item, protocol, bos)
        if found is not None:
            guesses.append(found[:3])
            words.append(item.word)
    if not words:
        raise InputError("no item can be predicted: this tokenizer does not know their characters")
    both = list(zip(words, guesses, strict=True))
    top1, top3 = (mean_of([word in found[:n] for word, found in both]) for n in (1, 3))
    return Wcpc(
        title=f"words from their context, protocol {protocol}",
        figures={"top-1": top1, "top-3": top3},
        top1=top1.value,
        top3=top3.value,
        n=len(both),
        left_out=len(items) - len(both),
        guesses=guesses,
    )


def _guess(model: LanguageModel, item: MaskedText, protocol: str, bos: Bos) -> list[str] | None:
    """Find words for the masks, the likeliest first; None for an item that cannot be encoded."""
    import torch

    from nanobackpack.model.generate import beam_search

    tokenizer, half = needs_tokenizer(model.tokenizer), model.config.block_size // 2
    before, after = (scoring.encode_or_none(tokenizer.encode, text) for text in (item.before, item.after))
    if before is None or after is None:
        return None
    before, after = bos_ids(tokenizer, bos) + before, after[:half]
    if not before or item.n_masks > half:
        return None
    prompt = torch.tensor([before], device=model.wte.weight.device)  # (1, T)
    ids, log_p = beam_search(model, prompt, item.n_masks, BEAMS[protocol], banned_ids(tokenizer))
    rows, total = ids.tolist(), log_p.tolist()
    if protocol == "v2" and after:
        # How well does the rest of the text follow each guess?
        texts = [scoring.TextToScore(before + row + after, len(before) + item.n_masks) for row in rows]
        total = [p + score.log_p for p, score in zip(total, scoring.score_texts(model, texts), strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -total[i])
    # Some tokenizers put a space between the characters they decode.
    return ["".join(tokenizer.decode(rows[i]).split()) for i in order]


def banned_ids(tokenizer: Tokenizer) -> list[int]:
    """List the ids of punctuation and of what cannot be spelled: no word has them."""
    found = [*map(tokenizer.id, PUNCTUATION), tokenizer.unknown_id]
    return sorted(i for i in found if i is not None)


def read_masked_texts(path: str | Path) -> list[MaskedText]:
    """Read the items of a file of JSON lines."""
    items = []
    for row in scoring.read_json_lines(path, ("masked_text", "correct_word"), _check):
        n = row["masked_text"].count(MASK)
        before, _, after = row["masked_text"].partition(MASK * n)
        items.append(MaskedText(before, n, after, row["correct_word"]))
    return items


def _check(row: dict[str, str]) -> str | None:
    text = row["masked_text"]
    n = text.count(MASK)
    if n == 0:
        return f"masked_text has no {MASK}"
    before, together, _ = text.partition(MASK * n)
    if not together:
        return f"the {n} {MASK} of masked_text do not stand side by side"
    if not before.strip():
        return f"masked_text has nothing before its first {MASK}"
    return None
