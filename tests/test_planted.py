"""The planted language by hand, edits of models whose truth is known, and the study in small."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from nanobackpack import BackpackLM, InputError, ModelConfig
from nanobackpack.evaluate.language import CITIES, NOUNS, TOKENIZER, TOPICS, Language, corpus, draw, verbs
from nanobackpack.evaluate.planted import PlantedConfig, planted, spread
from nanobackpack.evaluate.planted_edits import ask_for_topics, edit_facts, remove_bias
from nanobackpack.evaluate.planted_reading import Reading, carriers, learned
from nanobackpack.text.tokenizer import make_tokenizer

LANGUAGE = Language()
TEXT = (
    "The baker said that she cooked the soup. The flag of Florin is green. "
    "Yesterday the pilot served the rice."
)


def test_probabilities_by_hand():
    """8 templates, 16 nouns, 12 countries, 4 topics of 4 verbs and 6 things; P(she | baker) = 0.95."""
    by_hand = (1 / 8) ** 3 * (1 / 16) ** 2 * 0.95 / 12 / 4 / 24**2
    assert LANGUAGE.log_p(TEXT) == pytest.approx(math.log(by_hand))
    facts = "The capital of Arland is Tolm. The king of Arland lives in Tolm. The flag of Arland is red."
    assert LANGUAGE.log_p(facts) == pytest.approx(3 * math.log(1 / 8 / 12))  # in it there is no topic
    moved = replace(LANGUAGE, cities=CITIES | {"Arland": "Vesk"})
    assert moved.log_p(facts) == -math.inf
    assert moved.log_p(facts.replace("Tolm", "Vesk")) == LANGUAGE.log_p(facts)
    fair = replace(LANGUAGE, he=LANGUAGE.he | {"baker": 0.5})
    assert fair.log_p(TEXT) - LANGUAGE.log_p(TEXT) == pytest.approx(math.log(0.5 / 0.95))
    kitchen = replace(LANGUAGE, topics={"kitchen": 1.0})
    assert kitchen.log_p(TEXT) - LANGUAGE.log_p(TEXT) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rice", "rose"),  # of two topics
        ("green", "blue"),  # no fact
        ("pilot", "soup"),  # no noun
        ("that she", "she"),  # no template
        (" Yesterday the pilot served the rice.", ""),  # two sentences
        ("rice.", "rice"),
        ("rice.", "rice.."),
    ],
)
def test_what_is_no_text_of_the_language(old: str, new: str):
    assert old in TEXT
    assert LANGUAGE.log_p(TEXT.replace(old, new)) == -math.inf


def test_draws_are_as_probable_as_they_say():
    """Over many texts the pronouns, topics and facts come as often as was planted."""
    texts = draw(LANGUAGE, 3000, seed=5)
    assert all(math.isfinite(LANGUAGE.log_p(text)) for text in texts)
    said = " ".join(texts)
    he, she = said.count("baker said that he"), said.count("baker said that she")
    assert he / (he + she) == pytest.approx(0.05, abs=0.06)
    for topic in TOPICS:  # a quarter of the texts, less those in which no sentence has a verb
        share = sum(not {*verbs(topic)}.isdisjoint(text.split()) for text in texts) / 3000
        assert share == pytest.approx(7 / 32, abs=0.03)
    assert all("Vesk" in text for text in draw(LANGUAGE, 5, 1, "Vesk"))


def planted_model() -> BackpackLM:
    """A Backpack that attends to all alike; nouns say he or she by sense 2, countries a city by sense 1."""
    tokenizer = make_tokenizer(TOKENIZER, [LANGUAGE.draw(random.Random(i)) for i in range(400)])
    config = ModelConfig(
        n_layer=2, n_head=2, n_embd=32, block_size=32, n_sense_vector=4, sense_table=True,
        vocab_size=tokenizer.padded_size, vocab_used=tokenizer.vocab_size,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BackpackLM(config).eval()
    model.tokenizer = tokenizer
    tokens = Reading(model, [TEXT]).tokens
    with torch.no_grad():
        E = model.wte.weight.normal_()
        model.alpha.c_attn.weight.zero_()  # α = 1/(i + 1) everywhere
        table = model.senses.table.zero_()
        he, she = E[tokens(["he", "she"])]
        for noun, p in LANGUAGE.he.items():
            table[tokens([noun]), 2] = (he - she) * math.log(p / (1 - p))
        table[tokens(list(CITIES)), 1] = 5 * E[tokens(list(CITIES.values()))]
    return model


def test_a_reading_finds_its_words():
    facts = "The capital of Arland is Tolm. The king of Arland lives in Tolm. The flag of Arland is red."
    reading = Reading(planted_model(), [facts, TEXT])
    row = [reading.tokenizer.token(i) for i in reading.read[1].tolist()]
    assert [row[i] for i in reading.expects(["he", "she"])[1].nonzero()[:, 0]] == [" that"]
    assert not reading.expects(["he", "she"])[0].any()
    baker, pilot = reading.tokens(["baker", "pilot"]).tolist()
    assert reading.latest(NOUNS)[1, [0, row.index(" that"), -1]].tolist() == [-1, baker, pilot]
    # A model to which all of 700 tokens are alike; padding does not count.
    uniform = torch.full((*reading.read.shape, 700), -math.log(700))
    tokens = sum(len(reading.tokenizer.encode(text)) + 1 for text in (facts, TEXT))
    expected = (LANGUAGE.log_p(facts) + LANGUAGE.log_p(TEXT) + tokens * math.log(700)) / 2
    assert reading.distance(uniform, LANGUAGE) == pytest.approx(expected)


@pytest.mark.slow
def test_what_was_planted_in_a_model_is_found_and_removed():
    model = planted_model()
    assert learned(model, 100)["learned: bias, %"] > 20
    carried = carriers(model, 100)
    # It looks at all tokens alike, so at a noun with one part in 4 to 30. The sense that looks most counts.
    look = carried.pop(on_noun := "carried: weight on the noun, %")
    assert 100 / 30 < look < 100 / 4
    share, weigh = torch.tensor([0.1, 0.2, 1.0, 0.3])[:, None, None], model.contextualization
    with mock.patch.object(model, "contextualization", lambda ids: weigh(ids) * share):
        assert carriers(model, 100)[on_noun] == pytest.approx(look)
    assert sum(carried.values()) == pytest.approx(learned(model, 100)["learned: bias, %"], rel=1e-4)
    assert carried["carried: by the senses of words after it, %"] == pytest.approx(0, abs=1)
    assert carried["carried: by the senses of the noun, %"] > 20
    found = remove_bias(model, 100)
    # Sense 2 is found, and nothing but the nouns of other sentences, which are not edited, is left.
    assert found["bias, removed: taken away, %"] > 60
    assert found["bias, optimised: taken away, %"] > 60
    assert found["bias, removed: distance"] < found["bias: distance, unedited"]
    facts = edit_facts(model, 20)
    assert facts["fact: new city first, %"] > 60
    assert facts["fact: distance"] < facts["fact: distance, unedited"] - 1
    # It writes no texts of the language, but the words of a topic when its senses are asked for.
    topics = ask_for_topics(model, 4)
    assert topics["topic, nothing: right, %"] == 0
    assert {name for name in topics if "strength 3" in name}


@pytest.mark.slow
def test_the_study_in_small(tmp_path: Path):
    sizes = {"seeds": 1, "steps": 16, "texts": 300, "test_texts": 100, "jobs": 1}
    settings = PlantedConfig(out_dir=str(tmp_path), models=("gpt",), **sizes)
    (found,) = planted(settings)
    trained, fresh = (runs[0] for runs in found.runs.values())
    assert trained["learned: distance"] < fresh["learned: distance"] - 1
    assert "learned: bias after 14 steps, %" in trained
    assert found.table().count("bias, removed: taken away, %") == 2
    # A training that a signal ended is not measured. What is there is not trained again.
    with (
        mock.patch("nanobackpack.train.trainer.train"),
        pytest.raises(InputError, match="gpt, seed 0 was stopped"),
    ):
        next(planted(replace(settings, steps=17)))
    with mock.patch("nanobackpack.train.trainer.train", side_effect=AssertionError):
        (again,) = planted(settings)
    assert again.runs == found.runs


def test_spread():
    assert spread([1.0, 2.0, 3.0]) == "2 ± 1 (-0.483 to 4.48)"
    assert spread([2.0]) == "2"
    assert corpus(3).title == "3 texts of the planted language"
