"""Evaluation protocols equal direct computation by the plain formula; their files are read or refused."""

from __future__ import annotations

import itertools
import json
import math
import shutil
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
    lexical_similarity,
    read_pairs,
    spearman,
)
from nanobackpack.evaluate.scoring import TextToScore, read_json_lines, score_texts
from nanobackpack.model.generate import beam_search
from nanobackpack.text.tokenizer import Tokenizer

LETTERS = "abcdef .g"
DATA = Path(__file__).parents[2] / "shared" / "data"
with_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the test sets")


@pytest.fixture(params=BACKPACKS | GPTS)
def model(request: pytest.FixtureRequest) -> BackpackLM | GPT:
    model = tiny_model(**(BACKPACKS | GPTS)[request.param] | {"vocab_size": 12, "vocab_used": 9})
    model.tokenizer = Tokenizer.char(LETTERS)
    return model


def log_p(model: BackpackLM | GPT, ids: list[int]) -> Tensor:
    """log p of each token but the first, given those before it; (T - 1, V) by the plain formula."""
    with torch.no_grad():
        return plain_logits(model, torch.tensor([ids[:-1]]))[0].log_softmax(dim=1)


# --- Scores ---------------------------------------------------------------------------------------


def test_score(model: BackpackLM | GPT):
    """Sums of log-probabilities of rows of all lengths, whatever the batch; the beginning is cut."""
    draw = torch.Generator().manual_seed(2)
    rows = []
    for T, start in ((2, 1), (13, 1), (5, 4), (12, 6), (30, 20), (7, 3)):
        rows.append(TextToScore(torch.randint(12, (T,), generator=draw).tolist(), start))
    expected = []
    for ids, start in rows:
        kept = ids[-13:]  # 12 positions predict the last 12 tokens
        p, first = log_p(model, kept), start - (len(ids) - len(kept))
        wanted = range(first, len(kept))
        expected.append(sum(p[i - 1, kept[i]].item() for i in wanted))
        exact = all(p[i - 1, :9].argmax().item() == kept[i] for i in wanted)
        assert score_texts(model, [TextToScore(ids, start)])[0].exact == exact
    for batch_size in (1, 2, 16):
        assert [s.log_p for s in score_texts(model, rows, batch_size)] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="cannot score"):
        score_texts(model, [TextToScore([1, 2], 0)])
    with pytest.raises(ValueError, match="cannot score"):
        score_texts(model, [TextToScore([1] * 14, 1)])


def test_exact_means_every_token(model: BackpackLM | GPT):
    """A row that continues greedily is exact; changing one token of it is not."""
    ids = model.generate(torch.tensor([[3, 1]]), 6, temperature=0)[0].tolist()
    assert score_texts(model, [TextToScore(ids, 2)])[0].exact
    for i in range(2, 8):
        changed = [*ids[:i], (ids[i] + 1) % 9, *ids[i + 1 :]]
        assert not score_texts(model, [TextToScore(changed, 2)])[0].exact


# --- Beams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("banned", [(), (0, 4)])
def test_enough_beams_find_the_best(model: BackpackLM | GPT, banned: tuple[int, ...]):
    """With as many beams as continuations by n - 1 tokens, beam search is exhaustive search."""
    prompt = [5, 2, 7]
    allowed = [i for i in range(9) if i not in banned]
    sums = {}
    for new in itertools.product(allowed, repeat=3):
        ids = [*prompt, *new]
        p = log_p(model, ids)
        sums[new] = sum(p[i - 1, ids[i]].item() for i in range(3, 6))
    best = sorted(sums, key=lambda new: -sums[new])[:10]
    ids, scores = beam_search(model, torch.tensor([prompt]), 3, 81, banned)
    assert [tuple(row) for row in ids[:10].tolist()] == best
    assert scores[:10].tolist() == pytest.approx([sums[new] for new in best], abs=1e-4)


def test_beams_keep_the_best_of_each_step(model: BackpackLM | GPT):
    """Each step keeps the N best continuations of those kept before, as a plain loop does."""
    prompt, beams = [5, 2, 7, 1], [((), 0.0)]
    for _ in range(4):
        longer = []
        for new, total in beams:
            p = log_p(model, [*prompt, *new, 0])[-1]
            longer += [((*new, i), total + p[i].item()) for i in range(9)]
        beams = sorted(longer, key=lambda b: -b[1])[:3]
    ids, scores = beam_search(model, torch.tensor([prompt]), 4, 3)
    assert [tuple(row) for row in ids.tolist()] == [new for new, _ in beams]
    assert scores.tolist() == pytest.approx([total for _, total in beams], abs=1e-4)


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


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.text("ab \n\t", max_size=12).filter(lambda s: len(s.split()) > 1))
def test_split_last(text: str):
    """Context and last word put together are the text; the word brings its space, and is one word."""
    context, word = lambada.split_last(text)
    assert context + word == text.rstrip()
    assert word.split() == [text.split()[-1]]
    assert word[0].isspace()
    assert context == context.rstrip()


def test_last_word(model: BackpackLM | GPT):
    """exp of the mean negative log-likelihood of words; what cannot be spelled is left out and counted."""
    passages = ["ab cd", "fa ce bad", "abc xyz", "a gab gag bad beef cab", "ab cdefgabcdefga"]
    got = lambada.lambada(model, passages, batch_size=2)
    total, exact = 0.0, 0
    for passage, word in ((passages[0], " cd"), (passages[1], " bad"), (passages[3], " cab")):
        ids = model.tokenizer.encode(passage)[-13:]
        p, wanted = log_p(model, ids), range(len(ids) - len(word), len(ids))
        total += sum(p[i - 1, ids[i]].item() for i in wanted)
        exact += all(p[i - 1, :9].argmax().item() == ids[i] for i in wanted)
    assert got.perplexity == pytest.approx(math.exp(-total / 3), rel=1e-4)
    assert got.accuracy == exact / 3
    assert (got.n, got.left_out) == (3, 2)
    with pytest.raises(InputError, match="no passage"):
        lambada.lambada(model, ["x y"])


# --- BLiMP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_sentence_pairs(model: BackpackLM | GPT, bos: bool):
    """The share of pairs whose good sentence is likelier as a whole; equal ones are errors."""
    model.tokenizer = Tokenizer.char(LETTERS)
    model.tokenizer.bos_id = 7
    draw = torch.Generator().manual_seed(3)
    sentences = ["".join(LETTERS[i] for i in torch.randint(9, (5,), generator=draw)) for _ in range(60)]
    pairs = list(zip(sentences[::2], sentences[1::2], strict=True))

    def plain(sentence: str) -> float:
        ids = [7] * bos + model.tokenizer.encode(sentence)
        p = log_p(model, ids)
        return sum(p[i - 1, ids[i]].item() for i in range(1, len(ids)))

    right = sum(plain(good) > plain(bad) for good, bad in pairs)
    sets = {"one": [*pairs, ("ab", "ab"), ("az", "ab"), ("a" * 14, "a")], "two": pairs[:7]}
    got = blimp.blimp(model, sets, bos, batch_size=7)
    assert got.names == ["one", "two"]
    assert got.accuracy[0] == pytest.approx(right / 31)
    assert got.accuracy[1] == pytest.approx(sum(plain(g) > plain(b) for g, b in pairs[:7]) / 7)
    assert (got.n, got.left_out) == ([31, 7], [2, 0])
    assert got.mean == pytest.approx(sum(got.accuracy) / 2)
    with pytest.raises(InputError, match="bad set: no pair"):
        blimp.blimp(model, {"bad set": [("xy", "yx")]}, bos)


# --- WPLC -----------------------------------------------------------------------------------------


def test_word_prediction(model: BackpackLM | GPT):
    """v1 takes 3 beams by the text before the masks; v2 ranks 10 by the text after them as well."""
    items = [
        wcpc.MaskedText("abc", 2, "fa.", "de"),
        wcpc.MaskedText("abcdefabcdef", 1, "", "a"),
        wcpc.MaskedText("xyz", 1, "", "a"),
        wcpc.MaskedText("a", 2, "bcdefgabcdefg", "fg"),
    ]
    period = model.tokenizer.id(".")
    for protocol in ("v1", "v2"):
        expected = []
        for item in (items[0], items[1], items[3]):
            before = model.tokenizer.encode(item.before)
            after = model.tokenizer.encode(item.after)[:6]
            width = 3 if protocol == "v1" else 10
            ids, sums = beam_search(
                model, torch.tensor([before]), item.n_masks, width, wcpc.banned_ids(model.tokenizer)
            )
            ranked = []
            for new, total in zip(ids.tolist(), sums.tolist(), strict=True):
                if protocol == "v2" and after:
                    row = [*before, *new, *after][-13:]
                    p = log_p(model, row)
                    total += sum(p[i - 1, row[i]].item() for i in range(len(row) - len(after), len(row)))
                ranked.append((total, model.tokenizer.decode(new).replace(" ", "")))
            expected.append([word for _, word in sorted(ranked, reverse=True)[:3]])
        got = wcpc.wcpc(model, items, protocol)  # type: ignore[arg-type]
        assert got.guesses == expected
        assert (got.n, got.left_out) == (3, 1)
        pairs = list(zip(("de", "a", "fg"), expected, strict=True))
        assert got.top1 == pytest.approx(sum(w == e[0] for w, e in pairs) / 3)
        assert got.top3 == pytest.approx(sum(w in e for w, e in pairs) / 3)
    assert period not in wcpc.banned_ids(model.tokenizer)  # the protocol bans 。 and not .


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


def ranks(values: list[float]) -> list[float]:
    """Ranks with ties shared, by counting."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def plain_spearman(x: list[float], y: list[float]) -> float:
    a, b = torch.tensor(ranks(x), dtype=torch.float64), torch.tensor(ranks(y), dtype=torch.float64)
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm())).item()


WORDS = ["ab", "cab", "fade", "bad", "gag", "face", "a", "beg"]
PAIRS = [WordPair(x, y, float((7 * i) % 11)) for i, (x, y) in enumerate(itertools.combinations(WORDS, 2))]


def test_lexical_similarity(model: BackpackLM | GPT):
    """Spearman's ρ of cosines with scores: E, flat, every sense and min, for means and first tokens."""
    pytest.importorskip("scipy")
    unknown = [WordPair("ab", "xyz", 3.0)]
    got = lexical_similarity(model, {"simlex": PAIRS + unknown, "rg65": PAIRS[:9]})
    assert (got.n, got.coverage) == ([28, 9], [28 / 29, 1.0])
    K = 0 if isinstance(model, GPT) else model.config.n_sense_vector
    assert got.measures == ["E"] + (["flat", *(f"sense {i}" for i in range(K)), "min"] if K else [])
    assert got.rho.shape == (len(got.measures), 2, 2)

    def cos(a: Tensor, b: Tensor) -> float:
        return (torch.dot(a, b) / (a.norm() * b.norm())).item()

    for p, pooling in enumerate(("avg", "first")):
        rows: dict[str, list[float]] = {name: [] for name in got.measures}
        for pair in PAIRS:
            sides = []
            for word in (pair.first, pair.second):
                ids = torch.tensor([model.tokenizer.encode(word)[: None if pooling == "avg" else 1]])
                E = model.wte.weight.detach()[ids[0]].double().mean(dim=0)
                C = plain_senses(model, ids)[0].detach().mean(dim=1).double() if K else E[None]
                sides.append((E, C))
            (e, c), (f, d) = sides
            each = [cos(c[i], d[i]) for i in range(K)]
            values = [cos(e, f)] + ([cos(c.flatten(), d.flatten()), *each, min(each)] if K else [])
            for name, value in zip(got.measures, values, strict=True):
                rows[name].append(round(value, 9))
        gold = [pair.score for pair in PAIRS]
        for r, name in enumerate(got.measures):
            for s, n in enumerate((28, 9)):
                expected = plain_spearman(rows[name][:n], gold[:n])
                assert got.rho[r, s, p].item() == pytest.approx(expected, abs=1e-6)
    text = got.table()
    assert "96.6 %" in text
    assert len(text.splitlines()) == len(got.measures) + 4


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
    assert spearman(torch.tensor([1.0, 2, 3]), [10, 20, 90]) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 3]), [9, 2, 1]) == pytest.approx(-1)
    assert math.isnan(spearman(torch.tensor([1.0, 1]), [1, 2]))
    assert math.isnan(spearman(torch.tensor([1.0, 2]), [1, 1]))


def test_lexical_errors(model: BackpackLM | GPT):
    with pytest.raises(InputError, match="0 of 2 pairs"):
        lexical_similarity(model, {"simlex": [WordPair("x", "y", 1.0), WordPair("z", "y", 1.0)]})
    with pytest.raises(InputError, match="pooling='mean'"):
        lexical_similarity(model, {"simlex": PAIRS}, ["mean"])  # type: ignore[list-item]
    model.tokenizer = None
    with pytest.raises(InputError, match="without a tokenizer"):
        lexical_similarity(model, {"simlex": PAIRS})


# --- Files ----------------------------------------------------------------------------------------

WORD = st.text(st.characters(categories=["Ll", "Lo", "Nd"]), min_size=1, max_size=6)
NUMBER = st.floats(-100, 100).map(lambda x: round(x, 4))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    pairs=st.lists(st.builds(WordPair, WORD, WORD, NUMBER), min_size=2, max_size=5),
    end=st.sampled_from(["\n", "\r\n", " \n"]),
)
def test_pairs_survive_a_file(
    name: str, pairs: list[WordPair], end: str, tmp_path_factory: pytest.TempPathFactory
):
    """Every format gives back what was written, with either line end, blank lines, and none at the end."""
    separator, column, header = FORMATS[name]
    cells = [[p.first, p.second, *["A"] * (column - 2), repr(p.score)] for p in pairs]
    lines = ["head"] * header + [(separator or "\t").join(row) for row in cells]
    path = tmp_path_factory.mktemp("pairs") / "set.txt"
    path.write_bytes((end.join(lines) + end * 2 + "").encode())
    assert read_pairs(name, path) == pairs
    path.write_bytes(end.join(lines).encode())
    assert read_pairs(name, path) == pairs


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(sorted(FORMATS)), text=st.text(max_size=60))
def test_any_file_gives_pairs_or_one_line(name: str, text: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("any") / "set.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (lambda: read_pairs(name, path), lambda: read_json_lines(path, ("text",))):
        message = ""
        try:
            assert read()
        except InputError as error:
            message = str(error)
        assert message.count("set.txt") == bool(message)
        assert "\n" not in message


@pytest.mark.parametrize("line", ["a\tb", "a\tb\tA\tx", "a\tb\tA\tnan", "\tb\tA\t3", "a b A 3", "a\tb\t3"])
def test_malformed_pairs_name_their_line(line: str, tmp_path: Path):
    path = tmp_path / "set.txt"
    path.write_text(f"head\nold\tnew\tA\t1.5\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"set.txt, line 3: .*tabs"):
        read_pairs("simlex", path)


def test_pair_files_that_cannot_be(tmp_path: Path):
    with pytest.raises(InputError, match="cannot read"):
        read_pairs("simlex", tmp_path / "missing.txt")
    with pytest.raises(InputError, match="unknown test set 'men': there are simlex"):
        read_pairs("men", tmp_path / "missing.txt")
    (tmp_path / "one.txt").write_text("a;b;1\n", encoding="utf-8")
    with pytest.raises(InputError, match="1 pairs"):
        read_pairs("rg65", tmp_path / "one.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"txt": "a b"}', "no text under 'text'"),
        ('{"text": 3}', "no text under 'text'"),
        ('{"text": " "}', "no text under 'text'"),
        ('{"text": "word"}', "two words"),
    ],
)
def test_malformed_json_lines_name_their_line(line: str, message: str, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a b\u2028c"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=f"a.jsonl, line 3:? .*{message}"):
        lambada.read_passages(path)
    path.write_text('\ufeff{"text": "a b\u2028c", "more": 1}\r\n', encoding="utf-8")
    assert lambada.read_passages(path) == ["a b\u2028c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("ab", "no <mask>"), ("a<mask>b<mask>", "side by side"), ("<mask>b", "nothing before")],
)
def test_malformed_masks_name_their_line(text: str, message: str, tmp_path: Path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"masked_text": text, "correct_word": "a"}), encoding="utf-8")
    with pytest.raises(InputError, match=f"dev.json, line 1: .*{message}"):
        wcpc.read_masked_texts(path)


def test_masked_texts(tmp_path: Path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"masked_text": "ab<mask><mask>c", "correct_word": "de"}), encoding="utf-8")
    assert wcpc.read_masked_texts(path) == [wcpc.MaskedText("ab", 2, "c", "de")]


@with_data
@pytest.mark.parametrize(
    ("name", "file", "n", "last"),
    [
        ("simlex", "lexsim/SimLex-999.txt", 999, None),
        ("simverb", "lexsim/SimVerb-3500.txt", 3500, None),
        ("rg65", "lexsim/RG65.csv", 65, None),
        ("ws353", "lexsim/WS353.csv", 353, None),
        ("wordsim240", "zh_wordsim/240.txt", 240, 9.2),
        ("wordsim297", "zh_wordsim/297.txt", 297, 4.98),
    ],
)
def test_real_pairs(name: str, file: str, n: int, last: float | None):
    """The test sets as they are published have the sizes and, where known, the highest score they should."""
    pairs = read_pairs(name, DATA / file)
    assert len(pairs) == n
    assert not any("\r" in p.second or " " in p.first for p in pairs)
    if last is not None:
        assert max(p.score for p in pairs) == last


@with_data
def test_real_texts():
    assert len(lambada.read_passages(DATA / "lambada" / "lambada_test.jsonl")) == 5153
    for path in sorted((DATA / "blimp").glob("*.jsonl")):
        assert len(blimp.read_sentence_pairs(path)) == 1000


# --- The programs ---------------------------------------------------------------------------------


@pytest.fixture(params=["backpack-lm", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run's folder with a model, and the small test sets beside it."""
    folder = save_tiny(tmp_path / "run", LETTERS, model_name=request.param)
    (folder / "last.jsonl").write_text('{"text": "ab cd"}\n{"text": "a bad cab"}\n', encoding="utf-8")
    pair = {"sentence_good": "a bad cab", "sentence_bad": "bad a cab"}
    (folder / "order.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    masked = {"masked_text": "abc<mask><mask>fa.", "correct_word": "de"}
    (folder / "dev.json").write_text(json.dumps(masked), encoding="utf-8")
    text = "".join(f"{p.first};{p.second};{p.score}\n" for p in PAIRS)
    (folder / "rg.csv").write_text(text, encoding="utf-8")
    return folder


def test_programs(folder: Path, capsys: pytest.CaptureFixture[str]):
    """Each prints the table of what its function gives, and writes it as JSON."""
    pytest.importorskip("scipy")
    model = load_model(folder)
    items = wcpc.read_masked_texts(folder / "dev.json")
    passages = lambada.read_passages(folder / "last.jsonl")
    sets = {"order": blimp.read_sentence_pairs(folder / "order.jsonl")}
    for name, data, more, result in (
        ("lambada", "last.jsonl", [], lambada.lambada(model, passages)),
        ("lambada", "last.jsonl", ["--limit=1"], lambada.lambada(model, passages[:1])),
        ("blimp", "order.jsonl", [], blimp.blimp(model, sets)),
        ("wcpc", "dev.json", [], wcpc.wcpc(model, items)),
        ("wcpc", "dev.json", ["--protocol=v2"], wcpc.wcpc(model, items, "v2")),
    ):
        path = folder / "result.json"
        out, err = run_program(name, folder, capsys, f"--data={folder / data}", f"--json={path}", *more)
        assert (out, err) == (result.table() + "\n", "")
        assert json.loads(path.read_text(encoding="utf-8")) == json.loads(result.to_json())
    (folder / "sets").mkdir()
    _, err = run_program("blimp", folder, capsys, f"--data={folder / 'sets'}", status=2)
    assert "has no .jsonl files" in err
    for name in ("order", "again"):
        shutil.copy(folder / "order.jsonl", folder / "sets" / f"{name}.jsonl")
    out, _ = run_program("blimp", folder, capsys, f"--data={folder / 'sets'}")
    both = {"again": sets["order"], "order": sets["order"]}
    assert out == blimp.blimp(model, both).table() + "\n"
    out, _ = run_program("lexical_similarity", folder, capsys, "--data", f"rg65={folder / 'rg.csv'}")
    assert out == lexical_similarity(model, {"rg65": PAIRS}).table() + "\n"


@pytest.mark.parametrize("name", ["lambada", "blimp", "wcpc", "lexical_similarity"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data"),
        (["--data", "rg65=missing.txt"], "missing.txt"),
        (["--data", "rg65=missing.txt", "--device=tpu"], "missing.txt"),
    ],
)
def test_program_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], message: str
):
    """No data, or a file that is missing: one line, before a model is opened."""
    out, err = run_program(name, tmp_path, capsys, *arguments, status=2)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert message in err


def test_paths_are_checked_before_a_model_is_opened(folder: Path, capsys: pytest.CaptureFixture[str]):
    for name, data in (("lambada", "last.jsonl"), ("blimp", "order.jsonl"), ("wcpc", "dev.json")):
        arguments = [f"--data={folder / data}", "--json=nowhere/a.json"]
        _, err = run_program(name, folder / "missing", capsys, *arguments, status=2)
        assert "no folder nowhere" in err


@pytest.mark.parametrize("item", ["men=a.txt", "rg65", "rg65=", "=a.txt"])
def test_test_sets_need_a_known_name(item: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, err = run_program("lexical_similarity", tmp_path, capsys, "--data", item, status=2)
    assert "is not NAME=FILE with NAME one of simlex" in err
