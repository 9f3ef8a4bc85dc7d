"""A Backpack language model (Hewitt et al. 2023, arXiv 2305.16765) for the transformers library.

    logits[b,i] = E · Σ_j≤i Σ_l  α[b,l,i,j] · C(x[b,j])[l]

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    out = model(input_ids, output_attentions=True, output_senses=True)
    out.attentions[0]       # α (B, K, T, S): how much each sense of each earlier token counts
    out.senses              # C of the tokens (B, T, K, D)
    model.sense_vectors()   # C of the whole vocabulary (V, K, D)

This file goes with each exported model and needs torch and transformers alone (MIT licence). Modules and
settings have the names of nanobackpack's own, so its load_model opens whatever save_pretrained writes.

The sum is one more attention layer: K heads, whose values are the senses, D numbers wide, and whose results
are added up. So the cache has a layer more than there are blocks: α's keys, and the senses of the tokens.

Letters: B batch, T new tokens, S tokens that they see, D width, K senses, V vocabulary, H heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

SETTINGS = {  # nanobackpack's ModelConfig, and two of the library's
    "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "n_sense_vector": 16, "vocab_size": 50304,
    "vocab_used": 0, "sense_network": "nano", "sense_table": False, "context_network": "gpt2", "dropout": 0.0,
    "bias": False,
    "scale_attn_by_inverse_layer_idx": False, "sense_intermediate_scale": 4, "alpha_dropout": False,
    "gelu": "tanh", "use_cache": True, "initializer_range": 0.02,
}  # fmt: skip


class BackpackConfig(PretrainedConfig):
    model_type = "nanobackpack"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd", "num_attention_heads": "n_head", "max_position_embeddings": "block_size"
    }  # fmt: skip

    def __init__(self, **kwargs):
        for name, default in SETTINGS.items():
            setattr(self, name, kwargs.pop(name, default))
        none = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        super().__init__(**{"tie_word_embeddings": True} | none | kwargs)

    @property
    def n_block(self):
        """Transformer blocks: the nano sense network counts as a layer of n_layer."""
        return self.n_layer - (self.sense_network == "nano")

    @property
    def num_hidden_layers(self):
        """Layers of the cache: the blocks, and the sum of senses."""
        return self.n_block + 1


# --- The context ------------------------------------------------------------------------------


def additive_mask(given: Tensor | None, at: Tensor, S: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores (B, H, T, S): 0 where a token may look, else the lowest number there is.

    `given`: None, 1 for tokens and 0 for padding (B, N), or a mask that is ready, taken as it is. `at`: the
    places of the new tokens among all (T).
    """
    if given is not None and given.dim() == 4:
        if given.dtype != torch.bool:
            return given
        allowed = given
    else:
        i, j = at[:, None], torch.arange(S, device=at.device)  # (T, 1), (S)
        allowed = (j <= i)[None, None]  # (1, 1, T, S)
        if given is not None:
            # Padding looks at itself, for a softmax over nothing is no number.
            real = F.pad(given.bool(), (0, S - given.size(1)))  # (B, S)
            allowed = (allowed & real[:, None, None]) | (i == j)  # (B, 1, T, S)
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Turn the numbers of x (B, H, T, d) in pairs, by angles that grow with the positions (B or 1, T)."""
    half = x.size(-1) // 2
    speed = 10_000 ** -(torch.arange(half, device=x.device) / half)  # (d/2), from fast to slow
    angle = positions[:, None, :, None] * speed  # (B or 1, 1, T, d/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # (B, H, T, d/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)  # (B, H, T, d)


class BackpackMLP(nn.Module):
    def __init__(self, d_in, d_out, config, scale=4):
        super().__init__()
        self.c_fc = nn.Linear(d_in, scale * d_in, bias=config.bias)
        self.c_proj = nn.Linear(scale * d_in, d_out, bias=config.bias)
        self.c_proj.begins_smaller = True
        self.approximate = "none" if config.gelu == "exact" else "tanh"
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.drop(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


class BackpackAttention(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        D = config.n_embd
        self.n_head, self.index, self.dropout = config.n_head, index, config.dropout
        self.scale = 1.0 / math.sqrt(D // config.n_head)
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= index + 1
        self.c_attn = nn.Linear(D, 3 * D, bias=config.bias)
        self.c_proj = nn.Linear(D, D, bias=config.bias)
        self.c_proj.begins_smaller = True
        self.drop = nn.Dropout(config.dropout)
        modern = config.context_network == "modern"
        self.gain = nn.Parameter(torch.ones(config.n_head, 1, 1)) if modern else None

    def forward(self, x, positions, mask, cache):
        q, k, v = self.c_attn(x).unflatten(2, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D/H)
        if self.gain is not None:
            q, k = (rotate(F.rms_norm(t, t.shape[-1:]), positions) for t in (q, k))
            q = q * self.gain
        if cache is not None:
            k, v = cache.update(k, v, self.index)  # (B, H, S, D/H)
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, scale=self.scale)
        return self.drop(self.c_proj(y.transpose(1, 2).flatten(2)))  # (B, T, D)


class BackpackBlock(GradientCheckpointingLayer):
    def __init__(self, config, index):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = BackpackAttention(config, index)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = BackpackMLP(config.n_embd, config.n_embd, config)

    def forward(self, x, positions, mask, past_key_values=None):
        x = x + self.attn(self.ln_1(x), positions, mask, past_key_values)
        return x + self.mlp(self.ln_2(x))


class BackpackContext(nn.Module):
    def __init__(self, config):
        super().__init__()
        modern = config.context_network == "modern"
        self.wpe = None if modern else nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(BackpackBlock(config, i) for i in range(config.n_block))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def forward(self, x, positions, mask, cache):
        """Embeddings (B, T, D) → the input of each block and the contextual vectors, (B, T, D) each."""
        states = [self.drop(x if self.wpe is None else x + self.wpe(positions))]
        for block in self.h:
            states.append(block(states[-1], positions, mask, past_key_values=cache))
        return *states[:-1], self.ln_f(states[-1])


# --- C and α ----------------------------------------------------------------------------------


class BackpackNanoSenses(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.ff_1, self.ln_1 = BackpackMLP(D, D, config), nn.LayerNorm(D, bias=config.bias)
        self.ff_2, self.ln_2 = BackpackMLP(D, K * D, config), nn.LayerNorm(K * D, bias=config.bias)

    def forward(self, e):
        u = self.ln_1(e + self.ff_1(e))  # (..., D)
        w = self.ff_2(u).unflatten(-1, (-1, u.size(-1))) + u.unsqueeze(-2)  # (..., K, D)
        return self.ln_2(w.flatten(-2)).view_as(w)  # one norm over all K·D numbers


class BackpackPaperSenses(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, K = config.n_embd, config.n_sense_vector
        self.ln_0, self.ln_1, self.ln_2 = (nn.LayerNorm(D, bias=config.bias) for _ in range(3))
        self.mlp = BackpackMLP(D, D, config)
        self.final_mlp = BackpackMLP(D, K * D, config, config.sense_intermediate_scale)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, e):
        r = self.drop(e)
        r = self.drop(self.ln_0(r)) + r
        r = self.drop(self.mlp(self.ln_1(r))) + r
        return self.final_mlp(self.ln_2(r)).unflatten(-1, (-1, r.size(-1)))  # (..., K, D)


class BackpackSenseTable(nn.Module):
    """C as a table (V, K, D), in place of a network: that of a model whose edits were baked."""

    def __init__(self, config):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(config.vocab_size, config.n_sense_vector, config.n_embd))

    def forward(self, ids):
        return self.table[ids]  # (..., K, D)


class BackpackSenseWeights(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, K, nano = config.n_embd, config.n_sense_vector, config.sense_network == "nano"
        self.n_sense, self.index = K, config.n_block
        self.scale = 1.0 if nano else 1.0 / math.sqrt(D // K)
        self.dropout = config.dropout if nano or config.alpha_dropout else 0.0  # on α itself
        self.c_attn = nn.Linear(D, 2 * D, bias=config.bias and not nano)
        self.rotary = config.context_network == "modern"

    def forward(self, h, senses, positions, mask, cache, need_alpha):
        """Contextual vectors (B, T, D) and senses (B, T, K, D) → Σ α C (B, T, D), and α if it is needed."""
        q, k = self.c_attn(h).unflatten(2, (2, self.n_sense, -1)).permute(2, 0, 3, 1, 4)  # (B, K, T, D/K)
        if self.rotary:
            q, k = rotate(q, positions), rotate(k, positions)
        c = senses.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            k, c = cache.update(k, c, self.index)  # (B, K, S, D/K), (B, K, S, D)
        p = self.dropout if self.training else 0.0
        if not need_alpha:
            o = F.scaled_dot_product_attention(q, k, c, attn_mask=mask, dropout_p=p, scale=self.scale)
            return o.sum(1), None
        alpha = ((q @ k.mT).float() * self.scale + mask).softmax(-1).to(q.dtype)  # (B, K, T, S)
        return (F.dropout(alpha, p) @ c).sum(1), alpha


# --- The model --------------------------------------------------------------------------------


@dataclass
class BackpackOutput(CausalLMOutputWithPast):
    """As of any causal language model: `attentions` has α (B, K, T, S) alone; `senses` is (B, T, K, D)."""

    senses: Tensor | None = None


class BackpackForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = BackpackConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _input_embed_layer = "wte"
    _no_split_modules = ["BackpackBlock"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "wte.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # E
        self.context = BackpackContext(config)
        self.alpha = BackpackSenseWeights(config)
        network = BackpackNanoSenses if config.sense_network == "nano" else BackpackPaperSenses
        self.senses = (BackpackSenseTable if config.sense_table else network)(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # tied: E too
        self.post_init()

    def resize_token_embeddings(self, new_num_tokens=None, *args, **kwargs):
        """Also give new tokens senses in a table: the mean of those that are there."""
        wte = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if self.config.sense_table:
            old = self.senses.table.data  # (V, K, D)
            more = old.mean(0, keepdim=True).expand(max(0, wte.num_embeddings - len(old)), -1, -1)
            self.senses.table = nn.Parameter(torch.cat([old[: wte.num_embeddings], more]))
        return wte

    def _init_weights(self, module):
        std = self.config.initializer_range
        if hasattr(module, "begins_smaller"):  # since what it gives is added up
            std /= math.sqrt(2 * self.config.n_layer)
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, BackpackAttention) and module.gain is not None:
            nn.init.ones_(module.gain)
        elif isinstance(module, BackpackSenseTable):
            nn.init.normal_(module.table, std=std)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def _prepare_generated_length(self, generation_config, **kwargs):
        if generation_config.max_new_tokens is not None:
            generation_config.max_length = None  # of the two it counts: no need to warn
        found = super()._prepare_generated_length(generation_config=generation_config, **kwargs)
        found.max_length = min(found.max_length, self.config.block_size)  # where positions end
        return found

    @can_return_tuple
    def forward(
        self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, labels=None,
        use_cache=None, output_attentions=None, output_hidden_states=None, output_senses=False,
        logits_to_keep=0, **kwargs,
    ):  # fmt: skip
        T, pad = input_ids.size(1), self.generation_config.pad_token_id
        if pad == self.config.vocab_size:  # of a tokenizer without one: it is no row of E, so take any
            input_ids = input_ids.masked_fill(input_ids == pad, 0)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        if isinstance(start, int) and start + T > self.config.block_size:
            raise ValueError(f"{start + T} tokens, but this model takes at most {self.config.block_size}")
        at = torch.arange(T, device=input_ids.device) + start  # (T)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -T:]  # (B, T), real tokens
        elif position_ids is None:
            position_ids = at[None]  # (1, T)
        # A cache of a fixed size is full of keys that no token may look at yet.
        layers = past_key_values.layers if past_key_values is not None else []
        S = getattr(layers[0], "max_cache_len", None) if layers else None
        e = self.wte(input_ids)  # (B, T, D)
        mask = additive_mask(attention_mask, at, S or start + T, e.dtype)  # (B or 1, 1, T, S)

        *states, h = self.context(e, position_ids, mask, past_key_values)  # (B, T, D)
        senses = self.senses(input_ids if self.config.sense_table else e)  # (B, T, K, D)
        o, alpha = self.alpha(
            h, senses, position_ids, mask, past_key_values, bool(output_attentions)
        )  # (B, T, D)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(o[:, kept])  # (B, T, V): E · Σ α C
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.size(-1), **kwargs)
        asked = {"past_key_values": past_key_values} if use_cache else {}
        asked |= {"hidden_states": (*states, h)} if output_hidden_states else {}
        asked |= {"attentions": (alpha,)} if output_attentions else {}
        asked |= {"senses": senses} if output_senses else {}
        return BackpackOutput(loss=loss, logits=logits, **asked)

    @torch.no_grad()
    def sense_vectors(self, ids=None):
        """C of ids (N), or of all: (N, K, D). Call it in eval mode."""
        ids = torch.arange(self.config.vocab_size) if ids is None else torch.as_tensor(ids)
        parts = ids.to(self.wte.weight.device).split(4096)
        return torch.cat([self.senses(i if self.config.sense_table else self.wte(i)) for i in parts])


BackpackConfig.register_for_auto_class()
BackpackForCausalLM.register_for_auto_class("AutoModelForCausalLM")
