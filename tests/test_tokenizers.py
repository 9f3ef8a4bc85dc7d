"""Tokenizers: round trips, equality with the library, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from nanobackpack.config import InputError
from nanobackpack.files import replacing
from nanobackpack.tokenizers import Tokenizer, build

U2 = np.dtype("<u2")
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def message(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_char_numbers_symbols_by_code_point():
    tokenizer = Tokenizer.char("hello\nworld é")
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == sorted("helo\nwrd é")
    assert tokenizer.kind == "char"
    assert tokenizer.vocab_size == 10
    assert tokenizer.id("\n") == 0
    assert tokenizer.id("z") is None
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@given(UNICODE)
def test_round_trip_of_any_text(text: str):
    tokenizer = Tokenizer.char(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.kind == "char"
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode(text) == ids
    assert again.decode(ids) == text


@given(UNICODE)
def test_json_means_the_same_to_the_library_alone(text: str):
    tokenizer = Tokenizer.char(text)
    plain = hf.Tokenizer.from_str(tokenizer.to_json())
    assert plain.encode(text).ids == tokenizer.encode(text)
    assert plain.decode(tokenizer.encode(text)) == text


def test_encode_array_equals_encode():
    tokenizer = Tokenizer.char("a b\r\n\u4e2d\U0001f600")
    array = tokenizer.encode_array("\U0001f600a\u4e2d\r\n", U2)
    assert array.dtype == U2
    assert array.tolist() == tokenizer.encode("\U0001f600a\u4e2d\r\n")


def test_save_and_load(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text("an old file")
    Tokenizer.char("hey\n").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    assert Tokenizer.load(path).encode("y\nh") == [3, 0, 2]


def test_symbols_keep_their_order():
    assert Tokenizer.from_symbols(["b", "a"]).encode("ab") == [1, 0]


@pytest.mark.parametrize("symbols", [[], ["ab"], [""], ["a", "a"], ["\ud800"]])
def test_symbols_that_cannot_be_are_refused(symbols: list[str]):
    with pytest.raises(InputError) as error:
        Tokenizer.from_symbols(symbols)
    message(error)


def test_unknown_character_is_named():
    tokenizer = Tokenizer.char("ab\n")
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_array(text, U2)):
        with pytest.raises(InputError) as error:
            encode("ab\u4e2d\u00e9")
        text = message(error)
        assert "'\u4e2d' (U+4E2D) at position 2" in text
        assert "3 different characters" in text
    with pytest.raises(InputError, match=r"'\\udcff' \(U\+DCFF\)"):  # a byte argv could not decode
        tokenizer.encode("\udcff")


@pytest.mark.parametrize("id", [-1, 3, 10**12])
def test_ids_out_of_range(id: int):
    tokenizer = Tokenizer.char("abc")
    with pytest.raises(InputError) as error:
        tokenizer.decode([0, id])
    assert f"id {id} " in message(error)
    assert "0 to 2" in str(error.value)
    with pytest.raises(InputError):
        tokenizer.token(id)


def test_missing_file_names_the_command(tmp_path: Path):
    with pytest.raises(InputError) as error:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert "tokenizer.json" in message(error)
    assert f"--name={tmp_path.name}" in str(error.value)
    (tmp_path / "prepare.py").touch()
    with pytest.raises(InputError) as error:
        Tokenizer.load(tmp_path / "tokenizer.json")
    assert f"{tmp_path.name}/prepare.py" in message(error)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1,\n2]", b"\xff\xfe", b'{"model":\n {}}'])
def test_malformed_file(tmp_path: Path, content: bytes):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        Tokenizer.load(path)
    assert "tokenizer.json" in message(error)
    assert "prepare.py" in str(error.value)


def test_another_model_of_the_library():
    inner = hf.Tokenizer(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.enable_truncation(1)  # must not cut our texts
    tokenizer = Tokenizer(inner)
    assert tokenizer.kind == "wordlevel"
    assert tokenizer.vocab_size == 3
    assert tokenizer.encode("the cat sat") == [0, 1, 2]
    assert tokenizer.decode([0, 1]) == "the cat"
    assert tokenizer.token(1) == "cat"
    assert json.loads(tokenizer.to_json())["truncation"] is None


def test_build():
    assert build("char", "ba").encode("ab") == [0, 1]
    with pytest.raises(InputError) as error:
        build("bpe", "ba")
    assert "'bpe'" in message(error)
    assert "'char'" in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
