"""Reading senses and explaining predictions: each number against the plain formula, and the programs.

The models are tiny and know the characters a to g and the line end; g also begins documents where BOS is
asked for. Three of their ids are padding.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, run_program, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_alpha, plain_logits, plain_senses
from test_control_evaluate import worded
from torch import Tensor

import nanobackpack as nb
from nanobackpack import BackpackLM, InputError, Senses
from nanobackpack.analysis import control
from nanobackpack.analysis.effect import effect
from nanobackpack.analysis.results import PerSense, Ranking, Result, check_finite
from nanobackpack.commands.explain import ExplainConfig, explain
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.errors import escape_controls
from nanobackpack.evaluate.bias import Bias
from nanobackpack.evaluate.blimp import Blimp
from nanobackpack.evaluate.lexical_similarity import LexicalSimilarity
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import find_word, token_id
from nanobackpack.train.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "abcdefg\n"
BOS = 7  # g


def letter_model(**changes: Any) -> BackpackLM:
    model = tiny_model(**changes | {"vocab_size": 11, "vocab_used": 8})
    model.tokenizer = Tokenizer.char(LETTERS)
    model.tokenizer.bos_id = BOS
    return model


@pytest.fixture(params=BACKPACKS)
def senses(request: pytest.FixtureRequest) -> Senses:
    return Senses(letter_model(**BACKPACKS[request.param]))


def tokens_of(senses: Senses, text: str) -> list[int]:
    return senses.tokenizer.encode(text)


def embedding(senses: Senses) -> Tensor:
    """E of the 8 characters, (V, D)."""
    return senses.model.wte.weight.detach()[:8]


@torch.no_grad()
def parts(senses: Senses, prompt: str, bos: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """By the plain formula: α (K, T, T), C (K, T, D), logits (V) after the prompt."""
    ids = torch.tensor([[BOS] * bos + tokens_of(senses, prompt)])
    model = senses.model
    return plain_alpha(model, ids)[0], plain_senses(model, ids)[0], plain_logits(model, ids)[0, -1]


def cosine(a: Tensor, b: Tensor) -> float:
    return (torch.dot(a, b) / torch.sqrt(torch.dot(a, a) * torch.dot(b, b))).item()


# --- Words --------------------------------------------------------------------------------------


def test_senses_of_a_word(senses: Senses):
    """Of several tokens: their mean, the first, or what the model makes of the word alone."""
    alpha, C, logits = parts(senses, "cab")
    for pooling, expected in (
        ("avg", (C[:, 0] + C[:, 1] + C[:, 2]) / 3),
        ("first", C[:, 0]),
        ("contextualized", sum(alpha[:, 2, j, None] * C[:, j] for j in range(3))),
    ):
        got = senses.word_senses("cab", pooling)
        assert torch.allclose(got, expected, atol=1e-5)
        assert not got.requires_grad
        projected = senses.projection("cab", pooling)
        assert torch.allclose(projected, expected @ embedding(senses).T, atol=1e-5)
        many = senses.many_senses(["e", "cab", "bac"], pooling)
        assert torch.allclose(many[1], expected, atol=1e-5)
        assert torch.allclose(many[0], senses.word_senses("e", pooling), atol=1e-5)
    assert torch.allclose(projected.sum(dim=0), logits[:8], atol=1e-5)  # of the word alone: Σ_l E · s_l
    assert torch.allclose(senses.word_senses("cab"), senses.word_senses("bac"), atol=1e-6)
    assert not torch.allclose(senses.word_senses("cab"), senses.word_senses("caab"), atol=1e-3)
    assert senses.word_senses([2, 3]).equal(senses.word_senses("".join(map(senses.tokenizer.token, (2, 3)))))


def test_sense_projection(senses: Senses):
    """For each sense, or one, the k tokens with the highest scores in order, or the lowest; no padded one."""
    _, C, _ = parts(senses, "e")
    scores = C[:, 0] @ embedding(senses).T  # (K, 8)
    for bottom in (False, True):
        order = scores.argsort(dim=1, descending=not bottom)
        for k in (1, 3, 8, 100):
            got = senses.sense_projection("e", k, bottom=bottom)
            assert got.ids.equal(order[:, :k])
            assert torch.allclose(got.scores, scores.gather(1, order[:, :k]), atol=1e-5)
            assert got.tokens == [[senses.tokenizer.token(i) for i in row] for row in order[:, :k].tolist()]
            assert len(got) == len(got.labels) == senses.model.config.n_sense_vector
        last = len(scores) - 1
        assert senses.sense_projection("e", 3, bottom, sense=last).ids.equal(order[last:, :3])


def test_word_arithmetic(senses: Senses):
    """A signed sum of senses, projected; the first sign may be left out."""
    C = senses.model.sense_vectors()
    a, b, c = tokens_of(senses, "abc")
    expected = (C[a] - C[b] + C[c]) @ embedding(senses).T  # (K, 8)
    got = senses.word_arithmetic("+a-b+c", k=8)
    assert got.ids.tolist() == expected.argsort(dim=1, descending=True).tolist()
    assert torch.allclose(got.scores, expected.sort(dim=1, descending=True).values, atol=1e-5)
    assert senses.word_arithmetic("a-b+c", k=8).ids.equal(got.ids)


def test_similarity(senses: Senses):
    """Matched, flat and crossed cosines of two words."""
    C, K = senses.model.sense_vectors(), senses.model.config.n_sense_vector
    x, y = (C[tokens_of(senses, w)[0]] for w in "ad")
    got = senses.similarity("a", "d")
    matched = [cosine(x[i], y[i]) for i in range(K)]
    crossed = [cosine(x[i], y[j]) for i in range(K) for j in range(K)]
    assert got.cosine.tolist() == pytest.approx(matched, abs=1e-5)
    assert (got.min, got.max) == pytest.approx((min(matched), max(matched)), abs=1e-5)
    assert got.pairs.flatten().tolist() == pytest.approx(crossed, abs=1e-5)
    assert got.flat == pytest.approx(cosine(x.flatten(), y.flatten()), abs=1e-5)
    values = [*matched, min(matched), max(matched), got.flat, min(crossed), max(crossed)]
    shown = [float(line.split()[-1]) for line in got.table().splitlines()[1:]]
    assert shown == pytest.approx(values, abs=1e-4)
    assert senses.similarity("bad", "bad").min == pytest.approx(1, abs=1e-5)


def test_nearest(senses: Senses):
    """Per sense, for one, or for the least over all: the tokens in order of cosine, without the word."""
    C, K = senses.model.sense_vectors(), senses.model.config.n_sense_vector
    (me,) = tokens_of(senses, "d")
    table = torch.tensor([[cosine(C[me, i], C[v, i]) for v in range(8)] for i in range(K)])
    others = [v for v in range(8) if v != me]
    got = senses.nearest("d", k=100)
    for i in range(K):
        expected = sorted(others, key=lambda v: -table[i, v].item())
        assert got.ids[i].tolist() == expected
        assert got.scores[i].tolist() == pytest.approx(table[i, expected].tolist(), abs=1e-5)
        assert senses.nearest("d", k=3, sense=i).ids.tolist() == [expected[:3]]
    least = table.amin(dim=0)
    assert senses.nearest("d", 7, "min").ids[0].tolist() == sorted(others, key=lambda v: -least[v].item())
    assert senses.nearest("dd", 8).ids.size(1) == 8  # a word of several tokens leaves none out
    assert senses.nearest("dd", 1).ids[:, 0].tolist() == [me] * K
    for word, ranking in zip(("a", "dd", "d"), senses.nearest_many(["a", "dd", "d"], 4), strict=True):
        assert ranking.table() == senses.nearest(word, 4).table()


def test_neighbours_follow_the_edits(senses: Senses):
    """The table of all senses is kept, but none made before an edit is taken under it, or after."""
    table, K = senses.directions(), senses.model.config.n_sense_vector
    assert table.shape == (K, 8, senses.model.config.n_embd)
    assert senses.directions() is table
    before = {word: senses.nearest(word, 3) for word in "df"}
    d, f = tokens_of(senses, "df")
    with control.applied(senses.model, control.copy_senses(senses.model, d, f, range(K))):
        for word, other in ("df", "fd"):  # which are alike now, also as a row of the table
            under = senses.nearest(word, 1)
            assert under.tokens == [[other]] * K
            assert under.scores.flatten().tolist() == pytest.approx([1.0] * K, abs=1e-5)
    for word in "df":
        assert senses.nearest(word, 3).table() == before[word].table()
    table = senses.directions()
    senses.forget()
    assert senses.directions() is not table


def test_sense_bias(senses: Senses):
    """The difference of two log-probabilities under a softmax of one sense, strongest first."""
    C = senses.model.sense_vectors(tokens_of(senses, "g"))[0]  # (K, D)
    log_p = (C @ embedding(senses).T).log_softmax(dim=1)
    a, e = tokens_of(senses, "ae")
    got = senses.sense_bias("g", "a", "e")
    assert torch.allclose(got.values, log_p[:, a] - log_p[:, e], atol=1e-5)
    sizes = [abs(v) for _, v in got.ranked()]
    assert sizes == sorted(sizes, reverse=True)
    assert all(got.values[sense].item() == v for sense, v in got.ranked())


@pytest.mark.slow
def test_the_recipe_for_a_map_runs(speller: BackpackLM, monkeypatch: pytest.MonkeyPatch):
    """What the docs say draws the words of one sense in the plane: one point a word, a PNG."""
    pytest.importorskip("sklearn")
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    (recipe,) = [
        code for page in pages for code in re.findall(r"```python\n(.*?)```", page, re.S) if "TSNE" in code
    ]
    monkeypatch.setattr(nb, "load_model", lambda path: speller)
    monkeypatch.setattr("matplotlib.pyplot.savefig", lambda path: seen.append(path))
    seen: list[str] = []
    names: dict[str, Any] = {}
    exec(recipe.replace("abcdefghijklmnopqrstuvwxyz", "abcdefg"), names)
    assert names["points"].shape == (7, 2)
    assert seen == ["map.png"]


# --- Words and tokens ---------------------------------------------------------------------------


def joining(*more: tuple[str, str]) -> Tokenizer:
    """Byte-level BPE as GPT-2's: "Ġ" is a space joined to the word after it."""
    vocabulary = {t: i for i, t in enumerate(["Ġ", "a", "b", "c", "Ġa", "Ġab", "ab", "[UNK]", "Ċ"])}
    merges = [("Ġ", "a"), *more, ("Ġa", "b")]
    inner = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    return Tokenizer(inner)


def test_words_take_the_space_that_joins_them():
    """ " word" as inside a text where that is how the tokenizer writes it, else the word as it is."""
    t = joining(("a", "b"))
    for word, tokens in (
        ("ab", [" ab"]),
        ("ac", [" a", "c"]),
        ("ba", ["b", "a"]),  # the space would be a token of its own
        (" ba", [" ", "b", "a"]),  # a space that is given stays
        ("\n", ["\n"]),
    ):
        assert [t.decode([i]) for i in t.word_ids(word)] == tokens
    assert Tokenizer.char("ab").word_ids("ab") == [0, 1]
    with pytest.raises(InputError, match="2 tokens"):
        token_id(t, "ac")
    assert t.word_ids([7]) == [7]  # [UNK], asked for by its id
    assert (token_id(t, "ab"), token_id(t, 2)) == (5, 2)
    # With and without the space, behind tokens of several characters.
    ids = t.encode("ab c ab abc")
    assert [t.decode([i]) for i in ids] == ["ab", " ", "c", " ab", " ab", "c"]
    assert find_word(t, ids, "ab") == [slice(0, 1), slice(3, 4), slice(4, 5)]


@settings(max_examples=60)
@given(st.lists(st.sampled_from("ab"), max_size=12).map("".join), st.sampled_from(["a", "ab", "aa", "aba"]))
def test_spans_find_every_occurrence(text: str, word: str):
    """Of characters: each place where the word can be read, overlapping ones too."""
    t = Tokenizer.char("ab")
    found = find_word(t, t.encode(text), word)
    assert [s.start for s in found] == [i for i in range(len(text)) if text.startswith(word, i)]
    assert all(s.stop - s.start == len(word) for s in found)


# --- Prompts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_contributions(senses: Senses, bos: bool):
    """Each is α · E_w · C; together they are the logit, or the difference of two."""
    read, E = Senses(senses.model, bos), embedding(senses)
    alpha, C, logits = parts(senses, "fade", bos)
    w, v = tokens_of(senses, "cg")
    p = logits.softmax(dim=0)
    for versus, direction, logit, probability in (
        (None, E[w], logits[w], [p[w]]),
        ("g", E[w] - E[v], logits[w] - logits[v], [p[w], p[v]]),
    ):
        got = read.contributions("fade", "c", versus)
        assert got.tokens == ["g"] * bos + list("fade")
        for j in range(4 + bos):
            for sense in range(len(alpha)):
                expected = alpha[sense, -1, j] * torch.dot(direction, C[sense, j])
                assert got.contributions[j, sense].item() == pytest.approx(expected.item(), abs=1e-5)
        assert got.contributions.sum().item() == pytest.approx(logit.item(), abs=1e-5)
        assert got.logit == pytest.approx(logit.item(), abs=1e-5)
        assert got.probability == pytest.approx([x.item() for x in probability], abs=1e-5)
        assert torch.allclose(got.weights, alpha[:, -1].T, atol=1e-6)
        active = read.active_senses("fade")
        assert (active.tokens, active.weights.tolist()) == (got.tokens, got.weights.tolist())


def test_the_ranked_table_adds_up(senses: Senses):
    """The largest first; what is not listed is summed; the last two lines agree."""
    got = senses.contributions("deadbeef", "a")
    ranked, K = got.ranked(1000), senses.model.config.n_sense_vector
    assert sorted(8 * sense + j for j, sense, _ in ranked) == list(range(8 * K))
    sizes = [abs(value) for _, _, value in ranked]
    assert sizes == sorted(sizes, reverse=True)
    assert all(got.contributions[j, sense].item() == value for j, sense, value in ranked)
    lines = [line.split() for line in got.table(n=2).splitlines()]
    listed, others, total, logit = lines[2:4], lines[-3], lines[-2], lines[-1]
    assert [row[0] for row in listed] == [str(j) for j, _, _ in ranked[:2]]
    sum_of = sum(float(row[-1]) for row in (*listed, others))
    assert sum_of == pytest.approx(float(total[-1]), abs=1e-4)
    assert float(total[-1]) == pytest.approx(float(logit[-1]), abs=1e-4)
    assert others[0] == str(len(ranked) - 2)


def test_next_tokens(senses: Senses):
    """The likeliest real tokens; the probability of padding is not shared out among them."""
    p = parts(senses, "bad")[2].softmax(dim=0)[:8]
    got = senses.next_tokens("bad", k=100)
    assert got.ids[0].tolist() == p.argsort(descending=True).tolist()
    assert torch.allclose(got.scores[0], p.sort(descending=True).values, atol=1e-6)
    assert got.scores.sum() < 1


@pytest.mark.parametrize("bos", [False, True])
def test_contrast_senses(senses: Senses, bos: bool):
    """Difference of α between two places; positions count content tokens, with BOS too."""
    a, b = (parts(senses, prompt, bos)[0][:, -1] for prompt in ("face", "cafe"))  # (K, T)
    got = Senses(senses.model, bos).contrast_senses("face", 1, "cafe", 3)
    assert torch.allclose(got.values, a[:, 1 + bos] - b[:, 3 + bos], atol=1e-6)


def test_localize(senses: Senses):
    """Contributions to a target, summed by token and sense over prompts of different lengths."""
    prompts = ["face", "a", "deaf", "cc"]
    E_b = embedding(senses)[tokens_of(senses, "b")[0]]
    expected: dict[tuple[int, int], float] = {}
    for prompt in prompts:
        alpha, C, _ = parts(senses, prompt)
        for j, token in enumerate(tokens_of(senses, prompt)):
            for sense in range(len(alpha)):
                value = (alpha[sense, -1, j] * torch.dot(E_b, C[sense, j])).item()
                expected[token, sense] = expected.get((token, sense), 0.0) + value
    got = senses.localize("b", prompts, k=1000)
    assert got.scores.tolist() == sorted(got.scores.tolist(), reverse=True)
    found = zip(got.ids.tolist(), got.senses.tolist(), got.scores.tolist(), strict=True)
    assert {(i, sense): pytest.approx(score, abs=1e-5) for i, sense, score in found} == expected
    assert len(senses.localize("b", prompts, k=3).tokens) == 3


@pytest.mark.parametrize("bos", [False, True])
def test_word_composition(senses: Senses, bos: bool):
    """Shares of a word's tokens at every position from its last on, for each occurrence."""
    sentences = ["abcd", "gg", "cabab"]
    got = Senses(senses.model, bos).word_composition("ab", sentences)
    assert got.tokens == ["a", "b"]
    assert len(got.shares) == 3
    per_sentence = []
    for share, (n, start) in zip(got.shares, [(0, 0), (2, 1), (2, 3)], strict=True):
        alpha, first = parts(senses, sentences[n], bos)[0], start + bos
        pair = alpha[:, first + 1 :, first : first + 2]  # (K, M, 2)
        assert torch.allclose(share, pair / (pair[..., :1] + pair[..., 1:]), atol=1e-5)
        per_sentence.append(share.mean(dim=1))
    mean = sum(per_sentence) / 3  # (K, 2)
    assert torch.allclose(got.mean, mean, atol=1e-6)
    counts = [0, 0, 0]
    for share in got.shares:
        for sense in range(len(mean)):
            d = sum(abs(x - mean[sense, 0].item()) for x in share[sense, :, 0].tolist()) / share.size(1)
            counts[0 if d < 0.1 else 1 if d < 0.2 else 2] += 1
    assert got.consistency == counts
    assert sum(counts) == 3 * len(mean)


def test_word_composition_takes_one_spelling():
    """At the beginning of a text a word may be other tokens, which share its weight in another way."""
    model = tiny_model()
    model.tokenizer = t = joining()
    sentence = "abc abc"
    assert [t.decode([i]) for i in t.encode(sentence)] == ["a", "b", "c", " ab", "c"]
    assert len(Senses(model).find(sentence, "abc")) == 2
    got = Senses(model).word_composition("abc", [sentence])
    assert got.tokens == [" ab", "c"]
    assert [share.shape[1:] for share in got.shares] == [(1, 2)]


def test_what_prompts_begin_with(senses: Senses):
    """ "auto" begins as sample.py does; GPT-2's one mark, of the end, also begins a document if asked to."""
    t = senses.tokenizer
    assert Senses(senses.model, bos="auto").encode("ab") == t.prompt_ids("ab") == [BOS, *t.encode("ab")]
    assert Senses(senses.model, bos=False).encode("ab") == t.encode("ab")
    t.bos_id, t.eos_id = None, 5
    assert Senses(senses.model, bos=True).encode("ab") == [5, *t.encode("ab")]
    assert Senses(senses.model, bos="auto").encode("ab") == t.prompt_ids("ab") == t.encode("ab")
    t.eos_id = None
    with pytest.raises(InputError, match="begins a document"):
        Senses(senses.model, bos=True)


def test_reading_changes_nothing():
    """Weights, mode and gradients of a model in training are left alone; it does not drop out."""
    model = letter_model(dropout=0.5)
    senses, before = Senses(model), {name: t.clone() for name, t in model.state_dict().items()}
    expected = senses.contributions("bad", "e")
    model.train()
    got = senses.contributions("bad", "e")
    assert got.to_json() == expected.to_json()
    assert not got.contributions.requires_grad
    assert senses.sense_projection("ab", 3).table()
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("read", "message"),
    [
        *((lambda s, n=n: s.nearest("a", sense=n), "senses 0 to 3") for n in (-1, 4)),
        *((lambda s, f=f: s.word_arithmetic(f), "not a signed sum") for f in ("", "a--b")),
        (lambda s: s.word_arithmetic("a+bc"), "2 tokens"),
        *((lambda s, i=i: s.contrast_senses("face", i, "cafe", 0), "0 to 3") for i in (-1, 4)),
        (lambda s: s.sense_projection("z"), "'z'"),
        (lambda s: s.sense_projection(""), "empty"),
        (lambda s: s.sense_projection("a", 0), "k=0"),
        (lambda s: s.word_senses([8]), "id 8"),
        (lambda s: s.word_senses("a", "mean"), "pooling='mean'"),
        (lambda s: s.many_senses([]), "no words"),
        (lambda s: s.word_senses("a" * 13, "contextualized"), "13 tokens.*block_size=12"),
        (lambda s: s.contributions("", "a"), "empty"),
        (lambda s: s.contributions("a" * 13, "a"), "13 tokens.*block_size=12"),
        (lambda s: s.localize("a", []), "no prompts"),
        (lambda s: s.word_composition("ab", ["ba"]), "none of the 1 sentences"),
        (lambda s: s.word_composition("a", ["ba"]), "one token"),
        (lambda s: Senses(tiny_model()), "tokenizer"),
        (lambda s: Senses(tiny_model(model_name="gpt2")), "GPT"),
    ],
)
def test_what_cannot_be_read(speller: BackpackLM, read: Callable[[Senses], object], message: str):
    """One line that says what was wrong and what there is."""
    with pytest.raises(InputError, match=message) as error:
        read(Senses(speller))
    assert "\n" not in str(error.value)


# --- Results ------------------------------------------------------------------------------------


def test_table():
    """One line a sense, columns aligned, wide and invisible characters too, nothing trailing."""
    tokens = [["a", "\n", "long"], ["e\u0301t", "新闻", "é"]]
    labels, zeros = ["sense 0", "sense 10"], torch.zeros(2, 3)
    ranking = Ranking(title="x", labels=labels, ids=zeros, scores=zeros + 1, tokens=tokens)
    assert ranking.table().splitlines() == [
        "# x",
        "  sense 0   'a'   '\\n'    'long'",
        "  sense 10  'e\u0301t'  '新闻'  'é'",
    ]
    assert "'a' 1 " in ranking.table(scores=True)
    assert [row[0] for row in ranking] == [("a", 1.0), ("e\u0301t", 1.0)]


def test_results_are_finite():
    """All numbers are looked at, however deep; but NaN may stand where a result says so."""
    for values in (torch.zeros(2), torch.tensor([0.0, math.nan]), torch.tensor([math.inf, 0.0])):
        found = [[PerSense(title="x", values=values)]]
        finite = (
            nullcontext()
            if values.isfinite().all()
            else pytest.raises(InputError, match="values is not a finite")
        )
        with finite:
            check_finite(found)
    ratios = {"title": "x", "sense": 0, "nouns": ["a"], "factors": [1.0], "edits": {}}
    ratios |= {"seen": None, "pronouns_seen": None}
    with pytest.raises(InputError, match="ratios is not a finite number"):
        check_finite(Bias(ratios={"removed": [1.0, math.inf]}, **ratios))
    rho = torch.full((1, 1, 1), math.nan)
    fields = {"title": "x", "sets": [""], "poolings": [""], "measures": [""], "rho": rho, "n": [0]}
    fields |= {"coverage": [0.5], "one_token": [0.5], "seen": None, "min_count": 1}
    check_finite(LexicalSimilarity(**fields))


def test_results_show_themselves(tmp_path: Path):
    """Every result has a table, is JSON that holds all of its fields, and most have a picture."""
    senses = Senses(letter_model())
    results: list[Result] = [
        senses.sense_projection("ab", 3),
        senses.nearest("a", 3),
        senses.similarity("a", "bc"),
        senses.sense_bias("a", "b", "c"),
        senses.next_tokens("ab", 3),
        senses.active_senses("abc"),
        senses.contributions("abc", "d"),
        senses.contributions("abc", "d", "e"),
        senses.contrast_senses("abc", 0, "bca", 2),
        senses.localize("a", ["bc", "d"]),
        senses.word_composition("bc", ["abcd", "bcbc"]),
    ]
    for i, result in enumerate(results):
        lines = result.table().splitlines()
        assert lines[0] == f"# {result.title}"
        assert len(lines) > 1
        assert all(line == line.rstrip() for line in lines)
        stored = json.loads(result.to_json())
        assert stored.keys() == {f.name for f in dataclasses.fields(result)}
        for name, value in stored.items():
            if isinstance(getattr(result, name), Tensor):
                assert torch.allclose(torch.tensor(value), getattr(result, name), atol=1e-6)
        if hasattr(result, "plot"):
            picture = tmp_path / f"{i}.png"
            result.plot(str(picture))
            assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 8


class Page(HTMLParser):
    """The kinds of tags of a page, its texts, and what stands where the mouse points."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts, self.tips = set[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "title"}
        self.tips += [value or "" for name, value in attrs if name == "title"]

    def handle_data(self, data: str) -> None:
        self.texts += [data] if data.strip() else []


def test_a_notebook_shows_results_whatever_their_tokens_are():
    """Tokens that are HTML stand on the page as text; each number is told, and none is lost."""
    model = tiny_model(vocab_size=11, vocab_used=10)
    model.tokenizer = Tokenizer.char("<>&\"'/bi\n\x1b")
    senses, prompt = Senses(model), "<b>\"'&\x1b"
    ranking, why = senses.sense_projection("<", 3), senses.contributions(prompt, "<", "&")
    for result, texts in (
        (ranking, [repr(token) for row in ranking.tokens for token in row]),
        (why, [repr(token) for token in prompt]),
        (senses.active_senses(prompt), [repr(token) for token in prompt]),
        (senses.similarity("<", "&"), ["sense 0", "sense 1"]),
        (senses.word_composition("<b>", ["<b>"]), ["'<'", "'b'", "'>'"]),
    ):
        page = Page(result._repr_html_())
        assert page.tags == {"table", "caption", "tr", "th", "td"}
        assert page.texts[0] == escape_controls(result.title)
        assert set(texts) <= set(page.texts)
        values = result.grid().values
        assert [tip.rpartition(": ")[2] for tip in page.tips] == [f"{v:.4g}" for v in values.flatten()]
    red, blue = (f"rgba({c}" in why._repr_html_() for c in ("178", "33"))
    assert red == bool((why.contributions > 0).any())
    assert blue == bool((why.contributions < 0).any())
    bias = senses.sense_bias("<", "b", "/")  # a text only: as in a terminal
    assert Page(bias._repr_html_()).texts == [bias.table()]


def test_results_are_data_frames(monkeypatch: pytest.MonkeyPatch):
    """Each number of a result stands in one row, beside what it is of."""
    senses = Senses(letter_model())
    why = senses.contributions("abc", "d")
    frame = why.to_dataframe()
    assert [*frame.columns] == ["position", "sense", "weight", "token", "contribution"]
    for row in frame.itertuples():
        assert row.token == "abc"[row.position]
        assert row.weight == why.weights[row.position, row.sense]
        assert row.contribution == why.contributions[row.position, row.sense]
    assert len(frame) == why.weights.numel()
    ranking = senses.sense_projection("ab", 3)
    for row in ranking.to_dataframe().itertuples():
        r, n = ranking.labels.index(row.row), row.rank - 1
        assert (row.token, row.score) == ranking[r][n]
        assert row.id == ranking.ids[r, n]
    cosines = senses.similarity("a", "b")
    table = cosines.to_dataframe().pivot(index="first", columns="second")
    assert table.to_numpy().tolist() == cosines.pairs.tolist()
    shares = senses.word_composition("bc", ["abcd", "bcbc"])
    mean = shares.to_dataframe().groupby(["sense", "token"])["share"].mean()
    assert mean.tolist() == pytest.approx(shares.mean.flatten().tolist())
    values = senses.sense_bias("a", "b", "c")
    assert values.to_dataframe()["values"].tolist() == values.values.tolist()
    located = senses.localize("a", ["bc", "d"], k=6).to_dataframe()
    assert (len(located), {*located.columns}) == (6, {"ids", "senses", "scores", "tokens"})
    changed = effect(senses, control.ScaleSense(tokens=(1,), factor=0.0), "ab", n=0, tested=["c"])
    assert changed.to_dataframe()["probability"].tolist() == changed.probabilities[0].tolist()
    # Of test sets: one row for each entry of the lists.
    bias = Bias(
        title="x", sense=0, nouns=["a", "b"], factors=[1.0, 2.0], ratios={"r": [3.0, 4.0]},
        seen=None, pronouns_seen=None, edits={},
    )  # fmt: skip
    assert bias.to_dataframe().to_dict("list") == {"noun": ["a", "b"], "factor": [1.0, 2.0], "r": [3.0, 4.0]}
    counts = {"n": [1, 2], "left_out": [0, 0], "equal": [0, 1]}
    assert len(Blimp(title="x", names=["a", "b"], accuracy=[0.5, 1.0], **counts).to_dataframe()) == 2
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if not installed
    with pytest.raises(InputError, match="pip install 'nanobackpack\\[notebook\\]'"):
        why.to_dataframe()


# --- The programs -------------------------------------------------------------------------------


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Run a program on the model in `folder`."""
    return lambda name, *arguments, status=0: run_program(name, folder, capsys, *arguments, status=status)


def test_experiment(folder: Path, speller: BackpackLM):
    """SenseVectorExperiment, given settings, lists as many tokens as asked for; its defaults see below."""
    script = runpy.run_path(str(ROOT / "experiments" / "sense_vector.py"))
    experiment = script["SenseVectorExperiment"](SenseConfig(init_from=str(folder / "ckpt.pt"), device="cpu"))
    assert experiment.sense_projection("bad", 6) == Senses(speller).sense_projection("bad", 6).tokens


def test_sense_vector(folder: Path, speller: BackpackLM, run: Callable[..., tuple[str, str]]):
    """For each word the highest and the lowest k tokens of each sense; or neighbours, picture and JSON."""
    senses = Senses(speller)
    out, _ = run("sense_vector", "--compile=False", "--words", "bad", "e", "--k=3")
    tables = [senses.sense_projection(word, 3, bottom) for word in ("bad", "e") for bottom in (False, True)]
    assert out == "".join(table.table() + "\n" for table in tables)
    files = f"--plot={folder / 'a.png'}", f"--json={folder / 'a.json'}"
    out, _ = run("sense_vector", "--words", "a", "--sense", "2", "--neighbours", *files)
    expected = senses.nearest("a", 5, sense=2)
    assert out == expected.table() + "\n"
    assert json.loads((folder / "a.json").read_text(encoding="utf-8"))[0][0]["ids"] == expected.ids.tolist()
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    out, _ = run("sense_vector", "--words", "a", "--sense", "2")
    assert out.count("sense 2") == 2


def test_explain(folder: Path, speller: BackpackLM, run: Callable[..., tuple[str, str]]):
    """The program prints the table, draws the map, writes the numbers."""
    files = f"--plot={folder / 'a.png'}", f"--json={folder / 'a.json'}"
    out, err = run("explain", "--prompt", "bad", "--next", "e", "--versus=f", *files)
    senses = Senses(speller)
    assert out.endswith(senses.contributions("bad", "e", "f").table() + "\n")
    assert err == ""
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert '"logit"' in (folder / "a.json").read_text(encoding="utf-8")
    out, _ = run("explain", "--prompt", "bad")
    assert f"logit of {senses.next_tokens('bad').tokens[0][0]!r} after 'bad'" in out


def test_explain_when_the_unknown_is_likeliest():
    """The likeliest token is explained also if it is [UNK]."""
    model = worded(vocab_size=16)
    with torch.no_grad():
        top = Senses(model).next_tokens("The nurse", 1).ids[0, 0].item()
        model.wte.weight[[0, top]] = model.wte.weight[[top, 0]]  # [UNK] is 0
    found = explain(model, ExplainConfig(prompt="The nurse"))
    assert found.contributions.title == "logit of '[UNK]' after 'The nurse'"


def test_word_composition_program(folder: Path, speller: BackpackLM, run: Callable[..., tuple[str, str]]):
    """Sentences that are too long or hold unknown characters are left out, with a note."""
    text, senses = folder / "s.txt", Senses(speller)
    command = "word_composition", "--word", "bc", "--sentences", str(text)
    text.write_text("abc\n\nbcad\nab", encoding="utf-8")
    assert run(*command)[0].startswith(senses.word_composition("bc", ["abc", "bcad", "ab"]).table() + "\n")
    text.write_text("abc\n" + "bc" * 7, encoding="utf-8")
    out, err = run(*command)
    assert out.startswith(senses.word_composition("bc", ["abc"]).table() + "\n")
    assert err.startswith("note: 1 sentences are left out, the first in line 2: the prompt has 14 tokens")
    text.write_text("xyz bc\n" + "bc" * 7, encoding="utf-8")
    out, err = run(*command, status=2)
    assert "note: 2 sentences are left out" in err
    assert err.splitlines()[-1] == "error: 'bc' stands in none of the 0 sentences: give some that hold it"


# --- The page's look at Chinese senses ----------------------------------------------------------

COMMAND = (
    "python experiments/sense_vector.py --device=cpu --compile=False --out_dir=clue_small "
    "--tokenizer_name=chinese-character-bert --strict=False"
)
MAIN = """
    ex = SenseVectorExperiment()
    words = ['天', '武', '快', '冯']  # sky, military, fast, surname "Feng"
    for word in words:
        print(ex.sense_projection(word)[9])
"""


def test_the_page_s_command_prints_sense_9(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The page's command and its snippet, word for word, on a tiny model of 16 senses."""
    # As many tokens as the Chinese BERT's vocabulary has: special ones, then characters.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    symbols = special + [chr(0x4E00 + i) for i in range(0x5200)]
    symbols += [f"##{c}" for c in symbols[5 : 5 + 21128 - len(symbols)]]
    inner = hf.implementations.BertWordPieceTokenizer({symbol: i for i, symbol in enumerate(symbols)})
    model = tiny_model(vocab_size=21184, vocab_used=21128, n_sense_vector=16, n_layer=2)
    state = {
        "model": model.state_dict(),
        "model_args": dataclasses.asdict(model.config),
        "tokenizer": Tokenizer.from_json(inner.to_str()).to_json(),
    }
    for name in ("clue_small", "experiments"):
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path / "clue_small" / "ckpt.pt", state)
    script = (ROOT / "experiments" / "sense_vector.py").read_text(encoding="utf-8")
    script, n = re.subn(r"(def main\(\) -> None:).*?(?=\n\n\nif __name__)", r"\1" + MAIN, script, flags=re.S)
    assert n == 1
    (tmp_path / "experiments" / "sense_vector.py").write_text(script, encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(COMMAND)[1:])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(sys.argv[0], run_name="__main__")
    out, err = capsys.readouterr()
    assert (end.value.code or 0, err) == (0, "")
    lines = [ast.literal_eval(line) for line in out.splitlines()]
    senses = Senses(nb.load_model(tmp_path / "clue_small"))
    for word, line in zip("天武快冯", lines, strict=True):
        assert len(line) == 5
        assert line == [token for token, _ in senses.sense_projection(word)[9]]
        (sense,) = model.sense_vectors(senses.tokenizer.encode(word))[:, 9]  # (D)
        assert line[0] == senses.tokenizer.token(int((sense @ model.wte.weight.T)[:21128].argmax()))
