"""nanobackpack: train, sample, read and steer Backpack language models."""

from nanobackpack import control
from nanobackpack.backpack import BackpackLM
from nanobackpack.checkpoint import load_model
from nanobackpack.config import InputError, ModelConfig, SampleConfig, TrainConfig
from nanobackpack.gpt import GPT
from nanobackpack.senses import Senses
from nanobackpack.trainer import train

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
    "train",
]
