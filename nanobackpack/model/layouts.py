"""How other programs name and order the tensors of a model. train/checkpoint.py opens their files.

    nanoBackpackLM   ckpt.pt: a Backpack with the nano sense network, or nanoGPT's GPT
    backpack-gpt2    a folder with config.json and pytorch_model.bin or model.safetensors: the paper's model
    Levanter         such a folder, of a model that divides by K what its senses add up to
    Lightning        the .ckpt of a training run of the paper's
    GPT-2            a folder in Hugging Face's layout
    nanobackpack     a folder of `nanobackpack export` (hub/), or what transformers saved of one: our names

The tensors may also stand alone in a file, or under names to which a wrapper put its own. What settings they
do not tell by their shapes then come from a config.json beside them.

The numbers are those of our models, under other names and partly in another order. Take the layer that ends
the sense network, whose output is K senses of D numbers:

    ours             senses.ff_2.c_proj.weight or senses.final_mlp.c_proj.weight, (K·D, 4·D): row l·D + i
                     computes number i of sense l
    nanoBackpackLM   backpack.sense_vector_layer.ff_2.c_proj.weight, interleaved: that row is number i·K + l.
                     With K = 2, D = 3 and senses a, b: ours a0 a1 a2 b0 b1 b2, theirs a0 b0 a1 b1 a2 b2
    backpack-gpt2    backpack.sense_network.final_mlp.c_proj.weight, transposed as all linear layers of GPT-2
                     are: (4·D, K·D), input first, where torch has (output, input)

A Layout says this for one program, and reading and writing both go through it. Tensors that are one here but
stored more than once there (the tied embedding) must be equal, and nothing may be missing or left over.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.config import ModelConfig
from nanobackpack.errors import InputError, first_few, short_repr
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.safe import download
from nanobackpack.safe.files import read_json
from nanobackpack.safe.untrusted import found_in, load_untrusted, read_index

State = dict[str, Tensor]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How another program names and orders the numbers of a model; all patterns match our names."""

    title: str
    prefixes: dict[str, str]  # our beginning of a name: theirs; the first that fits counts
    copies: dict[str, tuple[str, ...]]  # our name: their further names of the same tensor
    transposed: re.Pattern[str] | None = None  # weights stored (in, out)
    interleaved: re.Pattern[str] | None = None  # number i of sense l stored at i·K + l instead of l·D + i
    holds: dict[str, Any] = field(default_factory=dict)  # the settings of all models that it has

    def key(self, name: str) -> str:
        """Their name of our parameter."""
        ours = next(prefix for prefix in self.prefixes if name.startswith(prefix))
        return self.prefixes[ours] + name.removeprefix(ours)

    def reorder(self, name: str, t: Tensor, config: ModelConfig, inward: bool) -> Tensor:
        """Their numbers in our order (inward), or ours in theirs."""
        if self.transposed and self.transposed.match(name):
            return t.t().contiguous()
        if self.interleaved and self.interleaved.match(name):
            D, K = config.n_embd, config.n_sense_vector
            outer = (D, K) if inward else (K, D)
            return t.unflatten(0, outer).transpose(0, 1).flatten(0, 1).contiguous()  # (K·D, ...)
        return t


Read = tuple[ModelConfig, State, Layout]
_NANO_ALPHA = "backpack.contextualization_layer."
NANO = Layout(
    title="nanoBackpackLM",
    prefixes={
        "wte.": "wte.",
        "context.": _NANO_ALPHA + "transformer.",
        "alpha.": _NANO_ALPHA,
        "senses.": "backpack.sense_vector_layer.",
    },
    copies={
        "wte.weight": (
            "backpack.logit_layer.lm_head.weight",
            "backpack.sense_vector_layer.wte.weight",
            _NANO_ALPHA + "transformer.wte.weight",
        )
    },
    interleaved=re.compile(r"senses\.(ff_2\.c_proj|ln_2)\."),
    holds={
        "model_name": "backpack-lm",
        "sense_network": "nano",
        "scale_attn_by_inverse_layer_idx": False,
        "gelu": "tanh",
        "context_network": "gpt2",
    },
)
PAPER = Layout(
    title="backpack-gpt2",
    prefixes={
        "wte.": "backpack.gpt2_model.wte.",
        "context.": "backpack.gpt2_model.",
        "alpha.": "backpack.sense_weight_net.",
        "senses.ln_0.": "backpack.sense_network.ln.",
        "senses.final_mlp.": "backpack.sense_network.final_mlp.",
        "senses.": "backpack.sense_network.block.",
    },
    copies={
        "wte.weight": ("backpack.word_embeddings.weight", "lm_head.weight"),
        "context.wpe.weight": ("backpack.position_embeddings.weight",),
    },
    transposed=re.compile(r"(context|senses)\..*\bc_(attn|fc|proj)\.weight$"),  # but not those of α
    holds={"model_name": "backpack-lm", "sense_network": "paper", "bias": True, "context_network": "gpt2"},
)
NANO_GPT = Layout(
    title="nanoGPT",
    prefixes={"wte.": "transformer.wte.", "context.": "transformer."},
    copies={"wte.weight": ("lm_head.weight",)},
    holds={k: v for k, v in NANO.holds.items() if k != "sense_network"} | {"model_name": "gpt2"},
)
GPT2 = dataclasses.replace(
    NANO_GPT,
    title="GPT-2",
    transposed=PAPER.transposed,
    holds={"model_name": "gpt2", "context_network": "gpt2"},
)
OURS = Layout(title="nanobackpack", prefixes={"": ""}, copies=NANO_GPT.copies)
# Lightning's names: what backpack-gpt2 has in their place, one replaced after the other.
LIGHTNING = {
    "content_model.embeddings.": "embeddings.", "transformer.embeddings.": "backpack.",
    "transformer.": "backpack.", "gpt2_model.embeddings.word_embeddings": "gpt2_model.wte", "layers.": "h.",
    "gpt2_model.embeddings.position_embeddings": "gpt2_model.wpe", "gpt2_model.ln_0": "gpt2_model.h.0.ln_1",
    "content_model.h.0.norm": "content_model.h.0.ln_", "content_model.h.0": "sense_network.block",
    "content_model.ln_0": "sense_network.ln", "content_model": "sense_network", "norm1": "ln_2",
    "contextualization_attn.Wqkv": "sense_weight_net.c_attn", "mixer.Wqkv": "attn.c_attn",
    "mixer.out_proj": "attn.c_proj", "fc1": "c_fc", "fc2": "c_proj",
}  # fmt: skip

# Buffers: causal masks, the count of an average. The leading dot matters: `attn.c_attn.bias` is a parameter.
BUFFERS = (".attn.bias", ".attn.masked_bias", "contextualization_layer.bias", "n_averaged")
# What weights may be stored as.
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Padded vocabularies: embedding rows → real tokens, of GPT-2, Chinese BERT and XLM-R.
PADDED = {50264: 50257, 50304: 50257, 21184: 21128, 250048: 250002}
WTE, LAST = "wte.weight", "senses.final_mlp.c_proj.weight"
GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}  # Hugging Face's names: ours
CONTAINERS = ("model", "state_dict", "model_state_dict", "module")  # where checkpoints have tensors by name


def check_tensors(state: object, source: str) -> None:
    """Refuse what does not map names to tensors, and say what it is instead."""
    parts = state if isinstance(state, dict) else {type(state).__name__: state}
    if not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in parts.items()):
        found = (f"{k} ({first_few(part)})" if isinstance(part, dict) else k for k, part in parts.items())
        raise InputError(
            f"{source} holds {first_few(found)}: no weights, which map names to tensors, alone or as `model`"
        )


def unwrap(state: State, source: str) -> State:
    """The tensors without masks, under the names they had before a wrapper such as DDP put its own to all."""
    # torch.compile puts its own into the middle of names too, where it compiled a part.
    named = [(key.replace("_orig_mod.", ""), t) for key, t in state.items() if not key.endswith(BUFFERS)]
    if len(weights := dict(named)) < len(named):
        raise InputError(f"{source}: two tensors have the same name, but for _orig_mod.")
    # A tensor that a layout has tells what stands before all names.
    first = (NANO.key("senses.ff_2.c_proj.weight"), PAPER.key(WTE), "transformer.content_model.ln_0.weight")
    for known in (*first, NANO_GPT.key(WTE), WTE):
        found = next((key for key in weights if f".{key}".endswith(f".{known}")), "")
        prefix = found.removesuffix(known)
        if found and all(key.startswith(prefix) for key in weights):
            return {key.removeprefix(prefix): t for key, t in weights.items()}
    return weights


def least_params(config: ModelConfig) -> int:
    """Count nearly all parameters of a model, without building it."""
    V, D, K = config.vocab_size, config.n_embd, config.n_sense_vector
    inner = V if config.sense_table else config.sense_intermediate_scale * D
    senses = inner * K if config.model_name == "backpack-lm" else 0
    return D * (V + config.block_size + 12 * D * config.n_block + senses)


def check_size(config: ModelConfig, state: State, source: str) -> None:
    """Refuse settings that ask for a model far larger than the tensors, before it takes memory and time."""
    least = least_params(config)
    # Each takes a byte or more. Several tensors may be views of the same bytes, which count once.
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if least > sum(held.values()):
        raise InputError(
            f"{source}: {short_repr(config.n_block)} blocks with {short_repr(least)} parameters cannot be in "
            f"{sum(held.values())} bytes"
        )


def import_state(model: LanguageModel, state: State, layout: Layout | None, source: str) -> None:
    """Fill a model with the tensors of a file: in a foreign layout, or (None) under our own names.

    An error names the tensor that is missing, left over, misshapen, of the wrong type, not finite, or
    different from the one that it is tied to.
    """
    weights = unwrap(state, source)
    for key, t in weights.items():
        if t.dtype not in WEIGHT_TYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_TYPES)
            raise InputError(f"{source}: {key[:99]} ({t.dtype}) is of no type that weights have: {allowed}")
    ours = weights if layout is None else _translate(model, weights, layout, source)
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:  # torch lists all that is wrong, one thing a line
        raise InputError(f"{source}: {str(error).splitlines()[-1].strip()[:200]}") from None
    # Last, when nothing can be larger than the model: a file's tensors may claim any size.
    for name, p in model.named_parameters():
        if not all(map(torch.isfinite, p.aminmax())):  # the least and the greatest; either is NaN if any is
            key = layout.key(name) if layout else name
            raise InputError(f"{source}: {key} holds other things than finite numbers")


def _translate(model: LanguageModel, weights: State, layout: Layout, source: str) -> State:
    """Foreign tensors under our names and in our order."""
    left, ours = dict(weights), {}
    for name, p in model.named_parameters():
        key = layout.key(name)
        if key not in left:
            raise InputError(f"{source}: no tensor {key} for a {layout.title} model")
        # Ask for the shape that our parameter has in their order.
        t, wanted = left.pop(key), layout.reorder(name, p.detach().to("meta"), model.config, inward=False)
        if t.shape != wanted.shape:
            raise InputError(f"{source}: {key} has shape {tuple(t.shape)}, it must be {tuple(wanted.shape)}")
        ours[name] = layout.reorder(name, t, model.config, inward=True)
    for name, keys in layout.copies.items():
        for key in keys:
            if key in left and not torch.equal(left.pop(key), ours[name]):
                raise InputError(f"{source}: {key} differs from {layout.key(name)}, but they must be tied")
    if left:
        raise InputError(f"{source}: unknown tensor {next(iter(left))[:99]} ({len(left)} in all)")
    return ours


def export_state(model: LanguageModel, layout: Layout) -> State:
    """The model's tensors under the foreign names and in the foreign order; tied copies share memory."""
    if model.config.sense_table:
        raise InputError(
            f"senses baked into a table do not fit the layout of {layout.title}: export the model they were "
            "baked from; this one is kept whole by checkpoint.save_model, and load_model opens it"
        )
    for name, value in layout.holds.items():
        if (ours := getattr(model.config, name)) != value:
            raise InputError(f"{layout.title} has no model with {name}={ours}, only with {name}={value}")
    state: State = {}
    for name, p in model.named_parameters():
        t = layout.reorder(name, p.detach(), model.config, inward=False)
        state |= dict.fromkeys((layout.key(name), *layout.copies.get(name, ())), t)
    return state


def read_foreign(content: Settings, file: Path) -> Read:
    """The model in what was read from another program's file, or beside it: settings, tensors, layout."""
    source, beside = str(file), file.with_name("config.json")
    state = next((content[name] for name in CONTAINERS if name in content), content)
    check_tensors(state, source)
    settings = read_json(beside) if beside.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{beside} must hold an object of settings")
    args = content.get("model_args", content.get("config"))  # the second is build-nanogpt's name
    if isinstance(args, dict):
        # nanoBackpackLM and build-nanogpt have GPT-2's GELU. nanoGPT had it too, once, and does not say.
        told = (
            re.search("model_name|n_sense", f"{args}{content.get('config')}") or "model_args" not in content
        )
        gelu = settings.get("activation_function", "gelu_new" if told else None)
        return read_nano(args | {"activation_function": gelu}, state, source)
    if any("content_model." in key for key in state):
        return read_lightning(content, settings, state, source)
    if settings.get("model_type") == OURS.title:
        return read_export(settings, state, source)
    if settings.keys() & {"model_type", "n_positions"} or any("gpt2_model." in key for key in state):
        return read_hugging_face(settings, state, source)
    return read_nano(settings, state, source)


def read_nano(settings: Settings, state: State, source: str) -> Read:
    """The model_args and tensors of nanoBackpackLM or nanoGPT, as read_foreign gives them.

    Older ones lack some settings: the shapes of the tensors tell all but n_head and dropout.
    """
    state = unwrap(state, source)
    backpack = any(key.startswith("senses.") or "sense_vector_layer." in key for key in state)
    layout = OURS if "context.ln_f.weight" in state else NANO if backpack else None
    if not layout:
        state, layout = _as_gpt(state)
    known: dict[str, Any] = {"model_name": "backpack-lm" if backpack else "gpt2", "dropout": 0.0}
    known |= _sizes(state, layout, "senses.ff_2.c_proj.weight" if backpack else None, source)
    blocks = {m[1] for key in state if (m := re.search(r"\.h\.(\d+)\.", key))}
    known["n_layer"] = len(blocks) + backpack  # the sense network counts
    known["bias"] = any(key.endswith(".bias") for key in state)
    known |= {name: settings[name] for name in (*known, "n_head") if name in settings}
    if "n_head" not in known:
        what = (
            f"a {layout.title} model of {known['n_layer']} layers and width {known['n_embd']}, but no n_head"
        )
        raise InputError(f'{source}: {what}: put {{"n_head": NUMBER}} into a config.json beside it')
    gelu = settings.get("activation_function")
    if layout is NANO_GPT and gelu is None:
        way = 'put {"activation_function": "gelu"} into a config.json beside it'
        warnings.warn(
            f"{source} is read with GPT-2's GELU; if of nanoGPT since May 2023, {way}", stacklevel=1
        )
    known["gelu"] = GELU.get(str(gelu or "gelu_new"), gelu)
    return _with_padding(model_config(known, source)), state, layout


def _sizes(state: State, layout: Layout, last: str | None, source: str) -> dict[str, Any]:
    """What the shapes of the tensors tell; `last` is our name of the layer that ends the sense network."""
    try:
        V, D = state[layout.key(WTE)].shape
        sizes = {"vocab_size": V, "n_embd": D, "block_size": len(state[layout.key("context.wpe.weight")])}
        return sizes | ({"n_sense_vector": len(state[layout.key(last)]) // D} if last else {})  # K·D rows
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"no tensor {error.args[0]}" if isinstance(error, KeyError) else "odd tensors"
        raise InputError(f"{source}: {what} for a {layout.title} model among {first_few(state)}") from None


def _as_gpt(state: State) -> tuple[State, Layout]:
    """The tensors of a GPT under their full names, and in whose order they are."""
    if "wte.weight" in state:  # saved from what lies below the head
        state = {"transformer." + key: t for key, t in state.items()}
    shapes = [t.shape for key, t in state.items() if key.endswith(".c_attn.weight") and t.dim() == 2]
    return state, NANO_GPT if any(n > m for n, m in shapes) else GPT2  # (3·D, D), or GPT-2's (D, 3·D)


def read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    """Read the weights of a folder in Hugging Face's layout; return them, and their file or index."""
    for file in (folder / name for name in download.WEIGHTS):
        if file.is_file():
            return _read_shards(file) if file.suffix == ".json" else load_untrusted(file), file
    raise InputError(
        f"{folder} has config.json but neither model.safetensors nor pytorch_model.bin: {found_in(folder)}"
    )


def _read_shards(index: Path) -> State:
    """Read the tensors in all files that an index names."""
    shards = {index.with_name(name): tensors for name, tensors in read_index(index).items()}
    if missing := [file.name for file in shards if not file.is_file()]:
        raise InputError(
            f"{index} names {first_few(missing)}: not there, {len(missing)} of {len(shards)} files"
        )
    state: State = {}
    for file, tensors in shards.items():
        part = load_untrusted(file)
        if missing := [name for name in tensors if name not in part]:
            raise InputError(f"{file} has no {first_few(missing)}, which {index.name} says: fetch both again")
        state |= {name: part[name] for name in tensors}
    return state


def read_lightning(content: Settings, settings: Settings, state: State, source: str) -> Read:
    """A checkpoint of the paper's runs, as read_foreign gives it. What no shape tells, such as n_head, is in
    its hyper-parameters if these are plain values, else in a config.json beside it."""
    for name in ("hyper_parameters", "model", "config"):
        content = content[name] if isinstance(content.get(name), dict) else {}
    state = unwrap(state, source)
    n_layer = len({m[1] for key in state if (m := re.search(r"gpt2_model\.layers\.(\d+)\.", key))})

    def rename(key: str) -> str:
        for theirs, ours in LIGHTNING.items():
            key = key.replace(theirs, ours)
        # A block there begins after its first norm, and ends with that of the next block.
        key = re.sub(r"(?<=gpt2_model\.h\.)(\d{1,9})\.norm2", lambda m: f"{int(m[1]) + 1}.ln_1", key)
        return key.replace(f"gpt2_model.h.{n_layer}.ln_1", "gpt2_model.ln_f")

    state = {rename(key): t for key, t in state.items()}
    layout = dataclasses.replace(PAPER, title="Lightning", transposed=None)
    sizes = _sizes(state, layout, LAST, source)
    D = sizes["n_embd"]
    # With its shrink_final_inner both sense MLPs are D wide. In the first, where ours are 4·D, units that are
    # zero change nothing, and training leaves them so: their gradients are zero too.
    for part in ("c_fc.weight", "c_fc.bias", "c_proj.weight"):
        key = layout.key(f"senses.mlp.{part}")
        if key in state and {*state[key].shape} == {D}:
            state[key] = F.pad(state[key], (0, 0, 0, 3 * D) if part == "c_fc.weight" else (0, 3 * D))
    sizes |= {"n_positions": sizes["block_size"], "num_senses": sizes["n_sense_vector"], "n_layer": n_layer}
    sizes["sense_intermediate_scale"] = state[layout.key(LAST)].shape[-1] // D
    return read_hugging_face(content | settings | sizes, state, source, layout)


def read_hugging_face(settings: Settings, state: State, source: str, layout: Layout = PAPER) -> Read:
    """The config.json and tensors of a folder in Hugging Face's layout, as read_nano gives them.

    It holds a Backpack, or GPT-2 with its head or without; other settings than we compute are refused.
    """
    state = unwrap(state, source)
    backpack = any(k.startswith("backpack.") for k in state)
    if not backpack and settings.get("model_type") != "gpt2":
        raise InputError(
            f"{source}: model_type {short_repr(settings.get('model_type'))} is not supported: "
            "gpt2 and backpack-gpt2 are"
        )
    width = settings.get("n_embd")
    supported = {
        "activation_function": tuple(GELU),
        "layer_norm_epsilon": (1e-5,),
        "n_inner": (None, 4 * width if isinstance(width, int) else None),
        "scale_attn_weights": (True,),
        "tie_word_embeddings": (True,),
    }
    for name, allowed in supported.items():
        if name in settings and settings[name] not in allowed:
            raise InputError(
                f"{source}: {name}={short_repr(settings[name])} is not supported, only {short_repr(allowed)}"
            )
    inverse = "scale_attn_by_inverse_layer_idx"
    same_name = ("n_layer", "n_head", "n_embd", "vocab_size")
    if missing := [n for n in (*same_name, "n_positions", *["num_senses"] * backpack) if n not in settings]:
        raise InputError(f"{source}: no {missing[0]}: put it into a config.json beside it")
    ours = {name: settings[name] for name in same_name} | {
        "model_name": "backpack-lm" if backpack else "gpt2",
        "vocab_used": settings.get("vocab_used", 0),  # of exports
        "block_size": settings["n_positions"],
        "bias": True,
        "dropout": settings.get("resid_pdrop", 0.0),
        inverse: settings.get(inverse, backpack),  # the defaults of the published class and of GPT-2's
        "gelu": GELU[settings.get("activation_function", "gelu_new")],
    }
    # Levanter's class has this name, and no other program leaves model_type empty.
    named = f"{settings.get('auto_map')} {settings.get('architectures')}"
    levanter = backpack and ("BackpackLMHeadModel" in named or settings.get("model_type") == "")
    if backpack:
        scale = settings.get("sense_intermediate_scale", 4)
        ours |= {"sense_network": "paper", "n_sense_vector": settings["num_senses"]}
        ours |= {"sense_intermediate_scale": scale, "alpha_dropout": levanter}
    config = _with_padding(model_config(ours, source))
    # It divides the sum of the senses by K, which we do not: so divide the senses.
    for key in (PAPER.key(LAST), PAPER.key(LAST.replace("weight", "bias"))):
        if levanter and key in state and state[key].dtype in WEIGHT_TYPES:
            state[key] = state[key].float() / config.n_sense_vector
    return config, *((state, layout) if backpack else _as_gpt(state))


def read_export(settings: Settings, state: State, source: str) -> Read:
    """The config.json and tensors of an export for transformers, as read_nano gives them."""
    names = {f.name for f in dataclasses.fields(ModelConfig)} - {"model_name"}
    if missing := sorted(names - settings.keys()):
        raise InputError(f"{source}: config.json has no {missing[0]}")
    config = _with_padding(model_config({name: settings[name] for name in names}, source))
    return config, unwrap(state, source), OURS


def model_config(settings: dict[str, Any], source: str) -> ModelConfig:
    """The model a file describes; an error names the file."""
    if unknown := settings.keys() - {f.name for f in dataclasses.fields(ModelConfig)}:
        raise InputError(f"{source}: model_args are not those of this version ({short_repr(unknown.pop())})")
    try:
        return ModelConfig(**settings)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _with_padding(config: ModelConfig) -> ModelConfig:
    """The settings with padded ids told apart, if given or if the size of the vocabulary is a known one."""
    used = config.vocab_used or PADDED.get(config.vocab_size, 0)
    return dataclasses.replace(config, vocab_used=used % config.vocab_size)
