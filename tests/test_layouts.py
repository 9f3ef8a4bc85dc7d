"""Checkpoints of other programs: read exactly, written back exactly, refused where wrong, never executed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pickle
import re
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
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
    OURS,
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


def without_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: t for key, t in state.items() if key != ALPHA + "bias"}


@pytest.mark.parametrize("kind", ["", "_bias"])
def test_nano_masks(tmp_path: Path, kind: str):
    """Mask buffers, there or not, change nothing in what is computed."""
    checkpoint = nano(kind)
    state = checkpoint["model"]
    more = {f"{ALPHA}transformer.h.{i}.attn.bias": mask() for i in range(2)}
    for weights in (state | more, without_masks(state)):
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
        ("model_args", "n_head", None, "no n_head"),
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


@pytest.mark.parametrize("gelu", ["gelu_new", "gelu", None])
def test_nanogpt(tmp_path: Path, gelu: str | None, recwarn: pytest.WarningsRecorder):
    """nanoGPT's ckpt.pt, GPT-2 with linear weights as (out, in), opens as a GPT with the same logits. A
    config.json beside it says which GELU it has; without one a warning does, but not of nanoBackpackLM's."""
    reference = gpt2(activation_function=gelu or "gelu_new")
    state = {}
    for key, t in reference.state_dict().items():
        conv1d = ".c_" in key and key.endswith(".weight")
        state[key] = t.t().contiguous() if conv1d else t
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 61}
    args |= {"bias": True, "dropout": 0.0}
    if gelu:
        (tmp_path / "config.json").write_text(json.dumps({"activation_function": gelu}))
    checkpoint = {"model": state, "model_args": args}
    assert_same_logits(load_model(written(tmp_path, checkpoint)), reference)
    assert ["if of nanoGPT since May 2023, put {" in str(w.message) for w in recwarn] == [True] * (not gelu)
    load_model(written(tmp_path, checkpoint | {"config": {"model_name": "gpt2"}}))
    assert len(recwarn) == (not gelu)
    (tmp_path / "config.json").write_text('{"activation_function": "relu"}')
    assert "gelu='relu'" in error_of(tmp_path / "ckpt.pt")


def test_gpt2_config_refused(tmp_path: Path):
    """A config.json that is damaged, incomplete or asks for what we do not have is refused."""
    save_gpt2(tmp_path)
    assert isinstance(load_model(tmp_path), GPT)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    # A setting that would change the numbers must not be ignored.
    changes = {"model_type": "llama", "activation_function": "relu", "layer_norm_epsilon": 1e-6}
    changes |= {"n_inner": 63, "scale_attn_weights": False, "tie_word_embeddings": False}
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
    if weights.endswith(".safetensors"):
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


def test_padded_vocabularies():
    """The sizes the originals pad a known tokenizer to are recognised; any other has no padding."""
    settings = json.loads((GOLDEN / "backpack_gpt2" / "config.json").read_text())
    sizes = {50264: 50257, 50304: 50257, 21184: 21128, 250048: 250002, 65: 65, 10_000: 10_000}
    for vocab_size, n_token in sizes.items():
        checkpoint = nano()
        checkpoint["model_args"]["vocab_size"] = vocab_size
        hugging_face = read_hugging_face(settings | {"vocab_size": vocab_size}, paper(), "test")
        for config, _, _ in (hugging_face, read_nano(checkpoint["model_args"], checkpoint["model"], "test")):
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
    *((s, PAPER) for name, s in BACKPACKS.items() if name.startswith("paper-bias")),
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


# --- In several files, under a wrapper's names, without settings -------------------------------


def sharded(folder: Path, single: str = "model.safetensors") -> list[str]:
    """The paper's model in two files, whose names are returned, and an index."""
    state, (stem, kind), weight_map = paper(), single.split("."), {}
    for name, keys in ((f"{stem}-{i + 1}-of-2.{kind}", sorted(state)[i::2]) for i in range(2)):
        paper_folder(folder, {key: state[key] for key in keys}, name)
        weight_map |= dict.fromkeys(keys, name)
    (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sorted({*weight_map.values()})


@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
def test_sharded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: str):
    """From a folder, and from the hub, where only the files that the index names are asked for."""
    shards, asked = sharded(tmp_path, single), []
    fetch = lambda _, allow_patterns: asked.extend(allow_patterns) or tmp_path  # noqa: E731
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for source in (tmp_path, "owner/name"):
        assert golden_error(load_model(source), "backpack_gpt2") < 1e-5
    assert sorted(asked[-2:]) == shards
    # One file comes before several of its kind.
    paper_folder(tmp_path, paper(), single)
    (tmp_path / shards[0]).unlink()
    assert golden_error(load_model(tmp_path), "backpack_gpt2") < 1e-5


@pytest.mark.parametrize("wrapper", ["module.", "module._orig_mod.", "model.transformer.", "transformer."])
def test_names_of_wrappers(tmp_path: Path, wrapper: str):
    """What stands before all names goes, in each layout; what torch put in the middle of some too."""

    def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {wrapper + key.replace(".h.1.", ".h.1._orig_mod."): t for key, t in state.items()}
        return named | {"n_averaged": torch.tensor(3)}

    gpt = save_gpt2(tmp_path)  # whose names begin with "transformer." anyway, but for the head's
    headless = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for state in (headless, export_state(gpt, GPT2)):
        torch.save(wrapped(state), tmp_path / "pytorch_model.bin")
        assert same_weights(load_model(tmp_path), gpt)
    paper_folder(tmp_path, wrapped(paper()), "pytorch_model.bin")
    assert golden_error(load_model(tmp_path), "backpack_gpt2") < 1e-5
    checkpoint = nano("_bias")
    checkpoint["model"] = wrapped(checkpoint["model"])
    assert golden_error(load_model(written(tmp_path, checkpoint)), "nano_checkpoint_bias") < 1e-5
    checkpoint["model"] |= {f"_orig_mod.{key}": t for key, t in checkpoint["model"].items()}
    assert "two tensors have the same name" in error_of(written(tmp_path, checkpoint))


@pytest.mark.filterwarnings("ignore:.*GPT-2's GELU")
@pytest.mark.parametrize("layout", [NANO, NANO_GPT, GPT2, OURS], ids=lambda layout: layout.title)
@pytest.mark.parametrize("bias", [True, False])
def test_tensors_without_settings(tmp_path: Path, layout: Layout, bias: bool):
    """Their shapes tell all but the number of heads, which a config.json beside them does."""
    kind = {} if layout is NANO else {"model_name": "gpt2", "n_sense_vector": 16}
    model = tiny_model(**{"bias": bias or layout is GPT2, "vocab_used": 0} | kind)
    state, file = export_state(model, layout), tmp_path / "any.pt"
    fork = {"model": state, "model_args": {"n_head": 2, "n_layer": 3}}
    for content in (fork, state, {"state_dict": state, "epoch": 3}, {"model_state_dict": state}):
        torch.save(content, file)
        if content is not fork:
            assert "3 layers and width 16, but no n_head: put {" in error_of(file)
            (tmp_path / "config.json").write_text('{"n_head": 2}')
        opened = load_model(file)
        assert same_weights(opened, model)
        assert opened.config == dataclasses.replace(model.config, dropout=0.0)
        (tmp_path / "config.json").unlink(missing_ok=True)


# --- What was found instead --------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ST, SHARD, INDEX = "model.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"
FOUND: list[tuple[dict[str, Any], str]] = [
    ({}, "it holds nothing (0 in all)"),
    ({f"{c}.txt": b"" for c in "cbafed"}, "it holds a.txt, b.txt, c.txt, d.txt, ... (6 in all)"),
    ({"adapter_model.safetensors": b""}, "is an adapter (LoRA)"),
    ({"m.gguf": b"GGUF"}, "m.gguf is for another program"),
    *(({"config.json": b"{}", name: b""}, f"config.json, {name} (2 in all); {name} is for another program")
      for name in ("flax_model.msgpack", "model.onnx", "tf_model.h5")),
    *(({"config.json": b"{}", name: LFS}, f"{name} is a pointer of git-lfs")
      for name in ("ckpt.pt", "pytorch_model.bin", ST, SHARD)),
    ({"ckpt.pt": b"<!DOCTYPE html>\n<HTML>"}, "ckpt.pt is a web page"),
    ({"ckpt.pt": b'{"error": 1}'}, "it begins b'{\"error\": 1}'"),
    ({"ckpt.pt": b""}, "ckpt.pt is empty"),
    ({SHARD: lambda old: old[:-9]}, f"{SHARD} cannot be read"),
    ({SHARD: lambda old: old.replace(b"[72,32]", b"[32,72]")}, "wte.weight has shape (32, 72), it must be"),
    ({SHARD: None}, f"names {SHARD}: not there, 1 of 2 files"),
    ({INDEX: {"weight_map": {"x": SHARD}}}, f"{SHARD} has no x, which {INDEX} says"),
    *(({INDEX: content}, "has no weight_map") for content in ([], {}, {"weight_map": {}})),
    *(({INDEX: {"weight_map": {"x": name}}}, f"names {name!r}, which is no .safetensors file beside it")
      for name in (f"../{SHARD}", f"/{SHARD}", "*.safetensors", "a\\b.safetensors", "m.py", "", 3, [SHARD])),
]  # fmt: skip


@pytest.mark.parametrize(("files", "words"), FOUND)
def test_a_message_says_what_was_found(tmp_path: Path, files: dict[str, Any], words: str):
    if files.keys() & {SHARD, INDEX}:
        sharded(tmp_path)
    for path, content in ((tmp_path / name, content) for name, content in files.items()):
        if callable(content):
            content = content(path.read_bytes())
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        if content is None:
            path.unlink()
    assert words in error_of(tmp_path)


def test_another_model_is_described(tmp_path: Path):
    net = {"conv1.weight": torch.ones(3), "fc.bias": torch.ones(3)}
    assert "holds epoch, net (conv1.weight, fc.bias)" in error_of(written(tmp_path, {"epoch": 3, "net": net}))
    assert "no tensor transformer.wte.weight for a GPT-2 model among conv" in error_of(written(tmp_path, net))


def test_objects_can_be_made_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message has a command that does it, but not where the object may be a program in disguise."""
    objects = [np.float32(1.5), np.arange(3), Path("a"), torch.float16, torch.device("cpu"), {1}, b"x"]
    for value in (*objects, defaultdict(int), argparse.Namespace(lr=1)):
        text = error_of(
            written(tmp_path, nano() | {"best_val_loss": value, "more": [None, True, *objects, dict]})
        )
        code, *names = shlex.split(text.partition("if you trust its maker, copy it without ")[2])[8:]
    monkeypatch.setattr(sys, "argv", ["-c", *names])
    exec(code, {})
    assert same_weights(load_model(tmp_path / "ckpt_plain.pt"), load_model(GOLDEN / "nano_checkpoint"))
    plain = torch.load(tmp_path / "ckpt_plain.pt", weights_only=True)
    assert [plain["best_val_loss"], *plain["more"][:4]] == ["Namespace(lr=1)", None, True, 1.5, [0, 1, 2]]
    assert "trust" not in error_of(written(tmp_path, nano() | {"x": Harmful(tmp_path / "proof")}))


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
    assert "no model at" in error_of(tmp_path / "nowhere")


def test_opening_a_model_draws_no_fresh_weights(tmp_path: Path) -> None:
    """They would be thrown away, and drawing them took longer than all the rest."""
    save_model(tiny_model(), tmp_path / "ckpt.pt")
    before = torch.get_rng_state()
    load_model(tmp_path / "ckpt.pt")
    assert torch.equal(torch.get_rng_state(), before)
