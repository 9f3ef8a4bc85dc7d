"""The seams at which a model can be edited; control.py has the edits that act on them.

    Backpack  logits[b,i] = E · Σ_j≤i Σ_l  w(α)[b,l,i,j] · c(C(x[b,j]))[l]     c: SenseEdit, w: WeightEdit
    GPT       logits[b,i] = E · context(n(E[x[b]]))[i]                         n: InputEdit

An edit is an immutable value, checked against the model it is to act on. Those of the senses come first,
so that the others see the edited senses; edits of one seam act in the order given.

Letters: B batch, T time, S positions so far, N query rows (the last N of S), D width, K senses, U ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor

from nanobackpack.config import InputError, ModelConfig

if TYPE_CHECKING:
    from nanobackpack.layers import KVCache


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
        e, c = self.embedding[self.ids], self.senses.transpose(2, 3)  # (B, S, D), (B, K, D, S)
        if self.cache is None:
            return _positive(e[:, None], c).cumsum(dim=2)  # (B, K, N = S, S)
        if self.cache.length == 0:  # a sense at a time, as only sums are kept
            a = torch.stack([_positive(e, sense).sum(dim=1) for sense in c.unbind(1)], dim=1)  # (B, K, S)
            return self.cache.append("support", a[..., None]).transpose(2, 3)  # (B, K, 1, S)
        own = _positive(e[:, None], c[..., -1:]).sum(dim=2, keepdim=True)  # (B, K, 1, 1)
        a = self.cache.append("support", own).transpose(2, 3)  # (B, K, 1, S), the cache's own memory
        a[..., :-1] += _positive(e[:, None, -1:], c[..., :-1])
        return a


def _positive(e: Tensor, c: Tensor) -> Tensor:
    """max(e · c, 0) of e (..., N, D) and c (..., D, S) → (..., N, S), float32."""
    return (e @ c).float().relu()
