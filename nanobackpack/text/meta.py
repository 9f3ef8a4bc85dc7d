"""What a data set says about itself: meta.json beside its .bin files, nanoBackpackLM's meta.pkl, or nothing.

    meta = Meta.load(folder / "meta.json")     # sizes, type of the ids, where the text came from, checksums
    tokenizer = read_tokenizer(folder)         # None if the folder has none

What a folder says is checked against its files when these are opened (data.py). It need not say anything: a
folder of bare .bin files is a data set too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np

from nanobackpack.config import matches_type
from nanobackpack.errors import InputError, short_repr
from nanobackpack.safe.files import MEGABYTE, display_path, finish_replacing, plain_name, read_json, verify
from nanobackpack.safe.untrusted import load_plain_pickle
from nanobackpack.text.tokenizer import Tokenizer

SPLITS = ("train", "val")
HELD_OUT = "evaluation"  # the split no run looks at; not every data set has one
COUNTS = "counts.bin"  # how often each id occurs in the text to train on: (V,) int64, little-endian
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# The data sets that `nanobackpack prepare NAME` makes.
KNOWN = (
    "shakespeare_char", "shakespeare", "pydocs_char", "planted", "words",
    "openwebtext", "clue_small", "tigerbot", "common_crawl",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Meta:
    """The content of a meta.json."""

    vocab_size: int
    dtype: Literal["uint16", "uint32"]  # of the ids in the .bin files
    tokens: dict[str, int]  # of each split
    chars: dict[str, int]  # of each split, in Unicode characters
    tokenizer: str  # file name, in the same folder
    source: str  # where the text came from, for people
    sha256: dict[str, str]  # of each .bin file and of the tokenizer, in hex
    languages: list[str] = dataclasses.field(default_factory=list)
    """Of a data set in several: its splits are LANGUAGE_train, LANGUAGE_val, ... or shards LANGUAGE_0, ..."""
    held_out: str = ""
    """What is held out for validation, for people."""
    tokenizer_made_as: str = ""
    """As bpe:8192, even if it got fewer ids; empty: not made from these texts."""
    unknown_share: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of each split: how many of its tokens are [UNK], from 0 to 1."""
    unknown_characters: dict[str, int] = dataclasses.field(default_factory=dict)
    """The most frequent characters that the tokenizer does not know: how often each occurs."""

    @classmethod
    def load(cls, path: Path) -> Meta:
        """Read a meta.json, and refuse one that is damaged or of another kind."""
        again = prepare_command(path.parent)
        try:
            values = read_json(path)
        except OSError as error:
            raise InputError(f"{display_path(path)} cannot be read ({error.strerror}): {again}") from None
        except InputError as error:
            raise InputError(f"{error}: {again}") from None
        checksum = values.pop("checksum", None) if isinstance(values, dict) else None
        problem = _problem(values)
        if not problem and checksum not in (None, _checksum(values)):
            problem = 'is damaged (if you changed it yourself, take its "checksum" out)'
        if problem:
            raise InputError(f"{display_path(path)} {problem}: {again}")
        return cls(**values)

    def to_json(self) -> bytes:
        """Write the content of a meta.json, with its checksum."""
        values = dataclasses.asdict(self)
        return (json.dumps(values | {"checksum": _checksum(values)}, indent=2) + "\n").encode()


def is_trained_on(split: str) -> bool:
    """Tell whether a split, perhaps of one language, is text to train on."""
    return not split.endswith((SPLITS[1], HELD_OUT))


def read_counts(folder: Path, meta: Meta) -> np.ndarray | None:
    """Read how often each id occurs in the text to train on, (V,), as was counted when it was prepared."""
    if not (folder / COUNTS).is_file():
        return None
    counts = np.fromfile(folder / COUNTS, "<i8")  # (V,)
    # One that an older version left behind is of another text.
    n = sum(n for split, n in meta.tokens.items() if is_trained_on(split))
    return counts if len(counts) == meta.vocab_size and counts.sum() == n else None


def _problem(values: Any) -> str:
    """Say what is wrong with the content of a meta.json, "" if nothing is."""
    if not isinstance(values, dict):
        return "is not a JSON object"
    types = get_type_hints(Meta)
    values = {
        "languages": [],
        "held_out": "",
        "tokenizer_made_as": "",
        "unknown_share": {},
        "unknown_characters": {},
        **values,
    }
    if unknown := sorted(values.keys() - types.keys()):
        return f"has an unknown entry {short_repr(unknown[0])}"
    if missing := sorted(types.keys() - values.keys()):
        return f"has no entry {missing[0]!r}"
    # Each entry must have its type, and some a sensible value besides.
    wrong = [name for name, hint in types.items() if not matches_type(values[name], hint)]
    if not wrong:
        needed = () if values["languages"] else SPLITS
        for name in ("tokens", "chars"):
            counts = values[name]
            if any(split not in counts for split in needed) or any(n < 0 for n in counts.values()):
                wrong.append(name)
        if values["vocab_size"] <= 0:
            wrong.append("vocab_size")
        if not values["tokenizer"] or not plain_name(values["tokenizer"]):
            wrong.append("tokenizer")
    return f"has a wrong {wrong[0]!r}" if wrong else ""


def _checksum(values: dict[str, Any]) -> str:
    """Return a checksum of all other entries of a meta.json, whatever their order and layout."""
    return hashlib.sha256(json.dumps({"languages": [], **values}, sort_keys=True).encode()).hexdigest()


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Open the tokenizer of a data set, None if the folder is not there or does not have one."""
    finish_replacing(folder)
    if (folder / "meta.json").exists():
        meta = Meta.load(folder / "meta.json")
        path = folder / meta.tokenizer
        if path.is_file() and path.name in meta.sha256:
            verify(path, meta.sha256[path.name], prepare_command(folder))
        try:
            return Tokenizer.load(path, meta.tokenizer_made_as)
        except InputError as error:
            raise InputError(f"{error}: {prepare_command(folder)}") from None
    path = folder / "meta.pkl"
    if not path.exists():
        return None
    legacy = read_legacy_meta(path)
    symbols = [legacy["itos"][i] for i in range(len(legacy["itos"]))]
    if legacy.get("vocab_size") != len(symbols):
        size = short_repr(legacy.get("vocab_size"))
        raise InputError(f"{display_path(path)} says vocab_size {size}, but names {len(symbols)} characters")
    return Tokenizer.from_symbols(symbols)


def read_legacy_meta(path: Path) -> dict[str, Any]:
    """Read nanoBackpackLM's meta.pkl: {"vocab_size": int, "itos": {id: character}, ...}."""
    meta = load_plain_pickle(path, 4 * MEGABYTE)
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos or itos.keys() != set(range(len(itos))):
        raise InputError(f"{path}: not a table of characters (itos)")
    if not all(isinstance(c, str) and len(c) == 1 for c in itos.values()):
        raise InputError(f"{path}: itos must map each id to one character")
    return meta


def prepare_command(folder: Path) -> str:
    """Say what to run to make the data set in `folder`, for messages."""
    if (folder / "prepare.py").is_file():
        return f"make it with `python {display_path(folder)}/prepare.py`"
    name = folder.resolve().name
    return f"make it with `nanobackpack prepare {name if name in KNOWN else f'FILE --name={name}'}`"
