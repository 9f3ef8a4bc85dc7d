"""Evaluation protocols equal direct computation by the plain formula; their files are read or refused."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import BACKPACKS, GPTS, run_program, save_tiny, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_logits, plain_senses
from torch import Tensor

from nanobackpack import GPT, BackpackLM, InputError, load_model
from nanobackpack.evaluate import blimp, lambada, wcpc
from nanobackpack.evaluate.lexical_similarity import (
    FORMATS,
    WordPair,
    chosen_sense,
    lexical_similarity,
    read_pairs,
    spearman,
)
from nanobackpack.evaluate.scoring import TextToScore, read_json_lines, score_texts
from nanobackpack.model.generate import beam_search
from nanobackpack.text.tokenizer import Bos, Tokenizer

LETTERS = "abcdef .g"
DATA = Path(__file__).parents[2] / "shared" / "data"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the test sets")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=BACKPACKS | GPTS)
def model(request: pytest.FixtureRequest) -> BackpackLM | GPT:
    model = tiny_model(**(BACKPACKS | GPTS)[request.param] | {"vocab_size": 12, "vocab_used": 9})
    model.tokenizer = Tokenizer.char(LETTERS)
    return model


def log_p(model: BackpackLM | GPT, ids: list[int]) -> Tensor:
    """log p of each token but the first, given those before it; (T - 1, V) by the plain formula."""
    with torch.no_grad():
        return plain_logits(model, torch.tensor([ids[:-1]]))[0].log_softmax(dim=1)


def by_hand(model: BackpackLM | GPT, ids: list[int], start: int) -> tuple[float, bool]:
    """The sum of log p of the tokens from `start` on, and whether each is the likeliest."""
    kept = ids[-13:]  # 12 positions predict the last 12 tokens
    p = log_p(model, kept)
    wanted = range(start - len(ids) + len(kept), len(kept))
    exact = all(p[i - 1, :9].argmax().item() == kept[i] for i in wanted)
    return sum(p[i - 1, kept[i]].item() for i in wanted), exact


# --- Scores ---------------------------------------------------------------------------------------


def test_score(model: BackpackLM | GPT):
    """Sums of log-probabilities of texts of all lengths, whatever the batch; the beginning is cut."""
    draw = torch.Generator().manual_seed(2)
    texts = []
    for T, start in ((2, 1), (13, 1), (5, 4), (12, 6), (30, 20), (7, 3)):
        texts.append(TextToScore(torch.randint(12, (T,), generator=draw).tolist(), start))
    expected = [by_hand(model, *text) for text in texts]
    for batch_size in (1, 2, 16):
        found = score_texts(model, texts, batch_size)
        assert [s.log_p for s in found] == pytest.approx([p for p, _ in expected], abs=1e-4)
        assert [s.exact for s in found] == [exact for _, exact in expected]
    for ids, start in (([1, 2], 0), ([1] * 14, 1)):
        with pytest.raises(ValueError, match="cannot score"):
            score_texts(model, [TextToScore(ids, start)])


def test_exact_means_every_token(model: BackpackLM | GPT):
    """A text that continues greedily is exact; changing one token of it is not."""
    ids = model.generate(torch.tensor([[3, 1]]), 6, temperature=0)[0].tolist()
    changed = [[*ids[:i], (ids[i] + 1) % 9, *ids[i + 1 :]] for i in range(2, 8)]
    found = score_texts(model, [TextToScore(row, 2) for row in (ids, *changed)])
    assert [score.exact for score in found] == [True] + [False] * 6


# --- Beams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "beams", "banned"), [(4, 3, ()), (3, 81, (0, 4))])
def test_beams_keep_the_best_of_each_step(
    model: BackpackLM | GPT, n: int, beams: int, banned: tuple[int, ...]
):
    """Each step keeps them as a plain loop does; 81 beams are enough for all continuations by 3 tokens."""
    prompt: list[int] = [5, 2, 7, 1]
    kept: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(n):
        longer = []
        for new, total in kept:
            p = log_p(model, [*prompt, *new, 0])[-1]
            longer += [((*new, i), total + p[i].item()) for i in range(9) if i not in banned]
        kept = sorted(longer, key=lambda b: -b[1])[:beams]
    ids, scores = beam_search(model, torch.tensor([prompt]), n, beams, banned)
    assert [tuple(row) for row in ids[:10].tolist()] == [new for new, _ in kept[:10]]
    assert scores.tolist() == pytest.approx([total for _, total in kept], abs=1e-4)


def test_beam_search_edges(model: BackpackLM | GPT):
    """Few continuations give few beams; long prompts are cut; one beam is greedy; the mode comes back."""
    only = [i for i in range(9) if i != 3]
    ids, scores = beam_search(model, torch.tensor([[1]]), 2, 5, only)
    assert ids.tolist() == [[3, 3]]
    assert len(scores) == 1
    prompt = torch.arange(20)[None] % 9
    cut, _ = beam_search(model, prompt[:, -11:], 2, 3)
    assert beam_search(model, prompt, 2, 3)[0].equal(cut)
    model.train()
    ids, _ = beam_search(model, torch.tensor([[1, 2]]), 5, 1)
    assert model.training
    greedy = model.eval().generate(torch.tensor([[1, 2]]), 5, temperature=0)
    assert ids.equal(greedy[:, 2:])
    for n, beams in ((0, 1), (13, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be"):
            beam_search(model, prompt, n, beams)


# --- LAMBADA --------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.text("ab \n\t", max_size=12).filter(lambda s: len(s.split()) > 1))
def test_split_last(text: str):
    """Context and last word put together are the text; the word brings its space, and is one word."""
    context, word = lambada.split_last(text)
    assert context + word == text.rstrip()
    assert word.split() == [text.split()[-1]]
    assert word[0].isspace()
    assert context == context.rstrip()


def test_last_words(model: BackpackLM | GPT):
    """exp of the mean negative log-likelihood of words; what cannot be spelled is left out and counted."""
    passages = ["ab cd", "fa ce bad", "abc xyz", "a gab gag bad beef cab", "ab cdefgabcdefga"]
    got = lambada.lambada(model, passages, batch_size=2)
    expected = []
    for passage, word in ((passages[0], " cd"), (passages[1], " bad"), (passages[3], " cab")):
        ids = model.tokenizer.encode(passage)
        expected.append(by_hand(model, ids, len(ids) - len(word)))
    assert got.perplexity == pytest.approx(math.exp(-sum(p for p, _ in expected) / 3), rel=1e-4)
    assert got.accuracy == sum(exact for _, exact in expected) / 3
    assert (got.n, got.left_out) == (3, 2)
    with pytest.raises(InputError, match="no passage"):
        lambada.lambada(model, ["x y"])


# --- BLiMP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "bos"), [("nano", False), ("paper-k1-modern", True), ("gpt-bias", "auto")], indirect=["model"]
)
def test_sentence_pairs(model: BackpackLM | GPT, bos: Bos):
    """The share of pairs whose good sentence is likelier as a whole; equal sentences are counted apart. What
    stands before them is the token that ends documents, where none begins them."""
    model.tokenizer.bos_id, model.tokenizer.eos_id = (None, 7) if bos == "auto" else (7, None)
    draw = torch.Generator().manual_seed(3)
    sentences = ["".join(LETTERS[i] for i in torch.randint(9, (5,), generator=draw)) for _ in range(60)]
    pairs = list(zip(sentences[::2], sentences[1::2], strict=True))
    p = [by_hand(model, [7] * bool(bos) + model.tokenizer.encode(text), 1)[0] for text in sentences]
    right = [good > bad for good, bad in zip(p[::2], p[1::2], strict=True)]
    sets = {"one": [*pairs, ("ab", "ab"), ("az", "ab"), ("a" * 14, "a")], "two": pairs[:7]}
    got = blimp.blimp(model, sets, bos, batch_size=7)
    assert got.names == ["one", "two"]
    assert got.accuracy == pytest.approx([sum(right) / 30, sum(right[:7]) / 7])
    assert (got.n, got.left_out, got.equal) == ([30, 7], [2, 0], [1, 0])
    assert got.mean == pytest.approx(sum(got.accuracy) / 2)
    with pytest.raises(InputError, match="bad set: no pair"):
        blimp.blimp(model, {"bad set": [("xy", "yx")]}, bos)
    with pytest.raises(InputError, match="in 2 both sentences are the same"):
        blimp.blimp(model, {"equal": [("ab", "ab"), ("ba", "ba")]}, bos)
    # Two sentences that are as likely: the good one does not win.
    c, d = model.tokenizer.encode("cd")
    with torch.no_grad():
        model.wte.weight[c] = model.wte.weight[d]
    assert blimp.blimp(model, {"tie": [("abc", "abd")]}, bos).accuracy == [0]


# --- WPLC -----------------------------------------------------------------------------------------


def test_word_prediction(model: BackpackLM | GPT):
    """v1 takes 3 beams by the text before the masks; v2 ranks 10 by the text after them as well."""
    items = [
        wcpc.MaskedText("abc", 2, "fa.", "de"),
        wcpc.MaskedText("abcdefabcdef", 1, "", "a"),
        wcpc.MaskedText("a", 2, "bcdefgabcdefg", "fg"),
        wcpc.MaskedText("xyz", 1, "", "a"),
    ]
    encode, banned = model.tokenizer.encode, wcpc.banned_ids(model.tokenizer)
    assert model.tokenizer.id(".") not in banned  # the protocol bans 。 and not .
    for protocol, beams in (("v1", 3), ("v2", 10)):
        expected = []
        for item in items[:3]:
            before, after = encode(item.before), encode(item.after)[:6]
            ids, sums = beam_search(model, torch.tensor([before]), item.n_masks, beams, banned)
            ranked = []
            for new, total in zip(ids.tolist(), sums.tolist(), strict=True):
                if protocol == "v2" and after:
                    total += by_hand(model, [*before, *new, *after], len(before) + len(new))[0]
                ranked.append((total, model.tokenizer.decode(new).replace(" ", "")))
            expected.append([word for _, word in sorted(ranked, reverse=True)[:3]])
        got = wcpc.wcpc(model, items, protocol)  # type: ignore[arg-type]
        assert got.guesses == expected
        assert (got.n, got.left_out) == (3, 1)


def test_right_words_are_counted(model: BackpackLM | GPT):
    """The first guess, the third and none of them: 1/3 and 2/3."""
    guesses = wcpc.wcpc(model, [wcpc.MaskedText("abc", 1, "", "a")]).guesses[0]
    fourth = next(c for c in LETTERS if c.strip() and c not in guesses)
    items = [wcpc.MaskedText("abc", 1, "", word) for word in (guesses[0], guesses[2], fourth)]
    got = wcpc.wcpc(model, items)
    assert (got.top1, got.top3) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_punctuation_is_no_word():
    tokenizer = Tokenizer.char("a，。！b")
    assert sorted(map(tokenizer.token, wcpc.banned_ids(tokenizer))) == sorted("，。！")


# --- Lexical similarity ---------------------------------------------------------------------------


def plain_spearman(x: list[float], y: list[float]) -> float:
    """Pearson's correlation of ranks, ties shared, by counting."""
    a, b = (
        torch.tensor([sum(v < x for v in side) + sum(v == x for v in side) / 2 for x in side]).double()
        for side in (x, y)
    )
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm())).item()


WORDS = ["ab", "cab", "fade", "bad", "gag", "face", "a", "beg"]
PAIRS = [WordPair(x, y, float((7 * i) % 11)) for i, (x, y) in enumerate(itertools.combinations(WORDS, 2))]


def test_lexical_similarity(model: BackpackLM | GPT):
    """Spearman's ρ of cosines with scores: E, flat, every sense and min, for means and first tokens."""
    pytest.importorskip("scipy")
    got = lexical_similarity(model, {"simlex": [*PAIRS, WordPair("ab", "xyz", 3.0)], "rg65": PAIRS[:9]})
    assert (got.n, got.coverage, got.seen) == ([28, 9], [28 / 29, 1.0], None)
    K = 0 if isinstance(model, GPT) else model.config.n_sense_vector
    assert got.measures == ["E"] + (["flat", *(f"sense {i}" for i in range(K)), "min"] if K else [])
    assert got.rho.shape == (len(got.measures), 2, 2)

    def cos(a: Tensor, b: Tensor) -> float:
        return round((torch.dot(a, b) / (a.norm() * b.norm())).item(), 9)

    def vectors(word: str, n: int | None) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([model.tokenizer.encode(word)[:n]])
        E = model.wte.weight.detach()[ids[0]].double().mean(dim=0)  # (D)
        return E, plain_senses(model, ids)[0].detach().mean(dim=1).double() if K else E[None]  # (K, D)

    gold = [pair.score for pair in PAIRS]
    for p, n_first in enumerate((None, 1)):  # avg, first
        rows = []
        for pair in PAIRS:
            (e, c), (f, d) = (vectors(word, n_first) for word in (pair.first, pair.second))
            each = [cos(c[i], d[i]) for i in range(K)]
            rows.append([cos(e, f), *([cos(c.flatten(), d.flatten()), *each, min(each)] if K else [])])
        for r, values in enumerate(zip(*rows, strict=True)):
            for s, n in enumerate((28, 9)):
                expected = plain_spearman(list(values[:n]), gold[:n])
                assert got.rho[r, s, p].item() == pytest.approx(expected, abs=1e-6)
    text = got.table()
    assert "96.6 %" in text
    assert len(text.splitlines()) == len(got.measures) + 5
    # Without a model: the share of letters that both words have.
    letters = [2 * len({*p.first} & {*p.second}) / len([*{*p.first}, *{*p.second}]) for p in PAIRS]
    assert got.figures["simlex avg shared tokens"].value == pytest.approx(plain_spearman(letters, gold))
    if K:
        least, E = (got.figures[f"simlex first {name}"].value for name in ("min", "E"))
        assert got.figures["simlex first min − E"].value == pytest.approx(least - E)


def test_a_sense_is_chosen_on_one_half_and_measured_on_the_other():
    """With as many senses of noise as pairs the best of all looks good; that of the other half does not."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(60, 200, generator=draw, dtype=torch.float64)  # (N, K)
    gold = torch.randn(60, generator=draw).tolist()
    assert max(spearman(sense, gold) for sense in noise.T) > 0.25
    assert abs(chosen_sense(noise, gold).value) < 0.2
    noise[:, 7] = torch.tensor(gold)  # a true one is found in both halves
    assert chosen_sense(noise, gold).value == pytest.approx(1)


def test_words_that_were_seen(speller: BackpackLM):
    """Pairs count as seen if the rarest letter of both words occurs often enough."""
    speller.token_counts = torch.tensor([0, 20, 10, 9, 50, 0, 0, 0, 0, 0, 0])
    rows = [("a", "b", 1.0), ("ab", "d", 2.0), ("ac", "b", 3.0), ("a", "e", 1.0)]
    pairs = [WordPair(*row) for row in rows]
    got = lexical_similarity(speller, {"simlex": pairs})
    assert (got.one_token, got.seen) == ([0.5], [0.5])
    assert "both seen 10 times  50.0 %" in got.table()
    assert lexical_similarity(speller, {"simlex": pairs}, min_count=9).seen == [0.75]


def test_contextualized_words_have_no_embedding(model: BackpackLM | GPT):
    pytest.importorskip("scipy")
    got = lexical_similarity(model, {"simlex": PAIRS}, ["avg", "contextualized"])
    assert not got.rho[0, 0, 0].isnan()
    assert got.rho[0, 0, 1].isnan()
    assert not got.rho[1:].isnan().any()
    assert "–" in got.table()
    assert json.loads(got.to_json())["rho"][0][0][1] is None


def test_spearman():
    """Ties share their rank; no correlation where all is the same."""
    pytest.importorskip("scipy")
    x, y = [0.3, 0.1, 0.1, 0.9, 0.5], [2.0, 2.0, 1.0, 5.0, 0.0]
    assert spearman(torch.tensor(x), y) == pytest.approx(plain_spearman(x, y), abs=1e-6)
    assert math.isnan(spearman(torch.tensor([1.0, 1]), [1, 2]))
    assert math.isnan(spearman(torch.tensor([1.0, 2]), [1, 1]))


def test_lexical_errors(model: BackpackLM | GPT):
    with pytest.raises(InputError, match="0 of 2 pairs"):
        lexical_similarity(model, {"simlex": [WordPair("x", "y", 1.0), WordPair("z", "y", 1.0)]})
    with pytest.raises(InputError, match=r"^pooling='mean' must be "):
        lexical_similarity(model, {"simlex": PAIRS}, ["mean"])  # type: ignore[list-item]
    model.tokenizer = None
    with pytest.raises(InputError, match="without a tokenizer"):
        lexical_similarity(model, {"simlex": PAIRS})


# --- Files ----------------------------------------------------------------------------------------

WORD = st.text(st.characters(categories=["Ll", "Lo", "Nd"]), min_size=1, max_size=6)
NUMBER = st.floats(-100, 100).map(lambda x: round(x, 4))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that many examples write, each anew."""
    return tmp_path_factory.mktemp("any") / "set.txt"


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40)
@given(
    pairs=st.lists(st.builds(WordPair, WORD, WORD, NUMBER), min_size=2, max_size=5),
    end=st.sampled_from(["\n", "\r\n", " \n"]),
)
def test_pairs_survive_a_file(name: str, pairs: list[WordPair], end: str, path: Path):
    """Every format gives back what was written, with either line end, blank lines, and none at the end."""
    separator, column, header = FORMATS[name]
    cells = [[p.first, p.second, *["A"] * (column - 2), repr(p.score)] for p in pairs]
    lines = ["head"] * header + [(separator or "\t").join(row) for row in cells]
    path.write_bytes((end.join(lines) + end * 2 + "").encode())
    assert read_pairs(name, path) == pairs
    path.write_bytes(end.join(lines).encode())
    assert read_pairs(name, path) == pairs


@settings(max_examples=150)
@given(name=st.sampled_from([*sorted(FORMATS), "mine"]), text=st.text(max_size=60))
def test_any_file_gives_pairs_or_one_line(name: str, text: str, path: Path):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (lambda: read_pairs(name, path), lambda: read_json_lines(path, ("text",))):
        message = ""
        try:
            assert read()
        except InputError as error:
            message = str(error)
        assert message.count("set.txt") == bool(message)
        assert "\n" not in message


read_simlex = functools.partial(read_pairs, "simlex")


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        *((read_simlex, line, ": .*tabs") for line in ("a\tb\tA\tx", "a\tb\tA\tnan", "\tb\tA\t3", "a b A 3")),
        (lambada.read_passages, "{", " is not JSON"),
        (lambada.read_passages, "[1]", ": not a JSON object"),
        (lambada.read_passages, '{"text": 3}', ": no text under 'text'"),
        (lambada.read_passages, '{"text": " "}', ": no text under 'text'"),
        (lambada.read_passages, '{"text": "word"}', ": .*two words"),
        (wcpc.read_masked_texts, '{"masked_text": "ab", "correct_word": "a"}', ": .*no <mask>"),
        (wcpc.read_masked_texts, '{"masked_text": "a<mask>b<mask>", "correct_word": "a"}', ": .*side by"),
        (wcpc.read_masked_texts, '{"masked_text": "<mask>b", "correct_word": "a"}', ": .*nothing before"),
    ],
)  # fmt: skip
def test_malformed_lines_are_named(read: Callable[[Path], object], line: str, message: str, tmp_path: Path):
    good = {
        read_simlex: "head\nold\tnew\tA\t1.5",
        lambada.read_passages: '{"text": "a b\u2028c"}\n',
        wcpc.read_masked_texts: '{"masked_text": "a<mask>", "correct_word": "b"}\n',
    }
    path = tmp_path / "set.txt"
    path.write_text(f"{good[read]}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"set.txt, line 3{message}"):
        read(path)


def test_files_as_they_may_come(tmp_path: Path):
    """With a byte order mark, Windows' line ends, characters at which Python splits lines, other fields."""
    path = tmp_path / "set.txt"
    path.write_text('\ufeff{"text": "a b\u2028c", "more": 1}\r\n', encoding="utf-8")
    assert lambada.read_passages(path) == ["a b\u2028c"]
    path.write_text(json.dumps({"masked_text": "ab<mask><mask>c", "correct_word": "de"}), encoding="utf-8")
    assert wcpc.read_masked_texts(path) == [wcpc.MaskedText("ab", 2, "c", "de")]
    path.write_text("a;b;1\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 pairs"):
        read_pairs("rg65", path)
    with pytest.raises(InputError, match="cannot read"):
        read_pairs("simlex", tmp_path / "missing.txt")


def test_any_table_is_a_test_set(tmp_path: Path):
    """Several languages side by side, by the names of the columns; without names the first three."""
    path = tmp_path / "languages.csv"
    path.write_text(
        '﻿ID,"ENG 1",ENG 2,ENG,FRA 1,FRA 2,FRA\n7,big,"large, huge",5.5,gros,grand,4\n8,a,b,1,c,d,2\n'
    )
    assert read_pairs("en", path, "ENG 1,ENG 2,ENG") == [("big", "large, huge", 5.5), ("a", "b", 1.0)]
    assert read_pairs("fr", path, "FRA 1, FRA 2, FRA") == [("gros", "grand", 4.0), ("c", "d", 2.0)]
    with pytest.raises(InputError, match=r"languages.csv, line 1: no column 'GER', there are ID, ENG 1"):
        read_pairs("de", path, "FRA 1,FRA 2,GER")
    with pytest.raises(InputError, match=r"line 2: 'big, large, huge, gros' is not two words and a number"):
        read_pairs("fr", path, "ENG 1,ENG 2,FRA 1")
    with pytest.raises(InputError, match="are 2, and 3 are needed"):
        read_pairs("fr", path, "ENG 1,ENG 2")
    path.write_text("a\tb\tscore\nx\ty\t1\n\nv\tw\t2.5\n")
    assert read_pairs("men", path) == [("x", "y", 1.0), ("v", "w", 2.5)]
    path.write_text("x\ty\t1\nv\tw\n")
    with pytest.raises(InputError, match="line 2: 2 cells, and column 3 is needed"):
        read_pairs("men", path)


@with_data
def test_real_test_sets():
    """The test sets as they are published have the sizes and, where known, the highest score they should."""
    for name, file, n, highest in (
        ("simlex", "lexsim/SimLex-999.txt", 999, None),
        ("simverb", "lexsim/SimVerb-3500.txt", 3500, None),
        ("rg65", "lexsim/RG65.csv", 65, None),
        ("ws353", "lexsim/WS353.csv", 353, None),
        ("wordsim240", "zh_wordsim/240.txt", 240, 9.2),
        ("wordsim297", "zh_wordsim/297.txt", 297, 4.98),
    ):
        pairs = read_pairs(name, DATA / file)
        assert len(pairs) == n
        assert not any("\r" in pair.second or " " in pair.first for pair in pairs)
        assert highest in (None, max(pair.score for pair in pairs))
    assert len(lambada.read_passages(DATA / "lambada" / "lambada_test.jsonl")) == 5153
    for path in sorted((DATA / "blimp").glob("*.jsonl")):
        assert len(blimp.read_sentence_pairs(path)) == 1000


# --- The programs ---------------------------------------------------------------------------------


@pytest.fixture(params=["backpack-lm", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run's folder with a model, and small test sets in it."""
    folder = save_tiny(tmp_path / "run", LETTERS, model_name=request.param)
    for name, text in (
        ("last.jsonl", '{"text": "ab cd"}\n{"text": "a bad cab"}\n'),
        ("order.jsonl", '{"sentence_good": "a bad cab", "sentence_bad": "bad a cab"}'),
        ("dev.json", '{"masked_text": "abc<mask><mask>fa.", "correct_word": "de"}'),
        ("rg.csv", "".join(f"{p.first};{p.second};{p.score}\n" for p in PAIRS)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_programs(folder: Path, capsys: Capture):
    """Each prints the table of what its function gives, and writes it as JSON."""
    pytest.importorskip("scipy")
    model, path = load_model(folder), folder / "result.json"
    items = wcpc.read_masked_texts(folder / "dev.json")
    passages = lambada.read_passages(folder / "last.jsonl")
    sets = {"order": blimp.read_sentence_pairs(folder / "order.jsonl")}
    for name, data, more, result in (
        ("lambada", folder / "last.jsonl", [], lambada.lambada(model, passages)),
        ("lambada", folder / "last.jsonl", ["--limit=1"], lambada.lambada(model, passages[:1])),
        ("blimp", folder / "order.jsonl", [], blimp.blimp(model, sets)),
        ("wcpc", folder / "dev.json", [], wcpc.wcpc(model, items)),
        ("wcpc", folder / "dev.json", ["--protocol=v2"], wcpc.wcpc(model, items, "v2")),
        ("lexical_similarity", f"rg65={folder / 'rg.csv'}", [], lexical_similarity(model, {"rg65": PAIRS})),
    ):
        out, err = run_program(name, folder, capsys, f"--data={data}", f"--json={path}", *more)
        assert err == ""
        assert out.startswith(result.table() + "\n# controls of these figures\n")
        found = json.loads(path.read_text(encoding="utf-8"))
        controls = found.pop("controls")
        assert json.loads(result.to_json()) == found | {"controls": None}
        assert controls["names"] == list(result.figures)
        assert controls["values"] == pytest.approx([figure.value for figure in result.figures.values()])
        assert [len(values) for values in controls["untrained"]] == [3] * len(controls["names"])


def test_blimp_takes_folders(folder: Path, capsys: Capture):
    (folder / "sets").mkdir()
    _, err = run_program("blimp", folder, capsys, f"--data={folder / 'sets'}", status=2)
    assert "has no .jsonl files" in err
    for name in ("order", "again"):
        shutil.copy(folder / "order.jsonl", folder / "sets" / f"{name}.jsonl")
    out, _ = run_program("blimp", folder, capsys, f"--data={folder / 'sets'}", "--controls=False")
    pairs = blimp.read_sentence_pairs(folder / "order.jsonl")
    assert out == blimp.blimp(load_model(folder), {"again": pairs, "order": pairs}).table() + "\n"


@pytest.mark.parametrize("name", ["lambada", "blimp", "wcpc", "lexical_similarity"])
def test_program_errors(name: str, folder: Path, capsys: Capture):
    """No data, a missing file, a result that cannot be written: one line, before a model is opened."""
    data = {"lambada": "last.jsonl", "blimp": "order.jsonl", "wcpc": "dev.json"}.get(name)
    there = str(folder / data) if data else f"rg65={folder / 'rg.csv'}"
    for arguments, message in (
        ([], "--data"),
        (["--data", "rg65=missing.txt", "--device=tpu"], "missing.txt"),
        (["--data", there, "--json=nowhere/a.json"], "no folder nowhere"),
    ):
        out, err = run_program(name, folder / "no model", capsys, *arguments, status=2)
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("error: ")
        assert message in err


@pytest.mark.parametrize("item", ["=a.txt", "rg65="])
def test_test_sets_need_a_name(item: str, tmp_path: Path, capsys: Capture):
    _, err = run_program("lexical_similarity", tmp_path, capsys, "--data", item, status=2)
    assert "is not NAME=FILE with NAME one of simlex" in err
