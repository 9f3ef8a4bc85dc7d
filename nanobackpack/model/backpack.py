"""The Backpack language model (Hewitt et al. 2023, arXiv 2305.16765) from top to bottom, and a GPT beside it.

    logits[b,i] = E · Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]

    C   the sense network: gives each token K vectors that depend on the token alone, never on its context
    α   the contextualization weights: a Transformer decides how much each sense of each earlier token counts
    E   the embedding, one matrix for input and output

The prediction is linear in the senses. That is what makes them readable, and why an edit of a sense acts
everywhere in the same way. In this order: attention, MLP and block (GPT-2's); the Transformer made of them;
the two sense networks; α; what both models share; GPT; and BackpackLM, whose `forward` is the formula.

The two sense networks differ in their residuals and norms, in the scale of α, and in whether the sense
network counts as a layer:
    nano   nanoBackpackLM: one LayerNorm over all K senses of a token together; α = softmax(q·k), not scaled,
           no bias on q and k, dropout on α; n_layer - 1 Transformer blocks
    paper  backpack-gpt2: no norm at the end; α = softmax(q·k / sqrt(D/K)); n_layer blocks

Letters in shape comments: B batch, T time (positions), D width, K senses, V vocabulary, H heads, U unique
token ids, S cached positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nanobackpack.config import ModelConfig
from nanobackpack.errors import WrongType, whole_numbers
from nanobackpack.model.edits import BLOCKS, Edit, EditLike, Edits, TextSoFar
from nanobackpack.model.generate import KVCache, SenseMemory, check_ids, check_range, check_tensor
from nanobackpack.model.kernels import (
    Linear,
    UniqueIds,
    causal_softmax,
    cross_entropy,
    each_position,
    linear,
    linear_cross_entropy,
    sense_sum,
    sense_sum_plain,
    unique_ids,
)
from nanobackpack.model.texts import generate
from nanobackpack.runtime import any_length, in_eval_mode

if TYPE_CHECKING:
    from nanobackpack.text.tokenizer import Tokenizer


# --- The parts of a Transformer ---------------------------------------------------------------


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021): turns the numbers of a vector in pairs, by angles that grow with its
    position. So the product of a query and a key depends on how far apart they are."""

    cos_sin: Tensor  # (2, T, d)

    def __init__(self, length: int, d: int) -> None:
        super().__init__()
        speed = 10_000.0 ** -(torch.arange(d // 2) / (d // 2))  # (d/2), from fast to slow
        angle = torch.arange(length)[:, None] * speed  # (T, d/2)
        cos, sin = angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], dim=1)  # (T, d) each
        self.register_buffer("cos_sin", torch.stack([cos, sin]), persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Turn x (..., T, d), whose first vector is at position `start`."""
        cos, sin = self.cos_sin[:, start : start + x.size(-2)].to(x.dtype)  # (T, d) each
        return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)  # each number meets its partner


class Attention(nn.Module):
    """Causal multi-head self-attention, as in GPT-2. In a modern context network positions are rotary, and
    queries and keys have one length, times a gain that is learned (Henry et al. 2020)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        D = config.n_embd
        self.n_head, self.slot, self.dropout = config.n_head, f"block {index}", config.dropout
        self.scale = 1.0 / math.sqrt(D // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = Linear(D, 3 * D, config.bias, n_matrices=3)  # queries, keys and values
        self.c_proj = Linear(D, D, config.bias)
        self.drop = nn.Dropout(config.dropout)
        self.rotary = Rotary(config.block_size, D // config.n_head) if config.is_modern else None
        self.gain = nn.Parameter(torch.ones(config.n_head, 1, 1)) if config.is_modern else None

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, D = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, -1).permute(0, 2, 3, 1, 4)  # (B, 3, H, T, D/H)
        q, kv = qkv[:, 0], qkv[:, 1:]
        if self.rotary is not None:
            # Of a query and a key only the direction counts, turned by the position; the gain says how much.
            qk = F.rms_norm(qkv[:, :2], qkv.shape[-1:])  # (B, 2, H, T, D/H)
            qk = self.rotary(qk, cache.length if cache else 0)
            q, kv = qk[:, 0] * self.gain, torch.stack([qk[:, 1], qkv[:, 2]], dim=1)
        if cache is not None:
            kv = cache.append(self.slot, kv)  # (B, 2, H, S, D/H)
        k, v = kv.unbind(1)  # (B, H, S, D/H)
        dropout = self.dropout if self.training else 0.0
        # A single query sees every cached key; several start from an empty cache and need the causal mask.
        # Where rows begin apart, the cache has a mask for both.
        mask = cache.mask if cache else None
        causal = mask is None and k.size(2) == T
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return self.drop(y) if self.training else y  # a call for each block and token: worth sparing


class MLP(nn.Module):
    """Linear, GELU (tanh form, as GPT-2), linear, dropout. The sense networks are built of it too."""

    def __init__(
        self, d_in: int, d_out: int, config: ModelConfig, n_matrices: int = 1, scale: int = 4
    ) -> None:
        super().__init__()
        self.c_fc = Linear(d_in, scale * d_in, config.bias)
        self.c_proj = Linear(scale * d_in, d_out, config.bias, n_matrices)
        self.approximate = "none" if config.gelu == "exact" else "tanh"
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate=self.approximate)  # (..., scale·d_in)
        x = self.c_proj(x)  # (..., d_out)
        return self.drop(x) if self.training else x


class Block(nn.Module):
    """Pre-norm Transformer block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        D = config.n_embd
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.attn = Attention(config, index)
        self.ln_2 = nn.LayerNorm(D, bias=config.bias)
        self.mlp = MLP(D, D, config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Token embeddings in, contextual vectors out: positions, blocks, a last LayerNorm.

    With `recompute`, training keeps only the input of each block, and backward computes the block again.
    """

    recompute = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wpe = None if config.is_modern else nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_block))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, D) token embeddings → (B, T, D); with a cache, x continues what the cache holds."""
        if self.wpe is not None:
            x = x + self.wpe.weight[cache.positions if cache else slice(x.size(1))]
        x = self.drop(x)
        for block in self.h:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cache, use_reentrant=False)
            else:
                x = block(x, cache)
        return self.ln_f(x)


# --- C: the senses of a token -----------------------------------------------------------------


class NanoSenses(nn.Module):
    """C of nanoBackpackLM: two MLPs, then one LayerNorm over all K·D numbers of a token together, so that a
    large sense shrinks its siblings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.n_sense = K
        self.ff_1 = MLP(D, D, config)
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.ff_2 = MLP(D, K * D, config, n_matrices=K)
        self.ln_2 = nn.LayerNorm(K * D, bias=config.bias)

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings (..., D) → senses (..., K, D)."""
        u = self.ln_1(e + self.ff_1(e))  # (..., D)
        w = self.ff_2(u).unflatten(-1, (self.n_sense, -1))  # (..., K, D)
        w = self.ln_2((w + u.unsqueeze(-2)).flatten(-2))  # (..., K·D): u is added to every sense
        return w.unflatten(-1, (self.n_sense, -1))  # (..., K, D)


class PaperSenses(nn.Module):
    """C of backpack-gpt2: a residual block, then an MLP to K·D without a norm (paper, appendix A.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.n_sense = K
        self.ln_0 = nn.LayerNorm(D, bias=config.bias)
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.ln_2 = nn.LayerNorm(D, bias=config.bias)
        self.mlp = MLP(D, D, config)
        self.final_mlp = MLP(D, K * D, config, n_matrices=K, scale=config.sense_intermediate_scale)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings (..., D) → senses (..., K, D)."""
        r = self.drop(e)
        r = self.drop(self.ln_0(r)) + r  # the embedding's own norm is added to it (sic, A.1)
        r = self.drop(self.mlp(self.ln_1(r))) + r
        return self.final_mlp(self.ln_2(r)).unflatten(-1, (self.n_sense, -1))  # (..., K, D)


class SenseTable(nn.Module):
    """C as a plain table (V, K, D), which control.bake makes of a sense network and edits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.n_sense_vector, config.n_embd))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (U) → senses (U, K, D)."""
        return self.table[ids]


# --- α: how much each sense counts ------------------------------------------------------------


class SenseWeights(nn.Module):
    """α is attention without values: for each sense a pattern of its own, softmax over earlier positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        nano = config.sense_network == "nano"
        self.n_sense = K
        self.scale = 1.0 if nano else 1.0 / math.sqrt(D // K)
        self.dropout = config.dropout if nano or config.alpha_dropout else 0.0  # on α itself, in sense_sum
        self.c_attn = Linear(D, 2 * D, config.bias and not nano, n_matrices=2)  # queries and keys
        self.rotary = Rotary(config.block_size, D // K) if config.is_modern else None

    def queries_and_keys(self, h: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Contextual vectors (B, T, D), the first at position `start` → scaled queries and keys
        (B, K, T, D/K): α = softmax(q · k)."""
        q, k = self.c_attn(h).unflatten(2, (2, self.n_sense, -1)).permute(2, 0, 3, 1, 4)  # (B, K, T, D/K)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q if self.scale == 1 else q * self.scale, k


# --- What both models share -------------------------------------------------------------------


Positions = tuple[Tensor, Tensor] | None
"""Rows and positions of a batch, (N) each; None: all."""


class Output(NamedTuple):
    """What a model returns: logits (B, T, V) float, and the mean loss in nats (scalar); None if not asked."""

    logits: Tensor | None
    loss: Tensor | None


def tied_head(o: Tensor, E: Tensor, targets: Tensor | None, loss_only: bool, at: Positions) -> Output:
    """logits = E · o, (B, T, V), and their loss."""
    if at is not None:
        o = o[at]  # (N, D): only these positions are asked for
    if loss_only and targets is not None and len(E) > E.size(1):
        return Output(None, linear_cross_entropy(o, E, targets))  # never makes all (B, T, V) logits
    return with_loss(linear(o, E), targets, loss_only)


def with_loss(logits: Tensor, targets: Tensor | None, loss_only: bool) -> Output:
    """Logits (B, T, V) as a model returns them, with their loss if there are targets."""
    logits = logits.float()
    loss = None if targets is None else cross_entropy(logits, targets)
    return Output(None if loss_only else logits, loss)


class LanguageModel(nn.Module):
    """Embedding, context network, edits and generation: all that GPT and BackpackLM have in common."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.blocks: dict[object, tuple[Edit, ...]] = {}  # of control.applied, in all threads
        self.token_counts: Tensor | None = None  # (V) of each id in the text it was trained on, if known
        self.text: object = None  # the fingerprint of that text, if known
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # E, tied: input and output
        self.context = Transformer(config)

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        raise NotImplementedError

    def check(self, input_ids: Tensor, targets: Tensor | None) -> None:
        """Refuse what `forward` cannot take."""
        check_ids(input_ids, self.config.vocab_size, self.config.block_size)
        if targets is None:
            return
        check_tensor("targets", tuple(input_ids.shape), targets)
        if targets.shape != input_ids.shape:
            raise ValueError(f"targets must be {tuple(input_ids.shape)} int64, not {tuple(targets.shape)}")
        check_range(targets, -1, self.config.vocab_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings (..., D) of ids. On a CPU their gradient stays sparse until it meets that of the tied
        head: one pass over all V rows less (not in torch.compile, which cannot do it)."""
        sparse = ids.device.type == "cpu" and not torch.compiler.is_compiling()
        return F.embedding(ids, self.wte.weight, sparse=sparse)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits in force in this thread or async task; control.applied puts them there."""
        return tuple(e for block, edits in self.blocks.copy().items() if block in BLOCKS.get() for e in edits)

    def edits_in_force(self, edits: EditLike | Edits = ()) -> Edits:
        """The edits in force and these, checked against this model and sorted by what they act on."""
        if isinstance(edits, Edits):  # they are already
            return edits
        return Edits((self.edits, edits), self.config, self.wte.weight.device)

    def new_cache(self, edits: EditLike | Edits = (), capacity: int | None = None) -> KVCache:
        """An empty cache with room for `capacity` positions, by default and at most block_size."""
        size = self.config.block_size
        return KVCache(min(capacity or size, size), self.edits_in_force(edits))

    generate = generate  # text, token by token: texts.py and generate.py

    def num_params(self, positions: bool = True) -> int:
        """Count the weights, tied ones once; positions=False leaves out wpe, as nanoGPT does."""
        wpe = self.context.wpe
        n = sum(p.numel() for p in self.parameters())
        return n if positions or wpe is None else n - wpe.weight.numel()

    @property
    def fsdp_parts(self) -> list[nn.Module]:
        """The parts that are computed one after the other: what FSDP gathers at a time."""
        return list(self.context.h)

    def init_weights(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), zero biases, and N(0, 0.02 / sqrt(2 n_layer)) for each
        projection that ends a residual branch, so that the residual stream keeps its variance."""
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)


def check_model(model: LanguageModel) -> None:
    """Raise TypeError for what is no model, such as the path of one."""
    if not isinstance(model, LanguageModel):
        raise WrongType("model", "a model, as nanobackpack.load_model opens one", model)


# --- The two models ---------------------------------------------------------------------------


class GPT(LanguageModel):
    """The Transformer baseline (GPT-2, Radford et al. 2019): logits = E · context(E[x])."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        unique: UniqueIds | None = None,
        loss_only: bool = False,
        edits: EditLike = (),
        at: Positions = None,
    ) -> Output:
        """As BackpackLM.forward; a Transformer has no use for `unique`."""
        self.check(input_ids, targets)
        e = self.edits_in_force(edits).edit_inputs(input_ids, self.embed(input_ids))  # (B, T, D)
        h = self.context(e)  # (B, T, D)
        return tied_head(h, self.wte.weight, targets, loss_only, at)

    @any_length()
    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        ids = cache.enter(input_ids)
        e = cache.edits.edit_inputs(ids, self.wte(ids))  # (B, T, D)
        h = self.context(e, cache)[:, -1]  # (B, D)
        cache.length += input_ids.size(1)
        return linear(h, self.wte.weight).float()  # (B, V)


class BackpackLM(LanguageModel):
    """The Backpack: sense network → C, context network → α, weighted sum, tied head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.alpha = SenseWeights(config)
        nano = config.sense_network == "nano"
        network = SenseTable if config.sense_table else NanoSenses if nano else PaperSenses
        self.senses: nn.Module = network(config)
        self.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        unique: UniqueIds | None = None,
        loss_only: bool = False,
        edits: EditLike = (),
        at: Positions = None,
    ) -> Output:
        """Compute logits (B, T, V) of input_ids (B, T), and the loss of targets (B, T), where -1 is ignored.

        loss_only spares the logits. `edits` (control.py) hold for this call. `at`, rows and positions (N)
        each, asks for the logits (N, V) there alone. `unique` are the unique ids of input_ids, if known.
        Ids and targets of the wrong shape, type, length or range raise ValueError.
        """
        self.check(input_ids, targets)
        active = self.edits_in_force(edits)
        E, dropout = self.wte.weight, self.alpha.dropout if self.training else 0.0

        # Senses depend on the token alone, so each different token is computed once. But with dropout each
        # position has a mask of its own, and cannot share its senses (sharing costs 0.004 nats, docs/LOG.md).
        if self.training and self.config.dropout:
            unique = each_position(input_ids)
        unique = unique or unique_ids(input_ids, len(E))

        e = self.embed(unique.ids)  # (U, D)
        h = self.context(F.embedding(unique.where, e))  # (B, T, D)  what the context makes of the text
        q, k = self.alpha.queries_and_keys(h)  # (B, K, T, D/K) each: α = softmax(q · k)
        C = self.token_senses(unique.ids, e, active)  # (U, K, D)  what each token may contribute

        if active.on_alpha:  # edits of α need α itself: the plain formula, with the edits in its middle
            edited = lambda alpha, senses: active.edit_alpha(alpha, TextSoFar(input_ids, senses, E))  # noqa: E731
            o = sense_sum_plain(q, k, C, unique.where, dropout, edited)  # (B, T, D)
        elif self.small_vocab:  # as with characters: E · Σ α C = Σ α (E · C), and E · C is shorter than C
            logits = sense_sum(q, k, linear(C, E), unique.where, dropout)  # (B, T, V)
            return with_loss(logits if at is None else logits[at], targets, loss_only)
        else:
            o = sense_sum(q, k, C, unique.where, dropout)  # (B, T, D)  Σ_j Σ_l α C
        return tied_head(o, E, targets, loss_only, at)  # logits = E · o

    def token_senses(self, ids: Tensor, e: Tensor, active: Edits) -> Tensor:
        """C of ids (U), whose embeddings are e (U, D), edited: (U, K, D)."""
        return active.edit_senses(ids, self.senses(ids if self.config.sense_table else e))

    @property
    def small_vocab(self) -> bool:
        """With few tokens, as characters are, a sense is shorter as its V logits than as its D numbers."""
        return self.config.vocab_size <= self.config.n_embd

    @property
    def fsdp_parts(self) -> list[nn.Module]:
        return [*super().fsdp_parts, self.senses]

    def new_cache(self, edits: EditLike | Edits = (), capacity: int | None = None) -> KVCache:
        """An empty cache that also knows the senses of tokens under the edits: the logits of all senses where
        there are few tokens, else a memory that fills as tokens come."""
        cache, V, E = super().new_cache(edits, capacity), self.config.vocab_size, self.wte.weight
        if self.small_vocab and not cache.edits.on_alpha:
            C = self.token_senses(torch.arange(V, device=E.device), E, cache.edits)  # (V, K, D)
            cache.table = linear(C, E).transpose(0, 1).flatten(0, 1)  # (K·V, V)
        else:
            senses = lambda ids: self.token_senses(ids, self.wte(ids), cache.edits)  # noqa: E731
            cache.sense_memory = SenseMemory(V, senses)
        return cache

    @any_length()
    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        ids = cache.enter(input_ids)
        h = self.context(self.wte(ids), cache)  # (B, T, D)
        q, k = self.alpha.queries_and_keys(h, cache.length)  # (B, K, T, D/K)
        k = cache.append("alpha", k)  # (B, K, S, D/K)
        # Only the last position predicts, and it sees all S, or all of its row.
        alpha = (q[:, :, -1:] @ k.mT).float()  # (B, K, 1, S)
        if cache.mask is not None:
            alpha = alpha.masked_fill(~cache.mask[:, :, -1:], -math.inf)
        alpha = alpha.softmax(dim=3)
        if cache.table is not None:
            # Positions of the same token share its senses: add up their weights, then one product does.
            ids = cache.append("ids", ids[:, None, :, None])[:, 0, :, 0]  # (B, S)
            weight = alpha.new_zeros(*alpha.shape[:2], self.config.vocab_size)  # (B, K, V)
            weight.scatter_add_(2, ids[:, None].expand_as(alpha[:, :, 0]), alpha[:, :, 0])
            logits = weight.flatten(1).to(h.dtype) @ cache.table  # (B, V)
        else:
            assert cache.sense_memory is not None
            new = cache.sense_memory(ids).transpose(1, 2)  # (B, K, T, D)
            senses = cache.append("token senses", new)  # (B, K, S, D)
            if cache.edits.on_alpha:
                ids = cache.append("ids", input_ids[:, None, :, None])[:, 0, :, 0]  # (B, S)
                alpha = cache.edits.edit_alpha(alpha, TextSoFar(ids, senses, self.wte.weight, cache))
            o = (alpha.to(senses.dtype) @ senses).sum(dim=1)[:, 0]  # (B, D)
            logits = linear(o, self.wte.weight)  # (B, V)
        cache.length += input_ids.size(1)
        return logits.float()

    @torch.no_grad()
    def sense_vectors(self, ids: Tensor | Sequence[int] | None = None, chunk: int = 4096) -> Tensor:
        """C as a table, under the edits in force: (V, K, D), padded ids included, or (N, K, D) for N ids.

        Ids outside the vocabulary raise ValueError. `chunk` bounds the memory used on the way.
        """
        model, V, E = in_eval_mode(self), self.config.vocab_size, self.wte.weight
        wanted = f"a list of numbers from 0 to {V - 1}"
        rows = torch.tensor(whole_numbers("ids", wanted, range(V) if ids is None else ids), dtype=torch.int64)
        if ((rows < 0) | (rows >= V)).any():
            raise ValueError(f"ids must be {wanted}")
        active, parts = self.edits_in_force(), rows.to(E.device).split(chunk)
        return torch.cat([model.token_senses(part, self.wte(part), active) for part in parts])  # (N, K, D)

    @torch.no_grad()
    def contextualization(self, input_ids: Tensor) -> Tensor:
        """α (B, K, T, T) of input_ids (B, T) under the edits in force: α[b,l,i,j] weighs sense l of token j
        at position i."""
        self.check(input_ids, None)
        model, active = in_eval_mode(self), self.edits_in_force()
        q, k = model.alpha.queries_and_keys(model.context(self.wte(input_ids)))  # (B, K, T, D/K)
        alpha = causal_softmax(q @ k.mT).to(q.dtype)  # (B, K, T, T)
        if active.on_alpha:
            ids = input_ids.flatten()
            C = model.token_senses(ids, self.wte(ids), active)  # (B·T, K, D)
            senses = C.unflatten(0, input_ids.shape).transpose(1, 2)  # (B, K, T, D)
            alpha = active.edit_alpha(alpha, TextSoFar(input_ids, senses, self.wte.weight))
        return alpha
