"""Text from a model, one token at a time: the cache, the choice of a token, sampling, beam search.

    for new in stream(model, ids, 100, temperature=0.8):      # ids (B, T), new (B)
        ...

The cache holds what earlier positions contribute, so a new token costs one position. Once the context is full
the window slides. Learned positions shift with it, so nothing cached stays valid, and the window is
computed again for every token, as the plain definition asks. With `restart` the window is cut to its later
half instead, which lasts half a window: many times faster, but the model sees between half a window and a
whole one (docs/RESULTS.md says what that does to the loss).

Letters: B batch (beams in beam_search), T time (positions), S cached positions, V vocabulary, K senses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Protocol

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig
from nanobackpack.errors import InputError, WrongType
from nanobackpack.model.edits import EditLike, Edits
from nanobackpack.runtime import in_eval_mode
from nanobackpack.text.tokenizer import Tokenizer

Generators = torch.Generator | list[torch.Generator] | None
"""Where randomness comes from: torch's own, one generator for all rows, or one for each."""


class KVCache:
    """What a model keeps of the positions it has seen.

    `slots` holds for each attention layer its keys and values, (B, 2, H, capacity, D/H), and for a Backpack
    α's keys and the positions' senses. `length` is the number of positions filled; the model advances it
    once per forward pass. What a Backpack knows of its tokens (`table`, `sense_memory`) does not depend on
    positions and survives `clear`. All of it holds under the `edits` that the cache was made for.

    Rows may begin apart: shorter ones are filled up on the left, with -1 in place of ids. Then `mask` says
    what each new position sees, and `positions` which positions of their own texts the new ones are.
    """

    table: Tensor | None = None  # (K·V, V): the logits of all senses, where V is small
    sense_memory: SenseMemory | None = None
    begin: Tensor | None = None  # (B) where each row begins; None: all at once
    mask: Tensor | None = None  # (B, 1, T, S) for this pass; None: each position sees all up to itself
    positions: slice | Tensor  # of this pass: (B, T)

    def __init__(self, capacity: int, edits: Edits) -> None:
        self.slots: dict[str, Tensor] = {}
        self.capacity, self.length, self.edits = capacity, 0, edits

    def enter(self, ids: Tensor) -> Tensor:
        """Begin a pass over ids (B, T): find out what is seen, and return ids that can be looked up."""
        start, end = self.length, self.length + ids.size(1)
        if start == 0:
            missing = (ids < 0).sum(dim=1)  # (B)
            self.begin, self.mask = (missing if missing.any() else None), None
        if self.begin is None:
            self.positions = slice(start, end)
            return ids
        at = torch.arange(end, device=ids.device)  # (S)
        self.positions = (at[start:] - self.begin[:, None]).clamp(min=0)  # (B, T)
        row, begin = at[start:, None], self.begin[:, None, None, None]  # (T, 1), (B, 1, 1, 1)
        # What fills up a row may see itself: nobody looks at it, but a softmax over nothing is no number.
        self.mask = (at <= row) & ((at >= begin) | (row < begin))  # (B, 1, T, S)
        return ids.where(ids >= 0, ids[:, -1:])  # (B, T): some token that the row has anyway

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
        self.begin = None if self.begin is None else self.begin[rows]


class SenseMemory:
    """The senses of the tokens met so far, each computed once: `compute` maps ids (N) to (N, K, D)."""

    def __init__(self, vocab_size: int, compute: Callable[[Tensor], Tensor]) -> None:
        self.vocab_size, self.compute = vocab_size, compute
        self.known: set[int] = set()
        self.rows: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Senses of ids (B, T) → (B, T, K, D)."""
        new = set(ids.flatten().tolist()) - self.known
        if new:
            some = torch.tensor(sorted(new), device=ids.device)
            senses = self.compute(some)  # (N, K, D)
            if self.rows is None:  # the pages of it that are never written take no memory
                self.rows = senses.new_empty(self.vocab_size, *senses.shape[1:])  # (V, K, D)
            self.rows[some] = senses
            self.known |= new
        assert self.rows is not None
        return self.rows[ids]


class Decodable(Protocol):
    """What decoding needs of a model; model/backpack.py has the two there are."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    wte: torch.nn.Embedding

    def edits_in_force(self, edits: EditLike = ()) -> Edits: ...
    def new_cache(self, edits: EditLike | Edits = (), capacity: int | None = None) -> KVCache: ...
    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor: ...


def check_ids(ids: Tensor, vocab_size: int, block_size: float = math.inf) -> None:
    """Raise TypeError for what is no tensor of ids, ValueError for ids that a model cannot take: of another
    shape, too long, outside the vocabulary."""
    check_tensor("input_ids", "(B, T)", ids)
    if ids.dim() != 2:
        raise ValueError(f"input_ids must be (B, T) int64, not {tuple(ids.shape)}")
    if not ids.size(0):
        raise ValueError("input_ids holds no sequence: an empty batch")
    if not 1 <= ids.size(1) <= block_size:
        most = "or more" if block_size == math.inf else f"to block_size={block_size}"
        raise ValueError(f"{ids.size(1)} tokens, but this model takes 1 {most}")
    check_range(ids, 0, vocab_size)


def check_tensor(name: str, shape: object, ids: Tensor) -> None:
    """Raise TypeError for what is no tensor of ids."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise WrongType(name, f"{shape} int64 in a tensor, such as torch.tensor([[1, 2]])", ids)


def check_range(ids: Tensor, low: int, vocab_size: int) -> None:
    """Raise ValueError for an id below `low` or outside the vocabulary. Looked at on the CPU only: elsewhere
    it would make the host wait for the device."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    lowest, highest = (int(t) for t in ids.aminmax())
    if lowest < low or highest >= vocab_size:
        bad = lowest if lowest < low else highest
        raise ValueError(f"token id {bad} is outside the vocabulary: {low} to {vocab_size - 1}")


def stream(
    model: Decodable, input_ids: Tensor, max_new_tokens: int, *, edits: EditLike = (), **settings: Any
) -> Iterator[Tensor]:
    """Continue input_ids (B, T), T from 1 to any length; yield the new ids (B) one step at a time.

    `settings`: restart; what `choose` takes, temperature, top_k, top_p, min_p, repetition_penalty, generator;
    and for rows that begin or end apart (texts.py): `lengths` (B) of the prompts, which are filled up on the
    left, `ended`, a set to which rows that shall end are added while this goes on, and `log_p`, a list that
    gets the log-probabilities of the ids of each step. The id of a row that has ended is -1, and has none.

    `edits`, and those in force when this is called, hold for this generation; what they read of the text is
    the window. There is no dropout, whatever the mode of the model.
    """
    active, twin = model.edits_in_force(edits), in_eval_mode(model)  # type: ignore[type-var]
    return _stream(twin, input_ids, max_new_tokens, active, **settings)


@torch.inference_mode()
def _stream(
    model: Decodable,
    ids: Tensor,
    max_new_tokens: int,
    edits: Edits,
    restart: bool = False,
    generator: Generators = None,
    lengths: Sequence[int] | None = None,
    ended: Set[int] = frozenset(),
    log_p: list[Tensor] | None = None,
    **choice: Any,
) -> Iterator[Tensor]:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be >= 0")
    check_ids(ids, model.config.vocab_size)  # of any length: one too long is cut
    check_range(ids.cpu(), 0, model.config.vocab_size)  # on a GPU too, once: -1 has a meaning below
    size = model.config.block_size
    ids = ids[:, -size:]  # (B, T)
    (B, T), device = ids.shape, ids.device
    if isinstance(generator, list) and len(generator) != B:
        raise ValueError(f"generator has {len(generator)} generators, but there are {B} rows: give one a row")
    if lengths and min(lengths) < T:
        missing = T - torch.tensor(lengths, device=device)[:, None]  # (B, 1)
        ids = ids.masked_fill(torch.arange(T, device=device) < missing, -1)
    rows = list(range(B))  # those that still grow: N of B
    cache = model.new_cache(edits, T + max_new_tokens)
    window = ids  # (N, T): the text that the model may see, -1 where a row has not begun
    new = window  # what of it is not in the cache yet: at first all
    seen = None  # (N, V) which ids each text has, where they are to be penalised
    if choice.get("repetition_penalty", 1) != 1:
        seen = torch.zeros(B, model.config.vocab_size, dtype=torch.bool, device=device)
        seen.scatter_(1, ids.where(ids >= 0, ids[:, -1:]), True)
    for _ in range(max_new_tokens):
        if cache.length == size:  # the context is full: the window slides, or restarts where a row fills it
            cache.clear()
            fills = window[:, :1] >= 0  # (N, 1)
            window = window[:, 1:]  # (N, size)
            if restart:
                early = torch.arange(size, device=device) < size - max(1, size // 2)
                window = window.masked_fill(fills & early, -1)
            new = window = window[:, int((window < 0).all(dim=0).sum()) :]  # without what no row has
        if cache.length == 0 and len(new) > 1 and new.stride(0) == 0:
            # Many samples of one prompt: read it once, then let each row go its own way.
            logits = model.next_logits(new[:1], cache).expand(len(new), -1)  # (N, V)
            cache.expand(len(new))
        else:
            logits = model.next_logits(new, cache)  # (N, V)
        own = [generator[row] for row in rows] if isinstance(generator, list) else generator
        chosen = choose(with_text(model, logits), generator=own, seen=seen, **choice)  # (N)
        if log_p is not None:
            log_p.append(logits.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0])  # (N)
        found = chosen
        if len(rows) < B:
            found = ids.new_full((B,), -1)
            found[rows] = chosen
        yield found  # (B)
        new = chosen[:, None]  # (N, 1)
        window = torch.cat([window, new], dim=1)  # (N, T)
        if seen is not None:
            seen.scatter_(1, new, True)
        # Rows that have ended drop out.
        keep = [i for i, row in enumerate(rows) if row not in ended]
        if not keep:
            return
        if len(keep) < len(rows):
            rows, new, window = [rows[i] for i in keep], new[keep], window[keep]
            seen = None if seen is None else seen[keep]
            cache.select(torch.tensor(keep, device=device))


def with_text(model: Decodable, logits: Tensor) -> Tensor:
    """Leave of logits (B, V) those that may be sampled: no padded ids, no tokens without text, as [UNK]."""
    logits = logits[:, : model.config.n_token]
    never = [i for i in model.tokenizer.unsampled_ids if i < logits.size(1)] if model.tokenizer else []
    return logits.index_fill(1, torch.tensor(never, device=logits.device), -torch.inf) if never else logits


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generators = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seen: Tensor | None = None,
) -> Tensor:
    """Choose one id (B) for each row of logits (B, V).

    First repetition_penalty: logits of ids that the row has already, seen (B, V or more), are divided by it
    if they are positive, else multiplied (Keskar et al. 2019). Then temperature (0: the likeliest), then
    top_k, then top_p: the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al.
    2020), then min_p: tokens with min_p of the likeliest one's probability or more (Nguyen et al. 2024). None
    switches these off. With a list of generators, a row's choice depends on its own alone.
    """
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):  # `not <=` also refuses NaN
        raise ValueError(f"temperature {temperature} must be >= 0 and finite, and top_k {top_k} >= 1 or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} must be above 0 and at most 1")
    if not 0 < repetition_penalty < math.inf or (min_p is not None and not 0 <= min_p <= 1):
        raise ValueError(f"repetition_penalty {repetition_penalty} must be above 0, min_p {min_p} 0 to 1")
    if seen is not None:
        penalised = torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty)
        logits = torch.where(seen[:, : logits.size(1)], penalised, logits)
    highest = logits.amax(dim=1, keepdim=True)  # (B, 1)
    if logits.device.type == "cpu" and not highest.isfinite().all():  # looking would stall a GPU
        raise InputError("the logits are not finite numbers: the weights of this model are too large")
    limits = torch.finfo(logits.dtype)
    if temperature < limits.tiny:
        return logits.argmax(dim=1)
    # The likeliest moves to 0 first, so that a tiny temperature cannot make it infinite.
    logits = (logits - highest) / min(temperature, limits.max)
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        # A token stays if those likelier than it do not reach top_p yet; the likeliest always stays.
        p, order = logits.softmax(dim=1).sort(dim=1, descending=True)  # (B, V)
        outside = p.cumsum(dim=1) - p >= top_p
        outside[:, 0] = False
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    if min_p:
        logits = logits.masked_fill(logits < math.log(min_p), -torch.inf)  # that of the likeliest is 0
    p = logits.softmax(dim=1)
    if isinstance(generator, list):
        return torch.cat([draw(row[None], own) for row, own in zip(p, generator, strict=True)])
    return draw(p, generator)


def draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one id (B) from each row of probabilities p (B, V)."""
    if p.device.type != "cpu":
        return torch.multinomial(p, 1, generator=generator)[:, 0]
    # The same choice as torch.multinomial's: the largest of p / q, with a q from the exponential distribution
    # for each id. But those of torch take a CPU three times as long as these, which are the same numbers.
    q = torch.rand(p.shape, dtype=torch.float64, generator=generator).neg_().log1p_().neg_()  # (B, V)
    return (p / q.to(p.dtype)).argmax(dim=1)


@torch.inference_mode()
def beam_search(
    model: Decodable, input_ids: Tensor, n: int, beams: int, banned: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Find the likeliest continuations by n tokens of one prompt (1, T).

    Return their ids (N, n), best first, and the sums of their log-probabilities (N); N is `beams`, or less
    where so few exist. Banned and padded tokens are never chosen, though the softmax counts them. The prompt
    is cut on the left so that all fits block_size.
    """
    room = model.config.block_size - n + 1
    if n < 1 or beams < 1 or room < 1:
        raise ValueError(f"n={n} must be 1 to block_size={model.config.block_size}, beams={beams} 1 or more")
    check_ids(input_ids, model.config.vocab_size)
    edits, model = model.edits_in_force(), in_eval_mode(model)  # type: ignore[type-var]
    device, V, cache = input_ids.device, model.config.n_token, model.new_cache(edits)
    ids = torch.empty(1, 0, dtype=torch.int64, device=device)
    scores, new = torch.zeros(1, device=device), input_ids[:, -room:]
    for _ in range(n):
        # Every beam with every next token, as one list of N·V candidates: keep the best of them.
        log_p = model.next_logits(new, cache).log_softmax(dim=1)[:, :V]  # (N, V)
        log_p[:, list(banned)] = -torch.inf
        total = (scores[:, None] + log_p).flatten()  # (N·V)
        scores, best = total.topk(min(beams, total.numel()))  # (N)
        best, scores = best[scores > -torch.inf], scores[scores > -torch.inf]
        # Which beam each came from, and which token it adds; the cache follows.
        rows, new = best // V, (best % V)[:, None]  # (N), (N, 1)
        ids = torch.cat([ids[rows], new], dim=1)
        cache.select(rows)
    return ids, scores
