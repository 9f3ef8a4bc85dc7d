"""The plain formula, computed as the original computes it: slowly, and with nothing clever in it.

    o[b,i] = Σ_l Σ_j  α[b,l,i,j] · C(x[b,j])[l]        logits[b,i] = E · o[b,i]

Every fast path of the package must agree with these functions. They take a model's own weights and
submodules but do all the Backpack's arithmetic themselves, can be differentiated, and drop out in training
mode where nanoBackpackLM does. For a GPT they give E · h.

Letters: B batch, T time (positions), D width, K senses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack import GPT
from nanobackpack.analysis.control import (
    AmplifyInWord,
    ReplaceSenses,
    ScaleSense,
    ScaleWord,
    ShiftSenses,
    TopicControl,
)
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.model.edits import Edit


def plain_rotary_scores(q: Tensor, k: Tensor) -> Tensor:
    """Scores (B, T, T) of queries and keys (B, T, d) with rotary positions. Pairs of numbers are complex,
    and query i meets key j turned by i - j times the angle of the pair."""
    q, k = (torch.complex(*t.chunk(2, dim=2)) for t in (q, k))  # (B, T, d/2)
    angles = torch.tensor([10_000 ** (-n / q.size(2)) for n in range(q.size(2))])  # (d/2)
    place = torch.arange(q.size(1))
    apart = (place[:, None] - place)[..., None] * angles  # (T, T, d/2)
    return torch.einsum("bid,bjd,ijd->bij", q, k.conj(), torch.polar(torch.ones_like(apart), apart)).real


def plain_alpha(model: LanguageModel, ids: Tensor) -> Tensor:
    """α (B, K, T, T) of ids (B, T), one sense at a time: softmax over j ≤ i of q[l,i] · k[l,j]."""
    nano, K = model.config.sense_network == "nano", model.config.n_sense_vector
    T, width = ids.size(1), model.config.n_embd // K
    queries, keys = model.alpha.c_attn(model.context(model.wte(ids))).chunk(2, dim=2)  # (B, T, D) each
    future = torch.ones(T, T, device=ids.device).triu(diagonal=1).bool()  # (T, T)
    rows = []
    for q, k in zip(queries.split(width, dim=2), keys.split(width, dim=2), strict=True):
        scores = torch.einsum("bic,bjc->bij", q, k)  # (B, T, T)
        if model.config.is_modern:
            scores = plain_rotary_scores(q, k)
        if not nano:  # nanoBackpackLM does not scale
            scores = scores / width**0.5
        rows.append(scores.masked_fill(future, float("-inf")).softmax(dim=2))
    alpha = torch.stack(rows, dim=1)  # (B, K, T, T)
    return F.dropout(alpha, model.config.dropout, model.training) if nano else alpha


def plain_senses(model: LanguageModel, ids: Tensor) -> Tensor:
    """C of the token at every position, (B, K, T, D), computed again for each position."""
    return model.senses(model.wte(ids)).transpose(1, 2)


def plain_logits(model: LanguageModel, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of ids (B, T)."""
    if isinstance(model, GPT):
        o = model.context(model.wte(ids))  # (B, T, D)
    else:
        per_sense = plain_alpha(model, ids) @ plain_senses(model, ids)  # (B, K, T, D)
        o = per_sense.sum(dim=1)  # (B, T, D)
    return o @ model.wte.weight.T


def plain_edited_logits(model: LanguageModel, ids: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Logits (B, V) after the texts ids (B, T) under edits, each by its definition, position by position."""
    E = model.wte.weight
    if isinstance(model, GPT):
        e = model.wte(ids)  # (B, T, D)
        for edit in edits:
            for b, text in enumerate(ids.tolist()):
                for j in (j for j, x in enumerate(text) if x in edit.tokens):
                    g = edit.direction
                    e[b, j] = e[b, j] - (1 - edit.factor) * ((e[b, j] @ g) / (g @ g)) * g
        return model.context(e)[:, -1] @ E.T
    alphas, senses = plain_alpha(model, ids)[:, :, -1], plain_senses(model, ids)  # (B, K, T), (B, K, T, D)
    rows = []
    for text, a, c in zip(ids.tolist(), alphas.unbind(), senses.unbind(), strict=True):
        for edit in edits:
            for j, x in enumerate(text):
                if isinstance(edit, ReplaceSenses) and x in edit.tokens:
                    c[:, j] = edit.table[edit.tokens.index(x)]
                if isinstance(edit, ShiftSenses):
                    for token, sense, offset in zip(edit.tokens, edit.senses, edit.offsets, strict=True):
                        c[sense, j] += (token == x) * offset
                if isinstance(edit, ScaleSense) and (edit.tokens == "all" or x in edit.tokens):
                    plain_scale(edit, c[:, j])
        for edit in edits:
            if isinstance(edit, TopicControl):
                for j, x in enumerate(text):
                    A = (E[text] @ c[:, j].T).clamp(min=0).sum(dim=0)  # (K)
                    B = torch.sigmoid(-edit.f * A + 6) * (1 + j / 100)
                    a[:, j] *= B * edit.delta[x] + (1 - B)
            if isinstance(edit, (AmplifyInWord, ScaleWord)):
                j, n = 0, len(edit.edited_tokens)
                while j + n <= len(text):
                    if tuple(text[j : j + n]) != edit.edited_tokens:
                        j += 1
                        continue
                    part = a[:, j : j + n]  # (K, n)
                    if isinstance(edit, AmplifyInWord):
                        more = torch.tensor(edit.factors) * part
                        a[:, j : j + n] = more / more.sum(1, True) * part.sum(1, True)
                    else:
                        plain_scale(edit, part)
                    j += n
        rows.append((a[:, None] @ c).sum(dim=0)[0] @ E.T)
    return torch.stack(rows)


def plain_scale(edit: ScaleSense | ScaleWord, senses: Tensor) -> None:
    """Multiply each of the senses (K, *) by its factor, in place."""
    for sense in range(len(senses)):
        if isinstance(edit.factor, tuple):
            senses[sense] *= edit.factor[sense]
        elif edit.sense in (None, sense):
            senses[sense] *= edit.factor


def plain_loss(model: LanguageModel, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats over the targets (B, T) that are not -1."""
    log_p = plain_logits(model, ids).log_softmax(dim=2)  # (B, T, V)
    kept = targets != -1
    return -log_p.gather(2, targets.clamp(min=0)[..., None])[..., 0][kept].mean()


@torch.no_grad()
def plain_generate(
    model: LanguageModel,
    ids: Tensor,
    n: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    restart: bool = False,
    edits: Sequence[Edit] = (),
) -> Tensor:
    """Continue ids (B, T) by n tokens, recomputing the last block_size positions for each of them, or
    with `restart` those since the window was last full, and then cut in half."""
    size = model.config.block_size
    start = max(0, ids.size(1) - size)
    for i in range(n):
        if i and ids.size(1) - start > size:
            start = ids.size(1) - (size // 2 if restart else size)
        window = ids[:, start:]
        logits = plain_edited_logits(model, window, edits) if edits else plain_logits(model, window)[:, -1]
        logits = logits[:, : model.config.n_token]  # (B, V)
        for i in model.tokenizer.unsampled_ids if model.tokenizer else ():
            logits[:, i] = float("-inf")
        if temperature == 0:
            new = logits.argmax(dim=1, keepdim=True)  # (B, 1)
        else:
            logits = logits / temperature
            if top_k is not None:
                least = logits.sort(dim=1, descending=True).values[:, :top_k][:, -1:]  # (B, 1)
                logits = logits.masked_fill(logits < least, float("-inf"))
            new = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)  # (B, 1)
        ids = torch.cat([ids, new], dim=1)
    return ids
