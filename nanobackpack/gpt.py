"""GPT, the Transformer baseline: GPT-2's layout (Radford et al. 2019) with the blocks the Backpack uses.

logits[b,i] = E · h[b,i]          h = context(E[x]),  E tied
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nanobackpack.config import ModelConfig
from nanobackpack.layers import (
    KVCache,
    LanguageModel,
    Output,
    check_ids,
    cross_entropy,
    init_weights,
)


class GPT(LanguageModel):
    """A decoder-only Transformer with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        init_weights(self, config.n_layer)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None) -> Output:
        """Logits (B, T, V) for input_ids (B, T); with targets (B, T), -1 ignored, also the loss.

        Raises: ValueError for ids of the wrong shape, type, length or range.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.block_size)
        h = self.context(self.wte(input_ids))  # (B, T, D)
        logits = F.linear(h, self.wte.weight).float()  # (B, T, V)
        return Output(logits, None if targets is None else cross_entropy(logits, targets))

    def next_logits(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        h = self.context(self.wte(input_ids), cache)[:, -1]  # (B, D)
        if cache is not None:
            cache.length += input_ids.size(1)
        return F.linear(h, self.wte.weight).float()  # (B, V)
