"""What edits do to a prompt: the likeliest next tokens, tokens asked about, and samples, before and after.

    >>> edit = nb.control.ScaleSense(tokens=(464,), factor=0.0)
    >>> print(effect(senses, edit, "The nurse said that", tested=["he", "she"]).table())

Letters: B samples, T tokens, N tokens asked about.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanobackpack.analysis.control import applied
from nanobackpack.analysis.results import Ranking, Result, entries, table
from nanobackpack.analysis.senses import Senses
from nanobackpack.model.edits import IN_WORD, EditLike, flatten_edits
from nanobackpack.safe.files import writing
from nanobackpack.safe.pictures import picture
from nanobackpack.text.tokenizer import TextOrIds, Tokenizer
from nanobackpack.text.words import find_word, token_id


@dataclass(frozen=True, kw_only=True)
class Effect(Result):
    """A prompt's continuations without and with some edits, drawn with the same random numbers."""

    next_before: Ranking
    next_after: Ranking
    samples_before: list[str]
    samples_after: list[str]
    tested: list[str]  # N tokens asked about
    probabilities: Tensor  # (N, 2) of each as the next token, before and after
    cost: Result | None = None  # what the edits do to other text, if it was measured

    @property
    def ratios(self) -> Tensor:
        """p'(t) / p(t) of the tokens asked about, (N)."""
        return self.probabilities[:, 1] / self.probabilities[:, 0]

    def table(self) -> str:
        before = "before", self.next_before, self.samples_before
        after = "after", self.next_after, self.samples_after
        lines = [f"# {self.title}"]
        for when, ranking, samples in (before, after):
            likeliest = "  ".join(f"{token!r} {p:.3f}" for token, p in ranking[0])
            lines += [f"  {when:6}  {likeliest}", *(f"    {sample!r}" for sample in samples)]
        if self.tested:
            rows = zip(self.tested, self.probabilities.tolist(), self.ratios.tolist(), strict=True)
            cells = [
                [repr(token), f"{p:.3g}", f"{q:.3g}", f"{ratio:.3f}" if p else "–"]
                for token, (p, q), ratio in rows
            ]
            lines.append(table("", ["", "before", "after", "ratio"], cells))
        if self.cost:
            lines.append(self.cost.table())
        return "\n".join(lines)

    def plot(self, path: str) -> None:
        """Write the likeliest next tokens before and after as a PNG of bars."""
        sides = {"before": self.next_before[0], "after": self.next_after[0]}
        names = {when: [repr(token) for token, _ in row[::-1]] for when, row in sides.items()}
        text = "".join([self.title, *names["before"], *names["after"]])
        with picture(writing(path), (9, 1.5 + 0.3 * len(names["before"])), text) as figure:
            figure.suptitle(textwrap.fill(self.title, 90))
            for axes, (when, row) in zip(figure.subplots(1, 2, sharex=True), sides.items(), strict=True):
                axes.barh(range(len(row)), [p for _, p in row[::-1]], tick_label=names[when])
                axes.set(title=when, xlabel="probability")

    def records(self) -> list[dict[str, Any]]:
        return entries(self.probabilities, "probability", token=self.tested, edits=["before", "after"])


def _first_document(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of ids up to the end of the document."""
    return tokenizer.decode(ids[: ids.index(tokenizer.eos_id)] if tokenizer.eos_id in ids else ids)


def edited_words(edits: EditLike) -> set[tuple[int, ...]]:
    """Give what edits look for in a text: some for each of their tokens, some for all of them together.
    The empty word stands everywhere: for an edit of all tokens."""
    words: set[tuple[int, ...]] = set()
    for edit in flatten_edits(edits):
        if getattr(edit, "tokens", None) == "all":
            words.add(())
        elif isinstance(edit, IN_WORD):
            words.add(edit.edited_tokens)
        else:
            words.update(zip(edit.edited_tokens))
    return words


def effect(
    senses: Senses,
    edits: EditLike,
    prompt: str,
    *,
    k: int = 8,
    n: int = 3,
    new_tokens: int = 40,
    temperature: float = 0.8,
    seed: int = 0,
    tested: Sequence[TextOrIds] = (),
) -> Effect:
    """Compare the k likeliest next tokens after a prompt, n samples (none for 0), and the probabilities of
    the tokens `tested`, before and after. Warn if the prompt has none of the tokens that are edited."""
    model, tokenizer = senses.model, senses.tokenizer
    ids = torch.tensor([senses.encode(prompt)], device=model.wte.weight.device)  # (1, T)
    tokens = [token_id(tokenizer, word) for word in tested]

    edited = edited_words(edits)
    if (
        edited
        and () not in edited
        and not any(find_word(tokenizer, ids[0].tolist(), part) for part in edited)
    ):
        names = ", ".join(repr("".join(map(tokenizer.token, part))) for part in sorted(edited)[:5])
        warnings.warn(
            f"{prompt!r} has none of the edited tokens ({names}), so nothing changes before one comes",
            stacklevel=2,
        )

    def look() -> tuple[Ranking, list[str], Tensor]:
        samples = []
        if n:
            # The same numbers each time, so that samples differ only by what the edits do.
            draw = torch.Generator(ids.device).manual_seed(seed)
            rows = model.generate(ids.expand(n, -1), new_tokens, temperature, generator=draw)  # (B, T + new)
            samples = [_first_document(tokenizer, row) for row in rows[:, ids.size(1) :].tolist()]
        return senses.next_tokens(prompt, k), samples, senses.next_probabilities(prompt)[tokens]

    next_before, samples_before, p_before = look()
    with applied(model, edits):
        next_after, samples_after, p_after = look()
    return Effect(
        title=f"after {prompt!r}",
        next_before=next_before,
        next_after=next_after,
        samples_before=samples_before,
        samples_after=samples_after,
        tested=[tokenizer.token(token) for token in tokens],
        probabilities=torch.stack([p_before, p_after], dim=1),
    )
