"""What the study of canonical examples compares: senses, all weights, LoRA, each with drawn settings.

    for epsilon, found in tuned(model, "gpt, LoRA", taught, draw_trial("gpt, LoRA", 0)).items():
        predict(found.model, texts, edits=found.edits)

All three are trained by analysis/finetuning.py, with the same losses, optimizer and number of epochs.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.analysis.finetuning import Epoch, Example, Text, Tuning
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import EditLike

    Taught: TypeAlias = tuple[Sequence[Example], Sequence[Text], Sequence[Text]]
    """Examples, the background, and the text that the general loss is of."""

EPSILONS = (1e-2, 1e-3, 1e-4, 1e-5)
METHODS = ("backpack, senses", "backpack, all weights", "backpack, LoRA", "gpt, all weights", "gpt, LoRA")


class Trial(NamedTuple):
    """Settings to try."""

    how: Tuning
    rank: int  # of LoRA


def draw_trial(method: str, i: int) -> Trial:
    from nanobackpack.analysis.finetuning import Tuning

    # The same places of all ranges, which lie around what was seen to work: evenly spread, however many.
    x, y = (0.5 + 0.7549 * i) % 1, (0.5 + 0.5698 * i) % 1
    middle = {"senses": -1.3, "weights": -2.75, "LoRA": -2.2}[method.split()[-1]]
    dice = random.Random(i)
    how = Tuning(
        learning_rate=10 ** (middle + 1.8 * (x - 0.5)), kl_weight=10 ** (0.5 + 1.5 * y), epochs=30, batch=2,
        per_example=dice.choice((4, 8, 11)), rarity=dice.choice((0.0, 1.0, 10.0, 1000.0)),
    )  # fmt: skip
    return Trial(how, rank=dice.choice((4, 8, 16)))


class Tuned(NamedTuple):
    """A model as an epoch left it."""

    model: LanguageModel
    edits: EditLike
    changed: int
    """Numbers that are others than they were."""


def tuned(model: LanguageModel, method: str, taught: Taught, trial: Trial) -> dict[float, Tuned]:
    """Finetune a model; give what is kept at each ε."""
    from nanobackpack.analysis.finetuning import finetune_senses, kept, predict, tune

    given = *taught, trial.how
    finish: Callable[[Epoch], Tuned]
    if method.endswith("senses"):
        shifted, epochs = finetune_senses(model, *given)
        finish = lambda epoch: Tuned(model, shifted.edit(epoch), shifted.offsets.numel())  # noqa: E731
    else:
        changed = copy.deepcopy(model)
        lora = method.endswith("LoRA")
        parameters = low_rank(changed, trial) if lora else list(changed.parameters())
        before = cache(partial(predict, model))  # of the same background again and again
        epochs = list(tune(parameters, before, partial(predict, changed), *given))
        finish = lambda epoch: Tuned(  # noqa: E731
            with_weights(changed, parameters, epoch), (), sum(p.numel() for p in parameters)
        )
    chosen = {epsilon: kept(epochs, epsilon) for epsilon in EPSILONS}
    # Of most epochs several ε agree.
    done = {epoch.number: finish(epoch) for epoch in chosen.values() if epoch}
    return {e: done[epoch.number] if epoch else Tuned(model, (), 0) for e, epoch in chosen.items()}


def with_weights(model: LanguageModel, parameters: Sequence[Tensor], epoch: Epoch) -> LanguageModel:
    """Copy a model as it was after an epoch."""
    import torch

    with torch.no_grad():
        for p, value in zip(parameters, epoch.parameters, strict=True):
            p.copy_(value)
    return copy.deepcopy(model)


def low_rank(model: LanguageModel, trial: Trial) -> Sequence[Tensor]:
    """Give every linear layer W + B·A in place of W (Hu et al. 2021); return all A and B, B being 0."""
    import torch
    from torch import nn

    class LowRank(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer, (rows, columns) = layer, layer.weight.shape
            self.A = nn.Parameter(torch.randn(trial.rank, columns, generator=draws) / columns**0.5)
            self.B = nn.Parameter(torch.zeros(rows, trial.rank))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x @ self.A.T @ self.B.T

    draws, added = torch.Generator().manual_seed(trial.how.seed), list[nn.Parameter]()
    for part in list(model.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                low = LowRank(layer)
                setattr(part, name, low.eval())
                added += [low.A, low.B]
    return added
