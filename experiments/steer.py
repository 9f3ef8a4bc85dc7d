"""Change how much a word's senses count, and see what the model then says: before and after.

    python experiments/steer.py --word nurse --sense 10 --prompt "The nurse said that" --tokens he she
    python experiments/steer.py --word nurse --factor 0.5 --prompt "The nurse said" --save calm.safetensors
    python experiments/steer.py --out_dir=out-zh --word 沙滩 --amplify 4 1

The first two multiply one sense of the word, or all, wherever it stands: 0 removes, 1 changes nothing
(Backpack paper, section 6.2). `--amplify`, for a word of several tokens, has a factor for each: the word
counts as much as before, but for other parts of itself; without a prompt nanoBackpackLM's own are taken, with
its test tokens. `--tokens` lists how likely these are before and after; `--save` keeps the edit for
`sample.py --edits=FILE`.
"""

from dataclasses import dataclass

from nanobackpack import Senses, cli
from nanobackpack.analysis import control
from nanobackpack.analysis.control import AmplifyInWord, ScaleSense
from nanobackpack.analysis.effect import effect
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.safe import files
from nanobackpack.text.tokenizer import word_ids
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class SteerConfig(ReadConfig):
    """What a model predicts before and after senses of a word are made to count more or less."""

    word: str = ""
    """The word whose senses are scaled."""
    sense: int = -1
    """Only this sense, counted from 0 (-1: all)."""
    factor: float = 0.0
    """What the sense is multiplied by: 0 removes it."""
    amplify: tuple[float, ...] = ()
    """In place of sense and factor: a factor for each token of the word, whose weight is shared anew."""
    prompt: str = ""
    """The text to continue; it should hold the word."""
    tokens: tuple[str, ...] = ()
    """Next tokens to compare."""
    k: int = 8
    """Next tokens to list."""
    num_samples: int = 2
    """Continuations to print."""
    max_new_tokens: int = 40
    """Tokens of each."""
    save: str = ""
    """Write the edit to this file."""


def main(settings: SteerConfig) -> None:
    s, shipped = settings, control_sets()["amplification"]
    for name, least in (("k", 1), ("num_samples", 0), ("max_new_tokens", 1), ("sense", -1)):
        at_least(s, name, least)
    for path in (s.json, s.save):
        files.check_writable(path)
    prompts = [s.prompt] if s.prompt else [p for p in shipped["prompts"] if s.word and s.word in p]
    if not prompts:
        raise InputError(f"the prompt is empty: give a text that holds the word, as --prompt 'The {s.word}'")
    senses = Senses(open_model(s), s.bos)
    ids = tuple(word_ids(senses.tokenizer, s.word))
    scale = ScaleSense(ids, s.factor, None if s.sense < 0 else s.sense)
    edit = AmplifyInWord(ids, s.amplify) if s.amplify else scale
    sizes = {"k": s.k, "n": s.num_samples, "new_tokens": s.max_new_tokens, "seed": s.seed}
    tokens = s.tokens or (() if s.prompt else shipped["tokens"])
    found = [effect(senses, edit, prompt, **sizes, tested=tokens) for prompt in prompts]
    print("\n".join(result.table() for result in found))
    write_json(s.json, found)
    if s.save:
        control.save(edit, s.save, senses.model)


if __name__ == "__main__":
    cli.run(main, SteerConfig)
