"""Tiny models with large random weights, so that α is far from uniform and logits far from 0."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from nanobackpack import GPT, BackpackLM, ModelConfig
from nanobackpack.model.layouts import GPT2, export_state
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import build_model, save_model

torch.set_num_threads(1)  # models this small gain nothing from threads, and tests run side by side

# Random examples are the same each time, and may take as long as a busy machine makes them; stress.py and
# fuzz_targets.py look further.
settings.register_profile("repeated", deadline=None, derandomize=True, database=None)
settings.load_profile("repeated")

# Who starts the tests may ignore signals, as nohup does; programs respect that, and tests would wait.
for number, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if hasattr(signal, number) and signal.getsignal(getattr(signal, number)) is signal.SIG_IGN:
        signal.signal(getattr(signal, number), usual)

TINY: dict[str, Any] = {
    "n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 12, "n_sense_vector": 4,
    "vocab_size": 23, "vocab_used": 19,
}  # fmt: skip
PAPER: dict[str, Any] = {"sense_network": "paper", "n_layer": 2}

# Every value of every setting of a model occurs, and with each other one that it could interfere with:
# either sense network with a small vocabulary (fewer tokens than numbers in a vector, so that logits are
# summed instead of vectors) and without, with biases and without; 1, 4 and D senses.
BACKPACKS: dict[str, dict[str, Any]] = {
    "nano": {},
    "nano-bias-few": {"bias": True, "n_embd": 32},
    "paper-bias-inverse": {"bias": True, "scale_attn_by_inverse_layer_idx": True, "n_sense_vector": 16}
    | PAPER,
    "paper-k1-modern": {"n_sense_vector": 1, "n_embd": 32, "context_network": "modern"} | PAPER,
}
GPTS: dict[str, dict[str, Any]] = {"gpt-bias": {"model_name": "gpt2", "bias": True}}


def tiny_model(seed: int = 0, **settings: Any) -> BackpackLM | GPT:
    """A tiny model in eval mode whose every weight matters: matrices ±0.25, norms 1 ± 0.25, biases too."""
    model = build_model(ModelConfig(**TINY | settings)).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) / 4 + (p.dim() == 1) * p)
    return model


def save_gpt2(folder: Path, **settings: Any) -> GPT:
    """A tiny GPT in a folder as the Hugging Face hub has GPT-2's: config.json and model.safetensors."""
    model = tiny_model(**{"model_name": "gpt2", "bias": True} | settings)
    assert isinstance(model, GPT)
    c = model.config
    config = {
        "model_type": "gpt2", "n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd,
        "n_positions": c.block_size, "vocab_size": c.vocab_size, "resid_pdrop": 0.1,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {k: t.contiguous() for k, t in export_state(model, GPT2).items() if k != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    return model


def draw_nothing(metrics: Path, file: Path) -> None:
    """Stand in for plot_losses, which takes longer than a tiny model to train."""
    file.touch()


@pytest.fixture(autouse=True, scope="session")
def no_pictures() -> Iterator[None]:
    """Runs draw no curves, but in the tests of the curve."""
    with mock.patch("nanobackpack.train.log.plot_losses", draw_nothing):
        yield


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the tests, also after one that ran a program, which ignores it once it is over."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that a program starts are forks of one that has imported torch, which takes seconds."""
    from jobs import SERVER

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr("multiprocessing.get_context", lambda name: SERVER)


@pytest.fixture(params=BACKPACKS)
def backpack(request: pytest.FixtureRequest) -> BackpackLM:
    """Each kind of tiny Backpack in turn."""
    return tiny_model(**BACKPACKS[request.param])


@pytest.fixture(params=BACKPACKS | GPTS)
def model(request: pytest.FixtureRequest) -> BackpackLM | GPT:
    """Each kind of tiny model in turn, Backpacks and GPTs."""
    return tiny_model(**(BACKPACKS | GPTS)[request.param])


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids (3, 12) with repeats: more positions than the vocabulary has ids."""
    return torch.randint(
        TINY["vocab_size"], (3, TINY["block_size"]), generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture
def speller() -> BackpackLM:
    """A Backpack trained on nothing that knows 8 characters and has 3 padded ids."""
    model = tiny_model(vocab_size=11, vocab_used=8)
    model.tokenizer = Tokenizer.char("abcdefg\n")
    return model


def save_tiny(folder: Path, characters: str, **settings: Any) -> Path:
    """The folder of a run whose tiny model knows these characters, and has 3 padded ids."""
    n = len(set(characters))
    model = tiny_model(**{"vocab_size": n + 3, "vocab_used": n} | settings)
    model.tokenizer = Tokenizer.char(characters)
    folder.mkdir()
    save_model(model, folder / "ckpt.pt")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run whose model is `speller`."""
    return save_tiny(tmp_path / "run", "abcdefg\n")


def run_program(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0
) -> tuple[str, str]:
    """Run experiments/NAME.py on the model in a folder; what it printed to stdout and stderr."""
    script = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    argv = [str(script), f"--out_dir={folder}", "--device=cpu", *arguments]
    with mock.patch.object(sys, "argv", argv), pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert (end.value.code or 0) == status, printed.err
    return printed.out, printed.err
