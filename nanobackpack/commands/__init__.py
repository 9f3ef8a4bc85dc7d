"""What `nanobackpack VERB` and the scripts in the repository run.

    nanobackpack --help                         # lists the verbs
    nanobackpack train shakespeare_char
    python train.py config/demo.py              # a script is a wrapper: run("train")

Each verb is one module: its docstring is the help text, `main(settings)` does the work, and the type of
`settings` says which flags there are. The modules import torch only when they work, so that --help is quick.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, get_type_hints

from nanobackpack import __version__
from nanobackpack.errors import InputError
from nanobackpack.program import guard

# What takes longer to import, cli and the verbs, is imported where `guard` hears Ctrl-C.

# verb: (its module, what it is for)
VERBS = {
    "prepare": ("commands.prepare", "text -> token files, your own or a known data set"),
    "train": ("commands.train", "train a Backpack, or the Transformer baseline"),
    "sample": ("commands.sample", "continue a prompt"),
    "senses": ("commands.senses", "what each sense of a word predicts"),
    "cards": ("commands.cards", "a card for each sense: its theme, its tokens, where a text uses it"),
    "census": ("commands.census", "what every sense does over a text: its cost, its share, where it looks"),
    "match": ("commands.match", "which sense is which, in other seeds and at earlier steps"),
    "explain": ("commands.explain", "which senses of which tokens make a prediction"),
    "steer": ("commands.steer", "scale senses of a word: before and after"),
    "edit": ("commands.edit", "change what a word's senses say: before and after"),
    "finetune_senses": ("commands.finetune_senses", "change what a model says from examples: an edit"),
    "topic": ("evaluate.topic", "texts on a topic, and how much of it is in them"),
    "bias": ("evaluate.bias", "gender bias of nouns, and its remedies"),
    "perplexity": ("evaluate.perplexity", "perplexity on held-out text"),
    "lambada": ("evaluate.lambada", "last words of passages"),
    "blimp": ("evaluate.blimp", "is the grammatical sentence likelier?"),
    "wcpc": ("evaluate.wcpc", "Chinese words from their context"),
    "lexical_similarity": ("evaluate.lexical_similarity", "do similar words have similar senses?"),
    "concepts": ("evaluate.concepts", "is there a sense that knows a list of words?"),
    "translation": ("evaluate.translation", "is the nearest word of another language the right one?"),
    "words": ("evaluate.words", "a study: trains models on dictionaries, and compares their senses"),
    "k_sweep": ("evaluate.k_sweep", "a study: how many senses? trains models that differ in that alone"),
    "word_composition": ("evaluate.word_composition", "how the tokens of a word share its weight"),
    "explore": ("commands.explore", "a model in the browser: predictions, senses, edits, runs"),
    "report": ("commands.report", "a page about a model, to send"),
    "export": ("commands.export", "a folder that transformers and others open"),
    "planted": ("evaluate.planted", "a study of a language whose truth is known"),
    "canonical": (
        "evaluate.canonical",
        "a study of its models: changes from examples, by senses and by others",
    ),
    "lm_eval": ("commands.lm_eval", "tasks of the harness lm-eval"),
    "bench": ("bench", "speed and memory: the plain formula, this package, a GPT"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The program `nanobackpack`: run the verb that argv begins with, and exit."""
    first, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verb = first.replace("-", "_")
    if verb in VERBS:
        run(verb, rest, prog=f"nanobackpack {first}")
    guard(lambda: _without_verb(first, rest))


def run(verb: str, argv: Sequence[str] | None = None, prog: str | None = None) -> NoReturn:
    """Run a verb with the flags of argv (default: the program's own), and exit."""

    def program() -> NoReturn:
        from nanobackpack import cli

        module = _module(verb)
        cli.run(module.main, _settings(module), argv, prog)

    guard(program)


def run_script(file: str, about: str | None) -> NoReturn:
    """What data/NAME/prepare.py does: `nanobackpack prepare NAME`, with the files beside the script."""

    def program() -> NoReturn:
        from nanobackpack import cli
        from nanobackpack.commands.prepare import PrepareConfig, prepare

        folder = Path(file).resolve().parent
        cli.run(lambda given: prepare(folder.name, given, folder.parent), PrepareConfig, about=about)

    guard(program)


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"nanobackpack.{VERBS[verb][0]}")


def _settings(module: ModuleType) -> type:
    hints: dict[str, Any] = get_type_hints(module.main)
    return hints["settings"]


def _without_verb(first: str, rest: list[str]) -> None:
    """Print help, version or a completion script; refuse anything else, naming the nearest verb."""
    from nanobackpack import cli

    if first in ("-h", "--help"):
        width = max(map(len, VERBS))
        print("usage: nanobackpack VERB [config file ...] [--setting=value ...]\n")
        print("\n".join(f"  {verb:<{width}}  {purpose}" for verb, (_, purpose) in VERBS.items()))
        print("\nnanobackpack VERB --help lists its settings, with examples.")
        print(
            "source <(nanobackpack --tyro-print-completion bash) completes verbs and settings; zsh likewise."
        )
    elif first == "--version":
        print(f"nanobackpack {__version__}")
    elif first in cli.COMPLETION:
        # One script for all verbs and all their flags.
        cli.complete({verb: _settings(_module(verb)) for verb in VERBS}, [first, *rest], "nanobackpack")
    else:
        near = difflib.get_close_matches(first.replace("-", "_"), VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "nanobackpack --help lists the verbs"
        raise InputError(f"unknown verb {first}: {hint}")
