"""Edit what a model knows of a word: what its senses predict of one thing, they predict of another.

    nanobackpack edit --word MacBook --remove Apple --add HP --prompt "The MacBook is best known for"
    nanobackpack edit --word Brady --prompt "Tom Brady plays for the"
    nanobackpack edit --out_dir=out-zh --word 曹 --remove 操 --add 丕 --prompt "却说曹" --save cao.safetensors
    nanobackpack edit --word Harvard --copy Stanford --senses 12 7 --prompt "At Harvard"

Each word stands for its first token as it is written inside a text (" MacBook"): with a character model the
first letter. The edit holds wherever the word comes (Backpack paper, section 6.3; its cases, MacBook, Brady,
Obama and Barack, need no `--remove` and `--add`). With `--copy` the word takes over some senses of another
one instead. `--save` keeps the edit for `nanobackpack sample --edits=FILE`. Shown are the likeliest next
tokens and samples, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanobackpack.analysis.results import report
from nanobackpack.commands.steer import EffectConfig, effects
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.text.tokenizer import first_ids

if TYPE_CHECKING:
    from nanobackpack.analysis.senses import Senses
    from nanobackpack.model.edits import Edit


@dataclass(frozen=True, kw_only=True)
class EditConfig(EffectConfig):
    """What a model predicts before and after a knowledge edit."""

    word: str = "MacBook"
    """The word whose senses are edited."""
    remove: str = ""
    """What its senses shall no longer predict; by default what the paper removes from that word."""
    add: str = ""
    """What they shall predict instead; by default what the paper adds."""
    copy: str = ""
    """In place of remove and add: the word to take senses from."""
    senses: tuple[int, ...] = (12, 7)
    """The senses that are taken, counted from 0."""
    prompt: str = "The MacBook is best known for its form factor, but"
    """The text to continue; it should hold the word."""
    num_samples: int = 3
    """Continuations to print."""


def main(settings: EditConfig) -> None:
    report(settings, lambda model: effects(model, settings, make_edit, [settings.prompt])[0])


def make_edit(senses: Senses, settings: EditConfig) -> Edit:
    """Make the edit that the settings ask for."""
    from nanobackpack.analysis import control

    if settings.copy:
        word, source = first_ids(senses.tokenizer, (settings.word, settings.copy))
        return control.copy_senses(senses.model, word, source, settings.senses)
    # The paper's cases need no more than the word.
    cases = {word: (remove, add) for word, remove, add, *_ in control_sets()["knowledge"]["edits"]}
    remove, add = cases.get(settings.word, ("", ""))
    words = [settings.word, settings.remove or remove, settings.add or add]
    if settings.word and not all(words):
        raise InputError(f"{settings.word!r} is none of {', '.join(cases)}: give --remove and --add too")
    return control.knowledge_edit(senses.model, *first_ids(senses.tokenizer, words))
