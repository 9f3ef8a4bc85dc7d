"""What all beasts are made with: the list of them, and good files to spoil."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nanobackpack.config import ModelConfig
from nanobackpack.model.layouts import NANO, export_state
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

PROOF = "PROOF"
HARMLESS = "harmless"  # such a beast may be opened, with the right content, or refused
SIZES: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "n_sense_vector": 2, "vocab_size": 4,
}  # fmt: skip


class Beast(NamedTuple):
    make: Callable[[Path], object]  # writes it into a folder
    why: str
    loaders: tuple[str, ...]
    harmless: bool


BEASTS: dict[str, Beast] = {}


def beast(name: str, why: str, *loaders: str) -> Callable[[Callable[[Path], object]], None]:
    """Adds what it decorates to the zoo."""

    def add(make: Callable[[Path], object]) -> None:
        assert name not in BEASTS
        BEASTS[name] = Beast(make, why, tuple(x for x in loaders if x != HARMLESS), HARMLESS in loaders)

    return add


def good(legacy: bool = False) -> dict[str, Any]:
    """A checkpoint with which nothing is wrong, ours or nanoBackpackLM's."""
    model = checkpoint.build_model(ModelConfig(**SIZES))
    if legacy:
        args = SIZES | {"bias": False, "dropout": 0.0}
        return {"model": export_state(model, NANO), "model_args": args, "config": {"dataset": "mine"}}
    return {
        "format": checkpoint.FORMAT, "model": model.state_dict(), "model_args": dict(SIZES),
        "tokenizer": Tokenizer.char("abcd").to_json(),
    }  # fmt: skip


def dataset(folder: Path, **changes: Any) -> None:
    """A data set with which nothing is wrong, but for these entries of its meta.json."""
    write_dataset(folder, "abcd" * 50, Tokenizer.char("abcd"), val_fraction=0.2, source="zoo")
    if changes:
        values = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        (folder / "meta.json").write_text(json.dumps(values | changes), encoding="utf-8")
