"""Token files: what opening checks, and that batches and windows hold the right tokens."""

from __future__ import annotations

import json
import pickle
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanobackpack.errors import InputError
from nanobackpack.text.data import TokenData
from nanobackpack.text.meta import Meta, read_tokenizer
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer

TEXT = string.ascii_lowercase * 4  # 104 characters: 83 to train on, 21 held out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "abc"
    write_dataset(path, TEXT, Tokenizer.char(TEXT), val_fraction=0.2, source="a test")
    return path


def error_of(folder: Path, dtype: str = "auto") -> str:
    with pytest.raises(InputError) as error:
        TokenData(folder, dtype)
    text = str(error.value)
    assert "\n" not in text
    return text


def edit_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    values = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}
    path.write_text(json.dumps(values | changes))


def test_open(folder: Path):
    data = TokenData(folder)
    assert data.name == "abc"
    assert data.vocab_size == 26
    assert data.folder == folder
    assert data.meta is not None
    assert data.meta == Meta.load(folder / "meta.json")
    assert data.tokenizer is not None
    assert data.tokenizer.kind == "char"
    text = "".join(data.tokenizer.decode(data.splits[split].tolist()) for split in ("train", "val"))
    assert text == TEXT
    assert data.chars_per_token("val") == 1.0
    assert TokenData(str(folder), "uint16").vocab_size == 26


def test_batch(folder: Path):
    data = TokenData(folder)
    x, y = data.batch("train", 5, 8, torch.Generator().manual_seed(1))
    assert x.shape == y.shape == (5, 8)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert torch.equal(y, (x + 1) % 26)  # the text is the alphabet, over and over
    starts = torch.randint(83 - 8, (5,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(x[:, 0], starts % 26)
    again, _ = data.batch("train", 5, 8, torch.Generator().manual_seed(1))
    assert torch.equal(x, again)


def test_batch_of_the_longest_window(folder: Path):
    x, y = TokenData(folder).batch("val", 3, 20, torch.Generator())
    assert torch.equal(x[0, 1:], y[0, :-1])
    assert len(set(x[:, 0].tolist())) == 1


def test_too_short_split(folder: Path):
    data = TokenData(folder)
    data.check_length("val", 20)
    for call in (
        lambda: data.check_length("val", 21),
        lambda: data.batch("val", 2, 21, torch.Generator()),
    ):
        with pytest.raises(InputError) as error:
            call()
        text = str(error.value)
        assert "\n" not in text
        assert "val.bin has 21 tokens" in text
        assert "block_size=21" in text
        assert "smaller --block_size or more text" in text


@pytest.mark.parametrize("block_size", [1, 3, 7, 20, 82, 83, 200])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_windows_predict_each_token_once(folder: Path, batch_size: int, block_size: int):
    data = TokenData(folder)
    pairs = list(data.windows("train", batch_size, block_size))
    tokens = torch.from_numpy(data.splits["train"].astype(np.int64))
    assert torch.equal(torch.cat([x.flatten() for x, _ in pairs]), tokens[:-1])
    assert torch.equal(torch.cat([y.flatten() for _, y in pairs]), tokens[1:])
    for x, y in pairs[:-1]:
        assert x.shape == y.shape
        assert x.shape[0] <= batch_size
        assert x.shape[1] == block_size
    assert pairs[-1][0].shape == (1, 82 % block_size) or not 82 % block_size


def test_missing_folder_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = error_of(Path("data/mine"))
    assert "data/mine does not exist" in text
    assert "`nanobackpack prepare FILE --name=mine`" in text
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    (folder / "prepare.py").touch()
    for path in (Path("data/own"), folder):
        text = error_of(path)
        assert "data/own/train.bin does not exist" in text
        assert "`python data/own/prepare.py`" in text


@pytest.mark.parametrize("file", ["train.bin", "val.bin", "tokenizer.json"])
def test_missing_file(folder: Path, file: str):
    (folder / file).unlink()
    text = error_of(folder)
    assert file in text
    assert f"FILE --name={folder.name}`" in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_token_file(folder: Path, split: str):
    path = folder / f"{split}.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert f"{split}.bin has {len(content) - 1} bytes" in error_of(folder)
    path.write_bytes(content[:-2])
    assert f"{split}.bin has {len(content) // 2 - 1} tokens" in error_of(folder)
    path.write_bytes(content[:-2] + b"\x1a\x00")
    assert f"{split}.bin holds the id 26" in error_of(folder)
    path.write_bytes(b"")
    assert f"{split}.bin has 0 bytes" in error_of(folder)


def test_id_out_of_range_in_a_later_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nanobackpack.text.data._SCAN_TOKENS", 10)
    assert TokenData(folder).vocab_size == 26
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:90] + b"\xff\xff" + content[92:])
    assert "holds the id 65535" in error_of(folder)


def test_dtype(folder: Path):
    assert "contradicts" in error_of(folder, "uint32")
    assert "'float32' is not one of uint16, uint32" in error_of(folder, "float32")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 0},
        {"vocab_size": True},
        {"dtype": "int8"},
        {"dtype": []},
        {"tokens": {"train": 83}},
        {"chars": 104},
        {"tokenizer": ""},
        {"source": None},
        {"sha256": {"train.bin": 1}},
        {"colour": "red"},
        {"languages": "de"},
        {"languages": [1]},
        {"vocab_size": 27},
        {"tokenizer": "none.json"},
    ],
)
def test_wrong_meta(folder: Path, changes: dict[str, Any]):
    edit_meta(folder, **changes)
    text = error_of(folder)
    assert next(iter(changes)) in text or "none.json" in text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"a\n": 1}'])
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
    assert data.vocab_size == 3
    assert data.meta is None
    assert data.tokenizer is not None
    assert data.tokenizer.decode(data.splits["val"].tolist()) == "ba\n"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta | {"vocab_size": 5}))
    assert "meta.pkl says vocab_size 5" in error_of(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "meta.pkl" in error_of(tmp_path)


def test_read_tokenizer(folder: Path):
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    assert tokenizer.encode("abz") == [0, 1, 25]
    assert read_tokenizer(folder / "none") is None
    (folder / "meta.json").unlink()
    assert read_tokenizer(folder) is None


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
