"""nanobackpack: train, sample, read and steer Backpack language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name lives. Each is imported when first used: `nanobackpack --help` needs no torch.
_HOMES = {
    "GPT": "model.backpack",
    "BackpackLM": "model.backpack",
    "InputError": "errors",
    "ModelConfig": "config",
    "SampleConfig": "config",
    "Senses": "analysis.senses",
    "TrainConfig": "config",
    "control": "analysis",
    "load_model": "train.checkpoint",
}
__all__ = [
    "GPT",
    "BackpackLM",
    "InputError",
    "ModelConfig",
    "SampleConfig",
    "Senses",
    "TrainConfig",
    "control",
    "load_model",
]

if TYPE_CHECKING:
    from nanobackpack.analysis import control
    from nanobackpack.analysis.senses import Senses
    from nanobackpack.config import ModelConfig, SampleConfig, TrainConfig
    from nanobackpack.errors import InputError
    from nanobackpack.model.backpack import GPT, BackpackLM
    from nanobackpack.train.checkpoint import load_model


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nanobackpack' has no attribute {name!r}")
    home = importlib.import_module(f"nanobackpack.{_HOMES[name]}")
    value = (
        importlib.import_module("nanobackpack.analysis.control") if name == "control" else getattr(home, name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
