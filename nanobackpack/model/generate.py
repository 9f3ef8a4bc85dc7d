"""Text from a model: cached decoding, sampling, beams.

The cache holds what earlier positions contribute, so each new token costs one position. Once the context
is full the window slides; learned positions shift with it, so nothing cached stays valid and the window is
computed again for each token, as the plain definition asks. With `restart` it is cut to its later half
instead, which lasts half a window: many times faster, but the model sees between half a window and a
whole one, 3/4 on average (docs/RESULTS.md says what that does to the loss).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig
from nanobackpack.errors import InputError
from nanobackpack.model.edits import EditLike, Edits
from nanobackpack.runtime import reading


class Decodable(Protocol):
    """What decoding needs of a model."""

    config: ModelConfig
    training: bool

    def new_cache(self, edits: EditLike = (), capacity: int | None = None) -> KVCache: ...

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...

    def eval(self) -> object: ...


@torch.inference_mode()
def stream(
    model: Decodable,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    restart: bool = False,
    edits: EditLike = (),
) -> Iterator[Tensor]:
    """Continue input_ids (B, T), T from 1 to any length; yield the new ids (B) one step at a time.

    temperature 0 takes the likeliest token. With a generator for each row, a row's text depends on its own
    alone. The model is put in eval mode while this runs. `edits` (control.py) hold for this generation;
    what they read of the text is the window.
    Raises: ValueError for ids, max_new_tokens, temperature, top_k or top_p out of range, and logits that
    are no numbers; InputError for unfit edits.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be >= 0")
    size = model.config.block_size
    check_ids(input_ids, model.config.vocab_size, max(size, input_ids.numel()))  # a longer prompt is cut
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache(edits, input_ids.size(1) + max_new_tokens)
        ids = input_ids[:, -size:]  # (B, T)
        new = ids
        for _ in range(max_new_tokens):
            if cache.length == size:
                cache.clear()
                new = ids = ids[:, -max(1, size // 2) :] if restart else ids[:, -size:]
            if cache.length == 0 and len(new) > 1 and new.stride(0) == 0:  # one prompt for all
                logits = model.next_logits(new[:1], cache).expand(len(new), -1)  # (B, V)
                cache.expand(len(new))
            else:
                logits = model.next_logits(new, cache)  # (B, V)
            chosen = choose(logits[:, : model.config.n_token], temperature, top_k, top_p, generator)
            yield chosen
            new = chosen[:, None]  # (B, 1)
            ids = torch.cat([ids, new], dim=1)[:, -size:]
    finally:
        model.train(was_training)


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """One id (B) per row of logits (B, V).

    Temperature first, then top_k, then top_p: the smallest set of likeliest tokens whose probability
    reaches top_p (Holtzman et al. 2020). None switches either off. One generator for all rows, or a list
    of one for each.
    Raises: ValueError for a temperature below 0 or infinite, top_k below 1, top_p outside (0, 1], and on
    the CPU (elsewhere it would stall the device) for logits of which none is finite or one is no number.
    """
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):  # `not >=` also refuses NaN
        raise ValueError(f"temperature {temperature} must be >= 0 and finite, and top_k {top_k} >= 1 or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} must be above 0 and at most 1")
    highest = logits.amax(dim=1, keepdim=True)  # (B, 1)
    if logits.device.type == "cpu" and not highest.isfinite().all():
        raise InputError("the logits are not finite numbers: the weights of this model are too large")
    finite = torch.finfo(logits.dtype)
    if temperature < finite.tiny:
        return logits.argmax(dim=1)
    # The likeliest at 0, so that a tiny temperature cannot make it infinite.
    logits = (logits - highest) / min(temperature, finite.max)
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, order = logits.softmax(dim=1).sort(dim=1, descending=True)
        outside = ranked.cumsum(dim=1) - ranked >= top_p  # what the likelier ones already cover
        outside[:, 0] = False  # whatever top_p is rounded to
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    p = logits.softmax(dim=1)
    if isinstance(generator, list):
        drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(p, generator, strict=True)]
        return torch.cat(drawn)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


@torch.inference_mode()
def beam_search(
    model: Decodable, input_ids: Tensor, n: int, beams: int, banned: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """The likeliest continuations by n tokens of one prompt (1, T): ids (N, n), best first, and the sums
    of their log-probabilities (N). N is `beams`, or less where so few exist.

    At each step the `beams` best of all continuations by one token are kept, without the banned tokens
    and padding, which the softmax however counts. The prompt is cut on the left so that all fits block_size.
    Raises: ValueError for n, beams or ids out of range.
    """
    room = model.config.block_size - n + 1
    if n < 1 or beams < 1 or room < 1:
        raise ValueError(f"n={n} must be 1 to block_size={model.config.block_size}, beams={beams} 1 or more")
    context = input_ids[:, -room:]
    check_ids(context, model.config.vocab_size, model.config.block_size)
    device, V = input_ids.device, model.config.n_token
    ids = torch.empty(1, 0, dtype=torch.int64, device=device)
    scores, new = torch.zeros(1, device=device), context
    with reading(model):  # type: ignore[arg-type]
        cache = model.new_cache()
        for _ in range(n):
            log_p = model.next_logits(new, cache).log_softmax(dim=1)[:, :V]  # (N, V)
            log_p[:, list(banned)] = -torch.inf
            total = (scores[:, None] + log_p).flatten()  # (N·V)
            scores, best = total.topk(min(beams, total.numel()))  # (N)
            best, scores = best[scores > -torch.inf], scores[scores > -torch.inf]
            rows, new = best // V, (best % V)[:, None]  # (N), (N, 1)
            ids = torch.cat([ids[rows], new], dim=1)
            cache.select(rows)
    return ids, scores


def check_ids(ids: Tensor, vocab_size: int, block_size: int) -> None:
    """Refuse ids a model cannot take: wrong shape or type, too long, or outside the vocabulary.

    Raises: ValueError. Values are checked on the CPU only: elsewhere it would stall the device.
    """
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"input_ids must be (B, T) int64, not {tuple(ids.shape)} {ids.dtype}")
    if not ids.size(0):
        raise ValueError("input_ids holds no sequence: an empty batch")
    if not 1 <= ids.size(1) <= block_size:
        raise ValueError(f"{ids.size(1)} tokens, but this model takes 1 to block_size={block_size}")
    _check_range(ids, 0, vocab_size)


def check_targets(targets: Tensor, input_ids: Tensor, vocab_size: int) -> None:
    """Refuse targets of another shape or type than the ids, or outside the vocabulary and not -1.

    Raises: ValueError, as check_ids.
    """
    if targets.shape != input_ids.shape or targets.dtype != torch.int64:
        shape = tuple(input_ids.shape)
        raise ValueError(f"targets must be {shape} int64, not {tuple(targets.shape)} {targets.dtype}")
    _check_range(targets, -1, vocab_size)


def _check_range(ids: Tensor, low: int, vocab_size: int) -> None:
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    lowest, highest = (int(t) for t in ids.aminmax())
    if lowest < low or highest >= vocab_size:
        bad = lowest if lowest < low else highest
        raise ValueError(f"token id {bad} is outside the vocabulary: {low} to {vocab_size - 1}")


class KVCache:
    """What a model keeps of the positions it has seen, so that decoding adds one at a time.

    `slots` holds for each attention layer its keys and values, (B, 2, H, capacity, D/H), and for a
    Backpack α's keys and the positions' senses. `length` is the number of positions filled; the model
    advances it once per forward pass. `edits` hold for the whole generation. `table` and `senses`, what a
    Backpack knows of its tokens, do not depend on positions and outlive `clear`.
    """

    table: Tensor | None = None
    senses: SenseMemory

    def __init__(self, capacity: int, edits: Edits) -> None:
        self.slots: dict[str, Tensor] = {}
        self.capacity, self.edits = capacity, edits
        self.length = 0

    def append(self, slot: str, new: Tensor) -> Tensor:
        """Store new (B, ..., T, *) after what the slot has; return all of it, (B, ..., length + T, *)."""
        start, end = self.length, self.length + new.size(-2)
        assert start == 0 or end == start + 1, "after the first pass, one position at a time"
        if slot not in self.slots:
            self.slots[slot] = new.new_empty(*new.shape[:-2], self.capacity, new.size(-1))
        buffer = self.slots[slot]
        buffer[..., start:end, :] = new
        return buffer[..., :end, :]

    def clear(self) -> None:
        """Forget the positions."""
        self.length = 0

    def expand(self, n: int) -> None:
        """Make the one sequence seen so far the beginning of n."""
        self.slots = {slot: t.repeat(n, *[1] * (t.dim() - 1)) for slot, t in self.slots.items()}

    def select(self, rows: Tensor) -> None:
        """Go on from these sequences (N), each once or more often."""
        self.slots = {slot: t[rows] for slot, t in self.slots.items()}


class SenseMemory:
    """The senses of the tokens met so far, each computed once: `compute` maps ids (N) to (N, K, W)."""

    def __init__(self, vocab_size: int, compute: Callable[[Tensor], Tensor]) -> None:
        self.vocab_size, self.compute = vocab_size, compute
        self.known: set[int] = set()
        self.rows: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Senses of ids (B, T) → (B, T, K, W)."""
        new = set(ids.flatten().tolist()) - self.known
        if new:
            some = torch.tensor(sorted(new), device=ids.device)
            senses = self.compute(some)  # (N, K, W)
            if self.rows is None:  # pages of it that are never written take no memory
                self.rows = senses.new_empty(self.vocab_size, *senses.shape[1:])  # (V, K, W)
            self.rows[some] = senses
            self.known |= new
        assert self.rows is not None
        return self.rows[ids]
