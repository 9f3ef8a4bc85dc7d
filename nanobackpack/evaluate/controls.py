"""Controls: what a figure has to beat before it says anything of a model.

    nanobackpack blimp --out_dir=out --data blimp/                          # with controls
    nanobackpack blimp --out_dir=out --data blimp/ --seeds out-2 out-3      # mean ± sd of three runs too
    nanobackpack blimp --out_dir=out --data blimp/ --controls=False         # four times as fast

Each evaluation names its figures, and how they follow from its items: pairs of words, passages, windows of
text. So this file can say of all of them alike

    95 %       where the figure lies if the items are drawn anew (bootstrap); of a difference, "min − E", both
               figures see the same draws. It is about the items: only `--seeds` shows what another seed does
    untrained  the figure of models of the same shape before any training, 3 seeds, mean ± sd; if of
               fewer items, the heading says on how many
    unigram    the figure of a model that knows how often each token occurs in the training text, no more
    seeds      mean ± sd over this model and others of the same recipe

Letters: N items of a figure, R draws of them, F figures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanobackpack.analysis import results
from nanobackpack.config import Settings
from nanobackpack.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel

# What makes runs of one shape and data differ, beside the seed.
RECIPE = (
    "optimizer", "max_iters", "batch_size", "gradient_accumulation_steps", "learning_rate", "muon_lr_factor",
    "decay_lr", "lr_schedule", "warmup_iters", "lr_decay_iters", "min_lr", "weight_decay", "beta1", "beta2",
    "grad_clip", "xlm_alpha",
)  # fmt: skip

# --- Figures and their intervals ------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure as a function of how often each of N items counts: weights (R, N) give (R) values."""

    n: int
    of: Callable[[Tensor], Tensor]

    @property
    def value(self) -> float:
        """The figure itself: each item counts once."""
        import torch

        return self.of(torch.ones(1, self.n, dtype=torch.float64)).item()

    def __sub__(self, other: Figure) -> Figure:
        """The difference of two figures of the same items."""
        assert self.n == other.n
        return Figure(self.n, lambda weights: self.of(weights) - other.of(weights))


def mean_of(values: Sequence[float] | Tensor, sizes: Sequence[float] | None = None) -> Figure:
    """The mean of N values, of items that count alike or by their sizes."""
    import torch

    value = torch.as_tensor(values, dtype=torch.float64)  # (N)
    size = torch.ones_like(value) if sizes is None else torch.as_tensor(sizes, dtype=torch.float64)  # (N)
    return Figure(len(value), lambda weights: weights @ (value * size) / (weights @ size))


def rank_correlation(values: Sequence[float] | Tensor, gold: Sequence[float] | Tensor) -> Figure:
    """Spearman's ρ of N values with N scores; ties share their rank. NaN where either are all the same."""
    import torch

    # Values that differ by the errors of float64 alone, as those of pairs of equal words, are tied.
    a, b = (torch.as_tensor(side, dtype=torch.float64).round(decimals=9) for side in (values, gold))  # (N)

    def correlation(weights: Tensor) -> Tensor:
        ranks = [_ranks(side, weights) for side in (a, b)]  # (R, N) each
        n = weights.sum(dim=1, keepdim=True)
        x, y = (rank - (weights * rank).sum(dim=1, keepdim=True) / n for rank in ranks)  # (R, N)
        xy, xx, yy = ((weights * p * q).sum(dim=1) for p, q in ((x, y), (x, x), (y, y)))  # (R)
        return xy / (xx * yy).sqrt()

    return Figure(len(a), correlation)


def _ranks(values: Tensor, weights: Tensor) -> Tensor:
    """Rank N values that count `weights` (R, N) times, without sorting each draw anew: (R, N)."""
    levels, level = values.unique(return_inverse=True)  # in order; which of them each value is
    mass = weights.new_zeros(len(weights), len(levels)).index_add_(1, level, weights)  # (R, levels)
    return (mass.cumsum(dim=1) - mass / 2)[:, level]


def intervals(
    figures: Mapping[str, Figure], draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Give 95 % intervals of figures by the bootstrap: N items are drawn from the N with replacement, again
    and again, and the figure is computed of each draw. Figures of as many items see the same draws. Where
    more than 5 % of the draws give no number, the interval is NaN: the others are no fair sample of them."""
    import torch

    found: dict[str, list[Tensor]] = {name: [] for name in figures}
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for n in {figure.n for figure in figures.values()}:  # nothing is known of the spread of one item
        draw = torch.Generator().manual_seed(seed)
        for some in torch.arange(draws).split(max(1, (1 << 21) // n)):
            chosen = torch.randint(n, (len(some), n), generator=draw)  # (R, N)
            ones = torch.ones(chosen.shape, dtype=torch.float64)
            weights = torch.zeros_like(ones).scatter_add_(1, chosen, ones)  # (R, N): how often each came
            for name, figure in figures.items():
                if figure.n == n:
                    found[name].append(figure.of(weights) if n > 1 else ends * math.nan)
    between = {}
    for name, values in found.items():
        of_draw = torch.cat(values)  # (R)
        few = of_draw.isnan().double().mean() > 0.05
        low, high = (ends * math.nan if few else of_draw.nanquantile(ends)).tolist()
        between[name] = low, high
    return between


# --- Models to compare with -----------------------------------------------------------------------


def untrained(model: LanguageModel, seed: int) -> LanguageModel:
    """Make a model of the same shape, vocabulary and device with fresh weights."""
    import torch

    from nanobackpack.train.checkpoint import build_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = build_model(dataclasses.replace(model.config, sense_table=False))
    copy.tokenizer, copy.token_counts = model.tokenizer, model.token_counts
    return copy.to(model.wte.weight.device).eval()


def unigram(model: LanguageModel) -> LanguageModel | None:
    """Make a model that gives each token its share of the training text (each counted once more), whatever
    came before; None if the counts are not known."""
    import torch

    from nanobackpack.model.backpack import GPT

    c, counts = model.config, model.token_counts
    if counts is None:
        return None
    # A GPT without blocks, of width 1. Its last norm turns all into 1, so its logits are E.
    shape = dataclasses.replace(c, model_name="gpt2", n_layer=0, n_head=1, n_embd=1, n_sense_vector=1)
    copy = GPT(dataclasses.replace(shape, bias=True))
    with torch.no_grad():
        copy.context.ln_f.weight.zero_()
        copy.context.ln_f.bias.fill_(1)
        copy.wte.weight[:, 0] = torch.full((c.vocab_size,), -1e4)  # padding
        copy.wte.weight[: c.n_token, 0] = (counts[: c.n_token] + 1).double().log().float()
    copy.tokenizer, copy.token_counts = model.tokenizer, counts
    return copy.to(model.wte.weight.device).eval()


# --- The table of controls ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ControlsConfig(Settings):
    """What all evaluations share."""

    controls: bool = True
    """Also measure untrained copies of the model and trivial baselines: takes about 4 times as long."""
    seeds: tuple[str, ...] = ()
    """Runs of the same recipe with other seeds: the controls have mean ± sd over these and the model. A note
    says where shape, recipe or data differ."""


@dataclass(frozen=True, kw_only=True)
class Controls(results.Result):
    """F figures of a model with their intervals, and what other models have in their place."""

    may_be_nan = ("values", "intervals", "untrained", "unigram", "seeds")
    names: list[str]
    values: list[float]
    intervals: list[tuple[float, float]]
    """F: 95 %."""
    untrained: list[list[float]]
    """F of as many as there are seeds."""
    unigram: list[float]
    """F; [] where it is not measured."""
    seeds: list[list[float]]
    """F of this model's and those of the others; of 1 where there are no others."""

    def table(self) -> str:
        columns = {
            "": self.names,
            "figure": [_spread([value]) for value in self.values],
            "95 %": ["" if math.isnan(low) else f"{low:.3f} to {high:.3f}" for low, high in self.intervals],
            "untrained": [_spread(values) for values in self.untrained],
            "unigram": [_spread([value]) for value in self.unigram],
            "seeds": [_spread(values) if len(values) > 1 else "" for values in self.seeds],
        }
        shown = {name: cells for name, cells in columns.items() if any(cells)}
        return results.table(self.title, list(shown), list(zip(*shown.values(), strict=True)))


def _spread(values: Sequence[float]) -> str:
    """Show one figure, or mean ± standard deviation of several; nothing of what is not known."""
    known = [value for value in values if not math.isnan(value)]
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{deviation}" if known else ""


@dataclass(frozen=True, kw_only=True)
class Evaluation(results.Result):
    """A result with figures that can be controlled. Its own fields are measured; these two come on top."""

    figures: dict[str, Figure] = field(default_factory=dict, repr=False, compare=False)
    """By name; in no JSON."""
    controls: Controls | None = None


Found = TypeVar("Found", bound=Evaluation)


def report(
    settings: Any,
    measure: Callable[[LanguageModel], Found],
    again: Callable[[LanguageModel], Evaluation] | None = None,
    fresh: Callable[[LanguageModel], Evaluation] | None = None,
    counts: bool = False,
) -> Found:
    """Run an evaluation as results.report does, with controls if the settings want them. `again` measures the
    models to compare with, if that differs, and `fresh` the untrained ones, on the first windows; `counts`
    asks for the unigram."""

    def controlled(model: LanguageModel) -> Found:
        if settings.seeds:
            check_runs(model, settings)
        found = measure(model)
        if not (settings.controls or settings.seeds) or not found.figures:
            return found
        others = compare(model, found, settings, again or measure, fresh, counts)
        return dataclasses.replace(found, controls=others)

    return results.report(settings, controlled)


def check_runs(model: LanguageModel, settings: Any) -> None:
    """Refuse --seeds that name a run twice or the model itself, under whatever name; note where they differ
    in more than the seed, since their spread is then not that of seeds."""
    from nanobackpack.train.checkpoint import load_model

    path, notes = settings.model_path, []
    own, names = _recipe(model, path), dict.fromkeys(_marks(model, path), path)
    for run in settings.seeds:
        with warnings.catch_warnings():  # what is to be said of it is said when it is measured
            warnings.simplefilter("ignore")
            other = load_model(run, settings.tokenizer_name)
        for mark in (marks := _marks(other, run)):
            if mark in names:
                same = f"seeds={run} is the same run as {names[mark]}"
                raise InputError(f"{same}: name runs that were trained with other seeds, each once")
        names |= dict.fromkeys(marks, run)
        theirs = _recipe(other, run)
        if differ := [name for name in own if name in theirs and own[name] != theirs[name]]:
            notes.append(f"{run} ({', '.join(differ)})")
    if notes:
        what = f"these differ from {path} in more than the seed: {', '.join(notes)}"
        warnings.warn(f"{what}; their spread is not that of seeds alone", stacklevel=2)


def _marks(model: LanguageModel, path: str) -> list[str]:
    """Give what no two trainings have in common: a hash of the weights, and the run's id if it is known."""
    digest = hashlib.sha256()
    for weights in model.parameters():
        digest.update(weights.detach().cpu().contiguous().numpy().data)
    run = _run_settings(path).get("run")
    return [digest.hexdigest(), *([f"run {run}"] if run else [])]


def _recipe(model: LanguageModel, path: str) -> dict[str, Any]:
    """Tell how a model was made, as far as it is known: its shape, its data, and the settings of its run."""
    stored = _run_settings(path)
    data = {"training text": model.text} if model.text else {}
    return dataclasses.asdict(model.config) | data | {name: stored[name] for name in RECIPE if name in stored}


def _run_settings(path: str) -> dict[str, Any]:
    from nanobackpack.train.checkpoint import checkpoint_in, run_settings

    file = checkpoint_in(Path(path))
    return run_settings(file.parent) if file.is_file() else {}  # words-small is no file of this folder


def compare(
    model: LanguageModel,
    found: Evaluation,
    settings: Any,
    measure: Callable[[LanguageModel], Evaluation],
    fresh: Callable[[LanguageModel], Evaluation] | None = None,
    counts: bool = False,
) -> Controls:
    """Measure what the figures found of a model are to be compared with."""
    from nanobackpack.train.checkpoint import load_model

    fewer: set[int] = set()  # on how many items untrained models were measured, where the figure has more

    def values(other: LanguageModel, measure: Callable[[LanguageModel], Evaluation] = measure) -> list[float]:
        with warnings.catch_warnings():  # the model itself has said it all
            warnings.simplefilter("ignore")
            figures = measure(other).figures
        if measure is fresh:
            there = found.figures.keys() & figures.keys()
            fewer.update(figures[name].n for name in there if figures[name].n < found.figures[name].n)
        return [figures[name].value if name in figures else math.nan for name in names]

    names, device = list(found.figures), model.wte.weight.device
    between = intervals(found.figures)
    own = [figure.value for figure in found.figures.values()]
    # One model at a time, so that no two of them need memory at once.
    new = [values(untrained(model, i), fresh or measure) for i in range(3 if settings.controls else 0)]
    base = unigram(model) if counts and settings.controls else None
    shares = values(base) if base else []
    others = [values(load_model(run, settings.tokenizer_name).to(device)) for run in settings.seeds]
    return Controls(
        title="controls of these figures"
        + (f" (untrained: of the first {max(fewer):,} windows)" if fewer else ""),
        names=names,
        values=own,
        intervals=[between[name] for name in names],
        untrained=[[row[i] for row in new] for i in range(len(names))],
        unigram=shares,
        seeds=[[own[i], *(row[i] for row in others)] for i in range(len(names))],
    )
