"""The study of words: what its models are, and a tiny one from training to table."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import nanobackpack
from nanobackpack import InputError, Senses, load_model
from nanobackpack.evaluate import k_sweep
from nanobackpack.evaluate.k_sweep import KSweepConfig
from nanobackpack.evaluate.words import MODELS, WordsConfig, main, run_config
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import make_tokenizer
from nanobackpack.train.checkpoint import build_model


def test_the_gpts_are_what_they_are_compared_as() -> None:
    """One has the blocks of the Backpacks, the other their weights."""
    configs = {
        name: run_config(WordsConfig(data=("rg65=x",)), name, 1).model_config(20_544) for name in MODELS
    }
    assert configs["gpt"].n_block == configs["k16"].n_block == configs["k1"].n_block
    sizes = {name: build_model(configs[name]).num_params() for name in ("k16", "gpt-large")}
    assert abs(sizes["gpt-large"] / sizes["k16"] - 1) < 0.05
    assert [configs[f"k{k}"].n_sense_vector for k in (1, 4, 8, 16)] == [1, 4, 8, 16]


TINY = ("n_embd=32", "n_layer=2", "batch_size=2", "block_size=16", "eval_iters=1")


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_tiny_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends within its time, and leaves weights in float16 that are those of the run."""
    words = [f"word{i}" for i in range(12)]
    text = "".join(f" {word} : like {other} ; and {word}\n" for word in words for other in words)
    for name in ("words", "words_small"):
        tokenizer = make_tokenizer("bpe:300", [text])
        write_dataset(tmp_path / name, text, tokenizer, val_fraction=0.2, source="a test")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("".join(f"{a};{b};{i}\n" for i, (a, b) in enumerate(itertools.pairwise(words))))
    settings = WordsConfig(
        data=(f"rg65={pairs}",), models=("k16", "gpt", "small"), seeds=(1, 2), max_iters=4, minutes=5, jobs=2,
        device="cpu", data_dir=str(tmp_path), out_dir=str(tmp_path / "out"), flags=TINY,
        json=str(tmp_path / "words.json"),
    )  # fmt: skip
    main(settings)
    found = json.loads((tmp_path / "words.json").read_text())
    assert found["steps"] == 4
    assert {name: len(losses) for name, losses in found["losses"].items()} == {"k16": 2, "gpt": 2, "small": 2}
    assert len(found["rho"]["rg65 untrained min"]) == 3
    mean, low, high = found["differences"]["rg65 k16 min − gpt E"]
    assert low <= mean <= high
    assert "rg65 k16 min − k16 E" in capsys.readouterr().out
    best = min((1, 2), key=lambda seed: found["losses"]["small"][seed - 1])
    whole, half = (load_model(tmp_path / "out" / name) for name in (f"small-{best}", "words-small"))
    for (_, a), (_, b) in zip(whole.named_parameters(), half.named_parameters(), strict=True):
        assert a.detach().half().equal(b.detach().half())
    assert whole.tokenizer.encode(" word1") == half.tokenizer.encode(" word1")  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_tiny_sweep_of_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The models differ in K alone, the GPT has the same blocks; a table of your own gives a ρ."""
    text = "".join(f" word{i} : like word{i % 7} ; and word{i % 5}\n" for i in range(60))
    tokenizer = make_tokenizer("bpe:300", [text])
    write_dataset(tmp_path / "text", text, tokenizer, val_fraction=0.2, source="a test")
    (tmp_path / "mine.csv").write_text("".join(f"word{i},word{i % 7},{i}\n" for i in range(12)))
    settings = KSweepConfig(
        dataset=str(tmp_path / "text"), ks=(1, 4), seeds=(1,), data=(f"mine={tmp_path / 'mine.csv'}",),
        max_iters=2, device="cpu", out_dir=str(tmp_path / "out"), flags=TINY, json=str(tmp_path / "k.json"),
    )  # fmt: skip
    k_sweep.main(settings)
    found = json.loads((tmp_path / "k.json").read_text())
    assert {name: len(losses) for name, losses in found["losses"].items()} == {"k1": 1, "k4": 1, "gpt": 1}
    assert len(found["rho"]["mine untrained min"]) == 3
    assert "mine k4 min − gpt E" in found["differences"]
    assert "numbers of senses, 2 steps" in capsys.readouterr().out
    blocks = {load_model(tmp_path / "out" / f"{name}-1").config.n_block for name in ("k1", "k4", "gpt")}
    assert len(blocks) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ks": ()}, "numbers of senses"),
        ({"ks": (0,)}, "ks=0"),
        ({"data": ("a",)}, "NAME=FILE"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_what_the_sweep_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        KSweepConfig(**{"dataset": "x"} | settings)
    with pytest.raises(InputError, match="n_sense_vector"):
        k_sweep.main(KSweepConfig(dataset="x", ks=(5,), flags=("n_embd=32",)))
    with pytest.raises(InputError, match="nothing-here"):
        k_sweep.main(KSweepConfig(dataset="nothing-here", out_dir="none"))
    assert not Path("none").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ("k2",)}, "k2"),
        ({"data": ()}, "a test set"),
        ({"jobs": 0}, "jobs"),
        ({"seeds": ()}, "a seed"),
    ],
)
def test_what_the_study_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WordsConfig(**{"data": ("rg65=x",)} | settings)


BUNDLED = Path(nanobackpack.__file__).parent / "weights" / "words-small"


def test_the_model_that_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens by its name anywhere, knows who is like a doctor, and is small; your folder comes first."""
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 12_000_000
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in (BUNDLED / "README.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    model = load_model("words-small")
    liked = Senses(model).sense_projection("doctor", k=5).table().split("lowest")[0]
    assert " physician" in liked
    assert " dentist" in liked
    (tmp_path / "words-small").mkdir()
    with pytest.raises(InputError, match="no model in words-small"):
        load_model("words-small")
