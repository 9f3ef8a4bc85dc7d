"""Where a sense speaks: the places in a text at which a sense of a word adds most to the token that follows.

    found = find_contexts(model, ["king", "love"], windows, n=5)
    found["king"].contexts[3][0]      # of sense 3 the place with the largest contribution

A word that stands at position j takes part in every later prediction. Sense l of it adds to the logit of
token w at position i

    α[l,i,j] · (E_w · C(x_j)_l)

Here w is the token that the text truly goes on with. So what is found are places where the sense was right;
for the likeliest token instead they would be those where it is loud, whatever the text says. A word of
several tokens adds what each of its tokens adds.

The text is read once, batch by batch. What is kept of each sense are the n largest contributions so far, at
most one for each following token, so that five contexts show five things that the sense says.
Letters: B windows, T their tokens, K senses, D width, V vocabulary, N times that the word occurs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel, check_model
from nanobackpack.runtime import eval_mode, pad_right
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import needs_tokenizer

BEFORE = 16  # tokens that are shown before the word


@dataclass(frozen=True, kw_only=True)
class Context:
    """A place in a text where one sense of a word adds to what follows."""

    tokens: list[str]
    """Some tokens before the word, and all from there to the one that predicts; joined they are the text. A
    character of several tokens stands at the last of them, and "" at the others."""
    source: int
    """Index in `tokens` of the word (of its last token)."""
    last: int
    """Index in `tokens` of the position that predicts: the last one."""
    next: str
    """The token that truly follows; the contribution is to its logit."""
    predicted: str
    """The token that the model finds likeliest there."""
    weight: float
    """α of the sense there; of a word of several tokens their sum."""
    contribution: float
    """α · (E_next · C(word)_l), as Senses.contributions(prompt, next) gives it."""
    prompt: list[int]
    """The ids of all that the model has read at `last`."""


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What a text shows of one word, for each of its K senses."""

    word: str
    occurrences: int
    contexts: list[list[Context]]
    """(K) of each sense, the largest contribution first; none is below 0."""
    share: list[float] | None
    """(K) how far each sense moves the predictions after the word: its α there, added up, times the standard
    deviation of E · C(word)_l over the vocabulary, as a share of all senses. None where the word is not."""


def find_contexts(
    model: LanguageModel,
    words: Sequence[str],
    windows: Iterable[tuple[Tensor, Tensor]],
    n: int = 5,
    limit: int = 0,
) -> dict[str, Contexts]:
    """Read windows of a text, x and y (B, T) each, and find the n best contexts of each sense of the words;
    stop after `limit` tokens (0: read all)."""
    check_model(model)
    if not isinstance(model, BackpackLM):
        raise InputError("this model is a GPT and has no senses: open a Backpack")
    tokenizer, read = needs_tokenizer(model.tokenizer), 0
    searches = {word: _Search(model, tokenizer.word_ids(word), n) for word in words}
    E, K = model.wte.weight.detach(), model.config.n_sense_vector
    for x, y in tqdm(windows, desc="contexts", disable=None, leave=False):
        x, y = x.to(E.device), y.to(E.device)
        ends = torch.stack([search.ends(x) for search in searches.values()])  # (words, B, T)
        rows = ends.any(dim=2).any(dim=0).nonzero()[:, 0]
        # α of the windows that have a word, 128 MB of it at a time.
        for some in rows.split(max(1, (1 << 25) // (K * x.size(1) ** 2))) if len(rows) else ():
            alpha, toward = model.contextualization(x[some]), E[y[some]]  # (b, K, T, T), (b, T, D)
            for search, here in zip(searches.values(), ends[:, some], strict=True):
                if here.any():
                    search.add(alpha, toward, x[some], y[some], here)
        read += x.numel()
        if limit and read >= limit:
            break
    return {word: search.found(word, tokenizer) for word, search in searches.items()}


class _Search:
    """What is known of one word so far."""

    def __init__(self, model: BackpackLM, ids: list[int], n: int) -> None:
        self.model, self.ids, self.n, self.occurrences = model, ids, n, 0
        K, E = model.config.n_sense_vector, model.wte.weight.detach()
        self.senses = model.sense_vectors(ids)  # (W, K, D) of the W tokens of the word
        self.reach = (self.senses @ E[: model.config.n_token].T).std(dim=2)  # (W, K), in logits
        self.moved = torch.zeros(K, dtype=torch.float64)
        # Of each sense, by the id that follows: (contribution, weight, ids read, index of the word).
        self.best: list[dict[int, tuple[float, float, list[int], int]]] = [{} for _ in range(K)]

    def ends(self, x: Tensor) -> Tensor:
        """Say where in x (B, T) the word ends."""
        W, ends = len(self.ids), torch.zeros_like(x, dtype=torch.bool)  # (B, T)
        if x.size(1) >= W:
            ends[:, W - 1 :] = (x.unfold(1, W, 1) == torch.tensor(self.ids, device=x.device)).all(dim=2)
        return ends

    def add(self, alpha: Tensor, toward: Tensor, x: Tensor, y: Tensor, ends: Tensor) -> None:
        """Take in some windows: α (b, K, T, T), E of what follows (b, T, D), x, y and `ends` (b, T)."""
        row, j = ends.nonzero(as_tuple=True)  # (N) each
        self.occurrences += len(row)
        # Only from its end on is anything predicted from the word. Where it is all that there is, as a window
        # begins, α is 1 whatever the sense: that tells nothing.
        i = torch.arange(x.size(1), device=x.device)
        after = ((i >= j[:, None]) & (i >= len(self.ids)))[:, None]  # (N, 1, T)
        weights = contributions = torch.zeros_like(alpha[row, :, :, 0])  # (N, K, T)
        for w, C in enumerate(self.senses):  # (K, D)
            a = alpha[row, :, :, j - len(self.ids) + 1 + w] * after  # (N, K, T)
            weights = weights + a
            contributions = contributions + a * (toward @ C.T)[row].transpose(1, 2)
            self.moved += (a.sum(dim=(0, 2)) * self.reach[w]).double().cpu()
        for sense, values in enumerate(contributions.unbind(dim=1)):  # (N, T)
            self._keep(sense, values, weights[:, sense], x[row], y[row], j)

    def _keep(self, sense: int, values: Tensor, weights: Tensor, x: Tensor, y: Tensor, j: Tensor) -> None:
        """Keep the best of values (N, T), one for each following token."""
        tokens, which = y.unique(return_inverse=True)  # (U)
        most = values.new_zeros(len(tokens)).scatter_reduce(0, which.flatten(), values.flatten(), "amax")
        best = self.best[sense]
        for value, u in zip(*(t.tolist() for t in most.topk(min(self.n, len(tokens)))), strict=True):
            token = int(tokens[u])
            if value > best[token][0] if token in best else value > 0:
                k, i = ((values == value) & (which == u)).nonzero()[0].tolist()
                best[token] = (value, weights[k, i].item(), x[k, : i + 1].tolist(), int(j[k]))
        first = sorted(best.items(), key=lambda item: -item[1][0])[: self.n]
        self.best[sense] = dict(first)

    def found(self, word: str, tokenizer: Tokenizer) -> Contexts:
        """Say what was found in all."""
        total = self.moved.sum().item()
        kept = [(token, *entry) for best in self.best for token, entry in best.items()]
        predicted = iter(_likeliest(self.model, [ids for _, _, _, ids, _ in kept]))
        return Contexts(
            word=word,
            occurrences=self.occurrences,
            share=(self.moved / total).tolist() if total else None,
            contexts=[
                [_context(tokenizer, token, next(predicted), *entry) for token, entry in best.items()]
                for best in self.best
            ],
        )


def _context(
    tokenizer: Tokenizer, token: int, predicted: int, value: float, weight: float, ids: list[int], j: int
) -> Context:
    first = max(0, j - BEFORE)
    return Context(
        tokens=_readable(tokenizer, ids[first:]),
        source=j - first,
        last=len(ids) - 1 - first,
        next=tokenizer.token(token),
        predicted=tokenizer.token(predicted),
        weight=weight,
        contribution=value,
        prompt=ids,
    )


def _readable(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Give the text of each id, such that joined they are the text of all."""
    pieces, shown = [], 0
    for i in range(1, len(ids) + 1):
        piece = tokenizer.decode_after(ids[:shown], ids[shown:i])
        # A part of a character waits for the rest of it.
        piece = "" if piece.endswith("\ufffd") and i < len(ids) else piece
        shown = i if piece else shown
        pieces.append(piece)
    return pieces


def _likeliest(model: BackpackLM, rows: list[list[int]]) -> list[int]:
    """Give the likeliest next token after each row of ids."""
    found: list[int] = []
    with eval_mode(model) as ready:
        for start in range(0, len(rows), 8):
            part = rows[start : start + 8]
            at = torch.arange(len(part)), torch.tensor([len(row) - 1 for row in part])
            logits = ready(pad_right(part, model.wte.weight.device), at=at).logits  # (b, V)
            found += logits[:, : model.config.n_token].argmax(dim=1).tolist()
    return found
