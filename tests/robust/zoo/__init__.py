"""A zoo of hostile files, each in a folder of its own: what strangers could send.

Each beast names the loaders it is fed to and why it is hostile. test_zoo.py opens them in a process that
watches what they do (__main__.py). Nothing harmful comes of the files themselves: what they try to call is
`os.mkdir`, on a folder named PROOF in the current one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.model.layouts import NANO, export_state
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint, trainer

PROOF = "PROOF"
SIZES: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 8, "n_sense_vector": 2, "vocab_size": 4,
}  # fmt: skip
Table = dict[str, tuple[Any, str]]  # name → what makes it hostile, and that in words


class Beast(NamedTuple):
    make: Callable[[Path], object]  # writes it into a folder
    why: str
    loaders: tuple[str, ...]
    harmless: bool  # it may also be opened, with the right content


BEASTS: dict[str, Beast] = {}


def beast(name: str, make: Callable[[Path], object], why: str, loaders: str, harmless: bool = False) -> None:
    """Add one to the zoo."""
    assert name not in BEASTS
    BEASTS[name] = Beast(make, why, tuple(loaders.split()), harmless)


def beasts(
    prefix: str, make: Callable[..., object], table: Table, loaders: str, harmless: Container[str] = ()
) -> None:
    """Add a table of them, each made from what it has in the table."""
    for name, (content, why) in table.items():
        beast(prefix + name, lambda d, c=content: make(d, c), why, loaders, name in harmless)


def call(folder: Path, make: Callable[[Path], object]) -> None:
    """For a table of functions."""
    make(folder)


def write(name: str, folder: Path) -> None:
    """Write one beast into a new folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    BEASTS[name].make(folder)


# --- Good files, to be spoiled ----------------------------------------------------------------


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
        del values["checksum"]  # with which it would only be damaged
        (folder / "meta.json").write_text(json.dumps(values | changes), encoding="utf-8")


def train(data: Path, out_dir: Path, **settings: Any) -> None:
    """A run of one step."""
    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    steps = {"max_iters": 1, "eval_iters": 1, "batch_size": 1, "warmup_iters": 0, "device": "cpu"}
    config = TrainConfig(**sizes, **steps, dataset=str(data), out_dir=str(out_dir), **settings)
    trainer.train(config)


from . import folders, torch_files  # noqa: E402, F401 (they fill BEASTS)
