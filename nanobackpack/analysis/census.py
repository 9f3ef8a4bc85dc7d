"""A census of the senses: what each does over a whole text. senses.py reads those of one word.

    nanobackpack census --init_from=words-small --held_out=text.txt
    >>> print(census(model, windows).table())      # windows: pairs x, y (B, T) of ids, y one token later

The logits are a sum over senses, so a model without sense l needs no second pass of the network:

    o_l[b,i] = Σ_j≤i α[b,l,i,j] · C(x[b,j])[l]      o = Σ_l o_l      logits = E · o, without l E · (o - o_l)

Of each sense, as a mean over the text:

    cost       nats a token that the loss rises by when the sense is removed everywhere. That makes the logits
               smaller, too: `smaller` is what all senses times 1 - 1/K cost, with nothing taken out
    variance   its share of the variance of the logits over the vocabulary: Σ cov(E·o_l, E·o) / Σ var(E·o).
               The shares sum to 1, and a sense that works against the others has one below 0
    entropy    of α[b,l,i,:] in nats; exp of it says over how many positions α is spread
    self, previous, first    α on the token read last, on the one before it, on the window's first one;
               like the entropy from i = 2 on, where these are different tokens
    norm       the length of C(x)_l
    like       the sense whose vectors are most like it, by the mean cosine over the tokens of the text

Letters: B batch, T time, K senses, D width, V vocabulary, U different ids of a batch, N windows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanobackpack.analysis.results import Result, table
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel, check_model
from nanobackpack.model.kernels import linear
from nanobackpack.safe.files import writing
from nanobackpack.safe.pictures import picture

ALIVE = 1 << 24  # numbers of one kind in memory at a time: 64 MB
DEAD_COST, DEAD_SHARE = 0.001, 0.1  # nats a token; of 1/K, an equal share of the variance
DUPLICATE = 0.9  # mean cosine
MEANS = ("variance", "entropy", "positions", "self", "previous", "first", "norm")


@dataclass(frozen=True, kw_only=True)
class Census(Result):
    """What each of K senses does over a text; lists have a number for each."""

    tokens: int  # that were predicted
    loss: float  # of the whole model, in nats a token
    cost: list[float]
    interval: list[tuple[float, float]] = field(default_factory=list)
    """95 % of the cost, over windows; [] where whoever called has not computed it from `by_window`."""
    smaller: float
    means: dict[str, list[float]]  # the others of the list above, by name
    like: list[int]
    cosine: list[float]  # with that sense; -1 if there is no other
    untrained: list[Census] = field(default_factory=list)  # of models of the same shape before training
    by_window: Tensor = field(repr=False, compare=False)  # (N, K) the cost in each window
    sizes: list[int] = field(repr=False, compare=False)  # (N) tokens of each window
    dead: list[bool] = field(init=False)
    """Senses nobody would miss: they have less than a tenth of an equal share of the variance, and that
    removing them costs a thousandth of a nat is not shown."""
    duplicate: list[bool] = field(init=False)
    """Senses whose vectors point where those of another sense do. α may weigh them differently."""

    def __post_init__(self) -> None:
        low = [low for low, _ in self.interval] or self.cost
        most, variance = DEAD_SHARE / len(self.cost), self.means["variance"]
        dead = [x < DEAD_COST and abs(v) < most for x, v in zip(low, variance, strict=True)]
        object.__setattr__(self, "dead", dead)
        object.__setattr__(self, "duplicate", [cosine > DUPLICATE for cosine in self.cosine])

    def records(self) -> list[dict[str, Any]]:
        """List the senses, one a row."""
        spans = self.interval or [(math.nan, math.nan)] * len(self.cost)
        low, high = zip(*spans, strict=True)
        columns: dict[str, Any] = {"cost": self.cost, "low": low, "high": high, **self.means}
        columns |= {"like": self.like, "cosine": self.cosine, "dead": self.dead, "duplicate": self.duplicate}
        senses = range(len(self.cost))
        return [{"sense": s} | {name: values[s] for name, values in columns.items()} for s in senses]

    def table(self) -> str:
        def cells(cost: float, span: str, means: dict[str, float]) -> list[str]:
            share, *others = (means[name] for name in MEANS)
            return [f"{cost:+.4f}", span, f"{100 * share:.1f} %", *(f"{value:.2f}" for value in others)]

        rows, K = [], len(self.cost)
        for row in self.records():
            span = f"{row['low']:+.4f} to {row['high']:+.4f}" if self.interval else ""
            like = f"{row['like']} ({row['cosine']:.2f})" if K > 1 else ""
            note = " ".join(name for name in ("dead", "duplicate") if row[name])
            rows.append([f"sense {row['sense']}", *cells(row["cost"], span, row), like, note])
        rows.append([f"all × {K - 1}/{K}", f"{self.smaller:+.4f}", *[""] * (len(MEANS) + 3)])
        if self.untrained:  # of all senses of all of them, which are alike
            means = {name: fmean(x for other in self.untrained for x in other.means[name]) for name in MEANS}
            cost = fmean(x for other in self.untrained for x in other.cost)
            cosine = fmean(x for other in self.untrained for x in other.cosine)
            rows.append(["untrained", *cells(cost, "", means), f"({cosine:.2f})", ""])
        return table(self.title, ["", "cost", "95 %", *MEANS, "most like", ""], rows)

    def plot(self, path: str) -> None:
        """Write a picture: the cost of each sense, its share of the variance, and where its α lies."""
        K, senses = len(self.cost), range(len(self.cost))
        with picture(writing(path), (max(6.0, 2 + 0.4 * K), 7.5), self.title) as figure:
            cost, variance, weight = figure.subplots(3, sharex=True)
            span = torch.tensor(self.interval or [(x, x) for x in self.cost]).T  # (2, K)
            cost.bar(senses, self.cost, yerr=(span - torch.tensor(self.cost)).abs().numpy(), capsize=3)
            cost.axhline(self.smaller, color="grey", linestyle=":")
            cost.set_ylabel("cost of removing,\nnats a token")
            variance.bar(senses, self.means["variance"])
            variance.axhline(1 / K, color="grey", linestyle=":")  # an equal share
            variance.set_ylabel("share of the\nlogits' variance")
            # The three shares of α on each other; what is missing to 1 lies on the other tokens.
            base = torch.zeros(K)
            for name in ("self", "previous", "first"):
                weight.bar(senses, self.means[name], bottom=base.numpy(), label=name)
                base = base + torch.tensor(self.means[name])
            weight.set(ylim=(0, 1), ylabel="α on the token", xlabel="sense", xticks=senses)
            weight.legend(ncols=3)
            figure.suptitle(self.title, fontsize=10, wrap=True)


@torch.no_grad()
def census(
    model: LanguageModel, windows: Iterable[tuple[Tensor, Tensor]], title: str = "what every sense does"
) -> Census:
    """Count what each sense of a Backpack does over windows of text, x and y (B, T) each, read once."""
    check_model(model)
    if not isinstance(model, BackpackLM):
        raise InputError("this model is a GPT and has no senses: open a Backpack")
    E, K, size = model.wte.weight, model.config.n_sense_vector, model.config.block_size
    # E·o need not be made to know its variance over the vocabulary: that is oᵀ · cov(E) · o.
    spread = torch.cov(E[: model.config.n_token].T, correction=0)  # (D, D)
    losses, sizes = [], []
    sums: dict[str, Tensor] = {}
    at_once = max(1, ALIVE // (K * size * max(size, E.size(1))))
    pieces = ((x[i : i + at_once], y[i : i + at_once]) for x, y in windows for i in range(0, len(x), at_once))
    for x, y in tqdm(pieces, "census", unit="step", disable=None, leave=False):  # (B, T) each
        x, y = x.to(E.device), y.to(E.device)
        ids, where, times = x.unique(return_inverse=True, return_counts=True)  # (U), (B, T), (U)
        C = model.sense_vectors(ids)  # (U, K, D)
        alpha = model.contextualization(x)  # (B, K, T, T)
        parts = [alpha[:, sense] @ C[where, sense] for sense in range(K)]  # K of (B, T, D)
        o = torch.stack(parts).sum(dim=0)  # (B, T, D)

        # The loss of the whole model, without each sense, and with all of them a little smaller.
        kept = itertools.chain([o], (o - part for part in parts), [o - o / K])  # (B, T, D) each
        losses.append(torch.stack([_losses(some, y, E) for some in kept], dim=1).cpu())  # (B, K + 2)
        sizes += [x.size(1)] * len(x)

        late = alpha[:, :, 2:]  # (B, K, T - 2, T)
        entropy = torch.special.entr(late).sum(dim=3)  # (B, K, T - 2)
        own, previous = (alpha.diagonal(-d, dim1=2, dim2=3)[..., 2 - d :] for d in (0, 1))
        looks = torch.stack([entropy, entropy.exp(), own, previous, late[..., 0]])  # (5, B, K, T - 2)
        unit, n = F.normalize(C, dim=2), times.to(C)
        found = {  # sums over the positions of these windows
            "variance": torch.stack([(part @ spread * o).sum() for part in parts]),  # (K)
            "alpha": looks.sum(dim=(1, 3)),  # (5, K)
            "rows": torch.tensor(float(len(x) * late.size(2))),
            "norm": n @ C.norm(dim=2),  # (K)
            "cosine": torch.einsum("u,ukd,uld->kl", n, unit, unit),  # (K, K)
        }
        sums = {name: value.cpu().double() + sums.get(name, 0) for name, value in found.items()}
    if not sums or not sums["rows"]:
        raise InputError("the text has less than 3 tokens: give more")
    return _census(title, torch.cat(losses).double(), sizes, sums)


def _losses(o: Tensor, y: Tensor, E: Tensor) -> Tensor:
    """The mean loss of each window, (B), of o (B, T, D); the logits are made for some positions at a time."""
    some = max(1, ALIVE // len(E))
    pairs = zip(o.flatten(0, 1).split(some), y.flatten().split(some), strict=True)
    losses = [F.cross_entropy(linear(rows, E).float(), t, reduction="none") for rows, t in pairs]
    return torch.cat(losses).view_as(y).mean(dim=1)


def _census(title: str, losses: Tensor, sizes: list[int], sums: dict[str, Tensor]) -> Census:
    """Turn the losses of N windows (N, K + 2) and the sums over the text into means."""
    tokens = sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64) / tokens  # (N)
    changes = losses[:, 1:] - losses[:, :1]  # (N, K + 1)
    others = (sums["cosine"] / tokens).fill_diagonal_(-1).max(dim=1)  # (K): the most alike, and which
    share = sums["variance"] / sums["variance"].sum()
    means = share, *(sums["alpha"] / sums["rows"]), sums["norm"] / tokens  # (K) each
    return Census(
        title=title,
        tokens=tokens,
        loss=(weights @ losses[:, 0]).item(),
        cost=(weights @ changes[:, :-1]).tolist(),
        smaller=(weights @ changes[:, -1]).item(),
        means={name: values.tolist() for name, values in zip(MEANS, means, strict=True)},
        like=others.indices.tolist(),
        cosine=others.values.tolist(),
        by_window=changes[:, :-1],
        sizes=sizes,
    )
