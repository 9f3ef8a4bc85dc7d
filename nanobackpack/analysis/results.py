"""What analysis and evaluation give back: frozen dataclasses of named tensors that show themselves.

`.table()` is text whose columns line up, `.to_json()` all fields, `.plot(path)` a PNG where a picture
helps. docs/names.md lists names, shapes and meaning.
Letters: K senses, T tokens of a prompt, R rows, N entries of a row, M query positions, W tokens of a word.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from nanobackpack.config import AnalysisConfig, LoadConfig
from nanobackpack.safe.files import check_writable, replacing


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of all results."""

    title: str

    def table(self) -> str:
        """The result as text."""
        raise NotImplementedError

    def to_json(self) -> str:
        """All fields as one JSON object; tensors as nested lists."""
        return json.dumps(to_json_values(self), ensure_ascii=False)


def to_json_values(value: Any) -> Any:
    """A value in which results are dicts and tensors lists, as JSON takes it."""
    if isinstance(value, Result):
        return {f.name: to_json_values(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Tensor):
        return to_json_values(value.tolist())
    if isinstance(value, dict):
        return {k: to_json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_values(v) for v in value]
    if isinstance(value, float) and value != value:
        return None  # JSON knows no NaN
    return value


def write_json(path: str, value: Any) -> None:
    """Write results as a JSON file, whole or not at all; an empty path writes nothing."""
    if path:
        with replacing(Path(path)) as file:
            file.write(json.dumps(to_json_values(value), ensure_ascii=False, indent=1).encode() + b"\n")


Found = TypeVar("Found", "Result", "Sequence[Any]")


def report(settings: LoadConfig, measure: Callable[[Any], Found]) -> Found:
    """Do what every command that reads a model does: check that its files can be written, open the model,
    measure, print the tables, and write JSON and picture if asked for. `measure` gets the model and returns
    a result or a list of results, also of lists; the picture is that of the first."""
    from nanobackpack.runtime import autocast, pick_dtype
    from nanobackpack.train.checkpoint import open_model

    # A path that cannot be written is found now, and not after an hour of work.
    for name in ("json", "plot", "save"):
        check_writable(getattr(settings, name, ""))
    model = open_model(settings)
    device = model.wte.weight.device
    # Analysis is in float32 on every device; test sets are scored in the type that the settings name.
    dtype = torch.float32 if isinstance(settings, AnalysisConfig) else pick_dtype(settings.dtype, device)
    with autocast(device, dtype):
        found = measure(model)
    results = list(_results_in(found))
    for result in results:
        print(result.table(), flush=True)
    if plot := getattr(settings, "plot", ""):
        results[0].plot(plot)  # type: ignore[attr-defined]
    write_json(getattr(settings, "json", ""), found)
    return found


def _results_in(found: Any) -> Iterator[Result]:
    """The results in a list, and in the lists in it."""
    if isinstance(found, Result):
        yield found
    else:
        for part in found:
            yield from _results_in(part)


class Scored(NamedTuple):
    """A token and its score under a sense (a dot product, not a probability)."""

    token: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Ranking(Result):
    """The first tokens of each of R rows, most often one row a sense; it reads as a list of rows."""

    labels: list[str]
    """What each row is, R."""
    ids: Tensor
    """(R, N) token ids, best first."""
    scores: Tensor
    """(R, N) their scores."""
    tokens: list[list[str]]
    """(R, N) how the tokens are shown."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> list[Scored]:
        return [Scored(*pair) for pair in zip(self.tokens[row], self.scores[row].tolist(), strict=True)]

    def __iter__(self) -> Iterator[list[Scored]]:
        return (self[row] for row in range(len(self)))

    def table(self, scores: bool = False) -> str:
        """One row a line, with scores if asked for."""
        shown = [[repr(t) + (f" {s:.3g}" if scores else "") for t, s in row] for row in self]
        rows = [[label, *cells] for label, cells in zip(self.labels, shown, strict=True)]
        return f"# {self.title}\n{aligned(rows)}"

    def plot(self, path: str) -> None:
        """The table as a picture: the score is the colour."""
        cells = [[repr(token) for token in row] for row in self.tokens]
        ranks = [str(i + 1) for i in range(self.scores.size(1))]
        heat_map(path, self.scores, self.labels, ranks, self.title, cells)


@dataclass(frozen=True, kw_only=True)
class PerSense(Result):
    """One number a sense."""

    values: Tensor
    """(K)."""

    def ranked(self) -> list[tuple[int, float]]:
        """(sense, value), the largest magnitude first."""
        order = self.values.abs().argsort(descending=True, stable=True).tolist()
        return [(sense, self.values[sense].item()) for sense in order]

    def table(self) -> str:
        rows = [[f"sense {sense}", f"{value:+.4f}"] for sense, value in self.ranked()]
        return f"# {self.title}\n{aligned(rows)}"


@dataclass(frozen=True, kw_only=True)
class Similarity(Result):
    """How alike two words are, sense by sense (paper, eq. 13 and 14)."""

    pairs: Tensor
    """(K, K) cosine of sense a of the first word and sense b of the second."""
    flat: float
    """Cosine of all senses of a word laid end to end."""

    @property
    def cosine(self) -> Tensor:
        """(K) cosine of the same sense of both words."""
        return self.pairs.diagonal()

    @property
    def min(self) -> float:
        """The paper's measure: the least of `cosine`."""
        return self.cosine.min().item()

    @property
    def max(self) -> float:
        """The greatest of `cosine`."""
        return self.cosine.max().item()

    def table(self) -> str:
        rows = [[f"sense {sense}", f"{c:.4f}"] for sense, c in enumerate(self.cosine.tolist())]
        rows += [["min", f"{self.min:.4f}"], ["max", f"{self.max:.4f}"], ["flat", f"{self.flat:.4f}"]]
        rows += [["min of all pairs", f"{self.pairs.min().item():.4f}"]]
        rows += [["max of all pairs", f"{self.pairs.max().item():.4f}"]]
        return f"# {self.title}\n{aligned(rows)}"


@dataclass(frozen=True, kw_only=True)
class Weights(Result):
    """α at the last position: how much each sense of each token counts for the next one."""

    tokens: list[str]
    """The T tokens of the prompt, BOS first where it was asked for."""
    weights: Tensor
    """(T, K): α[l, last, j] at [j, l]; each sense's weights sum to 1."""

    def table(self) -> str:
        head = ["token", *map(str, range(self.weights.size(1)))]
        rows = [
            [repr(token), *(f"{w:.3f}" for w in row)]
            for token, row in zip(self.tokens, self.weights.tolist(), strict=True)
        ]
        return f"# {self.title}\n{aligned([head, *rows])}"

    def plot(self, path: str) -> None:
        labels = [f"sense {sense}" for sense in range(self.weights.size(1))]
        heat_map(path, self.weights.T, labels, [repr(t) for t in self.tokens], self.title)


@dataclass(frozen=True, kw_only=True)
class Contributions(Result):
    """A logit, or the difference of two, as a sum over the senses of the prompt's tokens."""

    tokens: list[str]
    """The T tokens of the prompt, BOS first where it was asked for."""
    weights: Tensor
    """(T, K): α[l, last, j] at [j, l]."""
    contributions: Tensor
    """(T, K): α[l, last, j] · E_w · C(x_j)_l, of w or of w minus versus; they add up to `logit`."""
    logit: float
    """What the model itself computes."""
    probability: list[float]
    """p(w) as the next token, then p(versus)."""

    def ranked(self, n: int) -> list[tuple[int, int, float]]:
        """The n (position, sense, contribution) of largest magnitude."""
        flat = self.contributions.flatten()  # (T·K)
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        K = self.contributions.size(1)
        return [(i // K, i % K, flat[i].item()) for i in order]

    def table(self, n: int = 15) -> str:
        """The n largest, what the others add, and the sum."""
        rows = [["position", "token", "sense", "weight", "contribution"]]
        first = self.ranked(n)
        for j, sense, value in first:
            weight = f"{self.weights[j, sense].item():.4f}"
            rows.append([str(j), repr(self.tokens[j]), str(sense), weight, f"{value:+.5f}"])
        total = self.contributions.sum().item()
        left = self.contributions.numel() - len(first)
        if left:
            rest = total - sum(value for _, _, value in first)
            rows.append(["", f"{left} others", "", "", f"{rest:+.5f}"])
        rows.append(["", "sum", "", "", f"{total:+.5f}"])
        rows.append(["", "the model's logit", "", "", f"{self.logit:+.5f}"])
        return f"# {self.title}\n{aligned(rows)}"

    def plot(self, path: str) -> None:
        labels = [f"sense {sense}" for sense in range(self.contributions.size(1))]
        heat_map(path, self.contributions.T, labels, [repr(t) for t in self.tokens], self.title)


@dataclass(frozen=True, kw_only=True)
class Located(Result):
    """Which senses of which tokens speak for a word over some prompts."""

    ids: Tensor
    """(N) token ids, of the highest score first."""
    senses: Tensor
    """(N)."""
    scores: Tensor
    """(N): Σ over prompts and positions of α[l, last, j] · E_w · C(x_j)_l."""
    tokens: list[str]
    """N."""

    def table(self) -> str:
        triples = zip(self.tokens, self.senses.tolist(), self.scores.tolist(), strict=True)
        rows = [[repr(token), f"sense {sense}", f"{score:+.4f}"] for token, sense, score in triples]
        return f"# {self.title}\n{aligned(rows)}"


@dataclass(frozen=True, kw_only=True)
class Composition(Result):
    """How the tokens of a word share its weight, in each sentence, from its last token on."""

    tokens: list[str]
    """The W tokens of the word."""
    shares: list[Tensor]
    """Of each occurrence (K, M, W): α[l,i,j] / Σ over the word's j; they sum to 1 over W."""

    @property
    def mean(self) -> Tensor:
        """(K, W): the mean over occurrences of the mean over positions."""
        return torch.stack([share.mean(dim=1) for share in self.shares]).mean(dim=0)

    @property
    def deviation(self) -> Tensor:
        """(S, K): mean distance over positions of the first token's share from its `mean`, for each of
        S occurrences."""
        base = self.mean[:, :1]  # (K, 1)
        return torch.stack([(share[:, :, 0] - base).abs().mean(dim=1) for share in self.shares])

    @property
    def consistency(self) -> list[int]:
        """How many (occurrence, sense) deviate by less than 0.1, by 0.1 to 0.2, and by more."""
        d = self.deviation
        return [int(n) for n in ((d < 0.1).sum(), ((d >= 0.1) & (d < 0.2)).sum(), (d >= 0.2).sum())]

    def table(self) -> str:
        head = ["share of", *map(repr, self.tokens), "deviation"]
        rows = [
            [f"sense {sense}", *(f"{m:.3f}" for m in row), f"{d:.3f}"]
            for sense, (row, d) in enumerate(
                zip(self.mean.tolist(), self.deviation.mean(dim=0).tolist(), strict=True)
            )
        ]
        low, middle, high = self.consistency
        last = (
            f"of {low + middle + high} (occurrence, sense): {low} deviate by less than 0.1, "
            f"{middle} by less than 0.2, {high} by more"
        )
        return f"# {self.title}\n{aligned([head, *rows])}\n{last}"

    def plot(self, path: str) -> None:
        labels = [f"sense {sense}" for sense in range(len(self.mean))]
        heat_map(path, self.mean, labels, [repr(t) for t in self.tokens], self.title)


@dataclass(frozen=True, kw_only=True)
class Map(Result):
    """Words as points of a plane."""

    words: list[str]
    """N."""
    points: Tensor
    """(N, 2)."""

    def table(self) -> str:
        pairs = zip(self.words, self.points.tolist(), strict=True)
        return f"# {self.title}\n{aligned([[word, f'{x:.2f}', f'{y:.2f}'] for word, (x, y) in pairs])}"

    def plot(self, path: str) -> None:
        def draw(axes: Any) -> None:
            axes.scatter(*self.points.T.tolist(), s=8)
            for word, point in zip(self.words, self.points.tolist(), strict=True):
                axes.annotate(word, point, fontsize=8)
            axes.set(title=self.title)

        picture(path, (10, 8), draw)


def width(text: str) -> int:
    """Columns a text takes on a terminal: two for each wide character, none for a combining one."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def aligned(rows: Iterable[Sequence[str]], indent: str = "  ") -> str:
    """Rows of cells as lines whose columns line up."""
    rows = list(rows)
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        indent + "  ".join(c + " " * (w - width(c)) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


# Fonts that have Chinese characters: matplotlib's own has none.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
             "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS")  # fmt: skip


def picture(path: str, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Draw on one set of axes and write it as a PNG, whole or not at all. Characters that no installed font
    has become boxes."""
    import matplotlib
    import matplotlib.figure
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
    with matplotlib.rc_context({"font.family": fonts}), replacing(Path(path)) as file:
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(file, format="png", dpi=120)


def heat_map(
    path: str,
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    cells: Sequence[Sequence[str]] | None = None,
) -> None:
    """values (R, N) as colours: blue below 0, red above it; `cells` are written into them."""
    shown = values.float().cpu()
    limit = shown.abs().max().item() or 1.0
    each = 1.1 if cells else 0.4  # inches a column

    def draw(axes: Any) -> None:
        image = axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=0 if cells else 90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(title, parse_math=False)
        for r, row in enumerate(cells or ()):
            for n, text in enumerate(row):
                color = "white" if shown[r, n].abs() > 0.6 * limit else "black"
                axes.text(n, r, text, ha="center", va="center", fontsize=8, color=color, parse_math=False)
        axes.figure.colorbar(image)

    picture(path, (max(5.0, 2.5 + each * len(columns)), max(3.0, 1.5 + 0.35 * len(rows))), draw)
