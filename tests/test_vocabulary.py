"""Tokenizers in training and sampling: which one counts, how a prompt begins, and what is padding."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_trainer import TEXT, identical, learned, tiny

from nanobackpack import Senses, load_model
from nanobackpack.commands.sample import main as sample
from nanobackpack.config import SampleConfig
from nanobackpack.errors import InputError
from nanobackpack.text.corpus import from_files
from nanobackpack.text.prepare import write_dataset, write_tokens
from nanobackpack.text.splits import fraction, split_random
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.trainer import Trainer, train

VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", ".", *dict.fromkeys(TEXT.replace(".", "").split())]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The foxes by characters."""
    folder = tmp_path_factory.mktemp("letters")
    write_dataset(folder, TEXT, Tokenizer.char(TEXT), val_fraction=0.1, source="a test")
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The foxes by words, in documents [CLS] ... [SEP]."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "foxes.txt").write_text(TEXT)
    corpus = from_files([folder / "foxes.txt"], kind="lines")
    write_tokens(folder / "data", {"": corpus}, str(folder / "vocab.txt"), split_random(val=fraction(0.1)))
    return folder


def test_padded_ids_are_never_sampled_from_a_trained_model(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(words / "data", tmp_path, tokenizer_name=str(words / "vocab.txt")))
    model = load_model(tmp_path, "auto")
    assert (model.config.vocab_size, model.config.n_token) == (64, len(VOCABULARY))
    assert model.tokenizer is not None
    capsys.readouterr()
    sampling = {"num_samples": 20, "max_new_tokens": 20, "temperature": 100.0, "top_k": 0}  # nearly uniform
    for start in ("\n", "foxes", ""):
        sample(SampleConfig(out_dir=str(tmp_path), device="cpu", start=start, **sampling))
        texts = capsys.readouterr().out.split("\n" + "-" * 15 + "\n")[:-1]
        assert len(texts) == 20
        assert all(re.match(rf"{start}[ .]" if start.strip() else rf"{start}[^ ]", text) for text in texts)
        found = set(" ".join(texts).replace(".", " . ").split())
        assert found <= set(VOCABULARY)
    senses = Senses(model).sense_projection("foxes", k=64)
    assert {len(row) for row in senses} == {len(VOCABULARY)}


def test_a_tokenizer_serves_where_the_data_has_none(words: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("train.bin", "val.bin"):
        shutil.copy(words / "data" / name, bare)
    vocabulary = str(words / "vocab.txt")
    train(tiny(bare, tmp_path / "out", tokenizer_name=vocabulary))
    train(tiny(words / "data", tmp_path / "same"))
    assert identical(learned(tmp_path / "out"), learned(tmp_path / "same"))
    train(tiny(bare, tmp_path / "none"))  # taken for GPT-2's
    model = load_model(tmp_path / "none", vocabulary)
    assert (model.config.vocab_size, model.config.n_token) == (50304, len(VOCABULARY))


def test_another_tokenizer_than_the_data_has_is_refused(words: Path, letters: Path, tmp_path: Path) -> None:
    for name in ("char", "bpe:300", "gpt2", "chinese-character-bert"):
        with pytest.raises(InputError, match=f"tokenizer_name='{name}'"):
            Trainer(tiny(words / "data", tmp_path / "out", tokenizer_name=name))
    with pytest.raises(InputError, match=r"vocab\.txt"):
        Trainer(tiny(letters, tmp_path / "out", tokenizer_name=str(words / "vocab.txt")))
    assert not (tmp_path / "out").exists()
    train(tiny(letters, tmp_path / "char", tokenizer_name="char"))
    with pytest.raises(InputError, match=r"vocab\.txt"):
        load_model(tmp_path / "char", str(words / "vocab.txt"))
