"""Can behaviour be changed where it is stored, and at what price? A study in which the truth is known.

    nanobackpack planted                              # the whole study: 40 minutes on 2 busy cores
    nanobackpack planted --seeds=1 --steps=500        # a look at it

Backpacks and GPTs with the same context network learn a language (evaluate/language.py) whose bias, topics
and facts were planted. Then a bias is removed, a fact edited, a topic asked for (evaluate/planted_edits.py).
Since the language with just that change is known too, each edit gets two figures: did it do what it should,
and how far, in nats a text, is the model from the language that a perfect edit would lead to. Nothing is
measured on what it was chosen on. Models with fresh weights stand beside the trained ones. The table has all
seeds: mean ± standard deviation, and the interval that holds the mean with 95 %.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

from nanobackpack.analysis import results
from nanobackpack.config import Settings, TrainConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.language import TOKENIZER, corpus
from nanobackpack.evaluate.planted_edits import ask_for_topics, edit_facts, remove_bias
from nanobackpack.evaluate.planted_reading import Figures, carriers, learned
from nanobackpack.safe.files import read_json

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel

# Both have two Transformer blocks: of a Backpack the sense network is one layer more.
MODELS: dict[str, dict[str, Any]] = {
    "backpack": {"n_layer": 3, "n_sense_vector": 8},
    "gpt": {"n_layer": 2, "model_name": "gpt2"},
    # When is the bias learned? Variants in the number of senses, their network, and the steps.
    "backpack-4": {"n_layer": 3, "n_sense_vector": 4},
    "backpack-16": {"n_layer": 3, "n_sense_vector": 16},
    "backpack-paper": {"n_layer": 2, "n_sense_vector": 8, "sense_network": "paper"},
    "backpack-muon": {"n_layer": 3, "n_sense_vector": 8, "optimizer": "muon", "learning_rate": 1e-3},
    "gpt-muon": {"n_layer": 2, "model_name": "gpt2", "optimizer": "muon", "learning_rate": 1e-3},
}
RECIPE: dict[str, Any] = {
    "n_head": 4, "n_embd": 64, "block_size": 32, "batch_size": 16, "learning_rate": 2e-3, "min_lr": 2e-4,
    "beta2": 0.99, "warmup_iters": 100, "log_interval": 500, "eval_iters": 20,
    "compile": False, "dtype": "float32",
}  # fmt: skip
WATCHED = ("learned: bias, %", "carried: weight on the noun, %")  # of the checkpoints on the way
# A mean of n seeds lies within so many standard errors of the truth with 95 % (Student's t), for n = 2 to 12.
T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20)


@dataclass(frozen=True, kw_only=True)
class PlantedConfig(Settings):
    """The planted study."""

    out_dir: str = "out-planted"
    """Folder of the text, of all runs, and of planted.json. Runs that are there are not repeated."""
    models: tuple[str, ...] = ("backpack", "gpt")
    """Which models: backpack, gpt, and variants (evaluate/planted.py has the list)."""
    seeds: int = 5
    """Models of each kind."""
    steps: int = 8000
    """Training steps of each."""
    texts: int = 60_000
    """Texts to learn from."""
    test_texts: int = 600
    """Texts that a figure is measured on."""
    jobs: int = 0
    """Models that are trained side by side, each by one thread (0: one for each core)."""
    device: str = "cpu"
    """Where the models are trained and measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("seeds", 1), ("steps", 1), ("texts", 100), ("test_texts", 100)):
            at_least(self, name, low)  # of fewer texts some have no case of what is measured
        if unknown := [name for name in self.models if name not in MODELS]:
            raise InputError(f"models: {unknown[0]!r} is unknown: take some of {', '.join(MODELS)}")


Job = tuple[PlantedConfig, str, int]
"""A model to train: the settings, its kind, its seed."""
AnyJob = TypeVar("AnyJob")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Planted(results.Result):
    """The figures of all models."""

    runs: dict[str, list[Figures]]
    """By kind of model, one entry a seed."""

    def table(self) -> str:
        tables = []
        for title, fresh in ((self.title, False), ("the same before any training", True)):
            kinds = {kind: runs for kind, runs in self.runs.items() if kind.startswith("untrained") == fresh}
            names = dict.fromkeys(name for runs in kinds.values() for run in runs for name in run)
            rows = [
                [name, *(spread([r[name] for r in runs if name in r]) for runs in kinds.values())]
                for name in names
            ]
            head = [f"{kind} ({len(runs)})" for kind, runs in kinds.items()]
            tables.append(results.table(title, ["", *head], rows))
        return "\n".join(tables)


def spread(values: Sequence[float]) -> str:
    """Show mean ± standard deviation, and the interval of the mean."""
    if len(values) < 2:
        return "".join(f"{value:.3g}" for value in values)
    half = T_95[min(len(values), 12) - 2] * stdev(values) / math.sqrt(len(values))
    return (
        f"{mean(values):.3g} ± {stdev(values):.2g} ({mean(values) - half:.3g} to {mean(values) + half:.3g})"
    )


def main(settings: PlantedConfig) -> None:
    for found in planted(settings):
        # Written each time a model is done: of a study that is stopped, these remain.
        results.write_json(str(Path(settings.out_dir) / "planted.json"), found)
    print(found.table())


def planted(settings: PlantedConfig) -> Iterator[Planted]:
    """Write the language's text, train models on it, and measure them beside untrained ones; yield what is
    known whenever one is done."""
    from nanobackpack.text.prepare import write_tokens
    from nanobackpack.text.splits import split_spread

    data = _data(settings)
    if not (data / "meta.json").exists():
        write_tokens(data, {"": corpus(settings.texts)}, TOKENIZER, split_spread(0.02))
    jobs = [(settings, kind, seed) for seed in range(settings.seeds) for kind in settings.models]
    done: dict[tuple[str, int], tuple[Figures, Figures]] = {}
    for (_, kind, seed), figures in side_by_side(
        one_model, jobs, min(settings.jobs or os.cpu_count() or 1, len(jobs))
    ):
        print(f"{kind}, seed {seed}: done", flush=True)
        done[kind, seed] = figures
        runs = {
            before + kind: [done[kind, n][i] for n in range(settings.seeds) if (kind, n) in done]
            for i, before in enumerate(("", "untrained "))
            for kind in settings.models
        }
        yield Planted(title=f"the planted study, {settings.steps} steps", runs=runs)


def side_by_side(
    work: Callable[[AnyJob], Found], jobs: Sequence[AnyJob], n: int
) -> Iterator[tuple[AnyJob, Found]]:
    """Do the jobs, n at a time; yield each when it is done."""
    if n == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    # A fresh interpreter each: a copy of this one would share the state of its threads.
    with ProcessPoolExecutor(n, get_context("spawn")) as pool:
        try:
            waiting = {pool.submit(work, job): job for job in jobs}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:  # after an error, or Ctrl-C, none of those that wait begins
            pool.shutdown(cancel_futures=True)


def _data(settings: PlantedConfig) -> Path:
    return Path(settings.out_dir) / f"data-{settings.texts}"


def one_model(job: Job) -> tuple[Figures, Figures]:
    """Train one model, unless that was done before; measure it and its like with fresh weights."""
    import torch

    from nanobackpack.runtime import pick_device
    from nanobackpack.train.checkpoint import LAST, build_model, load_model, read_checkpoint
    from nanobackpack.train.trainer import train

    settings, kind, seed = job
    torch.set_num_threads(1)
    folder, every = Path(settings.out_dir) / f"{kind}-{seed}", max(1, settings.steps // 8)
    config = TrainConfig(
        **RECIPE | MODELS[kind], dataset=str(_data(settings)), out_dir=str(folder), seed=seed,
        device=settings.device, max_iters=settings.steps, lr_decay_iters=max(settings.steps, 100),
        eval_interval=settings.steps, backup_checkpoint_step=every,
    )  # fmt: skip
    done, made_with = folder / "figures.json", asdict(config) | {"test_texts": settings.test_texts}
    if done.exists() and (earlier := read_json(done)).get("made_with") == made_with:
        return tuple(earlier["figures"])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(config)
    if read_checkpoint(folder / LAST)["iter_num"] < settings.steps:
        raise InputError(f"{kind}, seed {seed} was stopped in its training: the same command begins it anew")
    device = pick_device(settings.device)
    torch.manual_seed(seed)
    fresh = build_model(load_model(folder).config)
    fresh.tokenizer = load_model(folder).tokenizer
    figures: Figures = {}
    for step in range(every, settings.steps, every):
        early = understood(load_model(folder / f"ckpt_{step}.pt").to(device), settings.test_texts)
        figures |= {
            name.replace(", %", f" after {step} steps, %"): early[name] for name in WATCHED if name in early
        }
    figures |= measure(load_model(folder).to(device), settings)
    both = figures, measure(fresh.to(device).eval(), settings)
    results.write_json(str(done), {"made_with": made_with, "figures": both})
    return both


def understood(model: LanguageModel, n: int) -> Figures:
    """Measure what a model has learned of the language, and of a Backpack where it keeps the bias."""
    from nanobackpack.model.backpack import BackpackLM

    return learned(model, n) | (carriers(model, n) if isinstance(model, BackpackLM) else {})


def measure(model: LanguageModel, settings: PlantedConfig) -> Figures:
    """Measure what a model has learned of the language, and what can be changed. A figure is left out if the
    texts are so few that they have no case of it."""
    n = settings.test_texts
    found = understood(model, n) | remove_bias(model, n) | edit_facts(model, n) | ask_for_topics(model, n)
    return {name: value for name, value in found.items() if not math.isnan(value)}
