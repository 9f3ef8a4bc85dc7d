"""How many senses? Trains Backpacks that differ in K alone on your data, and a GPT with the same blocks.

    nanobackpack k_sweep --dataset=en --ks 1 4 8 16 --seeds 1 2 3
    nanobackpack k_sweep --dataset=en --max_iters=500 --data simlex=SimLex-999.txt --jobs=2

Prints the loss of each over the whole validation split and, with test sets, Spearman's ρ with human
judgement: mean and standard deviation over the seeds. `words` is this study on dictionaries.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanobackpack import cli
from nanobackpack.analysis import results
from nanobackpack.config import Settings, TrainConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.lexical_similarity import read_pairs
from nanobackpack.evaluate.words import compare, train_all
from nanobackpack.safe.files import check_writable
from nanobackpack.train.together import shortened


@dataclass(frozen=True, kw_only=True)
class KSweepConfig(Settings):
    """Models with different numbers of senses, trained and compared."""

    dataset: str = ""
    """The data set, a folder or a name under data/, as `nanobackpack prepare` makes it."""
    ks: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of senses."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of each."""
    gpt: bool = True
    """Also train GPTs with the same Transformer blocks, as the baseline."""
    config: str = "small"
    """The config file of all models."""
    data: tuple[str, ...] = ()
    """Test sets as NAME=FILE, as of lexical_similarity."""
    max_iters: int = 0
    """Optimizer steps of each, at most those of the config file (0: all of these)."""
    minutes: float = 0.0
    """Take as many steps, at most max_iters, as leave time for all (0: no limit)."""
    jobs: int = 1
    """Runs side by side."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, cuda:1, ..."""
    out_dir: str = "out-k"
    """Folder of the runs, each in its own."""
    flags: tuple[str, ...] = ()
    """More settings of all runs, as n_embd=64."""
    json: str = ""
    """Also write the result to this file as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "jobs", 1)
        if not (self.dataset and self.ks and self.seeds):
            raise InputError(
                "give a data set, numbers of senses and seeds, as in --dataset=en --ks 1 4 --seeds 1 2"
            )
        if min(self.ks) < 1:
            raise InputError(f"ks={min(self.ks)} is out of range: a Backpack has one sense or more")
        if bad := [item for item in self.data if not all(item.partition("="))]:
            raise InputError(f"data={bad[0]!r} is not NAME=FILE, as in --data simlex=SimLex-999.txt")


def main(settings: KSweepConfig) -> None:
    from nanobackpack.text.data import open_data  # imports torch

    sets = {name: read_pairs(name, path) for name, _, path in (item.partition("=") for item in settings.data)}
    check_writable(settings.json)
    names = [*(f"k{k}" for k in dict.fromkeys(settings.ks)), *(["gpt"] if settings.gpt else [])]
    runs = {(name, seed): run_config(settings, name, seed) for name in names for seed in settings.seeds}
    for config in runs.values():  # what cannot be is said before anything is trained
        config.model_config(64)
    open_data(config)
    losses = train_all(runs, settings.jobs, settings.minutes)
    study = compare(settings.out_dir, sets, losses, "numbers of senses", f"k{max(settings.ks)}")
    print(study.table(), flush=True)
    results.write_json(settings.json, study)


def run_config(settings: KSweepConfig, name: str, seed: int) -> TrainConfig:
    """The settings of a run: the config file, what the model differs in, and what the study asks for."""
    changes = {
        "dataset": settings.dataset,
        "out_dir": f"{settings.out_dir}/{name}-{seed}",
        "seed": seed,
        "device": settings.device,
        "compile": False,  # side by side, compiling takes longer than it saves
        "keep_last": 1,
        "overwrite": True,
    }
    given = [str(cli.find_config(settings.config)), *(f"--{key}={value}" for key, value in changes.items())]
    given += [f"--{flag}" for flag in settings.flags]
    if name == "gpt":  # the sense network of a Backpack counts as a layer, unless it is the paper's
        blocks = cli.parse(TrainConfig, given).model_config(64).n_block
        own = ["--model_name=gpt2", f"--n_layer={blocks}"]
    else:
        own = [f"--n_sense_vector={name.removeprefix('k')}"]
    config = cli.parse(TrainConfig, [*given, *own])
    return shortened(config, settings.max_iters or config.max_iters)
