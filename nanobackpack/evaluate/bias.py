"""Gender bias of nouns, and what removes it (paper, section 6.2 and D.2, Table 5; nanoBackpackLM's Chinese).

Bias(prompts) = mean over prompts of max(p(he)/p(she), p(she)/p(he)), the next-token probabilities at the
prompt's end; of a model the mean over nouns; 1 is no bias. A Backpack's remedy scales one sense of the
noun; a GPT's, the baseline, takes she - he out of the noun's input embedding.

Letters: N prompts, T their tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from nanobackpack.analysis.control import ScaleSense, nullspace
from nanobackpack.analysis.results import Result, aligned
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.edits import Edit, EditLike
from nanobackpack.runtime import reading
from nanobackpack.text.tokenizer import Bos, Tokenizer, bos_ids, needs_tokenizer, token_id, word_ids


@dataclass(frozen=True, kw_only=True)
class Bias(Result):
    """A model's bias without and with the remedies."""

    sense: int | None
    """The sense that is scaled; None for a GPT."""
    nouns: list[str]
    factors: list[float]
    """The optimised factor of each noun."""
    ratios: dict[str, list[float]]
    """Bias of each noun, by remedy; "unmodified" is the first."""

    @property
    def means(self) -> dict[str, float]:
        """Bias of the model by remedy."""
        return {name: sum(values) / len(values) for name, values in self.ratios.items()}

    def reduction(self, name: str) -> float:
        """Share of the bias above 1 that a remedy takes away, in percent; 0 where there was none."""
        before = self.means["unmodified"] - 1
        return 100 * (before - (self.means[name] - 1)) / before if before else 0.0

    def table(self) -> str:
        names = list(self.ratios)
        means = [f"{self.means[name]:.2f} ({self.reduction(name):.0f} %)" for name in names]
        rows = [["", *names, "factor"], ["mean (reduction)", *means, ""]]
        for i, (noun, factor) in enumerate(zip(self.nouns, self.factors, strict=True)):
            rows.append([noun, *(f"{self.ratios[name][i]:.2f}" for name in names), f"{factor:.2f}"])
        return f"# {self.title}\n{aligned(rows)}"


def gender_bias(
    model: LanguageModel,
    language: Literal["en", "zh"] = "en",
    sense: int | Literal["auto"] = "auto",
    *,
    max_iter: int = 50,
    bos: Bos = False,
) -> Bias:
    """Table 5 for one model: the bias unmodified, with the sense removed (for a GPT: the direction projected
    out), and with a factor optimised for each noun by Nelder-Mead, at most max_iter steps.

    "auto" takes the sense whose removal lowers the bias of the estimation prompts most: the paper's sense
    10 is its own checkpoint's. Nouns and prompts that the tokenizer cannot spell are left out. The Chinese
    estimation prompts are ours, as nanoBackpackLM has none: what is chosen or fitted is never measured on
    the prompts it was fitted to.
    Raises: InputError without a tokenizer, nouns or pronouns of one token, for a sense out of range or of a
    GPT, or without scipy.
    """
    minimize = _minimizer()
    tokenizer, chosen = needs_tokenizer(model.tokenizer), control_sets()["bias"][language]
    he, she = (_pronoun(tokenizer, pronoun) for pronoun in chosen["pronouns"])
    nouns = _nouns(tokenizer, chosen, bos_ids(tokenizer, bos))
    remedy = _remedy(model, he, she)

    def estimated(noun: Noun, factor: float, sense: int | None) -> float:
        return bias_ratio(model, noun.estimation, he, she, remedy(noun.ids, factor, sense))

    if not isinstance(model, BackpackLM):
        if sense != "auto":
            raise InputError(f"sense={sense}: this model is a GPT and has no senses, leave it at auto")
        which = None
    elif sense == "auto":
        removed = [sum(estimated(noun, 0.0, k) for noun in nouns) for k in range(model.config.n_sense_vector)]
        which = removed.index(min(removed))
    else:
        which = sense
    remedies: dict[str, list[EditLike]] = {
        "unmodified": [() for _ in nouns],
        "projected" if which is None else "removed": [remedy(noun.ids, 0.0, which) for noun in nouns],
        "optimised": [],
    }
    factors: list[float] = []
    for noun in tqdm(nouns, "optimising", unit="noun", disable=None, leave=False):

        def objective(p: Sequence[float], noun: Noun = noun) -> float:
            return estimated(noun, float(p[0]), which) + abs(1 - float(p[0]))

        best = minimize(objective, [1.0], method="Nelder-Mead", options={"maxiter": max_iter})
        factors.append(float(best.x[0]))
        remedies["optimised"].append(remedy(noun.ids, factors[-1], which))
    ratios = {
        name: [bias_ratio(model, n.prompts, he, she, e) for n, e in zip(nouns, edits, strict=True)]
        for name, edits in remedies.items()
    }
    what = "GPT" if which is None else f"sense {which}"
    return Bias(
        title=f"bias of {len(nouns)} nouns ({language}, {what})",
        sense=which,
        nouns=[noun.word for noun in nouns],
        factors=factors,
        ratios=ratios,
    )


def bias_ratio(model: LanguageModel, rows: list[list[int]], he: int, she: int, edits: EditLike = ()) -> float:
    """The mean over prompts, given as ids, of max(p(he)/p(she), p(she)/p(he)) after them."""
    size, device = model.config.block_size, model.wte.weight.device
    rows = [row[-size:] for row in rows]
    T = max(map(len, rows))
    ids = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)  # (N, T)
    ends = torch.tensor([len(row) - 1 for row in rows], device=device)  # (N): nothing sees what is after it
    with reading(model):
        at = torch.arange(len(rows), device=device), ends
        logits = model(ids, edits=edits, at=at).logits  # (N, V)
        log_ratio = logits[:, he] - logits[:, she]  # (N): the softmax cancels
    return log_ratio.abs().double().exp().mean().item()


class Noun(NamedTuple):
    """A noun, its tokens, and the prompts about it as ids."""

    word: str
    ids: list[int]
    estimation: list[list[int]]
    prompts: list[list[int]]


def _nouns(tokenizer: Tokenizer, chosen: dict[str, Any], begin: list[int]) -> list[Noun]:
    """The nouns of a set that can be used, with `begin` before their prompts. Raises: InputError for none."""
    nouns = []
    for word in chosen["nouns"]:
        ids = _spelled(word_ids, tokenizer, word)
        estimation, prompts = (
            [
                begin + row
                for t in chosen[kind]
                if (row := _spelled(Tokenizer.encode, tokenizer, t.format(word)))
            ]
            for kind in ("estimation", "prompts")
        )
        if estimation and prompts and (len(ids) == 1 or (ids and not chosen["one_token"])):
            nouns.append(Noun(word, ids, estimation, prompts))
    if not nouns:
        as_one = " as one token" if chosen["one_token"] else ""
        raise InputError(
            f"this model's tokenizer ({tokenizer.kind}) knows none of the set's nouns{as_one}: take a model "
            "that knows such words, or another --language"
        )
    return nouns


def _pronoun(tokenizer: Tokenizer, word: str) -> int:
    """The id of a pronoun. Raises: InputError if it is not one token here."""
    try:
        return token_id(tokenizer, word)
    except InputError:
        raise InputError(
            f"the pronoun {word!r} is not one token for this model ({tokenizer.kind}), so no bias can be "
            "measured: take a model of words, or another --language"
        ) from None


def _spelled(encode: Callable[[Tokenizer, str], list[int]], tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text, [] for one that has characters the tokenizer does not know."""
    try:
        return encode(tokenizer, text)
    except InputError:
        return []


def _remedy(model: LanguageModel, he: int, she: int) -> Callable[[list[int], float, int | None], Edit]:
    """What changes a noun (its tokens) by a factor: 1 not at all, 0 wholly."""
    if isinstance(model, BackpackLM):
        return lambda ids, p, sense: ScaleSense(tuple(ids), p, sense)
    return lambda ids, p, _: nullspace(model, ids, she, he, p)  # type: ignore[arg-type]


def _minimizer() -> Callable[..., Any]:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise InputError("optimised factors need scipy: pip install 'nanobackpack[analysis]'") from None
    return minimize
