"""Lexical similarity: do words that people find alike have senses that point the same way?

    nanobackpack lexical_similarity --out_dir=out --data simlex=SimLex-999.txt rg65=RG65.csv
    nanobackpack lexical_similarity --data wordsim240=240.txt --poolings avg contextualized
    nanobackpack lexical_similarity --data fr=pairs.csv --columns fr="FRA 1,FRA 2,FRA"

Spearman's ρ between the cosines of pairs of words and people's scores (Backpack paper, Table 4). Test sets,
each as its authors publish it: simlex, simverb, rg65, ws353, wordsim240, wordsim297. Any other name is that
of a CSV or TSV file with two words and a score, in its first three columns or in those named. The rows of the
table are the embedding E, all senses end to end (flat), each sense, and the least cosine of all senses (min,
eq. 14); a GPT has only E, its input embeddings.

A word of several tokens is the mean of their vectors (avg), its first token (first), or its contextualized
senses; the paper takes the better of the first two for each model. Words are taken as they stand, with the
space before them where the tokenizer joins it; no BOS.

The best of many senses is good by chance too. So the controls have a sense that is chosen on one half of the
pairs and measured on the other, both ways; and what pairs of words score by the tokens they share alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from nanobackpack.analysis import results
from nanobackpack.analysis.results import Pooling
from nanobackpack.config import AnalysisConfig, wrong_type
from nanobackpack.errors import InputError, short_repr
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import Figure, rank_correlation
from nanobackpack.evaluate.scoring import encode_or_none, numbered_lines, read_columns
from nanobackpack.safe.files import display_path
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Tokenizer

# How each test set is written: what separates columns (None: any white space), the column of the score, where
# the words are columns 0 and 1, and whether the first line is a header.
FORMATS = {
    "simlex": ("\t", 3, True),  # SimLex-999 (Hill et al. 2015)
    "simverb": ("\t", 3, False),  # SimVerb-3500 (Gerz et al. 2016)
    "rg65": (";", 2, False),  # Rubenstein and Goodenough 1965
    "ws353": (",", 2, True),  # WordSim-353 (Finkelstein et al. 2002)
    "wordsim240": (None, 2, False),  # Chinese
    "wordsim297": (None, 2, False),  # Chinese
}


@dataclass(frozen=True, kw_only=True)
class LexicalSimilarityConfig(AnalysisConfig, controls.ControlsConfig):
    """Rank correlation of the cosines of words with people's judgement of how alike they are."""

    data: tuple[str, ...] = ()
    """Test sets as NAME=FILE; NAME is simlex, simverb, rg65, ws353, wordsim240, wordsim297, or your own."""
    columns: tuple[str, ...] = ()
    """Names of the columns of such a CSV or TSV file, as NAME=first,second,score (else the first three)."""
    poolings: tuple[Pooling, ...] = ("avg", "first")
    """How a word of several tokens becomes one vector: avg, first, contextualized."""
    min_count: int = 10
    """A word counts as seen if each of its tokens occurs so often in the training text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data or not self.poolings:
            raise InputError("name one or more test sets, as in --data simlex=SimLex-999.txt")
        for item in self.data:
            name, _, path = item.partition("=")
            if not name or not path:
                known = ", ".join(FORMATS)
                raise InputError(f"data={item!r} is not NAME=FILE with NAME one of {known}, or your own")
        names = [item.partition("=")[0] for item in self.data]
        for item in self.columns:
            if (name := item.partition("=")[0]) not in names or name in FORMATS:
                raise InputError(
                    f"columns={item!r} is not NAME=first,second,score with NAME your own in data"
                )


class WordPair(NamedTuple):
    """Two words and how alike people find them."""

    first: str
    second: str
    score: float


@dataclass(frozen=True, kw_only=True)
class LexicalSimilarity(controls.Evaluation):
    """Spearman's ρ of R measures on S test sets, for P ways to make a vector of a word's tokens."""

    may_be_nan = ("rho",)
    sets: list[str]
    """S."""
    poolings: list[str]
    """P."""
    measures: list[str]
    """R: E, flat, sense 0 ..., min; of a GPT only E."""
    rho: Tensor
    """(R, S, P); NaN where a measure is undefined: the same for all pairs, or E of contextualized senses."""
    n: list[int]
    """S: pairs compared."""
    coverage: list[float]
    """S: their share of the test set; the others have characters that the tokenizer does not know."""
    one_token: list[float]
    """S: share of the test set in which both words are one token."""
    seen: list[float] | None
    """S: share in which both words have been seen in training; None if that is not known."""
    min_count: int
    """How often each token of such a word occurs there."""

    def table(self) -> str:
        head = ["", *(f"{name} {pooling}" for name in self.sets for pooling in self.poolings)]
        rows = []
        for measure, values in zip(self.measures, self.rho.flatten(1).tolist(), strict=True):
            rows.append([measure, *("–" if math.isnan(v) else f"{v:.3f}" for v in values)])
        # These are numbers of a set, not of its poolings: they stand in the set's first column.
        blank = [""] * (len(self.poolings) - 1)
        rows.append(["pairs", *(cell for n in self.n for cell in (str(n), *blank))])
        seen = {f"both seen {self.min_count} times": self.seen} if self.seen else {}
        for name, shares in ({"coverage": self.coverage, "both one token": self.one_token} | seen).items():
            rows.append([name, *(cell for share in shares for cell in (f"{100 * share:.1f} %", *blank))])
        return results.table(self.title, head, rows)

    def records(self) -> list[dict[str, Any]]:
        return results.entries(self.rho, "rho", measure=self.measures, set=self.sets, pooling=self.poolings)


def main(settings: LexicalSimilarityConfig) -> None:
    named = [item.partition("=")[::2] for item in settings.data]
    columns = dict(item.partition("=")[::2] for item in settings.columns)
    sets = {name: read_pairs(name, path, columns.get(name, "")) for name, path in named}
    controls.report(
        settings, lambda model: lexical_similarity(model, sets, settings.poolings, settings.min_count)
    )


def lexical_similarity(
    model: LanguageModel,
    sets: Mapping[str, Sequence[WordPair]],
    poolings: Sequence[Pooling] = ("avg", "first"),
    min_count: int = 10,
) -> LexicalSimilarity:
    """Correlate the cosines of words with people's scores, on named test sets."""
    import torch

    tokenizer = needs_tokenizer(model.tokenizer)
    for pooling in poolings:
        if pooling not in get_args(Pooling):
            raise wrong_type("pooling", short_repr(pooling), Pooling)

    # Pairs with characters that the tokenizer does not know are left out.
    def known(pair: WordPair) -> bool:
        return all(encode_or_none(tokenizer.word_ids, word) for word in (pair.first, pair.second))

    kept = {name: [pair for pair in pairs if known(pair)] for name, pairs in sets.items()}
    for name, pairs in kept.items():
        if len(pairs) < 2:
            raise InputError(
                f"{name}: this tokenizer can spell {len(pairs)} of {len(sets[name])} pairs, not 2"
            )
    # The vectors of each word are computed once.
    words = sorted({word for pairs in kept.values() for pair in pairs for word in (pair.first, pair.second)})
    index = {word: i for i, word in enumerate(words)}
    is_gpt = model.config.model_name == "gpt2"
    sense_names = [] if is_gpt else [f"sense {i}" for i in range(model.config.n_sense_vector)]
    measures = ["E"] if is_gpt else ["E", "flat", *sense_names, "min"]
    columns: list[list[Tensor]] = [[] for _ in kept]  # (S, P) of (R)
    figures: dict[str, Figure] = {}
    for pooling in poolings:
        vectors = word_vectors(model, words, pooling)  # (N, 1 + K, D)
        for column, (name, pairs) in zip(columns, kept.items(), strict=True):
            a = vectors[[index[pair.first] for pair in pairs]]  # (pairs, 1 + K, D)
            b = vectors[[index[pair.second] for pair in pairs]]  # (pairs, 1 + K, D)
            gold, cosines = [pair.score for pair in pairs], _measures(a, b)
            column.append(torch.tensor([spearman(measure, gold) for measure in cosines]))  # (R)
            rows = dict(zip(measures, cosines, strict=True))
            found = compared(rows, shared_tokens(tokenizer, pairs), gold)
            figures |= {f"{name} {pooling} {row}": figure for row, figure in found.items()}
    # How often has each word been seen? At most as often as its rarest token.
    counts, ids = model.token_counts, {word: tokenizer.word_ids(word) for word in words}
    often = {word: counts is not None and int(counts[ids[word]].min()) >= min_count for word in words}
    short = {word: len(ids[word]) == 1 for word in words}

    def share(both: Mapping[str, bool]) -> list[float]:
        return [sum(both[p.first] and both[p.second] for p in kept[name]) / len(sets[name]) for name in kept]

    return LexicalSimilarity(
        title="Spearman's ρ with human judgements",
        figures=figures,
        sets=list(kept),
        poolings=list(poolings),
        measures=measures,
        rho=torch.stack([torch.stack(column, dim=1) for column in columns], dim=1),  # (R, S, P)
        n=[len(pairs) for pairs in kept.values()],
        coverage=[len(kept[name]) / len(sets[name]) for name in kept],
        one_token=share(short),
        seen=None if counts is None else share(often),
        min_count=min_count,
    )


# --- What is compared -----------------------------------------------------------------------------


def compared(rows: Mapping[str, Tensor], shared: Tensor, gold: Sequence[float]) -> dict[str, Figure]:
    """Make the figures that the controls compare, of the cosines (N) of each measure."""
    import torch

    figures = {name: rank_correlation(rows[name], gold) for name in ("E", "flat", "min") if name in rows}
    if senses := [row for name, row in rows.items() if name.startswith("sense")]:
        figures["sense of the other half"] = chosen_sense(torch.stack(senses, dim=1), gold)
    figures["shared tokens"] = rank_correlation(shared, gold)
    figures = {name: figure for name, figure in figures.items() if not math.isnan(figure.value)}
    differences = {
        f"{name} − {base}": figures[name] - figures[base]
        for base in ("E", "shared tokens")
        for name in figures
        if base in figures and name not in ("shared tokens", base)
    }
    return figures | differences


def chosen_sense(senses: Tensor, gold: Sequence[float]) -> Figure:
    """Choose on each half of N pairs the sense whose cosines (N, K) fit best, and measure it on the other."""
    import torch

    scores = torch.tensor(gold, dtype=torch.float64)  # (N)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    parts = []
    for chosen_on, rows in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        fits = [spearman(sense, scores[chosen_on].tolist()) for sense in senses[chosen_on].T]
        best = max(range(len(fits)), key=lambda k: (not math.isnan(fits[k]), fits[k]))
        parts.append((rows, rank_correlation(senses[rows, best], scores[rows])))
    (first, one), (second, other) = parts
    return Figure(len(scores), lambda w: (one.of(w[:, first]) + other.of(w[:, second])) / 2)


def shared_tokens(tokenizer: Tokenizer, pairs: Sequence[WordPair]) -> Tensor:
    """Give the share of tokens that both words of N pairs have, (N): similarity without a model."""
    import torch

    found = []
    for pair in pairs:
        a, b = (set(tokenizer.word_ids(word)) for word in (pair.first, pair.second))
        found.append(2 * len(a & b) / (len(a) + len(b)))
    return torch.tensor(found, dtype=torch.float64)


def word_vectors(model: LanguageModel, words: list[str], pooling: Pooling) -> Tensor:
    """Give E and, of a Backpack, the senses of N words, (N, 1 + K, D); E is NaN for contextualized words."""
    import torch

    from nanobackpack.analysis.senses import Senses
    from nanobackpack.model.backpack import BackpackLM

    E = model.wte.weight.detach()
    rows = [E[needs_tokenizer(model.tokenizer).word_ids(word)] for word in words]  # N of (T, D)
    means = torch.stack([(row[:1] if pooling == "first" else row).mean(dim=0) for row in rows])  # (N, D)
    if pooling == "contextualized":
        means = torch.full_like(means, torch.nan)
    parts = [means[:, None]]  # (N, 1, D)
    if isinstance(model, BackpackLM):
        parts.append(Senses(model).many_senses(words, pooling))  # (N, K, D)
    # In float64 on the CPU: float32 would break the ties of words that share their first token.
    return torch.cat(parts, dim=1).cpu().double()  # (N, 1 + K, D)


def _measures(a: Tensor, b: Tensor) -> list[Tensor]:
    """Compute R measures of N pairs, each (N): cosines of E, all senses as one, every sense, their min."""
    from torch.nn.functional import cosine_similarity

    each = cosine_similarity(a, b, dim=2)  # (N, 1 + K)
    E, senses = each[:, 0], each[:, 1:]  # (N), (N, K)
    if senses.size(1) == 0:
        return [E]
    flat = cosine_similarity(a[:, 1:].flatten(1), b[:, 1:].flatten(1), dim=1)  # (N)
    return [E, flat, *senses.T, senses.amin(dim=1)]


def spearman(measure: Tensor, gold: Sequence[float]) -> float:
    """Give Spearman's rank correlation of N cosines with N scores; NaN if either are all the same."""
    return math.nan if measure.isnan().any() else rank_correlation(measure, gold).value


def read_pairs(name: str, path: str | Path, columns: str = "") -> list[WordPair]:
    """Read the pairs of the test set `name`: a key of FORMATS, or else of any CSV or TSV file."""
    if name not in FORMATS:
        return _read_table(path, columns)
    separator, column, header = FORMATS[name]
    pairs = []
    for number, line in numbered_lines(path):
        if header and number == 1:
            continue
        cells = [cell.strip() for cell in line.split(separator)]
        try:
            pairs.append(_pair(cells[0], cells[1], cells[column]))
        except (IndexError, ValueError):
            between = {None: "white space", "\t": "tabs"}.get(separator, f"{separator!r}")
            raise InputError(
                f"{display_path(path)}, line {number}: {line[:60]!r} is not two words and a number in column "
                f"{column + 1}, with {between} between columns, as {name} has"
            ) from None
    return _at_least_two(pairs, path)


def _read_table(path: str | Path, columns: str) -> list[WordPair]:
    """Read pairs from the columns of a CSV or TSV file; its first line may be a header."""
    pairs = []
    for row, (where, cells) in enumerate(read_columns(path, 3, columns)):
        try:
            pairs.append(_pair(*cells))
        except ValueError:
            if row or columns:
                what = f"{where}: {', '.join(cells)[:60]!r} is not two words and a number"
                raise InputError(f"{what} (layouts known by name: {', '.join(FORMATS)})") from None
    return _at_least_two(pairs, path)


def _pair(first: str, second: str, score: str) -> WordPair:
    """Make a pair of three cells; ValueError if a word is blank, or the score no number."""
    if not (first and second and math.isfinite(value := float(score))):
        raise ValueError
    return WordPair(first, second, value)


def _at_least_two(pairs: list[WordPair], path: str | Path) -> list[WordPair]:
    if len(pairs) < 2:
        raise InputError(f"{display_path(path)} has {len(pairs)} pairs: a correlation needs two or more")
    return pairs
