"""Where a sense speaks: the places in a text at which a sense of a word adds most to the token that follows.

    found = find_contexts(model, ["king", "love"], windows, n=5)
    found["king"].contexts[3][0]      # of sense 3 the place with the largest contribution

A word at position j adds to the logit of the token w that truly follows i, by its sense l,

    α[l,i,j] · (E_w · C(x_j)_l)     or, if it has several tokens, the sum of this over them.

So it is found where it was right; by the likeliest token it would be found where it is loud. The text is read
once, in batches. Of each sense the n largest are kept, one for each w: n different things that it says.
Letters: B windows, T their tokens, K senses, W tokens of the word, N times that it occurs, U unique ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nanobackpack.analysis.senses import Senses
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import eval_mode
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import several

BEFORE = 16  # tokens that are shown before the word
Windows = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Context:
    """A place in a text where one sense of a word adds to what follows."""

    tokens: list[str]  # some, the whole word, all up to the one that predicts; joined they are the text
    source: int  # index in `tokens` of the word
    last: int  # index in `tokens` of the position that predicts: the last
    next: str  # what truly follows: the token whose logit the contribution is to
    predicted: str  # the token that the model finds likeliest there
    weight: float  # α of the sense, as in Senses.active_senses(prompt)
    contribution: float  # α · (E_next · C), as in Senses.contributions(prompt, next)
    prompt: list[int]  # the ids of all that the model has read up to `last`


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """What a text shows of the K senses of one word, which occurs in it so many times.

    `share` (K) says how much each sense moves what is predicted after the word: its α there, added up, times
    the standard deviation of E · C over the vocabulary, as a share of all senses; None without the word.
    """

    occurrences: int
    contexts: list[list[Context]]  # (K) of each sense, the largest contribution first; only such above 0
    share: list[float] | None


def find_contexts(
    model: LanguageModel, words: Sequence[str], windows: Windows, n: int = 5, limit: int = 0
) -> dict[str, Contexts]:
    """Find the n best contexts of each sense of the words in windows of a text, x and y (B, T) each, of which
    about `limit` tokens are read (0: all)."""
    senses, read, K = Senses(model), 0, model.config.n_sense_vector
    if not several(words):
        raise InputError("no words: give at least one")
    searches = {word: _Search(senses, word, n) for word in words}
    for batch in tqdm(windows, desc="contexts", disable=None, leave=False):
        x, y = (side.to(senses.embedding.device) for side in batch)  # (B, T) each
        ends = torch.stack([search.ends(x) for search in searches.values()])  # (words, B, T)
        rows = ends.any(dim=2).any(dim=0).nonzero()[:, 0]
        # α of the windows that have a word, 128 MB of it at a time.
        for some in rows.split(max(1, (1 << 25) // (K * x.size(1) ** 2))) if len(rows) else ():
            alpha = senses.model.contextualization(x[some])  # (b, K, T, T)
            for search, here in zip(searches.values(), ends[:, some], strict=True):
                if here.any():
                    search.add(alpha, x[some], y[some], here)
        read += x.numel()
        if 0 < limit <= read:
            break
    return {word: search.found() for word, search in searches.items()}


class _Search:
    """What is known of one word so far."""

    def __init__(self, senses: Senses, word: str, n: int) -> None:
        self.model, self.tokenizer, self.E, self.n = senses.model, senses.tokenizer, senses.embedding, n
        self.ids, self.occurrences = self.tokenizer.word_ids(word), 0
        self.senses = self.model.sense_vectors(self.ids)  # (W, K, D)
        self.reach = (self.senses @ self.E.T).std(dim=2)  # (W, K), in logits
        self.moved = torch.zeros(self.reach.size(1), dtype=torch.float64)  # (K)
        # Of each sense, by the id that follows: contribution, weight, ids read, index of the word in these.
        self.best: list[dict[int, tuple[float, float, list[int], int]]] = [{} for _ in self.moved]

    def ends(self, x: Tensor) -> Tensor:
        """Say where in x (B, T) the word ends."""
        W, ends = len(self.ids), torch.zeros_like(x, dtype=torch.bool)  # (B, T)
        if x.size(1) >= W:
            ends[:, W - 1 :] = (x.unfold(1, W, 1) == torch.tensor(self.ids, device=x.device)).all(dim=2)
        return ends

    def add(self, alpha: Tensor, x: Tensor, y: Tensor, ends: Tensor) -> None:
        """Take in windows: α (b, K, T, T), and x, y and `ends` (b, T)."""
        row, j = ends.nonzero(as_tuple=True)  # (N) each
        self.occurrences += len(row)
        # The whole word predicts from its end on. Where it is all that there is, α is 1 and tells nothing.
        W, i = len(self.ids), torch.arange(x.size(1), device=x.device)
        after = ((i >= j[:, None]) & (i >= W))[:, None]  # (N, 1, T)
        weights = contributions = torch.zeros_like(alpha[row, :, :, 0])  # (N, K, T)
        for w, C in enumerate(self.senses):  # (K, D)
            a = alpha[row, :, :, j - W + 1 + w] * after  # (N, K, T)
            weights = weights + a
            contributions = contributions + a * (self.E[y] @ C.T)[row].transpose(1, 2)
            self.moved += (a.sum(dim=(0, 2)) * self.reach[w]).cpu()
        tokens, which = y[row].unique(return_inverse=True)  # (U), (N, T)
        for sense, values in enumerate(contributions.unbind(dim=1)):  # (N, T)
            # The largest of each following token, and of these the n largest.
            best = self.best[sense]
            most = values.new_zeros(len(tokens)).scatter_reduce(0, which.flatten(), values.flatten(), "amax")
            for value, u in zip(*(t.tolist() for t in most.topk(min(self.n, len(tokens)))), strict=True):
                if value > best.get(int(tokens[u]), (0.0,))[0]:
                    k, end = ((values == value) & (which == u)).nonzero()[0].tolist()
                    read = x[row[k], : end + 1].tolist()
                    best[int(tokens[u])] = value, weights[k, sense, end].item(), read, int(j[k])
            self.best[sense] = dict(sorted(best.items(), key=lambda item: -item[1][0])[: self.n])

    def found(self) -> Contexts:
        """Say what was found in all."""
        total = self.moved.sum().item()
        return Contexts(
            occurrences=self.occurrences,
            contexts=[[self._context(w, *entry) for w, entry in best.items()] for best in self.best],
            share=(self.moved / total).tolist() if total else None,
        )

    def _context(self, w: int, value: float, weight: float, ids: list[int], j: int) -> Context:
        last = torch.tensor([0]), torch.tensor([len(ids) - 1])
        with eval_mode(self.model) as model:
            logits = model(torch.tensor([ids], device=self.E.device), at=last).logits[0]  # (V)
        start = j + 1 - len(self.ids)
        first = max(0, start - BEFORE)
        pieces, source = _readable(self.tokenizer, ids[first:]), start - first
        return Context(
            tokens=[*pieces[:source], "".join(pieces[source : j + 1 - first]), *pieces[j + 1 - first :]],
            source=source,
            last=source + len(ids) - 1 - j,
            next=self.tokenizer.token(w),
            predicted=self.tokenizer.token(int(logits[: len(self.E)].argmax())),
            weight=weight,
            contribution=value,
            prompt=ids,
        )


def _readable(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Give the text of each id; a part of a character waits for the rest of it."""
    pieces, shown = [], 0
    for i in range(1, len(ids) + 1):
        piece = tokenizer.decode_after(ids[:shown], ids[shown:i])
        pieces.append("" if piece.endswith("\ufffd") and i < len(ids) else piece)
        shown = i if pieces[-1] else shown
    return pieces
