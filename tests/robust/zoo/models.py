"""Hostile model folders in Hugging Face's layout: config.json and model.safetensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from nanobackpack.config import ModelConfig
from nanobackpack.model import layouts as compat
from nanobackpack.train import checkpoint

from .registry import SIZES, beast

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 8, "vocab_size": 4}


def gpt2(folder: Path, config: str | dict[str, Any], header: bytes | None = None, body: bytes = b"") -> None:
    """A folder in Hugging Face's layout, good but for what is given."""
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text, encoding="utf-8")
    if header is not None:
        (folder / "model.safetensors").write_bytes(header + body)
        return
    sizes = SIZES | {"model_name": "gpt2", "n_layer": 1, "bias": True}
    state = compat.export_state(checkpoint.build_model(ModelConfig(**sizes)), compat.GPT2)
    state = {k: v.contiguous().clone() for k, v in state.items()}
    save_file(state, folder / "model.safetensors")


CONFIGS: dict[str, tuple[str | dict[str, Any], str]] = {
    "deep": ("[" * 200_000 + "]" * 200_000, "200,000 lists in each other"),
    "objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "100,000 objects in each other"),
    "huge": (json.dumps(GPT2 | {"note": "x" * (4 << 20)}), "4 MB of settings"),
    "nan": (json.dumps(GPT2 | {"resid_pdrop": float("nan")}), "a dropout that is no number"),
    "infinite": (json.dumps(GPT2)[:-1] + ', "resid_pdrop": 1e400}', "a dropout beyond all numbers"),
    "digits": (json.dumps(GPT2)[:-1] + ', "n_ctx": ' + "9" * 100_000 + "}", "a number of 100,000 digits"),
    "twice": (json.dumps(GPT2)[:-1] + ', "n_layer": 99}', "n_layer twice, 1 and 99"),
    "list": ("[1, 2, 3]", "a list for settings"),
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
    beast(f"config-{name}", why, "model")(lambda d, config=config: gpt2(d, config))


def tensors(*entries: tuple[str, str, list[int], list[int]]) -> str:
    """The header of a safetensors file; here names may come twice."""
    items = [f'"{n}":' + json.dumps({"dtype": t, "shape": s, "data_offsets": o}) for n, t, s, o in entries]
    return "{" + ",".join(items) + "}"


SAFETENSORS: dict[str, tuple[int | None, str, int, str]] = {  # header's length, header, bytes, why
    "length": (1 << 62, "{}", 0, "a header of 2^62 bytes"),
    "length-negative": (2**64 - 1, "{}", 0, "a header of -1 bytes"),
    "length-long": (99_000_000, "{}", 0, "a header longer than the file"),
    "offsets": (None, tensors(("wte.weight", "F32", [4, 8], [0, 1 << 40])), 128, "data far behind the end"),
    "backwards": (None, tensors(("wte.weight", "F32", [4, 8], [128, 0])), 128, "data from 128 to 0"),
    "overlap": (
        None, tensors(("a", "F32", [32], [0, 128]), ("b", "F32", [32], [0, 128])), 128, "two on the same"),
    "twice": (
        None, tensors(("wte.weight", "F32", [32], [0, 128]), ("wte.weight", "F32", [32], [128, 256])), 256,
        "a name twice"),
    "dtype": (None, tensors(("wte.weight", "OBJECT", [4, 8], [0, 128])), 128, "a type that does not exist"),
    "integers": (None, tensors(("wte.weight", "I32", [4, 8], [0, 128])), 128, "integers"),
    "shape": (None, tensors(("wte.weight", "F32", [4, 10**15], [0, 128])), 128, "a shape beyond its bytes"),
    "overflow": (None, tensors(("wte.weight", "F32", [1 << 40, 1 << 40], [0, 0])), 0, "2^80 numbers"),
    "empty": (None, tensors(("wte.weight", "F32", [0, 1 << 60], [0, 0])), 0, "a tensor without numbers"),
    "deep": (None, '{"a":' * 50_000 + "1" + "}" * 50_000, 0, "50,000 objects in each other"),
    "garbage": (None, "\x01\x02", 0, "no header"),
}  # fmt: skip
for name, (length, text, n_bytes, why) in SAFETENSORS.items():
    start = struct.pack("<Q", len(text) if length is None else length) + text.encode()
    beast(f"safetensors-{name}", why, "model")(lambda d, h=start, n=n_bytes: gpt2(d, GPT2, h, bytes(n)))


for kind in ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8"):

    @beast(f"safetensors-{kind}", f"all weights in {kind}, which not everything can compute with", "model")
    def _(d: Path, kind: str = kind) -> None:
        gpt2(d, GPT2)
        entries, at = [], 0
        for name, t in load_file(d / "model.safetensors").items():
            entries.append((name, kind, list(t.shape), [at, at := at + t.numel()]))
        header = tensors(*entries).encode()
        gpt2(d, GPT2, struct.pack("<Q", len(header)) + header, bytes(at))


@beast("safetensors-device", "a link to a device without end", "model")
def _(d: Path) -> None:
    gpt2(d, GPT2)
    (d / "model.safetensors").unlink()
    (d / "model.safetensors").symlink_to("/dev/zero")
