"""Models of the Hugging Face hub: fetched once into the hub's own cache, or found there without a network."""

from __future__ import annotations

import re
from pathlib import Path

from nanobackpack.config import InputError

GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt")


def is_id(name: str) -> bool:
    """Whether a name can be one of the hub's: owner/name, or a size of GPT-2."""
    return name in GPT2_NAMES or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def fetch_model(name: str) -> Path:
    """The folder with config.json, weights and tokenizer files of a model of the hub.

    Raises: InputError if the hub does not have it, or cannot be reached and it was not fetched before.
    """
    from huggingface_hub import hf_hub_download  # comes with `tokenizers`; slow to import
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:  # also where only the cache can be asked
            return None

    try:
        config = fetch("config.json")
        weights = next((path for file in WEIGHTS if (path := fetch(file))), None) if config else None
        for file in TOKENIZERS if weights else ():
            fetch(file)
    except Exception as error:  # the hub's library, and the network's, raise many kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{name} cannot be fetched from the Hugging Face hub: {reason}") from error
    if config is None or weights is None:
        missing = "config.json" if config is None else " or ".join(WEIGHTS)
        raise InputError(
            f"{name} is no folder here, and its {missing} is neither on the Hugging Face hub nor in its "
            "cache, or there is no network: name a local folder with config.json and weights"
        )
    return config.parent
