"""Run tasks of the harness lm-eval (pip install 'nanobackpack[lm-eval]') on a model, under edits too.

    nanobackpack lm-eval --out_dir=out --tasks lambada_openai blimp --limit 100
    nanobackpack lm-eval --init_from=gpt2 --edits=edit.safetensors --tasks blimp --output_path results
    nanobackpack lm-eval --out_dir=out --tasks mine --include_path tasks/

All other flags are the harness's own and handed on: `python -m lm_eval run --help` lists them. Most tasks are
fetched from the Hugging Face hub; docs/hub.md shows one that reads a file. hub/lm_eval.py says what stands
before a text. `nanobackpack blimp` and `lambada` need no harness and give the same numbers.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanobackpack.config import LoadConfig, changed_settings
from nanobackpack.errors import InputError, first_line


@dataclass(frozen=True, kw_only=True)
class LmEvalConfig(LoadConfig):
    """Which model the harness tests; what else is given is for the harness."""

    bos: bool | Literal["auto"] = "auto"
    """What stands before a text: auto: a token that begins a document, if there is one."""
    edits: str = ""
    """A file of edits (nanobackpack.control.save) that hold throughout."""
    handed_on: tuple[str, ...] = ()
    """Any other flags, as they are: --tasks, --limit, --num_fewshot, --batch_size, --output_path, ..."""


def main(settings: LmEvalConfig) -> None:
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "WARNING")
    try:
        from lm_eval import evaluator
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        raise InputError("lm-eval is not installed: pip install 'nanobackpack[lm-eval]'") from None
    from nanobackpack.hub.lm_eval import NAME  # and so the harness knows the class

    names = ("bos", "edits", "tokenizer_name", "dtype")
    model = {"path": settings.model_path} | {name: getattr(settings, name) for name in names}
    given = ["--model", NAME, "--model_args", json.dumps(model), "--device", settings.device]
    seed = ["--seed", str(settings.seed)] * ("seed" in changed_settings(settings))
    sys.argv = ["lm-eval", *settings.handed_on, *seed, *given]  # where the harness reads its arguments
    # It asks git for a commit to write down; outside of a repository git would complain on stderr.
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        evaluator.get_git_commit_hash = lambda: None
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:  # an unknown task, one that cannot be fetched
        raise (
            error if isinstance(error, InputError) else InputError(f"lm-eval: {first_line(error)}")
        ) from None
