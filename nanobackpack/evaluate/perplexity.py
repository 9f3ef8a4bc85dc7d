"""Perplexity: exp of the mean loss over a held-out stream of tokens.

    PPL = exp(Σ_i -ln p(x_i | what precedes it in its window) / number of tokens predicted)

The windows follow one another without overlap, so that each token but the first is predicted exactly
once, and each counts alike: means of losses, never of perplexities. A model's windows are as long as its
block_size; longer ones give each token more to go on, so compare models of the same block_size.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nanobackpack.analysis import control
from nanobackpack.analysis.control import applied
from nanobackpack.config import PerplexityConfig
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import autocast, generator, keep_memory, pick_dtype
from nanobackpack.safe.files import display_path, read_json, replacing
from nanobackpack.text.data import TokenData, open_dataset
from nanobackpack.text.meta import HELD_OUT
from nanobackpack.train.checkpoint import check_vocabulary, open_model

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Perplexity:
    """The loss of a model over a stream of tokens."""

    split: str
    tokens: int
    """Tokens predicted."""
    nats_per_token: float
    chars_per_token: float | None = None

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats_per_token) if self.nats_per_token < 709 else math.inf

    @property
    def bits_per_token(self) -> float:
        return self.nats_per_token / math.log(2)

    @property
    def bits_per_char(self) -> float | None:
        """Comparable between tokenizers; None where the data does not know its characters."""
        return self.bits_per_token / self.chars_per_token if self.chars_per_token else None

    @classmethod
    def mean(cls, split: str, parts: list[Perplexity]) -> Perplexity:
        """All parts as one stream: each token counts alike."""
        n = sum(p.tokens for p in parts)
        known = all(p.chars_per_token for p in parts)
        chars = sum(p.tokens * (p.chars_per_token or 0) for p in parts) / n if known else None
        return cls(split, n, sum(p.tokens * p.nats_per_token for p in parts) / n, chars)


@torch.no_grad()
def loss_of(model: LanguageModel, batches: Batches, dtype: torch.dtype = torch.float32) -> tuple[float, int]:
    """Mean loss in nats per token, and the number of tokens, of batches x, y: (B, T) int64 each."""
    device = model.wte.weight.device
    total, n = torch.zeros((), dtype=torch.float64), 0
    was_training = model.training
    model.eval()
    try:
        for x, y in batches:
            with autocast(device, dtype):
                loss = model(x.to(device), y.to(device), loss_only=True).loss
            total += loss.double().cpu() * y.numel()
            n += y.numel()
    finally:
        model.train(was_training)
    return total.item() / n, n


def perplexity(
    model: LanguageModel,
    data: TokenData,
    split: str,
    *,
    batch_size: int = 12,
    n_batch: int = 0,
    seed: int = 1337,
    dtype: torch.dtype = torch.float32,
) -> Perplexity:
    """The perplexity of a whole split, or with n_batch over that many random batches of it.

    Raises: InputError if a random window does not fit into the split.
    """
    T = model.config.block_size
    if n_batch:
        draw = generator(seed)
        batches: Batches = (data.batch(split, batch_size, T, draw) for _ in range(n_batch))
        size = n_batch * batch_size * T
    else:
        batches = data.windows(split, batch_size, T)
        size = data.n_tokens(split) - len(data.parts(split))  # the first of each cannot be predicted
    nats, n = loss_of(model, _watched(batches, size, split), dtype)
    return Perplexity(split, n, nats, data.chars_per_token(split))


def _watched(batches: Batches, size: int, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    with tqdm(desc=name, total=size, unit="token", unit_scale=True, disable=None, leave=False) as bar:
        for x, y in batches:
            yield x, y
            bar.update(y.numel())


def report(config: PerplexityConfig, each_part: bool = False) -> None:
    """Print the perplexity config asks for as a table, with each_part that of each language, and write
    config.json. Raises: InputError if model or data cannot be used, or do not fit each other."""
    keep_memory()
    model = open_model(config)
    dtype = pick_dtype(config.dtype, model.wte.weight.device)
    data, split = open_stream(config)
    check_vocabulary(model, config.model_path, data)

    def measure(part: str) -> Perplexity:
        return perplexity(
            model,
            data,
            part,
            batch_size=config.batch_size,
            n_batch=config.batches,
            seed=config.seed,
            dtype=dtype,
        )

    with applied(model, control.load(config.edits, model) if config.edits else ()):
        rows = [measure(part) for part in data.parts(split)] if each_part else [measure(split)]
    if each_part and len(rows) > 1:
        rows.append(Perplexity.mean("all", rows))
    kind = "Backpack" if model.config.model_name == "backpack-lm" else "GPT"
    what = f"{config.batches} random batches" if config.batches else "all"
    under = f", under {config.edits}" if config.edits else ""
    print(
        f"{config.model_path}, a {kind} of {model.num_params():,} parameters, on {what} of "
        f"{display_path(data.folder)} in windows of {model.config.block_size}{under}:"
    )
    print(table(rows))
    if config.json:
        result = {
            "model": config.model_path,
            "data": display_path(data.folder),
            "block_size": model.config.block_size,
            "random_batches": config.batches,
            "edits": config.edits or None,
            "rows": [as_json(row) for row in rows],
        }
        with replacing(Path(config.json)) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())


def open_stream(config: PerplexityConfig) -> tuple[TokenData, str]:
    """The data and the split that config names. Raises: InputError if there is none."""
    path = Path(config.dataset or _trained_on(config))
    if path.suffix == ".bin":
        return TokenData(path.parent, config.data_bin_dtype, {path.stem: path}), path.stem
    data = open_dataset(path, config.data_bin_dtype)
    split = config.split
    if split == "auto":
        split = HELD_OUT if all(part in data.splits for part in data.parts(HELD_OUT) or [""]) else "val"
    if missing := [part for part in data.parts(split) or [split] if part not in data.splits]:
        raise InputError(
            f"split={missing[0]!r} is not in {display_path(data.folder)}: it has {', '.join(data.splits)}"
        )
    return data, split


def _trained_on(config: PerplexityConfig) -> str:
    """The data that the settings in a run's folder name. Raises: InputError if there are none."""
    path = Path(config.model_path)
    folder = path.parent if path.is_file() else path
    try:
        settings = read_json(folder / "config.json")
        return Path(settings.get("huge_pack_dir") or settings["dataset"]).as_posix()
    except (OSError, InputError, KeyError, AttributeError, TypeError):
        raise InputError(
            f"{config.model_path} does not tell what it was trained on: name a folder or a .bin file with "
            "--dataset"
        ) from None


def as_json(row: Perplexity) -> dict[str, object]:
    """All that is known about a row, under the names of `Perplexity`."""
    values = dataclasses.asdict(row) | {"perplexity": row.perplexity, "bits_per_token": row.bits_per_token}
    return values | {"bits_per_char": row.bits_per_char}


def table(rows: list[Perplexity]) -> str:
    """Rows as lines whose columns line up."""
    cells = [("split", "tokens", "nats/token", "perplexity", "bits/char")]
    for row in rows:
        bits = "-" if row.bits_per_char is None else f"{row.bits_per_char:.4f}"
        cells.append(
            (row.split, f"{row.tokens:,}", f"{row.nats_per_token:.4f}", f"{row.perplexity:,.2f}", bits)
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        first.ljust(widths[0])
        + "".join("  " + cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))
        for first, *rest in cells
    ]
    return "\n".join("  " + line for line in lines)
