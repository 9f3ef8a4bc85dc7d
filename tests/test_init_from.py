"""What a run starts from: GPT-2 as it is or inside a Backpack, any checkpoint, its own last state."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_gpt2, tiny_model
from tokenizers import ByteLevelBPETokenizer

from nanobackpack import GPT, BackpackLM, cli, load_model
from nanobackpack.commands import sample
from nanobackpack.config import SampleConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.log import read_metrics
from nanobackpack.train.trainer import Trainer, train

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
V = 19  # real tokens of the tiny models, whose embedding has 23 rows
TEXT = "abcdefghijklmnopqrs" * 20


def settings(data: Path, out: Path, init_from: str | Path, **changes: Any) -> TrainConfig:
    """A run that leaves the architecture to what it starts from."""
    values: dict[str, Any] = {
        "dataset": str(data), "out_dir": str(out), "init_from": str(init_from), "device": "cpu",
        "compile": False, "n_sense_vector": 4, "batch_size": 4, "max_iters": 2, "eval_iters": 2,
        "eval_interval": 2, "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 1,
    }  # fmt: skip
    return TrainConfig(**values | changes)


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    return ids_alone(tmp_path / "bins", np.random.default_rng(1).integers(V, size=200))


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """19 letters, with their tokenizer."""
    folder = tmp_path / "letters"
    write_dataset(folder, TEXT, Tokenizer.char(TEXT), val_fraction=0.1, source="a test")
    return folder


def saved(folder: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> BackpackLM | GPT:
    """A tiny model as a run's folder."""
    model = tiny_model(**changes)
    model.tokenizer = tokenizer
    folder.mkdir()
    checkpoint.save_model(model, folder / "ckpt.pt")
    return model


def ids_alone(folder: Path, ids: Any) -> Path:
    """A data set of token ids without a tokenizer."""
    folder.mkdir()
    for split in ("train", "val"):
        np.asarray(ids).astype("<u2").tofile(folder / f"{split}.bin")
    return folder


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def error_of(config: TrainConfig) -> str:
    with pytest.raises(InputError) as error:
        Trainer(config)
    assert "\n" not in str(error.value)
    assert not Path(config.out_dir).exists()
    return str(error.value)


# --- GPT-2 ------------------------------------------------------------------------------------


def test_gpt2_as_it_is(bins: Path, tmp_path: Path) -> None:
    """Its own weights and vocabulary: padded rows would have logit 0, and GPT-2's own are far below."""
    gpt = save_gpt2(tmp_path / "gpt")
    trainer = Trainer(settings(bins, tmp_path / "out", tmp_path / "gpt", model_name="gpt2"))
    assert isinstance(trainer.model, GPT)
    assert equal(trainer.model, gpt)
    assert trainer.model.training
    assert (trainer.step, trainer.best_val_loss) == (0, math.inf)
    assert not trainer.optimizer.state  # a fresh one
    config = trainer.model.config
    assert (config.dropout, config.bias, config.vocab_size, config.block_size) == (0.0, True, 23, 12)
    assert (trainer.config.n_layer, trainer.config.n_embd, trainer.config.block_size) == (3, 16, 12)


@pytest.mark.parametrize("network", ["nano", "paper"])
def test_gpt2_becomes_the_context_network_of_a_backpack(bins: Path, tmp_path: Path, network: str) -> None:
    gpt = save_gpt2(tmp_path / "gpt")
    config = settings(bins, tmp_path / "out", tmp_path / "gpt", sense_network=network, learning_rate=0.01)
    model = Trainer(config).model
    assert isinstance(model, BackpackLM)
    assert equal(model.context, gpt.context)
    assert torch.equal(model.wte.weight, gpt.wte.weight)
    assert model.config.n_layer == (4 if network == "nano" else 3)
    assert model.config.n_block == 3
    ids = torch.arange(10)[None]
    with torch.no_grad():
        h = model.eval().context(model.wte(ids))
        assert torch.equal(h, gpt.context(gpt.wte(ids)))
        loss = model(ids[:, :-1], ids[:, 1:]).loss
    assert loss is not None
    assert abs(loss.item() - math.log(23)) < 1  # fresh senses know nothing, and are not sure of it
    other = Trainer(dataclasses.replace(config, seed=7)).model
    assert not torch.equal(other.alpha.c_attn.weight, model.alpha.c_attn.weight)
    # A run's folder that holds a GPT is such a source too, and the run says what it did.
    assert train(config) == 0
    assert load_model(tmp_path / "out").config == model.config


def test_gpt2_rows_are_padded_for_a_backpack(tmp_path: Path) -> None:
    """50257 rows become 50304, as all of ours with GPT-2's tokens; the new ones are 0 and never sampled."""
    save_gpt2(tmp_path / "gpt", vocab_size=50257, vocab_used=0, n_embd=2, n_head=1, n_layer=1)
    config = settings(
        ids_alone(tmp_path / "data", range(30)), tmp_path / "out", tmp_path / "gpt", n_sense_vector=2
    )
    model = Trainer(config).model
    assert (model.config.vocab_size, model.config.n_token) == (50304, 50257)
    assert model.wte.weight[50257:].abs().max() == 0
    assert model.wte.weight[50256].abs().max() > 0
    gpt = Trainer(dataclasses.replace(config, model_name="gpt2", n_sense_vector=16)).model
    assert (gpt.config.vocab_size, gpt.config.n_token) == (50257, 50257)


def test_a_run_says_where_its_weights_come_from(
    bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_gpt2(tmp_path / "gpt")
    train(settings(bins, tmp_path / "out", tmp_path / "gpt"))
    out = capsys.readouterr().out
    assert "fresh senses; n_layer=4 is its 3 blocks and the sense network" in out
    train(settings(bins, tmp_path / "more", tmp_path / "out"))
    assert f"weights of {tmp_path / 'out'}" in capsys.readouterr().out


# --- Other checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "as_file"), [("nano", False), ("paper", True)])
def test_any_checkpoint(bins: Path, tmp_path: Path, kind: str, as_file: bool) -> None:
    model = saved(tmp_path / "first", sense_network=kind, bias=True)
    source = tmp_path / "first" / "ckpt.pt" if as_file else tmp_path / "first"
    trainer = Trainer(settings(bins, tmp_path / "out", source, dropout=0.1))
    assert equal(trainer.model, model)
    assert trainer.model.config == dataclasses.replace(model.config, dropout=0.1)
    assert trainer.step == 0


@pytest.mark.parametrize("name", ["nano_checkpoint_bias", "backpack_gpt2"])
def test_foreign_checkpoints(tmp_path: Path, name: str) -> None:
    """nanoBackpackLM's ckpt.pt and a backpack-gpt2 folder start a run as ours do."""
    model = load_model(GOLDEN / name)
    folder = ids_alone(tmp_path / "data", np.arange(600) % 50)
    changes = {"n_sense_vector": model.config.n_sense_vector, "max_iters": 1}
    config = settings(folder, tmp_path / "out", GOLDEN / name, **changes)
    assert equal(Trainer(config).model, model)
    assert train(config) == 0
    assert load_model(tmp_path / "out").config.n_layer == model.config.n_layer


def test_a_smaller_block_size_drops_positions(bins: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "first")
    config = settings(bins, tmp_path / "out", tmp_path / "first", block_size=5)
    trainer = Trainer(config)
    assert trainer.model.config.block_size == 5
    assert torch.equal(trainer.model.context.wpe.weight, model.context.wpe.weight[:5])
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(ids).logits, model(ids).logits)
    assert train(config) == 0
    assert load_model(tmp_path / "out").config.block_size == 5


@pytest.mark.parametrize("kind", ["backpack-lm", "gpt2"])
def test_a_started_run_resumes_with_the_same_command(bins: Path, tmp_path: Path, kind: str) -> None:
    """Settings that were left at their defaults follow the checkpoint then, too."""
    save_gpt2(tmp_path / "gpt")
    for out, stops in (("whole", [4]), ("parts", [2, 4])):
        init_from: str | Path = tmp_path / "gpt"
        for max_iters in stops:
            config = settings(bins, tmp_path / out, init_from, max_iters=max_iters, model_name=kind)
            assert train(config) == 0
            init_from = "resume"
    assert equal(load_model(tmp_path / "whole"), load_model(tmp_path / "parts"))


# --- What does not fit ------------------------------------------------------------------------


def test_settings_that_contradict_the_checkpoint(bins: Path, tmp_path: Path) -> None:
    saved(tmp_path / "first")
    save_gpt2(tmp_path / "gpt")
    out = tmp_path / "out"
    message = error_of(
        settings(bins, out, tmp_path / "first", n_layer=5, n_embd=24, bias=True, block_size=99)
    )
    for part in ("n_layer=5 (it has 3)", "n_embd=24 (it has 16)", "bias=True (it has False)"):
        assert part in message
    assert "block_size=99 (it has 12)" in message
    assert "n_head" not in message
    assert "n_layer=3 (it has 4)" in error_of(settings(bins, out, tmp_path / "gpt", n_layer=3))
    assert "does not divide" in error_of(settings(bins, out, tmp_path / "gpt", n_sense_vector=3, n_embd=768))
    message = error_of(settings(bins, out, tmp_path / "first", model_name="gpt2"))
    assert "is a Backpack, which cannot start a GPT" in message
    assert "no model at" in error_of(settings(bins, out, tmp_path / "nothing"))


def test_another_vocabulary_is_refused_by_both_names(bins: Path, letters: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    saved(tmp_path / "same", Tokenizer.char(TEXT), vocab_used=V)
    assert Trainer(settings(letters, out, tmp_path / "same")).step == 0
    saved(tmp_path / "unnamed", vocab_used=V)
    assert Trainer(settings(letters, out, tmp_path / "unnamed")).step == 0
    saved(tmp_path / "other", Tokenizer.char(TEXT.replace("c", "C")))
    message = error_of(settings(letters, out, tmp_path / "other"))
    assert f"{tmp_path / 'other'} has a char tokenizer of 19 tokens" in message
    assert f"{letters} has a char tokenizer of 19 tokens" in message
    assert "id 0 is 'C' in one and 'a' in the other" in message
    saved(tmp_path / "larger", vocab_used=23)
    message = error_of(settings(letters, out, tmp_path / "larger"))
    assert "has 23 tokens" in message
    assert "19 tokens" in message
    saved(tmp_path / "smaller", vocab_used=7)
    message = error_of(settings(bins, out, tmp_path / "smaller"))
    assert f"{tmp_path / 'smaller'} has 7 tokens: " in message
    assert f"{bins / 'train.bin'} holds the id 18" in message


def test_the_model_s_tokenizer_stays_with_ids_alone(bins: Path, tmp_path: Path) -> None:
    saved(tmp_path / "first", Tokenizer.char(TEXT))
    train(settings(bins, tmp_path / "out", tmp_path / "first"))
    tokenizer = load_model(tmp_path / "out").tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("bad") == [1, 0, 3]
    assert [r for r in read_metrics(tmp_path / "out" / "metrics.jsonl") if "val_loss" in r]


# --- The hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache as huggingface_hub lays it out, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return cache


def snapshot(cache: Path, name: str) -> Path:
    """The folder of a model of that name in the cache."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc123")
    (repo / "snapshots" / "abc123").mkdir(parents=True)
    return repo / "snapshots" / "abc123"


def byte_level(folder: Path, text: str) -> ByteLevelBPETokenizer:
    """GPT-2's kind of tokenizer, as vocab.json and merges.txt."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text], vocab_size=280, min_frequency=1, show_progress=False)
    tokenizer.save_model(str(folder))
    return tokenizer


def test_gpt2_from_the_hub(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--init_from=gpt2` needs no folder: weights and tokenizer come from the hub's cache."""
    folder = snapshot(hub, "gpt2")
    reference = byte_level(folder, "What is the answer to life, the universe, and everything? " * 3)
    gpt = save_gpt2(folder, vocab_size=reference.get_vocab_size(), vocab_used=0)
    model = load_model("gpt2")
    assert equal(model, gpt)
    assert model.tokenizer is not None
    text = "the answer to everything, ünïcode too"
    assert model.tokenizer.encode(text) == reference.encode(text).ids
    assert model.tokenizer.decode(reference.encode(text).ids) == text
    start = "What is the answer to life, the universe, and everything?"
    config = SampleConfig(init_from="gpt2", start=start, num_samples=2, max_new_tokens=3, device="cpu")
    sample.main(config)
    assert capsys.readouterr().out.count(start) == 2


def test_a_backpack_from_the_hub(hub: Path) -> None:
    """stanfordnlp/backpack-gpt2 has pytorch_model.bin, which is read without unpickling code."""
    folder = snapshot(hub, "stanfordnlp/backpack-gpt2")
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_bytes((GOLDEN / "backpack_gpt2" / name).read_bytes())
    model = load_model("stanfordnlp/backpack-gpt2")
    assert equal(model, load_model(GOLDEN / "backpack_gpt2"))


def test_without_a_network_the_way_out_is_named(hub: Path) -> None:
    for name in ("gpt2-xl", "stanfordnlp/backpack-gpt2"):
        with pytest.raises(InputError) as error:
            load_model(name)
        assert "\n" not in str(error.value)
        assert f"{name} is no file or folder here" in str(error.value)
        assert "name a local folder" in str(error.value)
    folder = snapshot(hub, "gpt2-xl")
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match=r"it has no config\.json"):
        load_model("gpt2-xl")
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_model("gpt2-xl")


def test_a_local_folder_comes_before_the_hub(hub: Path, tmp_path: Path) -> None:
    gpt = save_gpt2(tmp_path / "gpt2")
    assert equal(load_model("gpt2"), gpt)


def test_the_page_s_command_on_backpack_small(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the folder of that name, else the published model; where neither is, both ways are named."""
    start = "What is the answer to life, the universe, and everything?"
    flags = ["--init_from=backpack-small", f"--start={start}", "--num_samples=5", "--max_new_tokens=100"]

    def sampled() -> tuple[str, str]:
        with pytest.raises(SystemExit):
            cli.run(sample.main, SampleConfig, flags)
        out, err = capsys.readouterr()
        return out, err

    monkeypatch.chdir(tmp_path)
    out, err = sampled()
    assert (out, err.count("\n")) == ("", 1)
    assert (
        "error: no folder backpack-small, and stanfordnlp/backpack-gpt2 is no file or folder here and "
        "cannot be fetched from the Hugging Face hub ("
    ) in err
    assert "config.json and weights, or train it with `nanobackpack train backpack_lm`\n" in err
    folder = snapshot(hub, "stanfordnlp/backpack-gpt2")
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).write_bytes((GOLDEN / "backpack_gpt2" / name).read_bytes())
    Tokenizer.from_symbols([*dict.fromkeys(start), *map(chr, range(0x400, 0x400 + 72))][:72]).save(
        folder / "tokenizer.json"
    )
    out, err = sampled()
    assert out.count(start) == 5
    assert "no folder backpack-small: this is stanfordnlp/backpack-gpt2 of the Hugging Face hub\n" in err
    saved(tmp_path / "backpack-small", Tokenizer.char(start + TEXT), vocab_size=64, vocab_used=28)
    out, err = sampled()
    note = "note: the prompt has 57 tokens, this model reads 12: all before ' everything?' is cut\n"
    assert (out.count(start), err) == (5, note)
