"""Reading senses: listings are what E · C says, and the experiment script shows them."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import tiny_model

import nanobackpack as nb
from nanobackpack import BackpackLM, InputError, Senses, TrainConfig, checkpoint
from nanobackpack.config import SenseConfig
from nanobackpack.senses import table
from nanobackpack.tokenizers import Tokenizer

SCRIPT = Path(__file__).parents[1] / "experiments" / "sense_vector.py"


def scores_of(model: BackpackLM, *ids: int) -> list[list[float]]:
    """E · C by hand, (K, n_token), for the mean of some ids' senses."""
    senses = sum(model.sense_vectors()[i] for i in ids) / len(ids)  # (K, D)
    real = model.wte.weight[: model.config.n_token]  # (V, D)
    return [[torch.dot(sense, e).item() for e in real] for sense in senses]


def test_projection(speller: BackpackLM):
    """projection is E · C of the word, one row a sense, one column a real token."""
    got = Senses(speller).projection("c")
    assert got.shape == (4, 8)
    expected = torch.tensor(scores_of(speller, speller.tokenizer.encode("c")[0]))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not got.requires_grad


@pytest.mark.parametrize("bottom", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8, 100])
def test_sense_projection(speller: BackpackLM, k: int, bottom: bool):
    """For each sense the k tokens with the highest scores in order, or the lowest; never a padded one."""
    rows = Senses(speller).sense_projection("e", k, bottom=bottom)
    expected = scores_of(speller, speller.tokenizer.encode("e")[0])
    assert len(rows) == 4
    for row, scores in zip(rows, expected, strict=True):
        order = sorted(range(8), key=lambda i: scores[i] if bottom else -scores[i])[:k]
        assert [entry.token for entry in row] == [speller.tokenizer.token(i) for i in order]
        assert [entry.score for entry in row] == pytest.approx([scores[i] for i in order], abs=1e-5)


def test_padding_would_have_been_listed(speller: BackpackLM):
    """The padded ids do score highest for some sense: leaving them out is not luck."""
    all_scores = torch.einsum("vkd,wd->vkw", speller.sense_vectors(), speller.wte.weight)
    assert (all_scores.argmax(dim=2) >= speller.config.n_token).any()


def test_word_of_several_tokens(speller: BackpackLM):
    """A word's senses are the mean of its tokens'; order does not matter, repeats count."""
    senses, ids = Senses(speller), speller.tokenizer.encode("gab")
    assert len(ids) == 3
    got = senses.word_senses("gab")
    assert got.shape == (4, 16)
    assert torch.allclose(got, speller.sense_vectors()[ids].mean(dim=0), atol=1e-6)
    assert torch.allclose(got, senses.word_senses("bag"), atol=1e-6)
    assert not torch.allclose(got, senses.word_senses("gaab"), atol=1e-3)
    assert torch.allclose(senses.projection("gab"), torch.tensor(scores_of(speller, *ids)), atol=1e-5)


def test_reading_changes_nothing(speller: BackpackLM):
    """Reading leaves weights, mode and gradients of the model alone, also of one in training."""
    speller.train()
    before = {name: t.clone() for name, t in speller.state_dict().items()}
    Senses(speller).sense_projection("a", 3)
    assert speller.training
    assert all(torch.equal(t, before[name]) for name, t in speller.state_dict().items())
    assert all(p.grad is None for p in speller.parameters())


def test_senses_errors(speller: BackpackLM):
    """A GPT, a model without tokenizer, an unknown character and an empty word are refused."""
    assert nb.Senses is Senses
    gpt = tiny_model(model_name="gpt2")
    gpt.tokenizer = speller.tokenizer
    with pytest.raises(InputError, match="GPT"):
        Senses(gpt)
    with pytest.raises(InputError, match="tokenizer"):
        Senses(tiny_model())
    with pytest.raises(InputError, match="'z'"):
        Senses(speller).sense_projection("z")
    with pytest.raises(InputError, match="empty"):
        Senses(speller).sense_projection("")


def test_table():
    """One line a sense, columns aligned, invisible characters shown, nothing trailing."""
    text = table("x", [["a", "\n", "long"], ["bcd", " ", "é"]])
    assert text.splitlines() == [
        "# x",
        "  sense 0   'a'    '\\n'  'long'",
        "  sense 1   'bcd'  ' '   'é'",
    ]
    many = table("x", [["a", "b"]] * 11).splitlines()[1:]
    assert len({line.index("'a'") for line in many}) == 1
    assert len({line.index("'b'") for line in many}) == 1


# --- The experiment ---------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, speller: BackpackLM) -> Path:
    """A run's folder as training leaves it, with a model trained on nothing."""
    assert speller.tokenizer is not None
    state = {
        "model": speller.state_dict(),
        "model_args": dataclasses.asdict(speller.config),
        "config": dataclasses.asdict(TrainConfig(out_dir=str(tmp_path))),
        "tokenizer": speller.tokenizer.to_json(),
        "optimizer": {"state": {}, "param_groups": []},
        "scaler": {},
        "iter_num": 0,
        "best_val_loss": float("inf"),
    }
    checkpoint.save(tmp_path / "ckpt.pt", state)
    return tmp_path


@pytest.fixture
def script() -> ModuleType:
    """experiments/sense_vector.py as a module: importing it runs nothing."""
    spec = importlib.util.spec_from_file_location("sense_vector", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_saved_model_is_the_same(run_folder: Path, speller: BackpackLM):
    """A checkpoint is self-contained: settings, weights and tokenizer come back."""
    model = nb.load_model(run_folder)
    assert isinstance(model, BackpackLM)
    assert model.config == speller.config
    assert isinstance(model.tokenizer, Tokenizer)
    assert model.tokenizer.encode("bad\n") == speller.tokenizer.encode("bad\n")
    assert torch.equal(model.sense_vectors(), speller.sense_vectors())


@pytest.mark.parametrize("by_path", [False, True])
def test_experiment(run_folder: Path, script: ModuleType, speller: BackpackLM, by_path: bool):
    """SenseVectorExperiment lists, for each sense of a word, the tokens it predicts most."""
    where = {"init_from": str(run_folder / "ckpt.pt")} if by_path else {"out_dir": str(run_folder)}
    experiment = script.SenseVectorExperiment(SenseConfig(**where, device="cpu"))
    expected = [[t.token for t in row] for row in Senses(speller).sense_projection("bad", 6)]
    assert experiment.sense_projection("bad", 6) == expected
    assert len(experiment.sense_projection("bad")[0]) == 5


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device=cpu", "--compile=False", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code or 0


def test_script(
    run_folder: Path, speller: BackpackLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The program prints one table a word, k tokens a sense."""
    assert run_script(monkeypatch, f"--out_dir={run_folder}", "--words", "bad", "e", "--k=3") == 0
    printed = capsys.readouterr().out
    words = re.split(r"^# ", printed, flags=re.MULTILINE)[1:]
    assert [text.splitlines()[0] for text in words] == ["bad", "e"]
    for word, text in zip(("bad", "e"), words, strict=True):
        rows = [re.findall(r"'(?:\\n|.)'", line) for line in text.splitlines()[1:]]
        expected = Senses(speller).sense_projection(word, 3)
        assert rows == [[repr(entry.token) for entry in row] for row in expected]


def test_script_errors(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A missing run and an unknown character end the program with status 2 and one line."""
    for arguments, message in (
        ([f"--out_dir={run_folder / 'missing'}"], "missing"),
        ([f"--out_dir={run_folder}", "--words", "xyz"], "'x'"),
        ([f"--out_dir={run_folder}", "--k=0"], "k=0"),
    ):
        assert run_script(monkeypatch, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
