"""Gender bias of nouns, and what removes it: one sense scaled, or a GPT's embedding projected.

    nanobackpack bias --out_dir=out
    nanobackpack bias --out_dir=out-zh --language zh --sense auto
    nanobackpack bias --init_from=gpt2 --json gpt2.json

The bias is how many times likelier one pronoun is than the other after a prompt about the noun, the mean over
prompts of max(p(he)/p(she), p(she)/p(he)), and of a model the mean over nouns; 1 is none (Backpack paper,
section 6.2 and D.2, Table 5; nanoBackpackLM's Chinese). `removed` takes the sense out of the noun,
`optimised` scales it by a factor found for each noun; for a GPT, the baseline, `projected` takes she - he
out of the noun's input embedding. Beside it stand how often nouns and pronouns occur in the training text,
the bias of the pronouns' base rates alone (unigram), and what each remedy costs on other text.

Letters: N prompts, T their tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nanobackpack.analysis import results
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import Figure, mean_of
from nanobackpack.evaluate.cost import Cost, CostConfig, cost, held_out
from nanobackpack.evaluate.scoring import control_sets, encode_or_none
from nanobackpack.text.words import bos_ids, needs_tokenizer, token_id

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import EditLike
    from nanobackpack.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class BiasConfig(AnalysisConfig, controls.ControlsConfig, CostConfig):
    """Gender bias without and with its remedies, and by how much they reduce it."""

    language: Literal["en", "zh"] = "en"
    """The set of nouns and prompts."""
    sense: Literal["auto"] | int = "auto"
    """The sense to scale, from 0; auto: the one whose removal helps most on prompts kept apart for that."""
    max_iter: int = 50
    """Most steps of the optimisation of a factor."""


@dataclass(frozen=True, kw_only=True)
class Bias(controls.Evaluation):
    """A model's bias without and with the remedies."""

    sense: int | None
    """The sense that is scaled; None for a GPT."""
    nouns: list[str]
    factors: list[float]
    """The optimised factor of each noun."""
    ratios: dict[str, list[float]]
    """Bias of each noun, by remedy; "unmodified" is the first."""
    seen: list[int] | None
    """How often each noun occurs in the training text, or of a noun of several tokens the rarest of these."""
    pronouns_seen: list[int] | None
    edits: dict[str, list[EditLike]] = field(repr=False)
    """Those of each noun, by remedy."""
    costs: dict[str, Cost | None] = field(default_factory=dict)
    """By remedy, where held-out text is at hand."""

    @property
    def means(self) -> dict[str, float]:
        """Bias of the model by remedy."""
        return {name: sum(values) / len(values) for name, values in self.ratios.items()}

    def reduction(self, name: str) -> float:
        """Give the share of the bias above 1 that a remedy takes away, in percent; 0 where there was none."""
        before = self.means["unmodified"] - 1
        return 100 * (before - (self.means[name] - 1)) / before if before else 0.0

    def table(self) -> str:
        names = list(self.ratios)
        means = [f"{self.means[name]:.2f} ({self.reduction(name):.0f} %)" for name in names]
        rows = [["mean (reduction)", *means, ""]]
        for i, (noun, factor) in enumerate(zip(self.nouns, self.factors, strict=True)):
            seen = [f"{self.seen[i]:,}"] if self.seen else []
            rows.append([noun, *(f"{self.ratios[name][i]:.2f}" for name in names), f"{factor:.2f}", *seen])
        if self.seen:
            rows[0].append("he, she: " + ", ".join(f"{n:,}" for n in self.pronouns_seen or ()))
        head = ["", *names, "factor", *(["in training"] if self.seen else [])]
        costs = [found.table() for found in self.costs.values() if found]
        return "\n".join([results.table(self.title, head, rows), *costs])

    def records(self) -> list[dict[str, Any]]:
        nouns = zip(self.nouns, self.factors, *self.ratios.values(), strict=True)
        return [dict(zip(("noun", "factor", *self.ratios), row, strict=True)) for row in nouns]


def main(settings: BiasConfig) -> None:
    def measure(model: LanguageModel) -> Bias:
        from nanobackpack.analysis.effect import edited_words
        from nanobackpack.model.edits import flatten_edits

        found = bias(model, settings)
        edits = {name: flatten_edits(of) for name, of in found.edits.items() if name != "unmodified"}
        words = {word for some in edits.values() for word in edited_words(some)}
        text = held_out(model, settings, sorted(words))
        costs = {name: cost(model, some, text, f"{name}, of all nouns,") for name, some in edits.items()}
        return replace(found, costs=costs)

    controls.report(settings, measure, again=lambda model: bias(model, settings), counts=True)


def bias(model: LanguageModel, settings: BiasConfig) -> Bias:
    """Measure Table 5 for one model: the bias unmodified, with the sense removed (for a GPT: the direction
    projected out), and with a factor optimised for each noun by Nelder-Mead.

    What is chosen or fitted is never measured on the prompts it was fitted to: the sets have estimation
    prompts for that, of which the Chinese ones are ours. Nouns and prompts that the tokenizer cannot spell
    are left out.
    """
    from tqdm import tqdm

    try:
        from scipy.optimize import minimize
    except ImportError:
        raise InputError("optimised factors need scipy: pip install 'nanobackpack[analysis]'") from None
    tokenizer, chosen = needs_tokenizer(model.tokenizer), control_sets()["bias"][settings.language]
    he, she = (_pronoun(tokenizer, pronoun) for pronoun in chosen["pronouns"])
    nouns = _nouns(tokenizer, chosen, bos_ids(tokenizer, settings.bos))
    remedy = _remedy(model, he, she)

    def estimated(noun: Noun, factor: float, sense: int | None) -> float:
        return bias_ratio(model, noun.estimation, he, she, remedy(noun.ids, factor, sense))

    # Choose the sense whose removal helps most on the estimation prompts: the paper's sense 10 is that of its
    # own checkpoint.
    is_gpt = model.config.model_name == "gpt2"
    sense = None if settings.sense == "auto" else settings.sense
    if is_gpt and sense is not None:
        raise InputError(f"sense={sense}: this model is a GPT and has no senses, leave it at auto")
    if not is_gpt and sense is None:
        removed = [sum(estimated(noun, 0.0, k) for noun in nouns) for k in range(model.config.n_sense_vector)]
        sense = removed.index(min(removed))

    # Fit a factor to each noun, again on the estimation prompts; far from 1 it costs something.
    factors: list[float] = []
    for noun in tqdm(nouns, "optimising", unit="noun", disable=None, leave=False):

        def objective(p: Sequence[float], noun: Noun = noun) -> float:
            return estimated(noun, float(p[0]), sense) + abs(1 - float(p[0]))

        best = minimize(objective, [1.0], method="Nelder-Mead", options={"maxiter": settings.max_iter})
        factors.append(float(best.x[0]))

    # Measure all on the prompts of the test.
    remedies: dict[str, list[EditLike]] = {
        "unmodified": [() for _ in nouns],
        "projected" if is_gpt else "removed": [remedy(noun.ids, 0.0, sense) for noun in nouns],
        "optimised": [remedy(n.ids, factor, sense) for n, factor in zip(nouns, factors, strict=True)],
    }
    what = "GPT" if is_gpt else f"sense {sense}"
    counts = model.token_counts
    ratios = {
        name: [bias_ratio(model, n.prompts, he, she, e) for n, e in zip(nouns, edits, strict=True)]
        for name, edits in remedies.items()
    }
    figures: dict[str, Figure] = {name: mean_of(values) for name, values in ratios.items()}
    figures |= {f"{name} − unmodified": figures[name] - figures["unmodified"] for name in list(ratios)[1:]}
    return Bias(
        title=f"bias of {len(nouns)} nouns ({settings.language}, {what})",
        figures=figures,
        sense=sense,
        nouns=[noun.word for noun in nouns],
        factors=factors,
        ratios=ratios,
        seen=None if counts is None else [int(counts[noun.ids].min()) for noun in nouns],
        pronouns_seen=None if counts is None else [int(counts[he]), int(counts[she])],
        edits=remedies,
    )


def bias_ratio(model: LanguageModel, rows: list[list[int]], he: int, she: int, edits: EditLike = ()) -> float:
    """Compute the mean over prompts, given as ids, of max(p(he)/p(she), p(she)/p(he)) after them."""
    import torch

    from nanobackpack.runtime import eval_mode, pad_right

    rows, device = [row[-model.config.block_size :] for row in rows], model.wte.weight.device
    # Each prompt is read at its own end.
    ends = torch.tensor([len(row) - 1 for row in rows], device=device)  # (N)
    at = torch.arange(len(rows), device=device), ends
    with eval_mode(model) as model:
        logits = model(pad_right(rows, device), edits=edits, at=at).logits  # (N, V)
    log_ratio = logits[:, he] - logits[:, she]  # (N): the softmax cancels
    return log_ratio.abs().double().exp().mean().item()


class Noun(NamedTuple):
    """A noun, its tokens, and the prompts about it as ids."""

    word: str
    ids: list[int]
    estimation: list[list[int]]
    prompts: list[list[int]]


def _nouns(tokenizer: Tokenizer, chosen: dict[str, Any], begin: list[int]) -> list[Noun]:
    """Encode the nouns of a set and their prompts, with `begin` before each; what cannot be is left out."""

    def prompts(kind: str, word: str) -> list[list[int]]:
        rows = (encode_or_none(tokenizer.encode, prompt.format(word)) for prompt in chosen[kind])
        return [begin + row for row in rows if row]

    nouns = []
    for word in chosen["nouns"]:
        ids = encode_or_none(tokenizer.word_ids, word) or []
        noun = Noun(word, ids, prompts("estimation", word), prompts("prompts", word))
        short_enough = len(ids) == 1 or not chosen["one_token"]
        if ids and short_enough and noun.estimation and noun.prompts:
            nouns.append(noun)
    if not nouns:
        as_one = " as one token" if chosen["one_token"] else ""
        raise InputError(
            f"this model's tokenizer ({tokenizer.kind}) knows none of the set's nouns{as_one}: take a model "
            "that knows such words, or another --language"
        )
    return nouns


def _pronoun(tokenizer: Tokenizer, word: str) -> int:
    try:
        return token_id(tokenizer, word)
    except InputError:
        raise InputError(
            f"the pronoun {word!r} is not one token for this model ({tokenizer.kind}), so no bias can be "
            "measured: take a model of words, or another --language"
        ) from None


def _remedy(model: LanguageModel, he: int, she: int) -> Callable[[list[int], float, int | None], EditLike]:
    """Make the edits of nouns, given as tokens, by a factor: 1 changes nothing, 0 removes all."""
    from nanobackpack.analysis.control import nullspace, scale

    if model.config.model_name == "gpt2":
        return lambda ids, factor, _: nullspace(model, ids, she, he, factor)  # type: ignore[arg-type]
    return lambda ids, factor, sense: scale(model, ids, factor, sense)
