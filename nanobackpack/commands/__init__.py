"""What `nanobackpack VERB` and the scripts in the repository run. Each verb is one module with a `main`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NoReturn, get_type_hints

from nanobackpack import cli

# verb: (its module, what it is for). The modules import torch only when they work, so that --help is quick.
VERBS = {
    "prepare": ("commands.prepare", "text -> token files, your own or a known data set"),
    "train": ("commands.train", "train a Backpack, or the Transformer baseline"),
    "sample": ("commands.sample", "continue a prompt"),
    "senses": ("commands.senses", "what each sense of a word predicts"),
    "explain": ("commands.explain", "which senses of which tokens make a prediction"),
    "steer": ("commands.steer", "scale senses of a word: before and after"),
    "edit": ("commands.edit", "change what a word's senses say: before and after"),
    "topic": ("evaluate.topic", "texts on a topic, and how much of it is in them"),
    "bias": ("evaluate.bias", "gender bias of nouns, and its remedies"),
    "perplexity": ("evaluate.perplexity", "perplexity on held-out text"),
    "lambada": ("evaluate.lambada", "last words of passages"),
    "blimp": ("evaluate.blimp", "is the grammatical sentence likelier?"),
    "wcpc": ("evaluate.wcpc", "Chinese words from their context"),
    "lexical_similarity": ("evaluate.lexical_similarity", "do similar words have similar senses?"),
    "word_composition": ("evaluate.word_composition", "how the tokens of a word share its weight"),
    "bench": ("bench", "speed and memory: the plain formula, this package, a GPT"),
}


def run(verb: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb with the flags of argv (default: the program's own), and exit."""
    module = importlib.import_module(f"nanobackpack.{VERBS[verb][0]}")
    cli.run(module.main, get_type_hints(module.main)["settings"], argv)
