"""Models of the Hugging Face hub: fetched once into the hub's own cache, or found there without a network."""

from __future__ import annotations

import re
from pathlib import Path

from nanobackpack.config import InputError

GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
WANTED = ("config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
ELSE = "pytorch_model.bin"  # where there is no model.safetensors; read without unpickling code


def is_id(name: str) -> bool:
    """Whether a name can be one of the hub's: owner/name, or a size of GPT-2."""
    return name in GPT2_NAMES or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def fetch_model(name: str) -> Path:
    """The folder with config.json, weights and tokenizer files of a model of the hub.

    Raises: InputError if the hub does not have it, or cannot be reached and it was not fetched before.
    """
    from huggingface_hub import snapshot_download  # comes with `tokenizers`; slow to import

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
        if not (folder / "model.safetensors").is_file():
            folder = Path(snapshot_download(name, allow_patterns=[ELSE]))
        if (folder / "config.json").is_file():
            return folder
        reason = "it has no config.json"
    except Exception as error:  # the hub's library, and the network's, raise many kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    raise InputError(
        f"{name} is no folder here and cannot be fetched from the Hugging Face hub ({reason}): "
        "name a local folder with config.json and weights"
    )
