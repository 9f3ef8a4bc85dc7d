"""Can one example change a fact or a habit, and what else does it change? Here the truth is known.

    nanobackpack planted                    # the models: 5 Backpacks and 5 GPTs of the planted language
    nanobackpack canonical --jobs=2         # the study, of the models in the same --out_dir

Three tasks: capitals are moved; nouns shall be called he as often as she; of two things, after a verb, the
first shall be 16 times likelier. A method sees one simple sentence for each word. It is tested in other
sentences of longer texts, where the word comes for the first time. Five methods: senses
(analysis/finetuning.py); all weights and LoRA, of a Backpack and of a GPT with the same context network. They
stop at the same ε, a limit on texts with and without the words, but for the places that shall change. The
settings of each are chosen among as many trials, on the models of seed 0, by the successes in texts with
other words, and of equal ones by what changes elsewhere.

    success      of the tested places, with the thresholds of analysis/finetuning.py
    elsewhere    KL(model ‖ changed) in nats a token, after a changed word, but for its own place
    other texts  KL(model ‖ changed) in nats a token, in texts without these words

Letters: N texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nanobackpack.analysis import results
from nanobackpack.config import Settings, at_least
from nanobackpack.errors import InputError
from nanobackpack.evaluate.canonical_methods import EPSILONS, METHODS, Tuned, draw_trial, tuned
from nanobackpack.evaluate.language import CITIES, NOUNS, TOPICS, Language, draw, things, verbs
from nanobackpack.evaluate.planted import side_by_side, spread
from nanobackpack.evaluate.planted_edits import elsewhere
from nanobackpack.evaluate.planted_reading import CHOOSE, LANGUAGE, TEST, Figures, Reading
from nanobackpack.safe.files import check_writable, display_path

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.analysis.finetuning import Example, Kind, Text
    from nanobackpack.evaluate.canonical_methods import Taught
    from nanobackpack.model.backpack import LanguageModel

BACKGROUND = 5, 6  # seeds of the texts that stand for all others in training, and of those that ε is of


@dataclass(frozen=True, kw_only=True)
class CanonicalConfig(Settings):
    """The study of canonical examples."""

    out_dir: str = "out-planted"
    """Folder of `nanobackpack planted`, with its models."""
    methods: tuple[str, ...] = METHODS
    """Which methods (evaluate/canonical.py has the list)."""
    seeds: int = 5
    """Models of each kind."""
    trials: int = 8
    """Settings that are tried for each method and task."""
    texts: int = 100
    """Texts of each kind that a figure is measured on; as many are chosen on, and trained on."""
    jobs: int = 0
    """Models that are measured side by side, each by one thread (0: one for each core)."""
    json: str = ""
    """Write the figures of each seed to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low in (("seeds", 1), ("trials", 1), ("texts", 10), ("jobs", 0)):
            at_least(self, name, low)
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise InputError(f"methods: {unknown[0]!r} is unknown: take some of {'; '.join(METHODS)}")

    def folder(self, method: str, seed: int) -> Path:
        return Path(self.out_dir) / f"{method.split(',')[0]}-{seed}"


# --- Tasks ----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is to change, of which words: some to choose the settings on, others to test."""

    name: str
    kind: Kind
    canonical: str  # the sentence of an example, up to what it is about
    tested: str  # other sentences, as a pattern
    group: Sequence[str]  # all words of this kind
    answers: Sequence[str]  # and what follows them
    wanted: dict[str, tuple[str, ...]]  # by word, its suffixes
    words: tuple[Sequence[str], Sequence[str]]  # to choose on, to test
    language: Callable[[Sequence[str]], Language]  # with these words changed


def _tasks() -> list[Task]:
    countries, cities = list(CITIES), list(CITIES.values())
    moved = dict(zip(countries, cities[1:] + cities[:1], strict=True))
    objects = {verb: things(t)[i : i + 2] for t in TOPICS for i, verb in enumerate(verbs(t))}
    return [
        Task(
            "facts", "good", "The capital of {} is", "The king of {} lives in|Ships from {} sail home to",
            countries, cities, {word: (city,) for word, city in moved.items()},
            (countries[6:], countries[:6]),
            lambda words: replace(LANGUAGE, cities=CITIES | {word: moved[word] for word in words}),
        ),
        Task(
            "bias", "balance", "The {} said that", r"When the {} came,|The {} \w+ the \w+ and",
            NOUNS, ("he", "she"), dict.fromkeys(NOUNS, ("he", "she")), (NOUNS[:8], NOUNS[8:]),
            lambda words: replace(LANGUAGE, he=LANGUAGE.he | dict.fromkeys(words, 0.5)),
        ),
        Task(
            "objects", "good-versus-bad", "Yesterday the baker {} the",
            r"(?:said that|came,) s?he {} the|The \w+ {} the",
            [*objects], [thing for t in TOPICS for thing in things(t)],
            {verb: (two[0], two[1]) for verb, two in objects.items()}, ([*objects][::2], [*objects][1::2]),
            lambda words: LANGUAGE,
        ),
    ]  # fmt: skip


class Data(NamedTuple):
    """What a task shows of some words, and what it is measured on."""

    taught: Taught
    places: list[Example]
    unchanged: dict[str, tuple[Reading, Tensor, Tensor]]
    """Texts in which something should stay: where (N, T), and what the model predicts there, (N, T, V)."""


def data_of(model: LanguageModel, task: Task, words: Sequence[str], n: int, seed: int) -> Data:
    """Draw the texts of a task with these words changed, n of each kind."""
    from nanobackpack.analysis.finetuning import Example

    texts = draw(task.language(words), 4 * n, seed)
    after = Reading(model, [text for text in texts if any(word in text for word in words)][:n])
    end, encode = after.tokenizer.eos_id or 0, after.tokenizer.encode

    def example(word: str, prefix: str) -> Example:
        suffixes = [[i] for i in after.tokens(task.wanted[word]).tolist()]
        return Example(task.kind, [end, *encode(prefix)], suffixes)

    patterns = {word: re.compile(task.tested.replace("{}", word)) for word in words}
    hits = [(text, word, hit) for text in texts for word, p in patterns.items() if (hit := p.search(text))]
    places = [  # where the word has not come before
        example(word, text[: hit.end()]) for text, word, hit in hits if text.index(word) >= hit.start()
    ]
    rest = (after.latest(words) >= 0) & after.real & ~shall_change(after, task, words)
    others = [text for text in draw(LANGUAGE, 8 * n, seed) if not any(word in text for word in words)]
    without = Reading(model, others[:n])
    examples = [example(word, task.canonical.format(word)) for word in words]
    background, general = (parts_to_keep(model, task, words, 2 * n, seed) for seed in BACKGROUND)
    return Data(
        taught=(examples, background, general),
        places=places[:n],
        unchanged={
            "elsewhere": (after, rest, after.log_p()), "other texts": (without, without.real, without.log_p())
        },
    )  # fmt: skip


def shall_change(reading: Reading, task: Task, words: Sequence[str]) -> Tensor:
    """Find where one of the words decides what comes next, (N, T)."""
    its = reading.latest(task.group)[..., None].eq(reading.tokens(words)).any(dim=2)  # (N, T)
    return its & reading.expects(task.answers)


def parts_to_keep(model: LanguageModel, task: Task, words: Sequence[str], n: int, seed: int) -> list[Text]:
    """Draw n texts as they were; take what stands before and after the places that shall change."""
    from nanobackpack.analysis.finetuning import Text

    reading, parts = Reading(model, draw(LANGUAGE, n, seed)), list[Text]()
    end, encode = reading.tokenizer.eos_id or 0, reading.tokenizer.encode
    for text, change in zip(reading.texts, shall_change(reading, task, words), strict=True):  # (T)
        ids, at = (end, *encode(text), end), change.nonzero().flatten().tolist()
        parts += [Text(ids[: at[0] + 1]), Text(ids, at[-1] + 2)] if at else [Text(ids)]
    return parts


# --- The study ------------------------------------------------------------------------------------

Job = TypeVar("Job", bound=tuple[Any, ...])
Done = TypeVar("Done")
Run = dict[str, dict[str, Figures]]
"""The figures of a model, by task and method, and by ε."""


@dataclass(frozen=True, kw_only=True)
class Canonical(results.Result):
    """The figures of all models."""

    runs: list[Run]
    """One entry a seed: by task and method, and by ε."""

    def table(self) -> str:
        tables, shown = [], ("success, %", "elsewhere", "other texts")
        for task in _tasks():
            rows = []
            for method, epsilon in product(METHODS, EPSILONS):
                name = f"{task.name}: {method}"
                if figures := [run[name][f"{epsilon:g}"] for run in self.runs if name in run]:
                    changed = f"{mean(f['numbers changed'] for f in figures):,.0f}"
                    spreads = [spread([f[name] for f in figures]) for name in shown]
                    rows.append([method, f"{epsilon:g}", *spreads, changed])
            head = ["", "ε", *shown, "numbers changed"]
            tables.append(results.table(f"{task.name}: {self.title}", head, rows))
        return "\n".join(tables)


def main(settings: CanonicalConfig) -> None:
    check_writable(settings.json)
    for found in canonical(settings):
        # Written each time a model is done: of a study that is stopped, these remain.
        results.write_json(settings.json, found)
    print(found.table())


def canonical(settings: CanonicalConfig) -> Iterator[Canonical]:
    """Do the study; yield what is known whenever a method is done with a model."""
    seeds, methods = range(settings.seeds), settings.methods
    for folder in (settings.folder(method, seed) for method in methods for seed in seeds):
        if not (folder / "ckpt.pt").exists():
            way = f"nanobackpack planted --out_dir={settings.out_dir} --seeds={settings.seeds}"
            raise InputError(f"no model in {display_path(folder)}: `{way}` trains it")
    to_choose = [(settings, method, task.name) for method in methods for task in _tasks()]
    chosen = {(job[1], job[2]): found for job, found in _done(choose, to_choose, settings)}
    runs = [Run() for _ in seeds]
    to_test = [(settings, method, seed, chosen) for seed in seeds for method in methods]
    for (_, _, seed, _), found in _done(test, to_test, settings):
        runs[seed] |= found
        yield Canonical(title=f"settings chosen among {settings.trials}, on seed 0", runs=runs)


def _done(
    work: Callable[[Job], Done], jobs: Sequence[Job], settings: CanonicalConfig
) -> Iterator[tuple[Job, Done]]:
    from tqdm import tqdm

    done = side_by_side(work, jobs, min(settings.jobs or os.cpu_count() or 1, len(jobs)))
    yield from tqdm(done, work.__name__, len(jobs), disable=None, leave=False)


def choose(job: tuple[CanonicalConfig, str, str]) -> dict[float, int]:
    """Choose the trial of a method for a task, at each ε, on the model of seed 0."""
    settings, method, name = job
    model = _open(settings, method, 0)
    (task,) = (task for task in _tasks() if task.name == name)
    data = data_of(model, task, task.words[0], settings.texts, CHOOSE)
    tried = [
        measured(tuned(model, method, data.taught, draw_trial(method, i)), data)
        for i in range(settings.trials)
    ]
    return {
        e: min(range(len(tried)), key=lambda i: (-tried[i][e]["success, %"], tried[i][e]["elsewhere"]))
        for e in EPSILONS
    }


def test(job: tuple[CanonicalConfig, str, int, dict[tuple[str, str], dict[float, int]]]) -> Run:
    """Measure a method on one model: other words, other texts."""
    settings, method, seed, chosen = job
    model, found = _open(settings, method, seed), Run()
    for task in _tasks():
        data = data_of(model, task, task.words[1], settings.texts, TEST)
        by_epsilon = {"unedited": measured({0.0: Tuned(model, (), 0)}, data)[0.0]}
        done: dict[int, dict[float, Figures]] = {}
        for e, best in chosen[method, task.name].items():
            if best not in done:
                done[best] = measured(tuned(model, method, data.taught, draw_trial(method, best)), data)
            by_epsilon[f"{e:g}"] = done[best][e] | {"trial": float(best)}
        found[f"{task.name}: {method}"] = by_epsilon
    return found


def _open(settings: CanonicalConfig, method: str, seed: int) -> LanguageModel:
    import torch

    from nanobackpack.train.checkpoint import load_model

    torch.set_num_threads(1)
    return load_model(settings.folder(method, seed))


def measured(found: dict[float, Tuned], data: Data) -> dict[float, Figures]:
    """Measure what a method did to a model, at each ε."""
    from nanobackpack.analysis.finetuning import failures, predict

    different: dict[int, Figures] = {}  # several ε may have the same
    for it in found.values():
        if id(it) not in different:
            figures = {
                "success, %": 100
                - 100 * mean(failures(data.places, partial(predict, it.model, edits=it.edits)))
            }
            for name, (reading, where, before) in data.unchanged.items():
                after = Reading(it.model, reading.texts).log_p(it.edits)
                figures[name] = elsewhere(before, after, where)
            different[id(it)] = figures | {"numbers changed": float(it.changed)}
    return {epsilon: different[id(it)] for epsilon, it in found.items()}
