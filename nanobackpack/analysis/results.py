"""Results: frozen dataclasses of named numbers that show themselves, and the runner that prints them.

    >>> ranking = nb.Senses(model).sense_projection("a", k=2)
    >>> print(ranking.table())          # text whose columns line up
    # a
      sense 0  'n'  'b'
      sense 1  'a'  'n'
    >>> ranking.to_json()               # all fields, for other programs
    >>> ranking.to_dataframe()          # for pandas; a notebook shows `ranking` itself in colours
    >>> ranking.plot("a.png")           # where a picture helps

Importing this file does not import torch, so that `nanobackpack VERB --help` answers at once.
Letters: K senses, T tokens of a prompt (BOS first where it was asked for), R rows, N entries of a row,
S occurrences, M query positions, W tokens of a word.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from nanobackpack.analysis import heat_map
from nanobackpack.analysis.heat_map import Grid
from nanobackpack.config import AnalysisConfig, LoadConfig
from nanobackpack.errors import InputError, escape_controls
from nanobackpack.safe.files import check_writable, writing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of all results. Some also have `plot(path)`, which writes a PNG."""

    title: str
    may_be_nan: ClassVar[tuple[str, ...]] = ()
    """Fields in which NaN says that a number is not defined."""

    def table(self) -> str:
        """Show the result as text."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Give all fields as one JSON object; tensors become nested lists."""
        return json.dumps(to_json_values(self), ensure_ascii=False)

    def to_dataframe(self) -> Any:
        """Give the numbers as a pandas DataFrame, one row for each."""
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise InputError("to_dataframe needs pandas: pip install 'nanobackpack[notebook]'") from error
        return DataFrame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """List the rows of `to_dataframe`: one for each entry of the fields that are lists, else one."""
        fields = to_json_values(self)
        for name in ("title", "controls"):  # are not of one row
            fields.pop(name, None)
        n = max((len(value) for value in fields.values() if isinstance(value, list)), default=1)
        lists = {name for name, value in fields.items() if isinstance(value, list) and len(value) == n}
        return [{k: v[i] if k in lists else v for k, v in fields.items()} for i in range(n)]

    def _repr_html_(self) -> str:
        """Show the table in a notebook."""
        return f"<pre>{html.escape(self.table())}</pre>"


class Mapped(Result):
    """A result that is a heat map, too: red is above 0, blue below."""

    def grid(self) -> Grid:
        """Give what the heat map shows."""
        raise NotImplementedError

    def plot(self, path: str) -> None:
        """Write the heat map as a PNG."""
        heat_map.draw(path, self.title, self.grid())

    def _repr_html_(self) -> str:
        return heat_map.to_html(self.title, self.grid())


# --- The runner ---------------------------------------------------------------------------------

Found = TypeVar("Found")


def report(settings: LoadConfig, measure: Callable[[Any], Found]) -> Found:
    """Run a command that reads a model: open it, measure, print the tables, write JSON and picture.

    `measure` gets the model and returns a result or a list of results, or of lists of them; the picture is
    that of the first.
    """
    # These import torch, which a command's --help does not need.
    import torch

    from nanobackpack.runtime import autocast, pick_dtype
    from nanobackpack.train.checkpoint import load_model_of

    # A path that cannot be written is an error now, not after minutes of measuring.
    for name in ("json", "plot", "save"):
        check_writable(getattr(settings, name, ""))
    model = load_model_of(settings)
    device = model.wte.weight.device
    # Analysis is in float32 on every device; test sets are scored in the type that the settings name.
    dtype = torch.float32 if isinstance(settings, AnalysisConfig) else pick_dtype(settings.dtype, device)
    with autocast(device, dtype):
        found = measure(model)
    check_finite(found)
    results = list(_results_in(found))
    for result in results:
        print(result.table(), flush=True)
    write_json(getattr(settings, "json", ""), found)
    if plot := getattr(settings, "plot", ""):  # last, since drawing can fail
        results[0].plot(plot)  # type: ignore[attr-defined]
    return found


def check_finite(found: Any, name: str = "") -> None:
    """Refuse results in which a number is infinite or none, but where that may be."""
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            if field.name not in getattr(found, "may_be_nan", ()):
                check_finite(getattr(found, field.name), field.name)
    elif isinstance(found, (dict, list, tuple)):
        for part in found.values() if isinstance(found, dict) else found:
            check_finite(part, name)
    elif (hasattr(found, "isfinite") and not found.isfinite().all()) or (
        isinstance(found, float) and not math.isfinite(found)
    ):
        raise InputError(
            f"{name} is not a finite number: the weights of this model, or of an edit, are too large to "
            "compute with"
        )


def _results_in(found: Any) -> Iterator[Result]:
    """Yield the results in a list, and in the lists in it; after each its controls, if it has them."""
    if isinstance(found, Result):
        yield found
        if controls := getattr(found, "controls", None):
            yield controls
    else:
        for part in found:
            yield from _results_in(part)


def write_json(path: str, value: Any) -> None:
    """Write results as a JSON file, whole or not at all; an empty path writes nothing."""
    if path:
        with writing(path) as file:
            file.write(json.dumps(to_json_values(value), ensure_ascii=False, indent=1).encode() + b"\n")


def to_json_values(value: Any) -> Any:
    """Turn results into dicts and tensors into lists, as JSON takes them; NaN becomes null. Fields that do
    not show themselves (repr=False) are left out."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json_values(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if hasattr(value, "tolist"):  # a tensor
        return to_json_values(value.tolist())
    if isinstance(value, dict):
        return {k: to_json_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_values(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    return value


# --- What analysis gives back -------------------------------------------------------------------

Pooling = Literal["avg", "first", "contextualized"]
"""The senses of a word of several tokens: their mean; those of the first; or s_l = Σ_j α[l,n,j] C(x_j)_l
at the word's last token n, the word being all the model sees, so that Σ_l E · s_l = its logits."""


class Scored(NamedTuple):
    """A token and its score: E · C under a sense (not a probability), a cosine, or a probability."""

    token: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Ranking(Mapped):
    """The first tokens of each of R rows, most often one row a sense; it reads as a list of rows."""

    labels: list[str]  # (R) what each row is
    ids: Tensor  # (R, N) token ids, best first
    scores: Tensor  # (R, N) their scores
    tokens: list[list[str]]  # (R, N) how the tokens are shown

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> list[Scored]:
        return [Scored(*pair) for pair in zip(self.tokens[row], self.scores[row].tolist(), strict=True)]

    def __iter__(self) -> Iterator[list[Scored]]:
        return (self[row] for row in range(len(self)))

    def table(self, scores: bool = False) -> str:
        """Show one row a line, with scores if asked for."""
        cells = [[repr(t) + (f" {s:.3g}" if scores else "") for t, s in row] for row in self]
        return table(self.title, [], _labelled(self.labels, cells))

    def grid(self) -> Grid:
        ranks = [str(i + 1) for i in range(self.scores.size(1))]
        return Grid(self.scores, self.labels, ranks, [[repr(token) for token in row] for row in self.tokens])

    def records(self) -> list[dict[str, Any]]:
        rows = entries(self.scores, "score", row=self.labels, rank=range(1, self.scores.size(1) + 1))
        tokens, ids = itertools.chain(*self.tokens), self.ids.flatten().tolist()
        return [r | {"token": token, "id": i} for r, token, i in zip(rows, tokens, ids, strict=True)]


@dataclass(frozen=True, kw_only=True)
class PerSense(Result):
    """One number a sense."""

    values: Tensor  # (K)

    def ranked(self) -> list[tuple[int, float]]:
        """List (sense, value), the largest magnitude first."""
        order = self.values.abs().argsort(descending=True, stable=True).tolist()
        return [(sense, self.values[sense].item()) for sense in order]

    def table(self) -> str:
        return table(self.title, [], [[f"sense {sense}", f"{value:+.4f}"] for sense, value in self.ranked()])


@dataclass(frozen=True, kw_only=True)
class Similarity(Mapped):
    """How alike two words are, sense by sense (paper, eq. 13 and 14)."""

    pairs: Tensor  # (K, K) cosine of sense a of the first word and sense b of the second
    flat: float  # cosine of all senses of a word laid end to end

    @property
    def cosine(self) -> Tensor:
        """(K) cosine of the same sense of both words."""
        return self.pairs.diagonal()

    @property
    def min(self) -> float:
        """The least of `cosine`: the paper's measure."""
        return self.cosine.min().item()

    @property
    def max(self) -> float:
        """The greatest of `cosine`."""
        return self.cosine.max().item()

    def table(self) -> str:
        values = dict(zip(_sense_labels(self.cosine), self.cosine.tolist(), strict=True))
        values |= {"min": self.min, "max": self.max, "flat": self.flat}
        values |= {"min of all pairs": self.pairs.min().item(), "max of all pairs": self.pairs.max().item()}
        return table(self.title, [], [[name, f"{value:.4f}"] for name, value in values.items()])

    def grid(self) -> Grid:
        labels = _sense_labels(self.pairs)
        return Grid(self.pairs, labels, labels)

    def records(self) -> list[dict[str, Any]]:
        senses = range(len(self.pairs))
        return entries(self.pairs, "cosine", first=senses, second=senses)


@dataclass(frozen=True, kw_only=True)
class Weights(Mapped):
    """α at the last position: how much each sense of each token counts for the next one."""

    tokens: list[str]  # the T tokens of the prompt
    weights: Tensor  # (T, K) α[l, last, j] at [j, l]; each sense's weights sum to 1 over T

    def table(self) -> str:
        head = ["token", *map(str, range(self.weights.size(1)))]
        cells = [[f"{w:.3f}" for w in row] for row in self.weights.tolist()]
        return table(self.title, head, _labelled(map(repr, self.tokens), cells))

    def grid(self) -> Grid:
        """Give α of senses (rows) and tokens (columns)."""
        return Grid(self.weights.T, _sense_labels(self.weights.T), [*map(repr, self.tokens)])

    def records(self) -> list[dict[str, Any]]:
        T, K = self.weights.shape
        rows = entries(self.weights, "weight", position=range(T), sense=range(K))
        return [r | {"token": self.tokens[r["position"]]} for r in rows]


@dataclass(frozen=True, kw_only=True)
class Contributions(Weights):
    """A logit, or the difference of two, as a sum over the senses of the prompt's tokens."""

    contributions: Tensor  # (T, K) α[l, last, j] · E_w · C(x_j)_l, of w or of w - versus; they sum to `logit`
    logit: float  # what the model itself computes
    probability: list[float]  # p(w) as the next token, then p(versus)

    def ranked(self, n: int) -> list[tuple[int, int, float]]:
        """List the n (position, sense, contribution) of largest magnitude."""
        flat = self.contributions.flatten()  # (T·K)
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        K = self.contributions.size(1)
        return [(i // K, i % K, flat[i].item()) for i in order]

    def table(self, n: int = 15) -> str:
        """Show the n largest, what all others add, and the sum beside the model's own logit."""
        first = self.ranked(n)
        rows = []
        for j, sense, value in first:
            weight = f"{self.weights[j, sense].item():.4f}"
            rows.append([str(j), repr(self.tokens[j]), str(sense), weight, f"{value:+.5f}"])
        total = self.contributions.sum().item()
        if left := self.contributions.numel() - len(first):
            rest = total - sum(value for _, _, value in first)
            rows.append(["", f"{left} others", "", "", f"{rest:+.5f}"])
        # The decomposition is exact: these two lines agree but for rounding.
        rows.append(["", "sum", "", "", f"{total:+.5f}"])
        rows.append(["", "the model's logit", "", "", f"{self.logit:+.5f}"])
        return table(self.title, ["position", "token", "sense", "weight", "contribution"], rows)

    def grid(self) -> Grid:
        """Give contributions of senses (rows) and tokens (columns): red is for the token, blue against it."""
        return super().grid()._replace(values=self.contributions.T)  # (K, T)

    def records(self) -> list[dict[str, Any]]:
        values = self.contributions.flatten().tolist()  # (T·K), in the order of the weights
        return [r | {"contribution": v} for r, v in zip(super().records(), values, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Located(Result):
    """Which senses of which tokens promote a word over some prompts."""

    ids: Tensor  # (N) token ids, of the highest score first
    senses: Tensor  # (N) the sense of each
    scores: Tensor  # (N) Σ over prompts and positions of α[l, last, j] · E_w · C(x_j)_l
    tokens: list[str]  # (N) how the tokens are shown

    def table(self) -> str:
        entries = zip(self.tokens, self.senses.tolist(), self.scores.tolist(), strict=True)
        return table(self.title, [], [[repr(t), f"sense {sense}", f"{s:+.4f}"] for t, sense, s in entries])


@dataclass(frozen=True, kw_only=True)
class Composition(Mapped):
    """How the tokens of a word share its weight, in each of S occurrences, from its last token on."""

    tokens: list[str]  # the W tokens of the word
    shares: list[Tensor]  # S of (K, M, W): α[l,i,j] / Σ over the word's j, which sum to 1 over W

    @property
    def mean(self) -> Tensor:
        """(K, W) the mean over occurrences of the mean over positions."""
        import torch

        return torch.stack([share.mean(dim=1) for share in self.shares]).mean(dim=0)

    @property
    def deviation(self) -> Tensor:
        """(S, K) mean distance over positions of the first token's share from its `mean`."""
        import torch

        base = self.mean[:, :1]  # (K, 1)
        return torch.stack([(share[:, :, 0] - base).abs().mean(dim=1) for share in self.shares])

    @property
    def consistency(self) -> list[int]:
        """How many (occurrence, sense) deviate by less than 0.1, by 0.1 to 0.2, and by more."""
        d = self.deviation
        return [int(n) for n in ((d < 0.1).sum(), ((d >= 0.1) & (d < 0.2)).sum(), (d >= 0.2).sum())]

    def table(self) -> str:
        means, deviations = self.mean.tolist(), self.deviation.mean(dim=0).tolist()
        cells = [[f"{x:.3f}" for x in (*row, d)] for row, d in zip(means, deviations, strict=True)]
        head = ["share of", *map(repr, self.tokens), "deviation"]
        low, middle, high = self.consistency
        last = (
            f"of {low + middle + high} (occurrence, sense): {low} deviate by less than 0.1, "
            f"{middle} by less than 0.2, {high} by more"
        )
        return f"{table(self.title, head, _labelled(_sense_labels(self.mean), cells))}\n{last}"

    def grid(self) -> Grid:
        """Give the mean shares."""
        return Grid(self.mean, _sense_labels(self.mean), [*map(repr, self.tokens)])

    def records(self) -> list[dict[str, Any]]:
        import torch

        shares = torch.stack([share.mean(dim=1) for share in self.shares])  # (S, K, W)
        S, K, _ = shares.shape
        return entries(shares, "share", occurrence=range(S), sense=range(K), token=self.tokens)


# --- Tables -------------------------------------------------------------------------------------


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Show a title, column names and rows of cells whose columns line up, Chinese ones too.

    There may be no title ("") and no names ([]).
    """
    lines = [[*map(escape_controls, line)] for line in ([head, *rows] if head else rows)]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    # str.ljust would count characters, not the columns they take.
    padded = [[c + " " * (w - width(c)) for c, w in zip(line, widths, strict=True)] for line in lines]
    text = "\n".join("  " + "  ".join(cells).rstrip() for cells in padded)
    return f"# {title}\n{text}" if title else text


def width(text: str) -> int:
    """Count the columns a text takes on a terminal: 2 for a wide character, 0 for a combining one."""
    combining = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(c) in combining else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def entries(values: Tensor, name: str, **axes: Iterable[Any]) -> list[dict[str, Any]]:
    """List the entries of a tensor, each with its place on the axes: {"sense": 0, ..., name: 0.25}."""
    places = itertools.product(*axes.values())
    numbers = values.flatten().tolist()
    return [dict(zip(axes, at, strict=True)) | {name: v} for at, v in zip(places, numbers, strict=True)]


def _labelled(labels: Iterable[str], cells: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[label, *row] for label, row in zip(labels, cells, strict=True)]


def _sense_labels(values: Sequence[Any] | Tensor) -> list[str]:
    return [f"sense {sense}" for sense in range(len(values))]
