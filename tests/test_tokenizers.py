"""Tokenizers: round trips, equality with the library, and one-line errors."""

from __future__ import annotations

import base64
import json
import pickle
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import save_tiny
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from nanobackpack.errors import InputError
from nanobackpack.safe.texts import check_tokenizer
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer, tokenizer_to_use
from nanobackpack.text.words import find_word

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="real tokenizers and texts are not here")
ENGLISH = "The quick brown fox doesn't jump over the lazy dog's 12 bones.\n\n  Quickly!\n" * 3
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_char_numbers_symbols_by_code_point():
    tokenizer = Tokenizer.char("hello\nworld é")
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == sorted("helo\nwrd é")
    assert (tokenizer.kind, tokenizer.vocab_size) == ("char", 10)
    assert (tokenizer.id("\n"), tokenizer.id("z")) == (0, None)
    assert (tokenizer.encode(""), tokenizer.decode([])) == ([], "")
    assert Tokenizer.from_symbols(["b", "a"]).encode("ab") == [1, 0]  # symbols keep their order


@given(UNICODE)
def test_round_trip_of_any_text(text: str):
    tokenizer = Tokenizer.char(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.kind, again.vocab_size) == ("char", tokenizer.vocab_size)
    assert again.encode(text) == ids
    assert again.decode(ids) == text
    # The JSON means the same to the library alone.
    plain = hf.Tokenizer.from_str(tokenizer.to_json())
    assert plain.encode(text).ids == ids
    assert plain.decode(ids) == text


def test_encode_batch_equals_encode():
    texts = ["\U0001f600a\u4e2d\r\n", "", "b a"]
    for tokenizer in (Tokenizer.char("a b\r\n\u4e2d\U0001f600"), make_tokenizer("bpe:300", texts)):
        arrays = tokenizer.encode_batch(texts)
        assert [array.tolist() for array in arrays] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", ["char", "bpe:300"])
def test_letters_are_composed(name: str):
    """A tokenizer made for composed text reads text in any form alike, here and in the library alone."""
    text = "Le café était fermé. 각"
    tokenizer = make_tokenizer(name, [text]).composing()
    again = Tokenizer.from_json(tokenizer.to_json())
    plain = hf.Tokenizer.from_str(tokenizer.to_json())
    assert again.kind == tokenizer.kind == name[: len(tokenizer.kind)]
    for form in ("NFC", "NFD"):
        ids = tokenizer.encode(unicodedata.normalize(form, text))
        assert ids == again.encode_batch([unicodedata.normalize(form, text)])[0].tolist()
        assert ids == plain.encode(unicodedata.normalize(form, text)).ids
        assert tokenizer.decode(ids) == text


def test_a_letter_in_another_form():
    text = "café 각"
    for known, asked in (("NFC", "NFD"), ("NFD", "NFC")):
        tokenizer = Tokenizer.char(unicodedata.normalize(known, text))
        for letter in ("é", "각"):
            with pytest.raises(InputError, match=rf"unknown character .* \({known}\): give --normalize=nfc"):
                tokenizer.encode("a" + unicodedata.normalize(asked, letter))
    with pytest.raises(InputError, match=r"the text it was made from$"):
        Tokenizer.char(text).encode("e\u0301ß")


@pytest.mark.parametrize("symbols", [[], ["ab"], [""], ["a", "a"], ["\ud800"]])
def test_symbols_that_cannot_be_are_refused(symbols: list[str]):
    with pytest.raises(InputError, match=r"cannot be a symbol|all different"):
        Tokenizer.from_symbols(symbols)


def test_unknown_character_is_named():
    tokenizer = Tokenizer.char("ab\n")
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(InputError, match=r"'\u4e2d' \(U\+4E2D\) at position 2: .* 3 different"):
            encode("ab\u4e2d\u00e9")


@pytest.mark.parametrize("index", [-1, 3])
def test_ids_out_of_range(index: int):
    tokenizer = Tokenizer.char("abc")
    for use in (lambda: tokenizer.decode([0, index]), lambda: tokenizer.token(index)):
        with pytest.raises(InputError, match=f"id {index} is not in the vocabulary: ids go from 0 to 2"):
            use()


def test_another_model_of_the_library():
    inner = hf.Tokenizer(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.enable_truncation(1)  # must not cut our texts
    tokenizer = Tokenizer(inner)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("wordlevel", 3)
    assert tokenizer.encode("the cat sat") == [0, 1, 2]
    assert tokenizer.decode([0, 1]) == "the cat"
    assert tokenizer.token(1) == "cat"
    assert json.loads(tokenizer.to_json())["truncation"] is None
    words = hf.Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    assert Tokenizer(words).padded_size == 128  # nanoBackpackLM's rule always pads


# --- Made from a text --------------------------------------------------------------------------


def test_build():
    assert make_tokenizer("char", iter(["b", "a"])).encode("ab") == [0, 1]
    tokenizer = make_tokenizer("bpe:300", iter([ENGLISH]))
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.padded_size) == ("bpe", 300, 320)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 0)
    assert len(tokenizer.encode(ENGLISH)) < len(ENGLISH) / 1.5
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH


@pytest.mark.parametrize("name", ["bpe:", "bpe:256", "bpe:16777217", "bpe:²"])
def test_sizes_that_cannot_be(name: str):
    with pytest.raises(InputError, match=f"tokenizer='{name}'"):
        make_tokenizer(name, [])


BPE = make_tokenizer("bpe:300", [ENGLISH])


@given(UNICODE, UNICODE)
def test_what_is_decoded_after_a_text_continues_it(first: str, second: str):
    before, after = BPE.encode(first), BPE.encode(second)
    assert first + BPE.decode_after(before, after) == first + second


def test_a_special_token_is_text_unless_asked_for():
    for tokenizer in (BPE, bert(Path("unused"))):
        for special in ("<|endoftext|>", "[CLS]", "[SEP]"):
            assert not {tokenizer.bos_id, tokenizer.eos_id} & set(tokenizer.encode(f"a {special} b"))
    assert BPE.decode(BPE.encode("a<|endoftext|>b")) == "a<|endoftext|>b"
    a, b = BPE.encode("a"), BPE.encode("b")
    assert BPE.encode("<|endoftext|>a<|endoftext|>b", special=True) == [0, *a, 0, *b]
    assert BPE.prompt_ids("<|endoftext|>", special=True) == [0]
    assert xlm().encode("hello</s>world <mask>", special=True) == [4, 2, 5, 6]
    assert xlm().prompt_ids("<s>hello", special=True) == xlm().prompt_ids("hello", special=True) == [0, 4]


@pytest.mark.parametrize("name", ["bpe", "bert", "xlm", "char"])
def test_what_tables_show_can_be_typed_as_a_word(name: str, tmp_path: Path):
    """What is shown of a token is, as a word, that token: special ones, pieces, parts of characters."""
    tokenizer = {
        "bpe": BPE, "xlm": xlm(), "bert": bert(tmp_path / "vocab.txt"), "char": Tokenizer.char("a<#1> \n")
    }[name]  # fmt: skip
    shown = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    assert [tokenizer.word_ids(token) for token in shown] == [[i] for i in range(tokenizer.vocab_size)]
    named, expected = {
        "bpe": ([0, 283, 292], ["<|endoftext|>", "the<#283>", " the"]),
        "xlm": ([0, 4], ["<s>", "▁hello"]),
        "bert": ([1, 2, 6, 7, 8], ["[UNK]", "[CLS]", "world", "##s", "你"]),
        "char": ([0, 1], ["\n", " "]),
    }[name]
    assert [shown[i] for i in named] == expected
    if name == "bpe":
        half = BPE.encode("é")[0]
        assert (shown[half], BPE.word_ids("the")) == (f"<#{half}>", [292])
        assert BPE.word_ids("a<#283>") == BPE.encode("a<#283>")  # another text: no name
        assert find_word(BPE, [283, 0, 5, 0], "<|endoftext|>") == [slice(1, 2), slice(3, 4)]
    if name == "char":
        assert tokenizer.word_ids("<#1>") == tokenizer.encode("<#1>")  # each character is its own name


@pytest.mark.parametrize("tokenizer", [BPE, Tokenizer.char("a?")])
def test_half_a_character_is_refused(tokenizer: Tokenizer):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["aa", text])):
        with pytest.raises(InputError, match=r"'\\udcff' \(U\+DCFF\)"):  # a byte argv could not decode
            encode("a\udcff")


# --- Made by others: tiny files of each layout ---------------------------------------------------

PIECES = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "你", "好", "，",
    ",", "a", "[", "]",
]  # fmt: skip


def bert(path: Path, **config: object) -> Tokenizer:
    """A tiny BERT, in a file at `path` for as long as it takes to read it."""
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
        (path.parent / "tokenizer_config.json").write_text(json.dumps(config))
        return load_tokenizer(str(path))
    finally:
        path.unlink()
        (path.parent / "tokenizer_config.json").unlink()


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def xlm() -> Tokenizer:
    """A tiny relative of XLM-R: <s>, </s>, and words after "▁"."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁hello", -1.0), ("▁world", -1.0)]
    inner = hf.Tokenizer(models.Unigram(pieces, unk_id=3))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return Tokenizer(inner)


def test_bert(tmp_path: Path):
    tokenizer = bert(tmp_path / "vocab.txt")
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.padded_size) == ("wordpiece", 15, 64)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, 3)
    text = "Héllo WORLDS 你好，你 , x"
    assert tokenizer.encode(text) == [5, 6, 7, 8, 9, 10, 8, 11, 1]
    assert tokenizer.decode(tokenizer.encode(text)) == "hello worlds你好，你, [UNK]"
    assert tokenizer.token(7) == "##s"
    assert tokenizer.prompt_ids("你") == [2, 8]
    assert tokenizer.prompt_ids("\n") == tokenizer.prompt_ids("") == [2]
    assert tokenizer.decode_after([2, 5], [6, 7]) == " worlds"
    assert tokenizer.decode_after([2, 8], [9]) == "好"
    again = Tokenizer.from_json(tokenizer.to_json())
    assert (again.bos_id, again.encode(text)) == (2, tokenizer.encode(text))
    cased = bert(tmp_path / "vocab.txt", do_lower_case=False)
    assert cased.encode("hello Hello") == [5, 1]


AS_WRITTEN = [
    "3.14 GPT-2 foo (bar) don't U.S.A. a/b 50% and/or state-of-the-art foo_bar R&D F.B.I. p.m. a",
    "he said \"so, 'no'\" twice: \"yes!\" (see [1], p. 3).", "'Yes,' he said, 'I can't.'", '"Yes," "no."',
    "$1,234.56 in 2019, 300 of 1,000,000; 10:30 p.m., i.e. -5° is 1.2.3",
    "the dogs' bones, l'été d'un homme, it’s “fine” L.A. end. Next",
    "http://example.com/a_b?c=d&e=1#f is at www.python.org, or user@example.com", "--help wait... what?!",
    "x = 5 Tom & Jerry 2^10 #1 1990–2000 word—word 192.168.0.1 ¿Qué?", "他说：“你好！”价3.14元（GPT-2）",
    'no quotation: 7 "' + "word " * 110 + 'but: "this"',
]  # fmt: skip


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_wordpiece_writes_as_people_do(text: str):
    """Decoding gives a text back, and what is shown of it as it grows adds up to it."""
    inner = hf.Tokenizer(models.WordPiece(max_input_chars_per_word=9, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=False)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cut = inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text))
    words = dict.fromkeys(["[UNK]", *(word for word, _ in cut)])
    inner.model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(inner)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    shown = tokenizer.decode(ids[:1])
    for n in range(1, len(ids)):
        added = tokenizer.decode_after(ids[:1], ids[1 : n + 1])
        assert (tokenizer.decode(ids[:1]) + added).startswith(shown)
        shown = tokenizer.decode(ids[:1]) + added
    assert shown == text


def test_xlm():
    tokenizer = xlm()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 2)
    assert tokenizer.encode("hello world") == [4, 5]
    assert tokenizer.prompt_ids("hello") == [0, 4]
    assert tokenizer.prompt_ids("\n") == [0]
    assert tokenizer.decode_after([0, 4], [5]) == " world"
    assert tokenizer.padded_size == 64


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_byte_level_bpe_in_two_files(tmp_path: Path, names: tuple[str, str]):
    model = json.loads(BPE.to_json())["model"]
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / names[1]).write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    for name in (str(tmp_path), str(tmp_path / names[0]), str(tmp_path / names[1])):
        tokenizer = load_tokenizer(name)
        assert tokenizer.encode(ENGLISH) == BPE.encode(ENGLISH)
        assert not tokenizer.difference(BPE)
        assert tokenizer.eos_id == BPE.eos_id
    assert tokenizer.prompt_ids("\n") == tokenizer.encode("\n") != []
    assert tokenizer.prompt_ids("") == [tokenizer.eos_id]
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))


def write_layout(folder: Path, kind: str, **beside: object) -> None:
    """A tokenizer of several files in a folder, with more of JSON beside them."""
    folder.mkdir()
    model = json.loads(BPE.to_json())["model"]
    bpe = {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(map(" ".join, model["merges"]))}
    files = {"vocab.txt": "\n".join(PIECES)} if kind == "bert" else bpe
    for name, content in (files | {f"{name}.json": json.dumps(c) for name, c in beside.items()}).items():
        (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(("kind", "n"), [("bert", len(PIECES)), ("bpe", BPE.vocab_size)])
@pytest.mark.parametrize("in_one_file", [True, False])
def test_added_tokens_have_their_ids(tmp_path: Path, kind: str, n: int, in_one_file: bool):
    """Those of texts are found in texts, those with a role never; both ways of naming them mean the same."""
    names = ["<call>", "<|im_end|>", "covid", "[PADDING]"]
    roles = {"eos_token": "<|im_end|>", "pad_token": {"content": "[PADDING]"}, "unk_token": None}
    if in_one_file:
        added = {n + i: {"content": name, "special": name in str(roles)} for i, name in enumerate(names)}
        write_layout(tmp_path / "t", kind, tokenizer_config={"added_tokens_decoder": added})
    else:
        ids = {name: n + i for i, name in enumerate(names)}
        write_layout(tmp_path / "t", kind, added_tokens=ids, special_tokens_map=roles)
    tokenizer = load_tokenizer(str(tmp_path / "t"))
    for found in (tokenizer, Tokenizer.from_json(tokenizer.to_json())):
        assert [found.id(name) for name in names] == [n, n + 1, n + 2, n + 3]
        text = found.encode("hello<call> covid <|im_end|> [PADDING]")
        assert [i for i in text if i >= n] == [n, n + 2]
        assert {n + 1, n + 3} == {i for i in found.special.values() if i >= n}
        assert [i for i in found.unsampled_ids if i >= n] == [n + 3]


@pytest.mark.parametrize("added", [{"x y": 3}, {"x y": 900}, {"x y": -1}, {"x y": "300"}, {"[PAD]": 299}])
def test_added_tokens_that_cannot_be(tmp_path: Path, added: dict[str, Any]):
    """Neither beside a vocabulary nor in a tokenizer.json, to which the library gives other ids."""
    write_layout(tmp_path / "t", "bert", added_tokens=added)
    stored = json.loads(BPE.to_json())
    stored["added_tokens"] += [stored["added_tokens"][0] | {"content": t, "id": i} for t, i in added.items()]
    (tmp_path / "t.json").write_text(json.dumps(stored))
    for name in ("t", "t.json"):
        with pytest.raises(
            InputError, match=rf"{name}.*(cannot have the id|are no tokenizer|is not a token)"
        ):
            load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("spiece.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", "a SentencePiece model.* `python -c"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "of tiktoken.* `python -c"),  # as that of Llama 3
        ("cl100k.tiktoken", b"IQ== 0\nIg== 1\n", "of tiktoken.*--tokenizer=gpt2"),
        ("model.gguf", b"GGUF\3\0\0\0", "a model in GGUF: take the tokenizer.json"),
        ("tok.pkl", pickle.dumps({"a": 0}), "is refused"),
        ("code.pkl", pickle.dumps(Path), "is refused"),
        ("stoi.json", b'{"a": 0}', "is not a tokenizer.json: it has no entry 'model'"),
        ("list.json", b"[1]", "is not a tokenizer.json: it has no entry 'model'"),
        ("spm.vocab", b"<unk>\t0\n<s>\t0\n", "no line .UNK"),
    ],
)
def test_files_of_other_kinds_are_refused_by_their_kind(
    tmp_path: Path, name: str, content: bytes, reason: str
):
    (tmp_path / name).write_bytes(content)
    alone = [tmp_path] * name.endswith((".model", ".tiktoken"))
    for path in (tmp_path / name, *alone):
        with pytest.raises(InputError, match=f"{name} .*{reason}"):
            load_tokenizer(str(path))


def test_runs_checkpoints_and_data_sets_are_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    char = Tokenizer.char("abcd")
    save_tiny(tmp_path / "out", "abcd")
    torch.save({"model": {}, "model_args": {}}, "none.pt")
    write_dataset(tmp_path / "data" / "new", "abcd" * 9, char, val_fraction=0.1, source="x")
    (tmp_path / "data" / "old").mkdir()
    Path("data/old/meta.pkl").write_bytes(pickle.dumps({"vocab_size": 4, "itos": dict(enumerate("abcd"))}))
    for name in ("out", "out/ckpt.pt", "data/old", "data/old/meta.pkl", "data/new", "data/new/meta.json"):
        assert load_tokenizer(name).encode("bad") == [1, 0, 3]
        assert tokenizer_to_use(name, char, "data") is char
        with pytest.raises(InputError, match="is not the tokenizer of"):
            tokenizer_to_use(name, Tokenizer.char("abce"), "data")
    with pytest.raises(InputError, match=r"none\.pt holds no tokenizer"):
        load_tokenizer("none.pt")


def test_a_saved_tokenizer_is_found(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text("an old file")
    BPE.save(path)
    assert list(tmp_path.iterdir()) == [path]
    for name in (tmp_path, path):
        found = load_tokenizer(str(name))
        assert (found.to_json(), found.kind, found.eos_id) == (BPE.to_json(), "bpe", 0)


def test_tables_show_text_not_bytes():
    tokenizer = make_tokenizer("bpe:260", ["中中中 中"])
    assert "中" in {tokenizer.token(i) for i in tokenizer.encode("中")}
    parts = [BPE.token(i) for i in BPE.encode(" 中")]  # three bytes after the space
    assert (parts[0], len(parts)) == (" ", 4)
    assert not any("\ufffd" in part for part in parts)


def test_dropout_is_left_out():
    stored = json.loads(BPE.to_json())
    stored["model"]["dropout"] = 0.5
    again = Tokenizer.from_json(json.dumps(stored))
    assert again.encode(ENGLISH) == BPE.encode(ENGLISH)
    assert again.to_json() == BPE.to_json()


def replace(content: str, **pattern: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(name: str, *parts: dict[str, object]) -> dict[str, object]:
    return {"type": "Sequence", name: parts}


CHARSMAP = base64.b64encode(bytes(4) + unicodedata.normalize("NFKC", "\ufdfa\0").encode()).decode()
PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}  # with the longest that NFKC makes
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
ALBERT = [replace('"', String="``"), replace('"', String="''"), {"type": "NFKD"}, {"type": "StripAccents"}]
ALBERT += [{"type": "Lowercase"}, PRECOMPILED, replace(" ", Regex=" {2,}")]
LLAMA = [replace(" ", String="▁"), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip"}]
CHAINS = {
    "BERT": {"normalizer": {"type": "BertNormalizer"}, "pre_tokenizer": {"type": "BertPreTokenizer"}},
    "XLM-R": {"normalizer": PRECOMPILED, "pre_tokenizer": METASPACE, "decoder": METASPACE},
    "T5": {
        "normalizer": chain("normalizers", PRECOMPILED, replace("▁", Regex=" {2,}")),
        "pre_tokenizer": METASPACE,
    },
    "ALBERT": {"normalizer": chain("normalizers", *ALBERT), "pre_tokenizer": METASPACE},
    "Llama": {
        "normalizer": chain("normalizers", {"type": "Prepend", "prepend": "▁"}, replace("▁", String=" ")),
        "decoder": chain("decoders", *LLAMA),
    },
    "CLIP": {
        "normalizer": chain(
            "normalizers", {"type": "NFC"}, replace(" ", Regex=r"\s+"), {"type": "Lowercase"}
        ),
        "pre_tokenizer": chain("pretokenizers", {"type": "Split", "pattern": {"Regex": "[0-9]"}}, BYTE_LEVEL),
        "post_processor": chain("processors", BYTE_LEVEL),
        "decoder": BYTE_LEVEL,
    },
}


@pytest.mark.parametrize("name", CHAINS)
def test_parts_of_well_known_tokenizers_are_let_through(name: str):
    check_tokenizer(json.dumps({"version": "1.0", "model": {}} | CHAINS[name]), name)


NO_UNKNOWN = hf.Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]")).to_str()


LETTERS, MARKS = r"\p{L}", r"[^\s\p{L}\p{N}]"
SPLITS = {  # what some well-known tokenizers split text by
    "GPT-2": rf"'(?:[sdmt]|ll|ve|re)| ?{LETTERS}+| ?\p{{N}}+| ?{MARKS}+|\s+(?!\S)|\s+",
    "GPT-4": rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+{LETTERS}+|\p{{N}}{{1,3}}| ?{MARKS}++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+",
    "Llama 3, Qwen": rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{LETTERS}+|\p{{N}}{{1,3}}"
    rf"| ?{MARKS}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lo}\p{M}]*[\p{Ll}\p{Lo}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}|\s+",
}
# The library itself gives up on the first of these; the second takes seconds here, for a real text hours.
ENDLESS = {"exponential": (r"(\w+)+!|\w+", "a" * 99), "cubic": (r"\w*\w*\w*!|\w+", "a" * 370)}


def with_parts(**parts: object) -> Tokenizer:
    return Tokenizer.from_json(json.dumps(json.loads(BPE.to_json()) | parts))


def split_by(pattern: str) -> dict[str, object]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return chain("pretokenizers", split, BYTE_LEVEL | {"use_regex": False, "add_prefix_space": False})


@pytest.mark.parametrize("name", SPLITS)
def test_patterns_of_well_known_tokenizers_are_let_through(name: str):
    tokenizer = with_parts(pre_tokenizer=split_by(SPLITS[name]))
    for text in (ENGLISH, "a" * 20_000, " " * 20_000, "能" * 5_000, "-_" * 5_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text])[0].tolist() == tokenizer.encode(text)
    if name == "GPT-2":
        assert tokenizer.encode(ENGLISH) == BPE.encode(ENGLISH)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_pattern_without_end_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch):
    pattern, word = ENDLESS[name]
    text = (word + " ") * 20
    monkeypatch.setattr("nanobackpack.text.tokenizer._PATIENCE_S", 0.05)
    monkeypatch.setattr("nanobackpack.text.tokenizer._CHARS_A_SECOND", 1e9)
    splits, replaces = with_parts(pre_tokenizer=split_by(pattern)), replace("x", Regex=pattern)
    decodes = with_parts(decoder=chain("decoders", BYTE_LEVEL, replaces))
    for work in (
        lambda: splits.encode(text),
        lambda: splits.encode_batch(["fine", text]),
        lambda: with_parts(normalizer=replaces).encode(text),
        lambda: decodes.decode(decodes.encode(text)),
    ):
        with pytest.raises(InputError, match=r"cannot (en|de)code .* without end: take another tokenizer"):
            work()


@pytest.mark.parametrize("text", ["".join(map(str, range(99))), "能" * 500, "-" * 500, "a b\n" + "_" * 500])
def test_long_runs_are_cut_for_training_alone(text: str, monkeypatch: pytest.MonkeyPatch):
    whole = make_tokenizer("bpe:400", [text])
    monkeypatch.setattr("nanobackpack.text.tokenizer._RUN_CHARS", 7)
    monkeypatch.setattr("nanobackpack.text.tokenizer._LONG_RUN", re.compile(r"\w{8,}|[^\w ]{8,}"))
    with pytest.warns(UserWarning, match=r"runs of more than 7 letters .* \(1 of them\) were cut"):
        tokenizer = make_tokenizer("bpe:400", [text])
    longest = [max(len(t.decode([i])) for i in range(257, t.vocab_size)) for t in (whole, tokenizer)]
    assert longest[0] > 7 >= longest[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert make_tokenizer("bpe:300", [ENGLISH]).to_json() == BPE.to_json()  # which has none


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", NO_UNKNOWN, "is not a tokenizer.json (WordPiece error"),
        ("tokenizer.json", "[", "is not JSON"),
        ("tokenizer.json", b"\xff", "is not UTF-8"),
        ("vocab.txt", "[UNK]\n[CLS]\n", "no line [SEP]"),
        ("vocab.json", '{"a": 0}', "merges.txt (No such file or directory)"),
        ("vocab.json", '{"a": 0, "ab": 1}', "('a b' makes no token)"),
        ("vocab.json", '{"a": 0, "b": 1, "ab": "2"}', "vocab.json and merges.txt are no tokenizer"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str | bytes, reason: str):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if "No such file" not in reason:
        (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(InputError, match=re.escape(reason)):
        load_tokenizer(str(tmp_path / name))


@pytest.mark.parametrize("name", ["gpt2", "some/model", "no name", ""])
def test_what_the_hub_cannot_give(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"vocab\.txt") as error:
        load_tokenizer(name or "empty")
    assert f"tokenizer={name!r}" in str(error.value) or not name


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    char = Tokenizer.char("ab")
    assert tokenizer_to_use("auto", None, "data") is None
    assert tokenizer_to_use("auto", char, "data") is char
    assert tokenizer_to_use("char", char, "data") is char
    assert tokenizer_to_use("bpe:300", BPE, "data") is BPE
    few = make_tokenizer("bpe:400", ["to be or not to be"])  # cannot have so many
    assert 257 < few.vocab_size < 400
    for name in ("bpe:400", f"bpe:{few.vocab_size}"):
        assert tokenizer_to_use(name, few, "data") is few
    BPE.save("tokenizer.json")
    found = tokenizer_to_use("tokenizer.json", None, "data")
    assert not found.difference(BPE)
    assert tokenizer_to_use("tokenizer.json", BPE, "data") is BPE
    wrong = [("bpe:401", few), *((name, BPE) for name in ("bpe:301", "char", "gpt2"))]
    for name, stored in [*wrong, ("bpe:300", char), ("tokenizer.json", char)]:
        with pytest.raises(InputError, match=f"tokenizer_name='{name}' is not the tokenizer of data/mine"):
            tokenizer_to_use(name, stored, "data/mine")
    with pytest.raises(InputError, match="made from a text"):
        tokenizer_to_use("char", None, "data")


# --- Real ones: equal to the programs that made them ----------------------------------------------


@needs_shared
@pytest.mark.slow
def test_gpt2_equals_tiktoken():
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    folder = SHARED / "gpt2"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    theirs = tiktoken.Encoding(
        "gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    ours = load_tokenizer(str(folder))
    assert (ours.eos_id, ours.bos_id, ours.vocab_size, ours.padded_size) == (50256, None, 50257, 50304)
    assert ours.token(262) == " the"
    files = [*SHARED.glob("multilingual/*.txt"), SHARED / "tinyshakespeare" / "input.txt"]
    texts = [file.read_text(encoding="utf-8") for file in files]
    texts = [text[:30_000] for text in texts] + ["a <|endoftext|> b", "\n\n  x   \n", "\u1680 \x1c\x85.'S's"]
    for text, array in zip(texts, ours.encode_batch(texts), strict=True):
        assert array.tolist() == theirs.encode_ordinary(text)
    assert tokenizer_to_use("gpt2", ours, "data") is ours


@needs_shared
@pytest.mark.slow
def test_chinese_bert_equals_transformers():
    transformers = pytest.importorskip("transformers")
    vocabulary = SHARED / "zh" / "google_zh_vocab.txt"
    theirs, ours = transformers.BertTokenizer(str(vocabulary)), load_tokenizer(str(vocabulary))
    assert (ours.bos_id, ours.eos_id, ours.padded_size) == (101, 102, 21184)
    for file in SHARED.glob("zh/*.txt"):
        text = file.read_text(encoding="utf-8")[:200_000]
        if file != vocabulary:  # its own lines [CLS] and so on are special tokens to them, text to us
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert tokenizer_to_use("chinese-character-bert", ours, "data") is ours
