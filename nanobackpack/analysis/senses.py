"""Read what a Backpack's senses mean: analysis that changes nothing in the model.

A sense vector lives in the space of the output embedding, so E · C(x)_l scores every token of the
vocabulary: the words sense l of x speaks for, and those it speaks against (paper, section 4). And as the
logits are a sum over tokens and senses, each prediction splits exactly into their contributions.

Words and prompts are texts, or lists of ids. No BOS is added to a word, ever; prompts and sentences get
one before them if `Senses(model, bos=True)` asks for it, as a model trained with one needs. Senses are
numbered from 0. Padded ids are never listed. Everything runs on the model's device, in float32.

Letters: K senses, D width, V real tokens (padding excluded), T tokens of a prompt, N of whatever is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanobackpack.analysis.results import (
    Composition,
    Contributions,
    Located,
    PerSense,
    Ranking,
    Scored,
    Similarity,
    Weights,
)
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.edits import Edit
from nanobackpack.runtime import reading
from nanobackpack.text.tokenizer import (
    Bos,
    Text,
    Tokenizer,
    bos_ids,
    find_word,
    needs_tokenizer,
    text_ids,
    token_id,
    word_ids,
)

__all__ = ["Pooling", "Scored", "Senses"]

Pooling = Literal["avg", "first", "contextualized"]
"""The senses of a word of several tokens: their mean; those of the first; or s_l = Σ_j α[l,n,j] C(x_j)_l
at the word's last token n, the word being all the model sees, so that Σ_l E · s_l = its logits."""


class Senses:
    """The senses of one Backpack; with `bos`, prompts begin with the token that begins a document.

    Raises: InputError for a model without senses or tokenizer, or a tokenizer without BOS.
    """

    def __init__(self, model: LanguageModel, bos: Bos = False) -> None:
        if not isinstance(model, BackpackLM):
            raise InputError("this model is a GPT and has no senses: open a Backpack")
        self.model = model
        self.tokenizer: Tokenizer = needs_tokenizer(model.tokenizer)
        self.bos = bos_ids(self.tokenizer, bos)
        self._directions: tuple[tuple[Edit, ...], Tensor] | None = None  # under these edits

    # --- Words ---------------------------------------------------------------------------------

    @property
    def embedding(self) -> Tensor:
        """E of the real tokens, (V, D)."""
        return self.model.wte.weight.detach()[: self.model.config.n_token]

    def word_senses(self, word: Text, pooling: Pooling = "avg") -> Tensor:
        """The senses of a word, (K, D). Raises: InputError for an unknown or empty word."""
        return self.many_senses([word], pooling)[0]

    def many_senses(self, words: Sequence[Text], pooling: Pooling = "avg") -> Tensor:
        """The senses of N words, (N, K, D). Raises: as `word_senses`."""
        rows = [word_ids(self.tokenizer, word) for word in words]
        if not rows:
            raise InputError("no words: give at least one")
        if pooling not in get_args(Pooling):
            raise InputError(f"pooling={pooling!r} is out of range: one of {', '.join(get_args(Pooling))}")
        if pooling == "first":
            return self.model.sense_vectors([row[0] for row in rows])
        if pooling == "contextualized":
            at = [self.model.sense_vectors(row) for row in rows]  # N of (T, K, D)
            pairs = zip(self._last_weights(rows), at, strict=True)
            return torch.stack([torch.einsum("kt,tkd->kd", alpha, senses) for alpha, senses in pairs])
        senses = self.model.sense_vectors([i for row in rows for i in row])  # (all tokens, K, D)
        return torch.stack([part.mean(dim=0) for part in senses.split([len(row) for row in rows])])

    def projection(self, word: Text, pooling: Pooling = "avg") -> Tensor:
        """E · s_l, (K, V): how much each sense of the word speaks for each token."""
        return self.word_senses(word, pooling) @ self.embedding.T  # (K, V)

    def sense_projection(
        self,
        word: Text,
        k: int = 5,
        bottom: bool = False,
        pooling: Pooling = "avg",
        sense: int | Literal["all"] = "all",
    ) -> Ranking:
        """For each sense of the word, or one of them, the k tokens with the highest E · s_l: what it speaks
        for; with `bottom` the lowest: what it speaks against."""
        rows, labels = self._rows(sense)
        scores = self.word_senses(word, pooling)[rows] @ self.embedding.T  # (R, V)
        return self._rank(f"{word}, lowest scores" if bottom else f"{word}", scores, k, bottom, labels)

    def word_arithmetic(self, formula: str, k: int = 5) -> Ranking:
        """As `sense_projection`, of a signed sum such as "+king-man+woman" of words of one token."""
        terms = re.findall(r"([+-]?)([^+-]+)", formula)
        if not terms or "".join(sign + word for sign, word in terms) != formula:
            raise InputError(f"{formula!r} is not a signed sum of words such as +king-man+woman")
        ids = [token_id(self.tokenizer, word.strip()) for _, word in terms]
        signs = torch.tensor([-1.0 if sign == "-" else 1.0 for sign, _ in terms])
        senses = torch.einsum("n,nkd->kd", signs.to(self.embedding), self.model.sense_vectors(ids))
        return self._rank(formula, senses @ self.embedding.T, k)

    def similarity(self, x: Text, y: Text, pooling: Pooling = "avg") -> Similarity:
        """Cosines of the senses of two words: matched (eq. 13), their min (eq. 14), flat, all pairs."""
        a, b = self.many_senses([x, y], pooling)  # (K, D) each
        pairs = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T  # (K, K)
        flat = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
        return Similarity(title=f"{x} and {y}", pairs=pairs, flat=flat)

    def directions(self) -> Tensor:
        """C of every real token, scaled to length 1, (K, V, D): computed once for the edits in force.

        It takes 4·K·V·D bytes: 2.5 GB for K=16, V=50257, D=768, where making it takes a minute on a CPU
        (tests/benchmark_senses.py). `forget` gives the memory back.
        """
        if self._directions is None or self._directions[0] != self.model.edits:
            (V, D), K = self.embedding.shape, self.model.config.n_sense_vector
            table = self.embedding.new_empty(K, V, D)
            starts = range(0, V, 1024)
            for start in tqdm(starts, desc="senses of all tokens", disable=None if V > 1 << 15 else True):
                ids = list(range(start, min(start + 1024, V)))
                senses = F.normalize(self.model.sense_vectors(ids), dim=2)  # (n, K, D)
                table[:, start : start + len(ids)] = senses.transpose(0, 1)
            self._directions = self.model.edits, table
        return self._directions[1]

    def forget(self) -> None:
        """Drop the table of `directions`; needed after the model's weights changed, too."""
        self._directions = None

    def nearest(self, word: Text, k: int = 5, sense: int | Literal["all", "min"] = "all") -> Ranking:
        """The k tokens whose sense has the largest cosine with the same sense of the word: a row for each
        sense, for one of them, or for the least of all cosines ("min", eq. 14). A word of one token is
        not its own neighbour."""
        return self.nearest_many([word], k, sense)[0]

    def nearest_many(
        self, words: Sequence[Text], k: int = 5, sense: int | Literal["all", "min"] = "all"
    ) -> list[Ranking]:
        """`nearest` for N words. The table of all senses is read once for them together, which takes about
        as long for 32 words as for 8."""
        rows, labels = self._rows("all" if sense == "min" else sense)
        mine = F.normalize(self.many_senses(words)[:, rows], dim=2)  # (N, R, D)
        # One product a sense: batched ones are slower on a CPU.
        pairs = zip(self.directions()[rows], mine.transpose(0, 1), strict=True)
        cosines = torch.stack([table @ c.T for table, c in pairs])  # (R, V, N)
        if sense == "min":
            cosines, labels = cosines.amin(dim=0, keepdim=True), ["min"]  # (1, V, N)
        found = []
        for word, scores in zip(words, cosines.unbind(dim=2), strict=True):  # (R, V)
            own = word_ids(self.tokenizer, word)
            if len(own) == 1:
                scores[:, own[0]] = -torch.inf
            n = min(k, scores.size(1) - (len(own) == 1))
            found.append(self._rank(f"{word}, nearest", scores, n, labels=labels))
        return found

    def sense_bias(self, word: Text, first: Text, second: Text) -> PerSense:
        """log softmax(E · s_l) at one token minus at another: which senses prefer which, a heuristic for
        finding senses to change (a softmax over one sense is no probability of the model)."""
        a, b = (token_id(self.tokenizer, t) for t in (first, second))
        scores = self.projection(word)  # (K, V)
        # The softmax cancels: log p(a) - log p(b) is the difference of the scores.
        return PerSense(title=f"{word}: {first} against {second}", values=scores[:, a] - scores[:, b])

    # --- Prompts -------------------------------------------------------------------------------

    def encode(self, prompt: Text) -> list[int]:
        """The ids of a prompt, after BOS if it is asked for.

        Raises: InputError for an empty prompt, one longer than block_size, or an unknown character.
        """
        ids = text_ids(self.tokenizer, prompt)
        if not ids:
            raise InputError("the prompt is empty: give at least one character, as in --prompt 'The '")
        ids, size = self.bos + ids, self.model.config.block_size
        if len(ids) > size:
            raise InputError(f"the prompt has {len(ids)} tokens, this model reads block_size={size}: cut it")
        return ids

    def next_probabilities(self, prompt: Text) -> Tensor:
        """p of each real token as the next one, (V); padding takes part in the softmax."""
        return self._logits(self.encode(prompt)).softmax(dim=0)[: len(self.embedding)]

    def next_tokens(self, prompt: Text, k: int = 10) -> Ranking:
        """The k likeliest next tokens with their probabilities."""
        p = self.next_probabilities(prompt)  # (V)
        return self._rank(f"after {prompt!r}", p[None], k, labels=["next"])

    def active_senses(self, prompt: Text) -> Weights:
        """α at the last position: which senses of which tokens feed the next prediction."""
        ids = self.encode(prompt)
        weights = self._last_weights([ids])[0].T  # (T, K)
        return Weights(title=f"α at the end of {prompt!r}", tokens=self._shown(ids), weights=weights)

    def contributions(self, prompt: Text, next: Text, versus: Text | None = None) -> Contributions:
        """The logit of the next token w as a sum over positions j and senses l, exactly:
        α[l, last, j] · (E_w · C(x_j)_l). With `versus` the difference of two logits, which is the
        logarithm of the ratio of their probabilities."""
        ids = self.encode(prompt)
        pair = [token_id(self.tokenizer, t) for t in (next, versus) if t is not None]
        weights = self._last_weights([ids])[0].T  # (T, K)
        direction = self._direction(*pair)  # (D)
        logits = self._logits(ids)  # (V)
        logit = logits[pair[0]] - (0 if versus is None else logits[pair[1]])
        what = " minus ".join(f"logit of {token!r}" for token in self._shown(pair))
        return Contributions(
            title=f"{what} after {prompt!r}",
            tokens=self._shown(ids),
            weights=weights,
            contributions=weights * (self.model.sense_vectors(ids) @ direction),
            logit=logit.item(),
            probability=logits.softmax(dim=0)[pair].tolist(),
        )

    def contrast_senses(self, a: Text, i: int, b: Text, j: int) -> PerSense:
        """α[l, last, i] in prompt a minus α[l, last, j] in prompt b: which senses of two tokens, perhaps the
        same in two contexts, count differently. Positions count content tokens from 0; `find` gives them.

        Raises: InputError for a position outside its prompt.
        """
        values = []
        for prompt, at in ((a, i), (b, j)):
            ids = self.encode(prompt)
            n = len(ids) - len(self.bos)
            if not 0 <= at < n:
                raise InputError(f"position {at} is outside {prompt!r}: its tokens are 0 to {n - 1}")
            values.append(self._last_weights([ids])[0][:, len(self.bos) + at])  # (K)
        return PerSense(title=f"{a!r}[{i}] against {b!r}[{j}]", values=values[0] - values[1])

    def localize(self, target: Text, prompts: Sequence[Text], k: int = 10) -> Located:
        """Which senses of which tokens speak for `target` as the next token: contributions summed over
        prompts and positions, by token and sense; the k highest."""
        direction = self._direction(token_id(self.tokenizer, target))
        rows = [self.encode(prompt) for prompt in prompts]
        if not rows:
            raise InputError("no prompts: give at least one")
        types, where = torch.tensor([i for row in rows for i in row]).unique(return_inverse=True)  # (U)
        scores = self.model.sense_vectors(types) @ direction  # (U, K)
        alpha = torch.cat(self._last_weights(rows), dim=1)  # (K, all positions)
        mass = torch.zeros_like(scores).index_add_(0, where.to(alpha.device), alpha.T)  # (U, K)
        best = (mass * scores).flatten().topk(min(k, scores.numel()))  # (N)
        row, sense = best.indices // scores.size(1), best.indices % scores.size(1)
        ids = types.to(row.device)[row]
        title = f"senses for {target!r} over {len(rows)} prompts"
        return Located(
            title=title, ids=ids, senses=sense, scores=best.values, tokens=self._shown(ids.tolist())
        )

    def find(self, prompt: Text, word: Text) -> list[slice]:
        """Where a word stands among the prompt's content tokens, each occurrence."""
        return find_word(self.tokenizer, text_ids(self.tokenizer, prompt), word)

    def word_composition(self, word: Text, sentences: Sequence[Text]) -> Composition:
        """How the tokens of a word share its weight at each position from its last token on:
        α[l,i,j] / Σ over the word's j. Each occurrence in each sentence counts once; its `consistency`
        says whether these shares depend on the context.

        Raises: InputError for a word of one token, or one that no sentence holds.
        """
        ids = word_ids(self.tokenizer, word)
        if len(ids) < 2:
            raise InputError(f"{word!r} is one token here and has nothing to share: give a longer word")
        shares, skip = [], len(self.bos)
        for sentence in sentences:
            found = [s for s in self.find(sentence, word) if s.stop - s.start == len(ids)]
            if not found:
                continue
            alpha = self._weights(self.encode(sentence))  # (K, T, T)
            for span in found:
                start, stop = span.start + skip, span.stop + skip
                own = alpha[:, stop - 1 :, start:stop]  # (K, M, W)
                shares.append(own / own.sum(dim=2, keepdim=True))
        if not shares:
            raise InputError(
                f"{word!r} stands in none of the {len(sentences)} sentences: give some that hold it"
            )
        title = f"{word}, {len(shares)} times in {len(sentences)} sentences"
        return Composition(title=title, tokens=self._shown(ids), shares=shares)

    # --- What these share ----------------------------------------------------------------------

    def _rows(self, sense: int | Literal["all"]) -> tuple[slice, list[str]]:
        """The rows of all senses or of one, and their labels. Raises: InputError for one there is not."""
        K = self.model.config.n_sense_vector
        if sense == "all":
            return slice(K), [f"sense {i}" for i in range(K)]
        if not 0 <= sense < K:
            raise InputError(f"sense={sense} is out of range: this model has senses 0 to {K - 1}")
        return slice(sense, sense + 1), [f"sense {sense}"]

    def _weights(self, ids: list[int]) -> Tensor:
        """α of one row of ids, (K, T, T)."""
        return self.model.contextualization(torch.tensor([ids], device=self.embedding.device))[0]

    def _last_weights(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """α at the last position of each row of ids, (K, T) with the row's own T; computed in batches.

        Raises: InputError for a row longer than block_size.
        """
        T = max(map(len, rows))
        if (size := self.model.config.block_size) < T:
            raise InputError(f"{T} tokens are too many, this model reads block_size={size}: cut the text")
        n = max(1, (1 << 25) // (self.model.config.n_sense_vector * T * T))  # 128 MB of α at a time
        found = []
        for start in range(0, len(rows), n):
            part = rows[start : start + n]
            padded = [row + [0] * (T - len(row)) for row in part]  # on the right, where nothing looks
            ids = torch.tensor(padded, device=self.embedding.device)  # (B, T)
            alpha = self.model.contextualization(
                ids, self.model.edits_in_force().on_any_row()
            )  # (B, K, T, T)
            found += [a[:, len(row) - 1, : len(row)] for a, row in zip(alpha, part, strict=True)]
        return found

    def _logits(self, ids: list[int]) -> Tensor:
        """The model's logits after one row of ids, padding included, (vocab_size)."""
        with reading(self.model):
            logits = self.model(torch.tensor([ids], device=self.embedding.device)).logits
        return logits[0, -1]

    def _direction(self, token: int, minus: int | None = None) -> Tensor:
        """E_w, or E_w - E_v, (D)."""
        e = self.embedding[token]
        return e if minus is None else e - self.embedding[minus]

    def _shown(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.token(i) for i in ids]

    def _rank(
        self, title: str, scores: Tensor, k: int, bottom: bool = False, labels: list[str] | None = None
    ) -> Ranking:
        """The first k tokens of each row of scores (R, V)."""
        if k < 1:
            raise InputError(f"k={k} is out of range: list 1 token or more")
        best = scores.topk(min(k, scores.size(1)), dim=1, largest=not bottom)  # (R, k)
        return Ranking(
            title=title,
            labels=labels or [f"sense {sense}" for sense in range(len(scores))],
            ids=best.indices,
            scores=best.values,
            tokens=[self._shown(row) for row in best.indices.tolist()],
        )
