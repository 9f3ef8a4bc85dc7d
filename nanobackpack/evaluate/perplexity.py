"""The perplexity of a model on a held-out stream or a text, each token predicted once.

    nanobackpack perplexity --out_dir=out-shakespeare-char
    nanobackpack perplexity --out_dir=out-shakespeare-char --text=poem.txt --per_token
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

import dataclasses
import math
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nanobackpack.analysis.prompts import warn_of_names
from nanobackpack.analysis.results import width
from nanobackpack.config import LoadConfig, changed_settings
from nanobackpack.errors import InputError, escape_controls
from nanobackpack.evaluate import controls
from nanobackpack.safe.files import display_path, read_json, read_text, with_lf
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.data import TokenData

UNTRAINED_WINDOWS = 1000  # of each split: models that know nothing differ little from window to window
ALIVE = 1 << 28  # logits in memory at a time: 1 GB in float32


@dataclass(frozen=True, kw_only=True)
class PerplexityConfig(LoadConfig, controls.ControlsConfig):
    """The perplexity of a model."""

    dataset: str = ""
    """Folder under data/, the path of one, a .bin file, or a text; by default what it was trained on."""
    text: str = ""
    """A text file to measure instead, read with the model's own tokenizer."""
    per_token: bool = False
    """List each token of the text with its loss, too."""
    data_bin_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Type of the ids in the .bin files; auto: what meta.json says, else uint16, of languages uint32."""
    split: str = "auto"
    """train, val, evaluation, of one language de_val, ...; auto: evaluation if there is one, else val."""
    per_language: bool = False
    """A row for each language of a mixture, then one for all."""
    batch_size: int = 12
    """Windows computed in one go, fewer where the vocabulary is large."""
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
    windows: list[tuple[float, int]] = field(default_factory=list, repr=False, compare=False)
    """Mean loss and number of tokens of each window."""


class TokenLoss(NamedTuple):
    """How well one token of a text was predicted."""

    token: str
    id: int
    nats: float


@dataclass(frozen=True, kw_only=True)
class Perplexity(controls.Evaluation):
    """A model on one split, or on each language of it and on all, or on a text."""

    model: str
    data: str
    block_size: int
    random_batches: int
    """0: the whole of each split."""
    edits: str | None
    rows: list[StreamLoss]
    tokens: list[TokenLoss] | None = None
    """Those of a text that were predicted, in order, where they are wanted."""

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
        for loss in self.tokens or ():
            lines.append(f"  {loss.nats:8.4f}  {math.exp(-loss.nats):6.4f}  {loss.token!r}")
        return "\n".join(lines)

    def records(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in self.rows]


def main(settings: PerplexityConfig) -> None:
    from nanobackpack.runtime import keep_memory

    keep_memory()
    controls.report(
        settings,
        lambda model: perplexity(model, settings),
        fresh=lambda model: perplexity(model, settings, UNTRAINED_WINDOWS),
        counts=True,
    )


def perplexity(model: LanguageModel, settings: PerplexityConfig, first: int = 0) -> Perplexity:
    """Measure all that the settings ask for; of each split or text only the first windows, if `first`."""
    from nanobackpack.analysis import control
    from nanobackpack.train.checkpoint import check_vocabulary

    tokens = None
    with control.applied(model, control.load(settings.edits, model) if settings.edits else ()):
        if text := _text_file(settings):
            row, losses = text_loss(model, Path(text), settings.batch_size, first)
            rows, source, tokens = [row], display_path(text), losses if settings.per_token else None
        else:
            data, split = open_stream(settings)
            source = display_path(data.folder)
            check_vocabulary(model, settings.model_path, data)
            if not settings.dataset and model.text and model.text != data.fingerprint():
                warnings.warn(f"{source} has changed since the model was trained on it", stacklevel=2)
            parts = list(data.parts(split)) if settings.per_language else [split]
            rows = [stream_loss(model, data, part, settings, first) for part in parts]
    if len(rows) > 1:
        rows.append(mean("all", rows))
    # Under edits there is nothing to compare with: they are for this model alone.
    figures = {
        f"{row.split}, nats/token": controls.mean_of(*map(list, zip(*row.windows, strict=True)))
        for row in ([] if settings.edits else rows)
    }

    kind = "Backpack" if model.config.model_name == "backpack-lm" else "GPT"
    what = f"{settings.batches} random batches" if settings.batches else "all"
    size = model.config.block_size
    under = f", under {settings.edits}" if settings.edits else ""
    return Perplexity(
        title=f"{settings.model_path}, a {kind} of {model.num_params():,} parameters, on {what} of {source} "
        f"in windows of {size}{under}",
        figures=figures,
        model=settings.model_path,
        data=source,
        block_size=size,
        random_batches=settings.batches,
        edits=settings.edits or None,
        rows=rows,
        tokens=tokens,
    )


def stream_loss(
    model: LanguageModel, data: TokenData, split: str, settings: PerplexityConfig, first: int = 0
) -> StreamLoss:
    """Measure the loss over a whole split, or of random batches of it if the settings say so; of the first
    windows only, if `first`."""
    from nanobackpack.runtime import generator

    T, B = model.config.block_size, settings.batch_size
    batches = data.windows(split, B, T)
    size = data.n_tokens(split) - len(data.parts(split))  # the first of each cannot be predicted
    if settings.batches:
        draw = generator(settings.seed)
        batches = (data.batch(split, B, T, draw) for _ in range(settings.batches))
        size = settings.batches * B * T
    found = window_losses(model, batches, split, size, first)
    return with_bits(split, _means(found), data.chars_per_token(split))


def window_losses(
    model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], name: str, size: int, first: int = 0
) -> list[Tensor]:
    """Give the losses in nats of the tokens of each window, (T) of each, or only of the first windows;
    name and size, in tokens, are for the bar."""
    from torch.nn import functional as F
    from tqdm import tqdm

    from nanobackpack.runtime import eval_mode

    found: list[Tensor] = []
    device, T = model.wte.weight.device, model.config.block_size
    at_once = max(1, ALIVE // (T * model.config.vocab_size))
    left = first or size  # no split has more windows than tokens
    size = min(size, left * T)
    bar = tqdm(
        desc=escape_controls(name), total=size, unit="token", unit_scale=True, disable=None, leave=False
    )
    with eval_mode(model) as model, bar:
        for batch in batches:  # (B, T) each
            wanted = [side[: left - len(found)].split(at_once) for side in batch]
            for x, y in zip(*wanted, strict=True):  # (b, T) each
                logits = model(x.to(device)).logits.flatten(0, 1)  # (b·T, V)
                losses = F.cross_entropy(logits.float(), y.flatten().to(device), reduction="none")  # (b·T)
                found += losses.view(y.shape).cpu()  # b of (T)
                bar.update(y.numel())
            if len(found) >= left:
                break
    return found


def _means(losses: list[Tensor]) -> list[tuple[float, int]]:
    """Mean loss and number of tokens of each window."""
    return [(window.double().mean().item(), len(window)) for window in losses]


def _text_file(settings: PerplexityConfig) -> str:
    """Return the text to measure, "" if it is a data set."""
    dataset = Path(settings.dataset)
    if not settings.text and dataset.is_file() and dataset.suffix != ".bin":
        settings = dataclasses.replace(settings, text=settings.dataset, dataset="")
    if settings.per_token and not settings.text:
        raise InputError("per_token lists the tokens of a text: name it, as in --text=poem.txt")
    # Settings that say which part of a data set to take would change nothing here.
    for name in ("dataset", "split", "per_language", "batches"):
        if settings.text and name in changed_settings(settings):
            raise InputError(f"{name} is for data sets, but --text names a text: leave one of them out")
    return settings.text


def text_loss(
    model: LanguageModel, path: Path, batch_size: int, first: int = 0
) -> tuple[StreamLoss, list[TokenLoss]]:
    """Measure a text as one document, in windows of block_size as a data set is; and each of its tokens."""
    tokenizer = needs_tokenizer(model.tokenizer)
    windows, chars = text_windows(model, path, batch_size)
    ids = [i for _, y in windows for i in y.flatten().tolist()]
    found = window_losses(model, windows, path.name, len(ids), first)
    nats = [loss for window in found for loss in window.tolist()]
    losses = [TokenLoss(tokenizer.token(i), i, loss) for i, loss in zip(ids, nats, strict=False)]
    return with_bits(path.name, _means(found), chars), losses


def text_windows(
    model: LanguageModel, path: Path, batch_size: int
) -> tuple[list[tuple[Tensor, Tensor]], float]:
    """Cut a text, as one document, into windows of block_size, x and y (b, T) each, then what is left; give
    the characters of a token too."""
    import torch

    from nanobackpack.text.corpus import KINDS

    tokenizer, T = needs_tokenizer(model.tokenizer), model.config.block_size
    if KINDS.get(path.suffix, "text") != "text":
        way = f"nanobackpack prepare {display_path(path)} --tokenizer=RUN --name=NAME"
        raise InputError(f"{display_path(path)} has records, not one text: make it a data set with `{way}`")
    text = with_lf(read_text(path))
    way = "`nanobackpack prepare --separator` makes documents of it"
    warn_of_names(tokenizer, text, display_path(path), way)
    ids = torch.tensor(tokenizer.prompt_ids(text), device=model.wte.weight.device)  # (N)
    if len(ids) < 2:
        raise InputError(
            f"{display_path(path)} has {len(ids)} token: the first has nothing before it, give more"
        )
    # All whole windows, some at a time, then what is left.
    x, y = ids[:-1], ids[1:]
    whole = len(x) // T * T
    windows = [(x[:whole].view(-1, T), y[:whole].view(-1, T)), (x[None, whole:], y[None, whole:])]
    batches = [
        pair
        for some in windows
        for pair in zip(*(rows.split(batch_size) for rows in some), strict=True)
        if pair[0].numel()
    ]
    return batches, len(text) / len(tokenizer.encode(text))


def with_bits(split: str, windows: list[tuple[float, int]], chars: float | None = None) -> StreamLoss:
    """Express the losses of windows, in nats per token, as a perplexity and in bits; chars: per token, if
    known. Each token counts alike, though the last window is shorter."""
    tokens = sum(n for _, n in windows)
    nats = sum(loss * n for loss, n in windows) / tokens
    bits = nats / math.log(2)
    return StreamLoss(
        split=split,
        tokens=tokens,
        nats_per_token=nats,
        chars_per_token=chars,
        perplexity=math.exp(nats) if nats < 709 else math.inf,
        bits_per_token=bits,
        bits_per_char=bits / chars if chars else None,
        windows=windows,
    )


def mean(split: str, parts: list[StreamLoss]) -> StreamLoss:
    """Join streams as if they were one: each token counts alike."""
    n = sum(p.tokens for p in parts)
    known = all(p.chars_per_token for p in parts)
    chars = sum(p.tokens * (p.chars_per_token or 0) for p in parts) / n if known else None
    return with_bits(split, [window for p in parts for window in p.windows], chars)


def open_stream(settings: PerplexityConfig) -> tuple[TokenData, str]:
    """Open the data that the settings name, and choose the split."""
    from nanobackpack.text.data import TokenData, open_dataset
    from nanobackpack.text.meta import HELD_OUT

    path = Path(settings.dataset or _trained_on(settings))
    if settings.dataset.endswith(".bin"):
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
    inside = name.isprintable() and ".." not in PureWindowsPath(name).parts
    if not inside or not (Path.cwd() / name).is_relative_to(Path.cwd()):
        flag = shlex.quote(f"--dataset={name:.999}")
        raise InputError(f"{display_path(folder)} names data elsewhere: if it is yours, give {flag}")
    return name
