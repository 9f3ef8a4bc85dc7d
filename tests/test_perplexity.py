"""Perplexity: against the definition computed directly, and what the two programs print and write."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_program, save_gpt2, tiny_model
from torch import Tensor

from nanobackpack.analysis import control
from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate.controls import untrained
from nanobackpack.evaluate.perplexity import (
    PerplexityConfig,
    mean,
    open_stream,
    perplexity,
    stream_loss,
    with_bits,
)
from nanobackpack.model.backpack import LanguageModel, Output
from nanobackpack.text.data import Mixture, TokenData
from nanobackpack.text.meta import Meta
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.trainer import train

T = 12  # block_size of the tiny models
STREAM = np.random.default_rng(0).integers(19, size=5 * T + 4).astype("<u2")
Capture = pytest.CaptureFixture[str]


def stream(folder: Path, ids: np.ndarray = STREAM, name: str = "evaluation") -> TokenData:
    ids.astype("<u2").tofile(folder / f"{name}.bin")
    return TokenData(folder, files={name: folder / f"{name}.bin"})


def measured(model: LanguageModel, data: TokenData, **settings: Any) -> Any:
    return stream_loss(model, data, "evaluation", PerplexityConfig(**settings))


class Unigram(LanguageModel):
    """A model that gives token i the probability p[i], whatever came before."""

    def __init__(self, p: list[float]) -> None:
        super().__init__(
            ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=2, vocab_size=3, n_sense_vector=1)
        )
        self.p = p

    def forward(self, input_ids: Tensor) -> Output:
        return Output(torch.tensor(self.p).log().expand(*input_ids.shape, 3), None)


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


@pytest.mark.parametrize("kind", [{}, {"model_name": "gpt2"}, {"block_size": 5}])
def test_the_whole_stream_is_the_definition(tmp_path: Path, kind: dict[str, Any]) -> None:
    """In windows as long as the model reads: nanoBackpackLM's script broke on any block_size but 1024."""
    model = tiny_model(**kind)
    losses = direct(model, STREAM, model.config.block_size)
    for batch_size in (1, 2, 7):
        result = measured(model, stream(tmp_path), batch_size=batch_size)
        assert result.tokens == len(STREAM) - 1
        assert result.nats_per_token == pytest.approx(np.mean(losses), abs=1e-5)
        assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
        # Windows are the items of its interval, whatever is computed in one go.
        size = model.config.block_size
        items = [losses[start : start + size] for start in range(0, len(losses), size)]
        assert [n for _, n in result.windows] == list(map(len, items))
        assert [loss for loss, _ in result.windows] == pytest.approx(list(map(np.mean, items)), abs=1e-5)
    assert not model.training


def test_losses_1_and_3_are_a_perplexity_of_7_389(tmp_path: Path) -> None:
    """exp of the mean, not the mean of exp: (e + e³) / 2 = 11.4."""
    p = [math.exp(-1), math.exp(-3)]
    model = Unigram([*p, 1 - sum(p)])
    data = stream(tmp_path, np.array([2, 0, 1, 0, 1, 0, 1]))
    assert measured(model, data, batch_size=1).perplexity == pytest.approx(7.389, abs=1e-3)
    uneven = stream(tmp_path, np.array([2, 0, 0, 1]))  # windows of 2 and 1: tokens count, not windows
    assert measured(model, uneven, batch_size=1).nats_per_token == pytest.approx((1 + 1 + 3) / 3, abs=1e-6)


def test_a_random_sample_is_repeatable(tmp_path: Path) -> None:
    model, data = tiny_model(), stream(tmp_path)
    some = measured(model, data, batch_size=3, batches=4, seed=5)
    assert some == measured(model, data, batch_size=3, batches=4, seed=5)
    assert some != measured(model, data, batch_size=3, batches=4, seed=6)
    assert some.tokens == 3 * 4 * T
    many = measured(model, data, batch_size=50, batches=40)
    every = torch.from_numpy(STREAM.astype("i8")).unfold(0, T + 1, 1)
    loss = model(every[:, :-1], every[:, 1:]).loss
    assert many.nats_per_token == pytest.approx(loss.item(), abs=0.03)


def test_bits() -> None:
    row = with_bits("val", [(2 * math.log(2), 10)], 4.0)
    assert (row.perplexity, row.bits_per_token, row.bits_per_char) == pytest.approx((4.0, 2.0, 0.5))
    assert with_bits("val", [(1.0, 10)]).bits_per_char is None
    assert with_bits("val", [(1e4, 10)]).perplexity == math.inf
    both = mean("all", [with_bits("a", [(1.0, 30)], 2.0), with_bits("b", [(3.0, 10)], 6.0)])
    assert both == with_bits("all", [(2.0, 20), (1.0, 20)], 3.0)
    assert mean("all", [row, with_bits("b", [(3.0, 10)])]).bits_per_char is None


# --- The programs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, on data whose evaluation split holds the same text as its val split."""
    folder = tmp_path_factory.mktemp("run")
    text = "the quick brown fox jumps over the lazy dog. " * 20
    tokenizer = Tokenizer.char(text)
    ids = np.array(tokenizer.encode(text), "<u2")
    save_data(folder / "data", tokenizer, {"train": ids[:500], "val": ids[:200], "evaluation": ids[:200]})
    config = TrainConfig(
        dataset=str(folder / "data"), out_dir=str(folder / "out"), device="cpu", compile=False, n_layer=2,
        n_head=2, n_embd=16, n_sense_vector=2, block_size=16, batch_size=4, max_iters=2, eval_iters=1,
    )  # fmt: skip
    assert train(config) == 0
    return folder


@pytest.fixture(autouse=True)
def here(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run's own data set is found again."""
    monkeypatch.chdir(run)


def save_data(folder: Path, tokenizer: Tokenizer, splits: dict[str, np.ndarray]) -> None:
    """A data set; its evaluation split has 3 characters a token, the others 1."""
    folder.mkdir()
    tokens = {split: len(ids) for split, ids in splits.items()}
    for split, ids in splits.items():
        ids.tofile(folder / f"{split}.bin")
    tokenizer.save(folder / "tokenizer.json")
    meta = Meta(
        vocab_size=tokenizer.vocab_size, dtype="uint16", tokens=tokens, tokenizer="tokenizer.json",
        chars={split: n * (3 if split == "evaluation" else 1) for split, n in tokens.items()},
        source="a test", sha256={},
    )  # fmt: skip
    (folder / "meta.json").write_bytes(meta.to_json())


def test_perplexity_py(run: Path, capsys: Capture) -> None:
    """On what the model was trained on, the evaluation split first; numbers as in metrics.jsonl."""
    file = run / "result.json"
    out, err = run_program("perplexity", run / "out", capsys, f"--json={file}")
    assert err == ""
    result = json.loads(file.read_text())
    end = json.loads((run / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    (row,) = result["rows"]
    assert (row["split"], row["tokens"], result["block_size"]) == ("evaluation", 199, 16)
    assert row["nats_per_token"] == pytest.approx(end["val_loss_full"], abs=1e-6)
    assert row["perplexity"] == pytest.approx(math.exp(end["val_loss_full"]), rel=1e-6)
    assert row["bits_per_char"] == pytest.approx(end["val_bits_per_char"] / 3, rel=1e-6)
    head, line = out.splitlines()[1:3]
    assert head.split() == ["split", "tokens", "nats/token", "perplexity", "bits/char"]
    assert line.split()[:2] == ["evaluation", "199"]
    assert len(head) == len(line)
    # Beside it models that have learned nothing.
    controls = result["controls"]
    assert controls["values"][0] == pytest.approx(row["nats_per_token"])
    assert len(set(controls["untrained"][0])) == 3
    assert all(nats > row["nats_per_token"] for nats in controls["untrained"][0])


def test_untrained_models_see_the_same_windows(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, or the first of a long split: then the heading says how many."""
    model, file = checkpoint.load_model(run / "out"), run / "first.json"
    losses = direct(untrained(model, 0), np.fromfile(run / "data" / "evaluation.bin", "<u2"), 16)
    for limit, n, said in ((1000, 199, ""), (5, 80, " (untrained: of the first 5 windows)")):
        monkeypatch.setattr("nanobackpack.evaluate.perplexity.UNTRAINED_WINDOWS", limit)
        out, _ = run_program("perplexity", run / "out", capsys, f"--json={file}", "--batch_size=3")
        assert f"# controls of these figures{said}\n" in out
        found = json.loads(file.read_text())
        assert found["controls"]["untrained"][0][0] == pytest.approx(np.mean(losses[:n]), abs=1e-5)
        assert found["rows"][0]["tokens"] == 199


@pytest.mark.parametrize(("flag", "n"), [("--text", 44), ("--dataset", 44), ("--text", 17), ("--text", 5)])
def test_a_text_is_measured_token_by_token(run: Path, capsys: Capture, flag: str, n: int) -> None:
    """In windows as a data set is, whichever way it is named; its byte order mark is no part of it."""
    model, file = checkpoint.load_model(run / "out"), run / "quick.txt"
    text = "the lazy dog jumps over the quick brown fox."[:n]  # two windows of 16 and a rest, one, a rest
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    given = [
        f"{flag}={file}",
        "--per_token",
        f"--json={run / 'text.json'}",
        "--batch_size=1",
        "--controls=False",
    ]
    out, _ = run_program("perplexity", run / "out", capsys, *given)
    ids = np.array(model.tokenizer.encode(text))
    losses = direct(model, ids, 16)
    result = json.loads((run / "text.json").read_text())
    (row,) = result["rows"]
    assert (row["split"], row["tokens"], row["chars_per_token"]) == ("quick.txt", n - 1, 1)
    assert row["nats_per_token"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert [(token, i) for token, i, _ in result["tokens"]] == list(zip(text[1:], ids[1:], strict=True))
    assert [nats for _, _, nats in result["tokens"]] == pytest.approx(losses, abs=1e-5)
    first = out.splitlines()[3].split()
    assert first == [f"{losses[0]:.4f}", f"{math.exp(-losses[0]):.4f}", "'h'"]
    assert len(out.splitlines()) == 2 + n


def test_what_an_edit_costs(run: Path, capsys: Capture) -> None:
    """--edits measures the model under a file of edits."""
    model, file, data = checkpoint.load_model(run / "out"), run / "edit.safetensors", TokenData(run / "data")
    edit = control.ScaleSense((1, 2, 3), 0.0)
    control.save(edit, file, model)
    out, _ = run_program("perplexity", run / "out", capsys, f"--json={run}/edited.json", f"--edits={file}")
    assert f"under {file}:" in out
    result = json.loads((run / "edited.json").read_text())
    with control.applied(model, edit):
        nats = measured(model, data).nats_per_token
    assert result["rows"][0]["nats_per_token"] == pytest.approx(nats, abs=1e-6)
    assert nats != pytest.approx(measured(model, data).nats_per_token, abs=1e-4)
    assert result["edits"] == str(file)


def test_a_text_that_has_changed_is_told(run: Path) -> None:
    model = checkpoint.load_model(run / "out")
    model.text = {"train": "501 tokens", "val": "200 tokens"}
    with pytest.warns(UserWarning, match="data has changed since the model was trained on it"):
        perplexity(model, PerplexityConfig(out_dir=str(run / "out")))


@pytest.mark.parametrize("key", ["dataset", "huge_pack_dir"])
def test_a_run_names_data_below_the_current_folder(run: Path, tmp_path: Path, key: str) -> None:
    """The message has the flag with which data elsewhere is opened all the same."""
    (tmp_path / "config.json").write_text(json.dumps({"dataset": str(run / "data")}))
    assert open_stream(PerplexityConfig(out_dir=str(tmp_path)))[0].folder == run / "data"
    for name in (str(tmp_path), f"{run}/../x", "../x", "data/../../x", "..\\x", "a\0b", "/dev/zero", "/a b"):
        flag = shlex.quote(f"--dataset={name}").replace("\0", " ")
        (tmp_path / "config.json").write_text(json.dumps({"dataset": "data", key: name}))
        with pytest.raises(InputError, match=re.escape(flag) + "$"):
            open_stream(PerplexityConfig(out_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split=test"], "split='test' is not in"),
        (["--split=train", "--batches=0", "--dataset=nothing"], "does not exist"),
        (["--batches=-1"], "batches=-1"),
        (["--init_from={gpt}"], "does not tell what it was trained on"),
        (["--init_from={gpt}", "--dataset={data}"], "23 tokens, "),
        (["--dataset={other}"], "id 19 is "),
        (["--text=nothing.txt"], "nothing.txt"),
        (["--text={other}/one.txt"], "has 1 token"),
        (["--text={other}/one.jsonl"], "has records, not one text"),
        (["--text={other}/new.txt"], "unknown character 'é'"),
        (["--text={other}/one.txt", "--split=val"], "split is for data sets"),
        (["--per_token"], "--text=poem.txt"),
        (["--json={data}"], "is a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    run: Path, tmp_path: Path, capsys: Capture, flags: list[str], words: str
) -> None:
    places = {"gpt": tmp_path / "gpt", "data": run / "data", "other": tmp_path / "other"}
    save_gpt2(places["gpt"], vocab_used=0)
    ours = Tokenizer.load(run / "data" / "tokenizer.json")
    symbols = ["!" if i == 19 else ours.token(i) for i in range(ours.vocab_size)]
    save_data(places["other"], Tokenizer.from_symbols(symbols), {"train": STREAM, "val": STREAM})
    (places["other"] / "one.txt").write_text("a")
    (places["other"] / "new.txt").write_text("the café")
    given = [flag.format(**places) for flag in flags]
    out, err = run_program("perplexity", run / "out", capsys, *given, status=2)
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


def test_a_hugging_face_gpt2_on_a_file(tmp_path: Path, capsys: Capture) -> None:
    """T targets a window, where nanoBackpackLM's comparison scored T - 1 of them."""
    model = save_gpt2(tmp_path / "gpt")
    stream(tmp_path, name="de_evaluation")
    given = [f"--init_from={tmp_path / 'gpt'}", f"--dataset={tmp_path / 'de_evaluation.bin'}"]
    out, _ = run_program("perplexity", tmp_path, capsys, *given, "--controls=False")
    expected = np.mean(direct(model, STREAM, T))
    line = out.splitlines()[-1].split()
    assert line == ["de_evaluation", "63", f"{expected:.4f}", f"{math.exp(expected):,.2f}", "-"]


def test_per_language(tmp_path: Path, capsys: Capture) -> None:
    ids = {"de": STREAM % 10, "eu": STREAM[:40] % 7 + 10}
    for language, tokens in ids.items():
        for split in ("train", "val", "evaluation"):
            tokens.astype("<u4").tofile(tmp_path / f"{language}_{split}.bin")
    model = tiny_model()
    args = {"model": model.state_dict(), "model_args": vars(model.config), "tokenizer": None}
    checkpoint.save_checkpoint(tmp_path / "ckpt.pt", args)
    given = [f"--dataset={tmp_path}", f"--json={tmp_path / 'x.json'}"]
    out, _ = run_program("perplexity_per_language", tmp_path, capsys, *given, "--controls=False")
    lines = out.splitlines()[2:]
    losses = {language: direct(model, tokens, T) for language, tokens in ids.items()}
    means = {f"{language}_evaluation": np.mean(x) for language, x in losses.items()}
    means["all"] = np.mean(losses["de"] + losses["eu"])
    assert [line.split()[0] for line in lines] == list(means)
    for line, row in zip(lines, json.loads((tmp_path / "x.json").read_text())["rows"], strict=True):
        assert row["nats_per_token"] == pytest.approx(means[row["split"]], abs=1e-5)
        assert line.split()[2] == f"{row['nats_per_token']:.4f}"
    # The whole mixture in one row is the same as all languages together.
    assert measured(model, Mixture(tmp_path)).nats_per_token == pytest.approx(means["all"], abs=1e-5)


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
