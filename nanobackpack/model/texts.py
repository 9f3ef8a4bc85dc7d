"""Texts that grow: prompts of any lengths in one batch, each until it ends.

    model.generate(["Once a fox", "The"], 100, stop=["\\n"])             # two texts
    rows = [Row(tokenizer.prompt_ids(text)) for text in texts]
    for _ in grow(model, rows, 100, stop=[tokenizer.eos_id]): ...        # look at rows[0].text(tokenizer)

A row becomes what it would become alone, token for token: what fills up shorter prompts is not seen, and
positions count from where each row begins.
Letters: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanobackpack.errors import WrongType, whole_numbers
from nanobackpack.model.generate import Decodable, Generators, stream
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import needs_tokenizer

PROMPTS = "a tensor (B, T) int64, a text, or a list of texts or of lists of ids"


@dataclass
class Row:
    """A text that grows."""

    prompt: list[int]
    new: list[int] = field(default_factory=list)
    """Ids that were added, the one that ended it included."""
    log_p: list[float] = field(default_factory=list)
    """Of `new`, if they were asked for: log-probabilities under the model itself, whatever the choice was."""
    end: int | str | None = None
    """What ended it: an id or a text; None: nothing has."""

    def text(self, tokenizer: Tokenizer) -> str:
        """Return what was added to the prompt, without what ended it."""
        text = tokenizer.decode_after(self.prompt, self.new[:-1] if isinstance(self.end, int) else self.new)
        return text[: text.find(self.end)] if isinstance(self.end, str) else text


def generate(
    model: Decodable,
    input_ids: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
    *,
    stop: Sequence[int | str] = (),
    **settings: Any,
) -> Any:
    """Continue input_ids (B, T) by sampling; return (B, T + max_new_tokens). Or continue a text, or a list of
    prompts of any lengths, each a text, a list of ids or a tensor (T): each comes back as it was given.

    `stop` are ids and texts that end a row. Ids keep what ended them, and a row of a tensor (B, T) repeats
    it; texts end before it. `settings`: edits, restart, min_p, repetition_penalty, as `stream` takes them.
    """
    settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    if not isinstance(input_ids, Tensor | str | list | tuple):
        raise WrongType("input_ids", PROMPTS, input_ids)
    if isinstance(input_ids, Tensor) and not stop:
        steps = [new[:, None] for new in stream(model, input_ids, max_new_tokens, **settings)]  # (B, 1) each
        return torch.cat([input_ids, *steps], dim=1)  # (B, T + new)
    prompts = [input_ids] if isinstance(input_ids, str) else list(input_ids)
    rows = [Row(prompt_ids(model, prompt)) for prompt in prompts]
    for _ in grow(model, rows, max_new_tokens, stop=stop, **settings):
        pass
    if isinstance(input_ids, Tensor):
        full = [row.new + row.new[-1:] * (max_new_tokens - len(row.new)) for row in rows]
        return torch.cat([input_ids, input_ids.new_tensor(full)], dim=1)  # (B, T + new)
    grown = [_as_given(model, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    return grown[0] if isinstance(input_ids, str) else grown


def prompt_ids(model: Decodable, prompt: Any) -> list[int]:
    """Return the ids of a prompt: those of a text as a document begins."""
    if isinstance(prompt, str):
        return needs_tokenizer(model.tokenizer).prompt_ids(prompt)
    return whole_numbers("input_ids", PROMPTS, prompt)


def _as_given(model: Decodable, prompt: Any, row: Row) -> Any:
    if isinstance(prompt, str):
        return prompt + row.text(needs_tokenizer(model.tokenizer))
    ids = row.prompt + row.new
    return prompt.new_tensor(ids) if isinstance(prompt, Tensor) else ids


def grow(
    model: Decodable,
    rows: Sequence[Row],
    max_new_tokens: int,
    *,
    stop: Sequence[int | str] = (),
    log_p: bool = False,
    **settings: Any,
) -> Iterator[None]:
    """Continue rows in one batch by max_new_tokens or up to what ends them; yield after each step.

    `settings` are those of `stream`. A prompt longer than the context is cut on the left.
    """
    ends = stop if isinstance(stop, list | tuple) else [None]
    if not all(isinstance(end, int) or (isinstance(end, str) and end) for end in ends):
        raise WrongType("stop", "a list of ids and of texts that are not empty", stop)
    if not rows or not all(row.prompt for row in rows):
        raise ValueError("input_ids holds " + ("a prompt of 0 tokens" if rows else "no sequence"))
    prompts = [row.prompt[-model.config.block_size :] for row in rows]
    device, T = model.wte.weight.device, max(map(len, prompts))
    if prompts.count(prompts[0]) == len(prompts):
        ids = torch.tensor(prompts[:1], device=device).expand(len(rows), -1)  # (B, T): read only once
    else:
        ids = torch.tensor([[0] * (T - len(p)) + p for p in prompts], device=device)  # (B, T)
    texts = [text for text in stop if isinstance(text, str)]
    ended: set[int] = set()
    scores: list[Tensor] | None = [] if log_p else None
    settings |= {"lengths": list(map(len, prompts)), "ended": ended, "log_p": scores}
    for new in stream(model, ids, max_new_tokens, **settings):  # (B)
        own = scores.pop().tolist() if scores else []  # in the order of those that have one
        for i, token in enumerate(new.tolist()):
            if token < 0:
                continue
            row = rows[i]
            row.new.append(token)
            row.log_p += own[:1]
            own = own[1:]
            row.end = token if token in stop else _text_end(model, row, texts)
            if row.end is not None:
                ended.add(i)
        yield


def _text_end(model: Decodable, row: Row, texts: Sequence[str]) -> str | None:
    """Return which of some texts ends a row: the first one in it; None if none is."""
    if not texts:
        return None
    tokenizer = needs_tokenizer(model.tokenizer)
    # Only the last tokens can have completed one: at most four for each of its characters, and as many more.
    n = 8 * max(map(len, texts))
    last = tokenizer.decode_after([*row.prompt, *row.new[:-n]], row.new[-n:])
    if not any(text in last for text in texts):
        return None
    whole = row.text(tokenizer)
    return min((text for text in texts if text in whole), key=whole.find, default=None)
