"""Edit what a model knows of a word: what its senses say for one word, they say for another.

    python experiments/knowledge_edit.py --word MacBook --remove Apple --add HP --prompt "The MacBook is best"
    python experiments/knowledge_edit.py --word Brady --prompt "Tom Brady plays for the"
    python experiments/knowledge_edit.py --word Romeo --remove Juliet --add Rosaline --save romeo.safetensors
    python experiments/knowledge_edit.py --word Harvard --copy Stanford --senses 12 7 --prompt "At Harvard"

Each word stands for its first token as it is written inside a text (" MacBook"): with a character model the
first letter. The edit holds wherever the word comes (Backpack paper, section 6.3; its cases, MacBook, Brady,
Obama and Barack, need no `--remove` and `--add`). With `--copy` the word takes over some senses of another
one instead. `--save` keeps the edit for `sample.py --edits=FILE`. Shown are the likeliest next tokens and
samples, before and after.
"""

from dataclasses import dataclass

from nanobackpack import Senses, cli
from nanobackpack.analysis import control
from nanobackpack.analysis.effect import effect
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.safe import files
from nanobackpack.text.tokenizer import first_ids
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class KnowledgeConfig(ReadConfig):
    """What a model predicts before and after a knowledge edit."""

    word: str = "MacBook"
    """The word whose senses are edited."""
    remove: str = ""
    """What its senses shall no longer speak for; by default what the paper removes from that word."""
    add: str = ""
    """What they shall speak for instead; by default what the paper adds."""
    copy: str = ""
    """In place of remove and add: the word to take senses from."""
    senses: tuple[int, ...] = (12, 7)
    """The senses that are taken, counted from 0."""
    prompt: str = "The MacBook is best known for its form factor, but"
    """The text to continue; it should hold the word."""
    k: int = 8
    """Next tokens to list."""
    num_samples: int = 3
    """Continuations to print."""
    max_new_tokens: int = 40
    """Tokens of each."""
    save: str = ""
    """Write the edit to this file."""


def main(settings: KnowledgeConfig) -> None:
    for name in ("k", "num_samples", "max_new_tokens"):
        at_least(settings, name, 1)
    for path in (settings.json, settings.save):
        files.check_writable(path)
    senses = Senses(open_model(settings), settings.bos)
    if settings.copy:
        word, source = first_ids(senses.tokenizer, (settings.word, settings.copy))
        edit = control.copy_senses(senses.model, word, source, settings.senses)
    else:
        cases = {case[0]: case for case in control_sets()["knowledge"]["edits"]}
        case = cases.get(settings.word, ["", "", ""])
        words = [settings.word, settings.remove or case[1], settings.add or case[2]]
        if settings.word and not all(words):
            raise InputError(f"{settings.word!r} is none of {', '.join(cases)}: give --remove and --add too")
        word, remove, add = first_ids(senses.tokenizer, words)
        edit = control.knowledge_edit(senses.model, word, remove, add)
    result = effect(
        senses,
        edit,
        settings.prompt,
        k=settings.k,
        n=settings.num_samples,
        new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    print(result.table())
    write_json(settings.json, result)
    if settings.save:
        control.save(edit, settings.save, senses.model)


if __name__ == "__main__":
    cli.run(main, KnowledgeConfig)
