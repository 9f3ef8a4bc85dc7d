"""The weighted sum of sense vectors, the one operation that is the Backpack's own, made fast.

    o[b,i] = Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]        α[b,l,i,:] = softmax_j≤i (q[b,l,i] · k[b,l,j])

`weighted_sum` is this formula for a given α. `sense_sum` equals it, and is what training runs:
  * C depends on the token alone, so it comes as a table of the batch's U different tokens;
  * it goes through the senses one at a time and through the queries in blocks, adding into o. A block
    stops at its last key, which skips most of what the causal mask would delete, and neither α nor a
    (B, K, T, D) tensor ever exists: what is alive is one block of one sense;
  * backward computes α again from q and k instead of storing it (as FlashAttention does): the products
    q·k have width D/K, those with C width D, so this costs about 1/K of the whole.
It is a torch custom operator, so that torch.compile takes it as it is, without a graph break.

Letters: B batch, T time (positions), D width, K senses, U unique ids, S keys seen by a block.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class TokenTypes(NamedTuple):
    """A batch of ids as its different tokens: ids[b,t] = types[rows[b,t]]."""

    types: Tensor  # (U)
    rows: Tensor  # (B, T)


def token_types(ids: Tensor, vocab_size: int, multiple: int = 1) -> TokenTypes:
    """The different tokens of ids (B, T), or simply all V where the batch is not shorter than that.

    On a GPU finding them would wait for the device, so it is done on the CPU with the batch; U is
    rounded up to a `multiple` there, by repeating a token, so that compiled code meets few sizes.
    """
    if vocab_size <= ids.numel():
        return TokenTypes(torch.arange(vocab_size, device=ids.device), ids)
    types, index = ids.unique(return_inverse=True)
    padding = -len(types) % multiple
    return TokenTypes(torch.cat([types, types[:1].expand(padding)]), index)


def weighted_sum(alpha: Tensor, senses: Tensor) -> Tensor:
    """α (B, K, T, S) and the senses of the S positions (B, K, S, D) → (B, T, D).

    Summing l and j in one matrix product, (T, K·S) @ (K·S, D), spares the (B, K, T, D) tensor.
    """
    B, K, T, S = alpha.shape
    weights = alpha.transpose(1, 2).reshape(B, T, K * S)  # (B, T, K·S)
    return weights @ senses.reshape(B, K * S, -1)  # (B, T, D)


def sense_sum(q: Tensor, k: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Queries and keys (B, K, T, D/K), C of U tokens (U, K, D), tokens (B, T) → o (B, T, D).

    q is already scaled. Differentiable in q, k and table; runs in q's type, sums in float32.
    """
    return _sense_sum(q, k, table.to(q.dtype), index)


def _blocks(T: int, device: torch.device) -> list[tuple[int, int]]:
    """Query blocks (start, end): as small as the matrix products stay efficient."""
    size = 128 if device.type == "cpu" else 512
    return [(start, min(start + size, T)) for start in range(0, T, size)]


def _alpha(q: Tensor, k: Tensor, start: int, end: int) -> Tensor:
    """α of one sense for the queries of a block: (B, end - start, end)."""
    scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).float()
    n = end - start
    future = torch.full((n, n), -math.inf, device=q.device).triu(1)
    scores[:, :, start:] += future
    return torch.softmax(scores, dim=2).to(q.dtype)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, for batches of matrices; out may be of a wider type."""
    if out.dtype == a.dtype:
        out.baddbmm_(a, b)
    else:
        out += torch.bmm(a, b)


def _senses_of(table: Tensor, sense: int, index: Tensor) -> Tensor:
    """C(x)_l of every position: (B, T, D)."""
    return table[:, sense].index_select(0, index.flatten()).unflatten(0, index.shape)


@torch.library.custom_op("nanobackpack::sense_sum", mutates_args=())
def _sense_sum(q: Tensor, k: Tensor, table: Tensor, index: Tensor) -> Tensor:
    B, K, T, _ = q.shape
    o = torch.zeros(B, T, table.size(2), device=q.device)
    for sense in range(K):
        c = _senses_of(table, sense, index)  # (B, T, D)
        for start, end in _blocks(T, q.device):
            alpha = _alpha(q[:, sense], k[:, sense], start, end)  # (B, ·, S)
            _add_product(o[:, start:end], alpha, c[:, :end])
    return o.to(q.dtype)


@torch.library.custom_op("nanobackpack::sense_sum_backward", mutates_args=())
def _sense_sum_backward(
    grad: Tensor, q: Tensor, k: Tensor, table: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and table from that of o, (B, T, D)."""
    B, K, T, _ = q.shape
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk = torch.zeros(k.shape, device=k.device)
    dtable = torch.zeros(K, len(table), table.size(2), device=q.device)  # (K, U, D)
    dc = torch.empty(B, T, table.size(2), device=q.device)
    for sense in range(K):
        c = _senses_of(table, sense, index)  # (B, T, D)
        dc.zero_()
        for start, end in _blocks(T, q.device):
            alpha = _alpha(q[:, sense], k[:, sense], start, end)  # (B, ·, S)
            g = grad[:, start:end]  # (B, ·, D)
            _add_product(dc[:, :end], alpha.transpose(1, 2), g)
            dalpha = torch.bmm(g, c[:, :end].transpose(1, 2))  # (B, ·, S)
            # Softmax: ds_j = α_j (dα_j - Σ_j' α_j' dα_j')
            ds = torch.ops.aten._softmax_backward_data(dalpha, alpha, 2, dalpha.dtype)
            dq[:, sense, start:end] = torch.bmm(ds, k[:, sense, :end])
            _add_product(dk[:, sense, :end], ds.transpose(1, 2), q[:, sense, start:end])
        dtable[sense].index_add_(0, index.flatten(), dc.flatten(0, 1))
    return dq, dk.to(k.dtype), dtable.transpose(0, 1).to(table.dtype).contiguous()


@_sense_sum.register_fake
def _(q: Tensor, k: Tensor, table: Tensor, index: Tensor) -> Tensor:
    return q.new_empty(q.size(0), q.size(2), table.size(2))


@_sense_sum_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, table: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), table.new_empty(table.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return *_sense_sum_backward(grad.contiguous(), *ctx.saved_tensors), None


_sense_sum.register_autograd(_backward, setup_context=_setup)
