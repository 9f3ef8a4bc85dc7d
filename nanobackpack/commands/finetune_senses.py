"""Change a model from examples of what it shall say: a few senses are trained, and become an edit.

    nanobackpack finetune-senses --out_dir=out-en --examples facts.jsonl --save edit.safetensors
    nanobackpack finetune-senses --init_from=words-small --examples facts.jsonl --test longer.jsonl

Each line is an example, {"prefix": "The capital of Mauritius is", "suffix": " Port Louis"}; with
"kind": "bad" it is what shall not be said. {"prefix": "The nurse said", "suffix1": " he", "suffix2": " she"}
asks that both be as likely; with "kind": "good-versus-bad" the first shall be likelier. A suffix begins with
its space. `--test` has longer texts of the same form, in which the change should hold too, `--hard_negatives`
such as are near, but should stay as they are.

Training holds on to what the model predicts of other text: `--held_out`, else what was held out in training
or, if that is not here, texts that the model writes. Kept is the last epoch in which the loss on another part
of it is at most 1 + `--epsilon` times what it was (analysis/finetuning.py). By `--thresholds` a failure is a
good suffix less probable than the first number, a bad one more probable than the second, a ratio above the
third of two that shall be as likely, and one below the fourth where the first shall be likelier.

Where epsilon stops it before the examples hold, smaller steps come further:
`--learning_rate=0.03 --epochs=30`. Where no sense of a word that matters was chosen, raise
`--per_example`; then `--epsilon`, the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

from nanobackpack.analysis.results import Result, report, table
from nanobackpack.config import AnalysisConfig, at_least, out_of_range
from nanobackpack.errors import InputError
from nanobackpack.evaluate.cost import CostConfig
from nanobackpack.evaluate.examples import other_texts, read_examples

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel

REMEDY = "raise --epsilon, or lower --learning_rate"


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(AnalysisConfig, CostConfig):
    """Sense finetuning from examples."""

    examples: str = ""
    """File of examples, JSON lines."""
    test: str = ""
    """File of longer texts, to test the change on."""
    hard_negatives: str = ""
    """File of texts that are near, but should stay as they are."""
    learning_rate: float = 0.1
    """The first; it falls to 0."""
    kl_weight: float = 0.3
    """How much it counts to stay near the model on other text."""
    epochs: int = 10
    """Passes through the examples."""
    per_example: int = 8
    """Senses that an example may change."""
    rarity: float = 1000.0
    """How much the use of a sense in other text speaks against changing it."""
    epsilon: float = 1e-4
    """The loss on other text may grow by this part of it."""
    thresholds: tuple[float, ...] = (0.2, 0.001, 1.5, 16.0)
    """What is a failure: of good, bad, balance and good-versus-bad."""
    save: str = ""
    """Write the edit to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("epochs", 1), ("per_example", 1), ("epsilon", 0)):
            at_least(self, name, low)
        # More than this float32 could not compute with, and the loss would say it of another setting.
        for name in ("rarity", "kl_weight"):
            if not 0 <= getattr(self, name) <= 1e9:
                raise out_of_range(name, getattr(self, name), "a number from 0 up to 1e9")
        if not self.learning_rate:
            raise out_of_range("learning_rate", self.learning_rate, "above 0, or nothing changes")
        if not self.examples:
            raise InputError("examples is empty: name a file of JSON lines, as in --examples facts.jsonl")
        if len(self.thresholds) != 4 or min(self.thresholds) <= 0:
            raise InputError("thresholds must be four numbers above 0: good, bad, balance, good-versus-bad")


@dataclass(frozen=True, kw_only=True)
class Finetuning(Result):
    """What sense finetuning did."""

    sets: dict[str, dict[str, float]]
    """Of each file: examples, failures before and after, KL where the suffix is predicted, in nats."""
    background: str
    general_loss: tuple[float, float]
    """Before and after, in nats a token."""
    epoch: int
    """The one that is kept, 0: none."""
    vectors: int
    """Sense vectors that are changed, of all:"""
    of: int

    def table(self) -> str:
        rows = [
            [name, f"{s['n']:.0f}", f"{s['before']:.0%}", f"{s['after']:.0%}", f"{s['kl']:.4f}"]
            for name, s in self.sets.items()
        ]
        before, after = self.general_loss
        kept = f"epoch {self.epoch}" if self.epoch else f"no epoch: {REMEDY}"
        lines = [
            table(self.title, ["", "n", "failures before", "after", "KL"], rows),
            f"  loss on {self.background}: {before:.5f}, then {after:.5f} ({after / before - 1:+.1e} of it)",
            f"  kept: {kept}; {self.vectors:,} of {self.of:,} sense vectors changed",
        ]
        return "\n".join(lines)


def main(settings: FinetuneConfig) -> None:
    report(settings, lambda model: finetune(model, settings))


def finetune(model: LanguageModel, settings: FinetuneConfig) -> Finetuning:
    """Do what the settings ask for."""
    from nanobackpack.analysis import control
    from nanobackpack.analysis import finetuning as ft
    from nanobackpack.runtime import eval_mode

    files = {"examples": settings.examples, "test": settings.test, "hard negatives": settings.hard_negatives}
    sets = {name: read_examples(model, path, settings.bos) for name, path in files.items() if path}
    background, texts = other_texts(model, settings)
    names = ("learning_rate", "kl_weight", "epochs", "per_example", "rarity", "seed")
    how = ft.Tuning(**{name: getattr(settings, name) for name in names})
    if (half := len(texts) // 2) == 0:
        raise InputError(
            f"{background} fills only one window of {model.config.block_size} tokens, but two are needed, to "
            "train beside one and measure on the other: give more text"
        )
    senses, epochs = ft.finetune_senses(model, sets["examples"], texts[:half], texts[half:], how)
    epoch = ft.kept(epochs, settings.epsilon)
    if settings.save and not epoch:  # whoever goes on with the file must not take an older one for this
        grown = min(e.general_loss for e in epochs) / epochs[0].original_loss - 1
        raise InputError(
            f"{settings.save} is not written: the loss on {background} grows by {grown:.1e} of it or more, "
            f"which is above epsilon={settings.epsilon:g}: {REMEDY}"
        )
    edits = [senses.edit(epoch)] if epoch else []
    if settings.save:
        control.save(edits, settings.save, model)
    found = {}
    with eval_mode(model) as ready:
        for title, examples in sets.items():
            texts = [text for example in examples for text in example.texts]
            before, after = partial(ft.predict, ready), partial(ft.predict, ready, edits=edits)
            failed = [mean(ft.failures(examples, say, settings.thresholds)) for say in (before, after)]
            kl = mean(ft.divergence(before([text]), after([text])).item() for text in texts)
            found[title] = {"n": len(examples), "before": failed[0], "after": failed[1], "kl": kl}
    original = epochs[0].original_loss
    return Finetuning(
        title=f"sense finetuning, ε = {settings.epsilon:g}",
        sets=found,
        background=background,
        general_loss=(original, epoch.general_loss if epoch else original),
        epoch=epoch.number if epoch else 0,
        vectors=sum(int(edit.offsets.any(dim=1).sum()) for edit in edits),
        of=model.config.n_token * model.config.n_sense_vector,
    )
