"""Which sense is which: in runs with other seeds, or over the checkpoints of one run.

    nanobackpack match --out_dir=out-1 --others out-2 out-3    # senses of each, matched with those of out-1
    nanobackpack match --out_dir=out-1 --plot=drift.png        # over ckpt_STEP.pt, next to the end

Senses are as alike as what they predict: the correlation of E · C(x)_l over the vocabulary, mean over a fixed
sample of tokens x. Senses of two runs are matched one to one so that the sum is largest, on one half of the
tokens; the figures are of the other half. Beside them stands what they have to beat: the other senses of the
same tokens, the same senses of other tokens, and models of fresh weights, matched in the same way.

Training keeps a ckpt_STEP.pt every --backup_checkpoint_step steps. A sense appears at the first step from
which on it is nearer to what it is at the end than half-way from an untrained one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanobackpack.analysis.results import Result, report
from nanobackpack.config import AnalysisConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.controls import untrained
from nanobackpack.safe.files import display_path

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel


@dataclass(frozen=True, kw_only=True)
class MatchConfig(AnalysisConfig):
    """Senses of several runs, or of the checkpoints of one, matched by what they predict."""

    others: tuple[str, ...] = ()
    """Runs or models with the same vocabulary; none: the ckpt_STEP.pt of the run itself."""
    tokens: int = 512
    """How many tokens to compare the senses of."""
    plot: str = ""
    """Also draw the first table to this PNG."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "tokens", 4)


def main(settings: MatchConfig) -> None:
    report(settings, lambda model: matched(model, settings))


def matched(model: LanguageModel, settings: MatchConfig) -> list[Result]:
    """Match the senses of a model with those of other runs, or with its own at the steps before."""
    from nanobackpack.analysis.matching import check_comparable, drift, match, sample_ids
    from nanobackpack.train.checkpoint import load_model

    path, device = settings.model_path, model.wte.weight.device
    check_comparable(model, model, path)
    ids = sample_ids(model, settings.tokens)
    found: list[Result] = []
    for run in settings.others:
        other = load_model(run, settings.tokenizer_name).to(device)
        check_comparable(model, other, run)
        fresh = [untrained(other, seed) for seed in range(3)]
        found.append(match(model, other, ids, fresh, f"senses of {path}, matched with those of {run}"))
    if not found:
        fresh = [untrained(model, seed) for seed in range(3)]
        title = f"senses of {path}: how alike to what they are at the end"
        found.append(drift(model, _checkpoints(settings, str(device)), ids, fresh, title))
    return found


def _checkpoints(settings: MatchConfig, device: str) -> Iterator[tuple[int, LanguageModel]]:
    """Open the checkpoints that a run kept for good, one at a time."""
    from nanobackpack.train.checkpoint import checkpoint_in, load_model

    # A name such as words-small or gpt2 is no path here, and has no folder to look in.
    path, steps = Path(settings.model_path), dict[int, Path]()
    folder = checkpoint_in(path).parent
    for file in folder.glob("ckpt_*.pt") if path.exists() else ():
        if name := re.fullmatch(r"ckpt_(\d{1,12})\.pt", file.name):
            steps[int(name[1])] = file
    if not steps:
        where = display_path(folder) if path.exists() else settings.model_path
        raise InputError(
            f"no ckpt_STEP.pt in {where}: train with --backup_checkpoint_step=200, "
            "or name runs with other seeds, --others"
        )
    for step, file in sorted(steps.items()):
        yield step, load_model(file, settings.tokenizer_name).to(device)
