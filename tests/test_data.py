"""Token files: what opening checks, that batches and windows hold the right tokens, how often each of several
languages is drawn, and that a run on them can stop and go on."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.text.data import JoinedFiles, Mixture, TokenData, open_data, open_dataset
from nanobackpack.text.meta import Meta, read_tokenizer
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.log import read_metrics
from nanobackpack.train.trainer import Trainer, train

TEXT = string.ascii_lowercase * 4  # 104 characters: 83 to train on, 21 held out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "abc"
    write_dataset(path, TEXT, Tokenizer.char(TEXT), val_fraction=0.2, source="a test")
    return path


def error_of(folder: Path, dtype: str = "auto") -> str:
    with pytest.raises(InputError) as error:
        open_dataset(folder, dtype)
    return str(error.value)


def edit_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    values = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}
    path.write_text(json.dumps(values | changes))


def test_open(folder: Path):
    data = TokenData(folder)
    assert (data.vocab_size, data.folder) == (26, folder)
    assert data.meta == Meta.load(folder / "meta.json")
    assert data.tokenizer.kind == "char"
    text = "".join(data.tokenizer.decode(data.splits[split].tolist()) for split in ("train", "val"))
    assert text == TEXT
    assert data.chars_per_token("val") == 1.0
    assert TokenData(str(folder), "uint16").vocab_size == 26
    assert read_tokenizer(folder).encode("abz") == [0, 1, 25]
    assert read_tokenizer(folder / "none") is None
    (folder / "meta.json").unlink()
    assert read_tokenizer(folder) is None


def test_batch(folder: Path):
    data = TokenData(folder)
    x, y = data.batch("train", 5, 8, torch.Generator().manual_seed(1))
    assert x.shape == y.shape == (5, 8)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()  # noqa: PT018
    assert torch.equal(y, (x + 1) % 26)  # the text is the alphabet, over and over
    starts = torch.randint(83 - 8, (5,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(x[:, 0], starts % 26)
    again, _ = data.batch("train", 5, 8, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)
    x, y = data.batch("val", 3, 20, torch.Generator())  # the longest window: all are the same
    assert torch.equal(x[0, 1:], y[0, :-1])
    assert len(set(x[:, 0].tolist())) == 1


def test_too_short_split(folder: Path):
    data = TokenData(folder)
    data.check_length("val", 20)
    for call in (
        lambda: data.check_length("val", 21),
        lambda: data.batch("val", 2, 21, torch.Generator()),
    ):
        with pytest.raises(
            InputError, match=r"val\.bin has 21 tokens.* block_size=21.* smaller --block_size or more text$"
        ):
            call()


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 1), (4, 3), (4, 20), (1, 82), (100, 200)])
def test_windows_predict_each_token_once(folder: Path, batch_size: int, block_size: int):
    data = TokenData(folder)
    pairs = list(data.windows("train", batch_size, block_size))
    tokens = torch.from_numpy(data.splits["train"].astype(np.int64))
    assert torch.equal(torch.cat([x.flatten() for x, _ in pairs]), tokens[:-1])
    assert torch.equal(torch.cat([y.flatten() for _, y in pairs]), tokens[1:])
    for x, y in pairs[:-1]:
        assert x.shape == y.shape == (min(batch_size, len(x)), block_size)
    assert pairs[-1][0].shape == (1, 82 % block_size) or not 82 % block_size


def test_missing_folder_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = error_of(Path("mine"))
    assert text == "data/mine does not exist: make it with `nanobackpack prepare FILE --name=mine`"
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    (folder / "prepare.py").touch()
    for path in (Path("data/own"), folder):
        text = error_of(path)
        assert text == "data/own/train.bin does not exist: make it with `python data/own/prepare.py`"


@pytest.mark.parametrize("file", ["val.bin", "tokenizer.json"])
def test_missing_file(folder: Path, file: str):
    (folder / file).unlink()
    text = error_of(folder)
    assert file in text
    assert "FILE --name=abc`" in text


def test_damaged_token_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nanobackpack.text.data._SCAN_TOKENS", 10)  # a wrong id may lie in a later chunk
    path = folder / "val.bin"
    content = path.read_bytes()
    for damaged, problem in (
        (content[:-1], "has 41 bytes"),
        (content[:-2], "has 20 tokens, but meta.json says 21"),
        (content[:-2] + b"\x1a\x00", "holds the id 26"),
        (b"", "has 0 bytes"),
    ):
        path.write_bytes(damaged)
        assert f"val.bin {problem}" in error_of(folder)


def test_dtype(folder: Path):
    assert "contradicts" in error_of(folder, "uint32")
    assert "'float32' is not one of uint16, uint32" in error_of(folder, "float32")


WRONG: list[dict[str, Any]] = [
    {"vocab_size": True}, {"dtype": "int8"}, {"tokens": {"train": 83}}, {"tokenizer": ""},
    {"sha256": {"train.bin": 1}}, {"colour": "red"}, {"languages": [1]}, {"vocab_size": 27},
]  # fmt: skip


@pytest.mark.parametrize("changes", WRONG)
def test_wrong_meta(folder: Path, changes: dict[str, Any]):
    edit_meta(folder, **changes)
    text = error_of(folder)
    assert next(iter(changes)) in text
    assert "make it with" in text


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
def test_malformed_meta(folder: Path, content: bytes):
    (folder / "meta.json").write_bytes(content)
    assert "meta.json" in error_of(folder)


def test_bare_token_files(tmp_path: Path):
    for split in ("train", "val"):
        np.array([1, 70_000, 3], "<u4").tofile(tmp_path / f"{split}.bin")
    data = TokenData(tmp_path, "uint32")
    assert data.meta is data.tokenizer is data.vocab_size is data.chars_per_token("val") is None
    assert data.splits["train"].tolist() == [1, 70_000, 3]
    assert TokenData(tmp_path).splits["train"].tolist() == [1, 0, 70_000 - 65_536, 1, 3, 0]


def test_legacy_meta(tmp_path: Path):
    itos = {0: "b", 1: "a", 2: "\n"}
    stoi = {"b": 0, "a": 1, "\n": 2}
    meta = {"vocab_size": 3, "itos": itos, "stoi": stoi}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    for split in ("train", "val"):
        np.array([0, 1, 2], "<u2").tofile(tmp_path / f"{split}.bin")
    data = TokenData(tmp_path)
    assert (data.vocab_size, data.meta) == (3, None)
    assert data.tokenizer.decode(data.splits["val"].tolist()) == "ba\n"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta | {"vocab_size": 5}))
    assert "meta.pkl says vocab_size 5" in error_of(tmp_path)


@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_shuffled_passes_see_every_token_once(folder: Path, block_size: int):
    """Windows do not overlap within a pass and cover all but the ends; the next pass cuts elsewhere."""
    data = TokenData(folder)
    tokens = data.splits["train"]
    data.splits["train"] = np.arange(len(tokens), dtype=tokens.dtype)  # so that values are positions
    data.n_ids = len(tokens)
    n = max(1, (len(tokens) - 1) // block_size - 1)
    passes = []
    for p in range(3):
        x, y = data.shuffled("train", p * n, n, block_size, seed=5)
        assert torch.equal(y, x + 1)
        seen = x.flatten().tolist()
        assert len(set(seen)) == len(seen) == n * block_size
        assert max(seen) - min(seen) == len(seen) - 1
        passes.append(x)
    assert len({tuple(x[:, 0].tolist()) for x in passes}) == 3
    assert not torch.equal(data.shuffled("train", 0, n, block_size, seed=6)[0], passes[0])


def test_shuffled_windows_are_numbered(folder: Path):
    """What window 40 is does not depend on the batches it is asked for in, across the end of a pass too."""
    data = TokenData(folder)
    together, _ = data.shuffled("train", 0, 60, 8, seed=1)
    apart = torch.cat([data.shuffled("train", i, 12, 8, seed=1)[0] for i in range(0, 60, 12)])
    assert torch.equal(together, apart)
    assert torch.equal(data.shuffled("train", 41, 1, 8, seed=1)[0], together[41:42])


# --- Several languages ------------------------------------------------------------------------

SIZES = {"de": 6000, "eu": 600, "zh": 3400}  # tokens to train on
FIRST = {"de": 0, "eu": 20, "zh": 40}  # each language has 20 ids of its own


def ids_of(language: str, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, n]).integers(20, size=n) + FIRST[language]


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_shards_read_as_one_array(sizes: list[int], draw: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint32) * 7
    shards = JoinedFiles(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(shards) == len(whole)
    start, stop = (draw.draw(st.integers(0, len(whole))) for _ in range(2))
    assert np.array_equal(shards[start:stop], whole[start:stop])
    rows = np.array(draw.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1)))[:, None]
    assert np.array_equal(shards[rows], whole[rows])
    assert shards[rows].dtype == whole.dtype


def test_a_folder_of_languages(languages: Path) -> None:
    data = open_dataset(languages)
    assert (data.languages, data.dtype) == (["de", "eu", "zh"], "uint32")
    assert np.array_equal(data.splits["eu_val"], ids_of("eu", 120))
    assert (data.n_tokens("train"), data.n_tokens("eu_train")) == (sum(SIZES.values()), 600)
    assert (data.tokenizer, data.vocab_size, data.chars_per_token("val")) == (None, None, None)


def test_packs_hold_out_the_last_file(packs: Path) -> None:
    data = open_dataset(packs)
    for language, n in SIZES.items():
        pieces = [ids_of(language, n // 10 + i, seed=i) for i in range(12)]
        train, last = np.concatenate(pieces[:-1]), pieces[-1]
        cut = int(0.4 * len(last))
        assert np.array_equal(data.splits[f"{language}_train"][:], train)
        assert np.array_equal(data.splits[f"{language}_val"], last[:cut])
        assert np.array_equal(data.splits[f"{language}_evaluation"], last[cut:])
        # A window may cross two files.
        predicted = torch.cat([y.flatten() for _, y in data.windows(f"{language}_train", 3, 50)])
        assert np.array_equal(predicted, train[1:])


def test_settings_choose_the_data(languages: Path, packs: Path, tmp_path: Path) -> None:
    def opened(**settings: Any) -> TokenData:
        return open_data(TrainConfig(**settings))

    data = opened(dataset=str(languages), xlm_alpha=0.0)
    assert data.q.tolist() == [1 / 3] * 3
    assert opened(dataset="no_such_data", huge_pack_dir=str(packs)).folder == packs
    for split in ("train", "val"):
        ids_of("de", 9).astype("<u2").tofile(tmp_path / f"de_{split}.bin")
    assert opened(dataset=str(tmp_path), data_bin_dtype="uint16").n_tokens("val") == 9
    with pytest.raises(InputError, match="18 bytes, which is no sequence of uint32"):
        opened(dataset=str(tmp_path))


def add_meta(folder: Path) -> Meta:
    """A tokenizer of 60 symbols, each of which stands for 3 characters."""
    Tokenizer.from_symbols([chr(0x4E00 + i) for i in range(60)]).save(folder / "tokenizer.json")
    tokens = {path.stem: path.stat().st_size // 4 for path in folder.glob("*.bin")}
    meta = Meta(
        vocab_size=60, dtype="uint32", tokens=tokens, chars={k: 3 * n for k, n in tokens.items()},
        tokenizer="tokenizer.json", source="a test", sha256={}, languages=list(SIZES),
    )  # fmt: skip
    (folder / "meta.json").write_bytes(meta.to_json())
    return meta


def test_meta_json_tells_tokenizer_and_characters(languages: Path, tmp_path: Path) -> None:
    meta = add_meta(shutil.copytree(languages, tmp_path, dirs_exist_ok=True))
    data = open_dataset(tmp_path)
    assert (data.meta, data.vocab_size) == (meta, 60)
    assert data.chars_per_token("val") == data.chars_per_token("de_evaluation") == 3.0
    ids_of("zh", 9).astype("<u4").tofile(tmp_path / "zh_val.bin")
    with pytest.raises(InputError, match=r"zh_val\.bin has 9 tokens, but meta\.json says 680"):
        open_dataset(tmp_path)
    np.full(680, 60, "<u4").tofile(tmp_path / "zh_val.bin")
    with pytest.raises(InputError, match=r"zh_val\.bin holds the id 60, but the vocabulary has only 60"):
        open_dataset(tmp_path)


def test_what_cannot_be_opened_is_one_line(languages: Path, tmp_path: Path) -> None:
    def error_of(path: Path) -> str:
        with pytest.raises(InputError) as error:
            Mixture(path)
        return str(error.value)

    assert "neither LANGUAGE_train.bin nor LANGUAGE/LANGUAGE_0.bin" in error_of(tmp_path)
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
        open_dataset(languages).check_length("evaluation", 60)


def expected(alpha: float) -> np.ndarray:
    """q_i ∝ p_i^alpha, written out."""
    total = sum(SIZES.values())
    powers = [math.pow(n / total, alpha) for n in SIZES.values()]
    return np.array([p / sum(powers) for p in powers])


def chisquare(counts: list[int], expected: np.ndarray) -> float:
    """How likely counts are as far from the expected ones as these, by the χ² test."""
    distance = float(((np.array(counts) - expected) ** 2 / expected).sum())
    p = torch.special.gammaincc(*torch.tensor([(len(counts) - 1) / 2, distance / 2], dtype=torch.float64))
    return float(p)


def share_p(drawn: list[str], alpha: float) -> float:
    """How likely languages drawn with that alpha are as far from their shares as these."""
    counts = [drawn.count(language) for language in SIZES]
    return chisquare(counts, expected(alpha) * len(drawn))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_training_draws_languages_as_often_as_it_must(languages: Path, alpha: float) -> None:
    data, n = Mixture(languages, alpha=alpha), 2000
    drawn = [language_of(data.shuffled("train", 2 * i, 2, 4, seed=5)[0]) for i in range(n)]
    assert share_p(drawn, alpha) > 0.01
    for other in {0.0, 0.3, 0.7, 1.0} - {alpha}:  # the test has the power to see a wrong exponent
        assert share_p(drawn, other) < 1e-9
    # Independent draws: a language follows each other language as often as its share says.
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    both = np.outer(expected(alpha), expected(alpha)) * (n // 2)
    assert chisquare([pairs[a, b] for a in SIZES for b in SIZES], both.flatten()) > 0.01


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_random_batches_draw_languages_alike(languages: Path, alpha: float) -> None:
    data, draw = Mixture(languages, alpha=alpha), torch.Generator().manual_seed(3)
    drawn = [language_of(data.batch("val", 1, 4, draw)[0]) for _ in range(1000)]
    assert share_p(drawn, alpha) > 0.01


def test_a_batch_depends_on_its_number_and_seed_alone(languages: Path) -> None:
    numbers = [0, 4, 8, 4 * 5000, 4 * 9001]  # in the first, the second and the third block of draws
    in_order = Mixture(languages, alpha=0.3)
    batches = [in_order.shuffled("train", number, 4, 8, seed=1) for number in numbers]
    for number, (x, y) in reversed(list(zip(numbers, batches, strict=True))):
        again, after = Mixture(languages, alpha=0.3).shuffled("train", number, 4, 8, seed=1)
        assert torch.equal(x, again)
        assert torch.equal(y, after)
        assert torch.equal(x[:, 1:], y[:, :-1])
    first = [in_order.shuffled("train", 4 * i, 4, 8, seed=1)[0] for i in range(20)]
    other = [in_order.shuffled("train", 4 * i, 4, 8, seed=2)[0] for i in range(20)]
    assert [language_of(x) for x in first] != [language_of(x) for x in other]


def test_no_window_comes_again_before_all_of_its_language(
    languages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that tell their position: each language goes through a pass of its own, in all blocks."""
    monkeypatch.setattr("nanobackpack.text.data._BLOCK", 64)
    data = Mixture(languages, alpha=0.3)
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


def test_windows_go_through_every_language(languages: Path) -> None:
    data = Mixture(languages)
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
def named(languages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with a tokenizer, so that the model needs 60 rows, not GPT-2's 50304."""
    copy = shutil.copytree(languages, tmp_path_factory.mktemp("named"), dirs_exist_ok=True)
    add_meta(copy)
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
    config = trainer.config
    windows = (trainer.data.windows(f"{n}_val", config.batch_size, config.block_size) for n in SIZES)
    each = [trainer.mean_loss(batches) for batches in windows]
    assert records[-1]["val_loss_full"] == pytest.approx(float(np.average(each, weights=sizes)), abs=1e-6)


@pytest.fixture
def _little_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixture, "scanned_tokens", 50)
    monkeypatch.setattr("nanobackpack.text.data._SCAN_TOKENS", 50)


def spoil(folder: Path, copy: Path) -> Path:
    """A copy of languages in which ids from 55 on are 999."""
    shutil.copytree(folder, copy)
    for path in (*copy.glob("*_train.bin"), *copy.glob("*/*_[0-9].bin")):
        ids = np.fromfile(path, "<u4")
        ids[55:] = 999
        ids.tofile(path)
    return copy


@pytest.mark.usefixtures("_little_is_looked_at")
@pytest.mark.parametrize("layout", ["languages", "packs"])
def test_ids_beyond_those_looked_at_stop_what_reads_them(
    layout: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """As beyond the first 2^26 of a file; with a tokenizer or, as here, without."""
    out = spoil(request.getfixturevalue(layout), tmp_path / layout)
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


@pytest.mark.usefixtures("_little_is_looked_at")
def test_a_run_that_meets_such_an_id_ends_in_one_line(named: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"_train\.bin holds the id 999"):
        train(tiny(spoil(named, tmp_path / "data"), tmp_path / "out"))
