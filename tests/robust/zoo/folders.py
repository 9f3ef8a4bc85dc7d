"""Hostile folders: models in Hugging Face's layout, data sets, runs, texts and edits."""

from __future__ import annotations

import base64
import functools
import gzip
import importlib
import importlib.util
import json
import lzma
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from nanobackpack.analysis.control import FORMAT
from nanobackpack.config import ModelConfig
from nanobackpack.model import layouts
from nanobackpack.train import checkpoint

from . import SIZES, Make, beast, beasts, dataset

Content = str | bytes | dict[str, Any] | list[Any]
DEEP = "[" * 200_000 + "]" * 200_000
DEEP_WHY = "200,000 lists in each other"


def files(contents: dict[str, Content]) -> Make:
    """Writes files of these names; of a dict or list, its JSON."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            text = json.dumps(content) if isinstance(content, dict | list) else content
            (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return make


# --- Models: config.json and model.safetensors ------------------------------------------------

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 4}
GPT2_JSON = json.dumps(GPT2)[:-1]  # to which more is added


def gpt2(folder: Path, config: Content = GPT2, weights: bytes | None = None) -> None:
    """A folder in Hugging Face's layout, good but for what is given."""
    files({"config.json": config} | ({} if weights is None else {"model.safetensors": weights}))(folder)
    if weights is None:
        sizes = SIZES | {"model_name": "gpt2", "n_layer": 1, "bias": True}
        state = layouts.export_state(checkpoint.build_model(ModelConfig(**sizes)), layouts.GPT2)
        save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")


CONFIGS: dict[str, tuple[Content, str]] = {
    "deep": (DEEP, DEEP_WHY),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "100,000 objects in each other"),
    "huge": (GPT2 | {"note": "x" * (4 << 20)}, "4 MB of settings"),
    "nan": (GPT2 | {"note": float("nan")}, "a number that is none"),
    "infinite": (GPT2_JSON + ', "resid_pdrop": 1e400}', "a dropout beyond all numbers"),
    "digits": (GPT2_JSON + ', "n_ctx": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "twice": ('{"n_layer": 99, ' + GPT2_JSON[1:] + "}", "n_layer twice, 99 and 1"),
    "list": ([1, 2, 3], "a list for settings"),
    "binary": ("\0\ufffe\0", "no text"),
    "vocabulary": (GPT2 | {"vocab_size": 10**12}, "a vocabulary of 10^12"),
    "endless": (GPT2 | {"n_positions": 10**4000, "n_embd": -(10**4000)}, "numbers of 4,000 digits"),
    "wide": (GPT2 | {"n_positions": 10**4000}, "a context of 10^4000"),
    "layers": (GPT2 | {"n_layer": 10**9}, "10^9 layers"),
    "negative": (GPT2 | {"n_positions": -8}, "a negative context"),
    "text": (GPT2 | {"n_embd": "8"}, "a text for a width"),
    "list-width": (GPT2 | {"n_embd": [8], "n_inner": 32}, "a list for a width"),
    "object": (GPT2 | {"vocab_size": {"a": 1}}, "an object for a number"),
    "type": (GPT2 | {"model_type": [["gpt2"]] * 9}, "a list for a name"),
    "code": (
        GPT2 | {"model_type": "mine", "auto_map": {"AutoModel": "mine.py--Mine"}}, "asks for its own code"),
}  # fmt: skip
for name, (config, why) in CONFIGS.items():
    beast(f"config-{name}", functools.partial(gpt2, config=config), why, "model")


def header(*entries: tuple[str, str, list[int], list[int]]) -> str:
    """The header of a safetensors file; here names may come twice."""
    items = [f'"{n}":' + json.dumps({"dtype": t, "shape": s, "data_offsets": o}) for n, t, s, o in entries]
    return "{" + ",".join(items) + "}"


WTE = "wte.weight"
SAFETENSORS: dict[str, tuple[int | None, str, int, str]] = {  # header's length, header, bytes, why
    "length": (1 << 62, "{}", 0, "a header of 2^62 bytes"),
    "length-negative": (2**64 - 1, "{}", 0, "a header of -1 bytes"),
    "length-long": (99_000_000, "{}", 0, "a header longer than the file"),
    "offsets": (None, header((WTE, "F32", [4, 8], [0, 1 << 40])), 128, "data far behind the end"),
    "backwards": (None, header((WTE, "F32", [4, 8], [128, 0])), 128, "data from 128 to 0"),
    "overlap": (
        None, header(("a", "F32", [32], [0, 128]), ("b", "F32", [32], [0, 128])), 128, "two on the same"),
    "twice": (
        None, header((WTE, "F32", [32], [0, 128]), (WTE, "F32", [32], [128, 256])), 256, "a name twice"),
    "dtype": (None, header((WTE, "OBJECT", [4, 8], [0, 128])), 128, "a type that does not exist"),
    "integers": (None, header((WTE, "I32", [4, 8], [0, 128])), 128, "integers"),
    "shape": (None, header((WTE, "F32", [4, 10**15], [0, 128])), 128, "a shape beyond its bytes"),
    "overflow": (None, header((WTE, "F32", [1 << 40, 1 << 40], [0, 0])), 0, "2^80 numbers"),
    "empty": (None, header((WTE, "F32", [0, 1 << 60], [0, 0])), 0, "a tensor without numbers"),
    "deep": (None, '{"a":' * 50_000 + "1" + "}" * 50_000, 0, "50,000 objects in each other"),
    "garbage": (None, "\x01\x02", 0, "no header"),
}  # fmt: skip
for name, (length, text, n_bytes, why) in SAFETENSORS.items():
    raw = struct.pack("<Q", len(text) if length is None else length) + text.encode() + bytes(n_bytes)
    beast(f"safetensors-{name}", functools.partial(gpt2, weights=raw), why, "model")


def in_type(d: Path, kind: str) -> None:
    """All weights in a type of one byte."""
    gpt2(d)
    entries, at = [], 0
    for name, t in load_file(d / "model.safetensors").items():
        entries.append((name, kind, list(t.shape), [at, at := at + t.numel()]))
    start = header(*entries).encode()
    gpt2(d, weights=struct.pack("<Q", len(start)) + start + bytes(at))


def from_device(d: Path) -> None:
    gpt2(d, weights=b"")
    (d / "model.safetensors").unlink()
    (d / "model.safetensors").symlink_to("/dev/zero")


for kind in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8"):
    why = f"all weights in {kind}, which not everything can compute with"
    beast(f"safetensors-{kind}", functools.partial(in_type, kind=kind), why, "model")
beast("safetensors-device", from_device, "a link to a device without end", "model")


# --- Data sets: tokenizer.json ----------------------------------------------------------------


def tokenizer(model: object, **parts: Any) -> str:
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model} | parts)


def words(vocabulary: object, unknown: str = "a") -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def abc(**parts: Any) -> str:
    """A tokenizer with these parts."""
    return tokenizer(words(ABC), **parts)


def normal(*parts: dict[str, Any], **more: Any) -> str:
    """A tokenizer with so many normalizers."""
    return abc(normalizer={"type": "Sequence", "normalizers": parts}, **more)


def chain(kind: str, name: str, *parts: dict[str, Any]) -> str:
    """A tokenizer with so many parts of another kind."""
    return abc(**{kind: {"type": "Sequence", name: parts}})


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(n: int) -> bytes:
    """A table by which "a" becomes n times "b": a double array of 1,024 units, then the texts."""
    units = {0: 256 << 10, 256 ^ 97: 512 << 10 | 1 << 8 | 97}  # offset, has a leaf, label; its leaf: 0
    return struct.pack("<1025I", 4096, *(units.get(i, 0) for i in range(1024))) + b"b" * n + b"\0"


def precompiled(table: str) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": table}


ABC = {"a": 0, "b": 1, "c": 2}
LOTS = 32  # of parts each of which doubles a text
TOKEN = {"id": 3, "content": " ", "special": False, "normalized": False}
TOKEN |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
BYTES = {"type": "ByteLevel"}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
LETTERS = split(r"[\s\S]")
PREFIX = {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": False}
AGAIN = {"Sequence": {"id": "A", "type_id": 0}}
TOKENIZERS: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, DEEP_WHY),
    "deep-parts": (
        abc()[:-1] + ', "normalizer": ' + '{"type":"Sequence","normalizers":[' * 500 + "]}" * 500 + "}",
        "500 normalizers in each other"),
    "huge-id": (tokenizer(words({"a": 0, "b": 2**32 - 1})), "an id of 2^32 - 1, so as many rows to embed it"),
    "too-huge-id": (tokenizer(words({"a": 2**40})), "an id of 2^40"),
    "negative-id": (tokenizer(words({"a": -1})), "a negative id"),
    "same-id": (tokenizer(words({"a": 0, "b": 0})), "one id for two tokens: what does it decode to?"),
    "twice": (tokenizer(words({"a": 0, "b": 1})).replace('"b"', '"a"'), "a token twice"),
    "latin": ('{"version": "café"}'.encode("latin-1"), "not UTF-8"),
    "nul": (b"\0" * 1000, "zeros"),
    "model": (tokenizer({"type": "Oracle", "vocab": {}}), "a model that does not exist"),
    "model-list": (tokenizer([1, 2, 3]), "a list for a model"),
    "vocabulary": (tokenizer(words(["a", "b"])), "a list for a vocabulary"),
    "merges": (tokenizer({"type": "BPE", "vocab": ABC, "merges": [["a", "z"]]}), "merges an unknown token"),
    "unknown": (tokenizer(words({"q": 0}, "none")), "no token for what it does not know"),
    "empty": (tokenizer(words({})), "no tokens at all"),
    "regex": (abc(pre_tokenizer=split("(a+)+$")), "a pattern that takes forever"),
    "regex-deep": (abc(pre_tokenizer=split("(" * 99_999 + ")" * 99_999)), "a deep pattern"),
    "growing": (normal(*[replace("a" * 100, String="a")] * 6), "each letter becomes 10^12 letters"),
    "growing-bytes": (normal(*[BYTES] * LOTS), "bytes of bytes of bytes"),
    "growing-bytes-split": (chain("pre_tokenizer", "pretokenizers", *[PREFIXED] * LOTS), "bytes of bytes"),
    "growing-prefix": (
        chain("pre_tokenizer", "pretokenizers",
              *[LETTERS, PREFIX, LETTERS, PREFIX | {"replacement": "b"}] * LOTS),
        "each letter gets a prefix, which gets a prefix"),
    "growing-empty": (normal(*[replace("a", Regex="")] * LOTS), "puts a letter between all letters"),
    "growing-empty-text": (normal(*[replace("a", String="")] * LOTS), "puts a letter between all letters"),
    "growing-border": (normal(*[replace(" ", Regex=r"\b|(?= )")] * LOTS), "puts spaces beside spaces"),
    "growing-lower": (
        normal(*[replace("\u0130", Regex="\u0307|[a-z]"), {"type": "Lowercase"}] * LOTS),
        "a letter that becomes two in lower case"),
    "growing-form": (
        normal(*[replace("\ufdfa", Regex=r"[\s\S]"), {"type": "NFKD"}] * 8), "a letter that stands for 18"),
    "growing-prepend": (
        normal({"type": "Prepend", "prepend": "b" * 10**7}, added_tokens=[TOKEN]),
        "10 MB before all that lies between two tokens"),
    "growing-untyped": (
        normal(*[{"pattern": {"Regex": ""}, "content": "a"}] * LOTS), "parts that do not say what they are"),
    "growing-table": (
        normal(precompiled(base64.b64encode(charsmap(10**6)).decode())),
        "a table in which a letter becomes 10^6"),
    "growing-ids": (
        abc(post_processor={
            "type": "TemplateProcessing", "single": [AGAIN] * 10**5, "pair": [AGAIN], "special_tokens": {}}),
        "each text 10^5 times"),
    "growing-decoder": (
        chain("decoder", "decoders", *[{"type": "BPEDecoder", "suffix": ""}] * LOTS),
        "puts spaces between all letters"),
    "many": (normal(*[{"type": "NFD"}] * 10**5), "10^5 normalizers"),
    "charsmap": (abc(normalizer=precompiled("/////w==")), "a table of 2^32 entries, in no bytes"),
    "charsmap-short": (abc(normalizer=precompiled("AAAA")), "a table cut short"),
    "length-zero": (abc(pre_tokenizer={"type": "FixedLength", "length": 0}), "pieces of no length"),
    "padding": (
        abc(padding={
            "strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a"}), "texts of 10^10 tokens at least"),
}  # fmt: skip


def spoiled(name: str, spoil: Callable[[Path], object]) -> Make:
    """A good data set, one file of which is taken away for `spoil` to put something else there."""

    def make(folder: Path) -> None:
        dataset(folder)
        (folder / name).unlink()
        spoil(folder / name)

    return make


def replaced(name: str, content: bytes) -> Make:
    return spoiled(name, lambda path: path.write_bytes(content))


def linked(name: str, target: str) -> Make:
    return spoiled(name, lambda path: path.symlink_to(target))


def large(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(200 << 20)


for name, (content, why) in TOKENIZERS.items():
    raw = content if isinstance(content, bytes) else content.encode()
    beast(
        f"tokenizer-{name}",
        replaced("tokenizer.json", raw),
        why,
        "tokenizer data",
        harmless=name == "padding",
    )
beasts(
    {
        "tokenizer-large": (spoiled("tokenizer.json", large), "200 MB of zeros"),
        "tokenizer-pipe": (
            spoiled("tokenizer.json", os.mkfifo), "a pipe for a tokenizer: reading it waits forever"),
    },
    "tokenizer data",
)  # fmt: skip
beast(
    "vocab-txt",
    files({"tokenizer.json": b"[PAD]\n[UNK]\n\x00\x1b[2J\n\xff\xfe\n" + b"a" * (1 << 20)}),
    "a word list full of control characters, for a tokenizer.json",
    "tokenizer",
)


# --- Data sets: meta.json and .bin ------------------------------------------------------------

METAS: dict[str, tuple[dict[str, Any], str]] = {
    "absolute": ({"tokenizer": "/etc/passwd"}, "a tokenizer with an absolute name"),
    "parent": ({"tokenizer": ".."}, "the folder above for a tokenizer"),
    "folder": ({"tokenizer": "."}, "the folder itself for a tokenizer"),
    "name-nul": ({"tokenizer": "a\0b"}, "a name with a zero in it"),
    "name-long": ({"tokenizer": "x" * 5000}, "a name of 5,000 letters"),
    "size": ({"vocab_size": 10**15}, "a vocabulary of 10^15"),
    "size-negative": ({"vocab_size": -4}, "a negative vocabulary"),
    "size-text": ({"vocab_size": "4"}, "a text for a number"),
    "tokens": ({"tokens": {"train": 10**18, "val": 10**18}}, "10^18 tokens in a few bytes"),
    "tokens-negative": ({"tokens": {"train": -1, "val": -1}}, "less than no tokens"),
    "chars": ({"chars": {"train": -5, "val": 0.5}}, "negative and half characters"),
    "dtype": ({"dtype": "object"}, "Python objects for ids"),
    "hash": ({"sha256": [1, 2]}, "a list of hashes"),
    "entry": ({"hook": "os.system"}, "an entry that does not exist"),
}


def outside(d: Path) -> None:
    dataset(d)
    name = f"outside-{d.name}.json"
    (d / "tokenizer.json").rename(d.parent / name)
    dataset(d, tokenizer=f"../{name}")


beast("meta-json-dots", outside, "a tokenizer outside of the folder", "data")
for name, (changes, why) in METAS.items():
    beast(f"meta-json-{name}", functools.partial(dataset, **changes), why, "data")
beasts(
    {
        "meta-json-deep": (replaced("meta.json", b"[" * 400_000), "400,000 lists in each other"),
        "meta-json-large": (replaced("meta.json", b" " * (8 << 20)), "8 MB of spaces"),
        "meta-json-link": (linked("meta.json", "/etc/passwd"), "a link to a file of the reader's"),
        "meta-json-device": (linked("meta.json", "/dev/zero"), "a link to a device without end"),
        "tokenizer-link": (linked("tokenizer.json", "/etc/passwd"), "a link to a file of the reader's"),
        "bin-odd": (replaced("train.bin", bytes(321)), "half a token too many"),
        "bin-empty": (replaced("val.bin", b""), "no tokens"),
        "bin-range": (replaced("train.bin", struct.pack("<160H", *range(160))), "ids beyond the vocabulary"),
        "bin-range-last": (
            replaced("train.bin", bytes(318) + b"\xff\xff"), "its last id beyond the vocabulary"),
        "bin-device": (linked("train.bin", "/dev/zero"), "a link to a device without end"),
        "bin-random": (linked("val.bin", "/dev/urandom"), "a link to a device without end"),
        "bin-dangling": (linked("train.bin", "nowhere"), "a link to nothing"),
        "bin-loop": (linked("train.bin", "train.bin"), "a link to itself"),
        "bin-pipe": (spoiled("train.bin", os.mkfifo), "a pipe for token ids: opening it waits forever"),
        "bin-folder": (spoiled("train.bin", os.mkdir), "a folder for token ids"),
    },
    "data",
)  # fmt: skip


# --- A run's folder, to go on in --------------------------------------------------------------


def run(folder: Path, name: str, link: Callable[[Path, Path], object] = os.symlink) -> None:
    """The folder of a run that came from a stranger: one of its files leads outside."""
    outside = folder.parent / f"outside-{folder.name}"
    outside.write_text("precious", encoding="utf-8")
    link(outside, folder / name)


for name in ("metrics.jsonl", "config.json", "loss.png", "ckpt.pt", "best.pt"):
    make, why = functools.partial(run, name=name), f"{name} is a link to a file outside"
    beast(f"run-link-{name}", make, why, "run", harmless=True)
beasts(
    {
        "run-lock-link": (
            lambda d: run(d, "run.lock"), "run.lock is a link to a file outside, to be emptied"),
        "run-lock-hard-link": (
            lambda d: run(d, "run.lock", os.link),
            "run.lock is a second name of a file outside, to be emptied"),
        "run-lock-dangling": (
            lambda d: (d / "run.lock").symlink_to(d.parent / f"outside-{d.name}"),
            "run.lock is a link to a new file outside"),
        "run-lock-pipe": (
            lambda d: os.mkfifo(d / "run.lock"), "run.lock is a pipe: opening it waits forever"),
        "run-lock-folder": (lambda d: (d / "run.lock").mkdir(), "run.lock is a folder"),
    },
    "run",
)  # fmt: skip
for name, line in {
    "deep": b"[" * 300_000 + b"\n",
    "latin": b'{"step": "\xe9"}\n',
    "types": b'{"step": "x", "train_loss": {}}\n[1]\n7\nnull\n{"train_loss": 1}\n{"step": 1e999}\n',
    "cut": b'{"step": 1, "train_lo',
}.items():
    why = "lines of a log that are not as ours"
    beast(f"metrics-{name}", files({"metrics.jsonl": line}), why, "metrics", harmless=True)


# --- Vocabularies -----------------------------------------------------------------------------

VOCAB = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n"
PAIRS = {"t": 0, "h": 1, "th": 2}
VOCABULARIES: dict[str, tuple[dict[str, Content], str]] = {
    "binary": ({"vocab.txt": bytes(range(256)) * 99}, "not UTF-8"),
    "no-unknown": ({"vocab.txt": "the\ncat\n"}, "no token for what it does not know"),
    "empty": ({"vocab.txt": ""}, "nothing"),
    "cleaning": (
        {"vocab.txt": VOCAB, "tokenizer_config.json": {"strip_accents": [[1]]}}, "a list for yes or no"),
    "cleaning-deep": ({"vocab.txt": VOCAB, "tokenizer_config.json": DEEP}, DEEP_WHY),
    "cleaning-list": ({"vocab.txt": VOCAB, "tokenizer_config.json": [1]}, "a list for settings"),
    "json-deep": ({"vocab.json": DEEP, "merges.txt": "t h"}, DEEP_WHY),
    "json-list": ({"vocab.json": ["t", "h", "th"], "merges.txt": "t h"}, "a list for a vocabulary"),
    "json-huge-id": ({"vocab.json": PAIRS | {"x": 2**32 - 1}, "merges.txt": "t h"}, "an id of 2^32 - 1"),
    "json-negative": ({"vocab.json": PAIRS | {"x": -1}, "merges.txt": "t h"}, "a negative id"),
    "json-same-id": ({"vocab.json": PAIRS | {"x": 0}, "merges.txt": "t h"}, "one id for two tokens"),
    "json-list-id": ({"vocab.json": PAIRS | {"x": [0]}, "merges.txt": "t h"}, "a list for an id"),
    "merges-unknown": ({"vocab.json": PAIRS, "merges.txt": "t x"}, "merges an unknown token"),
    "merges-three": ({"vocab.json": PAIRS, "merges.txt": "t h t"}, "merges three"),
    "merges-latin": ({"vocab.json": PAIRS, "merges.txt": b"t \xe9"}, "not UTF-8"),
}  # fmt: skip
for name, (contents, why) in VOCABULARIES.items():
    beast(f"found-{name}", files(contents), why, "found")


def vocabulary_pipe(d: Path, name: str) -> None:
    (d / "merges.txt").touch()
    os.mkfifo(d / name)


for name in ("vocab.txt", "vocab.json"):
    make = functools.partial(vocabulary_pipe, name=name)
    beast(f"found-pipe-{name}", make, "a pipe for a vocabulary: reading it waits forever", "found")


# --- Records and test sets --------------------------------------------------------------------

RECORDS: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, DEEP_WHY),
    "digits": ('{"text": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "list": ('{"text": ["a"]}', "a list for a text"),
    "null": ("null", "no record"),
    "latin": (b'{"text": "\xe9"}', "not UTF-8"),
    "surrogate": ('{"text": "\\ud800"}', "half a character"),
}
for name, (content, why) in RECORDS.items():
    beast(f"records-{name}", files({"a.jsonl": content}), why, "corpus testset", harmless=name == "surrogate")


def packed(line: str, times: int = 1, end: str = "") -> Make:
    return lambda d: (d / "a.jsonl.gz").write_bytes(gzip.compress(line.encode() * times + end.encode(), 9))


def memory_of_xz(d: Path) -> None:
    steps = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(b'{"text": "a"}\n' * (1 << 20), filters=steps))
    end = 12 + (content[12] + 1) * 4  # of the header of a block: what it is packed with, a checksum
    content[content.index(b"\x21\x01", 12) + 2] = 34
    content[end - 4 : end] = struct.pack("<I", zlib.crc32(content[12 : end - 4]))
    (d / "a.jsonl.xz").write_bytes(content)


def values(value: str, n: int) -> Make:
    """A line with so many values, packed."""
    return lambda d: packed('{"x": [' + (value + ",") * n + "1]}")(d)


KEYS = json.dumps({f"key {i}": 0 for i in range(100_000)})
beasts(
    {
        "records-bomb": (packed(" ", 200 << 20), "a line of 200 MB, packed in 200 kB"),
        "records-lists": (values("[]", 10**7), "10^7 lists in 30 MB, packed in 30 kB"),
        "records-objects": (values("{}", 10**7), "10^7 objects in 30 MB, packed in 30 kB"),
        "records-numbers": (values("999", 8 * 10**6), "8 * 10^6 numbers in 32 MB, packed in 32 kB"),
        "records-texts": (values('"ab"', 6 * 10**6), "6 * 10^6 texts in 30 MB, packed in 30 kB"),
        "records-keys": (packed(KEYS), "a field is missing among 10^5 others"),
        "records-xz-memory": (memory_of_xz, "asks for 512 MB to unpack 16 MB"),
        "records-gz": (files({"a.jsonl.gz": b"\x1f\x8b\x08garbage"}), "garbage for a .gz"),
        "records-xz": (files({"a.jsonl.xz": b"\xfd7zXZ\0garbage"}), "garbage for a .xz"),
        "records-parquet": (files({"a.parquet": b"PAR1garbagePAR1"}), "garbage for a .parquet"),
    },
    "corpus",
)


def parquet(folder: Path, n_rows: int = 1, **columns: tuple[Any, str]) -> None:
    """One value in all rows of each column."""
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    rows = pa.array([0] * n_rows, pa.int32())
    table = {
        name: pa.DictionaryArray.from_arrays(rows, pa.array([value], getattr(pa, kind)(*unit)))
        for name, (value, kind, *unit) in columns.items()
    }
    pq.write_table(pa.table(table), folder / "a.parquet", compression="zstd", store_schema=False)


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "large": ({"n_rows": 10**4, "text": ("a" * (40 << 20), "string")}, "a text of 40 MB in 10^4 rows"),
    "rows": ({"n_rows": 10**6, "text": ("a b " * 10**5, "string")}, "a text of 400 kB in 10^6 rows"),
    "dates": ({"text": (1 << 60, "timestamp", "ms")}, "dates beyond all calendars for texts"),
    "date": ({"text": ("a", "string"), "x": (1 << 60, "timestamp", "ms")}, "a date beyond all calendars"),
}
for name, (columns, why) in COLUMNS.items() if importlib.util.find_spec("pyarrow") else ():
    make = functools.partial(parquet, **columns)
    beast(f"parquet-{name}", make, why, "corpus", harmless=name == "date")

SETS: dict[str, tuple[str, str]] = {
    "nan": ("a,b,score\na,b,nan\nc,d,1\n", "a score that is no number"),
    "control": ("a,b,score\n\x1b[2J,b\n", "control characters, which a message must not repeat"),
    "columns": ("a,b,score\n" + "," * 100_000 + "\n", "100,000 columns"),
    "empty": ("", "nothing"),
}
for name, (text, why) in SETS.items():
    beast(f"pairs-{name}", files({"pairs.csv": text}), why, "testset")


# --- Edits ------------------------------------------------------------------------------------


def edits(content: object, *tensors: torch.Tensor) -> bytes:
    """A file as control.save writes it, but with this content."""
    text = content if isinstance(content, str) else json.dumps({"format": FORMAT, "edits": content})
    return save({f"0.{i}": t for i, t in enumerate(tensors)}, {"edits": text})


SCALE = {"kind": "ScaleSense", "tokens": [1], "factor": 0.0, "sense": None}
EDITS: dict[str, tuple[bytes, str]] = {
    "deep": (edits(DEEP), DEEP_WHY),
    "garbage": (b"\xff" * 100, "no header"),
    "kind": (edits([SCALE | {"kind": "os.system"}]), "a kind that does not exist"),
    "kind-list": (edits([SCALE | {"kind": ["x"] * 10_000}]), "a list for a kind"),
    "field": (edits([SCALE | {"__class__": "int"}]), "a field that does not exist"),
    "fields": (edits([SCALE | {"x" * 10_000: 1}]), "a field with a name of 10,000 letters"),
    "tokens": (edits([SCALE | {"tokens": "1" * 10_000}]), "a text for tokens"),
    "factor": (edits([SCALE | {"factor": 10**400}]), "a factor of 10^400"),
    "infinite": (edits(json.dumps({"format": FORMAT, "edits": [SCALE]}).replace("0.0", "1e999")), "1e999"),
    "records": (edits({"a": 1}), "an object for a list"),
    "tensor": (edits([SCALE], torch.zeros(3)), "a tensor that belongs to no edit"),
    "no-tensor": (edits([{"kind": "TopicControl", "delta": "tensor", "f": 1.0}]), "a tensor that is missing"),
    "format": (edits(json.dumps({"format": [[FORMAT]], "edits": []})), "a list for a format"),
}
for name, (raw, why) in EDITS.items():
    beast(f"edits-{name}", files({"edits.safetensors": raw}), why, "edits")
