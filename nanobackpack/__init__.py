"""nanobackpack: train, sample, read and steer Backpack language models.

>>> import nanobackpack as nb
>>> model = nb.load_model("out-shakespeare-char")
>>> print(nb.Senses(model).sense_projection("t").table())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name lives. It is imported when first used, so that `nanobackpack --help` needs no torch.
_HOMES = {
    "GPT": "model.backpack",
    "BackpackLM": "model.backpack",
    "InputError": "errors",
    "ModelConfig": "config",
    "SampleConfig": "config",
    "Senses": "analysis.senses",
    "TrainConfig": "config",
    "control": "analysis.control",
    "load_model": "train.checkpoint",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:
    from nanobackpack.analysis import control as control
    from nanobackpack.analysis.senses import Senses as Senses
    from nanobackpack.config import ModelConfig as ModelConfig
    from nanobackpack.config import SampleConfig as SampleConfig
    from nanobackpack.config import TrainConfig as TrainConfig
    from nanobackpack.errors import InputError as InputError
    from nanobackpack.model.backpack import GPT as GPT
    from nanobackpack.model.backpack import BackpackLM as BackpackLM
    from nanobackpack.train.checkpoint import load_model as load_model


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nanobackpack' has no attribute {name!r}")
    home = importlib.import_module(f"nanobackpack.{_HOMES[name]}")
    value = home if name == "control" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
