"""GPT, the Transformer baseline: GPT-2's layout (Radford et al. 2019) with the blocks the Backpack uses.

logits[b,i] = E · h[b,i]          h = context(E[x]),  E tied
"""

from __future__ import annotations

from torch import Tensor

from nanobackpack.config import ModelConfig
from nanobackpack.edits import Edits
from nanobackpack.kernels import TokenTypes, linear
from nanobackpack.layers import KVCache, LanguageModel, init_weights


class GPT(LanguageModel):
    """A decoder-only Transformer with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        init_weights(self, config.n_layer)

    def hidden(
        self, input_ids: Tensor, types: TokenTypes | None = None, edits: Edits | None = None
    ) -> Tensor:
        """h (B, T, D), the contextual vectors; a Transformer has no use for `types`."""
        edits = edits or self.active()
        return self.context(edits.inputs(input_ids, self.embed(input_ids)))

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        e = cache.edits.inputs(input_ids, self.wte(input_ids))  # (B, T, D)
        h = self.context(e, cache)[:, -1]  # (B, D)
        cache.length += input_ids.size(1)
        return linear(h, self.wte.weight).float()  # (B, V)
