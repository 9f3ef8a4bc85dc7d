"""How many operations a training step takes, and how many a device can do: for Model FLOPs utilisation (MFU).

mfu = flops_per_step(config, batch_size) / peak_flops(device) / seconds     # 1 would be all it can do
"""

from __future__ import annotations

import torch

from nanobackpack.config import ModelConfig

# Dense bfloat16 operations a second, as the makers state them; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def flops_per_step(config: ModelConfig, batch_size: int, length: int | None = None) -> int:
    """Count the operations of a training step on batch_size sequences of `length` (None: block_size).

    Matrix products only, by the plain formula: senses of every position, and all T·T pairs. What a faster way
    skips still counts, as is usual for MFU, so that figures compare models and machines, not ways to compute.
    """
    T = length or config.block_size
    D, K, V = config.n_embd, config.n_sense_vector, config.vocab_size
    # Multiplications for each token, in the order of the model.
    block = 3 * D * D + 2 * T * D + D * D + 8 * D * D  # q, k, v; scores and weighted values; projection; MLP
    senses = (8 + config.sense_intermediate_scale * (1 + K)) * D * D  # the two MLPs of the sense network
    backpack = senses + 2 * D * D + T * D + T * K * D  # and q, k of α; its scores; the weighted sum
    per_token = config.n_block * block + (backpack if config.model_name == "backpack-lm" else 0) + D * V
    # An addition goes with each; and backward multiplies twice, once for the gradient of each factor.
    return 2 * 3 * per_token * batch_size * T


def peak_flops(device: torch.device) -> float | None:
    """Return the device's best in bfloat16, operations a second; None if we do not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((peak for key, peak in PEAK_FLOPS.items() if key.lower() in name), None)
