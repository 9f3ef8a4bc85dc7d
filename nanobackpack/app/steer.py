"""The tab Steer: edits as a person wishes for them, what they do to a prompt and what they cost; files.

    wishes = Wishes(scale=(("king", 13, 0.0),), bag="love heart", strength=2)
    steer(senses, "out-en", "My lord, the king", wishes)            # a view: the next token without and with
    for without, with_edits in streams(senses, "My lord", wishes.edits(senses)): ...

Edits are handed to each call, and never put into the model, which all users share.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanobackpack.analysis import control
from nanobackpack.analysis.effect import edited_words, effect
from nanobackpack.analysis.prompts import as_read, cleaned
from nanobackpack.analysis.senses import Senses
from nanobackpack.app import html
from nanobackpack.app.view import View, command_of, python_of
from nanobackpack.config import AnalysisConfig, SampleConfig
from nanobackpack.errors import InputError, short_repr
from nanobackpack.evaluate.cost import Cost, CostConfig, cost, held_out
from nanobackpack.model.edits import Edit
from nanobackpack.model.texts import Row, grow
from nanobackpack.runtime import seed_of
from nanobackpack.safe.files import display_path
from nanobackpack.text.words import first_ids, token_id

MOST_TOKENS = 300  # of a sample,
MOST_SECONDS = 60.0  # and the time that it may take
FILE = "edits.safetensors"  # what the saved file is called


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The edits that somebody wishes for."""

    scale: tuple[tuple[str, int, float], ...] = ()
    """Words, the sense of each (-1: all), and its factor."""
    bag: str = ""
    """Words of a topic, with blanks between them."""
    strength: int = 2
    word: str = ""
    """A word whose senses shall predict `add` where they predicted `remove`."""
    remove: str = ""
    add: str = ""
    file: str = ""
    """A file of edits that come first."""

    def edits(self, senses: Senses) -> tuple[Edit, ...]:
        """Make the edits, for one model."""
        model, tokenizer = senses.model, senses.tokenizer
        try:
            edits: list[Edit] = list(control.load(self.file, model)) if self.file else []
        except InputError as error:  # where it lies on this machine is nobody's business
            raise InputError(str(error).replace(display_path(self.file), Path(self.file).name)) from None
        for word, sense, factor in self.scale:
            edits += control.scale(model, word, factor, None if sense < 0 else sense)
        if any((self.word, self.remove, self.add)):
            if not all((self.word, self.remove, self.add)):
                raise InputError(
                    "a changed fact needs three words: of what, what is no longer said, and what is"
                )
            directions = first_ids(tokenizer, [self.remove, self.add])
            edits.append(control.knowledge_edit(model, token_id(tokenizer, self.word), *directions))
        if bag := self.bag.split():
            peaks = _peaks(senses)
            edits.append(control.topic(model, first_ids(tokenizer, bag), self.strength, peaks=peaks))
        return tuple(edits)

    def python(self) -> list[str]:
        """Write the calls that make the edits."""
        lines = [f"edits = [*nb.control.load({FILE!r}, model)]" if self.file else "edits = []"]
        for word, sense, factor in self.scale:
            which = "" if sense < 0 else f", sense={sense}"
            lines.append(f"edits += nb.control.scale(model, {word!r}, {factor:g}{which})")
        if self.word and self.remove and self.add:
            ids = ", ".join(f"model.tokenizer.word_ids({w!r})[0]" for w in (self.word, self.remove, self.add))
            lines.append(f"edits += [nb.control.knowledge_edit(model, {ids})]")
        if bag := self.bag.split():
            ids = f"[model.tokenizer.word_ids(word)[0] for word in {bag}]"
            lines.append(f"edits += [nb.control.topic(model, {ids}, {self.strength})]")
        return lines


def read_scale(text: str) -> tuple[tuple[str, int, float], ...]:
    """Read the list of [word, sense, factor] that the page and its address have."""
    try:
        items = tuple(
            (str(word), int(sense), float(factor)) for word, sense, factor in json.loads(text) if word
        )
        if all(math.isfinite(factor) for _, _, factor in items):
            return items
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    raise InputError(f'scale={short_repr(text)} is no list such as [["king", 13, 0.5]]')


def read_wishes(
    scale: str, bag: str, strength: float, of: str, remove: str, add: str, file: str | None
) -> Wishes:
    """Read what is typed."""
    wishes = Wishes(scale=read_scale(scale), bag=bag, strength=int(strength), file=file or "")
    return replace(wishes, word=of, remove=remove, add=add)


@cache
def _peaks(senses: Senses) -> Tensor:
    """What all topics of a model need, computed once: long for a large vocabulary."""
    return control.sense_peaks(senses.model)


def steer(
    senses: Senses,
    path: str,
    prompt: str,
    wishes: Wishes,
    new_tokens: int = 100,
    seed: int = 1337,
    k: int = 12,
) -> View:
    """Show the likeliest next tokens without and with the edits, and how much likelier each became."""
    edits = wishes.edits(senses)
    likeliest = [[i] for i in senses.next_tokens(prompt, k).ids[0].tolist()]
    found = effect(senses, edits, prompt, k=k, n=0, tested=likeliest)
    (first,), (then,) = found.next_before.tokens, found.next_after.tokens
    p, q = found.next_before.scores[0].tolist(), found.next_after.scores[0].tolist()
    top = max(p[0], q[0])  # so that bars of both sides compare
    return View(
        html=html.show(
            html.tag(
                "div",
                html.section("As the model is", html.bars(first, p, click=False, top=top)),
                html.section("With your edits", html.bars(then, q, click=False, top=top)),
                class_="nb-cards",
                style="--n:2",
            ),
        ),
        results=[found],
        drawn=[found],
        python=python_of(
            path,
            *wishes.python(),
            "with nb.control.applied(model, edits):",
            f"    print(senses.next_tokens({prompt!r}, {k}).table(scores=True))",
        ),
        command=distribution_command(path, prompt, wishes, k)
        + sample_command(path, prompt, new_tokens, seed, bool(edits)),
        state={"prompt": prompt, "scale": json.dumps(wishes.scale)},
    )


def distribution_command(path: str, prompt: str, wishes: Wishes, k: int) -> str:
    """Write the command that gives the next tokens without and with the edit, of one slider; of other edits
    none does without their file."""
    if len(wishes.scale) != 1 or wishes != Wishes(scale=wishes.scale, strength=wishes.strength):
        return ""
    ((word, sense, factor),) = wishes.scale
    flags = [f"--word={word}", f"--sense={sense}", f"--factor={factor:g}", f"--prompt={prompt}", f"--k={k}"]
    return command_of("steer", path, *flags, "--num_samples=0") + "\n"


# --- Samples ------------------------------------------------------------------------------------


def sample_command(path: str, prompt: str, new_tokens: int, seed: int, edited: bool) -> str:
    """Write the command that gives the same sample, under the saved file if there are edits."""
    about = f"# The sample, once the edits are saved as {FILE}:\n" * edited
    flags = [f"--edits={FILE}"] * edited + [f"--start={prompt}", "--num_samples=1"]
    return about + command_of("sample", path, *flags, f"--max_new_tokens={new_tokens}", f"--seed={seed}")


def streams(
    senses: Senses, prompt: str, edits: Iterable[Edit], new_tokens: int = 100, seed: int = 1337
) -> Iterator[tuple[str, str]]:
    """Grow a sample without and one with the edits, from the same random numbers: those of `nanobackpack
    sample` with that seed, so that its texts are the same."""
    model, tokenizer, usual = senses.model, senses.tokenizer, SampleConfig()
    if not 1 <= new_tokens <= MOST_TOKENS:
        raise InputError(f"{new_tokens} new tokens are out of range: ask for 1 to {MOST_TOKENS}")
    ids = tokenizer.prompt_ids(cleaned(prompt), True)
    if not ids:
        raise InputError("the prompt is empty: give at least one character")
    ids = as_read(model, ids)
    rows, growing = (Row(ids), Row(ids)), []
    for row, given in zip(rows, ((), tuple(edits)), strict=True):
        draw = torch.Generator(model.wte.weight.device).manual_seed(seed_of(seed, 0))
        choice: dict[str, Any] = {"temperature": usual.temperature, "top_k": usual.top_k, "generator": [draw]}
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        growing.append(grow(model, [row], new_tokens, stop=end, edits=given, **choice))
    # Both a token further, until both have ended.
    further = iter(lambda: [True for steps in growing if next(steps, "over") is None], [])
    for _ in in_time(further):
        yield tuple(prompt + row.text(tokenizer) for row in rows)  # type: ignore[misc]


def in_time(steps: Iterable[Any]) -> Iterator[Any]:
    """Do steps one by one, for as long as one may make others wait."""
    stops = time.monotonic() + MOST_SECONDS
    for step in steps:
        yield step
        if time.monotonic() > stops:
            raise InputError(f"stopped after {MOST_SECONDS:.0f} seconds: ask for less")


# --- What edits cost, and files -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Where(AnalysisConfig, CostConfig):
    """Where the model is, and with it the text that was held out."""


def price(
    senses: Senses, path: str, wishes: Wishes, watch: Callable[[list[Any]], Iterable[Any]] = iter
) -> Cost:
    """Measure what the edits do to the text that was held out in training; `watch` sees the windows pass."""
    edits = wishes.edits(senses)
    if not edits:
        raise InputError("there are no edits yet: nothing is changed, and nothing is lost")
    text = held_out(senses.model, _Where(init_from=path), sorted(edited_words(edits)))
    found = cost(senses.model, edits, text, "this edit", lambda rows: in_time(watch(rows)))
    if found is None:
        raise InputError("the text that was held out in training is not here, so the cost cannot be measured")
    return found


def edit_file(senses: Senses, wishes: Wishes) -> bytes:
    """Give the edits as a file, for `sample --edits` and for this page."""
    edits = wishes.edits(senses)
    if not edits:
        raise InputError("there are no edits yet: move a slider, or name a topic")
    with tempfile.TemporaryDirectory() as folder:
        control.save(edits, file := Path(folder, FILE), senses.model)
        return file.read_bytes()


def baked(senses: Senses, path: str, wishes: Wishes, beside: Path) -> Path:
    """Export a model with the edits baked in, as a zip of the folder that `nanobackpack export` writes."""
    from nanobackpack.hub.card import card  # slow to import, where transformers is installed
    from nanobackpack.hub.export import export

    model = control.bake(senses.model, wishes.edits(senses))
    folder = beside / f"{Path(path).name}-edited"
    export(model, folder, card=card(model, Path(path), folder.name, "transformers", FILE))
    return Path(shutil.make_archive(str(folder), "zip", beside, folder.name))
