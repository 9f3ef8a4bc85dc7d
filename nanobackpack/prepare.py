"""Text -> token files: what the scripts data/<name>/prepare.py share.

text = read_text(Path("input.txt"))
meta = write_dataset(folder, text, build("char", text), val_fraction=0.1, source="input.txt")
print(summary(meta, folder))
"""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from nanobackpack.config import InputError
from nanobackpack.data import DTYPES, Meta
from nanobackpack.files import replacing, shown
from nanobackpack.tokenizers import Tokenizer

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
            f"{shown(path)} is not the file of {url}: delete it to download that, "
            f"or use it as it is with `--input {shown(path)}`"
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


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, its line ends untouched. Raises InputError if there is none."""
    if path.is_dir():
        raise InputError(f"{shown(path)} is a folder: give a text file")
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"cannot read {shown(path)}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown(path)} is not UTF-8 text (byte {error.start} cannot be read): convert it first"
        ) from None
    if not text:
        raise InputError(f"{shown(path)} is empty: give a file with text")
    return text


def text_files(paths: Iterable[str]) -> list[Path]:
    """The files given, and every *.txt and *.md below the folders given, sorted, each one once.

    Raises InputError if there are none at all, or none below one of the folders.
    """
    files: set[Path] = set()
    for path in map(Path, paths):
        found = [p for p in path.rglob("*") if p.suffix in (".txt", ".md") and p.is_file()]
        if path.is_dir() and not found:
            raise InputError(f"{shown(path)} has no *.txt or *.md files: give another folder")
        files.update(found if path.is_dir() else [path])
    if not files:
        raise InputError("no text given: name one or more text files, or folders with *.txt or *.md")
    return sorted(files)


def write_dataset(
    folder: Path,
    text_or_parts: str | Iterable[str],
    tokenizer: Tokenizer,
    *,
    val_fraction: float,
    source: str,
) -> Meta:
    """Writes train.bin, val.bin, tokenizer.json and meta.json, the last `val_fraction` held out.

    Raises InputError if the fraction is not between 0 and 1, the text is too short for two tokens
    in each split, the tokenizer does not know a character, or the folder cannot be written.
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"val={val_fraction} is out of range: it must lie between 0 and 1, as 0.1")
    text = text_or_parts if isinstance(text_or_parts, str) else "".join(text_or_parts)
    cut = int(len(text) * (1 - val_fraction))
    parts = {"train": text[:cut], "val": text[cut:]}
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    ids = {s: tokenizer.encode_array(part, DTYPES[dtype]) for s, part in parts.items()}
    for split, tokens in ids.items():
        if len(tokens) < 2:
            raise InputError(
                f"the text has {len(text)} characters, too few: its {split} part would have "
                f"{len(tokens)} tokens and needs 2; give more text"
            )
    meta = Meta(
        vocab_size=tokenizer.vocab_size,
        dtype=dtype,
        tokens={split: len(tokens) for split, tokens in ids.items()},
        chars={split: len(part) for split, part in parts.items()},
        tokenizer="tokenizer.json",
        source=source,
        sha256={f"{s}.bin": hashlib.sha256(tokens.data).hexdigest() for s, tokens in ids.items()},
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, tokens in ids.items():
            with replacing(folder / f"{split}.bin") as file:
                file.write(tokens.data)
        tokenizer.save(folder / meta.tokenizer)
        meta.save(folder / "meta.json")  # last: it vouches for the others
    except OSError as error:
        raise InputError(f"cannot write to {shown(folder)}: {error.strerror}") from None
    return meta


def summary(meta: Meta, folder: Path) -> str:
    """A short report for people: the vocabulary and what each file holds."""
    rows = [("tokenizer.json", meta.vocab_size, "symbols")]
    rows += [(f"{split}.bin", n, f"tokens ({meta.dtype})") for split, n in meta.tokens.items()]
    lines = [f"  {file:<14} {count:>13,} {what}" for file, count, what in rows]
    return "\n".join([f"{shown(folder)}, from {meta.source}:", *lines])
