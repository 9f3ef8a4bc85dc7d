"""Models on their way out, to transformers and others, and back in: the same numbers everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, tiny_model
from safetensors.torch import load_file, save_file

from nanobackpack import BackpackLM, control, load_model
from nanobackpack.hub.export import export
from nanobackpack.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def word_pieces(n: int) -> Tokenizer:
    """A tokenizer as BERT's with n ids, of which [CLS] begins each text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", *(f"##{c}" for c in "abcdefghijkl")][:n]
    inner = hf.Tokenizer(hf.models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    inner.decoder = hf.decoders.WordPiece()
    inner.add_special_tokens(names[:5])
    return Tokenizer(inner)


MODELS: dict[str, dict[str, Any]] = {
    "nano-char": BACKPACKS["nano"],
    "paper-word-pieces": BACKPACKS["paper-bias-inverse"],
    "nano-bias-few-baked": BACKPACKS["nano-bias-few"],
}


def made(name: str) -> BackpackLM:
    model = tiny_model(**MODELS[name])
    assert isinstance(model, BackpackLM)
    n = model.config.n_token
    model.tokenizer = word_pieces(n) if "pieces" in name else Tokenizer.char("abcdefghijklmnopqrs"[:n])
    if "baked" in name:
        model = control.bake(model, control.ScaleSense((3, 7), 0.0, 1))
    return model


@torch.no_grad()
def expected(model: BackpackLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What hub_checks.py compares with."""
    found = {"ids": ids, "logits": model(ids).logits, "alpha": model.contextualization(ids)}
    found["senses"] = model.sense_vectors(ids.flatten()).unflatten(0, ids.shape)  # (B, T, K, D)
    room = model.config.block_size - 4
    found["greedy"] = model.generate(ids[:, :4], room, temperature=0)
    text = "abcdef"
    assert model.tokenizer
    prompt = torch.tensor([model.tokenizer.prompt_ids(text)])
    found |= {"text": torch.tensor([*text.encode()]), "text ids": prompt[0]}
    return found | {"text greedy": model.generate(prompt, 4, temperature=0)[0]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model, exported, with what it says of some ids."""
    root = tmp_path_factory.mktemp("exports")
    ids = torch.randint(19, (3, 12), generator=torch.Generator().manual_seed(1))
    for name in MODELS:
        model = made(name)
        export(model, root / name)
        save_file(
            {key: t.contiguous().clone() for key, t in expected(model, ids).items()},
            root / name / "expected.safetensors",
        )
    return {name: root / name for name in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, os.environ.get("OTHER_TRANSFORMERS")])
def test_without_nanobackpack(folders: dict[str, Path], python: str | None) -> None:
    """In a process of its own; also in the Python, with another transformers, that OTHER_TRANSFORMERS is."""
    if python is None:
        pytest.skip("OTHER_TRANSFORMERS names no other Python")
    command = [python, str(ROOT / "tests" / "hub_checks.py"), *map(str, folders.values())]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("transformers ") == len(folders)


@pytest.mark.parametrize("name", MODELS)
def test_comes_home(folders: dict[str, Path], name: str) -> None:
    """load_model opens the export as what it was."""
    model, back = made(name), load_model(folders[name])
    assert back.config == model.config
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert model.tokenizer is not None
    assert back.tokenizer is not None
    assert model.tokenizer.difference(back.tokenizer) == ""
    assert model.tokenizer.prompt_ids("abd") == back.tokenizer.prompt_ids("abd")


@pytest.mark.parametrize("name", ["nano_checkpoint", "nano_checkpoint_bias", "backpack_gpt2"])
def test_golden(tmp_path: Path, name: str) -> None:
    """The originals' numbers, with the classes that nanobackpack.hub registers: no remote code."""
    from transformers import AutoModelForCausalLM

    export(load_model(GOLDEN / name), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    original = load_file(GOLDEN / name / "expected.safetensors")
    out = model(original["input_ids"], output_attentions=True)
    assert type(model).__module__ == "nanobackpack.hub.modeling_backpack"
    assert (out.logits - original["logits"]).abs().max() < 1e-5
    assert (out.attentions[0] - original["contextualization"]).abs().max() < 1e-5
    assert (model.sense_vectors() - original["sense_vectors"]).abs().max() < 1e-5
