"""Several languages: what opens, how often each is drawn, and that a run on them can stop and go on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.text.data import Mixture, Shards, TokenData, open_data, open_dataset
from nanobackpack.text.meta import Meta
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.log import read_metrics
from nanobackpack.train.trainer import Trainer, train

SIZES = {"de": 6000, "eu": 600, "zh": 3400}  # tokens to train on
FIRST = {"de": 0, "eu": 20, "zh": 40}  # each language has 20 ids of its own


def ids_of(language: str, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, n]).integers(20, size=n) + FIRST[language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of nanoBackpackLM's common_crawl: the .bin files alone."""
    folder = tmp_path_factory.mktemp("languages")
    for language, n in SIZES.items():
        for split, size in (("train", n), ("val", n // 5), ("evaluation", n // 10)):
            ids_of(language, size).astype("<u4").tofile(folder / f"{language}_{split}.bin")
    return folder


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Huge packs of 12 files, so that 10 must come after 9."""
    folder = tmp_path_factory.mktemp("packs")
    for language, n in SIZES.items():
        (folder / language).mkdir()
        for i in range(12):
            ids = ids_of(language, n // 10 + i, seed=i).astype("<u4")
            ids.tofile(folder / language / f"{language}_{i}.bin")
    return folder


def language_of(x: torch.Tensor) -> str:
    """The language all of a batch is in."""
    found = {list(FIRST)[i] for i in (x // 20).unique().tolist()}
    assert len(found) == 1
    return found.pop()


# --- Opening ----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_shards_read_as_one_array(sizes: list[int], draw: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint32) * 7
    shards = Shards(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(shards) == len(whole)
    start, stop = (draw.draw(st.integers(0, len(whole))) for _ in range(2))
    assert np.array_equal(shards[start:stop], whole[start:stop])
    rows = np.array(draw.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1)))[:, None]
    assert np.array_equal(shards[rows], whole[rows])
    assert shards[rows].dtype == whole.dtype


def test_a_folder_of_languages(folder: Path) -> None:
    data = open_dataset(folder)
    assert isinstance(data, Mixture)
    assert data.languages == ["de", "eu", "zh"]
    assert data.dtype == "uint32"
    assert np.array_equal(data.splits["eu_val"], ids_of("eu", 120))
    assert data.n_tokens("train") == sum(SIZES.values())
    assert data.n_tokens("eu_train") == 600
    assert (data.tokenizer, data.vocab_size, data.chars_per_token("val")) == (None, None, None)


def test_packs_hold_out_the_last_file(packs: Path) -> None:
    data = open_dataset(packs)
    assert isinstance(data, Mixture)
    for language, n in SIZES.items():
        pieces = [ids_of(language, n // 10 + i, seed=i) for i in range(12)]
        train, last = np.concatenate(pieces[:-1]), pieces[-1]
        cut = int(0.4 * len(last))
        assert np.array_equal(data.splits[f"{language}_train"][:], train)
        assert np.array_equal(data.splits[f"{language}_val"], last[:cut])
        assert np.array_equal(data.splits[f"{language}_evaluation"], last[cut:])


def test_a_window_may_cross_two_files(packs: Path) -> None:
    data = open_dataset(packs)
    train = np.concatenate([ids_of("eu", 60 + i, seed=i) for i in range(11)])
    predicted = torch.cat([y.flatten() for _, y in data.windows("eu_train", 3, 50)])
    assert np.array_equal(predicted, train[1:])


def test_settings_choose_the_data(folder: Path, packs: Path, tmp_path: Path) -> None:
    def opened(**settings: Any) -> TokenData:
        return open_data(TrainConfig(**settings))

    data = opened(dataset=str(folder), xlm_alpha=0.0)
    assert isinstance(data, Mixture)
    assert data.q.tolist() == [1 / 3] * 3
    assert opened(dataset="no_such_data", huge_pack_dir=str(packs)).folder == packs
    for split in ("train", "val"):
        ids_of("de", 9).astype("<u2").tofile(tmp_path / f"de_{split}.bin")
    assert opened(dataset=str(tmp_path), data_bin_dtype="uint16").n_tokens("val") == 9
    with pytest.raises(InputError, match="18 bytes, which is no sequence of uint32"):
        opened(dataset=str(tmp_path))


def test_meta_json_tells_tokenizer_and_characters(folder: Path, tmp_path: Path) -> None:
    symbols = [chr(0x4E00 + i) for i in range(60)]
    Tokenizer.from_symbols(symbols).save(tmp_path / "tokenizer.json")
    tokens = {}
    for path in folder.glob("*.bin"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        tokens[path.stem] = path.stat().st_size // 4
    meta = Meta(
        vocab_size=60, dtype="uint32", tokens=tokens, chars={k: 3 * n for k, n in tokens.items()},
        tokenizer="tokenizer.json", source="a test", sha256={}, languages=list(SIZES),
    )  # fmt: skip
    meta.save(tmp_path / "meta.json")
    data = open_dataset(tmp_path)
    assert data.meta == meta
    assert data.vocab_size == 60
    assert data.chars_per_token("val") == data.chars_per_token("de_evaluation") == 3.0
    ids_of("zh", 9).astype("<u4").tofile(tmp_path / "zh_val.bin")
    with pytest.raises(InputError, match=r"zh_val\.bin has 9 tokens, but meta\.json says 680"):
        open_dataset(tmp_path)
    np.full(680, 60, "<u4").tofile(tmp_path / "zh_val.bin")
    with pytest.raises(InputError, match=r"zh_val\.bin holds the id 60, but the vocabulary has only 60"):
        open_dataset(tmp_path)


def test_what_cannot_be_opened_is_one_line(folder: Path, packs: Path, tmp_path: Path) -> None:
    def error_of(path: Path) -> str:
        with pytest.raises(InputError) as error:
            open_data(TrainConfig(dataset="none", huge_pack_dir=str(path)))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "neither LANGUAGE_train.bin nor LANGUAGE/LANGUAGE_0.bin" in error_of(tmp_path)
    assert "does not exist" in error_of(tmp_path / "nothing")
    ids_of("de", 50).astype("<u4").tofile(tmp_path / "de_train.bin")
    assert "de_val.bin does not exist" in error_of(tmp_path)
    (tmp_path / "eu").mkdir()
    ids_of("eu", 50).astype("<u4").tofile(tmp_path / "eu" / "eu_0.bin")
    (tmp_path / "de_train.bin").unlink()
    assert "at least 2 are needed" in error_of(tmp_path)
    ids_of("eu", 50).astype("<u4").tofile(tmp_path / "eu" / "eu_2.bin")
    assert "eu_1.bin does not exist" in error_of(tmp_path)
    (tmp_path / "train.bin").write_bytes(bytes(20))
    with pytest.raises(InputError, match=r"holds train\.bin and languages such as eu"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match=r"eu_evaluation\.bin has 60 tokens, too few for block_size=60"):
        open_dataset(folder).check_length("evaluation", 60)


# --- Drawing ----------------------------------------------------------------------------------

ALPHAS = (0.0, 0.3, 0.7, 1.0)


def expected(alpha: float) -> np.ndarray:
    """q_i ∝ p_i^alpha, written out."""
    total = sum(SIZES.values())
    powers = [math.pow(n / total, alpha) for n in SIZES.values()]
    return np.array([p / sum(powers) for p in powers])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_training_draws_languages_as_often_as_it_must(folder: Path, alpha: float) -> None:
    data, n = Mixture(folder, alpha=alpha), 3000
    drawn = [language_of(data.shuffled("train", 2 * i, 2, 4, seed=5)[0]) for i in range(n)]
    counts = np.array([drawn.count(language) for language in SIZES])
    assert chisquare(counts, expected(alpha) * n).pvalue > 0.01
    for other in ALPHAS:  # the test has the power to see a wrong exponent
        if other != alpha:
            assert chisquare(counts, expected(other) * n).pvalue < 1e-9
    # Independent draws: a language follows each other language as often as its share says.
    pairs = np.zeros((3, 3))
    for a, b in zip(drawn[::2], drawn[1::2], strict=True):
        pairs[list(SIZES).index(a), list(SIZES).index(b)] += 1
    both = np.outer(expected(alpha), expected(alpha)) * (n // 2)
    assert chisquare(pairs.flatten(), both.flatten()).pvalue > 0.01


@pytest.mark.parametrize("alpha", ALPHAS)
def test_random_batches_draw_languages_alike(folder: Path, alpha: float) -> None:
    data, n, draw = Mixture(folder, alpha=alpha), 2000, torch.Generator().manual_seed(3)
    drawn = [language_of(data.batch("val", 1, 4, draw)[0]) for _ in range(n)]
    counts = [drawn.count(language) for language in SIZES]
    assert chisquare(counts, expected(alpha) * n).pvalue > 0.01


def test_a_batch_depends_on_its_number_and_seed_alone(folder: Path) -> None:
    numbers = [0, 4, 8, 4 * 5000, 4 * 9001]  # in the first, the second and the third block of draws
    in_order = Mixture(folder, alpha=0.3)
    batches = [in_order.shuffled("train", number, 4, 8, seed=1) for number in numbers]
    for number, (x, y) in reversed(list(zip(numbers, batches, strict=True))):
        again, after = Mixture(folder, alpha=0.3).shuffled("train", number, 4, 8, seed=1)
        assert torch.equal(x, again)
        assert torch.equal(y, after)
        assert torch.equal(x[:, 1:], y[:, :-1])
    first = [in_order.shuffled("train", 4 * i, 4, 8, seed=1)[0] for i in range(20)]
    other = [in_order.shuffled("train", 4 * i, 4, 8, seed=2)[0] for i in range(20)]
    assert [language_of(x) for x in first] != [language_of(x) for x in other]


def test_no_window_comes_again_before_all_of_its_language(folder: Path) -> None:
    """Tokens that tell their position: each language goes through a pass of its own."""
    data = Mixture(folder, alpha=0.3)
    for language, n in SIZES.items():
        data.splits[f"{language}_train"] = np.arange(n) + 10000 * FIRST[language]
    starts: dict[int, list[int]] = {0: [], 20: [], 40: []}
    for i in range(600):
        x, _ = data.shuffled("train", 2 * i, 2, 10, seed=1)
        language = int(x[0, 0]) // 10000
        starts[max(k for k in starts if k <= language)] += x[:, 0].tolist()
    n_windows = 599 // 10 - 1  # of eu; one less than fit
    eu = starts[20]
    assert len(eu) > 3 * n_windows
    for first in range(0, len(eu) - n_windows + 1, n_windows):
        assert len(set(eu[first : first + n_windows])) == n_windows


def test_windows_go_through_every_language(folder: Path) -> None:
    data = Mixture(folder)
    got: dict[str, list[int]] = {language: [] for language in SIZES}
    for x, y in data.windows("evaluation", 4, 16):
        assert len(x) <= 4
        got[language_of(x)] += y.flatten().tolist()
    assert got == {language: ids_of(language, n // 10)[1:].tolist() for language, n in SIZES.items()}


# --- Training ---------------------------------------------------------------------------------


def tiny(folder: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "dataset": str(folder), "out_dir": str(out), "device": "cpu", "compile": False, "xlm_alpha": 0.3,
        "n_layer": 2, "n_head": 2, "n_embd": 8, "n_sense_vector": 2, "block_size": 8, "batch_size": 4,
        "max_iters": 6, "eval_interval": 3, "eval_iters": 6, "learning_rate": 1e-2, "min_lr": 1e-3,
        "warmup_iters": 2, "lr_decay_iters": 20, "log_interval": 3,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


@pytest.fixture(scope="module")
def named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with a tokenizer, so that the model needs 60 rows, not GPT-2's 50304."""
    copy = tmp_path_factory.mktemp("named")
    for path in folder.glob("*.bin"):
        (copy / path.name).write_bytes(path.read_bytes())
    Tokenizer.from_symbols([chr(0x4E00 + i) for i in range(60)]).save(copy / "tokenizer.json")
    Meta(
        vocab_size=60, dtype="uint32", tokens={}, chars={}, tokenizer="tokenizer.json",
        source="a test", sha256={}, languages=list(SIZES),
    ).save(copy / "meta.json")  # fmt: skip
    return copy


def test_a_run_on_languages_stops_and_goes_on(named: Path, tmp_path: Path) -> None:
    train(tiny(named, tmp_path / "whole"))
    train(tiny(named, tmp_path / "parts", max_iters=3))
    train(tiny(named, tmp_path / "parts", init_from="resume"))
    whole, parts = (
        torch.load(tmp_path / name / "ckpt.pt", weights_only=True)["model"] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_run_reports_each_language(named: Path, tmp_path: Path) -> None:
    train(tiny(named, tmp_path))
    records = read_metrics(tmp_path / "metrics.jsonl")
    evaluations = [r for r in records if "val_loss" in r]
    for r in evaluations:
        losses = [r[f"{language}_val_loss"] for language in SIZES]
        assert r["val_loss"] == pytest.approx(float(np.dot(expected(0.3), losses)), abs=1e-9)
        assert len(set(losses)) == 3
    assert json.loads((tmp_path / "config.json").read_text())["xlm_alpha"] == 0.3
    # The last word is over all languages, each token alike.
    trainer = Trainer(tiny(named, tmp_path, init_from="resume"))
    sizes = [n // 5 - 1 for n in SIZES.values()]
    each = [trainer.whole_split(f"{language}_val") for language in SIZES]
    assert records[-1]["val_loss_full"] == pytest.approx(float(np.average(each, weights=sizes)), abs=1e-6)


@pytest.mark.parametrize("layout", ["files", "packs"])
def test_ids_beyond_those_looked_at_stop_what_reads_them(
    folder: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """As beyond the first 2^26 of a file; with a tokenizer or, as here, without."""
    monkeypatch.setattr(Mixture, "scanned_tokens", 50)
    monkeypatch.setattr("nanobackpack.text.data._SCAN_TOKENS", 50)
    out = shutil.copytree(folder if layout == "files" else packs, tmp_path / layout)
    for path in (*out.glob("*_train.bin"), *out.glob("*/*_[0-9].bin")):
        ids = np.fromfile(path, "<u4")
        ids[55:] = 999
        ids.tofile(path)
    data = Mixture(out)
    data.check_ids(60)
    named = r"/(de|eu|zh)(_train\.bin)? holds the id 999, .* only 60 "
    draw = torch.Generator()
    for read in (
        lambda: [data.batch("train", 4, 8, draw) for _ in range(20)],
        lambda: [data.shuffled("train", 4 * i, 4, 8, 1) for i in range(20)],
        lambda: list(data.windows("train", 4, 8)),
    ):
        with pytest.raises(InputError, match=named):
            read()


def test_a_run_that_meets_such_an_id_ends_in_one_line(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mixture, "scanned_tokens", 50)
    monkeypatch.setattr("nanobackpack.text.data._SCAN_TOKENS", 50)
    data = shutil.copytree(named, tmp_path / "data")
    for path in data.glob("*_train.bin"):
        ids = np.fromfile(path, "<u4")
        ids[len(ids) // 2 :] = 999
        ids.tofile(path)
    with pytest.raises(InputError, match=r"_train\.bin holds the id 999") as error:
        train(tiny(data, tmp_path / "out"))
    assert "\n" not in str(error.value)
