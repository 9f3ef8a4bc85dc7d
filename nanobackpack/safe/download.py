"""What is fetched from elsewhere, when it is asked for: files of the Hugging Face hub, and a text by its URL.

    folder = fetch_hub("gpt2", ["tokenizer.json"], "give a local tokenizer.json")

What comes is untrusted: whoever reads it uses safe/untrusted.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from nanobackpack.errors import InputError, first_line
from nanobackpack.safe.files import display_path, replacing, sha256
from nanobackpack.safe.untrusted import read_index

# What nanoBackpackLM's page calls its published model; a run's folder of that name comes first.
PUBLISHED = {"backpack-small": "stanfordnlp/backpack-gpt2", "backpack-gpt2": "stanfordnlp/backpack-gpt2"}
GPT2_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MODEL_FILES = ("config.json", "*token*.json", "vocab.json", "merges.txt", "vocab.txt")
# Where a folder has its weights, in one file or in several that an index names: the first there is counts, as
# in the transformers library. pytorch_model.bin is read without unpickling code.
WEIGHTS = [name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]
_TIMEOUT_S = 10


def fetch_hub(name: str, patterns: Sequence[str], instead: str) -> Path:
    """Return the folder of a model of the hub with those of its files that match `patterns`.

    They are fetched once into the hub's own cache; what is there is found without a network. Files of other
    kinds, programs among them, are never fetched. `instead` tells what to give if the name cannot be used.
    """
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # no network, no such name, no access: each has a type of its own
        raise _unfetched(name, first_line(error), instead) from None


def _unfetched(name: str, reason: str, instead: str) -> InputError:
    return InputError(
        f"{name} is no file or folder here and cannot be fetched from the Hugging Face hub ({reason}): "
        f"{instead}"
    )


def is_id(name: str) -> bool:
    """Tell whether a name can be that of a model on the hub: owner/name, or a size of GPT-2."""
    return name in GPT2_NAMES or re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None


def fetch_model(name: str) -> Path:
    """Return the folder with config.json, weights and tokenizer files of a model of the hub."""
    instead = "name a local folder with config.json and weights"
    folder = fetch_hub(name, [*MODEL_FILES, *WEIGHTS[:2]], instead)
    if not any((folder / weights).is_file() for weights in WEIGHTS[:2]):
        folder = fetch_hub(name, WEIGHTS[2:], instead)
    weights = next((folder / weights for weights in WEIGHTS if (folder / weights).is_file()), folder)
    if weights.suffix == ".json":
        folder = fetch_hub(name, list(read_index(weights)), instead)
    if not (folder / "config.json").is_file():
        raise _unfetched(name, "it has no config.json", instead)
    return folder


def download(url: str, path: Path, expected_sha256: str, size: int) -> None:
    """Fetch a small file of `size` bytes, unless `path` is that file already."""
    from http.client import HTTPException
    from urllib.request import urlopen

    if path.exists():
        if path.is_file() and sha256(path) == expected_sha256:
            return
        raise InputError(  # perhaps a text of the user's own: never overwrite it
            f"{display_path(path)} is not the file of {url}: delete it to download that, "
            f"or use it as it is with `--input {display_path(path)}`"
        )
    for tries_left in (1, 0):
        try:
            with urlopen(url, timeout=_TIMEOUT_S) as response:
                content = response.read(size + 1)  # one byte more tells a longer file
            if len(content) != size:
                raise ValueError(f"it has {'more' if len(content) > size else 'fewer'} than {size:,} bytes")
            if (found := hashlib.sha256(content).hexdigest()) != expected_sha256:
                raise ValueError(f"its sha256 is {found}, not {expected_sha256}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(content)
            return
        except (OSError, HTTPException, ValueError) as error:
            if not tries_left:
                raise InputError(
                    f"cannot download {url} ({first_line(error)}): give a local copy with `--input FILE`"
                ) from None
