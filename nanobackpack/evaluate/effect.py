"""What edits do to a prompt: the likeliest next tokens and samples, before and after.

Letters: B samples, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nanobackpack.control import applied
from nanobackpack.edits import EditLike
from nanobackpack.results import Ranking, Result
from nanobackpack.senses import Senses


@dataclass(frozen=True, kw_only=True)
class Effect(Result):
    """A prompt's continuations without and with some edits, drawn with the same random numbers."""

    next_before: Ranking
    next_after: Ranking
    samples_before: list[str]
    samples_after: list[str]

    def table(self) -> str:
        lines = [f"# {self.title}"]
        for when, tokens, samples in (
            ("before", self.next_before, self.samples_before),
            ("after", self.next_after, self.samples_after),
        ):
            shown = "  ".join(f"{token!r} {p:.3f}" for token, p in tokens[0])
            lines += [f"  {when:6}  {shown}", *(f"    {sample!r}" for sample in samples)]
        return "\n".join(lines)


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
) -> Effect:
    """The k likeliest next tokens after a prompt and n samples, before and after.

    Raises: InputError for an empty or too long prompt, unknown characters, and edits that do not fit.
    """
    model, tokenizer = senses.model, senses.tokenizer
    ids = torch.tensor([senses.encode(prompt)], device=model.wte.weight.device)  # (1, T)

    def look() -> tuple[Ranking, list[str]]:
        draw = torch.Generator(ids.device).manual_seed(seed)
        rows = model.generate(ids.expand(n, -1), new_tokens, temperature, generator=draw)  # (B, T + new)
        return senses.next_tokens(prompt, k), [
            tokenizer.decode(row) for row in rows[:, ids.size(1) :].tolist()
        ]

    before = look()
    with applied(model, edits):
        after = look()
    return Effect(
        title=f"after {prompt!r}",
        next_before=before[0],
        next_after=after[0],
        samples_before=before[1],
        samples_after=after[1],
    )
