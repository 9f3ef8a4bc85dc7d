"""Edits: steer a model without touching its weights. analysis/control.py makes them, this file applies them.

    model(ids, edits=ScaleSense(tokens=(464,), factor=0.0, sense=10))      token 464 loses its sense 10

Each kind of edit is an immutable value that changes one step of the formula:

    Backpack  logits[b,i] = E · Σ_j≤i Σ_l  w(α)[b,l,i,j] · c(C(x[b,j]))[l]
    GPT       logits[b,i] = E · context(n(E[x[b]]))[i]

    c  ScaleSense     C(x)_l · p for tokens x, or all; p = 0 removes a sense         paper, section 6.2
       ReplaceSenses  other vectors C(x) for some tokens, such as a knowledge edit   paper, section 6.3
       ShiftSenses    C(x)_l + D for some senses of tokens, as finetuning finds      Hewitt et al. 2024
    w  ScaleWord      ScaleSense of a word of several tokens, where all of it stands
       TopicControl   senses that predict a topic count more, until the text does    section 6.1, D.1
       AmplifyInWord  the weight of a word shared anew among its tokens              nanoBackpackLM
    n  GPTNullspace   a direction taken out of a GPT's input, the baseline           paper, D.2

Edits of the senses come first, so that edits of the weights see the edited senses; edits of the same step
act in the order given.

Letters: B batch, T time, S positions so far, N query rows (the last N of S), D width, K senses, U ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, get_type_hints

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig, matches_type
from nanobackpack.errors import InputError, short_repr


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of what a model computes, as a value."""

    model_name: ClassVar[str] = "backpack-lm"  # the models it can edit
    tensor: ClassVar[str] = ""  # the name of its tensor, if it has one,
    sizes: ClassVar[str] = ""  # and the letters of its sizes, N being the number of tokens

    def __post_init__(self) -> None:
        """Check every field, whatever the kind of edit: its type, its shape, and that numbers are finite."""
        kind, hints = type(self).__name__, get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not matches_type(value, hints[field.name]):
                raise InputError(
                    f"{kind}: {field.name}={short_repr(value)} has the wrong type: it must be {field.type}"
                )
            if isinstance(value, Tensor):
                finite = value.dtype == torch.float32 and bool(value.isfinite().all())
            else:
                numbers = value if isinstance(value, tuple) else () if value == "all" else (value or 0,)
                finite = all(abs(number) <= torch.finfo(torch.float32).max for number in numbers)
            if not finite:
                raise InputError(f"{kind}: {field.name} must hold finite numbers, float32 in tensors")
        self._check_shape({})  # as far as it is known without a model

    def check(self, config: ModelConfig) -> None:
        """Refuse a model of that shape if the edit does not fit it."""
        V, kind = config.vocab_size, type(self).__name__
        if bad := [token for token in self.edited_tokens if not 0 <= token < V]:
            raise InputError(f"{kind}: token {bad[0]} is outside this model's vocabulary: 0 to {V - 1}")
        self._check_shape({"V": V, "K": config.n_sense_vector, "D": config.n_embd})

    def _check_shape(self, known: dict[str, int]) -> None:
        """Compare the shape of the tensor with the sizes that are known by their letters."""
        if self.tensor:
            got = tuple(getattr(self, self.tensor).shape)
            known = {"N": len(self.edited_tokens)} | known
            wanted = [known.get(x, n) for x, n in zip(self.sizes, got, strict=False)]
            if len(got) != len(self.sizes) or list(got) != wanted:
                shape = ", ".join(str(known.get(x, x)) for x in self.sizes)
                raise InputError(
                    f"{type(self).__name__}: {self.tensor} has shape {got}, it must be ({shape})"
                )

    @property
    def edited_tokens(self) -> tuple[int, ...]:
        """The tokens that it acts on, () if on all."""
        tokens = getattr(self, "tokens", ())
        return () if tokens == "all" else tokens

    @property
    def inert(self) -> bool:
        """Whether it changes no text at all. It is left out then, so that results are equal bit for bit."""
        return False

    def to(self, device: torch.device) -> Edit:
        """The same edit with its tensors on a device."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {k: t.to(device) for k, t in fields.items() if isinstance(t, Tensor) and t.device != device}
        return dataclasses.replace(self, **moved) if moved else self


class SenseEdit(Edit):
    """Changes C, by token: what it does is the same at every position of every text."""

    def edit_senses(self, ids: Tensor, c: Tensor) -> Tensor:
        """Edit the senses c (U, K, D) of the tokens ids (U)."""
        raise NotImplementedError


class AlphaEdit(Edit):
    """Changes α, which may depend on the whole text so far."""

    def edit_alpha(self, alpha: Tensor, text: TextSoFar) -> Tensor:
        """Edit the weights alpha (B, K, N, S) of the last N rows."""
        raise NotImplementedError


class InputEdit(Edit):
    """Changes the embeddings that a GPT reads; those of its head stay."""

    model_name = "gpt2"

    def edit_inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        """Edit the embeddings e (B, T, D) of ids (B, T)."""
        raise NotImplementedError


# The `with` blocks of control.applied that this thread or async task is in. The model has the edits of each
# as long as it lasts, so that those of another thread, or of a block that ended, are not in force here.
BLOCKS: ContextVar[frozenset[object]] = ContextVar("blocks of control.applied", default=frozenset())

EditLike: TypeAlias = Edit | Iterable["EditLike"]


def flatten_edits(edits: EditLike) -> tuple[Edit, ...]:
    """One edit, or edits nested in any way, as one tuple."""
    if isinstance(edits, Edit):
        return (edits,)
    if isinstance(edits, str) or not isinstance(edits, Iterable):
        raise InputError(f"{edits!r} is not an edit: nanobackpack.control makes them")
    return tuple(edit for some in edits for edit in flatten_edits(some))


class Edits:
    """The edits of one forward pass: checked, moved to the device, grouped by what they change."""

    def __init__(self, edits: EditLike, config: ModelConfig, device: torch.device) -> None:
        edits = flatten_edits(edits)
        for edit in edits:
            if edit.model_name != config.model_name:
                kind = "a GPT, which has no senses" if config.model_name == "gpt2" else "a Backpack"
                raise InputError(f"{type(edit).__name__} cannot edit this model: it is {kind}")
            edit.check(config)
        live = [edit.to(device) for edit in edits if not edit.inert]
        self.on_senses = [edit for edit in live if isinstance(edit, SenseEdit)]
        self.on_alpha = [edit for edit in live if isinstance(edit, AlphaEdit)]
        self.on_inputs = [edit for edit in live if isinstance(edit, InputEdit)]

    def edit_senses(self, ids: Tensor, c: Tensor) -> Tensor:
        for edit in self.on_senses:
            c = edit.edit_senses(ids, c)
        return c

    def edit_alpha(self, alpha: Tensor, text: TextSoFar) -> Tensor:
        for edit in self.on_alpha:
            alpha = edit.edit_alpha(alpha, text)
        return alpha

    def edit_inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        for edit in self.on_inputs:
            e = edit.edit_inputs(ids, e)
        return e


@dataclass
class TextSoFar:
    """What an edit of α may know of a text, up to the last of its S positions."""

    ids: Tensor  # (B, S); -1 where a row of a batch has not begun, whose α is 0
    senses: Tensor  # (B, K, S, D)
    embedding: Tensor  # E (V, D)
    cache: Any = None  # generate.KVCache: then only the last row is wanted, of a prompt, then token by token

    @cached_property
    def support(self) -> Tensor:
        """A[b,l,i,j] = Σ_i'≤i max(E_x[b,i'] · C(x[b,j])_l, 0), (B, K, N, S): paper, eq. 18.

        How much the tokens up to row i are what sense l of token j predicts. The sum ends at row i, the one
        that predicts, so that later tokens never change an earlier prediction.
        """
        c, cache = self.senses.transpose(2, 3), self.cache  # (B, K, D, S)
        # Without a cache all rows are wanted: the support of row i is a running sum over the rows up to i.
        if cache is None:
            e = self.embedding[self.ids]  # (B, S, D)
            return _positive_scores(e[:, None], c).cumsum(dim=2)  # (B, K, N = S, S)

        # With a cache it keeps the embeddings and the support of the last row, one number per sense.
        new_ids = self.ids[:, cache.length :, None]  # (B, T, 1)
        e = self.embedding[new_ids[..., 0]].masked_fill(new_ids < 0, 0)  # (B, T, D)
        e = cache.append("embeddings", e)  # (B, S, D)
        if cache.length == 0:
            # The prompt: sum over all its tokens, one sense at a time, as only the sums are needed.
            sums = [_positive_scores(e, sense).sum(dim=1) for sense in c.unbind(1)]  # K of (B, S)
            new = torch.stack(sums, dim=1)[..., None]  # (B, K, S, 1)
        else:
            # One more token: its own senses may be supported by all tokens so far, itself included.
            new = _positive_scores(c[..., -1], e.transpose(1, 2)).sum(dim=2)[..., None, None]  # (B, K, 1, 1)
        a = cache.append("support", new).transpose(2, 3)  # (B, K, 1, S), the cache's own memory
        if cache.length:
            # And the token adds its score to the running sum of each sense before it, in the cache itself.
            a[..., :-1] += _positive_scores(e[:, None, -1:], c[..., :-1])  # (B, K, 1, S - 1)
        return a


def _positive_scores(x: Tensor, y: Tensor) -> Tensor:
    """max(x · y, 0) in float32."""
    return (x @ y).float().relu()


# --- Edits of the senses ----------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling(Edit):
    """What ScaleSense and ScaleWord share: a factor for one sense, for all, or one for each."""

    tokens: tuple[int, ...] | Literal["all"]
    factor: float | tuple[float, ...]
    sense: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sense is not None and isinstance(self.factor, tuple):
            raise InputError(f"sense={self.sense} takes one factor, not {len(self.factor)}")

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        K = config.n_sense_vector
        if self.sense is not None and not 0 <= self.sense < K:
            raise InputError(f"sense={self.sense}, but this model has senses 0 to {K - 1}")
        if isinstance(self.factor, tuple) and len(self.factor) != K:
            raise InputError(f"{len(self.factor)} factors for a model of {K} senses")

    @property
    def inert(self) -> bool:
        factors = self.factor if isinstance(self.factor, tuple) else (self.factor,)
        return not self.tokens or all(f == 1 for f in factors)

    def scale(self, like: Tensor, K: int) -> Tensor:
        """The factors of all senses (K), of the type and on the device of `like`."""
        scale = like.new_ones(K)
        scale[slice(None) if self.sense is None else self.sense] = like.new_tensor(self.factor)
        return scale


@dataclass(frozen=True)
class ScaleSense(Scaling, SenseEdit):
    """C(x)_l times `factor` for the tokens x: of one sense, or of all; or one factor for each sense.

    The same as scaling α[b,l,i,j] wherever x[b,j] is one of the tokens, without normalising α again.
    """

    def edit_senses(self, ids: Tensor, c: Tensor) -> Tensor:
        if self.tokens == "all":
            return c * self.scale(c, c.size(1))[:, None]  # (U, K, D)
        hit = torch.isin(ids, ids.new_tensor(self.tokens))  # (U)
        return c * torch.where(hit[:, None], self.scale(c, c.size(1)), 1)[..., None]  # (U, K, 1)


@dataclass(frozen=True, eq=False)
class ReplaceSenses(SenseEdit):
    """`table[n]` (K, D) in place of C of tokens[n], for any number of tokens."""

    tokens: tuple[int, ...]
    table: Tensor
    tensor, sizes = "table", "NKD"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.tokens)) < len(self.tokens):
            raise InputError("ReplaceSenses: a token comes twice")

    @property
    def inert(self) -> bool:
        return not self.tokens

    def edit_senses(self, ids: Tensor, c: Tensor) -> Tensor:
        # Look each id up in the sorted tokens: one pass, however many tokens are replaced.
        known, order = ids.new_tensor(self.tokens).sort()  # (N)
        at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)  # (U)
        hit = (known[at] == ids)[:, None, None]  # (U, 1, 1)
        return torch.where(hit, self.table[order[at]].to(c.dtype), c)  # (U, K, D)


@dataclass(frozen=True, eq=False)
class ShiftSenses(SenseEdit):
    """C(x)_l + offsets[n] (D) for the token x = tokens[n] and its sense l = senses[n], for N such pairs.

    It adds to what is there, so that shifts of one sense add up, in any order.
    """

    tokens: tuple[int, ...]
    senses: tuple[int, ...]
    offsets: Tensor
    tensor, sizes = "offsets", "ND"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.senses) != len(self.tokens):
            raise InputError(f"ShiftSenses: {len(self.senses)} senses for {len(self.tokens)} tokens")

    def check(self, config: ModelConfig) -> None:
        super().check(config)
        if bad := [sense for sense in self.senses if not 0 <= sense < config.n_sense_vector]:
            raise InputError(f"sense={bad[0]}, but this model has senses 0 to {config.n_sense_vector - 1}")

    @property
    def inert(self) -> bool:
        return not self.offsets.any()

    def edit_senses(self, ids: Tensor, c: Tensor) -> Tensor:
        row, pair = (ids[:, None] == ids.new_tensor(self.tokens)).nonzero().unbind(1)  # (hits) each
        at = row, ids.new_tensor(self.senses)[pair]
        return c.index_put(at, self.offsets[pair].to(c.dtype), accumulate=True)  # (U, K, D)


# --- Edits of the weights ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TopicControl(AlphaEdit):
    """Let the senses that predict a topic count more: α[b,l,i,j] · (1 + B · (delta[x[b,j],l] - 1)).

    B anneals: it is B[b,l,i,j] = sigmoid(6 - f·A[b,l,i,j]) · (1 + j/100), where A (TextSoFar.support) is how
    much the text up to row i is what the sense predicts. At first A is small, B near 1, and the sense is
    multiplied by its full delta. Each word that the sense predicts raises A; once f·A is well above 6, B is
    near 0 and α as it was: the text has got there, and pushing on would only repeat words. The factor
    1 + j/100 lets later tokens count a little more. control.topic makes delta. Paper, eq. 17 to 20.
    """

    delta: Tensor
    f: float
    tensor, sizes = "delta", "VK"

    @property
    def inert(self) -> bool:
        return bool((self.delta == 1).all())

    def edit_alpha(self, alpha: Tensor, text: TextSoFar) -> Tensor:
        return (alpha * self.factors(text)).to(alpha.dtype)

    def factors(self, text: TextSoFar) -> Tensor:
        """What the weights are multiplied by, (B, K, N, S)."""
        j = (text.ids >= 0).cumsum(dim=1)[:, None, None] - 1  # (B, 1, 1, S)
        annealing = (6 - self.f * text.support).sigmoid() * (1 + j / 100)  # (B, K, N, S)
        delta = self.delta[text.ids].transpose(1, 2)[:, :, None]  # (B, K, 1, S)
        return 1 + annealing * (delta - 1)


@dataclass(frozen=True)
class ScaleWord(Scaling, AlphaEdit):
    """α[b,l,i,j] times `factor` where all the tokens stand together, as one word: elsewhere, in other words,
    they are what they were. It acts where AmplifyInWord does."""

    tokens: tuple[int, ...]

    def edit_alpha(self, alpha: Tensor, text: TextSoFar) -> Tensor:
        scale = self.scale(alpha, alpha.size(1))[:, None, None]  # (K, 1, 1)
        return edit_in_word(alpha, text.ids, self.tokens, lambda part: part * scale)


@dataclass(frozen=True)
class AmplifyInWord(AlphaEdit):
    """In each occurrence of the tokens `word`, their weights α times `factors`, then scaled so that the
    word's sum is what it was: the word counts as before, but for other parts of itself.

    It acts on all rows that have seen the whole word. Of overlapping occurrences the first counts.
    """

    word: tuple[int, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.word or len(self.word) != len(self.factors):
            raise InputError(
                f"AmplifyInWord: {len(self.factors)} factors for {len(self.word)} tokens: one each"
            )
        if min(self.factors) <= 0:
            raise InputError(f"AmplifyInWord: factors={self.factors} must all be above 0")

    @property
    def edited_tokens(self) -> tuple[int, ...]:
        return self.word

    @property
    def inert(self) -> bool:
        return len(set(self.factors)) == 1

    def edit_alpha(self, alpha: Tensor, text: TextSoFar) -> Tensor:
        return edit_in_word(alpha, text.ids, self.word, self._share)

    def _share(self, part: Tensor) -> Tensor:
        more = part * part.new_tensor(self.factors)
        more = more * (part.sum(dim=3, keepdim=True) / more.sum(dim=3, keepdim=True))
        return torch.where(more.isfinite(), more, part)  # all weights 0 leave nothing to share (0 / 0)


def edit_in_word(
    alpha: Tensor, ids: Tensor, word: tuple[int, ...], edit: Callable[[Tensor], Tensor]
) -> Tensor:
    """Edit the weights alpha (B, K, N, S) of each occurrence of a word in ids (B, S), those of its n tokens
    (B, K, N, n), in all rows that have seen the whole word."""
    n, (N, S) = len(word), alpha.shape[2:]
    rows = torch.arange(S - N, S, device=alpha.device)  # (N): the positions of the query rows
    found = _occurrences(ids, word)  # (B, S - n + 1)
    alpha = alpha.clone()
    # One start at a time, for all texts that have the word there.
    for start in found.any(dim=0).nonzero()[:, 0].tolist():
        part = alpha[..., start : start + n]  # (B, K, N, n)
        here = (rows >= start + n - 1)[:, None] & found[:, start, None, None, None]  # (B, 1, N, 1)
        alpha[..., start : start + n] = torch.where(here, edit(part), part)
    return alpha


def _occurrences(ids: Tensor, word: tuple[int, ...]) -> Tensor:
    """Where the word starts in ids (B, S): (B, S - n + 1), or (B, 0) in a shorter text."""
    n = len(word)
    if ids.size(1) < n:
        return ids.new_zeros(len(ids), 0, dtype=torch.bool)
    found = (ids.unfold(1, n, 1) == ids.new_tensor(word)).all(dim=2)  # (B, S - n + 1)
    # From left to right, leave out each start that lies inside an occurrence already taken.
    for start in found.any(dim=0).nonzero()[:, 0].tolist():
        found[:, start] &= ~found[:, max(0, start - n + 1) : start].any(dim=1)
    return found


# --- Edits of a GPT's input -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GPTNullspace(InputEdit):
    """Embeddings e of the tokens, as a GPT reads them, less (1 - factor) of their part along g:
    e - (1 - factor) (e·g / g·g) g. The head keeps the original rows."""

    tokens: tuple[int, ...]
    factor: float
    direction: Tensor  # g
    tensor, sizes = "direction", "D"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.direction.any():
            raise InputError("GPTNullspace: direction must be a vector (D) other than 0")

    @property
    def inert(self) -> bool:
        return not self.tokens or self.factor == 1

    def edit_inputs(self, ids: Tensor, e: Tensor) -> Tensor:
        g = self.direction
        along = ((e * g).sum(dim=-1, keepdim=True) / (g @ g)) * g  # (..., D)
        hit = torch.isin(ids, ids.new_tensor(self.tokens))[..., None]  # (..., 1)
        return torch.where(hit, e - (1 - self.factor) * along, e)


IN_WORD = ScaleWord, AmplifyInWord  # where their tokens stand together
KINDS: tuple[type[Edit], ...] = (ScaleSense, ReplaceSenses, ShiftSenses, TopicControl, *IN_WORD, GPTNullspace)
