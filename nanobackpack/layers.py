"""The parts both models are made of: causal attention, MLP, block, and the Transformer over them.

Letters in shape comments: B batch, T time (positions), D width, H heads, L layers, S cached positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nanobackpack.config import ModelConfig
from nanobackpack.edits import Edit, EditLike, Edits, flat
from nanobackpack.kernels import Linear, TokenTypes, cross_entropy, linear, linear_cross_entropy

if TYPE_CHECKING:
    from nanobackpack.tokenizers import Tokenizer


class KVCache:
    """What a model keeps of the positions it has seen, so that decoding adds one at a time.

    `slots` holds for each attention layer its keys and values, (B, 2, H, capacity, D/H), and for a
    Backpack α's keys and the positions' senses. `length` is the number of positions filled; the model
    advances it once per forward pass. `edits` hold for the whole generation. `table` and `senses`, what a
    Backpack knows of its tokens, do not depend on positions and outlive `clear`.
    """

    table: Tensor | None = None
    senses: SenseMemory

    def __init__(self, capacity: int, edits: Edits) -> None:
        self.slots: dict[str, Tensor] = {}
        self.capacity, self.edits = capacity, edits
        self.length = 0

    def append(self, slot: str, new: Tensor) -> Tensor:
        """Store new (B, ..., T, *) after what the slot has; return all of it, (B, ..., length + T, *)."""
        start, end = self.length, self.length + new.size(-2)
        assert start == 0 or end == start + 1, "after the first pass, one position at a time"
        if slot not in self.slots:
            self.slots[slot] = new.new_empty(*new.shape[:-2], self.capacity, new.size(-1))
        buffer = self.slots[slot]
        buffer[..., start:end, :] = new
        return buffer[..., :end, :]

    def clear(self) -> None:
        """Forget the positions."""
        self.length = 0

    def expand(self, n: int) -> None:
        """Make the one sequence seen so far the beginning of n."""
        self.slots = {slot: t.repeat(n, *[1] * (t.dim() - 1)) for slot, t in self.slots.items()}

    def select(self, rows: Tensor) -> None:
        """Go on from these sequences (N), each once or more often."""
        self.slots = {slot: t[rows] for slot, t in self.slots.items()}


class SenseMemory:
    """The senses of the tokens met so far, each computed once: `compute` maps ids (N) to (N, K, W)."""

    def __init__(self, vocab_size: int, compute: Callable[[Tensor], Tensor]) -> None:
        self.vocab_size, self.compute = vocab_size, compute
        self.known: set[int] = set()
        self.rows: Tensor | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Senses of ids (B, T) → (B, T, K, W)."""
        new = set(ids.flatten().tolist()) - self.known
        if new:
            some = torch.tensor(sorted(new), device=ids.device)
            senses = self.compute(some)  # (N, K, W)
            if self.rows is None:  # pages of it that are never written take no memory
                self.rows = senses.new_empty(self.vocab_size, *senses.shape[1:])  # (V, K, W)
            self.rows[some] = senses
            self.known |= new
        assert self.rows is not None
        return self.rows[ids]


class Dropping(nn.Module):
    """A module with a dropout probability of its own."""

    dropout: float

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Attention(Dropping):
    """Causal multi-head self-attention, GPT-2 layout."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        D = config.n_embd
        self.n_head, self.slot, self.dropout = config.n_head, f"block {index}", config.dropout
        self.scale = 1.0 / math.sqrt(D // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = Linear(D, 3 * D, bias=config.bias)
        self.c_attn.n_part = 3
        self.c_proj = Linear(D, D, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, D = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(0, 2, 3, 1, 4)  # (B, 3, H, T, D/H)
        q, kv = qkv[:, 0], qkv[:, 1:]
        if cache is not None:
            kv = cache.append(self.slot, kv)  # (B, 2, H, S, D/H)
        k, v = kv.unbind(1)  # (B, H, S, D/H)
        dropout = self.dropout if self.training else 0.0
        # A single query sees every cached key; several start from an empty cache and need the mask.
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=k.size(2) == T, scale=self.scale
        )
        y = y.transpose(1, 2).reshape(B, T, D)
        return self.drop(self.c_proj(y))


class MLP(Dropping):
    """Linear, GELU (tanh form, as GPT-2), linear, dropout. Also the building block of sense networks."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(d_in, d_hidden, bias=config.bias)
        self.c_proj = Linear(d_hidden, d_out, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (..., d_hidden)
        return self.drop(self.c_proj(x))  # (..., d_out)


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


class Transformer(Dropping):
    """Token embeddings in, contextual vectors out: positions, blocks and a last LayerNorm.

    With `recompute`, training keeps only the input of each block, and backward computes the block again.
    """

    recompute = False

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
        x = self.drop(x)
        for block in self.h:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cache, use_reentrant=False)
            else:
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
    if not ids.size(0):
        raise ValueError("input_ids holds no sequence: an empty batch")
    if not 1 <= ids.size(1) <= block_size:
        raise ValueError(f"{ids.size(1)} tokens, but this model takes 1 to block_size={block_size}")
    _check_range(ids, 0, vocab_size)


def check_targets(targets: Tensor, input_ids: Tensor, vocab_size: int) -> None:
    """Refuse targets of another shape or type than the ids, or outside the vocabulary and not -1.

    Raises: ValueError, as check_ids.
    """
    if targets.shape != input_ids.shape or targets.dtype != torch.int64:
        shape = tuple(input_ids.shape)
        raise ValueError(f"targets must be {shape} int64, not {tuple(targets.shape)} {targets.dtype}")
    _check_range(targets, -1, vocab_size)


def _check_range(ids: Tensor, low: int, vocab_size: int) -> None:
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    lowest, highest = (int(t) for t in ids.aminmax())
    if lowest < low or highest >= vocab_size:
        bad = lowest if lowest < low else highest
        raise ValueError(f"token id {bad} is outside the vocabulary: {low} to {vocab_size - 1}")


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
        self.edits: tuple[Edit, ...] = ()  # in force wherever the model is used; see control.applied
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # tied: input and output
        self.context = Transformer(config)

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        types: TokenTypes | None = None,
        loss_only: bool = False,
        edits: EditLike = (),
    ) -> Output:
        """Logits (B, T, V) for input_ids (B, T); with targets (B, T), -1 ignored, also the loss.

        `types`, if they are known already, are the different tokens of input_ids; loss_only spares the
        logits, which are None then; `edits` (control.py) hold for this call.
        Raises: ValueError for ids or targets of the wrong shape, type, length or range; InputError for
        unfit edits.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.block_size)
        if targets is not None:
            check_targets(targets, input_ids, self.config.vocab_size)
        active = self.active(edits)
        if loss_only and targets is not None and self.config.vocab_size > self.config.n_embd:
            h = self.hidden(input_ids, types, active)  # (B, T, D)
            return Output(None, linear_cross_entropy(h, self.wte.weight, targets))
        logits = self.logits(input_ids, types, active).float()  # (B, T, V)
        loss = None if targets is None else cross_entropy(logits, targets)
        return Output(None if loss_only else logits, loss)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of ids. On a CPU their gradient stays sparse until it meets that of the tied
        head: one pass over all V rows less (not in torch.compile, which cannot do it)."""
        sparse = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        return F.embedding(ids, self.wte.weight, sparse=sparse)

    def active(self, edits: EditLike = ()) -> Edits:
        """The edits in force and these, as the seams take them. Raises: InputError if one does not fit."""
        return Edits((*self.edits, *flat(edits)), self.config, self.wte.weight.device)

    def hidden(
        self, input_ids: Tensor, types: TokenTypes | None = None, edits: Edits | None = None
    ) -> Tensor:
        """What the tied head reads, (B, T, D); without `edits`, under those in force."""
        raise NotImplementedError

    def logits(self, input_ids: Tensor, types: TokenTypes | None, edits: Edits) -> Tensor:
        """logits[b,i] = E · hidden[b,i], (B, T, V)."""
        return linear(self.hidden(input_ids, types, edits), self.wte.weight)

    def new_cache(self, edits: EditLike = (), capacity: int | None = None) -> KVCache:
        """An empty cache for one generation under the edits in force and these, with room for `capacity`
        positions: block_size, unless less is known to do."""
        return KVCache(min(capacity or self.config.block_size, self.config.block_size), self.active(edits))

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
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
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        restart: bool = False,
        edits: EditLike = (),
    ) -> Tensor:
        """Continue input_ids (B, T) by sampling; returns (B, T + max_new_tokens). See generate.py."""
        from nanobackpack.generate import stream

        new = stream(self, input_ids, max_new_tokens, temperature, top_k, top_p, generator, restart, edits)
        return torch.cat([input_ids, *(t[:, None] for t in new)], dim=1)  # (B, T + new)
