"""Edit what a model knows of a word: what its senses predict of one thing, they predict of another.

    nanobackpack edit --word MacBook --remove Apple --add HP --prompt "The MacBook is best known for"
    nanobackpack edit --word Brady --prompt "Tom Brady plays for the"
    nanobackpack edit --out_dir=out-zh --word 曹 --remove 操 --add 丕 --prompt "却说曹" --save cao.safetensors
    nanobackpack edit --word Harvard --copy Stanford --senses 12 7 --prompt "At Harvard"

The edit holds wherever the word's token comes (Backpack paper, section 6.3; its cases, MacBook, Brady, Obama
and Barack, need no `--remove` and `--add`). Of a word of several tokens say which to edit, in other words
too: some with `--tokens`, or all with `--everywhere`. What is removed, added or copied stands for its first
token. With `--copy` the word takes over some senses of another one instead. `--save` keeps the edit for
`nanobackpack sample --edits=FILE`. Shown are the likeliest next tokens and samples, before and after, and
what the edit costs, where held-out text is at hand (evaluate/cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanobackpack.analysis.results import report
from nanobackpack.commands.steer import EffectConfig, effects
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.text.words import find_word, first_ids, token_id

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
    tokens: tuple[str, ...] = ()
    """Of a word of several tokens edit these, wherever they stand."""
    everywhere: bool = False
    """Edit all tokens of the word, wherever they stand."""
    prompt: str = "The MacBook is best known for its form factor, but"
    """The text to continue; it should hold the word."""
    num_samples: int = 3
    """Continuations to print."""


def main(settings: EditConfig) -> None:
    report(settings, lambda model: effects(model, settings, make_edit, [settings.prompt])[0])


def make_edit(senses: Senses, settings: EditConfig) -> list[Edit]:
    """Make the edit that the settings ask for, of each token."""
    from nanobackpack.analysis import control

    model, tokens = senses.model, tokens_to_edit(senses, settings)
    if settings.copy:
        (source,) = first_ids(senses.tokenizer, [settings.copy])
        return [control.copy_senses(model, token, source, settings.senses) for token in tokens]
    # The paper's cases need no more than the word.
    cases = {word: (remove, add) for word, remove, add, *_ in control_sets()["knowledge"]["edits"]}
    remove, add = cases.get(settings.word, ("", ""))
    words = [settings.remove or remove, settings.add or add]
    if not all(words):
        raise InputError(f"{settings.word!r} is none of {', '.join(cases)}: give --remove and --add too")
    directions = first_ids(senses.tokenizer, words)
    return [control.knowledge_edit(model, token, *directions) for token in tokens]


def tokens_to_edit(senses: Senses, settings: EditConfig) -> list[int]:
    """Give the tokens of the word that are meant. If it has several and the settings do not say which, refuse
    it with the number of other places where they stand, in the prompt and in training."""
    tokenizer, counts = senses.tokenizer, senses.model.token_counts
    own = list(dict.fromkeys(tokenizer.word_ids(settings.word)))
    chosen = [token_id(tokenizer, token) for token in settings.tokens] or own
    if (settings.everywhere or settings.tokens or len(own) == 1) and set(chosen) <= set(own):
        return chosen
    prompt, places = senses.encode(settings.prompt), []
    for span in reversed(find_word(tokenizer, prompt, settings.word)):
        del prompt[span]
    for i in own:
        trained = "" if counts is None else f", {counts[i]:,} in training"
        places.append(f"{tokenizer.token(i)!r} ({prompt.count(i)} other places in the prompt{trained})")
    raise InputError(
        f"{settings.word!r} is the tokens {', '.join(places)}, and this edit changes a token wherever it "
        f"stands: name some of them, as --tokens {tokenizer.token(own[0])!r}, or take all with --everywhere"
    )
