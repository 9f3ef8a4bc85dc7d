"""The weighted sum of sense vectors, the one operation that is the Backpack's own.

    o[b,i] = Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]

Summing l and j in one matrix product, (T, K·S) @ (K·S, D), never forms the (B, K, T, D) tensor.
"""

from __future__ import annotations

from torch import Tensor


def weighted_sum(alpha: Tensor, senses: Tensor) -> Tensor:
    """α (B, K, T, S) and the senses of the S positions (B, K, S, D) → (B, T, D)."""
    B, K, T, S = alpha.shape
    weights = alpha.transpose(1, 2).reshape(B, T, K * S)  # (B, T, K·S)
    return weights @ senses.reshape(B, K * S, -1)  # (B, T, D)
