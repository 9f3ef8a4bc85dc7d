"""Checkpoints of other programs, in and out, always without unpickling code.

    nanoBackpackLM   ckpt.pt: a Backpack with the nano sense network, or its GPT
    backpack-gpt2    folder with config.json and pytorch_model.bin or model.safetensors
    GPT-2            folder in Hugging Face layout

Each layout is one function from our parameter name to its foreign name and a reordering of its numbers;
reading and writing both go through it. Copies of a tied tensor must be equal, and nothing may be left over.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig
from nanobackpack.errors import InputError, short_repr
from nanobackpack.model.backpack import LanguageModel

State = dict[str, Tensor]
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CONV1D = re.compile(r"(attn|mlp|final_mlp)\.c_(attn|fc|proj)\.weight$")  # stored (in, out) by GPT-2


@dataclass(frozen=True)
class Layout:
    """How a foreign program names and orders the numbers of a model."""

    title: str
    prefixes: tuple[tuple[str, str], ...]  # (ours, theirs): the first that fits is exchanged
    tied: tuple[str, ...]  # their further names of our wte.weight
    transpose: bool = False  # linear weights stored (in, out), but for α's
    interleave: bool = False  # sense fastest: number i of sense l at i·K + l instead of l·D + i
    positions: tuple[str, ...] = ()  # their further names of our context.wpe.weight

    def key(self, name: str) -> str:
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        raise KeyError(name)

    def reorder(self, name: str, t: Tensor, config: ModelConfig, inward: bool) -> Tensor:
        """Their numbers in our order (inward), or ours in theirs."""
        if self.transpose and not name.startswith("alpha.") and CONV1D.search(name):
            return t.t().contiguous()
        if self.interleave and name.startswith(("senses.ff_2.c_proj.", "senses.ln_2.")):
            D, K = config.n_embd, config.n_sense_vector
            outer = (D, K) if inward else (K, D)
            return t.unflatten(0, outer).transpose(0, 1).flatten(0, 1).contiguous()
        return t


OWN = Layout(title="nanobackpack", prefixes=(("", ""),), tied=())
_NANO = "backpack.contextualization_layer."
NANO = Layout(
    title="nanoBackpackLM",
    prefixes=(
        ("wte.", "wte."),
        ("context.", _NANO + "transformer."),
        ("alpha.", _NANO),
        ("senses.", "backpack.sense_vector_layer."),
    ),
    tied=(
        "backpack.logit_layer.lm_head.weight",
        "backpack.sense_vector_layer.wte.weight",
        _NANO + "transformer.wte.weight",
    ),
    interleave=True,
)
PAPER = Layout(
    title="backpack-gpt2",
    prefixes=(
        ("wte.", "backpack.gpt2_model.wte."),
        ("context.", "backpack.gpt2_model."),
        ("alpha.", "backpack.sense_weight_net."),
        ("senses.ln_0.", "backpack.sense_network.ln."),
        ("senses.final_mlp.", "backpack.sense_network.final_mlp."),
        ("senses.", "backpack.sense_network.block."),
    ),
    tied=("backpack.word_embeddings.weight", "lm_head.weight"),
    positions=("backpack.position_embeddings.weight",),
    transpose=True,
)
NANO_GPT = Layout(
    title="nanoGPT",
    prefixes=(("wte.", "transformer.wte."), ("context.", "transformer.")),
    tied=("lm_head.weight",),
)
GPT2 = Layout(
    title="GPT-2",
    prefixes=NANO_GPT.prefixes,
    tied=NANO_GPT.tied,
    transpose=True,
)
# Buffers that hold the causal mask. The leading dot matters: `attn.c_attn.bias` is a real parameter.
BUFFERS = (".attn.bias", ".attn.masked_bias", "contextualization_layer.bias")

# Padded vocabularies: embedding rows → real tokens, of GPT-2, Chinese BERT and XLM-R.
PADDED = {50264: 50257, 50304: 50257, 21184: 21128, 250048: 250002}


def import_state(model: LanguageModel, state: State, layout: Layout, source: str) -> None:
    """Fill model with foreign tensors.

    Raises: InputError naming the tensor that is missing, left over, misshapen, of the wrong type, not
    finite, or tied to another value.
    """
    state = {k.removeprefix("_orig_mod."): v for k, v in state.items() if not k.endswith(BUFFERS)}
    for key, t in state.items():
        if t.dtype not in WEIGHTS:
            allowed = ", ".join(str(kind).removeprefix("torch.") for kind in WEIGHTS)
            raise InputError(f"{source}: {key[:99]} ({t.dtype}) is of no type that weights have: {allowed}")
    ours: State = {}
    for name, p in model.named_parameters():
        key = layout.key(name)
        if key not in state:
            raise InputError(f"{source}: no tensor {key} for a {layout.title} model")
        t, wanted = state.pop(key), layout.reorder(name, p.detach().to("meta"), model.config, inward=False)
        if t.shape != wanted.shape:
            raise InputError(f"{source}: {key} has shape {tuple(t.shape)}, it must be {tuple(wanted.shape)}")
        if not t.isfinite().all():
            raise InputError(f"{source}: {key} ({t.dtype}) holds other things than finite numbers")
        ours[name] = layout.reorder(name, t, model.config, inward=True)
    for name, copies in (("wte.weight", layout.tied), ("context.wpe.weight", layout.positions)):
        for key in copies:
            if key in state and not torch.equal(state.pop(key), ours[name]):
                raise InputError(f"{source}: {key} differs from {layout.key(name)}, but they must be tied")
    if state:
        raise InputError(f"{source}: unknown tensor {next(iter(state))[:99]} ({len(state)} in all)")
    model.load_state_dict(ours)


def export_state(model: LanguageModel, layout: Layout) -> State:
    """The model's tensors under the foreign names and in the foreign order; tied copies share memory.

    Raises: InputError for a model whose senses are a table, which no foreign layout can hold.
    """
    if model.config.sense_table:
        raise InputError(
            f"senses baked into a table do not fit the layout of {layout.title}: export the model it was "
            "baked from, and keep this one as a checkpoint of nanobackpack (checkpoint.save_model)"
        )
    state: State = {}
    for name, p in model.named_parameters():
        t = layout.reorder(name, p.detach(), model.config, inward=False)
        state[layout.key(name)] = t
        copies = {"wte.weight": layout.tied, "context.wpe.weight": layout.positions}.get(name, ())
        state |= dict.fromkeys(copies, t)
    return state


def check_tensors(state: dict[Any, Any], source: str) -> None:
    """Raises InputError unless state maps names to tensors."""
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{source}: these are no weights, which would map names to tensors")


def read_nano(checkpoint: dict[str, Any], source: str) -> tuple[ModelConfig, State, Layout]:
    """A nanoBackpackLM (or nanoGPT) ckpt.pt as loaded: what it is, and its tensors.

    Raises: InputError if keys or values are missing or make no sense.
    """
    state, args = checkpoint.get("model"), checkpoint.get("model_args")
    if not isinstance(state, dict) or not isinstance(args, dict):
        raise InputError(
            f"{source}: no checkpoint of nanobackpack or nanoBackpackLM: model, model_args are missing"
        )
    check_tensors(state, source)
    backpack = any("sense_vector_layer." in k for k in state)
    names = ["n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"]
    names += ["n_sense_vector"] * backpack
    if missing := [n for n in names if n not in args]:
        raise InputError(f"{source}: model_args has no {missing[0]}")
    kind = {"model_name": "backpack-lm" if backpack else "gpt2"}
    config = model_config(kind | {n: args[n] for n in names}, source)
    return _unpadded(config), state, NANO if backpack else NANO_GPT


def model_config(args: dict[str, Any], source: str) -> ModelConfig:
    """The settings a file gives. Raises: InputError, naming the file, if they are no model's."""
    if unknown := args.keys() - {f.name for f in dataclasses.fields(ModelConfig)}:
        raise InputError(f"{source}: model_args are not those of this version ({short_repr(unknown.pop())})")
    try:
        return ModelConfig(**args)
    except InputError as e:
        raise InputError(f"{source}: {e}") from None


def _unpadded(config: ModelConfig) -> ModelConfig:
    """The settings with padded ids told apart, where the size of the vocabulary is a known one."""
    return dataclasses.replace(config, vocab_used=PADDED.get(config.vocab_size, 0))


def read_hugging_face(config: dict[str, Any], state: State, source: str) -> tuple[ModelConfig, State, Layout]:
    """A folder in Hugging Face layout: backpack-gpt2, or GPT-2 with its language-model head.

    Raises: InputError if it is another kind of model or has a setting we do not implement.
    """
    check_tensors(state, source)
    backpack = any(k.startswith("backpack.") for k in state)
    if not backpack and config.get("model_type") != "gpt2":
        raise InputError(
            f"{source}: model_type {short_repr(config.get('model_type'))} is not supported: "
            "gpt2 and backpack-gpt2 are"
        )
    width = config.get("n_embd")
    wanted = {
        "activation_function": ("gelu_new",),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * width if isinstance(width, int) else None),
        "scale_attn_weights": (True,),
        "sense_intermediate_scale": (4,),
        "tie_word_embeddings": (True,),
    }
    for name, allowed in wanted.items():
        if name in config and config[name] not in allowed:
            raise InputError(
                f"{source}: {name}={short_repr(config[name])} is not supported, only {allowed[0]!r}"
            )
    names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size") + ("num_senses",) * backpack
    if missing := [n for n in names if n not in config]:
        raise InputError(f"{source}: config.json has no {missing[0]}")
    kind: dict[str, Any] = {"model_name": "gpt2"}
    if backpack:
        kind = {
            "model_name": "backpack-lm",
            "sense_network": "paper",
            "n_sense_vector": config["num_senses"],
        }
    elif not any(k.startswith("transformer.") for k in state):  # saved from GPT2Model: no prefix, no head
        state = {"transformer." + k: v for k, v in state.items()}
    kind |= {name: config[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    kind |= {"block_size": config["n_positions"], "bias": True, "dropout": config.get("resid_pdrop", 0.0)}
    inverse = "scale_attn_by_inverse_layer_idx"
    kind[inverse] = config.get(inverse, False)
    return _unpadded(model_config(kind, source)), state, PAPER if backpack else GPT2
