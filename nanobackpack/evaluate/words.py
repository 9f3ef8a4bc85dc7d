"""Words: do senses know which words are alike, better than embeddings do? Trains models to find out.

    nanobackpack prepare words
    nanobackpack words --data simlex=SimLex-999.txt simverb=SimVerb-3500.txt rg65=RG65.csv ws353=WS353.csv
    nanobackpack words --data simverb=SimVerb-3500.txt --models k16 gpt --seeds 1 2 --max_iters=500

Backpacks of 1, 4, 8 and 16 senses (k1 ... k16), a GPT with the same context network (gpt) and one of the same
size as k16 (gpt-large), all by config/words.py and with several seeds each, side by side where the device has
room (--jobs). Then Spearman's ρ with human judgement (Backpack paper, Tables 4 and 8): mean and standard
deviation over the seeds; for differences 95 % intervals of the mean over the seeds, where the pairs of words
are drawn anew; and the same of models before any training.

`small` is the model that comes with the package, by config/words_small.py; its best seed is left as
OUT_DIR/words-small, in float16.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanobackpack import cli
from nanobackpack.analysis import results
from nanobackpack.config import Settings, TrainConfig, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.controls import Figure, intervals, untrained
from nanobackpack.evaluate.lexical_similarity import WordPair, lexical_similarity, read_pairs
from nanobackpack.safe.files import check_writable, writing

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel

# What each model is: a config file, and how it differs from that.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "k16": ("words", {}),
    "gpt": ("words", {"model_name": "gpt2", "n_layer": 3}),
    "gpt-large": ("words", {"model_name": "gpt2", "n_layer": 10}),
    "small": ("words_small", {}),
    "k1": ("words", {"n_sense_vector": 1}),
    "k4": ("words", {"n_sense_vector": 4}),
    "k8": ("words", {"n_sense_vector": 8}),
}
CHOSEN = "sense of the other half"
MEASURES = ("E", "flat", "min", CHOSEN)


@dataclass(frozen=True, kw_only=True)
class WordsConfig(Settings):
    """Models of words and their meanings, trained and compared."""

    data: tuple[str, ...] = ()
    """Test sets as NAME=FILE; NAME is simlex, simverb, rg65 or ws353."""
    models: tuple[str, ...] = tuple(name for name in MODELS if name != "small")
    """Which to train: k1, k4, k8, k16, gpt, gpt-large, small."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of each."""
    max_iters: int = 3000
    """Optimizer steps of each."""
    minutes: float = 0.0
    """Take as many steps, at most max_iters, as leave time for all; runs not done then are left out (0: no
    limit)."""
    jobs: int = 1
    """Runs side by side."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, cuda:1, ..."""
    data_dir: str = "data"
    """Where the data sets words and words_small are."""
    out_dir: str = "out-words"
    """Folder of the runs, each in its own."""
    flags: tuple[str, ...] = ()
    """More settings of all runs, as n_embd=64."""
    json: str = ""
    """Also write the result to this file as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "jobs", 1)
        if unknown := [name for name in self.models if name not in MODELS]:
            raise InputError(f"models={unknown[0]!r} is not one of {', '.join(MODELS)}")
        if not (self.data and self.models and self.seeds):
            raise InputError("give a model, a seed and a test set, as in --data simverb=SimVerb-3500.txt")


@dataclass(frozen=True, kw_only=True)
class WordsStudy(results.Result):
    """What was found of M models on S test sets."""

    steps: int
    """Of each run."""
    losses: dict[str, list[float]]
    """By model: nats a token over the whole validation split, of each seed."""
    parameters: dict[str, int]
    one_token: dict[str, list[float]]
    """By model: share of each test set in which both words are one token."""
    rho: dict[str, list[float]]
    """By "SET MODEL MEASURE": Spearman's ρ of each seed. A model "untrained" is k16 before training."""
    differences: dict[str, list[float]]
    """By "SET MODEL MEASURE − MODEL MEASURE": the mean over the seeds, and its 95 % interval."""

    def table(self) -> str:
        models = [
            [name, f"{self.parameters[name]:,}", _spread(losses), f"{len(losses)}"]
            for name, losses in self.losses.items()
        ]
        rho = [[name, _spread(values)] for name, values in self.rho.items()]
        differences = [
            [name, f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}"]
            for name, (mean, low, high) in self.differences.items()
        ]
        parts = [
            results.table(f"{self.title}, {self.steps} steps", ["", "parameters", "loss", "seeds"], models),
            results.table("Spearman's ρ, mean ± sd over the seeds", ["", ""], rho),
            results.table("differences", ["", "mean", "95 % over pairs"], differences),
        ]
        return "\n\n".join(parts if rho else parts[:1])


def main(settings: WordsConfig) -> None:
    sets = {name: read_pairs(name, path) for name, _, path in (item.partition("=") for item in settings.data)}
    check_writable(settings.json)
    runs = {
        (name, seed): run_config(settings, name, seed) for name in settings.models for seed in settings.seeds
    }
    study = compare(settings.out_dir, sets, train_all(runs, settings.jobs, settings.minutes))
    print(study.table(), flush=True)
    results.write_json(settings.json, study)


# --- Training -------------------------------------------------------------------------------------


def train_all(
    runs: Mapping[tuple[str, int], TrainConfig], jobs: int, minutes: float
) -> dict[str, dict[int, float]]:
    """Train models, by name and seed; return the losses of those that were done, {model: {seed: loss}}."""
    from nanobackpack.train.together import train_together

    # An eighth of the time is for comparing.
    found = train_together([*runs.values()], jobs, minutes * 7 / 8)
    losses: dict[str, dict[int, float]] = {}
    for (name, seed), loss in zip(runs, found, strict=True):
        if loss is None:
            print(f"{name} with seed {seed} is not done: it is left out", flush=True)
        else:
            losses.setdefault(name, {})[seed] = loss
    return losses


def run_config(settings: WordsConfig, name: str, seed: int) -> TrainConfig:
    """The settings of a run: its config file, what the model differs in, and what the study asks for."""
    file, changes = MODELS[name]
    steps = settings.max_iters
    changes = changes | {
        "dataset": f"{settings.data_dir}/{file}",
        "out_dir": f"{settings.out_dir}/{name}-{seed}",
        "seed": seed,
        "device": settings.device,
        "compile": False,  # side by side, compiling takes longer than it saves
        "max_iters": steps,
        "lr_decay_iters": steps,
        "warmup_iters": min(200, steps // 4),
        "eval_interval": max(1, steps // 4) if file == "words_small" else steps,
        "keep_last": 1,
        "overwrite": True,
    }
    given = [
        *(f"--{key}={value}" for key, value in changes.items()),
        *(f"--{flag}" for flag in settings.flags),
    ]
    return cli.parse(TrainConfig, [str(cli.find_config(file)), *given])


# --- Comparing ------------------------------------------------------------------------------------


def compare(
    out_dir: str,
    sets: Mapping[str, Sequence[WordPair]],
    losses: dict[str, dict[int, float]],
    title: str = "words and their meanings",
    whole: str = "k16",
) -> WordsStudy:
    """Measure all models on all test sets, of which there may be none. `whole` is the model that is compared
    with GPTs, and with what it was before training."""
    from nanobackpack.train.checkpoint import load_model
    from nanobackpack.train.log import read_metrics

    found: dict[str, list[dict[str, Figure]]] = {}  # by model: the figures of each seed
    parameters, one_token, steps = {}, {}, 0
    for name, by_seed in losses.items():
        folders = [Path(out_dir) / f"{name}-{seed}" for seed in by_seed]
        models = [load_model(folder) for folder in folders]
        steps = read_metrics(folders[0] / "metrics.jsonl")[-1]["step"]
        parameters[name] = models[0].num_params()
        if not sets:
            continue
        measured = [lexical_similarity(model, sets, ["avg"]) for model in models]
        found[name], one_token[name] = [once.figures for once in measured], measured[0].one_token
        if name == whole:
            fresh = [untrained(models[0], seed) for seed in range(3)]
            found["untrained"] = [lexical_similarity(model, sets, ["avg"]).figures for model in fresh]
        if name == "small":
            best = min(range(len(models)), key=lambda i: [*by_seed.values()][i])
            save_half(models[best], Path(out_dir) / "words-small")

    # ρ of each seed, and as a figure the mean over the seeds.
    rho: dict[str, list[float]] = {}
    means: dict[str, Figure] = {}
    for one in sets:
        for name, seeds in found.items():
            for measure in MEASURES:
                key = f"{one} avg {measure}"
                if all(key in figures for figures in seeds):
                    rho[f"{one} {name} {measure}"] = [figures[key].value for figures in seeds]
                    means[f"{one} {name} {measure}"] = mean_figure([figures[key] for figures in seeds])
    pairs = [(first, second) for first in means for second in means if _is_compared(first, second, whole)]
    differences = {f"{a} − {b.partition(' ')[2]}": means[a] - means[b] for a, b in pairs}
    between = intervals(differences)
    return WordsStudy(
        title=title,
        steps=steps,
        losses={name: [*by_seed.values()] for name, by_seed in losses.items()},
        parameters=parameters,
        one_token=one_token,
        rho=rho,
        differences={name: [figure.value, *between[name]] for name, figure in differences.items()},
    )


def mean_figure(figures: Sequence[Figure]) -> Figure:
    """The mean of figures of the same items; many differences ask for it with the same weights."""
    last: list[Any] = [None, None]

    def mean(weights: Tensor) -> Tensor:
        if last[0] is not weights:
            last[:] = weights, sum(figure.of(weights) for figure in figures) / len(figures)
        value: Tensor = last[1]
        return value

    return Figure(figures[0].n, mean)


def _is_compared(first: str, second: str, whole: str) -> bool:
    """Senses with the embedding of their model; of one model with the GPTs' and with untrained ones too."""
    (one, a, what), (other, b, base) = (key.split(" ", 2) for key in (first, second))
    own = a == b != "untrained" and what != base == "E"
    return one == other and (
        own or (a == whole and (b.startswith("gpt") or (b == "untrained" and what == base)))
    )


def _spread(values: Sequence[float]) -> str:
    """Show the mean, and the standard deviation where there are several."""
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{sd}"


def save_half(model: LanguageModel, folder: Path) -> None:
    """Write a folder that load_model opens: the weights in float16, the settings, the tokenizer."""
    from safetensors.torch import save

    assert model.tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({name: p.detach().half() for name, p in model.named_parameters()})
    settings = json.dumps(dataclasses.asdict(model.config), indent=1).encode() + b"\n"
    for name, content in (("model.safetensors", weights), ("config.json", settings)):
        with writing(folder / name) as file:
            file.write(content)
    model.tokenizer.save(folder / "tokenizer.json")
