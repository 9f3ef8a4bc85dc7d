"""The three operations that take the time of a training step. Each stands below its plain formula.

    linear                 y = x Wᵀ + b
    sense_sum              o[b,i] = Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]
                           α[b,l,i,:] = softmax_j≤i (q[b,l,i] · k[b,l,j])
    linear_cross_entropy   loss = mean_n  logsumexp_v (h_n · E_v) - h_n · E_{y_n}

The plain formula says what is right; the fast form must equal it, gradients included (tests/test_kernels.py).

Letters: B batch, T time (positions), S keys that a tile of queries sees, K senses, W width of a sense
vector, U unique token ids, N = B·T tokens, D width of the model, V vocabulary; b, n a part of B, N or T.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# --- Matrix products --------------------------------------------------------------------------


@functools.cache
def is_intel() -> bool:
    """Whether the processor is Intel's."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        about = platform.processor()
    return "GenuineIntel" in about


def on_onednn(t: Tensor) -> bool:
    """Whether products of t go to oneDNN, which `torch.backends.mkldnn.flags(enabled=False)` switches off.

    PyTorch sends float32 on x86 CPUs to MKL, whose AVX-512 code runs on Intel's processors only: there a
    training step takes 0.8 of its time with oneDNN. But oneDNN uses AVX-512 wherever it is, and its products
    were twice as fast on AMD (docs/LOG.md).
    """
    return (
        not torch.compiler.is_compiling()
        and not is_intel()
        and t.device.type == "cpu"
        and t.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, N) @ b (N, P) + bias (P) → (M, P). Not differentiable."""
    if on_onednn(a):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return a @ b if bias is None else torch.addmm(bias, a, b)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _matmul(x, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = _matmul(grad, weight) if ctx.needs_input_grad[0] else None
        dw = _matmul(grad.t(), x) if ctx.needs_input_grad[1] else None
        return dx, dw, grad.sum(0) if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in), plus bias (out) → (..., out): F.linear, on the faster library."""
    # For a few rows of a small matrix, calling oneDNN costs more than it saves.
    few = x.numel() <= 16 * x.size(-1) and weight.numel() < 1 << 20
    if few or not on_onednn(x):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return _Linear.apply(x.reshape(-1, x.size(-1)), weight, bias).unflatten(0, x.shape[:-1])


class Linear(torch.nn.Linear):
    """torch's linear layer, computed by `linear`.

    Its rows may hold several maps one after the other, such as queries, keys and values, or K senses.
    `n_matrices` says how many: the optimizer Muon steps each as a matrix of its own.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool, n_matrices: int = 1) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.n_matrices = n_matrices

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


# --- The weighted sum of senses ---------------------------------------------------------------


class UniqueIds(NamedTuple):
    """A batch of token ids x (B, T) as its different ids: x[b,t] = ids[where[b,t]]."""

    ids: Tensor  # (U)
    where: Tensor  # (B, T)


def unique_ids(x: Tensor, vocab_size: int, multiple: int = 1) -> UniqueIds:
    """The different ids of x (B, T), or simply all V of them where V is small next to the batch.

    With `multiple`, U is rounded up to a multiple of it by repeating an id, so that compiled code meets
    few different sizes.
    """
    if vocab_size <= min(x.numel(), 4096):
        return UniqueIds(torch.arange(vocab_size, device=x.device), x)
    ids, where = x.unique(return_inverse=True)  # (U), (B, T)
    padding = -len(ids) % multiple
    return UniqueIds(torch.cat([ids, ids[:1].expand(padding)]), where)


def each_position(x: Tensor) -> UniqueIds:
    """x (B, T) with every position as an id of its own: U = B·T."""
    return UniqueIds(x.flatten(), torch.arange(x.numel(), device=x.device).view_as(x))


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax of scores (B, K, T, T) over the keys j ≤ i, in float32; the weights of later keys are 0."""
    future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)  # (T, T)
    return scores.float().masked_fill(future, -math.inf).softmax(dim=3)


def sense_sum_plain(
    q: Tensor,
    k: Tensor,
    C: Tensor,
    where: Tensor,
    dropout: float = 0.0,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """o[b,i] = Σ_j≤i Σ_l α[b,l,i,j] · C(x[b,j])[l], (B, T, W), as the paper writes it.

    q, k (B, K, T, D/K), q already scaled; C (U, K, W) of the unique ids; where (B, T) says which each is.
    `change`, where α is edited, maps α (B, K, T, T) and the senses (B, K, T, W) to a new α.
    """
    alpha = causal_softmax(q @ k.mT).to(q.dtype)  # (B, K, T, T)
    alpha = F.dropout(alpha, dropout)
    senses = C[where].transpose(1, 2)  # (B, K, T, W)
    if change is not None:
        alpha = change(alpha, senses)
    return (alpha.to(senses.dtype) @ senses).sum(dim=1)  # (B, T, W)


def sense_sum(q: Tensor, k: Tensor, C: Tensor, where: Tensor, dropout: float = 0.0) -> Tensor:
    """`sense_sum_plain`, fast. Differentiable in q, k and C; runs in q's type, sums in float32.

    How it is fast: the senses come once for each *different* token. The queries go in tiles that stop at
    their last key, which skips most of what the causal mask would delete. A tile is one matrix product
    over keys and senses at once. Neither α nor the senses of all positions ever exist, only those of a
    tile; backward computes α again from q and k, as FlashAttention does, which is cheap since these have
    width D/K where the senses have W. It is a torch custom operator, so torch.compile takes it as it is.

    Why not torch's own: F.scaled_dot_product_attention(q, k, C[where], is_causal=True).sum(1) is the same
    sum. On a CPU ours takes 0.6 to 0.8 of its time forward; forward and backward 1.0 up to T=256 and 0.75 at
    T=1024, in as much memory. With dropout on short texts torch's is faster (docs/LOG.md has the table).
    """
    # Compiled for a GPU, the plain formula itself is fastest: Inductor fuses what stands between its two
    # matrix products. On an H100 it takes 0.3 of the time of the tiles (docs/RESULTS.md). C goes in as
    # float32, so that the gradients of a token that stands in many places are added up in float32, as in the
    # tiles.
    if torch.compiler.is_compiling() and q.device.type == "cuda":
        return sense_sum_plain(q, k, C.float(), where, dropout).to(q.dtype)
    # The seed of dropout is drawn here, from torch's generator, so that backward can draw the same masks.
    seed = torch.randint(1 << 62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    # In one piece each, as every tile reads them again; they come as parts of one tensor.
    q, k, C = q.contiguous(), k.contiguous(), C.to(q.dtype)
    # Only gradients and the compiler need an operator, and to call one torch imports the compiler: a second.
    need_operator = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return (_sense_sum if need_operator else _tiled_sum)(q, k, C, where, dropout, seed)


class _Tile(NamedTuple):
    """Some rows of the batch, and of these the queries from start to end, which see the keys before end."""

    b: slice
    queries: slice
    keys: slice

    def alpha(self, q: Tensor, k: Tensor) -> Tensor:
        """α of the tile, (b, K, n, S), float32."""
        scores = (q[self.b, :, self.queries] @ k[self.b, :, self.keys].mT).float()  # (b, K, n, S)
        # Only the last n keys can lie in a query's future: the others come before the tile.
        n = scores.size(2)
        scores[..., self.queries] += torch.full((n, n), -math.inf, device=q.device).triu(1)
        return torch.softmax(scores, dim=3)

    def dropout_mask(self, alpha: Tensor, p: float, seed: Tensor) -> Tensor:
        """What dropout multiplies α with, (b, K, n, S): the same for the same tile and seed."""
        key = (int(seed) + self.b.start * 1_000_003 + self.queries.start) % (1 << 63)
        draw = torch.Generator(alpha.device).manual_seed(key)
        return torch.empty_like(alpha).bernoulli_(1 - p, generator=draw).div_(1 - p)

    def sense_rows(self, where: Tensor, K: int, U: int) -> Tensor:
        """Where the senses of the tile's keys stand, (b, K, S), in a table (K·U, W), sense after sense."""
        first = torch.arange(0, K * U, U, device=where.device)[:, None]  # (K, 1): where each sense begins
        return where[self.b, None, self.keys] + first


def _tiles(q: Tensor) -> list[_Tile]:
    """All the work, in tiles whose α stays in the cache of a CPU or keeps a GPU busy."""
    B, K, T, _ = q.shape
    size, budget = (128, 1 << 20) if q.device.type == "cpu" else (512, 1 << 26)
    n_rows = max(1, budget // (K * min(size, T) * T))
    return [
        _Tile(slice(b, min(b + n_rows, B)), slice(start, min(start + size, T)), slice(min(start + size, T)))
        for b in range(0, B, n_rows)
        for start in range(0, T, size)
    ]


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """Products of batches of matrices: (B, M, N) @ (B, N, P) → (B, M, P)."""
    if not on_onednn(a) or a.size(1) * a.size(2) * b.size(2) < 1 << 24:  # small: a loop would cost more
        return torch.bmm(a, b)
    out = a.new_empty(a.size(0), a.size(1), b.size(2))
    for i in range(len(a)):
        out[i] = _matmul(a[i], b[i])
    return out


def _tiled_sum(q: Tensor, k: Tensor, C: Tensor, where: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """The weighted sum (B, T, W), tile by tile."""
    (B, K, T, _), (U, _, W) = q.shape, C.shape
    table = C.transpose(0, 1).reshape(K * U, W)  # sense after sense, so that a tile's senses are rows of it
    o = q.new_empty(B, T, W)
    for tile in _tiles(q):
        senses = F.embedding(tile.sense_rows(where, K, U), table).flatten(1, 2)  # (b, K·S, W)
        alpha = tile.alpha(q, k)  # (b, K, n, S)
        if dropout:
            alpha *= tile.dropout_mask(alpha, dropout, seed)
        # Σ over keys and senses at once: side by side they are one long row of weights.
        weights = alpha.to(q.dtype).transpose(1, 2).flatten(2)  # (b, n, K·S)
        o[tile.b, tile.queries] = _bmm(weights, senses)  # (b, n, W)
    return o


_sense_sum = torch.library.custom_op("nanobackpack::sense_sum", _tiled_sum, mutates_args=())


@torch.library.custom_op("nanobackpack::sense_sum_backward", mutates_args=())
def _sense_sum_backward(
    grad: Tensor, q: Tensor, k: Tensor, C: Tensor, where: Tensor, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and C from that of o, (B, T, W)."""
    K, (U, _, W) = q.size(1), C.shape
    table = C.transpose(0, 1).reshape(K * U, W)
    # (B, K, D/K, T) each: products of D/K rows are faster than of D/K columns.
    dq, dk = q.new_empty(q.mT.shape), torch.zeros(k.mT.shape, device=k.device)
    dtable = torch.zeros(K * U, W, device=q.device)
    for tile in _tiles(q):
        # What the forward pass had of this tile, computed again.
        rows = tile.sense_rows(where, K, U)  # (b, K, S)
        senses = F.embedding(rows, table).flatten(1, 2)  # (b, K·S, W)
        alpha = tile.alpha(q, k)  # (b, K, n, S)
        g = grad[tile.b, tile.queries]  # (b, n, W)
        # o = weights · senses, so dweights = g · sensesᵀ and dsenses = weightsᵀ · g.
        dalpha = _bmm(g, senses.mT).float()  # (b, n, K·S)
        dalpha = dalpha.unflatten(2, (K, -1)).transpose(1, 2)  # (b, K, n, S)
        dropped = alpha
        if dropout:
            mask = tile.dropout_mask(alpha, dropout, seed)
            dalpha, dropped = dalpha * mask, alpha * mask
        weights = dropped.to(q.dtype).transpose(1, 2).flatten(2)  # (b, n, K·S)
        dtable.index_add_(0, rows.flatten(), _bmm(weights.mT, g).flatten(0, 1).float())
        # Through the softmax, ds_j = α_j (dα_j - Σ_j' α_j' dα_j'), to the scores q · k.
        ds = torch.ops.aten._softmax_backward_data(dalpha, alpha, 3, alpha.dtype).to(q.dtype)
        dq[tile.b, ..., tile.queries] = k[tile.b, :, tile.keys].mT @ ds.mT
        dk[tile.b, ..., tile.keys] += q[tile.b, :, tile.queries].mT @ ds
    dC = dtable.view(K, U, W).transpose(0, 1).to(C.dtype).contiguous()  # (U, K, W)
    return dq.mT, dk.mT.to(k.dtype), dC


@_sense_sum.register_fake
def _(q: Tensor, k: Tensor, C: Tensor, where: Tensor, dropout: float, seed: Tensor) -> Tensor:
    return q.new_empty(q.size(0), q.size(2), C.size(2))


@_sense_sum_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, C: Tensor, where: Tensor, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.mT.shape).mT, k.new_empty(k.mT.shape).mT, C.new_empty(C.shape)


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dropout, seed = inputs
    ctx.save_for_backward(*tensors, seed)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *tensors, seed = ctx.saved_tensors
    return *_sense_sum_backward(grad.contiguous(), *tensors, ctx.dropout, seed), None, None, None


_sense_sum.register_autograd(_sum_backward, setup_context=_sum_setup)


# --- The loss of the tied head ----------------------------------------------------------------

CHUNK_LOGITS = 1 << 25  # logits alive at a time: 128 MB in float32


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of logits (B, T, V); targets (B, T) of -1 are left out."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def linear_cross_entropy(h: Tensor, E: Tensor, targets: Tensor) -> Tensor:
    """`cross_entropy(h @ E.T, targets)`, in less memory: h (B, T, D), E (V, D), targets (B, T).

    The (N, V) logits and their gradient are the largest tensors of a step: 50304 numbers a token. Here
    they exist for a few tokens at a time. Their gradient, softmax minus one at the target, is known as
    soon as they are, so it goes into the gradients of h and E at once; backward only scales those.
    """
    if torch.compiler.is_compiling() and h.device.type == "cuda":
        # As in sense_sum: on an H100, 0.3 of the time of ours. The logits exist, but in 16 bits only.
        return cross_entropy(F.linear(h, E.to(h.dtype)).float(), targets)
    need_grad = torch.is_grad_enabled() and (h.requires_grad or E.requires_grad)
    return _loss(h.flatten(0, 1), E, targets.flatten(), need_grad)[0]


@torch.library.custom_op("nanobackpack::linear_cross_entropy", mutates_args=())
def _loss(h: Tensor, embedding: Tensor, targets: Tensor, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (scalar) and, if needed, its gradients for h (N, D) and E (V, D), else empty ones."""
    E = embedding.to(h.dtype)
    n_chunks = -(-len(h) * len(E) // CHUNK_LOGITS)
    real = targets != -1  # (N)
    share = (real / real.sum())[:, None]  # (N, 1): each token's part of the mean
    total = torch.zeros((), device=h.device)
    dh = torch.empty_like(h) if need_grad else h.new_empty(0)
    dEt = None  # (D, V)
    for part, y, w, dpart in zip(*(t.chunk(n_chunks) for t in (h, targets, share, dh)), strict=False):
        # part (n, D), y (n), w (n, 1), dpart (n, D): some tokens, and where their gradient goes
        losses, dlogits = _softmax_loss(part, E, y.clamp(min=0)[:, None])  # (n, 1), (n, V)
        total += (losses * w).sum()
        if need_grad:
            torch.mul(_matmul(dlogits, E), w, out=dpart)
            new = _matmul((part * w).to(h.dtype).t(), dlogits).float()  # (D, V)
            dEt = new if dEt is None else dEt.add_(new)
            del new  # before the next chunk asks for as much again
        del dlogits
    dE = h.new_empty(0) if dEt is None else dEt.t().to(embedding.dtype).contiguous()
    return total, dh, dE


def _softmax_loss(h: Tensor, E: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logits h · E (n, V): the loss at the targets y (n, 1), and its gradient, (n, V) in h's type."""
    p = _matmul(h, E.t()).float()  # (n, V): the logits, from here on changed in place
    target, top = p.gather(1, y), p.amax(1, keepdim=True)  # (n, 1)
    torch.softmax(p, 1, out=p)
    # logsumexp = top - log softmax(top), a logarithm that is never far from 0.
    losses = top - p.amax(1, keepdim=True).log() - target  # (n, 1)
    return losses, p.scatter_add_(1, y, -torch.ones_like(y, dtype=p.dtype)).to(h.dtype)


@_loss.register_fake
def _(h: Tensor, embedding: Tensor, targets: Tensor, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    dh = h.new_empty(h.shape if need_grad else 0)
    dE = embedding.new_empty(embedding.shape) if need_grad else h.new_empty(0)
    return h.new_empty((), dtype=torch.float32), dh, dE


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)  # else backward fills zeros of the size of E


def _loss_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    dh, dE = ctx.saved_tensors
    # Spare a pass over E where the loss is what backward began with. A tracer's tensors are of other types.
    if type(grad) is Tensor and grad.device.type == "cpu" and grad == 1:
        return dh, dE, None, None
    return dh * grad.to(dh.dtype), dE * grad, None, None


_loss.register_autograd(_loss_backward, setup_context=_loss_setup)
