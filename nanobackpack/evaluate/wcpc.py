"""Chinese word prediction with long context (WPLC, Ge et al. 2021; "wcpc" in nanoBackpackLM): predict a
word, one mask a token, from the text before it, and in protocol v2 also from the text after it.

    v1   3 beams over the masks; is the word the first, or among the first 3?
    v2   10 beams; each is ranked anew by its log-probability plus that of all that follows the masks

The original takes logarithms of raw logits and multiplies probabilities; here log-probabilities are added.
The file holds JSON lines with `masked_text`, with one `<mask>` for each character of the word, and
`correct_word`. Meant for tokenizers of one token a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from nanobackpack.analysis.results import Result, aligned
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import Row, read_json_lines, score
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.model.generate import beam_search
from nanobackpack.text.tokenizer import Bos, Tokenizer, bos_ids, needs_tokenizer, text_ids, unknown_id

MASK = "<mask>"
BANNED = [*',，。！!；;?？"”“、：:「」【】`…', "……"]
Protocol = Literal["v1", "v2"]


class Item(NamedTuple):
    """A text with a word left out."""

    before: str
    n: int  # masks
    after: str
    word: str


@dataclass(frozen=True, kw_only=True)
class WordPrediction(Result):
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
        return f"# {self.title}\n{aligned(rows)}"


def read(path: str | Path) -> list[Item]:
    """The items of a file of JSON lines. Raises: InputError naming the line that is wrong."""
    rows = read_json_lines(path, ("masked_text", "correct_word"), _check)
    return [_item(row["masked_text"], row["correct_word"]) for row in rows]


def _check(row: dict[str, str]) -> str | None:
    text = row["masked_text"]
    first, n = text.find(MASK), text.count(MASK)
    if n == 0:
        return f"masked_text has no {MASK}"
    if text[first : first + n * len(MASK)] != MASK * n:
        return f"the {n} {MASK} of masked_text do not stand side by side"
    if not text[:first].strip():
        return f"masked_text has nothing before its first {MASK}"
    return None


def _item(text: str, word: str) -> Item:
    n = text.count(MASK)
    before, _, after = text.partition(MASK * n)
    return Item(before, n, after, word)


def word_prediction(
    model: LanguageModel, items: Sequence[Item], protocol: Protocol = "v1", bos: Bos = False
) -> WordPrediction:
    """Predict the word of each item. Of a text longer than block_size its end is read, and with v2 at most
    half of block_size after the masks.

    Raises: InputError for a model without tokenizer, or if no item can be predicted.
    """
    tokenizer = needs_tokenizer(model.tokenizer)
    banned = banned_ids(tokenizer)
    guesses, words = [], []
    for item in tqdm(items, desc="items", unit="item", disable=None, leave=False):
        found = _guess(model, tokenizer, item, protocol, banned, bos_ids(tokenizer, bos))
        if found is not None:
            guesses.append(found[:3])
            words.append(item.word)
    if not words:
        raise InputError("no item can be predicted: this tokenizer does not know their characters")
    both = list(zip(words, guesses, strict=True))
    return WordPrediction(
        title=f"words from their context, protocol {protocol}",
        top1=sum(word in found[:1] for word, found in both) / len(both),
        top3=sum(word in found for word, found in both) / len(both),
        n=len(both),
        left_out=len(items) - len(both),
        guesses=guesses,
    )


def banned_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids of punctuation and of what cannot be spelled: no word has them."""
    found = [tokenizer.id(symbol) for symbol in BANNED] + [unknown_id(tokenizer)]
    return sorted(i for i in found if i is not None)


def _guess(
    model: LanguageModel,
    tokenizer: Tokenizer,
    item: Item,
    protocol: Protocol,
    banned: list[int],
    bos: list[int],
) -> list[str] | None:
    """The words for the masks, likeliest first; None for an item that cannot be encoded."""
    size = model.config.block_size
    try:
        before = bos + text_ids(tokenizer, item.before)
        after = text_ids(tokenizer, item.after)[: size // 2]
    except InputError:  # a character that the tokenizer does not know
        return None
    if not before or item.n > size // 2:
        return None
    prompt = torch.tensor([before], device=model.wte.weight.device)  # (1, T)
    ids, log_p = beam_search(model, prompt, item.n, 3 if protocol == "v1" else 10, banned)
    rows, total = ids.tolist(), log_p.tolist()
    if protocol == "v2" and after:
        scored = score(model, [Row(before + row + after, len(before) + item.n) for row in rows])
        total = [p + s.log_p for p, s in zip(total, scored, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -total[i])
    # Some tokenizers put a space between the characters they decode.
    return ["".join(tokenizer.decode(rows[i]).split()) for i in order]
