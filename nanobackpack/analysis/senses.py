"""Read what a Backpack's senses mean, and why it predicts what it predicts. Nothing in the model changes.

Every token x has K sense vectors C(x)_1 ... C(x)_K, the same in every context; the context only decides, by
weights α, how much each of them counts. Their weighted sum meets the output embedding E, and nothing else:

    logits = Σ_j Σ_l  α[l, last, j] · (E · C(x_j)_l)

So two questions, which are answered approximately for other models, have exact answers for this one:

* What does one sense predict? E · C(x)_l scores every token of the vocabulary: a logit lens on senses,
  through which no further layer distorts the view. That is `Senses.sense_projection` (paper, section 4).
* Why this next token? Its logit is the sum above, one term for each sense of each token of the prompt: exact
  direct logit attribution, without a rest. That is `Senses.contributions`.

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

from nanobackpack.analysis.prompts import as_read, cleaned
from nanobackpack.analysis.results import (
    Composition,
    Contributions,
    Located,
    PerSense,
    Pooling,
    Ranking,
    Similarity,
    Weights,
)
from nanobackpack.config import wrong_type
from nanobackpack.errors import InputError, short_repr
from nanobackpack.model.backpack import BackpackLM, LanguageModel, check_model
from nanobackpack.model.edits import Edit
from nanobackpack.runtime import eval_mode, pad_right
from nanobackpack.text.tokenizer import Bos, TextOrIds, Tokenizer
from nanobackpack.text.words import bos_ids, find_word, needs_tokenizer, several, token_id


class Senses:
    """The senses of one Backpack. For example, of the Chinese model of docs/senses.md:

    >>> senses = nb.Senses(nb.load_model("out-zh"), bos="auto")
    >>> print(senses.sense_projection("天", k=6, sense=5).table())
    # 天
      sense 5  '子'  '下'  '津'  '色'  '水'  '意'

    So sense 5 of 天 (sky) gives what makes words of it: 天子 emperor, 天下 the world, 天津 Tianjin. And why
    does the model continue 却说曹 with 操 (Cao Cao) rather than with 丕, his son?

    >>> why = senses.contributions("却说曹", "操", versus="丕")
    >>> why.contributions.shape     # T tokens, with BOS, of K senses each
    torch.Size([4, 16])
    >>> why.ranked(2)               # the two largest of the 64: senses 9 and 10 of BOS
    [(0, 9, 1.07...), (0, 10, 0.79...)]

    Words and prompts are texts or lists of ids. Senses and positions count from 0. Prompts and sentences
    begin with BOS if `bos` asks for it, as a model trained with one needs; words never do. With `special`
    names such as <|endoftext|> in prompts are these tokens; as words they always are. With `typed` a prompt
    that is too long, or ends as training never had it, is read with a warning (prompts.py). Padded ids take
    part in a softmax but are never listed. All is computed on the model's device, in float32, under the
    edits in force. It comes back as a tensor or a result of analysis/results.py, with `.table()`,
    `.to_json()` and often `.plot(path)`. A `Ranking` has `ids`, `scores` and `tokens` (R, k) of its R rows,
    best first, and `labels` (R) that say what a row is.
    """

    def __init__(
        self, model: LanguageModel, bos: Bos = False, *, special: bool = False, typed: bool = False
    ) -> None:
        check_model(model)
        if not isinstance(model, BackpackLM):
            raise InputError("this model is a GPT and has no senses: open a Backpack")
        self.model = model
        self.tokenizer: Tokenizer = needs_tokenizer(model.tokenizer)
        self.bos = bos_ids(self.tokenizer, bos)
        self.special, self.typed = special, typed
        self._directions: tuple[tuple[Edit, ...], Tensor] | None = None  # and the edits they hold under

    # --- Words: what do senses mean? -----------------------------------------------------------

    @property
    def embedding(self) -> Tensor:
        """E of the real tokens, (V, D)."""
        return self.model.wte.weight.detach()[: self.model.config.n_token]

    def word_senses(self, word: TextOrIds, pooling: Pooling = "avg") -> Tensor:
        """Give the senses of a word, (K, D); `pooling` says what they are for a word of several tokens."""
        return self.many_senses([word], pooling)[0]

    def many_senses(self, words: Sequence[TextOrIds], pooling: Pooling = "avg") -> Tensor:
        """Give the senses of N words, (N, K, D), as `word_senses` does."""
        rows = [self.tokenizer.word_ids(word) for word in several(words)]
        if not rows:
            raise InputError("no words: give at least one")
        if pooling not in get_args(Pooling):
            raise wrong_type("pooling", short_repr(pooling), Pooling)
        if pooling == "first":
            return self.model.sense_vectors([row[0] for row in rows])
        # The senses of all tokens of all words at once, (all tokens, K, D), then word by word.
        parts = self.model.sense_vectors([i for row in rows for i in row]).split([len(row) for row in rows])
        if pooling == "avg":
            return torch.stack([senses.mean(dim=0) for senses in parts])
        pairs = zip(self._last_weights(rows), parts, strict=True)
        return torch.stack([torch.einsum("kt,tkd->kd", alpha, senses) for alpha, senses in pairs])

    def projection(self, word: TextOrIds, pooling: Pooling = "avg") -> Tensor:
        """Give E · s_l, (K, V): the score of every token under each sense of the word."""
        return self.word_senses(word, pooling) @ self.embedding.T  # (K, V)

    def sense_projection(
        self,
        word: TextOrIds,
        k: int = 5,
        bottom: bool = False,
        pooling: Pooling = "avg",
        sense: int | Literal["all"] = "all",
    ) -> Ranking:
        """List the k tokens that each sense of a word, or one of them, promotes most: the highest E · s_l,
        ids and scores (R, k). With `bottom` the lowest: what it demotes."""
        rows, labels = self._rows(sense)
        scores = self.word_senses(word, pooling)[rows] @ self.embedding.T  # (R, V)
        return self._rank(f"{word}, lowest scores" if bottom else f"{word}", scores, k, bottom, labels)

    def word_arithmetic(self, formula: str, k: int = 5) -> Ranking:
        """List what a signed sum of one-token words promotes: senses.word_arithmetic("+king-man+woman")."""
        # Every character belongs to a term, so that "a--b" and "+" are refused.
        terms = re.findall(r"([+-]?)([^+-]+)", formula)
        if not terms or "".join(sign + word for sign, word in terms) != formula:
            raise InputError(f"{formula!r} is not a signed sum of words such as +king-man+woman")
        ids = [token_id(self.tokenizer, word.strip()) for _, word in terms]
        signs = torch.tensor([-1.0 if sign == "-" else 1.0 for sign, _ in terms])  # (N)
        senses = torch.einsum("n,nkd->kd", signs.to(self.embedding), self.model.sense_vectors(ids))
        return self._rank(formula, senses @ self.embedding.T, k)

    def similarity(self, x: TextOrIds, y: TextOrIds, pooling: Pooling = "avg") -> Similarity:
        """Compare two words by the cosines of their senses, as in senses.similarity("king", "queen").min.

        `pairs` (K, K) has every sense with every one, `cosine` (K) its diagonal (paper, eq. 13), `min` and
        `max` are those of the diagonal (eq. 14), and `flat` compares all senses end to end.
        """
        a, b = self.many_senses([x, y], pooling)  # (K, D) each
        pairs = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T  # (K, K)
        flat = F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()
        return Similarity(title=f"{x} and {y}", pairs=pairs, flat=flat)

    def directions(self) -> Tensor:
        """Give C of every real token, scaled to length 1, (K, V, D): computed once for the edits in force.

        It takes 4·K·V·D bytes: 2.5 GB for K=16, V=50257, D=768, where making it takes a minute on a CPU.
        `forget` gives the memory back.
        """
        edits, known = self.model.edits, self._directions
        if known is None or known[0] != edits:
            (V, D), K = self.embedding.shape, self.model.config.n_sense_vector
            table = self.embedding.new_empty(K, V, D)
            starts = range(0, V, 1024)
            for start in tqdm(starts, desc="senses of all tokens", disable=None if V > 1 << 15 else True):
                ids = list(range(start, min(start + 1024, V)))
                senses = F.normalize(self.model.sense_vectors(ids), dim=2)  # (n, K, D)
                table[:, start : start + len(ids)] = senses.transpose(0, 1)
            known = self._directions = edits, table
        return known[1]

    def forget(self) -> None:
        """Drop the table of `directions`; needed after the model's weights changed, too."""
        self._directions = None

    def nearest(self, word: TextOrIds, k: int = 5, sense: int | Literal["all", "min"] = "all") -> Ranking:
        """List the k tokens whose sense has the highest cosine with the word's, ids and scores (R, k).

        A row for each sense, for one of them, or for the least of all K cosines, as in
        senses.nearest("king", sense="min") (eq. 14). A word of one token is not its own neighbour.
        """
        return self.nearest_many([word], k, sense)[0]

    def nearest_many(
        self, words: Sequence[TextOrIds], k: int = 5, sense: int | Literal["all", "min"] = "all"
    ) -> list[Ranking]:
        """Do `nearest` for N words; 32 take about as long as 8, since `directions` is read only once."""
        rows, labels = self._rows("all" if sense == "min" else sense)
        mine = F.normalize(self.many_senses(words)[:, rows], dim=2)  # (N, R, D)
        # One matrix product a sense: a batched one is slower on a CPU.
        pairs = zip(self.directions()[rows], mine.transpose(0, 1), strict=True)
        cosines = torch.stack([table @ c.T for table, c in pairs])  # (R, V, N)
        if sense == "min":
            cosines, labels = cosines.amin(dim=0, keepdim=True), ["min"]  # (1, V, N)
        found = []
        for word, scores in zip(words, cosines.unbind(dim=2), strict=True):  # (R, V)
            own = self.tokenizer.word_ids(word)
            if len(own) == 1:  # leave the word itself out
                scores[:, own[0]] = -torch.inf
            n = min(k, scores.size(1) - (len(own) == 1))
            found.append(self._rank(f"{word}, nearest", scores, n, labels=labels))
        return found

    def sense_bias(self, word: TextOrIds, first: TextOrIds, second: TextOrIds) -> PerSense:
        """Say which senses prefer which of two tokens: senses.sense_bias("nurse", "she", "he").ranked().

        `values` (K) are log softmax(E · s_l) at one minus at the other. A heuristic for finding senses to
        change: the model itself never takes the softmax of one sense.
        """
        a, b = (token_id(self.tokenizer, t) for t in (first, second))
        scores = self.projection(word)  # (K, V)
        # The softmax cancels: log p(a) - log p(b) is the difference of the scores.
        return PerSense(title=f"{word}: {first} against {second}", values=scores[:, a] - scores[:, b])

    # --- Prompts: why this next token? ---------------------------------------------------------

    def encode(self, prompt: TextOrIds) -> list[int]:
        """Give the ids of a prompt, after BOS if it is asked for: 1 to block_size of them."""
        if self.typed and isinstance(prompt, str):
            prompt = cleaned(prompt)
        ids, size = self.tokenizer.text_ids(prompt, self.special), self.model.config.block_size
        if not ids:
            raise InputError("the prompt is empty: give at least one character, as in --prompt 'The '")
        if ids[: len(self.bos)] != self.bos:  # unless the prompt names it
            ids = self.bos + ids
        if self.typed:
            return as_read(self.model, ids)
        if len(ids) > size:
            raise InputError(f"the prompt has {len(ids)} tokens, this model reads block_size={size}: cut it")
        return ids

    def next_probabilities(self, prompt: TextOrIds) -> Tensor:
        """Give p of each real token as the next one, (V); padding takes part in the softmax."""
        return self._logits(self.encode(prompt)).softmax(dim=0)[: len(self.embedding)]

    def next_tokens(self, prompt: TextOrIds, k: int = 10) -> Ranking:
        """List the k likeliest next tokens; `scores` (1, k) are their probabilities."""
        p = self.next_probabilities(prompt)  # (V)
        return self._rank(f"after {prompt!r}", p[None], k, labels=["next"])

    def active_senses(self, prompt: TextOrIds) -> Weights:
        """Give α at the last position, `weights` (T, K), as in senses.active_senses("The nurse").table():
        how much each sense of each token counts for the next one."""
        ids = self.encode(prompt)
        weights = self._last_weights([ids])[0].T  # (T, K)
        return Weights(title=f"α at the end of {prompt!r}", tokens=self._shown(ids), weights=weights)

    def contributions(
        self, prompt: TextOrIds, token: TextOrIds, versus: TextOrIds | None = None
    ) -> Contributions:
        """Split the logit of the next token w exactly (direct logit attribution), or with `versus` the
        difference of two logits, the logarithm of how many times likelier w is.

        `contributions` (T, K), α[l, last, j] · (E_w · C(x_j)_l), sum to `logit`, which the model computes;
        `weights` (T, K) are the α, `probability` has p(w) and p(versus).
        """
        ids = self.encode(prompt)
        pair = [token_id(self.tokenizer, t) for t in (token, versus) if t is not None]
        logits = self._logits(ids)  # (V)
        # Both are E_w and the logit of w, or their differences from those of versus.
        direction, logit = self.embedding[pair[0]], logits[pair[0]]  # (D), scalar
        if versus is not None:
            direction, logit = direction - self.embedding[pair[1]], logit - logits[pair[1]]
        weights = self._last_weights([ids])[0].T  # (T, K)
        what = " minus ".join(f"logit of {shown!r}" for shown in self._shown(pair))
        return Contributions(
            title=f"{what} after {prompt!r}",
            tokens=self._shown(ids),
            weights=weights,
            contributions=weights * (self.model.sense_vectors(ids) @ direction),
            logit=logit.item(),
            probability=logits.softmax(dim=0)[pair].tolist(),
        )

    def contrast_senses(self, a: TextOrIds, i: int, b: TextOrIds, j: int) -> PerSense:
        """Say which senses of two tokens count differently, perhaps of one token in two contexts, as in
        senses.contrast_senses("by the river bank", 3, "he robbed a bank", 3).

        `values` (K) are α[l, last, i] in prompt a minus α[l, last, j] in prompt b. Positions count without
        BOS; `find` gives them.
        """
        values = []
        for prompt, at in ((a, i), (b, j)):
            ids = self.encode(prompt)
            n = len(ids) - len(self.bos)
            if not 0 <= at < n:
                raise InputError(f"position {at} is outside {prompt!r}: its tokens are 0 to {n - 1}")
            values.append(self._last_weights([ids])[0][:, len(self.bos) + at])  # (K)
        return PerSense(title=f"{a!r}[{i}] against {b!r}[{j}]", values=values[0] - values[1])

    def localize(self, target: TextOrIds, prompts: Sequence[TextOrIds], k: int = 10) -> Located:
        """List the k (token, sense) that promote the next token `target` most over some prompts, as in
        senses.localize("she", ["The nurse said that", "My aunt knew that"]).

        `scores` (k) are contributions summed over prompts and positions, of `ids` (k) and `senses` (k).
        """
        direction = self.embedding[token_id(self.tokenizer, target)]  # (D)
        rows = [self.encode(prompt) for prompt in several(prompts)]
        if not rows:
            raise InputError("no prompts: give at least one")
        # Score each different token once, and add up the weight it gets at all of its positions.
        types, where = torch.tensor([i for row in rows for i in row]).unique(return_inverse=True)  # (U)
        scores = self.model.sense_vectors(types) @ direction  # (U, K)
        alpha = torch.cat(self._last_weights(rows), dim=1)  # (K, all positions)
        mass = torch.zeros_like(scores).index_add_(0, where.to(alpha.device), alpha.T)  # (U, K)
        best = (mass * scores).flatten().topk(min(k, scores.numel()))  # (k)
        row, sense = best.indices // scores.size(1), best.indices % scores.size(1)
        ids = types.to(row.device)[row]
        title = f"senses for {target!r} over {len(rows)} prompts"
        return Located(
            title=title, ids=ids, senses=sense, scores=best.values, tokens=self._shown(ids.tolist())
        )

    def find(self, prompt: TextOrIds, word: TextOrIds) -> list[slice]:
        """Find where a word stands among the prompt's tokens (without BOS), each occurrence."""
        return find_word(self.tokenizer, self.tokenizer.text_ids(prompt, self.special), word)

    def word_composition(self, word: TextOrIds, sentences: Sequence[TextOrIds]) -> Composition:
        """Say how the W tokens of a word share its weight, and whether that depends on the context.

        `shares` has for each of S occurrences (K, M, W): α[l,i,j] / Σ over the word's j, at the M positions i
        from its last token on. `mean` (K, W), `deviation` (S, K) and `consistency` (3 counts) sum them up.
        """
        ids = self.tokenizer.word_ids(word)
        if len(ids) < 2:
            raise InputError(f"{word!r} is one token here and has nothing to share: give a longer word")
        shares, skip = [], len(self.bos)
        for sentence in several(sentences):
            found = [s for s in self.find(sentence, word) if s.stop - s.start == len(ids)]
            if not found:
                continue
            row = torch.tensor([self.encode(sentence)], device=self.embedding.device)  # (1, T)
            alpha = self.model.contextualization(row)[0]  # (K, T, T)
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
        """Select the rows of all senses, or of one, with their labels."""
        K = self.model.config.n_sense_vector
        if sense == "all":
            return slice(K), [f"sense {i}" for i in range(K)]
        if not 0 <= sense < K:
            raise InputError(f"sense={sense} is out of range: this model has senses 0 to {K - 1}")
        return slice(sense, sense + 1), [f"sense {sense}"]

    def _last_weights(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """Compute α at the last position of each row of ids, (K, T) with the row's own T, in batches."""
        T = max(map(len, rows))
        if (size := self.model.config.block_size) < T:
            raise InputError(f"{T} tokens are too many, this model reads block_size={size}: cut the text")
        n = max(1, (1 << 25) // (self.model.config.n_sense_vector * T * T))  # 128 MB of α at a time
        found = []
        for start in range(0, len(rows), n):
            part = rows[start : start + n]
            # Each row is read at its own last token, which never looks at the padding after it.
            alpha = self.model.contextualization(pad_right(part, self.embedding.device))  # (B, K, T, T)
            found += [a[:, len(row) - 1, : len(row)] for a, row in zip(alpha, part, strict=True)]
        return found

    def _logits(self, ids: list[int]) -> Tensor:
        """Compute the model's logits after one row of ids, padding included, (vocab_size)."""
        with eval_mode(self.model) as model:
            logits = model(torch.tensor([ids], device=self.embedding.device)).logits
        return logits[0, -1]

    def _shown(self, ids: Sequence[int]) -> list[str]:
        return [self.tokenizer.token(i) for i in ids]

    def _rank(
        self, title: str, scores: Tensor, k: int, bottom: bool = False, labels: Sequence[str] = ()
    ) -> Ranking:
        """List the first k tokens of each row of scores (R, V)."""
        if k < 1:
            raise InputError(f"k={k} is out of range: list 1 token or more")
        best = scores.topk(min(k, scores.size(1)), dim=1, largest=not bottom)  # (R, k)
        return Ranking(
            title=title,
            labels=list(labels) or [f"sense {sense}" for sense in range(len(scores))],
            ids=best.indices,
            scores=best.values,
            tokens=[self._shown(row) for row in best.indices.tolist()],
        )
