"""Perplexity: against the definition computed directly, and what the two programs print and write."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_gpt2, tiny_model
from torch import Tensor

from nanobackpack.analysis import control
from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate.perplexity import (
    PerplexityConfig,
    loss_of,
    main,
    mean,
    open_stream,
    perplexity,
    with_bits,
)
from nanobackpack.model.backpack import LanguageModel, Output
from nanobackpack.text.data import Mixture, TokenData
from nanobackpack.text.meta import Meta
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.trainer import train

ROOT = Path(__file__).resolve().parents[1]
T = 12  # block_size of the tiny models
STREAM = np.random.default_rng(0).integers(19, size=5 * T + 4).astype("<u2")


def stream(folder: Path, ids: np.ndarray = STREAM, name: str = "evaluation") -> TokenData:
    ids.astype("<u2").tofile(folder / f"{name}.bin")
    return TokenData(folder, files={name: folder / f"{name}.bin"})


class Unigram(LanguageModel):
    """A model that gives token i the probability p[i], whatever came before."""

    def __init__(self, p: list[float]) -> None:
        super().__init__(
            ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=2, vocab_size=3, n_sense_vector=1)
        )
        self.p = p

    def forward(self, input_ids: Tensor, targets: Tensor, loss_only: bool) -> Output:
        log_p = torch.tensor(self.p).log()
        return Output(None, -log_p[targets].mean())


def direct(model: LanguageModel, ids: np.ndarray, block_size: int) -> list[float]:
    """-ln p of each token but the first, from its window's beginning: one position at a time."""
    losses = []
    for i in range(1, len(ids)):
        start = (i - 1) // block_size * block_size
        context = torch.tensor(ids[start:i].astype(np.int64))[None]  # (1, t)
        with torch.no_grad():
            p = model(context).logits[0, -1].double().softmax(dim=0)
        losses.append(-math.log(p[int(ids[i])]))
    return losses


@pytest.mark.parametrize("kind", ["backpack-lm", "gpt2"])
def test_the_whole_stream_is_the_definition(tmp_path: Path, kind: str) -> None:
    model = tiny_model(model_name=kind)
    losses = direct(model, STREAM, T)
    for batch_size in (1, 2, 7):
        result = perplexity(model, stream(tmp_path), "evaluation", batch_size=batch_size)
        assert result.tokens == len(STREAM) - 1
        assert result.nats_per_token == pytest.approx(np.mean(losses), abs=1e-5)
        assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert not model.training


def test_windows_are_as_long_as_the_model_can_read(tmp_path: Path) -> None:
    """nanoBackpackLM's script broke on any block_size but 1024."""
    short = tiny_model(block_size=5)
    result = perplexity(short, stream(tmp_path), "evaluation")
    assert result.nats_per_token == pytest.approx(np.mean(direct(short, STREAM, 5)), abs=1e-5)


def test_losses_1_and_3_are_a_perplexity_of_7_389(tmp_path: Path) -> None:
    """exp of the mean, not the mean of exp: (e + e³) / 2 = 11.4."""
    p = [math.exp(-1), math.exp(-3)]
    model = Unigram([*p, 1 - sum(p)])
    data = stream(tmp_path, np.array([2, 0, 1, 0, 1, 0, 1]))
    assert perplexity(model, data, "evaluation", batch_size=1).perplexity == pytest.approx(7.389, abs=1e-3)
    uneven = stream(tmp_path, np.array([2, 0, 0, 1]))  # windows of 2 and 1: tokens count, not windows
    result = perplexity(model, uneven, "evaluation", batch_size=1)
    assert result.nats_per_token == pytest.approx((1 + 1 + 3) / 3, abs=1e-6)


def test_a_random_sample_is_repeatable(tmp_path: Path) -> None:
    model, data = tiny_model(), stream(tmp_path)
    some = perplexity(model, data, "evaluation", batch_size=3, n_batch=4, seed=5)
    assert some == perplexity(model, data, "evaluation", batch_size=3, n_batch=4, seed=5)
    assert some != perplexity(model, data, "evaluation", batch_size=3, n_batch=4, seed=6)
    assert some.tokens == 3 * 4 * T
    many = perplexity(model, data, "evaluation", batch_size=50, n_batch=40)
    ids = torch.from_numpy(STREAM.astype(np.int64)).unfold(0, T + 1, 1)  # (windows, T+1)
    every, _ = loss_of(model, [(ids[:, :-1], ids[:, 1:])])
    assert many.nats_per_token == pytest.approx(every, abs=0.03)


def test_bits() -> None:
    row = with_bits("val", 10, 2 * math.log(2), 4.0)
    assert (row.perplexity, row.bits_per_token, row.bits_per_char) == pytest.approx((4.0, 2.0, 0.5))
    assert with_bits("val", 10, 1.0).bits_per_char is None
    assert with_bits("val", 10, 1e4).perplexity == math.inf
    both = mean("all", [with_bits("a", 30, 1.0, 2.0), with_bits("b", 10, 3.0, 6.0)])
    assert both == with_bits("all", 40, 1.5, 3.0)
    assert mean("all", [row, with_bits("b", 10, 3.0)]).bits_per_char is None


# --- The programs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, on data whose evaluation split holds the same text as its val split."""
    folder = tmp_path_factory.mktemp("run")
    text = "the quick brown fox jumps over the lazy dog. " * 20
    tokenizer = Tokenizer.char(text)
    ids = np.array(tokenizer.encode(text), "<u2")
    tokens = {"train": 500, "val": 200, "evaluation": 200}
    (folder / "data").mkdir()
    for split, n in tokens.items():
        ids[:n].tofile(folder / "data" / f"{split}.bin")
    tokenizer.save(folder / "data" / "tokenizer.json")
    Meta(
        vocab_size=tokenizer.vocab_size, dtype="uint16", tokens=tokens, chars=tokens | {"evaluation": 600},
        tokenizer="tokenizer.json", source="a test", sha256={},
    ).save(folder / "data" / "meta.json")  # fmt: skip
    config = TrainConfig(
        dataset=str(folder / "data"), out_dir=str(folder / "out"), device="cpu", compile=False, n_layer=2,
        n_head=2, n_embd=16, n_sense_vector=2, block_size=16, batch_size=4, max_iters=2, eval_iters=1,
    )  # fmt: skip
    assert train(config) == 0
    return folder


def program(name: str, *argv: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [name, *argv, "--device=cpu"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "experiments" / name), run_name="__main__")
    return int(stop.value.code or 0)


def test_perplexity_py(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On what the model was trained on, the evaluation split first; numbers as in metrics.jsonl."""
    file = run / "result.json"
    flags = [f"--out_dir={run / 'out'}", f"--json={file}"]
    assert program("perplexity.py", *flags, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(file.read_text())
    end = json.loads((run / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    (row,) = result["rows"]
    assert row["split"] == "evaluation"
    assert result["block_size"] == 16
    assert row["tokens"] == 199
    assert row["nats_per_token"] == pytest.approx(end["val_loss_full"], abs=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(end["val_loss_full"]), rel=1e-6)
    assert row["bits_per_char"] == pytest.approx(end["val_bits_per_char"] / 3, rel=1e-6)
    head, *lines = out.splitlines()[1:]
    assert head.split() == ["split", "tokens", "nats/token", "perplexity", "bits/char"]
    assert lines[0].split()[:2] == ["evaluation", "199"]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_what_an_edit_costs(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--edits measures the model under a file of edits."""
    model, file = checkpoint.load_model(run / "out"), run / "edit.safetensors"
    edit = control.ScaleSense((1, 2, 3), 0.0)
    control.save(edit, file, model)
    flags = [f"--out_dir={run / 'out'}", f"--json={run / 'edited.json'}", f"--edits={file}"]
    assert program("perplexity.py", *flags, monkeypatch=monkeypatch) == 0
    assert f"under {file}:" in capsys.readouterr().out
    result = json.loads((run / "edited.json").read_text())
    data = TokenData(run / "data")
    with control.applied(model, edit):
        nats = perplexity(model, data, "evaluation").nats_per_token
    assert result["rows"][0]["nats_per_token"] == pytest.approx(nats, abs=1e-6)
    assert nats != pytest.approx(perplexity(model, data, "evaluation").nats_per_token, abs=1e-4)
    assert result["edits"] == str(file)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split=test"], "split='test' is not in"),
        (["--split=train", "--batches=0", "--dataset=nothing"], "does not exist"),
        (["--batches=-1"], "batches=-1"),
        (["--init_from={gpt}"], "does not tell what it was trained on"),
        (["--init_from={gpt}", "--dataset={data}"], "23 tokens, "),
        (["--init_from={gpt}", "--dataset={data}/val.bin"], "23 tokens, "),
        (["--dataset={other}"], "id 19 is "),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: list[str], words: str,
) -> None:  # fmt: skip
    save_gpt2(tmp_path / "gpt", vocab_used=0)
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "val"):
        STREAM.tofile(other / f"{split}.bin")
    meta = Meta.load(run / "data" / "meta.json")
    symbols = [meta_symbol(run, i) for i in range(meta.vocab_size)]
    symbols[19] = "!"
    Tokenizer.from_symbols(symbols).save(other / "tokenizer.json")
    tokens = {"train": len(STREAM), "val": len(STREAM)}
    Meta(
        vocab_size=meta.vocab_size, dtype="uint16", tokens=tokens, chars=tokens, tokenizer="tokenizer.json",
        source="a test", sha256={},
    ).save(other / "meta.json")  # fmt: skip
    places = {"gpt": tmp_path / "gpt", "data": run / "data", "other": other}
    argv = [f"--out_dir={run / 'out'}", *(flag.format(**places) for flag in flags)]
    assert program("perplexity.py", *argv, monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


def meta_symbol(run: Path, i: int) -> str:
    return Tokenizer.load(run / "data" / "tokenizer.json").token(i)


def test_a_hugging_face_gpt2_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """T targets a window, where nanoBackpackLM's comparison scored T - 1 of them."""
    model = save_gpt2(tmp_path / "gpt")
    stream(tmp_path, name="de_evaluation")
    file = tmp_path / "de_evaluation.bin"
    config = PerplexityConfig(init_from=str(tmp_path / "gpt"), dataset=str(file), device="cpu")
    main(config)
    expected = np.mean(direct(model, STREAM, T))
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert line == ["de_evaluation", "63", f"{expected:.4f}", f"{math.exp(expected):,.2f}", "-"]


def test_per_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {"de": STREAM % 10, "eu": STREAM[:40] % 7 + 10}
    for language, tokens in ids.items():
        for split in ("train", "val", "evaluation"):
            tokens.astype("<u4").tofile(tmp_path / f"{language}_{split}.bin")
    model = tiny_model()
    args = {"model": model.state_dict(), "model_args": vars(model.config), "tokenizer": None}
    checkpoint.save_checkpoint(tmp_path / "ckpt.pt", args)
    flags = [f"--out_dir={tmp_path}", f"--dataset={tmp_path}", f"--json={tmp_path / 'x.json'}"]
    assert program("perplexity_per_language.py", *flags, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    losses = {language: direct(model, tokens, T) for language, tokens in ids.items()}
    means = {f"{language}_evaluation": np.mean(x) for language, x in losses.items()}
    means["all"] = np.mean(losses["de"] + losses["eu"])
    assert [line.split()[0] for line in lines] == list(means)
    for line, row in zip(lines, json.loads((tmp_path / "x.json").read_text())["rows"], strict=True):
        assert row["nats_per_token"] == pytest.approx(means[row["split"]], abs=1e-5)
        assert line.split()[2] == f"{row['nats_per_token']:.4f}"
    # The whole mixture in one row is the same as all languages together.
    whole = perplexity(model, Mixture(tmp_path), "evaluation")
    assert whole.nats_per_token == pytest.approx(means["all"], abs=1e-5)


def test_without_an_evaluation_split_val_is_taken(run: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        STREAM.tofile(tmp_path / f"{split}.bin")
        STREAM.astype("<u4").tofile(tmp_path / f"fr_{split}.bin")

    def opened(folder: Path, **changes: Any) -> tuple[TokenData, str]:
        return open_stream(PerplexityConfig(dataset=str(folder), **changes))

    with pytest.raises(InputError, match="languages such as fr"):
        opened(tmp_path)
    (tmp_path / "train.bin").unlink()
    data, split = opened(tmp_path)
    assert (type(data), split) == (Mixture, "val")
    assert opened(tmp_path, split="fr_train")[1] == "fr_train"
    data, split = opened(run / "data")
    assert (type(data), split) == (TokenData, "evaluation")
