"""Models of the Hugging Face hub: fetched once into the hub's own cache, or found there without a network."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.request
from pathlib import Path

from tqdm import tqdm

from nanobackpack.errors import InputError
from nanobackpack.safe.files import display_path, replacing

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


_TIMEOUT_S = 10
_TRIES = 2
_CHUNK_BYTES = 1 << 16


def download(url: str, path: Path, sha256: str, size: int) -> None:
    """Fetches `url`, a file of `size` bytes, unless `path` already is that file.

    Raises InputError if it cannot be fetched, is not the file expected, or would replace another.
    """
    if path.exists():
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return
        raise InputError(  # perhaps a text of the user's own: never overwrite it
            f"{display_path(path)} is not the file of {url}: delete it to download that, "
            f"or use it as it is with `--input {display_path(path)}`"
        )
    for left in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, path, sha256, size)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not left:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"cannot download {url} ({reason}): give a local copy with `--input FILE`"
                ) from None


def _fetch(url: str, path: Path, sha256: str, size: int) -> None:
    digest, got = hashlib.sha256(), 0
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
        # disable=None: a bar on a terminal, nothing in a log
        tqdm(desc=path.name, total=size, unit="B", unit_scale=True, disable=None) as bar,
        replacing(path) as file,
    ):
        while got <= size and (chunk := response.read(_CHUNK_BYTES)):
            digest.update(chunk)
            got += len(chunk)
            file.write(chunk)
            bar.update(len(chunk))
        if got != size:
            raise ValueError(f"it has {'more' if got > size else 'fewer'} than {size:,} bytes")
        if digest.hexdigest() != sha256:
            raise ValueError(f"its sha256 is {digest.hexdigest()}, not {sha256}")
