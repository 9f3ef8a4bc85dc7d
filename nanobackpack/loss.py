"""The loss of the tied head, without ever holding all logits.

    loss = mean_n  logsumexp_v (h_n · E_v) - h_n · E_{y_n}

The (N, V) logits and their gradient are the largest tensors of a step: 50304 numbers for each token. Here
they exist for a few tokens at a time. Their gradient, softmax minus one at the target, is known as soon as
they are, so it goes into the gradients of h and E at once; backward only scales those. Like the weighted
sum this is a torch custom operator, which torch.compile takes as it is.

Letters: B batch, T time, N = B·T tokens, n tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = 1 << 23  # logits alive at a time: 32 MB in float32


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats of logits (B, T, V); targets (B, T) of -1 are left out."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def linear_cross_entropy(h: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """cross_entropy of the logits h · E, from h (B, T, D), E (V, D) and targets (B, T)."""
    need_grad = torch.is_grad_enabled() and (h.requires_grad or embedding.requires_grad)
    return _loss(h.flatten(0, 1), embedding, targets.flatten(), need_grad)[0]


@torch.library.custom_op("nanobackpack::linear_cross_entropy", mutates_args=())
def _loss(h: Tensor, embedding: Tensor, targets: Tensor, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (scalar) and, if needed, its gradients for h (N, D) and E (V, D), else empty ones."""
    E = embedding.to(h.dtype)
    chunk = max(1, CHUNK_LOGITS // len(E))
    count = (targets != -1).sum()
    total = torch.zeros((), device=h.device)
    dh = torch.empty_like(h) if need_grad else h.new_empty(0)
    dE = torch.zeros_like(embedding) if need_grad else h.new_empty(0)
    for start in range(0, len(h), chunk):
        part = h[start : start + chunk]  # (n, D)
        y = targets[start : start + chunk, None]  # (n, 1)
        real, y = y != -1, y.clamp(min=0)
        logits = part @ E.t()  # (n, V)
        logp = torch.log_softmax(logits, 1, torch.float32, out=logits.float())  # in place for float32
        total -= (logp.gather(1, y) * real).sum()
        if need_grad:
            p = logp.exp_().scatter_add_(1, y, -torch.ones_like(y, dtype=logp.dtype))
            p = p.mul_(real / count).to(h.dtype)  # (n, V)
            torch.mm(p, E, out=dh[start : start + chunk])
            dE.addmm_(p.t(), part) if dE.dtype == p.dtype else dE.add_(p.t() @ part)
    return total / count, dh, dE


@_loss.register_fake
def _(h: Tensor, embedding: Tensor, targets: Tensor, need_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    dh = h.new_empty(h.shape if need_grad else 0)
    dE = embedding.new_empty(embedding.shape) if need_grad else h.new_empty(0)
    return h.new_empty((), dtype=torch.float32), dh, dE


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*output[1:])


def _backward(ctx, grad, *unused):  # type: ignore[no-untyped-def]
    dh, dE = ctx.saved_tensors
    return dh * grad.to(dh.dtype), dE * grad, None, None


_loss.register_autograd(_backward, setup_context=_setup)
