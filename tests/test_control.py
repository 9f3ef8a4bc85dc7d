"""Control: every edit does what its definition says, with and without a cache, and nothing else.

The definitions stand in oracle.py, position by position; the numbers of the self-check and the worked
examples come from the original programs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, tiny_model
from oracle import plain_edited_logits, plain_generate, plain_logits, plain_senses
from safetensors.torch import save_file
from test_models import SELF_CHECK_IDS, filled_paper
from torch import Tensor
from torch.nn.functional import cross_entropy

import nanobackpack as nb
from nanobackpack import BackpackLM, InputError, SampleConfig
from nanobackpack.analysis import control
from nanobackpack.analysis.control import (
    AmplifyInWord,
    GPTNullspace,
    ReplaceSenses,
    ScaleSense,
    ScaleWord,
    ShiftSenses,
    TopicControl,
)
from nanobackpack.commands import sample
from nanobackpack.model.edits import Edit, TextSoFar
from nanobackpack.model.layouts import NANO, export_state
from nanobackpack.model.texts import Row, grow
from nanobackpack.runtime import seed_of
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.train.checkpoint import save_model

EVERY = tuple(range(23))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draws(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SCALES = (0.5, -1.0, 1.5, 2.0, *[0.7] * 12)
# Edits of a tiny model, strong enough to change its texts.
EDITS: dict[str, Callable[[BackpackLM], tuple[Edit, ...]]] = {
    "remove": lambda m: (ScaleSense((1, 4, 7, 9), 0.0, sense=0),),
    "scale": lambda m: (ScaleSense(EVERY[::2], SCALES[: m.config.n_sense_vector]),
                        ScaleSense("all", 1.5, sense=0)),
    "replace": lambda m: (ReplaceSenses((7, 2), draw(2, m.config.n_sense_vector, m.config.n_embd)),),
    "shift": lambda m: (ShiftSenses((4, 2, 2), (0, m.config.n_sense_vector - 1, 0),
                                    draw(3, m.config.n_embd)),),
    "topic": lambda m: (control.topic(m, [3, 5], 3),),
    "topic-own": lambda m: (TopicControl(1 + draw(23, m.config.n_sense_vector) / 2, f=0.05),),
    "amplify": lambda m: (AmplifyInWord((1, 4, 2), (0.02, 1.0, 50.0)), AmplifyInWord((2, 2), (9.0, 1.0)),
                          AmplifyInWord((2, 7), (40.0, 1.0)), AmplifyInWord((2, 5), (1.0, 30.0))),
    "word": lambda m: (ScaleWord((1, 4, 2), SCALES[: m.config.n_sense_vector]), ScaleWord((2, 2), 3.0),
                       ScaleWord((2, 7), 0.0, sense=0), ScaleWord((2, 5), -1.0)),
}  # fmt: skip
EDITS["all"] = lambda m: tuple(e for name in list(EDITS)[:-1] for e in EDITS[name](m))
# A prompt of (2, T) in which the words to amplify occur, overlapping, and twice.
TEXT = torch.tensor([[1, 4, 2, 2, 2, 7, 9, 1, 4, 2, 2, 3, 8, 2], [2, 2, 2, 2, 5, 1, 4, 2, 0, 6, 7, 7, 2, 2]])


@pytest.fixture(params=EDITS)
def edits(request: pytest.FixtureRequest) -> Callable[[BackpackLM], tuple[Edit, ...]]:
    return EDITS[request.param]


# Every kind of model under all edits at once, and each edit alone on models of either way to decode.
PAIRS = [(model, "all") for model in BACKPACKS]
PAIRS += [(model, name) for model in ("nano", "nano-bias-few") for name in EDITS if name != "all"]


@pytest.fixture(params=PAIRS, ids="-".join)
def edited(request: pytest.FixtureRequest) -> tuple[BackpackLM, tuple[Edit, ...]]:
    """A model and edits for it."""
    kind, name = request.param
    model = tiny_model(**BACKPACKS[kind])
    return model, EDITS[name](model)


# --- The originals' numbers and the worked examples ---------------------------------------------


def last_logits(model: BackpackLM, *edits: Edit) -> list[float]:
    return model(SELF_CHECK_IDS, edits=edits).logits[0, -1].tolist()


def test_self_check_remove():
    """Sense 2 of token 4 removed."""
    expected = [-0.277619, -0.103842, 0.116545, 0.284620, 0.324937, 0.219401, 0.015382]
    assert last_logits(filled_paper(), ScaleSense((4,), 0.0, sense=2)) == pytest.approx(expected, abs=2e-5)


def test_self_check_topic():
    """Scores of token 4 by both maxima, their quantiles, the annealed factors, the controlled logits."""
    model = filled_paper()
    raw = control.topic_scores(model, [2, 5])
    assert raw[4].tolist() == pytest.approx([0.900876, 1.095485, 0.887297, 0.168025], abs=2e-5)
    absolute = control.topic_scores(model, [5, 2], absolute=True)
    assert absolute[4].tolist() == pytest.approx([0.900876, 1.095485, 0.868302, 0.160906], abs=2e-5)
    quantiles = raw.flatten().quantile(torch.tensor([0.95, 0.80, 0.60]))
    assert quantiles.tolist() == pytest.approx([1.090300, 1.060488, 0.902125], abs=2e-5)
    topic = control.topic(model, [2, 5], 3)
    assert topic.f == pytest.approx(0.44)
    assert set(topic.delta.flatten().tolist()) == {torch.tensor(d).item() for d in (3.3, 3.0, 1.0)}
    seen = TextSoFar(SELF_CHECK_IDS, plain_senses(model, SELF_CHECK_IDS), model.wte.weight)
    factors = topic.factors(seen)  # (B, K, N, S)
    assert factors[0, :, -1, 1].tolist() == pytest.approx([1, 3.316785, 1, 1], abs=2e-5)
    expected = [-0.613429, -0.209791, 0.288016, 0.656541, 0.730367, 0.476353, 0.008520]
    assert last_logits(model, topic) == pytest.approx(expected, abs=2e-5)


def test_self_check_knowledge_edit():
    """Of token 4 what speaks for 2 made to speak for 5."""
    edit = control.knowledge_edit(filled_paper(), 4, remove=2, add=5)
    assert edit.tokens == (4,)
    expected = [-0.014734, 0.043511, 0.081293, 0.080841]
    assert edit.table[0, 2, :4].tolist() == pytest.approx(expected, abs=2e-5)


def test_example_amplify():
    """Weights (.1, .3) amplified by (4, 1): (.22857, .17143), and the rest of the row as it was."""
    alpha, ids = torch.tensor([0.1, 0.3, 0.6]).expand(1, 2, 1, 3), torch.tensor([[5, 6, 1]])
    got = AmplifyInWord((5, 6), (4.0, 1.0)).edit_alpha(alpha, TextSoFar(ids, torch.empty(0), torch.empty(0)))
    assert got[0, 1, 0].tolist() == pytest.approx([0.22857, 0.17143, 0.6], abs=1e-5)


def test_example_topic():
    """A = 10 at j = 5, strength 3: sigmoid(1.6) · 1.05 of the way from 1 to 3.3, which is 3.00933."""
    ids, embedding = torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 1)
    seen = TextSoFar(ids, torch.full((1, 1, 6, 1), 10 / 6), embedding)
    assert seen.support[0, 0, -1].tolist() == pytest.approx([10] * 6)
    factors = TopicControl(torch.full((1, 1), 3.3), f=0.44).factors(seen)
    assert factors[0, 0, -1, 5].item() == pytest.approx(3.00933, abs=1e-5)


def test_copy_senses():
    """Named senses come from the other token, the rest stay."""
    model = tiny_model()
    edit = control.copy_senses(model, 3, source=8, which=[0, 2])
    own, other = model.sense_vectors([3, 8])
    assert torch.equal(edit.table[0], torch.stack([other[0], own[1], other[2], own[3]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, gpt: control.copy_senses(gpt, 1, 2, [0]), "a GPT has no senses"),
        (lambda m, gpt: control.nullspace(m, [1], 2, 3), "open a GPT"),
        (lambda m, gpt: control.knowledge_edit(m, 1, 2, 99), "token 99 is outside"),
        (lambda m, gpt: control.copy_senses(m, 1, -2, [0]), "token -2 is outside"),
        (lambda m, gpt: control.copy_senses(m, 1, 2, [4]), "senses 0 to 3"),
        (lambda m, gpt: control.copy_senses(m, 1, 2, [-1]), "senses 0 to 3"),
        (lambda m, gpt: control.nullspace(gpt, [1], 2, 99), "token 99 is outside"),
        (lambda m, gpt: control.topic(m, [1], deltas=(0, 0, 0, 0), f_mode="paper"), "one above 0"),
        (lambda m, gpt: control.topic(m, [1], f_mode="book"), "f_mode='book'"),
        (lambda m, gpt: control.topic_scores(m, []), "the bag is empty"),
        (lambda m, gpt: control.topic_scores(m, [99]), "token 99 is outside"),
        (lambda m, gpt: control.topic(m, [1], deltas=(1, 2, 3)), "give 4"),
        (lambda m, gpt: control.topic(m, [1], 4), "strength=4"),
        (lambda m, gpt: control.topic(m, [1], f_scale=0.0), "f_scale=0.0 is out of range"),
    ],
)
def test_what_cannot_be_made(make: Callable[[BackpackLM, Any], Edit], message: str):
    """A model of the wrong kind, and ids, senses and modes that do not exist, are one line."""
    with pytest.raises(InputError, match=message):
        make(tiny_model(), tiny_model(model_name="gpt2"))


def test_topic_bins_and_modes():
    """A score that reaches a quantile belongs to the bin above it; f is max(delta)/7.5 or the inverse."""
    model = tiny_model(vocab_size=21, vocab_used=21, n_sense_vector=1)  # quantiles 19, 16 and 12 of 0 to 20
    scores = control.topic_scores(model, [3])
    edges = [scores.flatten().quantile(q).item() for q in (0.95, 0.80, 0.60)]
    assert set(edges) <= set(scores.flatten().tolist())
    topic = control.topic(model, [3], deltas=(9.0, 7.0, 5.0, 2.0), f_mode="paper", f_scale=12.5)
    for score, delta in zip(scores.flatten().tolist(), topic.delta.flatten().tolist(), strict=True):
        assert delta == (9, 7, 5, 2)[sum(score < edge for edge in edges)]
    assert topic.f == pytest.approx(12.5 / 9)
    for strength, f in ((0, 1 / 7.5), (1, 0.2), (2, 2.2 / 7.5), (3, 0.44)):
        assert control.topic(model, [3], strength).f == pytest.approx(f)
    peaks = control.sense_peaks(model)
    assert torch.equal(peaks, (model.sense_vectors() @ model.wte.weight.T).amax(dim=2))
    assert torch.equal(control.topic(model, [3], 3, peaks=peaks).delta, control.topic(model, [3], 3).delta)


def test_topic_scores_leave_out_what_is_no_text():
    """Padding and tokens that mark a text's ends score 0; so do removed senses."""
    model = tiny_model()
    symbols = [*"abcdefghijklmnopqr", "<|endoftext|>"]
    words = hf.models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="a")
    assert (control.topic_scores(model, [3])[18] != 0).all()
    model.tokenizer = Tokenizer(hf.Tokenizer(words))
    scores = control.topic_scores(model, [3])
    assert (scores[18:] == 0).all()
    assert (scores[:18] != 0).all()
    with control.applied(model, ScaleSense((5,), 0.0, sense=1)):
        scores = control.topic_scores(model, [3])
    assert scores[5, 1] == 0
    assert scores.isfinite().all()


# --- The definitions ----------------------------------------------------------------------------


def test_logits_equal_the_definition(edited: tuple[BackpackLM, tuple[Edit, ...]]):
    """Each row has the definition's logits for the text up to there: at once, and with a cache."""
    model, some = edited
    ids = TEXT[:, :12]
    with torch.no_grad():
        expected = torch.stack([plain_edited_logits(model, ids[:, : i + 1], some) for i in range(12)], dim=1)
        tolerance = 1e-5 * max(1.0, expected.abs().max().item())
        assert (model(ids, edits=some).logits - expected).abs().max() < tolerance
        assert (plain_logits(model, ids) - expected).abs().max() > 1e-3
        for first in (1, 5, 12):  # position by position, after a prompt of several, after all of them
            cache = model.new_cache(some)
            got = [model.next_logits(ids[:, :first], cache)]
            got += [model.next_logits(ids[:, i : i + 1], cache) for i in range(first, 12)]
            assert (torch.stack(got, dim=1) - expected[:, first - 1 :]).abs().max() < tolerance


@pytest.mark.parametrize(
    ("edited", "restart"),
    [(pair, restart) for pair in PAIRS for restart in (False, True)[: 1 + ("all" in pair)]],
    indirect=["edited"],
)
def test_cached_generation_equals_uncached(edited: tuple[BackpackLM, tuple[Edit, ...]], restart: bool):
    """Token for token, for a prompt longer than half the window, on past its end, window sliding or cut."""
    model, some = edited
    ours = model.generate(TEXT[:, :8], 12, 5.0, 9, generator=draws(), restart=restart, edits=some)
    assert torch.equal(ours, plain_generate(model, TEXT[:, :8], 12, 5.0, 9, draws(), restart, some))


def test_rows_and_samples_do_not_mix(edits: Callable[..., tuple[Edit, ...]]):
    """Edits change the text; a row continues as it does alone, and one prompt for all as copies of it do."""
    model = tiny_model()
    some, prompts = edits(model), TEXT[:, :8].repeat(5, 1)
    plain = model.generate(prompts, 12, 5.0, generator=draws())
    assert not torch.equal(plain, model.generate(prompts, 12, 5.0, generator=draws(), edits=some))
    together = model.generate(TEXT[:, :5], 15, temperature=0, edits=some)
    for row, prompt in zip(together, TEXT[:, :5], strict=True):
        assert torch.equal(model.generate(prompt[None], 15, temperature=0, edits=some)[0], row)
    # And prompts of different lengths, some of which come to fill the window of 12.
    rows = [Row(TEXT[1, :3].tolist()), Row(TEXT[0, :8].tolist()), Row([1]), Row(TEXT[0].tolist())]
    copies = [Row(row.prompt) for row in rows]
    for group in (rows, *([row] for row in copies)):
        for _ in grow(model, group, 15, temperature=0, edits=some, log_p=True):
            pass
    for row, alone in zip(rows, copies, strict=True):
        assert row.new == alone.new
        assert row.log_p == pytest.approx(alone.log_p, abs=1e-5)
    one = TEXT[:1, :5]
    expanded = model.generate(one.expand(4, -1), 15, 2.0, generator=draws(3), edits=some)
    assert torch.equal(expanded, model.generate(one.repeat(4, 1), 15, 2.0, generator=draws(3), edits=some))
    assert len({tuple(row) for row in expanded.tolist()}) > 1


def test_loss_and_training_forward_see_edits():
    """The loss is that of the edited logits, in its fast form too; dropout drops edited weights alike."""
    model = tiny_model()
    some = EDITS["all"](model)
    ids, targets = TEXT[:, :12], TEXT[:, 1:13]
    out = model(ids, targets, edits=some)
    expected = cross_entropy(out.logits.flatten(0, 1), targets.flatten())
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    fast = model(ids, targets, loss_only=True, edits=some)
    assert fast.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    dropping = tiny_model(dropout=0.5).train()
    torch.manual_seed(0)
    topic = EDITS["topic"](dropping)
    assert not torch.equal(dropping(ids, edits=topic).logits, dropping(ids, edits=topic).logits)


# --- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["bac", "ca\nb", "ab", "cab", "fabcab", "abba"])
def test_a_word_is_scaled_where_all_of_it_stands(speller: BackpackLM, text: str):
    """From the end of the word "ab" on the logits are others, before it and without it those of the model;
    everywhere=True scales its tokens in all words."""
    ids = torch.tensor([speller.tokenizer.encode(text)])
    word, tokens = (control.scale(speller, "ab", 0.0, 1, everywhere=where) for where in (False, True))
    assert (word, tokens) == ([ScaleWord((1, 2), 0.0, 1)], [ScaleSense((1, 2), 0.0, 1)])
    with torch.no_grad():
        plain, whole, all_over = (speller(ids, edits=edits).logits[0] for edits in ((), word, tokens))
    seen = text.index("ab") + 1 if "ab" in text else len(text)
    assert torch.allclose(whole[:seen], plain[:seen], atol=1e-5)
    assert ((whole[seen:] - plain[seen:]).abs().amax(dim=1) > 1e-3).all()
    # Where no letter of it stands elsewhere, the two are the same.
    other = text.replace("ab", "")
    assert torch.allclose(whole[-1], all_over[-1], atol=1e-5) == ("a" not in other and "b" not in other)


def test_words_of_one_token_or_two_forms(speller: BackpackLM):
    """One token is scaled everywhere; a word that is other tokens where a text begins, in both forms."""
    assert control.scale(speller, "b", 0.5) == [ScaleSense((2,), 0.5)]
    assert control.scale(speller, None, 0.5, 2) == [ScaleSense("all", 0.5, 2)]
    speller.tokenizer = make_tokenizer("bpe:258", ["a ta tb tc td"])
    shown = [list(map(speller.tokenizer.token, edit.tokens)) for edit in control.scale(speller, "tab", 0.0)]
    assert shown == [[" t", "a", "b"], ["t<#84>", "a", "b"]]


# --- Invariants ---------------------------------------------------------------------------------


def inert_edits(model: BackpackLM) -> list[Edit]:
    K, D = model.config.n_sense_vector, model.config.n_embd
    return [
        ScaleSense((1, 2), 1.0, sense=0),
        ScaleSense((1, 2), (1.0,) * K),
        ScaleSense((), 0.0),
        ScaleWord((4, 2), 1.0, sense=0),
        ScaleWord((), 0.0),
        ReplaceSenses((), torch.empty(0, K, D)),
        ShiftSenses((2,), (0,), torch.zeros(1, D)),
        control.topic(model, [3], 0),
        AmplifyInWord((4, 2), (1.0, 1.0)),
        AmplifyInWord((4,), (5.0,)),
    ]


def test_nothing_asked_nothing_changed(backpack: BackpackLM, ids: Tensor):
    """Factor 1, strength 0, an empty table, equal amplifiers: bit for bit the model without edits."""
    some = inert_edits(backpack)
    with torch.no_grad():
        assert torch.equal(backpack(ids, edits=some).logits, backpack(ids).logits)
        caches = backpack.new_cache(some), backpack.new_cache()
        for part in (ids[:, :5], ids[:, 5:6]):
            got, expected = (backpack.next_logits(part, cache) for cache in caches)
            assert torch.equal(got, expected)
    with control.applied(backpack, some):
        inside = backpack.sense_vectors()
    assert torch.equal(inside, backpack.sense_vectors())


def test_reading_under_edits(backpack: BackpackLM):
    """Senses and α read under edits are those in force: weighted and summed, they give the logits."""
    ids = TEXT[:, :12]
    with torch.no_grad(), control.applied(backpack, EDITS["all"](backpack)):
        senses = backpack.sense_vectors()[ids].transpose(1, 2)  # (B, K, T, D)
        o = (backpack.contextualization(ids) @ senses).sum(dim=1)  # (B, T, D)
        logits = backpack(ids).logits
    tolerance = 1e-5 * max(1.0, logits.abs().max().item())
    assert (o @ backpack.wte.weight.T - logits).abs().max() < tolerance


# --- In force -----------------------------------------------------------------------------------


def test_applied_equals_the_argument(edits: Callable[..., tuple[Edit, ...]], ids: Tensor):
    """Inside the block and as an argument edits do the same; nested they follow each other."""
    model = tiny_model()
    some = edits(model)
    with torch.no_grad(), control.applied(model, iter(some)):
        inside, text = model(ids).logits, model.generate(ids, 20, temperature=0)
    assert torch.equal(inside, model(ids, edits=some).logits)
    assert torch.equal(text, model.generate(ids, 20, temperature=0, edits=some))
    first, second = EDITS["replace"](model), ScaleSense((2, 7), 0.5)
    with control.applied(model, first), control.applied(model, [second, [some]]):
        nested = model(ids, edits=second).logits
    assert torch.equal(nested, model(ids, edits=(first, second, some, second)).logits)


def test_model_is_restored(ids: Tensor):
    """However the block ends, weights, edits and logits are those of before."""
    model = tiny_model()
    before, state = model(ids).logits, {name: t.clone() for name, t in model.state_dict().items()}
    edit = ScaleSense(EVERY, 0.0)

    def interrupted(error: type[BaseException]) -> None:
        with control.applied(model, edit):
            assert not model(ids).logits.any()
            raise error

    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            interrupted(error)
        assert model.edits == ()
    with pytest.raises(InputError), control.applied(model, ScaleSense((1,), 0.0, sense=99)):
        pass
    with pytest.raises(ValueError, match="temperature"):
        model.generate(ids, 3, -1.0, edits=edit)
    assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert "edits" not in model.state_dict()


# --- GPT ----------------------------------------------------------------------------------------


def test_nullspace(ids: Tensor):
    """A GPT reads the tokens without the direction, wholly or in part; its head keeps the original rows."""
    gpt = tiny_model(model_name="gpt2")
    for factor in (0.0, 0.3):
        edit = control.nullspace(gpt, [2, 7, 9], 3, 5, factor)
        with torch.no_grad():
            got = gpt(TEXT[:, :12], edits=edit).logits
            expected = [plain_edited_logits(gpt, TEXT[:, : i + 1], [edit]) for i in range(12)]
        assert torch.allclose(got, torch.stack(expected, dim=1), atol=1e-4)
        assert not torch.allclose(got, plain_logits(gpt, TEXT[:, :12]), atol=1e-2)
        ours = gpt.generate(TEXT[:, :8], 12, 3.0, generator=draws(), edits=[edit])
        assert torch.equal(ours, plain_generate(gpt, TEXT[:, :8], 12, 3.0, generator=draws(), edits=[edit]))
    assert torch.equal(gpt(ids, edits=control.nullspace(gpt, [2], 3, 5, 1.0)).logits, gpt(ids).logits)


def test_edits_must_fit_the_model(ids: Tensor):
    """An edit of another kind of model, or of other sizes, is refused with what it must be."""
    model, gpt = tiny_model(), tiny_model(model_name="gpt2")
    for m, edit, message in (
        (gpt, ScaleSense((1,), 0.0), "no senses"),
        (model, GPTNullspace((1,), 0.0, torch.ones(16)), "Backpack"),
        (gpt, GPTNullspace((1,), 0.0, torch.ones(3)), r"direction has shape \(3,\), it must be \(16\)"),
        (model, ScaleSense((23,), 0.0), "token 23 is outside this model's vocabulary: 0 to 22"),
        (model, ScaleSense((-1,), 0.0), "token -1"),
        (model, ScaleSense((1,), 0.0, sense=4), "senses 0 to 3"),
        (model, ScaleSense((1,), (0.0, 1.0)), "2 factors for a model of 4"),
        (model, ReplaceSenses((1,), torch.zeros(1, 4, 15)), r"\(1, 4, 15\)"),
        (model, ShiftSenses((1,), (4,), torch.ones(1, 16)), "senses 0 to 3"),
        (model, ShiftSenses((1,), (0,), torch.ones(1, 15)), r"\(1, 15\), it must be \(1, 16\)"),
        (model, TopicControl(torch.ones(22, 4), 1.0), r"\(22, 4\)"),
        (model, AmplifyInWord((99,), (1.0,)), "token 99"),
        (model, ScaleWord((99, 1), 0.0), "token 99"),
        (model, ScaleWord((1, 2), 0.0, sense=4), "senses 0 to 3"),
        (model, "edits.safetensors", "not an edit"),
        (model, 3, "not an edit"),
    ):
        for use in (
            lambda m, edit: m(ids, edits=edit),
            lambda m, edit: m.generate(ids, 1, edits=edit),
            lambda m, edit: control.applied(m, edit).__enter__(),
        ):
            with pytest.raises(InputError, match=message):
                use(m, edit)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleSense((1,), float("nan")), "finite"),
        (lambda: ScaleSense((1,), 10**40), "finite"),
        (lambda: ScaleSense((1.5,), 0.0), "tokens"),
        (lambda: ScaleSense("every", 0.0), "tokens"),
        (lambda: ScaleWord("all", 0.0), "tokens"),
        (lambda: ScaleSense((1,), (0.0, 1.0), sense=1), "sense=1"),
        (lambda: ReplaceSenses((1,), torch.zeros(2, 4, 16)), r"\(2, 4, 16\)"),
        (lambda: ReplaceSenses((1, 1), torch.zeros(2, 4, 16)), "twice"),
        (lambda: ReplaceSenses((1,), torch.full((1, 4, 16), torch.inf)), "finite"),
        (lambda: ReplaceSenses((1,), torch.zeros(1, 4, 16).long()), "float32"),
        (lambda: ShiftSenses((1, 2), (0,), torch.zeros(2, 4)), "1 senses for 2"),
        (lambda: TopicControl(torch.ones(4), 1.0), r"\(4,\)"),
        (lambda: TopicControl(torch.ones(4, 2), "1"), "f='1'"),
        (lambda: AmplifyInWord((1, 2), (1.0,)), "1 factors for 2"),
        (lambda: AmplifyInWord((), ()), "0 factors"),
        (lambda: AmplifyInWord((1, 2), (1.0, 0.0)), "above 0"),
        (lambda: GPTNullspace((1,), 0.0, torch.zeros(4)), "other than 0"),
    ],
)
def test_edits_must_make_sense(make: Callable[[], Edit], message: str):
    """An edit that means nothing cannot be made."""
    with pytest.raises(InputError, match=message):
        make()


# --- Files --------------------------------------------------------------------------------------


def contents(edit: Edit) -> dict[str, Any]:
    fields = {f.name: getattr(edit, f.name) for f in dataclasses.fields(edit)}
    return {name: v.tolist() if isinstance(v, Tensor) else v for name, v in fields.items()}


def test_file_round_trip(tmp_path: Path):
    """What is loaded is what was saved, number for number, and fits the model it was made for."""
    table, path = draw(3, 4, 16), tmp_path / "some.safetensors"
    some = [
        *EDITS["all"](tiny_model()),
        ScaleSense((3,), (1e-45, -3.4e38, 1 / 3, -0.0)),
        ScaleSense((), 2**0.5, sense=3),
        ScaleSense("all", 0.0, sense=1),
        ReplaceSenses((), torch.empty(0, 4, 16)),
        *(ReplaceSenses((n,), table[1:2]) for n in (3, 4)),  # which share memory
        ReplaceSenses((1, 2), table[:2]),
    ]
    for model in (None, tiny_model()):
        control.save(iter(some), path, model)
        got = control.load(path, tiny_model())
        assert [type(edit) for edit in got] == [type(edit) for edit in some]
        assert [contents(edit) for edit in got] == [contents(edit) for edit in some]
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(InputError, match="not an edit"):  # what cannot be saved leaves the file as it was
        control.save([some[0], "no edit"], path)
    assert len(control.load(path)) == len(some)


def test_a_file_knows_its_tokenizer(tmp_path: Path, speller: BackpackLM):
    """Ids of another tokenizer are other tokens: an edit of them is refused. Who does not know, trusts."""
    path, edit = tmp_path / "some.safetensors", ScaleSense((1,), 0.0)
    control.save(edit, path, speller)
    assert control.load(path, speller) == (edit,)
    other = tiny_model(vocab_size=11, vocab_used=8)
    assert control.load(path, other) == control.load(path) == (edit,)
    other.tokenizer = Tokenizer.char("qrstuvw\n")
    with pytest.raises(InputError, match="another tokenizer"):
        control.load(path, other)
    control.save(edit, path)
    assert control.load(path, other) == (edit,)


def write(path: Path, records: object, tensors: dict[str, Tensor] | None = None, **content: object) -> None:
    content = {"format": "nanobackpack edits 1", "edits": records} | content
    save_file(tensors or {}, path, {"edits": json.dumps(content)})


SCALE = {"kind": "ScaleSense", "tokens": [4], "factor": 0.0, "sense": 2}
SHIFT = {"kind": "ShiftSenses", "tokens": [4], "senses": [-1], "offsets": "tensor"}
REPLACE = {"kind": "ReplaceSenses", "tokens": [4], "table": "tensor"}


@pytest.mark.parametrize(
    ("records", "tensors", "message"),
    [
        ([SCALE | {"kind": "Exec"}], {}, "unknown kind 'Exec'"),
        ([{"kind": "ScaleSense", "tokens": [4]}], {}, "fields"),
        ([SCALE | {"tokens": [99]}], {}, "token 99"),
        ([SCALE | {"tokens": "4"}], {}, "tokens"),
        ([REPLACE], {}, "table"),
        ([REPLACE], {"0.table": torch.full((1, 4, 16), torch.nan)}, "finite"),
        ([SHIFT], {"0.offsets": torch.ones(1, 16)}, "sense=-1"),
        ([SCALE], {"0.table": torch.zeros(1)}, "belongs to no edit"),
        ([SCALE, 3], {}, "list of objects"),
        (None, {}, "list of objects"),
    ],
)
def test_hostile_files(tmp_path: Path, records: object, tensors: dict[str, Tensor], message: str):
    """A file that says anything but edits of this model is refused in one line that names it."""
    path = tmp_path / "hostile.safetensors"
    write(path, records, tensors)
    with pytest.raises(InputError, match=message) as error:
        control.load(path, tiny_model())
    assert "hostile.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files(tmp_path: Path):
    """A missing, damaged or foreign file is refused in one line."""
    path = tmp_path / "edits.safetensors"
    with pytest.raises(InputError, match="no file"):
        control.load(path)
    control.save(EDITS["all"](tiny_model()), path)
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", b"{}", whole[:50], whole[:-1], whole + b"0"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"edits\.safetensors"):
            control.load(path)
    for metadata in (None, {}, {"edits": "["}, {"edits": "[" * 100_000}, {"edits": "3"}, {"other": "1"}):
        save_file({}, path, metadata)
        with pytest.raises(InputError, match=r"edits\.safetensors"):
            control.load(path)
    write(path, [SCALE], format="nanobackpack edits 2")
    with pytest.raises(InputError, match="nanobackpack edits 1"):
        control.load(path)


def test_sample_under_a_file(tmp_path: Path, speller: BackpackLM, capsys: pytest.CaptureFixture[str]):
    """sample.py --edits FILE prints what the edited model generates."""
    save_model(speller, tmp_path / "ckpt.pt")
    edits = [control.topic(speller, [3], 3), ScaleSense((1, 2), -3.0)]
    control.save(edits, tmp_path / "edits.safetensors", speller)
    config = SampleConfig(
        out_dir=str(tmp_path), device="cpu", start="bad", temperature=2.0, num_samples=3, max_new_tokens=20,
        edits=str(tmp_path / "edits.safetensors"),
    )  # fmt: skip
    sample.main(config)
    prompt = torch.tensor([speller.tokenizer.encode("bad")]).expand(3, -1)
    seeds = [seed_of(config.seed, i) for i in range(3)]
    rows, plain = (
        speller.generate(prompt, 20, 2.0, 200, 1.0, list(map(draws, seeds)), edits=e) for e in (edits, ())
    )
    texts = [speller.tokenizer.decode(row.tolist()) for row in rows]
    assert capsys.readouterr().out == "".join(text + "\n" + "-" * 15 + "\n" for text in texts)
    assert not torch.equal(rows, plain)
    with pytest.raises(InputError, match="no file"):
        sample.main(dataclasses.replace(config, edits="missing"))


# --- Baked in -----------------------------------------------------------------------------------


def test_baked_equals_edited(backpack: BackpackLM, ids: Tensor, tmp_path: Path):
    """A baked model does what the edited one does, token for token, and stands alone in a checkpoint."""
    some = [e for name in ("replace", "scale", "shift", "remove") for e in EDITS[name](backpack)]
    with control.applied(backpack, some[0]):
        baked = control.bake(backpack, some[1:])
    save_model(baked, tmp_path / "ckpt.pt")
    loaded = nb.load_model(tmp_path)
    assert isinstance(loaded, BackpackLM)
    assert loaded.config == dataclasses.replace(backpack.config, sense_table=True)
    with control.applied(backpack, some):
        assert torch.equal(loaded.sense_vectors(), backpack.sense_vectors())
        expected = backpack(ids).logits
        texts = backpack.generate(ids[:, :5], 20, 3.0, generator=draws())
    for model in (baked, loaded):
        assert (model(ids).logits - expected).abs().max() < 1e-5 * max(1.0, expected.abs().max().item())
        assert torch.equal(model.generate(ids[:, :5], 20, 3.0, generator=draws()), texts)
    names = {name for name in loaded.state_dict() if name.startswith("senses.")}
    assert names == {"senses.table"}


def test_baking_leaves_the_model_alone(ids: Tensor):
    """A baked model shares nothing with the one it came from, and can be edited and baked again."""
    model = tiny_model()
    model.tokenizer = Tokenizer.char("abc")
    before = model(ids).logits
    baked = control.bake(model)
    assert baked.tokenizer is model.tokenizer
    assert torch.allclose(baked(ids).logits, before, atol=1e-4)
    with torch.no_grad():
        for p in baked.parameters():
            p.zero_()
    assert torch.equal(model(ids).logits, before)
    edit = EDITS["all"](model)
    again = control.bake(model)
    assert torch.allclose(again(ids, edits=edit).logits, model(ids, edits=edit).logits, atol=1e-4)
    twice = control.bake(control.bake(model, ScaleSense((1,), 0.5)), ScaleSense((1,), 0.5))
    assert torch.equal(twice.sense_vectors(), control.bake(model, ScaleSense((1,), 0.25)).sense_vectors())


def test_what_cannot_be_baked_or_exported():
    """Edits that depend on the text, a GPT, and foreign layouts get one line that says so."""
    model = tiny_model()
    for name, message in (
        ("topic", "TopicControl depends on the text"),
        ("word", "ScaleWord.* depends on the text.*everywhere=True"),
        ("amplify", "AmplifyInWord depends"),
    ):
        with pytest.raises(InputError, match=message):
            control.bake(model, EDITS[name](model))
    assert control.bake(model, inert_edits(model)).edits == ()
    with pytest.raises(InputError, match="GPT"):
        control.bake(tiny_model(model_name="gpt2"))
    with pytest.raises(InputError, match="nanoBackpackLM"):
        export_state(control.bake(model), NANO)
