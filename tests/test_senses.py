"""Reading the senses of words: each definition against a direct computation, and the script that shows it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_alpha, plain_senses
from torch import Tensor

import nanobackpack as nb
from nanobackpack import BackpackLM, InputError, Senses, TrainConfig
from nanobackpack.analysis import control
from nanobackpack.analysis.results import Ranking, Result
from nanobackpack.config import SenseConfig
from nanobackpack.text.tokenizer import Tokenizer, find_word, token_id, word_ids
from nanobackpack.train import checkpoint

SCRIPT = Path(__file__).parents[1] / "experiments" / "sense_vector.py"


def scores_of(model: BackpackLM, *ids: int) -> list[list[float]]:
    """E · C by hand, (K, n_token), for the mean of some ids' senses."""
    senses = sum(model.sense_vectors()[i] for i in ids) / len(ids)  # (K, D)
    real = model.wte.weight[: model.config.n_token]  # (V, D)
    return [[torch.dot(sense, e).item() for e in real] for sense in senses]


def test_projection(speller: BackpackLM):
    """projection is E · C of the word, one row a sense, one column a real token."""
    got = Senses(speller).projection("c")
    assert got.shape == (4, 8)
    expected = torch.tensor(scores_of(speller, speller.tokenizer.encode("c")[0]))
    assert torch.allclose(got, expected, atol=1e-5)
    assert not got.requires_grad


@pytest.mark.parametrize("bottom", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8, 100])
def test_sense_projection(speller: BackpackLM, k: int, bottom: bool):
    """For each sense the k tokens with the highest scores in order, or the lowest; never a padded one."""
    rows = Senses(speller).sense_projection("e", k, bottom=bottom)
    expected = scores_of(speller, speller.tokenizer.encode("e")[0])
    assert len(rows) == 4
    for row, scores in zip(rows, expected, strict=True):
        order = sorted(range(8), key=lambda i: scores[i] if bottom else -scores[i])[:k]
        assert [entry.token for entry in row] == [speller.tokenizer.token(i) for i in order]
        assert [entry.score for entry in row] == pytest.approx([scores[i] for i in order], abs=1e-5)


def test_padding_would_have_been_listed(speller: BackpackLM):
    """The padded ids do score highest for some sense: leaving them out is not luck."""
    all_scores = torch.einsum("vkd,wd->vkw", speller.sense_vectors(), speller.wte.weight)
    assert (all_scores.argmax(dim=2) >= speller.config.n_token).any()


def test_word_of_several_tokens(speller: BackpackLM):
    """A word's senses are the mean of its tokens'; order does not matter, repeats count."""
    senses, ids = Senses(speller), speller.tokenizer.encode("gab")
    assert len(ids) == 3
    got = senses.word_senses("gab")
    assert got.shape == (4, 16)
    assert torch.allclose(got, speller.sense_vectors()[ids].mean(dim=0), atol=1e-6)
    assert torch.allclose(got, senses.word_senses("bag"), atol=1e-6)
    assert not torch.allclose(got, senses.word_senses("gaab"), atol=1e-3)
    assert torch.allclose(senses.projection("gab"), torch.tensor(scores_of(speller, *ids)), atol=1e-5)


def test_reading_changes_nothing(speller: BackpackLM):
    """Reading leaves weights, mode and gradients of the model alone, also of one in training."""
    speller.train()
    before = {name: t.clone() for name, t in speller.state_dict().items()}
    Senses(speller).sense_projection("a", 3)
    assert speller.training
    assert all(torch.equal(t, before[name]) for name, t in speller.state_dict().items())
    assert all(p.grad is None for p in speller.parameters())


def test_senses_errors(speller: BackpackLM):
    """A GPT, a model without tokenizer, an unknown character and an empty word are refused."""
    assert nb.Senses is Senses
    gpt = tiny_model(model_name="gpt2")
    gpt.tokenizer = speller.tokenizer
    with pytest.raises(InputError, match="GPT"):
        Senses(gpt)
    with pytest.raises(InputError, match="tokenizer"):
        Senses(tiny_model())
    with pytest.raises(InputError, match="'z'"):
        Senses(speller).sense_projection("z")
    with pytest.raises(InputError, match="empty"):
        Senses(speller).sense_projection("")


# --- Words: each definition of the analysis table against a direct computation ----------------


@pytest.fixture(params=BACKPACKS)
def senses(request: pytest.FixtureRequest) -> Senses:
    """Tiny Backpacks of each kind that know 8 characters."""
    model = tiny_model(**BACKPACKS[request.param] | {"vocab_size": 11, "vocab_used": 8})
    model.tokenizer = Tokenizer.char("abcdefg\n")
    return Senses(model)


def cosine(a: Tensor, b: Tensor) -> float:
    return (torch.dot(a, b) / torch.sqrt(torch.dot(a, a) * torch.dot(b, b))).item()


def ids_of(senses: Senses, text: str) -> Tensor:
    return torch.tensor([senses.tokenizer.encode(text)])


def test_pooling(senses: Senses):
    """A word of several tokens: their mean, the first, or what the model makes of the word alone."""
    ids = ids_of(senses, "cab")
    C = plain_senses(senses.model, ids)[0].detach()  # (K, T, D)
    alpha = plain_alpha(senses.model, ids)[0].detach()  # (K, T, T)
    for pooling, expected in (
        ("avg", (C[:, 0] + C[:, 1] + C[:, 2]) / 3),
        ("first", C[:, 0]),
        ("contextualized", sum(alpha[:, 2, j, None] * C[:, j] for j in range(3))),
    ):
        assert torch.allclose(senses.word_senses("cab", pooling), expected, atol=1e-5)
        got = senses.many_senses(["e", "cab", "bac"], pooling)
        assert torch.allclose(got[1], expected, atol=1e-5)
        assert torch.allclose(got[0], senses.word_senses("e", pooling), atol=1e-5)


def test_contextualized_senses_sum_to_the_logits(senses: Senses):
    """Σ_l E · s_l = the model's logits after the word, exactly."""
    logits = senses.model(ids_of(senses, "fabg")).logits[0, -1, :8]
    assert torch.allclose(senses.projection("fabg", "contextualized").sum(dim=0), logits, atol=1e-5)


def test_word_arithmetic(senses: Senses):
    """A signed sum of senses, projected; the first sign may be left out."""
    C = senses.model.sense_vectors()
    a, b, c = (senses.tokenizer.encode(x)[0] for x in "abc")
    expected = (C[a] - C[b] + C[c]) @ senses.model.wte.weight[:8].T  # (K, 8)
    got = senses.word_arithmetic("+a-b+c", k=8)
    assert got.ids.tolist() == expected.argsort(dim=1, descending=True).tolist()
    assert torch.allclose(got.scores, expected.sort(dim=1, descending=True).values, atol=1e-5)
    assert senses.word_arithmetic("a-b+c", k=8).ids.equal(got.ids)
    for bad in ("", "+", "a-", "a--b", "a+bc", "a+z"):
        with pytest.raises(InputError):
            senses.word_arithmetic(bad)


def test_similarity(senses: Senses):
    """Matched, flat and crossed cosines of two words."""
    C, K = senses.model.sense_vectors(), senses.model.config.n_sense_vector
    x, y = (C[senses.tokenizer.encode(w)[0]] for w in "ad")
    got = senses.similarity("a", "d")
    matched = [cosine(x[i], y[i]) for i in range(K)]
    crossed = [cosine(x[i], y[j]) for i in range(K) for j in range(K)]
    assert got.cosine.tolist() == pytest.approx(matched, abs=1e-5)
    assert (got.min, got.max) == pytest.approx((min(matched), max(matched)), abs=1e-5)
    assert got.pairs.flatten().tolist() == pytest.approx(crossed, abs=1e-5)
    assert got.flat == pytest.approx(cosine(x.flatten(), y.flatten()), abs=1e-5)
    assert senses.similarity("bad", "bad").min == pytest.approx(1, abs=1e-5)


def test_nearest(senses: Senses):
    """Per sense, for one, or for the least over all: the tokens in order of cosine, without the word."""
    C, K = senses.model.sense_vectors(), senses.model.config.n_sense_vector
    me = senses.tokenizer.encode("d")[0]
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


def test_the_table_of_directions_is_kept_and_dropped(senses: Senses):
    table = senses.directions()
    assert senses.directions() is table
    assert table.shape == (senses.model.config.n_sense_vector, 8, senses.model.config.n_embd)
    senses.forget()
    assert senses.directions() is not table


def test_neighbours_follow_the_edits(senses: Senses):
    """A table made before an edit is not taken under it, nor one made under it afterwards."""
    before = {word: senses.nearest(word, 3) for word in "df"}
    d, f = senses.tokenizer.encode("df")
    edit = control.copy_senses(senses.model, d, f, range(senses.model.config.n_sense_vector))
    with control.applied(senses.model, edit):
        for word, other in ("df", "fd"):  # which are alike now, also as a row of the table
            under = senses.nearest(word, 1)
            assert under.tokens == [[other]] * senses.model.config.n_sense_vector
            assert under.scores.flatten().tolist() == pytest.approx([1.0] * len(under.tokens), abs=1e-5)
    for word in "df":
        assert senses.nearest(word, 3).table() == before[word].table()


def test_sense_bias(senses: Senses):
    """The difference of two log-probabilities under a softmax of one sense, strongest first."""
    C = senses.model.sense_vectors([senses.tokenizer.encode("g")[0]])[0]  # (K, D)
    log_p = (C @ senses.model.wte.weight[:8].T).log_softmax(dim=1)
    a, b = (senses.tokenizer.encode(x)[0] for x in "ae")
    got = senses.sense_bias("g", "a", "e")
    assert torch.allclose(got.values, log_p[:, a] - log_p[:, b], atol=1e-5)
    sizes = [abs(v) for _, v in got.ranked()]
    assert sizes == sorted(sizes, reverse=True)
    assert all(got.values[sense].item() == v for sense, v in got.ranked())


def test_the_recipe_for_a_map_runs(speller: BackpackLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the docs say draws the words of one sense in the plane: one point a word, a PNG."""
    pytest.importorskip("sklearn")
    pages = [page.read_text(encoding="utf-8") for page in (SCRIPT.parents[1] / "docs").glob("*.md")]
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


@pytest.mark.parametrize("sense", [-1, 4, 100])
def test_sense_out_of_range(speller: BackpackLM, sense: int):
    """One line that says which senses there are."""
    senses = Senses(speller)
    for read in (
        lambda: senses.nearest("a", sense=sense),
        lambda: senses.sense_projection("a", sense=sense),
    ):
        with pytest.raises(InputError, match="0 to 3"):
            read()


def test_words_as_ids(speller: BackpackLM):
    """A word may be given as its ids; ids that do not exist are refused."""
    senses = Senses(speller)
    assert senses.word_senses([2, 3]).equal(senses.word_senses(speller.tokenizer.decode([2, 3])))
    with pytest.raises(InputError, match="id 8"):
        senses.word_senses([8])
    with pytest.raises(InputError, match="k=0"):
        senses.sense_projection("a", 0)


# --- Words and tokens ---------------------------------------------------------------------------


def joining() -> Tokenizer:
    """Byte-level BPE as GPT-2's: "Ġ" is a space joined to the word after it."""
    vocabulary = {t: i for i, t in enumerate(["Ġ", "a", "b", "c", "Ġa", "Ġab", "ab", "[UNK]", "Ċ"])}
    merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b")]
    inner = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    return Tokenizer(inner)


def test_words_take_the_space_that_joins_them():
    """ " word" as inside a text where that is how the tokenizer writes it, else the word as it is."""
    t = joining()
    shown = lambda word: [t.token(i) for i in word_ids(t, word)]  # noqa: E731
    assert shown("ab") == [" ab"]
    assert shown("ac") == [" a", "c"]
    assert shown("ba") == ["b", "a"]  # the space would be a token of its own
    assert shown(" ba") == [" ", "b", "a"]  # a space that is given stays
    assert shown("\n") == ["\n"]
    assert word_ids(Tokenizer.char("ab"), "ab") == [0, 1]
    with pytest.raises(InputError, match="2 tokens"):
        token_id(t, "ac")
    assert word_ids(t, [7]) == [7]  # [UNK], asked for by its id
    assert token_id(t, "ab") == 5
    assert token_id(t, 2) == 2


def test_unknown_word():
    """What WordPiece calls [UNK] is an unknown word, not a word."""
    inner = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, "the": 1, "##re": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    t = Tokenizer(inner)
    assert word_ids(t, "there") == [1, 2]
    with pytest.raises(InputError, match="unknown word 'that'"):
        word_ids(t, "that")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from("ab"), max_size=12).map("".join), st.sampled_from(["a", "ab", "aa", "aba"]))
def test_spans_find_every_occurrence(text: str, word: str):
    """Of characters: each place where the word can be read, overlapping ones too."""
    t = Tokenizer.char("ab")
    found = find_word(t, t.encode(text), word)
    expected = [i for i in range(len(text)) if text.startswith(word, i)]
    assert [s.start for s in found] == expected
    assert all(s.stop - s.start == len(word) for s in found)


def test_spans_count_tokens_not_characters():
    """With and without the space joined, behind tokens of several characters."""
    t = joining()
    ids = t.encode("ab c ab abc")
    assert [t.token(i) for i in ids] == ["ab", " ", "c", " ab", " ab", "c"]
    assert find_word(t, ids, "ab") == [slice(0, 1), slice(3, 4), slice(4, 5)]


# --- Results ------------------------------------------------------------------------------------


def test_table(speller: BackpackLM):
    """One line a sense, columns aligned, wide and invisible characters too, nothing trailing."""
    tokens = [["a", "\n", "long"], ["bcd", "新闻", "é"]]
    ranking = Ranking(
        title="x",
        labels=["sense 0", "sense 10"],
        ids=torch.zeros(2, 3),
        scores=torch.ones(2, 3),
        tokens=tokens,
    )
    assert ranking.table().splitlines() == [
        "# x",
        "  sense 0   'a'    '\\n'    'long'",
        "  sense 10  'bcd'  '新闻'  'é'",
    ]
    assert "'a' 1 " in ranking.table(scores=True)
    assert [row[0] for row in ranking] == [("a", 1.0), ("bcd", 1.0)]


def test_results_show_themselves(senses: Senses, tmp_path: Path):
    """Every result has a table, is JSON that holds all of its fields, and most have a picture."""
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


# --- The experiment ---------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, speller: BackpackLM) -> Path:
    """A run's folder as training leaves it, with a model trained on nothing."""
    assert speller.tokenizer is not None
    state = {
        "model": speller.state_dict(),
        "model_args": dataclasses.asdict(speller.config),
        "config": dataclasses.asdict(TrainConfig(out_dir=str(tmp_path))),
        "tokenizer": speller.tokenizer.to_json(),
        "optimizer": {"state": {}, "param_groups": []},
        "scaler": {},
        "iter_num": 0,
        "best_val_loss": float("inf"),
    }
    checkpoint.save_checkpoint(tmp_path / "ckpt.pt", state)
    return tmp_path


@pytest.fixture
def script() -> ModuleType:
    """experiments/sense_vector.py as a module: importing it runs nothing."""
    spec = importlib.util.spec_from_file_location("sense_vector", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_saved_model_is_the_same(run_folder: Path, speller: BackpackLM):
    """A checkpoint is self-contained: settings, weights and tokenizer come back."""
    model = nb.load_model(run_folder)
    assert isinstance(model, BackpackLM)
    assert model.config == speller.config
    assert isinstance(model.tokenizer, Tokenizer)
    assert model.tokenizer.encode("bad\n") == speller.tokenizer.encode("bad\n")
    assert torch.equal(model.sense_vectors(), speller.sense_vectors())


@pytest.mark.parametrize("by_path", [False, True])
def test_experiment(run_folder: Path, script: ModuleType, speller: BackpackLM, by_path: bool):
    """SenseVectorExperiment lists, for each sense of a word, the tokens it predicts most."""
    where = {"init_from": str(run_folder / "ckpt.pt")} if by_path else {"out_dir": str(run_folder)}
    experiment = script.SenseVectorExperiment(SenseConfig(**where, device="cpu"))
    expected = [[t.token for t in row] for row in Senses(speller).sense_projection("bad", 6)]
    assert experiment.sense_projection("bad", 6) == expected
    assert len(experiment.sense_projection("bad")[0]) == 5


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device=cpu", "--compile=False", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code or 0


def test_script(
    run_folder: Path, speller: BackpackLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The program prints for each word the highest and the lowest k tokens of each sense."""
    assert run_script(monkeypatch, f"--out_dir={run_folder}", "--words", "bad", "e", "--k=3") == 0
    printed = capsys.readouterr().out
    tables = re.split(r"^# ", printed, flags=re.MULTILINE)[1:]
    titles = ["bad", "bad, lowest scores", "e", "e, lowest scores"]
    assert [text.splitlines()[0] for text in tables] == titles
    for i, text in enumerate(tables):
        rows = [re.findall(r"'(?:\\n|.)'", line) for line in text.splitlines()[1:]]
        expected = Senses(speller).sense_projection(("bad", "e")[i // 2], 3, bottom=bool(i % 2))
        assert rows == [[repr(entry.token) for entry in row] for row in expected]


def test_script_options(
    run_folder: Path, speller: BackpackLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """--sense, --neighbours, --plot and --json, the flag also without a value."""
    picture, data = run_folder / "a.png", run_folder / "a.json"
    files = (f"--plot={picture}", f"--json={data}")
    model = f"--out_dir={run_folder}"
    assert run_script(monkeypatch, model, "--words", "a", "--sense", "2", "--neighbours", *files) == 0
    expected = Senses(speller).nearest("a", 5, sense=2)
    assert capsys.readouterr().out == expected.table() + "\n"
    assert json.loads(data.read_text(encoding="utf-8"))[0][0]["ids"] == expected.ids.tolist()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run_script(monkeypatch, model, "--words", "a", "--sense", "2") == 0
    assert capsys.readouterr().out.count("sense 2") == 2


def test_script_errors(run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A missing run and an unknown character end the program with status 2 and one line."""
    for arguments, message in (
        ([f"--out_dir={run_folder / 'missing'}"], "missing"),
        ([f"--out_dir={run_folder}", "--words", "xyz"], "'x'"),
        ([f"--out_dir={run_folder}", "--k=0"], "k=0"),
        ([f"--out_dir={run_folder}", "--sense=4", "--words", "a"], "0 to 3"),
        ([f"--out_dir={run_folder}", "--json=nowhere/a.json", "--words", "a"], "no folder nowhere"),
        ([f"--out_dir={run_folder}", f"--plot={run_folder}", "--words", "a"], "is a folder"),
        ([f"--out_dir={run_folder}", "--bos", "--words", "a"], "bos"),
        ([f"--out_dir={run_folder}", "--dtype=bfloat16"], "float32"),
    ):
        assert run_script(monkeypatch, *arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
