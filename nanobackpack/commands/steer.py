"""Scale senses of a word, and see what the model then says: before and after.

    nanobackpack steer --word nurse --sense 10 --prompt "The nurse said that" --tokens he she
    nanobackpack steer --word nurse --factor 0.5 --prompt "The nurse said" --save calm.safetensors
    nanobackpack steer --out_dir=out-zh --word 沙滩 --amplify 4 1
    nanobackpack steer --everywhere --sense 10 --prompt "The nurse said that"

The first two multiply one sense of the word, or all, wherever it stands: 0 removes, 1 changes nothing
(Backpack paper, section 6.2). A word of several tokens is edited where all of it stands, inside a longer word
too ("the" in "other" where tokens are characters); with `--everywhere` each of its tokens is, in every word,
and without a word every token there is.
`--amplify`, for a word of several tokens, has a factor for each: the word counts as much as before, but for
other parts of itself; without a prompt nanoBackpackLM's own are taken, with its test tokens. `--tokens` lists
how likely these are before and after; `--save` keeps the edit for `nanobackpack sample --edits=FILE`. Where
held-out text is at hand the edit's cost follows (evaluate/cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from nanobackpack.analysis.results import report
from nanobackpack.config import AnalysisConfig, Special
from nanobackpack.errors import InputError
from nanobackpack.evaluate.cost import CostConfig
from nanobackpack.evaluate.scoring import control_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nanobackpack.analysis.effect import Effect
    from nanobackpack.analysis.senses import Senses
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import EditLike


@dataclass(frozen=True, kw_only=True)
class EffectConfig(AnalysisConfig, CostConfig):
    """What the commands share that edit a model and show what it says before and after."""

    prompt: str = ""
    """The text to continue; it should hold the word."""
    special: Special = "auto"
    """allow, auto: a name in the prompt such as <|endoftext|> is that special token; plain: it is text."""
    k: int = 8
    """Next tokens to list."""
    num_samples: int = 2
    """Continuations to print."""
    max_new_tokens: int = 40
    """Tokens of each."""
    save: str = ""
    """Write the edit to this file."""


AnyConfig = TypeVar("AnyConfig", bound=EffectConfig)


@dataclass(frozen=True, kw_only=True)
class SteerConfig(EffectConfig):
    """What a model predicts before and after senses of a word are made to count more or less."""

    word: str = ""
    """The word whose senses are scaled."""
    sense: int = -1
    """Only this sense, counted from 0 (-1: all)."""
    everywhere: bool = False
    """Scale each token of the word wherever it stands, in other words too, not only where all of it does;
    without a word, every token."""
    factor: float = 0.0
    """What the sense is multiplied by: 0 removes it."""
    amplify: tuple[float, ...] = ()
    """In place of sense and factor: a factor for each token of the word, whose weight is shared anew."""
    tokens: tuple[str, ...] = ()
    """Next tokens to compare."""


def main(settings: SteerConfig) -> None:
    if settings.amplify and settings.everywhere:
        raise InputError("everywhere and amplify contradict each other: amplify acts inside the word alone")
    prompts, tokens = [settings.prompt], settings.tokens
    if not settings.prompt:
        shipped = control_sets()["amplification"]
        prompts = [prompt for prompt in shipped["prompts"] if settings.word and settings.word in prompt]
        tokens = tokens or shipped["tokens"]
    if not prompts:
        raise InputError(
            f"the prompt is empty: give a text that holds the word, as --prompt 'The {settings.word}'"
        )
    report(settings, lambda model: effects(model, settings, scaling, prompts, tokens))


def scaling(senses: Senses, settings: SteerConfig) -> EditLike:
    """Make the edit that the settings ask for."""
    from nanobackpack.analysis.control import AmplifyInWord, scale

    if settings.amplify:
        return AmplifyInWord(tuple(senses.tokenizer.word_ids(settings.word)), settings.amplify)
    sense = None if settings.sense < 0 else settings.sense
    word = None if settings.everywhere and not settings.word else settings.word
    return scale(senses.model, word, settings.factor, sense, everywhere=settings.everywhere)


def effects(
    model: LanguageModel,
    settings: AnyConfig,
    make_edit: Callable[[Senses, AnyConfig], EditLike],
    prompts: Sequence[str],
    tokens: Sequence[str] = (),
) -> list[Effect]:
    """Make an edit, look what it does to each prompt, and save it if the settings say so."""
    from nanobackpack.analysis import control
    from nanobackpack.analysis.effect import edited_words, effect
    from nanobackpack.analysis.senses import Senses
    from nanobackpack.evaluate.cost import cost, held_out

    senses = Senses(model, settings.bos, special=settings.special != "plain", typed=True)
    edit = make_edit(senses, settings)
    sizes = {"k": settings.k, "n": settings.num_samples, "new_tokens": settings.max_new_tokens}
    found = [effect(senses, edit, prompt, **sizes, seed=settings.seed, tested=tokens) for prompt in prompts]
    text = held_out(model, settings, sorted(edited_words(edit)))
    found[-1] = replace(found[-1], cost=cost(model, edit, text))
    if settings.save:
        control.save(edit, settings.save, model)
    return found
