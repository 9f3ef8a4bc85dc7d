"""The parts both models are made of: causal attention, MLP, block, and the Transformer over them.

Letters in shape comments: B batch, T time (positions), D width, H heads, L layers, S cached positions.


GPT, the Transformer baseline: GPT-2's layout (Radford et al. 2019) with the blocks the Backpack uses.

logits[b,i] = E · h[b,i]          h = context(E[x]),  E tied


The Backpack language model (Hewitt et al. 2023, arXiv 2305.16765).

    logits[b,i] = E · Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]

C, the sense network, gives each token K vectors that depend on the token alone. α, the contextualization
weights, come from a Transformer that decides how much each sense of each earlier token counts. E is the
embedding, tied to the input. The prediction is linear in the senses: that is what makes them readable.

Letters: B batch, T time (positions), S cached positions, D width, K senses, V vocabulary, U unique ids.

Two sense networks exist. They differ in their residuals and norms, in the scale of α, and in whether the
sense network counts as a layer:
    nano   nanoBackpackLM: joint LayerNorm over a token's K senses; α = softmax(q·k), not scaled; no bias
           on q and k; dropout on α; n_layer - 1 blocks
    paper  backpack-gpt2: no norm at the end; α = softmax(q·k / sqrt(D/K)); n_layer blocks
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nanobackpack.config import ModelConfig
from nanobackpack.model.edits import Edit, EditLike, Edits
from nanobackpack.model.generate import check_targets
from nanobackpack.model.kernels import Linear, UniqueIds, cross_entropy, linear, linear_cross_entropy

if TYPE_CHECKING:
    from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.model.edits import TextSoFar
from nanobackpack.model.generate import KVCache, SenseMemory, check_ids
from nanobackpack.model.kernels import sense_sum, unique_ids


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
        self.c_attn.n_matrices = 3
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
        types: UniqueIds | None = None,
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
        active = self.edits_in_force(edits)
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

    def edits_in_force(self, edits: EditLike = ()) -> Edits:
        """The edits in force and these, as the seams take them. Raises: InputError if one does not fit."""
        return Edits((self.edits, edits), self.config, self.wte.weight.device)

    def hidden(self, input_ids: Tensor, types: UniqueIds | None = None, edits: Edits | None = None) -> Tensor:
        """What the tied head reads, (B, T, D); without `edits`, under those in force."""
        raise NotImplementedError

    def logits(self, input_ids: Tensor, types: UniqueIds | None, edits: Edits) -> Tensor:
        """logits[b,i] = E · hidden[b,i], (B, T, V)."""
        return linear(self.hidden(input_ids, types, edits), self.wte.weight)

    def new_cache(self, edits: EditLike = (), capacity: int | None = None) -> KVCache:
        """An empty cache for one generation under the edits in force and these, with room for `capacity`
        positions: block_size, unless less is known to do."""
        return KVCache(
            min(capacity or self.config.block_size, self.config.block_size), self.edits_in_force(edits)
        )

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
        from nanobackpack.model.generate import stream

        new = stream(self, input_ids, max_new_tokens, temperature, top_k, top_p, generator, restart, edits)
        return torch.cat([input_ids, *(t[:, None] for t in new)], dim=1)  # (B, T + new)


class GPT(LanguageModel):
    """A decoder-only Transformer with tied embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        init_weights(self, config.n_layer)

    def hidden(self, input_ids: Tensor, types: UniqueIds | None = None, edits: Edits | None = None) -> Tensor:
        """h (B, T, D), the contextual vectors; a Transformer has no use for `types`."""
        edits = edits or self.edits_in_force()
        return self.context(edits.inputs(input_ids, self.embed(input_ids)))

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        e = cache.edits.inputs(input_ids, self.wte(input_ids))  # (B, T, D)
        h = self.context(e, cache)[:, -1]  # (B, D)
        cache.length += input_ids.size(1)
        return linear(h, self.wte.weight).float()  # (B, V)


class NanoSenses(nn.Module):
    """C of nanoBackpackLM: two MLPs, then one LayerNorm over all K·D numbers of a token, so that a
    large sense shrinks its siblings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.n_sense = K
        self.ff_1 = MLP(D, 4 * D, D, config)
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.ff_2 = MLP(D, 4 * D, K * D, config)
        self.ff_2.c_proj.n_matrices = K
        self.ln_2 = nn.LayerNorm(K * D, bias=config.bias)

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings (..., D) → senses (..., K, D)."""
        u = self.ln_1(e + self.ff_1(e))
        w = self.ff_2(u).unflatten(-1, (self.n_sense, -1))  # (..., K, D)
        w = self.ln_2((w + u.unsqueeze(-2)).flatten(-2))  # (..., K·D)
        return w.unflatten(-1, (self.n_sense, -1))  # (..., K, D)


class PaperSenses(Dropping):
    """C of backpack-gpt2: a residual block, then an MLP to K·D without norm (paper, appendix A.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.n_sense, self.dropout = K, config.dropout
        self.ln_0 = nn.LayerNorm(D, bias=config.bias)
        self.ln_1 = nn.LayerNorm(D, bias=config.bias)
        self.ln_2 = nn.LayerNorm(D, bias=config.bias)
        self.mlp = MLP(D, 4 * D, D, config)
        self.final_mlp = MLP(D, 4 * D, K * D, config)
        self.final_mlp.c_proj.n_matrices = K

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


class SenseWeights(nn.Module):
    """α: for each sense an attention pattern of its own, one softmax over the positions each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        nano = config.sense_network == "nano"
        self.n_sense = K
        self.scale = 1.0 if nano else 1.0 / math.sqrt(D // K)
        self.dropout = config.dropout if nano else 0.0
        self.c_attn = Linear(D, 2 * D, bias=config.bias and not nano)
        self.c_attn.n_matrices = 2

    def queries_keys(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Contextual vectors (B, T, D) → scaled queries and keys, each (B, K, T, D/K)."""
        q, k = self.c_attn(h).unflatten(2, (2, self.n_sense, -1)).permute(2, 0, 3, 1, 4)
        return q if self.scale == 1 else q * self.scale, k

    @staticmethod
    def weights(q: Tensor, k: Tensor) -> Tensor:
        """α (B, K, T, T): rows sum to 1, nothing above the diagonal. No dropout here."""
        scores = (q @ k.transpose(2, 3)).float()  # (B, K, T, T)
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(dim=3).to(q.dtype)


class BackpackLM(LanguageModel):
    """Backpack language model: context network → α, sense network → C, weighted sum, tied head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.alpha = SenseWeights(config)
        nano = config.sense_network == "nano"
        network = SenseTable if config.sense_table else NanoSenses if nano else PaperSenses
        self.senses: nn.Module = network(config)
        init_weights(self, config.n_layer)

    def hidden(self, input_ids: Tensor, types: UniqueIds | None = None, edits: Edits | None = None) -> Tensor:
        """o (B, T, D), the weighted sum of senses."""
        edits = edits or self.edits_in_force()
        q, k, table, rows = self._parts(input_ids, types, edits)
        if not edits.on_weights:
            return sense_sum(q, k, table, rows, self._alpha_dropout)
        alpha, senses = self.alpha.weights(q, k), table[rows].transpose(1, 2)  # (B, K, T, T), (B, K, T, D)
        alpha = F.dropout(alpha, self._alpha_dropout)
        alpha = edits.weights(alpha, TextSoFar(input_ids, senses, self.wte.weight))
        return (alpha.to(senses.dtype) @ senses).sum(dim=1)  # (B, T, D)

    def logits(self, input_ids: Tensor, types: UniqueIds | None, edits: Edits) -> Tensor:
        """logits[b,i] = E · o[b,i], (B, T, V)."""
        if not self.small_vocab or edits.on_weights:
            return super().logits(input_ids, types, edits)
        q, k, table, rows = self._parts(input_ids, types, edits)
        return sense_sum(q, k, linear(table, self.wte.weight), rows, self._alpha_dropout)

    def _parts(
        self, input_ids: Tensor, types: UniqueIds | None, edits: Edits
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a batch (B, T): queries and keys (B, K, T, D/K), C of its types (U, K, D), and rows (B, T)."""
        if self.training and self.config.dropout:
            # Each position drops its own: make it a type of its own (docs/LOG.md: sharing costs 0.004 nats).
            every = torch.arange(input_ids.numel(), device=input_ids.device)  # (U = B·T)
            types = UniqueIds(input_ids.flatten(), every.view_as(input_ids))
        types = types or unique_ids(input_ids, self.config.vocab_size)
        e = self.embed(types.ids)  # (U, D)
        q, k = self.alpha.queries_keys(self.context(F.embedding(types.index, e)))  # (B, K, T, D/K)
        return q, k, self._senses(types.ids, e, edits), types.index

    def _senses(self, ids: Tensor, e: Tensor, edits: Edits) -> Tensor:
        """C of ids (U), whose embeddings are e (U, D), edited: (U, K, D)."""
        return edits.senses(ids, self.senses(ids if self.config.sense_table else e))

    @property
    def small_vocab(self) -> bool:
        """E · Σ α C = Σ α (E · C): with few tokens a sense is shorter as its logits than as a vector."""
        return self.config.vocab_size <= self.config.n_embd

    @property
    def _alpha_dropout(self) -> float:
        return self.alpha.dropout if self.training else 0.0

    def new_cache(self, edits: EditLike = (), capacity: int | None = None) -> KVCache:
        """As of every model; also the logits of all senses, or where these are many a memory for senses."""
        cache = super().new_cache(edits, capacity)
        if self.small_vocab and not cache.edits.on_weights:
            ids = torch.arange(self.config.vocab_size, device=self.wte.weight.device)
            table = linear(self._senses(ids, self.wte.weight, cache.edits), self.wte.weight)  # (V, K, V)
            cache.table = table.transpose(0, 1).flatten(0, 1)  # (K·V, V)
        else:
            cache.senses = SenseMemory(
                self.config.vocab_size, lambda ids: self._senses(ids, self.wte(ids), cache.edits)
            )
        return cache

    def next_logits(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) of the token after input_ids (B, T), which continue what the cache holds."""
        h = self.context(self.wte(input_ids), cache)  # (B, T, D)
        q, k = self.alpha.queries_keys(h)  # (B, K, T, D/K)
        k = cache.append("alpha", k)  # (B, K, S, D/K)
        alpha = (q[:, :, -1:] @ k.transpose(2, 3)).float().softmax(dim=3)  # (B, K, 1, S)
        ids = cache.append("ids", input_ids[:, None, :, None])[:, 0, :, 0]  # (B, S)
        if cache.table is not None:  # first sum α over the positions of the same token: they share senses
            weight = alpha.new_zeros(*alpha.shape[:2], self.config.vocab_size)  # (B, K, V)
            weight.scatter_add_(2, ids[:, None].expand_as(alpha[:, :, 0]), alpha[:, :, 0])
            logits = weight.flatten(1).to(h.dtype) @ cache.table  # (B, V)
        else:
            senses = cache.append("senses", cache.senses(input_ids).transpose(1, 2))  # (B, K, S, D)
            if cache.edits.on_weights:
                alpha = cache.edits.weights(alpha, TextSoFar(ids, senses, self.wte.weight, cache))
            o = (alpha.to(senses.dtype) @ senses).sum(dim=1)[:, 0]  # (B, D)
            logits = linear(o, self.wte.weight)  # (B, V)
        cache.length += input_ids.size(1)
        return logits.float()

    @torch.no_grad()
    def sense_vectors(self, ids: Tensor | list[int] | None = None, chunk: int = 4096) -> Tensor:
        """C as a table, under the edits in force: (V, K, D), padded ids included, or (N, K, D) for N ids.

        Raises: ValueError for ids outside the vocabulary. `chunk` bounds the memory used on the way.
        """
        edits = self.edits_in_force()
        if ids is None:
            ids = torch.arange(self.config.vocab_size)
        ids = torch.as_tensor(ids, dtype=torch.int64)
        if ids.dim() != 1 or ((ids < 0) | (ids >= self.config.vocab_size)).any():
            raise ValueError(f"ids must be a list of numbers from 0 to {self.config.vocab_size - 1}")
        was_training = self.training
        self.eval()
        try:
            chunks = ids.to(self.wte.weight.device).split(chunk)
            parts = [self._senses(part, self.wte(part), edits) for part in chunks]
        finally:
            self.train(was_training)
        return torch.cat(parts)  # (N, K, D)

    @torch.no_grad()
    def contextualization(self, input_ids: Tensor, edits: Edits | None = None) -> Tensor:
        """α (B, K, T, T) of input_ids (B, T): α[b,l,i,j] weighs sense l of token j at position i.

        Under the edits in force, which may change it, or under `edits`. Raises: ValueError for unfit ids.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.block_size)
        edits = edits or self.edits_in_force()
        was_training = self.training
        self.eval()
        try:
            h = self.context(self.wte(input_ids))  # (B, T, D)
            alpha = self.alpha.weights(*self.alpha.queries_keys(h))
            if edits.on_weights:
                flat = input_ids.flatten()
                senses = self._senses(flat, self.wte(flat), edits).unflatten(0, input_ids.shape)
                alpha = edits.weights(alpha, TextSoFar(input_ids, senses.transpose(1, 2), self.wte.weight))
            return alpha
        finally:
            self.train(was_training)
