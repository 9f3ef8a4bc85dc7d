"""Change a model from examples: train a few of its senses, and nothing else (Hewitt et al. 2024).

    >>> example = Example("good", encode("The capital of Mauritius is"), [encode(" Port Louis")])
    >>> senses, epochs = finetune_senses(model, [example], texts[:100], texts[100:], Tuning())
    >>> senses.edit(kept(epochs, epsilon=1e-4))     # to apply, save, compose, bake and export, as every edit
    ShiftSenses(tokens=(5121, ...), senses=(3, ...), offsets=...)

An example says what shall follow a prefix, or what shall not. It uses some senses of its tokens a lot. Those
that other text, the background, uses little are given an offset D: C(x)_l + D. Only offsets are trained:

    loss = mean loss of the examples + w · KL(original ‖ new) on the background

With l(s) = -ln p(suffix s | prefix), the kinds of examples, what training makes small, and what is a failure:

    good             l(s)               p(s) < .2          the suffix shall follow
    bad              -l(s)              p(s) > .001        it shall not
    balance          |l(s1) - l(s2)|    ratio > 1.5        both shall be alike
    good-versus-bad  l(s1) - l(s2)      ratio < 16         the first shall be likelier

It is quick since a Backpack is linear in its senses, and α does not know of them. So each text is read once,
and what is left to compute is logits = E · (o + w·D), where w is how much each offset counts. `tune` trains
any other parameters alike: evaluate/canonical.py compares senses with all weights, and with LoRA.

Letters: B texts, T positions, N predictions, V vocabulary, K senses, D width, P pairs of a token and a sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from nanobackpack.analysis.control import ShiftSenses
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.edits import EditLike
from nanobackpack.model.kernels import linear
from nanobackpack.runtime import eval_mode, generator, pad_right

Kind = Literal["good", "bad", "balance", "good-versus-bad"]
KINDS: tuple[Kind, ...] = get_args(Kind)
THRESHOLDS = (0.2, 0.001, 1.5, 16.0)  # of each kind
BACKGROUND = 256  # tokens of it that stand beside an example in training, or one text


class Text(NamedTuple):
    """Token ids, of which those from `start` (1 or more) on are predicted."""

    ids: tuple[int, ...]
    start: int = 1


class Example(NamedTuple):
    """What shall follow a prefix, or shall not: one suffix, or two."""

    kind: Kind
    prefix: Sequence[int]
    suffixes: Sequence[Sequence[int]]

    @property
    def texts(self) -> list[Text]:
        return [Text((*self.prefix, *suffix), len(self.prefix)) for suffix in self.suffixes]


@dataclass(frozen=True)
class Tuning:
    """How to train."""

    learning_rate: float = 0.1  # the first: a cosine brings it to 0
    kl_weight: float = 0.3  # w
    epochs: int = 10
    batch: int = 5  # examples of a step
    per_example: int = 8  # senses that an example may change
    rarity: float = 1000.0  # λ: how much the use of a sense on the background speaks against it
    seed: int = 0


# --- What a model says of texts -------------------------------------------------------------------

Predict: TypeAlias = Callable[[Sequence[Text]], Tensor]
"""The logits of all predictions of some texts, one after the other, (N, V)."""


def predict(model: LanguageModel, texts: Sequence[Text], edits: EditLike = ()) -> Tensor:
    """Compute them by running the model."""
    device = model.wte.weight.device
    where = [(row, at) for row, text in enumerate(texts) for at in range(text.start - 1, len(text.ids) - 1)]
    rows, positions = torch.tensor(where, device=device).unbind(1)  # (N) each
    ids = pad_right([text.ids[:-1] for text in texts], device)  # (B, T)
    logits = model(ids, edits=edits, at=(rows, positions)).logits
    assert logits is not None
    return logits  # (N, V)


def losses(logits: Tensor, texts: Sequence[Text]) -> tuple[Tensor, ...]:
    """Compute the losses in nats of the predicted tokens of each text."""
    targets = [text.ids[text.start :] for text in texts]
    ids = torch.tensor([i for some in targets for i in some], device=logits.device)  # (N)
    return F.cross_entropy(logits, ids, reduction="none").split([*map(len, targets)])


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Compute KL(before ‖ after) of predictions as logits (N, V), the mean in nats."""
    p, q = before.log_softmax(dim=1), after.log_softmax(dim=1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def in_parts(texts: Sequence[Text], tokens: int) -> list[tuple[Text, ...]]:
    """Divide texts into parts of so many tokens, or of one text."""
    n = max(1, tokens * len(texts) // max(1, sum(len(text.ids) for text in texts)))
    return [tuple(texts[i : i + n]) for i in range(0, len(texts), n)]


# --- Examples -------------------------------------------------------------------------------------


def example_losses(examples: Sequence[Example], predict: Predict) -> Tensor:
    """Compute what training makes small, of each example, in nats."""
    texts = [text for example in examples for text in example.texts]
    sums = iter([loss.sum() for loss in losses(predict(texts), texts)])
    found = []
    for kind, _, suffixes in examples:
        first, *other = (next(sums) for _ in suffixes)
        loss = first - other[0] if other else first if kind == "good" else -first
        found.append(loss.abs() if kind == "balance" else loss)
    return torch.stack(found)


@torch.no_grad()
def failures(
    examples: Sequence[Example], predict: Predict, thresholds: Sequence[float] = THRESHOLDS
) -> list[bool]:
    """Tell which examples a model fails."""
    parts = [examples[i : i + 64] for i in range(0, len(examples), 64)]
    found = torch.cat([example_losses(some, predict) for some in parts]).tolist()
    # Of bad and balance a loss is the logarithm of what the threshold is of, else less that logarithm.
    signs = [1 if example.kind in ("bad", "balance") else -1 for example in examples]
    limits = [math.log(thresholds[KINDS.index(example.kind)]) for example in examples]
    return [loss > sign * limit for loss, sign, limit in zip(found, signs, limits, strict=True)]


# --- Training -------------------------------------------------------------------------------------


class Epoch(NamedTuple):
    """What was trained, after an epoch."""

    number: int
    general_loss: float  # in nats a token
    original_loss: float
    parameters: list[Tensor]


def tune(
    parameters: Sequence[Tensor], before: Predict, after: Predict, examples: Sequence[Example],
    background: Sequence[Text], general: Sequence[Text], how: Tuning,
) -> Iterator[Epoch]:  # fmt: skip
    """Train parameters, which `after` depends on; yield how far it is after each epoch."""
    n, others, draw = len(examples), cycle(in_parts(background, BACKGROUND)), generator(how.seed)
    adam = torch.optim.Adam(parameters, how.learning_rate, betas=(0.9, 0.995))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, how.epochs * math.ceil(n / how.batch))
    original = _mean_loss(before, general)
    for number in tqdm(range(1, how.epochs + 1), "epochs", disable=None, leave=False):
        order = torch.randperm(n, generator=draw).tolist()
        for first in range(0, n, how.batch):
            step, some = [examples[i] for i in order[first : first + how.batch]], next(others)
            with torch.no_grad():
                usual = before(some)
            loss = example_losses(step, after).mean() + how.kl_weight * divergence(usual, after(some))
            if not loss.isfinite():
                raise InputError(f"the loss is no number in epoch {number}: lower the learning rate")
            adam.zero_grad()
            loss.backward()
            adam.step()
            cosine.step()
        yield Epoch(number, _mean_loss(after, general), original, [p.detach().clone() for p in parameters])


@torch.no_grad()
def _mean_loss(predict: Predict, texts: Sequence[Text]) -> float:
    parts = [losses(predict(some), some) for some in in_parts(texts, 16 * BACKGROUND)]
    return torch.cat([loss for part in parts for loss in part]).double().mean().item()


def kept(epochs: Iterable[Epoch], epsilon: float) -> Epoch | None:
    """Find the last epoch whose general loss is at most 1 + ε times that of the model as it was."""
    fit = (epoch for epoch in epochs if epoch.general_loss <= (1 + epsilon) * epoch.original_loss)
    return max(fit, key=lambda epoch: epoch.number, default=None)


# --- Senses ---------------------------------------------------------------------------------------


class Shifted:
    """Predictions of a model under an offset of each of P senses of tokens.

    Each text is read once: o is what the model sums without offsets, w how much each of them counts.
    """

    def __init__(self, model: BackpackLM, pairs: Sequence[tuple[int, int]]) -> None:
        if model.edits_in_force().on_alpha:
            raise InputError("edits of the weights α are in force, which may depend on the senses: end them")
        self.model, self.E, self.pairs = model, model.wte.weight.detach(), pairs
        self.offsets = torch.zeros(len(pairs), self.E.size(1), device=self.E.device, requires_grad=True)
        self.known: dict[Text, tuple[Tensor, Tensor]] = {}

    def before(self, texts: Sequence[Text]) -> Tensor:
        o, _ = self.sums(texts)
        return linear(o, self.E).float()  # (N, V)

    def after(self, texts: Sequence[Text]) -> Tensor:
        o, w = self.sums(texts)
        return linear(o + w @ self.offsets, self.E).float()  # (N, V)

    def sums(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Give o (N, D) and w (N, P)."""
        self.read([text for text in dict.fromkeys(texts) if text not in self.known])
        o, w = (torch.cat(parts) for parts in zip(*(self.known[text] for text in texts), strict=True))
        return o, w

    @torch.no_grad()
    def read(self, texts: Sequence[Text]) -> None:
        for some, ids, alpha in weights(self.model, texts):
            different, where = ids.unique(return_inverse=True)
            C = self.model.sense_vectors(different)[where].transpose(1, 2)  # (B, K, T, D)
            o = (alpha @ C).sum(dim=1)  # (B, T, D)
            w = [
                (alpha[:, sense] @ (ids == token).to(o.dtype)[..., None])[..., 0]
                for token, sense in self.pairs
            ]
            for text, *sums in zip(some, o, torch.stack(w, dim=2), strict=True):  # (T, D), (T, P)
                first, end = text.start - 1, len(text.ids) - 1
                self.known[text] = sums[0][first:end], sums[1][first:end]  # (N, D), (N, P)

    def edit(self, epoch: Epoch) -> ShiftSenses:
        tokens, senses = zip(*self.pairs, strict=True)
        return ShiftSenses(tokens, senses, epoch.parameters[0].cpu())


def weights(model: BackpackLM, texts: Sequence[Text]) -> Iterator[tuple[Sequence[Text], Tensor, Tensor]]:
    """Read texts, some at a time; give them, their ids (B, T), and α (B, K, T, T)."""
    for some in in_parts(texts, 2048):
        ids = pad_right([text.ids[:-1] for text in some], model.wte.weight.device)  # (B, T)
        yield some, ids, model.contextualization(ids)


@torch.no_grad()
def sense_use(model: BackpackLM, texts: Sequence[Text]) -> Tensor:
    """Sum α over the places of each token, the mean over all predictions of the texts: (V, K)."""
    used = model.wte.weight.new_zeros(model.config.vocab_size, model.config.n_sense_vector)
    for some, ids, alpha in weights(model, texts):
        at = torch.arange(ids.size(1), device=ids.device)  # (T)
        predicts = torch.stack([(at >= text.start - 1) & (at < len(text.ids) - 1) for text in some])  # (B, T)
        of_each = torch.einsum("bknt,bn->btk", alpha, predicts.to(alpha.dtype))  # (B, T, K)
        used.index_add_(0, ids.flatten(), of_each.flatten(0, 1))
    return used / sum(len(text.ids) - text.start for text in texts)


def select_senses(
    model: BackpackLM, examples: Sequence[Example], background: Sequence[Text], how: Tuning
) -> list[tuple[int, int]]:
    """Choose (token, sense): for each example by the use in it, less λ times that on the background."""
    usual, chosen = sense_use(model, background), dict[tuple[int, int], None]()
    for example in tqdm(examples, "senses", disable=None, leave=False):
        used = sense_use(model, example.texts)  # (V, K)
        score = (used - how.rarity * usual).masked_fill(used == 0, -math.inf).flatten()  # (V·K)
        best = score.topk(min(how.per_example, int((used > 0).sum()))).indices.tolist()
        chosen |= dict.fromkeys(divmod(i, used.size(1)) for i in best)
    return list(chosen)


def finetune_senses(
    model: LanguageModel, examples: Sequence[Example], background: Sequence[Text], general: Sequence[Text],
    how: Tuning,
) -> tuple[Shifted, list[Epoch]]:  # fmt: skip
    """Train offsets of the senses that the examples use; `edit` of what is returned makes an edit of those of
    an epoch. The background takes part in training, on the general text the loss is measured."""
    if not isinstance(model, BackpackLM):
        raise InputError("a GPT has no senses to finetune: open a Backpack")
    with eval_mode(model) as ready:
        shifted = Shifted(ready, select_senses(ready, examples, background, how))
    epochs = tune([shifted.offsets], shifted.before, shifted.after, examples, background, general, how)
    return shifted, list(epochs)
