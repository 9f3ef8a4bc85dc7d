"""Hostile pickles: those that call out, as ckpt.pt and meta.pkl, and those that never end."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanobackpack.text.meta import SPLITS

from .registry import PROOF, beast, good


class Calls:
    """Unpickled by the ordinary unpickler, this calls a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


LOTS = 60  # doublings


def laughs(kind: type) -> object:
    """Two of two of two of ... : small in memory, endless for whoever walks through."""
    value: Any = kind()
    for _ in range(LOTS):
        value = kind([value, value])
    return value


def keyed_by_tuples() -> bytes:
    """A dict whose key is a tuple of two of two of ... : hashing it takes 2^60 steps."""
    return b"\x80\x02]q\x00)q\x01a" + b"h\x01h\x01\x86q\x01a" * LOTS + b"}h\x01K\x01sa."


def deep(depth: int) -> bytes:
    """A list in a list in a list ..."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def legacy(folder: Path, meta: object) -> None:
    """A data set as nanoBackpackLM makes them; `meta` may be a pickle already."""
    for split_name in SPLITS:
        (folder / f"{split_name}.bin").write_bytes(bytes(200))
    (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))


CALLS = {
    "mkdir": (Calls(os.mkdir, PROOF), "calls os.mkdir"),
    "system": (Calls(os.system, f"mkdir {PROOF}"), "calls os.system"),
    "eval": (Calls(eval, f"__import__('os').mkdir({PROOF!r})"), "calls eval"),
    "exec": (Calls(exec, f"import os; os.mkdir({PROOF!r})"), "calls exec"),
    "open": (Calls(open, PROOF, "w"), "opens a file for writing"),
    "import": (Calls(__import__, "antigravity"), "imports a module, which may do anything"),
    "bytearray": (Calls(bytearray, 1 << 36), "asks for 64 GB by a type that torch allows"),
    "tensor": (Calls(torch.Tensor, 1 << 34), "asks for 64 GB by a type that torch allows"),
}
for name, (call, why) in CALLS.items():
    beast(f"ckpt-{name}", f"{why} when unpickled", "model", "resume")(
        lambda d, call=call: torch.save(good() | {"best_val_loss": call}, d / "ckpt.pt")
    )
    beast(f"ckpt-old-{name}", f"{why}, in the format before torch 1.6", "model")(
        lambda d, call=call: torch.save(
            good() | {"best_val_loss": call}, d / "ckpt.pt", _use_new_zipfile_serialization=False
        )
    )
    beast(f"ckpt-bare-{name}", f"{why}, as a bare pickle", "model")(
        lambda d, call=call: (d / "ckpt.pt").write_bytes(pickle.dumps(call))
    )
    beast(f"meta-{name}", f"{why} when unpickled", "meta", "data")(
        lambda d, call=call: legacy(d, {"vocab_size": 1, "itos": {0: call}})
    )

PICKLES: dict[str, tuple[object, str]] = {
    "laughs": ({"vocab_size": laughs(list), "itos": {0: "a"}}, "lists of lists of lists, 2^60 when printed"),
    "tuple-key": (keyed_by_tuples(), "a key that takes forever to hash"),
    "deep": (deep(100_000), "100,000 lists in each other"),
    "memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "a memo of 2^31 places: 16 GB"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].", "a frame of 2^40 bytes"),
    "text": (b"\x80\x02X\xff\xff\xff\x7fab.", "a text of 2^31 bytes"),
    "long": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "a number of 2^31 bytes"),
    "global": (b"cposix\nsystem\n(S'true'\ntR.", "calls posix.system, in the oldest protocol"),
    "extension": (b"\x80\x02\x82\x01.", "an extension code, which imports"),
    "object": (b"\x80\x02(ios\nmkdir\n.", "makes an instance"),
    "itos-size": ({"vocab_size": 10**9, "itos": {0: "a"}}, "a vocabulary of 10^9 in one character"),
    "itos-keys": ({"vocab_size": 2, "itos": {0: "a", "1": "b"}}, "ids that are no numbers"),
    "itos-gap": ({"vocab_size": 2, "itos": {0: "a", 10**12: "b"}}, "an id of 10^12"),
    "itos-words": ({"vocab_size": 1, "itos": {0: "abc"}}, "words for characters"),
    "itos-surrogate": ({"vocab_size": 1, "itos": {0: "\ud800"}}, "half a character"),
    "empty": (b"", "nothing"),
    "underflow": (b"\x80\x02aaa.", "takes from an empty stack"),
}  # fmt: skip
for name, (meta, why) in PICKLES.items():
    beast(f"meta-{name}", why, "data", *["meta"] * (name not in ("itos-size", "itos-surrogate", "laughs")))(
        lambda d, meta=meta: legacy(d, meta)
    )
