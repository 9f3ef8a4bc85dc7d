"""Edits: what can be changed in what a model does, without touching its weights. control.py makes them.

    ScaleSense     C(x)_l · p for tokens x: p = 0 removes a sense                       paper, section 6.2
    ReplaceSenses  other vectors C(x) for some tokens, such as a knowledge edit         paper, section 6.3
    TopicControl   senses that speak for a bag of words count more, until the text does     section 6.1, D.1
    AmplifyInWord  the weight of a word shared anew among its tokens                    nanoBackpackLM
    GPTNullspace   a direction taken out of a GPT's input embeddings: the baseline      paper, D.2

Each is an immutable value that acts on one of three seams, and is checked against the model it meets:

    Backpack  logits[b,i] = E · Σ_j≤i Σ_l  w(α)[b,l,i,j] · c(C(x[b,j]))[l]     c: SenseEdit, w: WeightEdit
    GPT       logits[b,i] = E · context(n(E[x[b]]))[i]                         n: InputEdit

Those of the senses come first, so that the others see the edited senses; edits of one seam act in the
order given.

Letters: B batch, T time, S positions so far, N query rows (the last N of S), D width, K senses, U ids.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias, get_type_hints

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig, matches_type
from nanobackpack.errors import InputError, short_repr

if TYPE_CHECKING:
    from nanobackpack.model.generate import KVCache


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of what a model does, as a value."""

    model_name: ClassVar[str] = "backpack-lm"

    @property
    def inert(self) -> bool:
        """Whether it changes nothing whatever the text; it is left out then, to the last bit."""
        return False

    def check(self, config: ModelConfig) -> None:
        """Raises: InputError unless it fits a model of that shape."""

    def to(self, device: torch.device) -> Edit:
        """The same edit with its tensors on a device."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {name: t for name, t in tensors.items() if isinstance(t, Tensor) and t.device != device}
        return dataclasses.replace(self, **{n: t.to(device) for n, t in tensors.items()}) if tensors else self


class SenseEdit(Edit):
    """Changes C, by token: what it does is the same at every position of every text."""

    def senses(self, ids: Tensor, c: Tensor) -> Tensor:
        """Senses c (U, K, D) of the tokens ids (U), edited."""
        raise NotImplementedError


class WeightEdit(Edit):
    """Changes α, which may depend on the whole text so far."""

    def weights(self, alpha: Tensor, seen: Seen) -> Tensor:
        """Weights alpha (B, K, N, S) of the last N rows, edited."""
        raise NotImplementedError


class InputEdit(Edit):
    """Changes the embeddings a GPT reads; those of its head stay."""

    model_name = "gpt2"

    def inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        """Embeddings e (B, T, D) of ids (B, T), edited."""
        raise NotImplementedError


EditLike: TypeAlias = Edit | Iterable["EditLike"]


def flat(edits: EditLike) -> tuple[Edit, ...]:
    """An edit, or edits nested in any way, as one tuple.

    Raises: InputError for anything that is no edit.
    """
    if isinstance(edits, Edit):
        return (edits,)
    if isinstance(edits, str) or not isinstance(edits, Iterable):
        raise InputError(f"{edits!r} is not an edit: nanobackpack.control makes them")
    return tuple(edit for some in edits for edit in flat(some))


class Edits:
    """Some edits as a model uses them: checked, on its device, sorted by seam, inert ones left out."""

    def __init__(self, edits: tuple[Edit, ...], config: ModelConfig, device: torch.device) -> None:
        for edit in edits:
            if edit.model_name != config.model_name:
                kind = "a GPT, which has no senses" if config.model_name == "gpt2" else "a Backpack"
                raise InputError(f"{type(edit).__name__} cannot edit this model: it is {kind}")
            edit.check(config)
        live = [edit.to(device) for edit in edits if not edit.inert]
        self.on_senses = [edit for edit in live if isinstance(edit, SenseEdit)]
        self.on_weights = [edit for edit in live if isinstance(edit, WeightEdit)]
        self.on_inputs = [edit for edit in live if isinstance(edit, InputEdit)]

    def on_any_row(self) -> Edits:
        """These for a batch of padded texts, of which each is read at its own last row: what an edit of the
        last row alone does there, it does at every row, none of which another row sees."""
        every = copy.copy(self)
        every.on_weights = [
            dataclasses.replace(edit, last_row=False) if isinstance(edit, AmplifyInWord) else edit
            for edit in self.on_weights
        ]
        return every

    def senses(self, ids: Tensor, c: Tensor) -> Tensor:
        for edit in self.on_senses:
            c = edit.senses(ids, c)
        return c

    def weights(self, alpha: Tensor, seen: Seen) -> Tensor:
        for edit in self.on_weights:
            alpha = edit.weights(alpha, seen)
        return alpha

    def inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        for edit in self.on_inputs:
            e = edit.inputs(ids, e)
        return e


class Seen:
    """What an edit of α may read of a text: its ids (B, S), and how much it speaks for each sense in it.

    `senses` (B, K, S, D) are those of all positions, `embedding` is E. With a cache only the last row is
    asked for, and all before the last position has been seen before, or nothing has.
    """

    def __init__(self, ids: Tensor, senses: Tensor, embedding: Tensor, cache: KVCache | None = None) -> None:
        self.ids, self.senses, self.embedding, self.cache = ids, senses, embedding, cache

    @cached_property
    def support(self) -> Tensor:
        """A[b,l,i,j] = Σ_i'≤i max(E_x[b,i'] · C(x[b,j])_l, 0), (B, K, N, S): paper, eq. 18, where the
        text ends at the row i that predicts, so that later tokens never change an earlier prediction."""
        c, cache = self.senses.transpose(2, 3), self.cache  # (B, K, D, S)
        if cache is None:
            e = self.embedding[self.ids]  # (B, S, D)
            return _positive(e[:, None], c).cumsum(dim=2)  # (B, K, N = S, S)
        e = cache.append("embeddings", self.embedding[self.ids[:, cache.length :]])  # (B, S, D)
        if cache.length == 0:  # a sense at a time, as only sums are kept
            sums = [_positive(e, sense).sum(dim=1) for sense in c.unbind(1)]  # K of (B, S)
            new = torch.stack(sums, dim=1)[..., None]  # (B, K, S, 1)
        else:
            new = _positive(c[..., -1], e.transpose(1, 2)).sum(dim=2)[..., None, None]  # (B, K, 1, 1)
        a = cache.append("support", new).transpose(2, 3)  # (B, K, 1, S), the cache's own memory
        if cache.length:
            a[..., :-1] += _positive(e[:, None, -1:], c[..., :-1])
        return a


def _positive(x: Tensor, y: Tensor) -> Tensor:
    """max(x · y, 0), the scores in float32."""
    return (x @ y).float().relu()


# --- The kinds of edits -----------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleSense(SenseEdit):
    """C(x)_l times `factor` for the tokens x: of one sense, or of all; or one factor for each sense.

    The same as α[b,l,i,j] times it wherever x[b,j] is one of the tokens: nothing is normalised again.
    """

    tokens: tuple[int, ...]
    factor: float | tuple[float, ...]
    sense: int | None = None

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.sense is not None and isinstance(self.factor, tuple):
            raise InputError(f"ScaleSense: sense={self.sense} takes one factor, not {len(self.factor)}")

    @property
    def inert(self) -> bool:
        factors = self.factor if isinstance(self.factor, tuple) else (self.factor,)
        return not self.tokens or all(f == 1 for f in factors)

    def check(self, config: ModelConfig) -> None:
        _check_tokens(self, self.tokens, config)
        K = config.n_sense_vector
        if self.sense is not None and not 0 <= self.sense < K:
            raise InputError(f"ScaleSense: sense={self.sense}, but this model has senses 0 to {K - 1}")
        if isinstance(self.factor, tuple) and len(self.factor) != K:
            raise InputError(f"ScaleSense: {len(self.factor)} factors for a model of {K} senses")

    def senses(self, ids: Tensor, c: Tensor) -> Tensor:
        scale = c.new_ones(c.size(1))  # (K)
        scale[slice(None) if self.sense is None else self.sense] = c.new_tensor(self.factor)
        hit = torch.isin(ids, ids.new_tensor(self.tokens))  # (U)
        return c * torch.where(hit[:, None], scale, 1)[..., None]  # (U, K, 1)


@dataclass(frozen=True, eq=False)
class ReplaceSenses(SenseEdit):
    """`table[n]` (K, D) in place of C of tokens[n], for any number of tokens."""

    tokens: tuple[int, ...]
    table: Tensor  # (N, K, D)

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.table.dim() != 3 or len(self.table) != len(self.tokens):
            shape = tuple(self.table.shape)
            raise InputError(f"ReplaceSenses: a table {shape} for {len(self.tokens)} tokens: it is (N, K, D)")
        if len(set(self.tokens)) < len(self.tokens):
            raise InputError("ReplaceSenses: a token comes twice")

    @property
    def inert(self) -> bool:
        return not self.tokens

    def check(self, config: ModelConfig) -> None:
        _check_tokens(self, self.tokens, config)
        shape = (config.n_sense_vector, config.n_embd)
        if self.tokens and self.table.shape[1:] != shape:
            got = tuple(self.table.shape[1:])
            raise InputError(f"ReplaceSenses: senses of shape {got}, but this model's are (K, D) = {shape}")

    def senses(self, ids: Tensor, c: Tensor) -> Tensor:
        known, order = ids.new_tensor(self.tokens).sort()  # (N)
        at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)  # (U)
        hit = (known[at] == ids)[:, None, None]  # (U, 1, 1)
        return torch.where(hit, self.table[order[at]].to(c.dtype), c)  # (U, K, D)


@dataclass(frozen=True, eq=False)
class TopicControl(WeightEdit):
    """α[b,l,i,j] times 1 + B · (delta[x[b,j],l] - 1), with an annealing B = sigmoid(6 - f·A) · (1 + j/100).

    A is how much the text up to row i speaks for sense l of x[b,j] (Seen.support): once it does,
    there is no need to push. control.topic makes delta from a bag of words. Paper, eq. 17 to 20.
    """

    delta: Tensor  # (V, K)
    f: float

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.delta.dim() != 2:
            raise InputError(f"TopicControl: delta has shape {tuple(self.delta.shape)}: it must be (V, K)")

    @property
    def inert(self) -> bool:
        return bool((self.delta == 1).all())

    def check(self, config: ModelConfig) -> None:
        shape = (config.vocab_size, config.n_sense_vector)
        if self.delta.shape != shape:
            got = tuple(self.delta.shape)
            raise InputError(f"TopicControl: delta has shape {got}, but this model's (V, K) is {shape}")

    def weights(self, alpha: Tensor, seen: Seen) -> Tensor:
        return (alpha * self.factors(seen)).to(alpha.dtype)

    def factors(self, seen: Seen) -> Tensor:
        """What senses are multiplied by, (B, K, N, S)."""
        j = torch.arange(seen.ids.size(1), device=seen.ids.device)
        annealing = (6 - self.f * seen.support).sigmoid() * (1 + j / 100)  # (B, K, N, S)
        delta = self.delta[seen.ids].transpose(1, 2)[:, :, None]  # (B, K, 1, S)
        return 1 + annealing * (delta - 1)


@dataclass(frozen=True)
class AmplifyInWord(WeightEdit):
    """In each occurrence of the tokens `word`, their weights α times `factors`, then scaled so that the
    word's sum is what it was: the word counts as before, but for other parts of itself.

    It acts on all rows that have seen the whole word, or with `last_row` on the last one alone, the one
    that predicts; a row never touches another's logits. Of overlapping occurrences the first counts.
    """

    word: tuple[int, ...]
    factors: tuple[float, ...]
    last_row: bool = False

    def __post_init__(self) -> None:
        _check_fields(self)
        if not self.word or len(self.word) != len(self.factors):
            raise InputError(
                f"AmplifyInWord: {len(self.factors)} factors for {len(self.word)} tokens: one each"
            )
        if min(self.factors) <= 0:
            raise InputError(f"AmplifyInWord: factors={self.factors} must all be above 0")

    @property
    def inert(self) -> bool:
        return len(set(self.factors)) == 1

    def check(self, config: ModelConfig) -> None:
        _check_tokens(self, self.word, config)

    def weights(self, alpha: Tensor, seen: Seen) -> Tensor:
        n, (N, S) = len(self.word), alpha.shape[2:]
        rows = torch.arange(S - N, S, device=alpha.device)  # (N): the positions of the query rows
        found = self._occurrences(seen.ids)  # (B, S - n + 1)
        alpha = alpha.clone()
        for start in found.any(dim=0).nonzero()[:, 0].tolist():
            part = alpha[..., start : start + n]  # (B, K, N, n)
            more = part * alpha.new_tensor(self.factors)
            more = more * (part.sum(dim=3, keepdim=True) / more.sum(dim=3, keepdim=True))
            here = rows >= (S - 1 if self.last_row else start + n - 1)  # (N)
            here = found[:, start, None, None, None] & here[:, None] & more.isfinite()  # 0 / 0: no weight
            alpha[..., start : start + n] = torch.where(here, more, part)
        return alpha

    def _occurrences(self, ids: Tensor) -> Tensor:
        """Where the word starts in ids (B, S): (B, S - n + 1), or (B, 0) in a shorter text."""
        n = len(self.word)
        if ids.size(1) < n:
            return ids.new_zeros(len(ids), 0, dtype=torch.bool)
        found = (ids.unfold(1, n, 1) == ids.new_tensor(self.word)).all(dim=2)  # (B, S - n + 1)
        for start in found.any(dim=0).nonzero()[:, 0].tolist():
            found[:, start] &= ~found[:, max(0, start - n + 1) : start].any(dim=1)
        return found


@dataclass(frozen=True, eq=False)
class GPTNullspace(InputEdit):
    """Embeddings e of the tokens, as a GPT reads them, less (1 - factor) of their part along g:
    e - (1 - factor) (e·g / g·g) g. The head keeps the original rows."""

    tokens: tuple[int, ...]
    factor: float
    direction: Tensor  # g (D)

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.direction.dim() != 1 or not self.direction.any():
            raise InputError("GPTNullspace: direction must be a vector (D) other than 0")

    @property
    def inert(self) -> bool:
        return not self.tokens or self.factor == 1

    def check(self, config: ModelConfig) -> None:
        _check_tokens(self, self.tokens, config)
        if len(self.direction) != config.n_embd:
            n, D = len(self.direction), config.n_embd
            raise InputError(f"GPTNullspace: direction has {n} numbers, but this model's D is {D}")

    def inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        g = self.direction
        along = ((e * g).sum(dim=-1, keepdim=True) / (g @ g)) * g  # (..., D)
        hit = torch.isin(ids, ids.new_tensor(self.tokens))[..., None]  # (..., 1)
        return torch.where(hit, e - (1 - self.factor) * along, e)


KINDS: tuple[type[Edit], ...] = (ScaleSense, ReplaceSenses, TopicControl, AmplifyInWord, GPTNullspace)


def _check_fields(edit: Edit) -> None:
    """Refuse values of the wrong type, and numbers that are not finite."""
    kind, hints = type(edit).__name__, get_type_hints(type(edit))
    for field in dataclasses.fields(edit):
        value = getattr(edit, field.name)
        if not matches_type(value, hints[field.name]):
            raise InputError(
                f"{kind}: {field.name}={short_repr(value)} has the wrong type: it must be {field.type}"
            )
        if isinstance(value, Tensor):
            finite = value.dtype == torch.float32 and bool(value.isfinite().all())
        else:
            numbers = value if isinstance(value, tuple) else (value or 0,)
            finite = all(abs(number) <= torch.finfo(torch.float32).max for number in numbers)
        if not finite:
            raise InputError(f"{kind}: {field.name} must hold finite numbers, float32 in tensors")


def _check_tokens(edit: Edit, tokens: Sequence[int], config: ModelConfig) -> None:
    V = config.vocab_size
    if bad := [token for token in tokens if not 0 <= token < V]:
        kind = type(edit).__name__
        raise InputError(f"{kind}: token {bad[0]} is outside this model's vocabulary: 0 to {V - 1}")
