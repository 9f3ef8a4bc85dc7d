"""What edits do to a model of the planted language: a bias removed, a fact moved, a topic asked for.

    remove_bias(model, n) | edit_facts(model, n) | ask_for_topics(model, n)     # figures by name

All figures are of n texts or so, drawn anew. A `distance` is in nats a text, from the language that a perfect
edit would lead to, to what the model does: KL(language ‖ model), exact up to the choice of texts. `elsewhere`
is what an edit changes where it should change nothing, after the edited word, in nats a token: KL(model ‖
edited model). Before the edited word, and in texts without it, nothing changes at all.

Letters: N texts, T tokens of a text and its end, V vocabulary, K senses, D width.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING

from nanobackpack.evaluate.language import COLOURS, NOUNS, TOPICS, draw, things, verbs
from nanobackpack.evaluate.planted_reading import CHOOSE, LANGUAGE, TEST, Figures, Reading, share

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import Edit, EditLike

CITIES, COUNTRIES = list(LANGUAGE.cities.values()), list(LANGUAGE.cities)
CHANGED = 6  # facts that are edited, one at a time
FACTORS = [i / 10 for i in range(-10, 11)]


def elsewhere(before: Tensor, after: Tensor, where: Tensor) -> float:
    """Compute KL(before ‖ after) in nats a token, at the positions `where` (N, T)."""
    kl = (before.exp() * (before - after)).sum(dim=2)  # (N, T)
    return kl[where].double().mean().item()


# --- Bias -----------------------------------------------------------------------------------------


def remove_bias(model: LanguageModel, n: int) -> Figures:
    """Take the pronoun out of half of the nouns.

    A Backpack loses the sense whose removal helps most with the other half, in other texts; a GPT's
    embeddings lose what tells she from he. `optimised` has in place of 0 the best factor for each noun, found
    in other texts. Each has one more remedy. What tells she from he is taken out of all senses of a Backpack;
    out of a GPT's embeddings, the direction in which those of the other half follow their odds.
    """
    from nanobackpack.analysis.control import ReplaceSenses, ScaleSense, nullspace
    from nanobackpack.model.backpack import BackpackLM
    from nanobackpack.model.edits import GPTNullspace

    others, nouns = NOUNS[: len(NOUNS) // 2], NOUNS[len(NOUNS) // 2 :]
    fair = replace(LANGUAGE, he=LANGUAGE.he | dict.fromkeys(nouns, 0.5))
    choose, test = (Reading(model, draw(LANGUAGE, n, seed)) for seed in (CHOOSE, TEST))
    ideal = Reading(model, draw(fair, n, TEST))
    he, she = choose.tokens(["he", "she"]).tolist()
    ids = choose.tokens(nouns).tolist()

    def bias(pronouns: tuple[Tensor, Tensor], of: Sequence[str]) -> float:
        odds, whose = pronouns  # (M) each
        return odds[whose.unsqueeze(1).eq(choose.tokens(of)).any(dim=1)].abs().mean().item()

    E = model.wte.weight.detach()
    scaled: Callable[[Sequence[int], float], Edit]
    last: dict[str, EditLike]
    if isinstance(model, BackpackLM):
        theirs = tuple(choose.tokens(others).tolist())
        without = [
            bias(choose.odds(choose.log_p(ScaleSense(theirs, 0.0, k))), others)
            for k in range(model.config.n_sense_vector)
        ]
        sense = without.index(min(without))
        scaled = lambda tokens, factor: ScaleSense(tuple(tokens), factor, sense)  # noqa: E731
        C, g = model.sense_vectors(ids), E[she] - E[he]  # (nouns / 2, K, D), (D)
        along = (C @ g)[..., None] * g / (g @ g)  # (nouns / 2, K, D)
        last = {"out of all senses": ReplaceSenses(tuple(ids), (C - along).cpu())}
    else:
        scaled = lambda tokens, factor: nullspace(model, tokens, she, he, factor)  # type: ignore[arg-type]  # noqa: E731
        odds, whose = choose.odds(choose.log_p())
        e = E[choose.tokens(others)]  # (nouns / 2, D)
        means = E.new_tensor([odds[whose == token].mean() for token in choose.tokens(others)])  # (nouns / 2)
        direction = (means - means.mean()) @ (e - e.mean(dim=0))  # (D)
        last = {"direction of the nouns": GPTNullspace(tuple(ids), 0.0, direction)}
    left = {f: choose.odds(choose.log_p(scaled(ids, f))) for f in FACTORS}
    best = {noun: min(FACTORS, key=lambda f: bias(left[f], [noun])) for noun in nouns}
    optimised = [scaled(test.tokens([noun]).tolist(), factor) for noun, factor in best.items()]
    remedies: dict[str, EditLike] = {"removed": scaled(ids, 0.0), "optimised": optimised, **last}

    before = test.log_p()
    rest = (test.latest(nouns) >= 0) & test.real & ~test.expects(["he", "she"])
    found = {"bias: distance, unedited": ideal.distance(ideal.log_p(), fair)}
    for name, edits in remedies.items():
        after = test.log_p(edits)
        taken = 1 - bias(test.odds(after), nouns) / bias(test.odds(before), nouns)
        found[f"bias, {name}: taken away, %"] = 100 * taken
        found[f"bias, {name}: elsewhere"] = elsewhere(before, after, rest)
        found[f"bias, {name}: distance"] = ideal.distance(ideal.log_p(edits), fair)
    return found


# --- Facts ----------------------------------------------------------------------------------------


def edit_facts(model: LanguageModel, n: int) -> Figures:
    """Move a capital. A Backpack's senses of the country exchange the old city for the new one. The nearest
    that a GPT has is its embedding: it is reflected along what tells the two cities apart."""
    from nanobackpack.analysis.control import knowledge_edit, nullspace
    from nanobackpack.model.backpack import BackpackLM

    found: list[Figures] = []
    for i, country in enumerate(COUNTRIES[:CHANGED]):
        new = CITIES[i + 1]
        moved = replace(LANGUAGE, cities=LANGUAGE.cities | {country: new})
        texts = Reading(model, draw(moved, n // 2, TEST, country))
        token, remove, add = texts.tokens([country, CITIES[i], new]).tolist()
        edit: Edit
        if isinstance(model, BackpackLM):
            edit = knowledge_edit(model, token, remove, add)
        else:
            edit = nullspace(model, [token], remove, add, factor=-1.0)  # type: ignore[arg-type]
        before, after = texts.log_p(), texts.log_p(edit)
        right = after.argmax(dim=2) == texts.next  # (N, T)
        here, cities = texts.latest(COUNTRIES) == token, texts.expects(CITIES)
        wanted, since = here & cities, texts.latest([country]) >= 0
        others, colours = cities & ~here & since, texts.expects(COLOURS) & here
        found.append({
            "fact: distance, unedited": texts.distance(before, moved),
            "fact: new city first, %": share(right[wanted]),
            "fact: ... in the worst template, %": min(
                share(right[wanted & (texts.read == last)]) for last in texts.read[wanted].unique()
            ),
            "fact: other countries' cities, %": share(right[others]),
            "fact: the country's flag, %": share(right[colours]),
            "fact: elsewhere": elsewhere(before, after, since & texts.real & ~wanted),
            "fact: distance": texts.distance(after, moved),
        })  # fmt: skip
    return {name: mean(figures[name] for figures in found) for name in found[0]}


# --- Topics ---------------------------------------------------------------------------------------


def ask_for_topics(model: LanguageModel, n: int) -> Figures:
    """Ask for a topic: in a Backpack by its senses, in both by a first sentence. The bag, and the sentence,
    hold half of its words, and the other half is counted: how many of those in the texts are of the topic. A
    text is right if the language has it: each sentence, each fact, one topic throughout."""
    import torch

    from nanobackpack.analysis.control import sense_peaks, topic
    from nanobackpack.model.backpack import BackpackLM

    reading = Reading(model, draw(LANGUAGE, 1, TEST))
    end, tokenizer, dice = reading.tokenizer.eos_id or 0, reading.tokenizer, random.Random(TEST)
    hidden = {name: {*verbs(name)[2:], *things(name)[3:]} for name in TOPICS}
    peaks = sense_peaks(model) if isinstance(model, BackpackLM) else None
    found: dict[str, list[float]] = defaultdict(list)
    for number, name in enumerate(TOPICS):
        shown = verbs(name)[:2], things(name)[:3]
        firsts = [
            f"Yesterday the {dice.choice(NOUNS)} {dice.choice(shown[0])} the {dice.choice(shown[1])}."
            for _ in range(n // 4)
        ]
        nothing = [""] * len(firsts)
        ways: dict[str, tuple[list[str], EditLike]]
        ways = {"nothing": (nothing, ()), "a first sentence": (firsts, ())}
        if isinstance(model, BackpackLM):
            bag = reading.tokens([*shown[0], *shown[1]]).tolist()
            for strength in (1, 2, 3):
                ways[f"senses, strength {strength}"] = nothing, topic(model, bag, strength, peaks=peaks)
        for way, (prompts, edits) in ways.items():
            rows = [[end, *tokenizer.encode(prompt)] for prompt in prompts]
            room = model.config.block_size - max(map(len, rows))
            draws = torch.Generator(reading.read.device).manual_seed(number)
            grown = model.generate(rows, room, generator=draws, stop=[end], edits=edits)
            texts = [tokenizer.decode(row[1:]).removesuffix("<|endoftext|>") for row in grown]
            new = " ".join(text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True))
            words = [word for word in new.replace(".", " ").split() if word in set().union(*hidden.values())]
            on = sum(word in hidden[name] for word in words)
            found[f"topic, {way}: on topic, %"].append(100 * on / max(1, len(words)))
            right = sum(LANGUAGE.log_p(text) > -math.inf for text in texts)
            found[f"topic, {way}: right, %"].append(100 * right / len(texts))
    return {name: mean(values) for name, values in found.items()}
