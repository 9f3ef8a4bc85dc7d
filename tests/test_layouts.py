"""Checkpoints of other programs: read exactly, written back exactly, refused where wrong, never executed."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKPACKS, GPTS, TINY, save_gpt2, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanobackpack import GPT, BackpackLM, InputError, ModelConfig, load_model
from nanobackpack.model.layouts import (
    GPT2,
    NANO,
    NANO_GPT,
    PAPER,
    Layout,
    export_state,
    import_state,
    read_hugging_face,
    read_nano,
)
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import build_model, save_model

GOLDEN = Path(__file__).parent / "golden"
ALPHA = "backpack.contextualization_layer."
BLOCK = ALPHA + "transformer.h.0."


def nano(kind: str = "") -> dict[str, Any]:
    """A checkpoint nanoBackpackLM wrote, as it loads."""
    return torch.load(GOLDEN / f"nano_checkpoint{kind}" / "ckpt.pt", weights_only=True)


def written(folder: Path, checkpoint: Any) -> Path:
    torch.save(checkpoint, folder / "ckpt.pt")
    return folder


def golden_error(model: BackpackLM, name: str) -> float:
    """How far a model is from what the original computes with these weights."""
    expected = load_file(GOLDEN / name / "expected.safetensors")
    return (model(expected["input_ids"]).logits - expected["logits"]).abs().max().item()


def error_of(path: Path) -> str:
    """The one-line message with which load_model refuses a path."""
    with pytest.raises(InputError) as error:
        load_model(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- nanoBackpackLM ---------------------------------------------------------------------------


def test_nano_file_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ckpt.pt opens by its own path and by its folder's, in eval mode, with its settings."""
    monkeypatch.chdir(tmp_path)  # away from data/, where its tokenizer may be
    model = load_model(GOLDEN / "nano_checkpoint" / "ckpt.pt")
    assert same_weights(model, load_model(str(GOLDEN / "nano_checkpoint")))
    assert isinstance(model, BackpackLM)
    assert not model.training
    assert model.tokenizer is None
    assert model.config == ModelConfig(**nano()["model_args"])


def mask(T: int = 16) -> Tensor:
    return torch.ones(T, T).tril().view(1, 1, T, T)


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"_orig_mod." + key: t for key, t in state.items()}


def without_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t for key, t in state.items() if key != ALPHA + "bias"}


@pytest.mark.parametrize("kind", ["", "_bias"])
def test_nano_variants(tmp_path: Path, kind: str):
    """A compiled model's prefix and mask buffers, there or not, change nothing in what is computed."""
    checkpoint = nano(kind)
    state = checkpoint["model"]
    for weights in (
        state | {f"{ALPHA}transformer.h.{i}.attn.bias": mask() for i in range(2)},
        compiled(without_masks(state)),
    ):
        model = load_model(written(tmp_path, checkpoint | {"model": weights}))
        assert golden_error(model, f"nano_checkpoint{kind}") < 1e-5


def test_nano_dataset_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tokenizer of the data is found by its name under data/ only, and may be missing."""
    for folder in ("data/shakespeare_char", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        meta = {"vocab_size": 65, "itos": {i: chr(40 + i) for i in range(65)}}
        (tmp_path / folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    monkeypatch.chdir(tmp_path)
    for dataset in ("../elsewhere", "", 3):
        assert load_model(written(tmp_path, nano() | {"config": {"dataset": dataset}})).tokenizer is None
    model = load_model(written(tmp_path, nano() | {"config": {"dataset": "shakespeare_char"}}))
    assert model.tokenizer is not None
    assert model.tokenizer.decode([25, 26]) == "AB"


WTE = "wte.weight"
NORM, SENSE_NORM = BLOCK + "ln_1.weight", "backpack.sense_vector_layer.ln_2.weight"


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", WTE, None, "no tensor wte.weight"),
        ("model", BLOCK + "ln_9.weight", torch.ones(32), "unknown tensor .*ln_9.weight"),
        ("model", NORM, torch.ones(31), r"ln_1.weight .*\(31,\).*\(32,\)"),
        ("model", SENSE_NORM, torch.tensor(1.0), "ln_2.weight"),
        *(("model", key, torch.zeros(65, 32), f"{key} .*tied") for key in NANO.copies[WTE]),
        ("model", WTE, 3, "tensors"),
        ("model_args", "n_embd", "32", "n_embd='32'"),
        ("model_args", "block_size", None, "no block_size"),
        ("", "model_args", None, "model_args"),
        ("", "model", [1, 2], "model"),
        ("", "format", "nanobackpack 99", "nanobackpack 99"),
    ],
)
def test_nano_refused(tmp_path: Path, part: str, key: str, value: Any, message: str):
    """A missing (None), left-over, misshapen or untied tensor, or odd settings: one line that names it."""
    checkpoint = nano()
    place = checkpoint[part] if part else checkpoint
    place[key] = value
    if value is None:
        del place[key]
    assert re.search(message, error_of(written(tmp_path, checkpoint)))


# --- nanoGPT and GPT-2 ------------------------------------------------------------------------

GPT2_TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "vocab_size": 61}


def gpt2(kind: str = "GPT2LMHeadModel", **settings: Any) -> Any:
    """A random GPT-2 of the transformers library, in eval mode, its weights large enough to matter."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(**GPT2_TINY | {"bos_token_id": 0, "eos_token_id": 0} | settings)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 5)
    return model


def some_ids() -> Tensor:
    return torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_logits(model: GPT, reference: Any) -> None:
    expected = reference(some_ids()).logits
    assert expected.std() > 0.5
    assert isinstance(model, GPT)
    assert (model(some_ids()).logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("inverse", [False, True])
def test_gpt2_folder(tmp_path: Path, inverse: bool):
    """A GPT-2 saved by transformers gives its logits, block scales 1 / (i + 1) included."""
    reference = gpt2(scale_attn_by_inverse_layer_idx=inverse)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert_same_logits(model, reference)
    assert model.config.bias
    assert model.config.block_size == 16
    # Saved from GPT2Model, tensors have no prefix and there is no head: E is the head.
    reference.transformer.save_pretrained(tmp_path / "headless")
    assert "wte.weight" in load_file(tmp_path / "headless" / "model.safetensors")
    assert_same_logits(load_model(tmp_path / "headless"), reference)


def test_nanogpt(tmp_path: Path):
    """nanoGPT's ckpt.pt, GPT-2 with linear weights as (out, in), opens as a GPT with the same logits."""
    reference = gpt2()
    state = {}
    for key, t in reference.state_dict().items():
        conv1d = ".c_" in key and key.endswith(".weight")
        state[key] = t.t().contiguous() if conv1d else t
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 61}
    args |= {"bias": True, "dropout": 0.0}
    for weights in (state, compiled(state)):
        assert_same_logits(load_model(written(tmp_path, {"model": weights, "model_args": args})), reference)


def test_gpt2_config_refused(tmp_path: Path):
    """A config.json that is damaged, incomplete or asks for what we do not have is refused."""
    save_gpt2(tmp_path)
    assert isinstance(load_model(tmp_path), GPT)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    # A setting that would change the numbers must not be ignored.
    changes = {
        "model_type": "llama",
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-6,
        "n_inner": 63,
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    }
    for text, message in (
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"model_type": "gpt2"}', "no n_layer"),
        *((json.dumps(good | {name: value}), name) for name, value in changes.items()),
    ):
        path.write_text(text)
        assert message in error_of(tmp_path)


# --- backpack-gpt2 ----------------------------------------------------------------------------


COPIES = [key for keys in PAPER.copies.values() for key in keys]


def paper_folder(folder: Path, state: dict[str, Tensor], weights: str, **changes: Any) -> Path:
    settings = json.loads((GOLDEN / "backpack_gpt2" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    if weights == "model.safetensors":
        save_file({key: t.clone().contiguous() for key, t in state.items()}, folder / weights)
    else:
        torch.save(state, folder / weights)
    return folder


def paper() -> dict[str, Tensor]:
    return torch.load(GOLDEN / "backpack_gpt2" / "pytorch_model.bin", weights_only=True)


@pytest.mark.parametrize(("weights", "copies"), [("pytorch_model.bin", True), ("model.safetensors", False)])
def test_paper_folder(tmp_path: Path, weights: str, copies: bool):
    """Either file of weights gives the original's logits; tied copies may be there or not."""
    state = paper()
    if copies:
        state |= {f"backpack.gpt2_model.h.{i}.attn.bias": mask() for i in range(2)}
        state |= {f"backpack.gpt2_model.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    else:
        for key in COPIES:
            del state[key]
    model = load_model(paper_folder(tmp_path, state, weights))
    assert golden_error(model, "backpack_gpt2") < 1e-5
    assert (model.config.sense_network, model.config.dropout, model.training) == ("paper", 0.1, False)
    if copies:  # the format torch wrote before version 1.6, as GPT-2's first files are
        torch.save(state, tmp_path / weights, _use_new_zipfile_serialization=False)
        assert golden_error(load_model(tmp_path), "backpack_gpt2") < 1e-5


@pytest.mark.parametrize("key", COPIES)
def test_paper_tied_copies_must_agree(tmp_path: Path, key: str):
    """A copy of the embedding or the positions that differs in one number is refused by name."""
    state = paper()
    state[key] = state[key].clone()
    state[key][3, 3] += 1e-3
    assert key in error_of(paper_folder(tmp_path, state, "pytorch_model.bin"))


@pytest.mark.parametrize("shape", [(128, 32), (2, 3, 4)])
def test_paper_tensors_refused(tmp_path: Path, shape: tuple[int, ...]):
    """A tensor that is stored transposed, given as (out, in) or of three dimensions, is refused by name."""
    key = "backpack.sense_network.final_mlp.c_fc.weight"
    for weights in ("pytorch_model.bin", "model.safetensors"):  # of both the second is read
        assert key in error_of(paper_folder(tmp_path, paper() | {key: torch.ones(shape)}, weights))


def test_paper_settings_refused(tmp_path: Path):
    """A setting that we do not have is refused by its name."""
    folder = paper_folder(tmp_path, paper(), "pytorch_model.bin", sense_intermediate_scale=1)
    assert "sense_intermediate_scale=1" in error_of(folder)


def test_padded_vocabularies():
    """The sizes the originals pad a known tokenizer to are recognised; any other has no padding."""
    settings = json.loads((GOLDEN / "backpack_gpt2" / "config.json").read_text())
    sizes = {50264: 50257, 50304: 50257, 21184: 21128, 250048: 250002, 65: 65, 10_000: 10_000}
    for vocab_size, n_token in sizes.items():
        checkpoint = nano()
        checkpoint["model_args"]["vocab_size"] = vocab_size
        hugging_face = read_hugging_face(settings | {"vocab_size": vocab_size}, paper(), "test")
        for config, _, _ in (hugging_face, read_nano(checkpoint, "test")):
            assert (config.vocab_size, config.n_token) == (vocab_size, n_token)


# --- Our own ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("wte.weight", None, 'Missing key.*"wte.weight"'),
        ("alpha.c_attn.weight", torch.full((32, 16), torch.inf), "alpha.c_attn.weight .*finite"),
        ("alpha.c_attn.weight", torch.ones(32, 16, dtype=torch.int64), "alpha.c_attn.weight .*int64"),
        ("wte.weight", 3, "no weights"),
    ],
)
def test_own_tensors_refused(tmp_path: Path, key: str, value: Any, message: str):
    """A checkpoint of ours is checked as strictly, and its tensors are named too."""
    save_model(tiny_model(), tmp_path / "ckpt.pt")
    checkpoint = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    checkpoint["model"] = {k: t for k, t in (checkpoint["model"] | {key: value}).items() if t is not None}
    assert re.search(message, error_of(written(tmp_path, checkpoint)))


# --- Out and back in --------------------------------------------------------------------------

WITH_LAYOUT = [
    *((s, NANO) for name, s in BACKPACKS.items() if name.startswith("nano")),
    *((s, PAPER) for name, s in BACKPACKS.items() if name.startswith("paper")),
    ({"model_name": "gpt2"}, NANO_GPT),
    (GPTS["gpt-bias"], GPT2),
]


@pytest.mark.parametrize(("settings", "layout"), WITH_LAYOUT)
def test_export_then_import_is_exact(settings: dict[str, Any], layout: Layout):
    """What is written under foreign names comes back bit for bit, and tied copies are one tensor."""
    model = tiny_model(**settings)
    state = export_state(model, layout)
    copy = build_model(ModelConfig(**TINY | settings))
    assert not same_weights(copy, model)
    import_state(copy, state, layout, "test")
    assert same_weights(copy, model)
    for name, copies in layout.copies.items():
        assert {state[key].data_ptr() for key in copies} == {state[layout.key(name)].data_ptr()}


@pytest.mark.parametrize("name", ["nano_checkpoint", "nano_checkpoint_bias", "backpack_gpt2"])
def test_import_then_export_is_exact(name: str):
    """Every tensor of an original checkpoint, but for masks, is written back as it was."""
    layout = PAPER if name == "backpack_gpt2" else NANO
    original = paper() if layout is PAPER else nano(name.removeprefix("nano_checkpoint"))["model"]
    state = export_state(load_model(GOLDEN / name), layout)
    assert state.keys() == without_masks(original).keys()
    assert all(torch.equal(state[key], original[key]) for key in state)


# --- Files that are damaged, or mean harm: tests/robust has many more --------------------------


class Harmful:
    """Unpickled by the ordinary unpickler, this makes a folder: proof that code was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def test_harmful_weights_are_refused(tmp_path: Path):
    """A file of weights that would run code is refused before it does."""
    proof, content = tmp_path / "proof", paper() | {"lm_head.weight": Harmful(tmp_path / "proof")}
    for state in (content, Harmful(proof)):
        assert "pytorch_model.bin" in error_of(paper_folder(tmp_path, state, "pytorch_model.bin"))
    assert not proof.exists()
    pickle.loads(pickle.dumps(content))  # and the trap works
    assert proof.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str):
    """A file cut short anywhere, or of another kind, is refused with one line that names it."""
    whole = (paper_folder(tmp_path, paper(), name) / name).read_bytes()
    for share in (0.0, 0.001, 0.3, 0.9, 0.999):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        assert name in error_of(tmp_path)
    for content in ({"wte.weight": 3}, {3: torch.zeros(2)}, {"wte.weight": [1, 2]}, torch.zeros(3), 7, {}):
        torch.save(content, tmp_path / name)
        assert str(tmp_path) in error_of(tmp_path)


@pytest.mark.parametrize(
    ("n", "vocab_used", "fits"), [(65, 0, True), (62, 0, False), (62, 62, True), (66, 0, False)]
)
def test_characters_must_be_as_many_as_the_rows(tmp_path: Path, n: int, vocab_used: int, fits: bool):
    """A model of characters has no padding: where some rows are left over, they are of other characters."""
    save_model(tiny_model(vocab_size=65, vocab_used=vocab_used), tmp_path / "model.pt")
    Tokenizer.from_symbols([chr(40 + i) for i in range(n)]).save(tmp_path / "t.json")
    if fits:
        assert load_model(tmp_path / "model.pt", str(tmp_path / "t.json")).config.n_token == n
    else:
        with pytest.raises(InputError, match=f"has 65 tokens, its tokenizer {n}: give the one"):
            load_model(tmp_path / "model.pt", str(tmp_path / "t.json"))


def test_nothing_there(tmp_path: Path):
    """A path that does not exist, an empty folder, and settings without weights say what is missing."""
    assert "no model at" in error_of(tmp_path / "nowhere")
    assert "no model in" in error_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "model.safetensors" in error_of(tmp_path)
