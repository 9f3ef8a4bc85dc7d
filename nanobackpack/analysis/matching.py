"""Which sense of one Backpack is which of another, and when did the senses of a run become what they are?

    matched = match(model, other, sample_ids(model))        # of two models with one vocabulary
    found = drift(model, checkpoints, sample_ids(model))    # of one run, over its steps

What a sense of a token says is its projection, E · C(x)_l, a score for each token of the vocabulary. Two
senses are as alike as these scores: their correlation over the vocabulary, mean over a sample of tokens x.
Models may differ in width. No projection is ever made, since (E_a c) · (E_b d) = c · G d with G = E_aᵀ E_b.

Letters: N sampled tokens, K senses, D width, V vocabulary, S steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanobackpack.analysis import results
from nanobackpack.analysis.heat_map import Grid
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel


@dataclass(frozen=True, kw_only=True)
class Matched(results.Mapped):
    """The senses of two models, one to one: chosen on one half of the tokens, all figures on the other."""

    similarity: Tensor  # (K, K) of sense l of the first and sense m of the second
    partners: list[int]  # (K) the sense of the second that each of the first is matched with
    matched: list[float]  # (K) how alike these two are
    other_senses: list[float]  # (K) control: mean over all other senses of the second
    other_tokens: list[float]  # (K) control: the same two senses, each at another token
    untrained: list[float]  # (K) control: matched with models of fresh weights in the same way

    def table(self) -> str:
        columns = [self.matched, self.other_senses, self.other_tokens, self.untrained]
        names = ["sense", "matched with", "similarity", "other senses", "another token", "untrained"]
        rows = [
            [str(sense), str(self.partners[sense]), *(f"{value:.3f}" for value in values)]
            for sense, values in enumerate(zip(*columns, strict=True))
        ]
        mean = ["mean", "", *(f"{sum(values) / len(values):.3f}" for values in columns)]
        return results.table(self.title, names, [*rows, mean])

    def grid(self) -> Grid:
        """Give the similarities, columns in the order of the partners: those matched are on the diagonal."""
        labels = [f"sense {sense}" for sense in range(len(self.partners))]
        return Grid(self.similarity[:, self.partners], labels, [labels[m] for m in self.partners])


@dataclass(frozen=True, kw_only=True)
class Drift(results.Mapped):
    """How alike each sense is, at S steps, to what it is at the end."""

    steps: list[int]  # (S)
    similarity: Tensor  # (S, K)
    other_senses: list[float]  # (S) control: mean over pairs of different senses, then and at the end
    at_home: list[int]  # (S) how many senses are matched with themselves
    untrained: list[float]  # (K) control: the same sense of models of fresh weights
    appears: list[int | None]  # (K) from which step on it is nearer to 1 than to `untrained`; None: the end

    def table(self) -> str:
        K = self.similarity.size(1)
        rows = [["untrained", *(f"{value:.2f}" for value in self.untrained), "", ""]]
        shown = zip(self.steps, self.similarity.tolist(), self.at_home, self.other_senses, strict=True)
        for step, values, home, other in shown:
            rows.append([str(step), *(f"{v:.2f}" for v in values), f"{other:.2f}", f"{home} of {K}"])
        rows.append(["appears at", *("end" if at is None else str(at) for at in self.appears), "", ""])
        head = ["step", *(f"sense {sense}" for sense in range(K)), "other senses", "matched with itself"]
        return results.table(self.title, head, rows)

    def grid(self) -> Grid:
        labels = [f"sense {sense}" for sense in range(self.similarity.size(1))]
        return Grid(self.similarity.T, labels, [f"step {step}" for step in self.steps])

    def records(self) -> list[dict[str, Any]]:
        senses = range(self.similarity.size(1))
        return results.entries(self.similarity, "similarity", step=self.steps, sense=senses)


def match(
    a: LanguageModel, b: LanguageModel, ids: Tensor, fresh: Sequence[LanguageModel] = (), title: str = ""
) -> Matched:
    """Match the senses of two models; `fresh` are models of b's shape before training, to compare with."""
    some, others = ids[::2], ids[1::2]
    partners = assign(similarity(a, b, some, some))
    found, rows = similarity(a, b, others, others), range(len(partners))  # (K, K)
    null = torch.zeros(len(rows))  # (K)
    for model in fresh:
        null += similarity(a, model, others, others)[rows, assign(similarity(a, model, some, some))]
    matched = found[rows, partners]  # (K)
    return Matched(
        title=title,
        similarity=found,
        partners=partners,
        matched=matched.tolist(),
        other_senses=((found.sum(dim=1) - matched) / max(1, len(rows) - 1)).tolist(),
        other_tokens=similarity(a, b, others, others.roll(1))[rows, partners].tolist(),
        untrained=(null / max(1, len(fresh))).tolist(),
    )


def drift(
    end: LanguageModel,
    checkpoints: Iterable[tuple[int, LanguageModel]],
    ids: Tensor,
    fresh: Sequence[LanguageModel] = (),
    title: str = "",
) -> Drift:
    """Compare the senses of a run's models, in the order of their steps, with those at its end."""
    steps, found = [], []
    for step, model in checkpoints:
        check_comparable(end, model, f"the checkpoint of step {step}")
        steps.append(step)
        found.append(similarity(model, end, ids, ids))
    pairs = torch.stack(found)  # (S, K, K)
    alike, K = pairs.diagonal(dim1=1, dim2=2), pairs.size(1)  # (S, K)
    null = torch.zeros(K)  # (K)
    for model in fresh:
        null += similarity(model, end, ids, ids).diagonal() / len(fresh)
    # A sense that comes close and leaves again has not appeared yet: count the steps from the end backwards.
    stays = (alike >= (1 + null) / 2).flip(0).cummin(dim=0).values.sum(dim=0).tolist()  # (K)
    return Drift(
        title=title,
        steps=steps,
        similarity=alike,
        other_senses=((pairs.sum(dim=(1, 2)) - alike.sum(dim=1)) / max(1, K * (K - 1))).tolist(),
        at_home=[sum(sense == m for sense, m in enumerate(assign(one))) for one in found],
        untrained=null.tolist(),
        appears=[steps[-n] if n else None for n in stays],
    )


def similarity(a: LanguageModel, b: LanguageModel, at: Tensor, other: Tensor) -> Tensor:
    """Correlate what the senses of tokens `at` (N) of a and `other` (N) of b say: (K, K), on the CPU."""
    assert isinstance(a, BackpackLM)  # as check_comparable says
    assert isinstance(b, BackpackLM)
    E_a, E_b = _centred(a), _centred(b)  # (V, D) each, of the model's own D
    C_a, C_b = a.sense_vectors(at), b.sense_vectors(other)  # (N, K, D) each
    products = C_a @ (E_a.T @ E_b) @ C_b.transpose(1, 2)  # (N, K, K)
    size_a, size_b = ((C @ (E.T @ E) * C).sum(dim=2).sqrt() for C, E in ((C_a, E_a), (C_b, E_b)))  # (N, K)
    sizes = size_a[:, :, None] * size_b[:, None, :]  # (N, K, K)
    return (products / sizes.clamp(min=1e-30)).mean(dim=0).cpu()  # (K, K); a sense that is 0 is like none


def _centred(model: LanguageModel) -> Tensor:
    """E of the real tokens, less its mean, so that the scores of each sense have the mean 0: (V, D)."""
    E = model.wte.weight.detach()[: model.config.n_token].float()
    return E - E.mean(dim=0)


def assign(similar: Tensor) -> list[int]:
    """Match rows and columns (K, K) one to one so that the sum is largest (the Hungarian method)."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise InputError("matching senses needs scipy: pip install 'nanobackpack[analysis]'") from None
    return [int(m) for m in linear_sum_assignment(similar.numpy(), maximize=True)[1]]


def sample_ids(model: LanguageModel, n: int = 512) -> Tensor:
    """Draw n tokens, always the same, of those that the training text has 10 times, if that is known."""
    V, counts = model.config.n_token, model.token_counts
    seen = torch.arange(V) if counts is None else (counts[:V] >= 10).nonzero().flatten()
    if len(seen) < 4:
        raise InputError("fewer than 4 tokens occur 10 times in the training text: train on more")
    return seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:n]]


def check_comparable(a: LanguageModel, b: LanguageModel, name: str) -> None:
    """Refuse models whose senses cannot be matched; `name` is that of b."""
    if not isinstance(a, BackpackLM) or not isinstance(b, BackpackLM):
        raise InputError(f"{name}: a GPT has no senses to match, give Backpacks")
    differ, sizes = "", (a.config.n_token, b.config.n_token)
    if sizes[0] != sizes[1]:
        differ = f"{sizes[0]:,} tokens and {sizes[1]:,}"
    elif a.tokenizer and b.tokenizer:
        differ = a.tokenizer.difference(b.tokenizer)
    if differ:
        raise InputError(f"{name} has another vocabulary ({differ}): give runs on the same data")
    if (k := a.config.n_sense_vector) != (other := b.config.n_sense_vector):
        raise InputError(f"{name}: senses are matched one to one, but here are {k} and there {other}")
