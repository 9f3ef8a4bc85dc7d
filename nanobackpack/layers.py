"""The parts both models are made of: causal attention, MLP, block, and the Transformer over them.

Letters in shape comments: B batch, T time (positions), D width, H heads, L layers, S cached positions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.config import ModelConfig
from nanobackpack.kernels import Linear, TokenTypes, cross_entropy, linear, linear_cross_entropy

if TYPE_CHECKING:
    from nanobackpack.tokenizers import Tokenizer


class KVCache:
    """Keys and values of the positions a Transformer has seen, so that decoding adds one at a time.

    `slots` holds one (keys, values) pair per attention layer, each (B, H, capacity, D/H).
    `length` is the number of positions filled; the model advances it once per forward pass.
    """

    def __init__(self, n_slot: int, capacity: int) -> None:
        self.slots: list[tuple[Tensor, ...] | None] = [None] * n_slot
        self.capacity = capacity
        self.length = 0

    def append(self, slot: int, *new: Tensor) -> tuple[Tensor, ...]:
        """Store tensors (B, H, T, *) after the cached ones; return all, each (B, H, length + T, *)."""
        end = self.length + new[0].size(2)
        assert self.length == 0 or new[0].size(2) == 1, "after the first pass, one position at a time"
        buffers = self.slots[slot]
        if buffers is None:
            buffers = tuple(t.new_empty(t.size(0), t.size(1), self.capacity, t.size(3)) for t in new)
            self.slots[slot] = buffers
        for buffer, t in zip(buffers, new, strict=True):
            buffer[:, :, self.length : end] = t
        return tuple(buffer[:, :, :end] for buffer in buffers)


class Attention(nn.Module):
    """Causal multi-head self-attention, GPT-2 layout."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        D = config.n_embd
        self.n_head, self.index, self.dropout = config.n_head, index, config.dropout
        self.scale = 1.0 / math.sqrt(D // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = Linear(D, 3 * D, bias=config.bias)
        self.c_proj = Linear(D, D, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, D = x.shape
        q, k, v = (
            t.view(B, T, self.n_head, D // self.n_head).transpose(1, 2)  # (B, H, T, D/H)
            for t in self.c_attn(x).split(D, dim=2)
        )
        if cache is not None:
            k, v = cache.append(self.index, k, v)  # (B, H, S, D/H)
        dropout = self.dropout if self.training else 0.0
        # A single query sees every cached key; several start from an empty cache and need the mask.
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=k.size(2) == T, scale=self.scale
        )
        y = y.transpose(1, 2).reshape(B, T, D)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """Linear, GELU (tanh form, as GPT-2), linear, dropout. Also the building block of sense networks."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(d_in, d_hidden, bias=config.bias)
        self.c_proj = Linear(d_hidden, d_out, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (..., d_hidden)
        return F.dropout(self.c_proj(x), self.dropout, self.training)  # (..., d_out)


class Block(nn.Module):
    """Pre-norm Transformer block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        D = config.n_embd
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.attn = Attention(config, index)
        self.ln_2 = nn.LayerNorm(D, bias=config.bias)
        self.mlp = MLP(D, 4 * D, D, config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Token embeddings in, contextual vectors out: positions, blocks and a last LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_block))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, D) token embeddings → (B, T, D); with a cache, x continues what the cache holds."""
        start = 0 if cache is None else cache.length
        x = x + self.wpe.weight[start : start + x.size(1)]
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x, cache)
        return self.ln_f(x)


def init_weights(model: nn.Module, n_layer: int) -> None:
    """GPT-2's initialisation: N(0, 0.02), zero biases, and N(0, 0.02 / sqrt(2 n_layer)) for each
    projection that ends a residual branch, so that the residual stream keeps its variance."""
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer))
        elif p.dim() == 2:
            nn.init.normal_(p, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


def check_ids(ids: Tensor, vocab_size: int, block_size: int) -> None:
    """Refuse ids a model cannot take: wrong shape or type, too long, or outside the vocabulary.

    Raises: ValueError. Values are checked on the CPU only: elsewhere it would stall the device.
    """
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"input_ids must be (B, T) int64, not {tuple(ids.shape)} {ids.dtype}")
    if not 1 <= ids.size(1) <= block_size:
        raise ValueError(f"{ids.size(1)} tokens, but this model takes 1 to block_size={block_size}")
    if ids.device.type == "cpu" and not torch.compiler.is_compiling() and ids.numel():
        low, high = (int(t) for t in ids.aminmax())
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"token id {bad} is outside the vocabulary: 0 to {vocab_size - 1}")


class Output(NamedTuple):
    """What a model returns: logits (B, T, V) float, and the mean loss in nats (scalar); None if not asked."""

    logits: Tensor | None
    loss: Tensor | None


class LanguageModel(nn.Module):
    """What every model here offers; GPT and BackpackLM fill in the network."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # tied: input and output
        self.context = Transformer(config)

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        types: TokenTypes | None = None,
        loss_only: bool = False,
    ) -> Output:
        """Logits (B, T, V) for input_ids (B, T); with targets (B, T), -1 ignored, also the loss.

        `types`, if they are known already, are the different tokens of input_ids; loss_only spares the
        logits, which are None then.
        Raises: ValueError for ids of the wrong shape, type, length or range.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.block_size)
        if loss_only and targets is not None and self.config.vocab_size > self.config.n_embd:
            h = self.hidden(input_ids, types)  # (B, T, D)
            return Output(None, linear_cross_entropy(h, self.wte.weight, targets))
        logits = self.logits(input_ids, types).float()  # (B, T, V)
        loss = None if targets is None else cross_entropy(logits, targets)
        return Output(None if loss_only else logits, loss)

    def hidden(self, input_ids: Tensor, types: TokenTypes | None = None) -> Tensor:
        """What the tied head reads, (B, T, D)."""
        raise NotImplementedError

    def logits(self, input_ids: Tensor, types: TokenTypes | None = None) -> Tensor:
        """logits[b,i] = E · hidden[b,i], (B, T, V)."""
        return linear(self.hidden(input_ids, types), self.wte.weight)

    def new_cache(self) -> KVCache:
        """An empty cache for one generation: a slot per block, and one for what the model adds."""
        return KVCache(self.config.n_block + 1, self.config.block_size)

    def next_logits(self, input_ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        raise NotImplementedError

    def num_params(self, positions: bool = True) -> int:
        """Number of weights, tied ones counted once; positions=False leaves out wpe, as nanoGPT."""
        n = sum(p.numel() for p in self.parameters())
        return n if positions else n - self.context.wpe.weight.numel()

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue input_ids (B, T) by sampling; returns (B, T + max_new_tokens). See generate.py."""
        from nanobackpack.generate import stream

        new = stream(self, input_ids, max_new_tokens, temperature, top_k, top_p, generator)
        return torch.cat([input_ids, *(t[:, None] for t in new)], dim=1)  # (B, T + new)
