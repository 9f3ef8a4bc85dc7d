"""How many floating point operations a training step takes, and how many a GPU can do.

Matrix products only, 2 operations for each multiply and add, and twice the forward's for the backward,
which multiplies once for the gradient of each factor. We count the plain formula: senses of every
position, and all T x T pairs. What a faster way skips still counts, as is usual for MFU (model FLOPs
utilisation), so that a figure compares models and machines, not ways to compute.

Letters: N = B·T tokens, D width, K senses, V vocabulary.
"""

from __future__ import annotations

import torch

from nanobackpack.config import ModelConfig

# Dense bfloat16 operations a second, as the makers state them; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_step(config: ModelConfig, batch_size: int, length: int | None = None) -> int:
    """Operations of forward and backward for batch_size sequences of `length` (None: block_size)."""
    T = length or config.block_size
    N, D, K, V = batch_size * T, config.n_embd, config.n_sense_vector, config.vocab_size
    block = (
        2 * N * D * 3 * D  # queries, keys, values: (N, D) @ (D, 3D)
        + 2 * N * T * D  # scores, for H heads: (T, D/H) @ (D/H, T)
        + 2 * N * T * D  # weighted values, for H heads: (T, T) @ (T, D/H)
        + 2 * N * D * D  # projection: (N, D) @ (D, D)
        + 2 * N * D * 8 * D  # MLP: (N, D) @ (D, 4D), (N, 4D) @ (4D, D)
    )
    forward = config.n_block * block + 2 * N * D * V  # head: (N, D) @ (D, V)
    if config.model_name == "backpack-lm":
        forward += (
            2 * N * D * 2 * D  # queries and keys of α: (N, D) @ (D, 2D)
            + 2 * N * T * D  # scores, for K senses: (T, D/K) @ (D/K, T)
            + 2 * N * D * 8 * D  # first MLP of the sense network: (N, D) @ (D, 4D), (N, 4D) @ (4D, D)
            + 2 * N * D * 4 * D  # second MLP: (N, D) @ (D, 4D)
            + 2 * N * 4 * D * K * D  # and (N, 4D) @ (4D, K·D)
            + 2 * N * T * K * D  # weighted sum, for K senses: (T, T) @ (T, D)
        )
    return 3 * forward


def peak_flops(device: torch.device) -> float | None:
    """What the device could do at best in bfloat16, operations a second; None if we do not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key.lower() in name.lower()), None)
