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
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

from . import SIZES, Table, beast, beasts, call, dataset

Content = str | bytes | dict[str, Any] | list[Any]
DEEP = "[" * 200_000 + "]" * 200_000
DEEP_WHY = "200,000 lists in each other"


def write_files(folder: Path, contents: dict[str, Content]) -> None:
    """Write files of these names; of a dict or list, its JSON."""
    for name, content in contents.items():
        text = json.dumps(content) if isinstance(content, dict | list) else content
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def in_file(name: str) -> Callable[[Path, Content], None]:
    """For a table of contents of one file."""
    return lambda folder, content: write_files(folder, {name: content})


# --- Models: config.json and model.safetensors ------------------------------------------------

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 4}
GPT2_JSON = json.dumps(GPT2)[1:-1]  # to which more is added


def gpt2(folder: Path, config: Content = GPT2) -> None:
    """A folder in Hugging Face's layout, good but for its config.json."""
    sizes = SIZES | {"model_name": "gpt2", "n_layer": 1, "bias": True}
    state = layouts.export_state(checkpoint.build_model(ModelConfig(**sizes)), layouts.GPT2)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, folder / "model.safetensors")
    write_files(folder, {"config.json": config})


CONFIGS: Table = {
    "deep": (DEEP, DEEP_WHY),
    "huge": ("{" + GPT2_JSON + "}" + " " * (4 << 20), "4 MB of settings, nearly all spaces"),
    "nan": (GPT2 | {"note": float("nan")}, "a number that is none"),
    "digits": ("{" + GPT2_JSON + ', "n_ctx": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "twice": ('{"n_layer": 99, ' + GPT2_JSON + "}", "n_layer twice, 99 and 1"),
    "list": ([1, 2, 3], "a list for settings"),
    "wide": (GPT2 | {"n_positions": 10**4000}, "a context of 10^4000"),
    "negative": (GPT2 | {"n_positions": -8}, "a negative context"),
    "text": (GPT2 | {"n_embd": "8"}, "a text for a width"),
    "list-width": (GPT2 | {"n_embd": [8], "n_inner": 32}, "a list for a width"),
    "code": (
        GPT2 | {"model_type": "mine", "auto_map": {"AutoModel": "mine.py--Mine"}}, "asks for its own code"),
}  # fmt: skip
beasts("config-", gpt2, CONFIGS, "model")


def safetensors(header: str | dict[str, Any], n_bytes: int, length: int | None = None) -> bytes:
    """A file of safetensors, which may lie about the length of its header."""
    text = header if isinstance(header, str) else json.dumps(header)
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + bytes(n_bytes)


def tensor(kind: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    """What the header says of a tensor."""
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def gpt2_weights(folder: Path, weights: bytes) -> None:
    write_files(folder, {"config.json": GPT2, "model.safetensors": weights})


ONE = tensor("F32", [32], 0, 128)
SAFETENSORS: Table = {
    "length": (safetensors("{}", 0, 2**64 - 1), "a header of -1 bytes"),
    "offsets": (safetensors({"wte.weight": tensor("F32", [4, 8], 0, 1 << 40)}, 128), "data behind the end"),
    "overlap": (safetensors({"a": ONE, "b": ONE}, 128), "two tensors in the same bytes"),
    "empty": (
        safetensors({"wte.weight": tensor("F32", [0, 1 << 60], 0, 0)}, 0), "a tensor without numbers"),
    "deep": (safetensors('{"a":' * 50_000 + "1" + "}" * 50_000, 0), "50,000 objects in each other"),
}  # fmt: skip
beasts("safetensors-", gpt2_weights, SAFETENSORS, "model")


def one_byte(d: Path) -> None:
    gpt2(d)
    entries, at = {}, 0
    for name, t in load_file(d / "model.safetensors").items():
        entries[name] = tensor("F8_E8M0", list(t.shape), at, at := at + t.numel())
    gpt2_weights(d, safetensors(entries, at))


def from_device(d: Path) -> None:
    write_files(d, {"config.json": GPT2})
    (d / "model.safetensors").symlink_to("/dev/zero")


beast("safetensors-F8", one_byte, "weights in a type which not everything can compute with", "model")
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
LONG = "#" * 10**6
LOTS = 32  # of parts each of which doubles a text
TOKEN = {"id": 3, "content": " ", "special": False, "normalized": False}
TOKEN |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
LETTERS = split(r"[\s\S]")
PREFIX = {"type": "Metaspace", "replacement": "a", "prepend_scheme": "always", "split": False}
AGAIN = {"Sequence": {"id": "A", "type_id": 0}}
ENDLESS = {"type": "WordPiece", "vocab": {"a": 0, "##a": 1}, "unk_token": "a"}
ENDLESS |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9}
TOKENIZERS: Table = {
    "deep": (DEEP, DEEP_WHY),
    "huge-id": (tokenizer(words({"a": 0, "b": 2**32 - 1})), "an id of 2^32 - 1, so as many rows to embed it"),
    "same-id": (tokenizer(words({"a": 0, "b": 0})), "one id for two tokens: what does it decode to?"),
    "latin": ('{"version": "café"}'.encode("latin-1"), "not UTF-8"),
    "list": ([1, 2, 3], "a list for a tokenizer"),
    "model": (tokenizer({"type": "Oracle", "vocab": {}}), "a model that does not exist"),
    "empty": (tokenizer(words({})), "no tokens at all"),
    "regex": (abc(pre_tokenizer=split("(a+)+$")), "a pattern that takes forever"),
    "regex-deep": (abc(pre_tokenizer=split("(" * 99_999 + ")" * 99_999)), "a deep pattern"),
    "word": (tokenizer(ENDLESS), "a word of 10^9 characters, in the square of the time"),
    "word-unigram": (
        tokenizer({"type": "Unigram", "unk_id": 0, "vocab": [["a" * k, -1.0] for k in range(1, 3000)]}),
        "for each character 3,000 tokens that may begin there"),
    "mark": (
        tokenizer(ENDLESS | {"max_input_chars_per_word": 100, "continuing_subword_prefix": LONG}),
        "1 MB beside each character"),
    "mark-unknown": (tokenizer(words(ABC | {LONG: 3}, LONG)), "1 MB to look up for each unknown word"),
    "mark-decoder": (abc(decoder={"type": "BPEDecoder", "suffix": LONG}), "1 MB to look for in each token"),
    "growing": (normal(*[replace("a" * 100, String="a")] * 6), "each letter becomes 10^12 letters"),
    "growing-bytes": (normal(*[{"type": "ByteLevel"}] * LOTS), "bytes of bytes of bytes"),
    "growing-prefix": (
        chain("pre_tokenizer", "pretokenizers",
              *[LETTERS, PREFIX, LETTERS, PREFIX | {"replacement": "b"}] * LOTS),
        "each letter gets a prefix, which gets a prefix"),
    "growing-empty": (normal(*[replace("a", Regex="")] * LOTS), "puts a letter between all letters"),
    "growing-empty-text": (normal(*[replace("a", String="")] * LOTS), "puts a letter between all letters"),
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
beasts("tokenizer-", in_file("tokenizer.json"), TOKENIZERS, "tokenizer", harmless=("padding",))


# --- Data sets: meta.json and .bin ------------------------------------------------------------


def spoiled(name: str, spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """A good data set, one file of which is taken away for `spoil` to put something else there."""

    def make(folder: Path) -> None:
        dataset(folder)
        (folder / name).unlink()
        spoil(folder / name)

    return make


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return spoiled(name, lambda path: path.write_bytes(content))


def linked(name: str, target: str) -> Callable[[Path], None]:
    return spoiled(name, lambda path: path.symlink_to(target))


def outside(d: Path) -> None:
    dataset(d)
    name = f"outside-{d.name}.json"
    (d / "tokenizer.json").rename(d.parent / name)
    dataset(d, tokenizer=f"../{name}")


METAS: Table = {
    "parent": ({"tokenizer": ".."}, "the folder above for a tokenizer"),
    "name-nul": ({"tokenizer": "a\0b"}, "a name with a zero in it"),
    "name-long": ({"tokenizer": "x" * 5000}, "a name of 5,000 letters"),
    "size": ({"vocab_size": 10**15}, "a vocabulary of 10^15"),
    "size-negative": ({"vocab_size": -4}, "a negative vocabulary"),
    "tokens": ({"tokens": {"train": 10**18, "val": 10**18}}, "10^18 tokens in a few bytes"),
    "tokens-negative": ({"tokens": {"train": -1, "val": -1}}, "less than no tokens"),
    "dtype": ({"dtype": "object"}, "Python objects for ids"),
    "entry": ({"hook": "os.system"}, "an entry that does not exist"),
}
DATASETS: Table = {
    "meta-json-dots": (outside, "a tokenizer outside of the folder"),
    "meta-json-link": (linked("meta.json", "/etc/passwd"), "a link to a file of the reader's"),
    "tokenizer-other": (
        replaced("tokenizer.json", Tokenizer.char("abcx").to_json().encode()),
        "another tokenizer than the one in meta.json"),
    "bin-odd": (replaced("train.bin", bytes(321)), "half a token too many"),
    "bin-empty": (replaced("val.bin", b""), "no tokens"),
    "bin-range": (replaced("train.bin", bytes(318) + b"\xff\xff"), "its last id beyond the vocabulary"),
    "bin-device": (linked("train.bin", "/dev/zero"), "a link to a device without end"),
    "bin-dangling": (linked("train.bin", "nowhere"), "a link to nothing"),
    "bin-pipe": (spoiled("train.bin", os.mkfifo), "a pipe for token ids: opening it waits forever"),
}  # fmt: skip
beasts("meta-json-", lambda d, changes: dataset(d, **changes), METAS, "data")
beasts("", call, DATASETS, "data")
beast(
    "tokenizer-pipe", spoiled("tokenizer.json", os.mkfifo),
    "a pipe for a tokenizer: reading it waits forever", "tokenizer data",
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
LOCKS: Table = {
    "link": (lambda d: run(d, "run.lock"), "run.lock is a link to a file outside, to be emptied"),
    "hard-link": (
        lambda d: run(d, "run.lock", os.link),
        "run.lock is a second name of a file outside, to be emptied"),
    "pipe": (lambda d: os.mkfifo(d / "run.lock"), "run.lock is a pipe: opening it waits forever"),
}  # fmt: skip
beasts("run-lock-", call, LOCKS, "run")
LOGS: Table = {
    "deep": (b"[" * 300_000 + b"\n", "300,000 lists in each other"),
    "latin": (b'{"step": "\xe9"}\n', "not UTF-8"),
    "types": (
        '{"step": "x", "train_loss": {}}\n[1]\n7\nnull\n{"train_loss": 1}\n{"step": 1e999}\n',
        "texts, lists and nothing for numbers"),
    "cut": ('{"step": 1, "train_lo', "its end is missing"),
    "deep-enough": (
        "\n".join(f'{{"step": 1, "x": {"[" * n}{"]" * n}}}' for n in range(900, 1000)),
        "900 lists in each other and more: some can be read, but not written again"),
}  # fmt: skip
beasts("metrics-", in_file("metrics.jsonl"), LOGS, "metrics", harmless=LOGS)


# --- Vocabularies -----------------------------------------------------------------------------

VOCAB = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n"
PAIRS = {"t": 0, "h": 1, "th": 2}
VOCABULARIES: Table = {
    "binary": ({"vocab.txt": bytes(range(256)) * 99}, "not UTF-8"),
    "no-unknown": ({"vocab.txt": "the\ncat\n"}, "no token for what it does not know"),
    "cleaning": (
        {"vocab.txt": VOCAB, "tokenizer_config.json": {"strip_accents": [[1]]}}, "a list for yes or no"),
    "cleaning-list": ({"vocab.txt": VOCAB, "tokenizer_config.json": [1]}, "a list for settings"),
    "json-list": ({"vocab.json": ["t", "h", "th"], "merges.txt": "t h"}, "a list for a vocabulary"),
    "json-huge-id": ({"vocab.json": PAIRS | {"x": 2**32 - 1}, "merges.txt": "t h"}, "an id of 2^32 - 1"),
    "json-list-id": ({"vocab.json": PAIRS | {"x": [0]}, "merges.txt": "t h"}, "a list for an id"),
    "merges-unknown": ({"vocab.json": PAIRS, "merges.txt": "t x"}, "merges an unknown token"),
    "merges-three": ({"vocab.json": PAIRS, "merges.txt": "t h t"}, "merges three"),
}  # fmt: skip
beasts("found-", write_files, VOCABULARIES, "found")


# --- Records and test sets --------------------------------------------------------------------

RECORDS: Table = {
    "deep": (DEEP, DEEP_WHY),
    "digits": ('{"text": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "list": ('{"text": ["a"]}', "a list for a text"),
    "null": ("null", "no record"),
    "latin": (b'{"text": "\xe9"}', "not UTF-8"),
    "surrogate": ('{"text": "\\ud800"}', "half a character"),
}
beasts("records-", in_file("a.jsonl"), RECORDS, "corpus testset", harmless=("surrogate",))


def packed(folder: Path, line: str) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(line.encode(), 9))


def memory_of_xz(d: Path) -> None:
    steps = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(b'{"text": "a"}\n' * (1 << 20), filters=steps))
    end = 12 + (content[12] + 1) * 4  # of the header of a block: what it is packed with, a checksum
    content[content.index(b"\x21\x01", 12) + 2] = 34
    content[end - 4 : end] = struct.pack("<I", zlib.crc32(content[12 : end - 4]))
    (d / "a.jsonl.xz").write_bytes(content)


PACKED: Table = {
    "bomb": (" " * (200 << 20), "a line of 200 MB, packed in 200 kB"),
    "lists": ('{"x": [' + "[]," * 10**7 + "1]}", "10^7 lists in 30 MB, packed in 30 kB"),
    "texts": ('{"x": [' + '"ab",' * 6 * 10**6 + "1]}", "6 * 10^6 texts in 30 MB, packed in 30 kB"),
    "keys": (json.dumps({f"key {i}": 0 for i in range(100_000)}), "a field is missing among 10^5 others"),
}
beasts("records-", packed, PACKED, "corpus", harmless=("bomb",))
beast("records-xz-memory", memory_of_xz, "asks for 512 MB to unpack 16 MB", "corpus")
GARBAGE: Table = {
    "gz": ({"a.jsonl.gz": b"\x1f\x8b\x08garbage"}, "garbage for a .gz"),
    "parquet": ({"a.parquet": b"PAR1garbagePAR1"}, "garbage for a .parquet"),
}
beasts("records-", write_files, GARBAGE, "corpus")


def parquet(folder: Path, n_rows: int = 1, **columns: tuple[Any, str]) -> None:
    """One value in all rows of each column."""
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    rows = pa.array([0] * n_rows, pa.int32())
    table = {
        name: pa.DictionaryArray.from_arrays(rows, pa.array([value], getattr(pa, kind)(*unit)))
        for name, (value, kind, *unit) in columns.items()
    }
    pq.write_table(pa.table(table), folder / "a.parquet", compression="zstd", store_schema=False)


COLUMNS: Table = {
    "large": ({"n_rows": 10**4, "text": ("a" * (40 << 20), "string")}, "a text of 40 MB in 10^4 rows"),
    "dates": ({"text": (1 << 60, "timestamp", "ms")}, "dates beyond all calendars for texts"),
    "date": ({"text": ("a", "string"), "x": (1 << 60, "timestamp", "ms")}, "a date beyond all calendars"),
}
if importlib.util.find_spec("pyarrow"):
    beasts("parquet-", lambda d, columns: parquet(d, **columns), COLUMNS, "corpus", harmless=("date",))

SETS: Table = {
    "nan": ("a,b,score\na,b,nan\nc,d,1\n", "a score that is no number"),
    "control": ("a,b,score\n\x1b[2J,b\n", "control characters, which a message must not repeat"),
    "empty": ("", "nothing"),
}
beasts("pairs-", in_file("pairs.csv"), SETS, "testset")


# --- Edits ------------------------------------------------------------------------------------


def edits(content: object, *tensors: torch.Tensor) -> bytes:
    """A file as control.save writes it, but with this content."""
    text = content if isinstance(content, str) else json.dumps({"format": FORMAT, "edits": content})
    return save({f"0.{i}": t for i, t in enumerate(tensors)}, {"edits": text})


SCALE = {"kind": "ScaleSense", "tokens": [1], "factor": 0.0, "sense": None}
EDITS: Table = {
    "garbage": (b"\xff" * 100, "no header"),
    "kind": (edits([SCALE | {"kind": ["x"] * 10_000}]), "a list for a kind"),
    "fields": (edits([SCALE | {"x" * 10_000: 1}]), "a field with a name of 10,000 letters"),
    "tokens": (edits([SCALE | {"tokens": "1" * 10_000}]), "a text for tokens"),
    "factor": (edits([SCALE | {"factor": 10**400}]), "a factor of 10^400"),
    "infinite": (edits(json.dumps({"format": FORMAT, "edits": [SCALE]}).replace("0.0", "1e999")), "1e999"),
    "records": (edits({"a": 1}), "an object for a list"),
    "tensor": (edits([SCALE], torch.zeros(3)), "a tensor that belongs to no edit"),
    "no-tensor": (edits([{"kind": "TopicControl", "delta": "tensor", "f": 1.0}]), "a tensor that is missing"),
    "format": (edits(json.dumps({"format": [[FORMAT]], "edits": []})), "a list for a format"),
}
beasts("edits-", in_file("edits.safetensors"), EDITS, "edits")
