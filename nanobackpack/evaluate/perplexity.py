"""The perplexity of a model on a held-out stream, each token predicted once.

    nanobackpack perplexity --out_dir=out-shakespeare-char
    nanobackpack perplexity --init_from=gpt2 --dataset=openwebtext --json=gpt2.json
    nanobackpack perplexity --out_dir=clue_small --dataset=data/clue_small/evaluation.bin
    nanobackpack perplexity --out_dir=backpack_xlm --per_language
    nanobackpack perplexity --out_dir=out-shakespeare-char --edits=edit.safetensors

    PPL = exp(Σ_i -ln p(x_i | what precedes it in its window) / number of tokens predicted)

The windows follow one another without overlap, so that each token but the first is predicted exactly
once, and each counts alike: means of losses, never of perplexities. A model's windows are as long as its
block_size; longer ones give each token more to go on, so compare models of the same block_size.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Literal

from tqdm import tqdm

from nanobackpack.analysis.results import Result, report, width
from nanobackpack.config import LoadConfig
from nanobackpack.errors import InputError, escape_controls
from nanobackpack.safe.files import display_path, read_json

if TYPE_CHECKING:
    from nanobackpack.model.backpack import GPT, BackpackLM, LanguageModel
    from nanobackpack.text.data import TokenData


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(LoadConfig):
    """The perplexity of a model."""

    dataset: str = ""
    """Folder under data/, the path of one, or a .bin file; by default what the model was trained on."""
    data_bin_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Type of the ids in the .bin files; auto: what meta.json says, else uint16, of languages uint32."""
    split: str = "auto"
    """train, val, evaluation, of one language de_val, ...; auto: evaluation if there is one, else val."""
    per_language: bool = False
    """A row for each language of a mixture, then one for all."""
    batch_size: int = 12
    """Windows computed in one go."""
    batches: int = 0
    """Random batches that stand for the split, drawn with seed (0: all of the split)."""
    edits: str = ""
    """A file of edits to measure the model under: what they cost."""
    json: str = ""
    """File for the result."""


@dataclass(frozen=True, kw_only=True)
class StreamLoss:
    """The loss of a model over one stream of tokens, and what follows from it."""

    split: str
    tokens: int
    """Tokens predicted."""
    nats_per_token: float
    chars_per_token: float | None
    """None where the data does not know its characters."""
    perplexity: float
    bits_per_token: float
    bits_per_char: float | None
    """Comparable between tokenizers."""


@dataclass(frozen=True, kw_only=True)
class Perplexity(Result):
    """A model on one split, or on each language of it and on all."""

    model: str
    data: str
    block_size: int
    random_batches: int
    """0: the whole of each split."""
    edits: str | None
    rows: list[StreamLoss]

    def table(self) -> str:
        cells = [["split", "tokens", "nats/token", "perplexity", "bits/char"]]
        for row in self.rows:
            bits = "-" if row.bits_per_char is None else f"{row.bits_per_char:.4f}"
            numbers = [f"{row.tokens:,}", f"{row.nats_per_token:.4f}", f"{row.perplexity:,.2f}", bits]
            cells.append([escape_controls(row.split), *numbers])
        # Names stand on the left of their column, numbers on the right.
        first, *widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
        lines = [f"{self.title}:"]
        for name, *rest in cells:
            numbers = [cell.rjust(w) for cell, w in zip(rest, widths, strict=True)]
            lines.append("  " + "  ".join([name + " " * (first - width(name)), *numbers]))
        return "\n".join(lines)


def main(settings: PerplexityConfig) -> None:
    from nanobackpack.runtime import keep_memory

    keep_memory()
    report(settings, lambda model: perplexity(model, settings))


def perplexity(model: BackpackLM | GPT, settings: PerplexityConfig) -> Perplexity:
    """Measure all that the settings ask for."""
    from nanobackpack.analysis import control
    from nanobackpack.train.checkpoint import check_vocabulary

    data, split = open_stream(settings)
    check_vocabulary(model, settings.model_path, data)
    parts = list(data.parts(split)) if settings.per_language else [split]
    with control.applied(model, control.load(settings.edits, model) if settings.edits else ()):
        rows = [stream_loss(model, data, part, settings) for part in parts]
    if len(rows) > 1:
        rows.append(mean("all", rows))

    kind = "Backpack" if model.config.model_name == "backpack-lm" else "GPT"
    what = f"{settings.batches} random batches" if settings.batches else "all"
    folder, size = display_path(data.folder), model.config.block_size
    under = f", under {settings.edits}" if settings.edits else ""
    return Perplexity(
        title=f"{settings.model_path}, a {kind} of {model.num_params():,} parameters, on {what} of {folder} "
        f"in windows of {size}{under}",
        model=settings.model_path,
        data=folder,
        block_size=size,
        random_batches=settings.batches,
        edits=settings.edits or None,
        rows=rows,
    )


def stream_loss(model: LanguageModel, data: TokenData, split: str, settings: PerplexityConfig) -> StreamLoss:
    """Measure the loss over a whole split, or of random batches of it if the settings say so."""
    from nanobackpack.runtime import eval_mode, generator

    T, device, B = model.config.block_size, model.wte.weight.device, settings.batch_size
    batches = data.windows(split, B, T)
    size = data.n_tokens(split) - len(data.parts(split))  # the first of each cannot be predicted
    if settings.batches:
        draw = generator(settings.seed)
        batches = (data.batch(split, B, T, draw) for _ in range(settings.batches))
        size = settings.batches * B * T
    total, n = 0.0, 0
    bar = tqdm(
        desc=escape_controls(split), total=size, unit="token", unit_scale=True, disable=None, leave=False
    )
    with eval_mode(model) as model, bar:
        for x, y in batches:  # (B, T) each
            loss = model(x.to(device), y.to(device), loss_only=True).loss
            total += loss.item() * y.numel()  # the last window is shorter: each token counts alike
            n += y.numel()
            bar.update(y.numel())
    return with_bits(split, n, total / n, data.chars_per_token(split))


def with_bits(split: str, tokens: int, nats: float, chars: float | None = None) -> StreamLoss:
    """Express a loss, in nats per token, as a perplexity and in bits; chars: per token, if known."""
    bits = nats / math.log(2)
    return StreamLoss(
        split=split,
        tokens=tokens,
        nats_per_token=nats,
        chars_per_token=chars,
        perplexity=math.exp(nats) if nats < 709 else math.inf,
        bits_per_token=bits,
        bits_per_char=bits / chars if chars else None,
    )


def mean(split: str, parts: list[StreamLoss]) -> StreamLoss:
    """Join streams as if they were one: each token counts alike."""
    n = sum(p.tokens for p in parts)
    known = all(p.chars_per_token for p in parts)
    chars = sum(p.tokens * (p.chars_per_token or 0) for p in parts) / n if known else None
    return with_bits(split, n, sum(p.tokens * p.nats_per_token for p in parts) / n, chars)


def open_stream(settings: PerplexityConfig) -> tuple[TokenData, str]:
    """Open the data that the settings name, and choose the split."""
    from nanobackpack.text.data import TokenData, open_dataset
    from nanobackpack.text.meta import HELD_OUT

    path = Path(settings.dataset or _trained_on(settings))
    if path.suffix == ".bin":
        return TokenData(path.parent, settings.data_bin_dtype, {path.stem: path}), path.stem
    data = open_dataset(path, settings.data_bin_dtype)
    split = settings.split
    if split == "auto":
        split = HELD_OUT if all(part in data.splits for part in data.parts(HELD_OUT) or [""]) else "val"
    if missing := [part for part in data.parts(split) or [split] if part not in data.splits]:
        raise InputError(
            f"split={missing[0]!r} is not in {display_path(data.folder)}: it has {', '.join(data.splits)}"
        )
    return data, split


def _trained_on(settings: PerplexityConfig) -> str:
    """Find the data that the settings in a run's folder name."""
    path = Path(settings.model_path)
    folder = path.parent if path.is_file() else path
    try:
        stored = read_json(folder / "config.json")
        name = str(stored.get("huge_pack_dir") or stored["dataset"])
    except (OSError, InputError, KeyError, AttributeError, TypeError):
        raise InputError(
            f"{settings.model_path} does not tell what it was trained on: name a folder or a .bin file with "
            "--dataset"
        ) from None
    # The folder may come from a stranger, so what it names must lie below the current one.
    if ".." in PureWindowsPath(name).parts or not (Path.cwd() / name).is_relative_to(Path.cwd()):
        flag = shlex.quote(f"--dataset={name:.999}")
        raise InputError(f"{display_path(folder)} names data elsewhere: if it is yours, give {flag}")
    return name
