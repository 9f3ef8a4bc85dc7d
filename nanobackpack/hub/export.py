"""Models as other programs open them: a folder for transformers, backpack-gpt2's class or nanoBackpackLM.

    export(model, Path("king"), card=card(model, Path("out-en"), "king"))
    AutoModelForCausalLM.from_pretrained("king", trust_remote_code=True)

    transformers     config.json, model.safetensors, generation_config.json, and of a Backpack its code,
                     modeling_backpack.py; a GPT becomes the library's own GPT-2
    backpack-gpt2    config.json and pytorch_model.bin for the paper's class: its sense network, with biases
    nanobackpacklm   ckpt.pt for nanoBackpackLM's sample.py: the nano sense network, or a GPT

The first two have the tokenizer too. load_model opens all of them. What a layout cannot hold is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
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


def export(
    model: LanguageModel, folder: Path, layout: str = "transformers", card: str = "", dataset: str = ""
) -> None:
    """Write a model into a new folder, all of it or nothing; `card` becomes its README.md.

    `dataset`: name of the data, where nanoBackpackLM finds the characters of its tokenizer.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"{display_path(folder)} is there already: give the name of a new folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
            new = Path(beside) / "model"
            new.mkdir()
            WRITERS[layout](model, new, dataset)
            if card:
                (new / "README.md").write_text(card, encoding="utf-8")
            for file in new.iterdir():  # safetensors lets nobody else read its files
                file.chmod(new.stat().st_mode & 0o666)
            os.replace(new, folder)
    except OSError as error:
        raise InputError(
            f"cannot write {display_path(folder)} ({error.strerror or first_line(error)})"
        ) from None


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


def write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


# --- transformers -----------------------------------------------------------------------------


def write_transformers(model: LanguageModel, folder: Path, dataset: str) -> None:
    if not find_spec("transformers"):
        raise InputError("export needs transformers: pip install 'nanobackpack[hub]'")
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    from nanobackpack.hub.modeling_backpack import BackpackConfig, BackpackForCausalLM

    tokenizer, n, pad = model.tokenizer, model.config.n_token, pad_id(model)
    if isinstance(model, BackpackLM):
        settings = dataclasses.asdict(model.config)
        del settings["model_name"]
        settings["vocab_used"] = model.config.n_token  # so that a [PAD] that is added is none of ours
        settings |= {f"{role}_token_id": i for role, i in roles(tokenizer).items()}
        other: Any = BackpackForCausalLM(BackpackConfig(**settings))
        state = model.state_dict() | {"lm_head.weight": model.wte.weight}
    else:
        other = GPT2LMHeadModel(GPT2Config(**gpt2_settings(model)))
        # GPT-2 always has biases: those of a model without are 0.
        zeros = {name: torch.zeros_like(t) for name, t in other.state_dict().items() if name.endswith("bias")}
        state = zeros | export_state(model, GPT2)
    other.load_state_dict(state)
    other.tie_weights()
    # It generates as ours does: as far as positions were learned, never what stands for no text.
    added = tokenizer is not None and pad in (None, n)  # it may get a [PAD] after the other tokens
    rows = range(n, max(model.config.vocab_size, n + added))
    never = [*(tokenizer.unsampled_ids if tokenizer else ()), *rows]
    tokens = {f"{role}_token_id": i for role, i in roles(tokenizer).items()} | {"pad_token_id": pad}
    longest = model.config.block_size
    other.generation_config = GenerationConfig(max_length=longest, suppress_tokens=never or None, **tokens)
    watched = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    other.save_pretrained(folder)
    if watched:
        logging.enable_progress_bar()
    write_tokenizer(model, folder)


def roles(tokenizer: Tokenizer | None) -> dict[str, int]:
    """The special tokens by the roles that transformers gives them."""
    if tokenizer is None:
        return {}
    # What fills up the shorter texts of a batch is never looked at: the end of a document will do.
    padding = [tokenizer.special[name] for name in ("[PAD]", "<pad>") if name in tokenizer.special]
    found = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": [*padding, tokenizer.eos_id][0]}
    return {role: i for role, i in found.items() if i is not None}


def pad_id(model: LanguageModel) -> int | None:
    """What fills up the shorter texts of a batch; where no token can, as with characters, the id after all
    tokens, [PAD]. A token of text would be lost from texts and from training. A GPT may have no such row."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    after = tokenizer.vocab_size
    free = isinstance(model, BackpackLM) or after < model.config.vocab_size
    return roles(tokenizer).get("pad", after if free else None)


def write_tokenizer(model: LanguageModel, folder: Path) -> None:
    tokenizer = model.tokenizer
    if tokenizer is None:
        return
    name_of = {i: name for name, i in tokenizer.special.items()}
    inner, bos = hf.Tokenizer.from_str(tokenizer.to_json()), tokenizer.bos_id
    if bos is not None:  # BERT's own post-processor would also end each prompt
        single, pair = f"{name_of[bos]} $A", f"{name_of[bos]} $A $B"
        tokens = [(name_of[bos], bos)]
        inner.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    inner.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model.config.block_size,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    named = roles(tokenizer) | ({} if tokenizer.unknown_id is None else {"unk": tokenizer.unknown_id})
    settings |= {f"{role}_token": name_of[i] for role, i in named.items() if i in name_of}
    if pad_id(model) == tokenizer.vocab_size:
        settings["pad_token"] = "[PAD]"  # transformers adds it, after all others
    write_json(settings, folder / "tokenizer_config.json")


def gpt2_settings(model: LanguageModel) -> dict[str, Any]:
    """The settings of GPT-2 and of backpack-gpt2, by their names there."""
    c = model.config
    same_name = ("n_layer", "n_head", "n_embd", "vocab_size", "scale_attn_by_inverse_layer_idx")
    settings: dict[str, Any] = {name: getattr(c, name) for name in same_name}
    settings |= {"n_positions": c.block_size, "vocab_used": c.n_token}
    # The library's own are ids of GPT-2's tokenizer.
    settings |= {f"{role}_token_id": roles(model.tokenizer).get(role) for role in ("bos", "eos")}
    settings["activation_function"] = "gelu" if c.gelu == "exact" else "gelu_new"
    return settings | {f"{part}_pdrop": c.dropout for part in ("embd", "attn", "resid")}


# --- The others -------------------------------------------------------------------------------


def write_backpack_gpt2(model: LanguageModel, folder: Path, dataset: str) -> None:
    torch.save(export_state(model, PAPER), folder / "pytorch_model.bin")
    named = {"architectures": ["BackpackGPT2LMHeadModel"], "model_type": "backpack-gpt2"}
    senses = {"num_senses": model.config.n_sense_vector}
    senses["sense_intermediate_scale"] = model.config.sense_intermediate_scale
    write_json(gpt2_settings(model) | named | senses, folder / "config.json")
    write_tokenizer(model, folder)


def write_nanobackpacklm(model: LanguageModel, folder: Path, dataset: str) -> None:
    layout = NANO if isinstance(model, BackpackLM) else NANO_GPT
    state, c = export_state(model, layout), model.config
    # Masks, which some of its modules hold.
    masked = [f"{layout.key('context.')}h.{i}.attn.bias" for i in range(c.n_block if c.dropout else 0)]
    masked += [f"{NANO.key('alpha.')}bias"] if layout is NANO else []
    state |= dict.fromkeys(masked, torch.ones(c.block_size, c.block_size).tril()[None, None])
    names = ["n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"]
    names += ["n_sense_vector"] if layout is NANO else []
    args = {name: getattr(c, name) for name in names}
    config = {"dataset": dataset, "model_name": c.model_name}
    torch.save({"model": state, "model_args": args, "config": config}, folder / "ckpt.pt")


WRITERS = {
    "transformers": write_transformers,
    "backpack-gpt2": write_backpack_gpt2,
    "nanobackpacklm": write_nanobackpacklm,
}
