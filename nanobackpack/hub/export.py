"""Models as other programs open them: a folder for transformers, backpack-gpt2's class or nanoBackpackLM.

    export(model, Path("king"), card=about(model, "out-en"))     # hub/card.py
    AutoModelForCausalLM.from_pretrained("king", trust_remote_code=True)

    transformers     config.json, model.safetensors, generation_config.json, and for a Backpack the code that
                     runs it, modeling_backpack.py; a GPT is GPT-2, which is part of the library
    backpack-gpt2    config.json and pytorch_model.bin for the paper's class: its sense network, with biases
    nanobackpacklm   ckpt.pt for nanoBackpackLM's sample.py; the nano sense network, or a GPT
all with tokenizer.json and tokenizer_config.json, where the model has a tokenizer, but the last. load_model
opens each of them. A model that a layout cannot hold is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tokenizers as hf
import torch
from tokenizers.processors import TemplateProcessing

from nanobackpack.errors import InputError, first_line
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.layouts import GPT2, NANO, NANO_GPT, PAPER, export_state
from nanobackpack.safe.files import display_path
from nanobackpack.text.tokenizer import Tokenizer


def export(model: LanguageModel, folder: Path, layout: str = "transformers", card: str = "") -> None:
    """Write a model into a new folder, all of it or nothing; `card` becomes its README.md."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{display_path(folder)} is there already: give the name of a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        new = Path(beside) / "model"
        new.mkdir()
        WRITERS[layout](model, new)
        if card:
            (new / "README.md").write_text(card, encoding="utf-8")
        os.replace(new, folder)


def push(folder: Path, name: str) -> None:
    """Put the folder of an export on the Hugging Face hub, as user/name."""
    from huggingface_hub import HfApi  # slow to import

    try:
        HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # no network, no such user, no token: each has a type of its own
        raise InputError(
            f"{folder} is written, but cannot be put on the hub as {name} ({first_line(error)}): log in with "
            f"`hf auth login`, then `hf upload {name} {folder}`"
        ) from None


# --- transformers -----------------------------------------------------------------------------


def _transformers(model: LanguageModel, folder: Path) -> None:
    if not find_spec("transformers"):
        raise InputError("export needs transformers: pip install 'nanobackpack[hub]'")
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    from nanobackpack.hub.modeling_backpack import BackpackConfig, BackpackForCausalLM

    settings = dataclasses.asdict(model.config)
    del settings["model_name"]
    other: Any
    if isinstance(model, BackpackLM):
        other, state = BackpackForCausalLM(BackpackConfig(**settings)), model.state_dict()
        state["lm_head.weight"] = state["wte.weight"]
    else:
        other = GPT2LMHeadModel(GPT2Config(**_gpt2_settings(model)))
        # GPT-2 always has biases: those of a model without are 0.
        zeros = {name: torch.zeros_like(t) for name, t in other.state_dict().items() if name.endswith("bias")}
        state = zeros | export_state(model, GPT2)
    other.load_state_dict(state)
    other.tie_weights()
    other.generation_config = GenerationConfig(**_generation(model))
    watched = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        other.save_pretrained(folder)
    finally:
        logging.enable_progress_bar() if watched else None
    _write_tokenizer(model, folder)


def _generation(model: LanguageModel) -> dict[str, Any]:
    """How it generates as ours does: as far as positions were learned, never what stands for no text."""
    n, tokenizer = model.config.n_token, model.tokenizer
    never = [*(tokenizer.unsampled_ids if tokenizer else ()), *range(n, model.config.vocab_size)]
    settings: dict[str, Any] = {"max_length": model.config.block_size, "suppress_tokens": never or None}
    if tokenizer:
        roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": _padding(tokenizer)}
        settings |= {f"{role}_token_id": i for role, i in roles.items() if i is not None}
    return settings


def _padding(tokenizer: Tokenizer) -> int | None:
    """What fills up the shorter texts of a batch: it is never looked at, so the end of a document will do."""
    padding = [tokenizer.special[name] for name in ("[PAD]", "<pad>") if name in tokenizer.special]
    return padding[0] if padding else tokenizer.eos_id


def _write_tokenizer(model: LanguageModel, folder: Path) -> None:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return
    name_of = {i: name for name, i in tokenizer.special.items()}
    inner, bos = hf.Tokenizer.from_str(tokenizer.to_json()), tokenizer.bos_id
    if bos is not None:  # BERT's own would also end each prompt
        template = [name_of[bos], "$A"]
        inner.post_processor = TemplateProcessing(
            single=template, pair=[*template, "$B"], special_tokens=[(name_of[bos], bos)]
        )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.config.block_size,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    roles = {"bos": bos, "eos": tokenizer.eos_id, "pad": _padding(tokenizer), "unk": tokenizer.unknown_id}
    settings |= {f"{role}_token": name_of[i] for role, i in roles.items() if i in name_of}
    inner.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _gpt2_settings(model: LanguageModel) -> dict[str, Any]:
    """The settings of GPT-2 and of backpack-gpt2, by their names there."""
    c = model.config
    settings: dict[str, Any] = {
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "vocab_size": c.vocab_size,
    }
    settings |= {f"{part}_pdrop": c.dropout for part in ("embd", "attn", "resid")}
    settings["scale_attn_by_inverse_layer_idx"] = c.scale_attn_by_inverse_layer_idx
    return settings | {"n_positions": c.block_size}


# --- The others -------------------------------------------------------------------------------


def _backpack_gpt2(model: LanguageModel, folder: Path) -> None:
    state = export_state(model, PAPER)
    settings = _gpt2_settings(model) | {
        "architectures": ["BackpackGPT2LMHeadModel"],
        "model_type": "backpack-gpt2",
        "num_senses": model.config.n_sense_vector,
        "sense_intermediate_scale": 4,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_inner": None,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    torch.save(state, folder / "pytorch_model.bin")
    _write_tokenizer(model, folder)


def _nanobackpacklm(model: LanguageModel, folder: Path) -> None:
    layout = NANO if isinstance(model, BackpackLM) else NANO_GPT
    state, c = export_state(model, layout), model.config
    # Masks, which its modules hold besides.
    context = layout.key("context.")
    masked = [f"{context}h.{i}.attn.bias" for i in range(c.n_block if c.dropout else 0)]
    masked += [f"{NANO.key('alpha.')}bias"] if layout is NANO else []
    state |= dict.fromkeys(masked, torch.ones(c.block_size, c.block_size).tril()[None, None])
    names = ["n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"]
    names += ["n_sense_vector"] if layout is NANO else []
    args = {name: getattr(c, name) for name in names}
    torch.save({"model": state, "model_args": args}, folder / "ckpt.pt")


WRITERS: dict[str, Callable[[LanguageModel, Path], None]] = {
    "transformers": _transformers, "backpack-gpt2": _backpack_gpt2, "nanobackpacklm": _nanobackpacklm
}  # fmt: skip
