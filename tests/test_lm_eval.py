"""The harness lm-eval: its numbers are ours, on local files and without a network."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from nanobackpack import InputError
from nanobackpack.analysis import control
from nanobackpack.evaluate import blimp, lambada
from nanobackpack.evaluate.scoring import TextToScore, score_texts
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

lm_eval = pytest.importorskip("lm_eval")
from nanobackpack.hub.lm_eval import NanobackpackLM  # noqa: E402

LETTERS = "abcdefgh \n"
PAIRS = [("a bad cab", "bad a cab"), ("a bee", "bee a"), ("he had a head", "he a had head"), ("fed", "def")]
PASSAGES = ["a bad cab", "he had a bad head", "a bee", "feed a bee a bad egg", "he had a bag, a bag"]


def saved(folder: Path, special: tuple[str, ...] = ("<|endoftext|>",), **settings: Any) -> Path:
    """A model of byte tokens, whose tokenizer has these special ones."""
    tokenizer = make_tokenizer("bpe:300", PASSAGES * 9)
    n = tokenizer.vocab_size
    model = tiny_model(vocab_size=n, vocab_used=n, **settings)
    model.tokenizer = tokenizer
    save_model(model, folder / "ckpt.pt")
    return folder
