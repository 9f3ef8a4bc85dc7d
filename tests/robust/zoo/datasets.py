"""Hostile data sets and run folders: tokenizer.json, meta.json, .bin, metrics.jsonl, and links."""

from __future__ import annotations

import base64
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .registry import HARMLESS, beast, dataset

# --- tokenizer.json ---------------------------------------------------------------------------


def tokenizer(model: dict[str, Any], **parts: Any) -> str:
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model} | parts)


def words(vocabulary: dict[str, int], unknown: str = "a") -> dict[str, Any]:
    return {"type": "WordLevel", "vocab": vocabulary, "unk_token": unknown}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def normal(*parts: dict[str, Any], **more: Any) -> str:
    """A tokenizer with so many normalizers."""
    return tokenizer(words(ABC), normalizer={"type": "Sequence", "normalizers": parts}, **more)


def chain(kind: str, name: str, *parts: dict[str, Any]) -> str:
    """A tokenizer with so many parts of another kind."""
    return tokenizer(words(ABC), **{kind: {"type": "Sequence", name: parts}})


def replace(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(n: int) -> bytes:
    """A table by which "a" becomes n times "b": a double array of 1,024 units, then the texts."""
    units = {0: 256 << 10, 256 ^ 97: 512 << 10 | 1 << 8 | 97}  # offset, has a leaf, label; its leaf: 0
    return struct.pack("<1025I", 4096, *(units.get(i, 0) for i in range(1024))) + b"b" * n + b"\0"


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
    "deep": ("[" * 200_000 + "]" * 200_000, "200,000 lists in each other"),
    "deep-parts": (
        tokenizer(words(ABC))[:-1] + ', "normalizer": ' + '{"type":"Sequence","normalizers":[' * 500
        + "]}" * 500 + "}", "500 normalizers in each other"),
    "huge-id": (tokenizer(words({"a": 0, "b": 2**32 - 1})), "an id of 2^32 - 1, so as many rows to embed it"),
    "too-huge-id": (tokenizer(words({"a": 2**40})), "an id of 2^40"),
    "negative-id": (tokenizer(words({"a": -1})), "a negative id"),
    "same-id": (tokenizer(words({"a": 0, "b": 0})), "one id for two tokens: what does it decode to?"),
    "twice": (tokenizer(words({"a": 0, "b": 1})).replace('"b"', '"a"'), "a token twice"),
    "latin": ('{"version": "café"}'.encode("latin-1"), "not UTF-8"),
    "nul": (b"\0" * 1000, "zeros"),
    "model": (tokenizer({"type": "Oracle", "vocab": {}}), "a model that does not exist"),
    "model-list": (tokenizer([1, 2, 3]), "a list for a model"),  # type: ignore[arg-type]
    "vocabulary": (tokenizer(words(["a", "b"])), "a list for a vocabulary"),  # type: ignore[arg-type]
    "merges": (tokenizer({"type": "BPE", "vocab": ABC, "merges": [["a", "z"]]}), "merges an unknown token"),
    "unknown": (tokenizer(words({"q": 0}, "none")), "no token for what it does not know"),
    "empty": (tokenizer(words({})), "no tokens at all"),
    "regex": (tokenizer(words(ABC), pre_tokenizer=split("(a+)+$")), "a pattern that takes forever"),
    "regex-deep": (tokenizer(words(ABC), pre_tokenizer=split("(" * 99_999 + ")" * 99_999)), "a deep pattern"),
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
        normal({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap(10**6)).decode()}),
        "a table in which a letter becomes 10^6"),
    "growing-ids": (
        tokenizer(words(ABC), post_processor={
            "type": "TemplateProcessing", "single": [AGAIN] * 10**5, "pair": [AGAIN], "special_tokens": {}}),
        "each text 10^5 times"),
    "growing-decoder": (
        chain("decoder", "decoders", *[{"type": "BPEDecoder", "suffix": ""}] * LOTS),
        "puts spaces between all letters"),
    "many": (normal(*[{"type": "NFD"}] * 10**5), "10^5 normalizers"),
    "charsmap": (
        tokenizer(words(ABC), normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        "a table of 2^32 entries, in no bytes"),
    "charsmap-short": (
        tokenizer(words(ABC), normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "a table cut short"),
    "length-zero": (
        tokenizer(words(ABC), pre_tokenizer={"type": "FixedLength", "length": 0}), "pieces of no length"),
    "padding": (
        tokenizer(words(ABC), padding={
            "strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "a"}), "texts of 10^10 tokens at least"),
}  # fmt: skip
MAY_OPEN = {"padding"}
for name, (content, why) in TOKENIZERS.items():

    @beast(f"tokenizer-{name}", why, "tokenizer", "data", *[HARMLESS] * (name in MAY_OPEN))
    def _(d: Path, content: str | bytes = content) -> None:
        dataset(d)
        raw = content if isinstance(content, bytes) else content.encode()
        (d / "tokenizer.json").write_bytes(raw)


@beast("tokenizer-large", "200 MB of spaces", "tokenizer", "data")
def _(d: Path) -> None:
    dataset(d)
    with open(d / "tokenizer.json", "wb") as f:
        f.truncate(200 << 20)


@beast("tokenizer-pipe", "a pipe for a tokenizer: reading it waits forever", "tokenizer", "data")
def _(d: Path) -> None:
    dataset(d)
    (d / "tokenizer.json").unlink()
    os.mkfifo(d / "tokenizer.json")


@beast("vocab-txt", "a word list full of control characters, for a tokenizer.json", "tokenizer")
def _(d: Path) -> None:
    (d / "tokenizer.json").write_bytes(b"[PAD]\n[UNK]\n\x00\x1b[2J\n\xff\xfe\n" + b"a" * (1 << 20))


# --- meta.json and .bin ------------------------------------------------------------------------

METAS: dict[str, tuple[dict[str, Any], str]] = {
    "dots": ({"tokenizer": "../../../../etc/passwd"}, "a tokenizer outside of the folder"),
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
for name, (changes, why) in METAS.items():
    beast(f"meta-json-{name}", why, "data")(lambda d, changes=changes: dataset(d, **changes))


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    """A good data set with another file of that name."""

    def make(folder: Path) -> None:
        dataset(folder)
        (folder / name).write_bytes(content)

    return make


def linked(name: str, target: str) -> Callable[[Path], None]:
    """A good data set with a link in place of a file."""

    def make(folder: Path) -> None:
        dataset(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return make


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "meta-json-deep": (replaced("meta.json", b"[" * 400_000), "400,000 lists in each other"),
    "meta-json-large": (replaced("meta.json", b" " * (8 << 20)), "8 MB of spaces"),
    "meta-json-link": (linked("meta.json", "/etc/passwd"), "a link to a file of the reader's"),
    "meta-json-device": (linked("meta.json", "/dev/zero"), "a link to a device without end"),
    "tokenizer-link": (linked("tokenizer.json", "/etc/passwd"), "a link to a file of the reader's"),
    "bin-odd": (replaced("train.bin", bytes(321)), "half a token too many"),
    "bin-empty": (replaced("val.bin", b""), "no tokens"),
    "bin-range": (replaced("train.bin", struct.pack("<160H", *range(160))), "ids beyond the vocabulary"),
    "bin-range-last": (replaced("train.bin", bytes(318) + b"\xff\xff"), "its last id beyond the vocabulary"),
    "bin-device": (linked("train.bin", "/dev/zero"), "a link to a device without end"),
    "bin-random": (linked("val.bin", "/dev/urandom"), "a link to a device without end"),
    "bin-dangling": (linked("train.bin", "nowhere"), "a link to nothing"),
    "bin-loop": (linked("train.bin", "train.bin"), "a link to itself"),
}
for name, (make, why) in FILES.items():
    beast(name, why, "data")(make)


@beast("bin-pipe", "a pipe for token ids: opening it waits forever", "data")
def _(d: Path) -> None:
    dataset(d)
    (d / "train.bin").unlink()
    os.mkfifo(d / "train.bin")


@beast("bin-folder", "a folder for token ids", "data")
def _(d: Path) -> None:
    dataset(d)
    (d / "train.bin").unlink()
    (d / "train.bin").mkdir()


# --- A run's folder, to go on in ---------------------------------------------------------------


def run(folder: Path, name: str, link: Callable[[Path, Path], object] = os.symlink) -> None:
    """The folder of a run that came from a stranger: one of its files leads outside."""
    outside = folder.parent / f"outside-{folder.name}"
    outside.write_text("precious", encoding="utf-8")
    link(outside, folder / name)


for name in ("metrics.jsonl", "config.json", "loss.png", "ckpt.pt", "best.pt"):
    beast(f"run-link-{name}", f"{name} is a link to a file outside", "run", HARMLESS)(
        lambda d, name=name: run(d, name)
    )

LOCKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda d: run(d, "run.lock"), "a link to a file outside, to be emptied"),
    "hard-link": (lambda d: run(d, "run.lock", os.link), "a second name of a file outside, to be emptied"),
    "dangling": (
        lambda d: (d / "run.lock").symlink_to(d.parent / f"outside-{d.name}"),
        "a link to a new file outside"),
    "pipe": (lambda d: os.mkfifo(d / "run.lock"), "a pipe: opening it waits forever"),
    "folder": (lambda d: (d / "run.lock").mkdir(), "a folder"),
}  # fmt: skip
for name, (make, why) in LOCKS.items():
    beast(f"run-lock-{name}", f"run.lock is {why}", "run")(make)

JSONL = {
    "deep": b"[" * 300_000 + b"\n",
    "latin": b'{"step": "\xe9"}\n',
    "types": b'{"step": "x", "train_loss": {}}\n[1]\n7\nnull\n{"train_loss": 1}\n{"step": 1e999}\n',
    "cut": b'{"step": 1, "train_lo',
}
for name, content in JSONL.items():
    beast(f"metrics-{name}", "lines of a log that are not as ours", "metrics", HARMLESS)(
        lambda d, content=content: (d / "metrics.jsonl").write_bytes(content)
    )
