"""Hostile files of the kinds people exchange besides models: vocabularies, records, edits, test sets."""

from __future__ import annotations

import gzip
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
from safetensors.torch import save

from nanobackpack.analysis.control import FORMAT

from .registry import HARMLESS, beast

Content = str | bytes | dict[str, Any] | list[Any]


def files(contents: dict[str, Content]) -> Callable[[Path], None]:
    """Writes files of these names; of a dict or list, its JSON."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            text = json.dumps(content) if isinstance(content, dict | list) else content
            (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return make


# --- Vocabularies -----------------------------------------------------------------------------

VOCAB = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\n"
PAIRS = {"t": 0, "h": 1, "th": 2}
DEEP = "[" * 200_000 + "]" * 200_000
VOCABULARIES: dict[str, tuple[dict[str, Content], str]] = {
    "binary": ({"vocab.txt": bytes(range(256)) * 99}, "not UTF-8"),
    "no-unknown": ({"vocab.txt": "the\ncat\n"}, "no token for what it does not know"),
    "empty": ({"vocab.txt": ""}, "nothing"),
    "cleaning": (
        {"vocab.txt": VOCAB, "tokenizer_config.json": {"strip_accents": [[1]]}}, "a list for yes or no"),
    "cleaning-deep": ({"vocab.txt": VOCAB, "tokenizer_config.json": DEEP}, "200,000 lists in each other"),
    "cleaning-list": ({"vocab.txt": VOCAB, "tokenizer_config.json": [1]}, "a list for settings"),
    "json-deep": ({"vocab.json": DEEP, "merges.txt": "t h"}, "200,000 lists in each other"),
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
    beast(f"found-{name}", why, "found")(files(contents))

for name in ("vocab.txt", "vocab.json"):

    @beast(f"found-pipe-{name}", "a pipe for a vocabulary: reading it waits forever", "found")
    def _(d: Path, name: str = name) -> None:
        (d / "merges.txt").touch()
        os.mkfifo(d / name)


# --- Records ----------------------------------------------------------------------------------

RECORDS: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, "200,000 lists in each other"),
    "digits": ('{"text": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "list": ('{"text": ["a"]}', "a list for a text"),
    "null": ("null", "no record"),
    "latin": (b'{"text": "\xe9"}', "not UTF-8"),
}
for name, (content, why) in RECORDS.items():
    beast(f"records-{name}", why, "corpus", "testset")(files({"a.jsonl": content}))
beast("records-surrogate", "half a character", "corpus", "testset", HARMLESS)(
    files({"a.jsonl": '{"text": "\\ud800"}'})
)
beast("records-bomb", "a line of 200 MB, packed in 200 kB", "corpus")(
    lambda d: (d / "a.jsonl.gz").write_bytes(gzip.compress(b" " * (200 << 20), 9))
)


def packed(line: str) -> Callable[[Path], object]:
    return lambda d: (d / "a.jsonl.gz").write_bytes(gzip.compress(line.encode(), 9))


LINES = {
    "lists": ('{"x": [' + "[]," * 10**7 + "[]]}", "10^7 lists in 30 MB, packed in 30 kB"),
    "objects": ('{"x": [' + "{}," * 10**7 + "{}]}", "10^7 objects in 30 MB, packed in 30 kB"),
    "numbers": ('{"x": [' + "999," * 8 * 10**6 + "1]}", "8 * 10^6 numbers in 32 MB, packed in 32 kB"),
    "texts": ('{"x": [' + '"ab",' * 6 * 10**6 + "1]}", "6 * 10^6 texts in 30 MB, packed in 30 kB"),
    "keys": (json.dumps({f"key {i}": 0 for i in range(100_000)}), "a field is missing among 10^5 others"),
}
for name, (line, why) in LINES.items():
    beast(f"records-{name}", why, "corpus")(packed(line))


@beast("records-xz-memory", "asks for 512 MB to unpack 16 MB", "corpus")
def _(d: Path) -> None:
    steps = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(b'{"text": "a"}\n' * (1 << 20), filters=steps))
    end = 12 + (content[12] + 1) * 4  # of the header of a block: what it is packed with, a checksum
    content[content.index(b"\x21\x01", 12) + 2] = 34
    content[end - 4 : end] = struct.pack("<I", zlib.crc32(content[12 : end - 4]))
    (d / "a.jsonl.xz").write_bytes(content)


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
if importlib.util.find_spec("pyarrow"):
    for name, (columns, why) in COLUMNS.items():
        beast(f"parquet-{name}", why, "corpus", *[HARMLESS] * (name == "date"))(
            lambda d, columns=columns: parquet(d, **columns)
        )
PACKED = {"gz": b"\x1f\x8b\x08garbage", "xz": b"\xfd7zXZ\0garbage", "parquet": b"PAR1garbagePAR1"}
for name, content in PACKED.items():
    beast(f"records-{name}", f"garbage for a .{name}", "corpus")(
        files({"a.parquet" if name == "parquet" else f"a.jsonl.{name}": content})
    )

SETS: dict[str, tuple[str, str]] = {
    "nan": ("a,b,score\na,b,nan\nc,d,1\n", "a score that is no number"),
    "control": ("a,b,score\n\x1b[2J,b\n", "control characters, which a message must not repeat"),
    "columns": ("a,b,score\n" + "," * 100_000 + "\n", "100,000 columns"),
    "empty": ("", "nothing"),
}
for name, (text, why) in SETS.items():
    beast(f"pairs-{name}", why, "testset")(files({"pairs.csv": text}))


# --- Edits ------------------------------------------------------------------------------------


def edits(content: object, *tensors: torch.Tensor) -> bytes:
    """A file as control.save writes it, but with this content."""
    text = content if isinstance(content, str) else json.dumps({"format": FORMAT, "edits": content})
    return save({f"0.{i}": t for i, t in enumerate(tensors)}, {"edits": text})


SCALE = {"kind": "ScaleSense", "tokens": [1], "factor": 0.0, "sense": None}
EDITS: dict[str, tuple[bytes, str]] = {
    "deep": (edits(DEEP), "200,000 lists in each other"),
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
    beast(f"edits-{name}", why, "edits")(files({"edits.safetensors": raw}))
