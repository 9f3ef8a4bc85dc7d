"""Translation: is the nearest word of another language the right one, by each sense? And the nearest line?

    nanobackpack translation --out_dir=out-xlm --data en-fr.tsv                   # a word, its translation
    nanobackpack translation --out_dir=out-xlm --data words.csv --columns en,fr   # columns of these names
    nanobackpack translation --out_dir=out-xlm --text mark.en.txt mark.fr.txt     # the same line by line

Precision@1: in how many cases the target with the highest cosine is a right one. The targets are all words
of the second column, or all lines of the second text; a word may have several translations. A word of several
tokens is the mean of their senses. Of a line it is the mean over its positions of what each sense adds to the
prediction, Σ_j α[l,i,j] C(x_j)_l; its E is the mean of its tokens' E. Each language's own mean is taken away
first, or all words of a language are alike.

Beside the senses stand E, all senses (the sum of their cosines), the tokens that both sides share, for which
no model is needed, and chance. The best of many senses is good by chance too: so the controls have one that
was chosen on one half of the cases and measured on the other, both ways.

Letters: N sources, M targets, R measures (E, then the senses), K senses, D width, T tokens of a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanobackpack.analysis import results
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import mean_of
from nanobackpack.evaluate.lexical_similarity import word_vectors
from nanobackpack.evaluate.scoring import encode_or_none, read_columns
from nanobackpack.safe.files import read_text
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(AnalysisConfig, controls.ControlsConfig):
    """How often the nearest word, or line, of another language is the right one, by each sense."""

    data: str = ""
    """A dictionary: CSV or TSV with a word and its translation in each row."""
    columns: str = ""
    """The names of its two columns, as en,fr (else the first two, and no header)."""
    text: tuple[str, ...] = ()
    """In place of data two files whose lines say the same."""
    limit: int = 2000
    """Only the first so many rows or lines (0: all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.data) == bool(self.text) or len(self.text) not in (0, 2):
            raise InputError("name a dictionary, --data en-fr.tsv, or two texts, --text a.en.txt a.fr.txt")
        if self.columns and self.text:
            raise InputError("columns are of a dictionary, --data: leave them out with --text")


@dataclass(frozen=True, kw_only=True)
class Translation(controls.Evaluation):
    """Precision@1 of R measures."""

    measures: list[str]
    precision: list[float]
    chance: float
    coverage: float
    """Share of the pairs that the tokenizer can spell."""

    def table(self) -> str:
        named = [*zip(self.measures, self.precision, strict=True), ("chance", self.chance)]
        rows = [[name, f"{100 * value:.1f} %"] for name, value in named]
        return results.table(
            self.title, ["", "precision@1"], [*rows, ["coverage", f"{100 * self.coverage:.1f} %"]]
        )


def main(settings: TranslationConfig) -> None:
    pairs = read_lines(*settings.text) if settings.text else read_dictionary(settings.data, settings.columns)
    pairs = pairs[: settings.limit or None]
    controls.report(settings, lambda model: translation(model, pairs, bool(settings.text)))


def translation(model: LanguageModel, pairs: Pairs, lines: bool = False) -> Translation:
    """Find the translations of words, or with `lines` of lines of text, by E and by each sense."""
    import torch
    from torch.nn.functional import normalize

    tokenizer = needs_tokenizer(model.tokenizer)
    encode = tokenizer.encode if lines else tokenizer.word_ids
    kept = [pair for pair in pairs if all(encode_or_none(encode, text) for text in pair)]
    sources, targets = (list(dict.fromkeys(side)) for side in zip(*kept, strict=True)) if kept else ([], [])
    if len(targets) < 2:
        raise InputError(f"this tokenizer can spell {len(targets)} of the targets, and 2 are needed")
    right = torch.zeros(len(sources), len(targets), dtype=torch.bool)  # (N, M)
    row, column = ({text: i for i, text in enumerate(side)} for side in (sources, targets))
    for source, target in kept:
        right[row[source], column[target]] = True
    both = (sources, targets)
    found = [line_vectors(model, side) if lines else word_vectors(model, side, "avg") for side in both]
    a, b = (normalize(side - side.mean(dim=0), dim=2) for side in found)  # (N, R, D), (M, R, D)
    cosines = [a[:, r] @ b[:, r].T for r in range(a.size(1))]  # R of (N, M)
    K = len(cosines) - 1
    names = ["E", *(f"sense {k}" for k in range(K))]
    hits = {name: hit(cosine, right) for name, cosine in zip(names, cosines, strict=True)}
    tokens = ([encode(text) for text in side] for side in both)
    hits["shared tokens"] = hit(shared(*tokens), right)
    figures = {"E": mean_of(hits["E"]), "shared tokens": mean_of(hits["shared tokens"])}
    if K:
        hits["all senses"] = hit(torch.stack(cosines[1:]).sum(dim=0), right)
        senses = torch.stack([hits[f"sense {k}"] for k in range(K)])  # (K, N)
        half = torch.arange(len(sources)) % 2 == 0
        first, second = (senses[:, rows].mean(dim=1).argmax() for rows in (half, ~half))
        figures["all senses"] = mean_of(hits["all senses"])
        figures["sense of the other half"] = mean_of(torch.where(half, senses[second], senses[first]))
        figures["sense of the other half − E"] = figures["sense of the other half"] - figures["E"]
    what = "lines" if lines else "words"
    return Translation(
        title=f"translation of {len(sources)} {what}, {len(targets)} to choose from",
        figures=figures,
        measures=list(hits),
        precision=[each.mean().item() for each in hits.values()],
        chance=right.double().mean().item(),
        coverage=len(kept) / len(pairs),
    )


def hit(scores: Tensor, right: Tensor) -> Tensor:
    """Give for each source 1 if its best target (N, M) is right, else 0; of several best the share."""
    best = scores >= scores.amax(dim=1, keepdim=True) - 1e-9  # (N, M)
    return (best & right).sum(dim=1).double() / best.sum(dim=1)  # (N)


def shared(sources: list[list[int]], targets: list[list[int]]) -> Tensor:
    """Give the share of tokens that each source has in common with each target, (N, M)."""
    import torch

    column = {token: i for i, token in enumerate({token for ids in (*sources, *targets) for token in ids})}
    bags = []
    for side in (sources, targets):
        bag = torch.zeros(len(side), len(column))
        for row, ids in zip(bag, side, strict=True):
            row[[column[token] for token in ids]] = 1
        bags.append(bag)
    return 2 * bags[0] @ bags[1].T / (bags[0].sum(dim=1)[:, None] + bags[1].sum(dim=1))


def line_vectors(model: LanguageModel, lines: Sequence[str]) -> Tensor:
    """Give E and what each sense adds, means over the positions of a line, (N, R, D); a long one is cut."""
    import torch

    from nanobackpack.model.backpack import BackpackLM

    found = []
    for line in lines:
        ids = needs_tokenizer(model.tokenizer).encode(line)[: model.config.block_size]
        rows = [model.wte.weight.detach()[ids].mean(dim=0, keepdim=True)]  # (1, D)
        if isinstance(model, BackpackLM):
            alpha = model.contextualization(torch.tensor([ids], device=model.wte.weight.device))[
                0
            ]  # (K, T, T)
            rows.append(torch.einsum("kj,jkd->kd", alpha.mean(dim=1), model.sense_vectors(ids)))  # (K, D)
        found.append(torch.cat(rows))
    return torch.stack(found).cpu().double()  # (N, R, D)


def read_dictionary(path: str, columns: str = "") -> list[tuple[str, str]]:
    """Read pairs of a word and its translation; a row in which one is blank is none."""
    rows = [cells for _, cells in read_columns(path, 2, columns)]
    return [(word, translation) for word, translation in rows if word and translation]


def read_lines(first: str, second: str) -> list[tuple[str, str]]:
    """Read two texts that say the same line by line; a line that is blank in one is none."""
    a, b = (read_text(Path(path)).rstrip("\n").split("\n") for path in (first, second))
    if len(a) != len(b):
        raise InputError(
            f"{first} has {len(a):,} lines and {second} {len(b):,}: give texts that say the same on each line"
        )
    return [(x.strip(), y.strip()) for x, y in zip(a, b, strict=True) if x.strip() and y.strip()]
