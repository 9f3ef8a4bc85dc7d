"""What edits cost: how far they move a model's predictions on held-out text that they are not about.

    nanobackpack edit --out_dir=out-en --word king --remove son --add queen --prompt "My lord, the king"
    nanobackpack bias --out_dir=out --held_out=news.txt

Windows of the text are sorted: those with an edited word, which are read from its first place on, and those
without. Of each kind it gives KL(unedited ‖ edited) in nats a token, and the change of the loss. An edit of a
word changes nothing where the word is not, by construction; a mean over all text would hide what it does.

Letters: B windows, T their tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanobackpack.analysis import results
from nanobackpack.config import Settings
from nanobackpack.errors import InputError
from nanobackpack.evaluate.controls import intervals, mean_of
from nanobackpack.evaluate.perplexity import PerplexityConfig, open_stream, text_windows
from nanobackpack.safe.files import display_path

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import EditLike

KINDS = ("with the words", "without them")
TOKENS = 8192  # of text of each kind, at most
SEARCHED = 1 << 22  # tokens that are searched for the words, at most


@dataclass(frozen=True, kw_only=True)
class CostConfig(Settings):
    """What the programs share that edit a model."""

    held_out: str = ""
    """Text or data set to read; by default what was held out in training, if it is here."""


@dataclass(frozen=True, kw_only=True)
class Cost(results.Result):
    """What edits do to held-out text, of two kinds: with the edited words, and without."""

    may_be_nan = ("kl", "interval", "loss_change")
    occurrences: int
    """Of the words, in the windows that are read."""
    windows: list[int]
    kl: list[float]
    """KL(unedited ‖ edited) in nats a token; NaN where there is no such text."""
    interval: list[tuple[float, float]]
    """95 %, over windows."""
    loss_change: list[float]
    """Loss under the edits minus that without, in nats a token."""

    def table(self) -> str:
        between = [f"{low:.4f} to {high:.4f}" for low, high in self.interval]
        numbers = zip(self.windows, self.kl, between, self.loss_change, strict=True)
        rows = [
            [str(n), *([f"{kl:.4f}", span, f"{x:+.4f}"] if n else [""] * 3)] for n, kl, span, x in numbers
        ]
        head = ["text", "windows", "KL", "95 %", "loss"]
        return results.table(self.title, head, [[k, *row] for k, row in zip(KINDS, rows, strict=True)])


@dataclass(frozen=True)
class HeldOut:
    """Windows of text: x, y and which positions count, (T) each, of both kinds."""

    name: str
    rows: tuple[list[tuple[Tensor, Tensor, Tensor]], list[tuple[Tensor, Tensor, Tensor]]]
    occurrences: int


def held_out(model: LanguageModel, settings: Any, words: Sequence[Sequence[int]]) -> HeldOut | None:
    """Collect windows with and without some words, given as ids. None if the settings name no text and that
    of the training is not here."""
    import torch

    try:
        name, batches = open_windows(model, settings)
    except InputError:
        if settings.held_out:
            raise
        return None
    T, found = model.config.block_size, HeldOut(name, ([], []), 0)
    most, searched, n = max(1, TOKENS // T), 0, 0
    kinds = 1 if () in words else 2  # no text is without the empty word
    for x, y in batches:  # (B, T) each
        ends = torch.zeros_like(x)  # (B, T): how many words end at a position
        for word in (word for word in words if len(word) <= x.size(1)):
            ends_at = max(0, len(word) - 1)  # the empty word ends everywhere
            found_at = torch.ones_like(x[:, ends_at:], dtype=torch.bool)  # (B, starts)
            for i, token in enumerate(word):
                found_at &= x[:, i : x.size(1) - ends_at + i] == token
            ends[:, ends_at:] += found_at
        for row, here, counted in zip(x, y, ends, strict=True):
            rows = found.rows[int(not counted.any())]
            if len(rows) < most:
                n += int(counted.sum())
                rows.append((row, here, counted.cumsum(dim=0) > 0 if counted.any() else counted == 0))
        searched += x.numel()
        if sum(map(len, found.rows)) == most * kinds or searched > SEARCHED:
            break
    return HeldOut(name, found.rows, n)


def open_windows(model: LanguageModel, settings: Any) -> tuple[str, Iterator[tuple[Tensor, Tensor]]]:
    """Open the text that the settings name, or what was held out in training: its windows, (B, T) each."""
    from nanobackpack.train.checkpoint import check_vocabulary

    path, device = Path(settings.held_out), model.wte.weight.device
    if path.is_file() and path.suffix != ".bin":
        return display_path(path), iter(text_windows(model, path, 8)[0])
    named = {"init_from": settings.init_from, "out_dir": settings.out_dir, "dataset": settings.held_out}
    try:
        data, split = open_stream(PerplexityConfig(**named))
    except InputError as error:  # perplexity's name for the same setting
        raise InputError(str(error).replace("--dataset", "--held_out")) from error
    check_vocabulary(model, settings.model_path, data)
    windows = data.windows(split, 8, model.config.block_size)
    return f"{display_path(data.folder)}, {split}", ((x.to(device), y.to(device)) for x, y in windows)


def cost(
    model: LanguageModel,
    edits: EditLike,
    text: HeldOut | None,
    what: str = "the edit",
    watch: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Cost | None:
    """Measure what edits do to held-out text; None if there is none. `watch` sees the windows pass."""
    from torch.nn import functional as F

    from nanobackpack.runtime import eval_mode

    if text is None:
        return None
    kl: list[float] = []
    between: list[tuple[float, float]] = []
    change: list[float] = []
    for rows in text.rows:
        values, changes, sizes = [], [], []
        with eval_mode(model) as ready:
            for x, y, counted in watch(rows):  # one at a time: the logits of a large vocabulary are large
                p, q = (
                    ready(x[None], edits=e).logits[0][counted].log_softmax(dim=1) for e in ((), edits)
                )  # (positions, V) each
                values.append(F.kl_div(q, p, reduction="batchmean", log_target=True).item())
                changes.append((p - q).gather(1, y[counted][:, None]).mean().item())
                sizes.append(int(counted.sum()))
        figure, nan = mean_of(values, sizes=sizes), math.nan
        kl.append(figure.value if rows else nan)
        between.append(intervals({"kl": figure})["kl"] if rows else (nan, nan))
        change.append(mean_of(changes, sizes=sizes).value if rows else nan)
    return Cost(
        title=f"what {what} costs on {text.name} ({text.occurrences} places of the edited words)",
        occurrences=text.occurrences,
        windows=[len(rows) for rows in text.rows],
        kl=kl,
        interval=between,
        loss_change=change,
    )
