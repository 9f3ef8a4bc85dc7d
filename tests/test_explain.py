"""Explaining predictions: contributions add up to logits, and each number is what the plain formula says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKPACKS, run_program, save_tiny, tiny_model
from oracle import plain_alpha, plain_logits, plain_senses
from test_control_evaluate import worded
from test_models import filled_paper

from nanobackpack import BackpackLM, InputError, Senses, load_model
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

LETTERS = "abcdefg\n"


BOS = 7  # g, which is to begin documents


@pytest.fixture(params=BACKPACKS)
def senses(request: pytest.FixtureRequest) -> Senses:
    model = tiny_model(**BACKPACKS[request.param] | {"vocab_size": 11, "vocab_used": 8})
    model.tokenizer = Tokenizer.char(LETTERS)
    model.tokenizer.bos_id = BOS
    return Senses(model)


def parts(senses: Senses, prompt: str, bos: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """By the plain formula: α of the last position (K, T), C (K, T, D), logits (V)."""
    ids = torch.tensor([[BOS] * bos + senses.tokenizer.encode(prompt)])
    with torch.no_grad():
        alpha, C = plain_alpha(senses.model, ids)[0], plain_senses(senses.model, ids)[0]
        return alpha[:, -1], C, plain_logits(senses.model, ids)[0, -1]


# --- The exact decomposition --------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_contributions(senses: Senses, bos: bool):
    """Each is α · E_w · C; together they are the logit, or the difference of two."""
    read, prompt = Senses(senses.model, bos), "fade"
    alpha, C, logits = parts(senses, prompt, bos)
    E = senses.model.wte.weight.detach()
    w, v = (senses.tokenizer.encode(x)[0] for x in "cg")
    p = logits.softmax(dim=0)
    for versus, direction, logit, probability in (
        (None, E[w], logits[w], [p[w]]),
        ("g", E[w] - E[v], logits[w] - logits[v], [p[w], p[v]]),
    ):
        got = read.contributions(prompt, "c", versus)
        K, T = alpha.shape
        assert got.tokens == ["g"] * bos + list(prompt)
        for j in range(T):
            for sense in range(K):
                expected = alpha[sense, j] * torch.dot(direction, C[sense, j])
                assert got.contributions[j, sense].item() == pytest.approx(expected.item(), abs=1e-5)
        assert got.contributions.sum().item() == pytest.approx(logit.item(), abs=1e-5)
        assert got.logit == pytest.approx(logit.item(), abs=1e-5)
        assert got.probability == pytest.approx([x.item() for x in probability], abs=1e-5)
        assert torch.allclose(got.weights, alpha.T, atol=1e-6)


def test_the_ranked_table_adds_up(senses: Senses):
    """The largest first; what is not listed is summed; the last two lines agree."""
    got = senses.contributions("deadbeef", "a")
    ranked = got.ranked(1000)
    assert len(ranked) == got.contributions.numel()
    assert {(j, sense) for j, sense, _ in ranked} == {
        (j, sense) for j in range(8) for sense in range(senses.model.config.n_sense_vector)
    }
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


def test_the_originals_numbers():
    """Weights written down as a formula: α and logits of the original, now from the analysis."""
    model = filled_paper()
    model.tokenizer = Tokenizer.char("abcdefg")
    prompt = [1, 4, 2, 6, 0]
    alpha = Senses(model).active_senses(prompt).weights[:, 1]
    expected = torch.tensor([0.433929, 0.198789, 0.234047, 0.009067, 0.124168])
    assert torch.allclose(alpha, expected, atol=2e-5)
    logits = [-0.305766, -0.122945, 0.115061, 0.301421, 0.352482, 0.245325, 0.028050]
    for w, logit in enumerate(logits):
        got = Senses(model).contributions(prompt, [w])
        assert got.contributions.sum().item() == pytest.approx(logit, abs=2e-5)
    removed = [-0.277619, -0.103842, 0.116545, 0.284620, 0.324937, 0.219401, 0.015382]  # sense 2 of token 4
    for w, logit in enumerate(removed):
        got = Senses(model).contributions(prompt, [w]).contributions
        assert (got.sum() - got[1, 2]).item() == pytest.approx(logit, abs=2e-5)


@pytest.mark.parametrize("name", ["nano_checkpoint", "nano_checkpoint_bias", "backpack_gpt2"])
def test_foreign_checkpoints(name: str):
    """Models of other programs are explained just so."""
    model = load_model(Path(__file__).parent / "golden" / name)
    assert isinstance(model, BackpackLM)
    model.tokenizer = Tokenizer.from_symbols([chr(0x4E00 + i) for i in range(model.config.vocab_size)])
    prompt = [3, 14, 15, 9, 2, 6]
    logits = plain_logits(model, torch.tensor([prompt]))[0, -1]
    got = Senses(model).contributions(prompt, [5])
    assert got.contributions.sum().item() == pytest.approx(logits[5].item(), abs=1e-5)


# --- The rest of the analysis of prompts --------------------------------------------------------


def test_active_senses(senses: Senses):
    """α of the last position; BOS comes first where it is asked for, and only then."""
    for bos in (False, True):
        got = Senses(senses.model, bos).active_senses("bad")
        alpha, _, _ = parts(senses, "bad", bos)
        assert got.tokens == ["g"] * bos + list("bad")
        assert torch.allclose(got.weights, alpha.T, atol=1e-6)
        assert torch.allclose(got.weights.sum(dim=0), torch.ones(len(alpha)), atol=1e-5)


def test_next_tokens(senses: Senses):
    """The likeliest real tokens; the probability of padding is not shared out among them."""
    _, _, logits = parts(senses, "bad")
    p = logits.softmax(dim=0)[:8]
    got = senses.next_tokens("bad", k=100)
    assert got.ids[0].tolist() == p.argsort(descending=True).tolist()
    assert torch.allclose(got.scores[0], p.sort(descending=True).values, atol=1e-6)
    assert got.scores.sum() < 1


def test_contrast_senses(senses: Senses):
    """Difference of α between two places; positions count content tokens, with BOS too."""
    for bos in (False, True):
        a, b = (parts(senses, prompt, bos)[0] for prompt in ("face", "cafe"))
        got = Senses(senses.model, bos).contrast_senses("face", 1, "cafe", 3)
        assert torch.allclose(got.values, a[:, 1 + bos] - b[:, 3 + bos], atol=1e-6)
    for i in (-1, 4):
        with pytest.raises(InputError, match="0 to 3"):
            senses.contrast_senses("face", i, "cafe", 0)


def test_localize(senses: Senses):
    """Contributions to a target, summed by token and sense over prompts of different lengths."""
    prompts, target = ["face", "a", "deaf", "cc"], "b"
    E_w = senses.model.wte.weight.detach()[senses.tokenizer.encode(target)[0]]
    expected: dict[tuple[int, int], float] = {}
    for prompt in prompts:
        alpha, C, _ = parts(senses, prompt)
        for j, token in enumerate(senses.tokenizer.encode(prompt)):
            for sense in range(len(alpha)):
                value = (alpha[sense, j] * torch.dot(E_w, C[sense, j])).item()
                expected[token, sense] = expected.get((token, sense), 0.0) + value
    got = senses.localize(target, prompts, k=1000)
    assert got.scores.tolist() == sorted(got.scores.tolist(), reverse=True)
    found = zip(got.ids.tolist(), got.senses.tolist(), got.scores.tolist(), strict=True)
    assert {(i, sense): pytest.approx(score, abs=1e-5) for i, sense, score in found} == expected
    assert len(senses.localize(target, prompts, k=3).tokens) == 3
    with pytest.raises(InputError, match="no prompts"):
        senses.localize(target, [])


@pytest.mark.parametrize("bos", [False, True])
def test_word_composition(senses: Senses, bos: bool):
    """Shares of a word's tokens at every position from its last on, for each occurrence."""
    sentences = ["abcd", "gg", "cabab"]
    got = Senses(senses.model, bos).word_composition("ab", sentences)
    assert got.tokens == ["a", "b"]
    where = [(0, 0), (2, 1), (2, 3)]  # (sentence, position of its first token)
    assert len(got.shares) == 3
    per_sentence = []
    for share, (n, start) in zip(got.shares, where, strict=True):
        ids = torch.tensor([[BOS] * bos + senses.tokenizer.encode(sentences[n])])
        alpha, first = plain_alpha(senses.model, ids)[0].detach(), start + bos  # (K, T, T)
        rows = range(first + 1, ids.size(1))
        assert share.shape == (len(alpha), len(rows), 2)
        for m, i in enumerate(rows):
            pair = alpha[:, i, first : first + 2]
            assert torch.allclose(share[:, m], pair / (pair[:, :1] + pair[:, 1:]), atol=1e-5)
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


def test_word_composition_refuses(senses: Senses):
    with pytest.raises(InputError, match="none of the 1 sentences"):
        senses.word_composition("ab", ["ba"])
    with pytest.raises(InputError, match="one token"):
        senses.word_composition("a", ["ba"])


def test_modes_are_restored(senses: Senses):
    """Reading prompts leaves a model in training as it was, and needs no gradients."""
    senses.model.train()
    got = senses.contributions("bad", "e")
    assert senses.model.training
    assert not got.contributions.requires_grad
    assert got.logit == pytest.approx(got.contributions.sum().item(), abs=1e-5)


def test_bad_prompts(senses: Senses):
    for prompt, message in (
        ("", "empty"),
        ("a" * 13, "13 tokens.*block_size=12"),
        ("xa", "'x'"),
        ([], "empty"),
    ):
        with pytest.raises(InputError, match=message) as error:
            senses.contributions(prompt, "a")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="2 tokens"):
        senses.contributions("a", "bc")
    plain = tiny_model(vocab_used=8)
    plain.tokenizer = Tokenizer.char(LETTERS)
    with pytest.raises(InputError, match="begins a document"):
        Senses(plain, bos=True)
    assert Senses(plain, bos="auto").encode("ab") == plain.tokenizer.encode("ab")


def test_what_prompts_begin_with(senses: Senses):
    """ "auto" begins as sample.py does; GPT-2's one mark, of the end, also begins a document if asked to."""
    t = senses.tokenizer
    assert Senses(senses.model, bos="auto").encode("ab") == t.prompt_ids("ab") == [BOS, *t.encode("ab")]
    assert Senses(senses.model, bos=False).encode("ab") == t.encode("ab")
    t.bos_id, t.eos_id = None, 5
    assert Senses(senses.model, bos=True).encode("ab") == [5, *t.encode("ab")]
    assert Senses(senses.model, bos="auto").encode("ab") == t.prompt_ids("ab") == t.encode("ab")


# --- The programs -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "run", LETTERS)


def test_explain(folder: Path, capsys: pytest.CaptureFixture[str]):
    """The program prints the table, draws the map, writes the numbers."""
    files = ["--plot", str(folder / "a.png"), "--json", str(folder / "a.json")]
    out, err = run_program("explain", folder, capsys, "--prompt", "bad", "--next", "e", "--versus=f", *files)
    senses = Senses(load_model(folder))
    assert out.endswith(senses.contributions("bad", "e", "f").table() + "\n")
    assert err == ""
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert '"logit"' in (folder / "a.json").read_text(encoding="utf-8")
    out, _ = run_program("explain", folder, capsys, "--prompt", "bad")
    assert f"logit of {senses.next_tokens('bad').tokens[0][0]!r} after 'bad'" in out


def test_explain_when_the_unknown_is_likeliest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The likeliest token is explained also if it is [UNK]."""
    model = worded(vocab_size=16)
    with torch.no_grad():
        senses = Senses(model)
        top = senses.next_tokens("The nurse", 1).ids[0, 0].item()
        model.wte.weight[[0, top]] = model.wte.weight[[top, 0]]  # [UNK] is 0
    state = {
        "model": model.state_dict(),
        "model_args": dataclasses.asdict(model.config),
        "tokenizer": model.tokenizer.to_json(),
    }
    (tmp_path / "run").mkdir()
    checkpoint.save_checkpoint(tmp_path / "run" / "ckpt.pt", state)
    assert Senses(model).next_tokens("The nurse", 1).tokens == [["[UNK]"]]
    out, err = run_program("explain", tmp_path / "run", capsys, "--prompt", "The nurse")
    assert err == ""
    assert "logit of '[UNK]' after 'The nurse'" in out


def test_word_composition_program(folder: Path, capsys: pytest.CaptureFixture[str]):
    text = folder / "s.txt"
    text.write_text("abc\n\nbcad\nab", encoding="utf-8")
    out, _ = run_program("word_composition", folder, capsys, "--word", "bc", "--sentences", str(text))
    sentences = ["abc", "bcad", "ab"]
    assert out == Senses(load_model(folder)).word_composition("bc", sentences).table() + "\n"
    text.write_text("abc\n" + "bc" * 7, encoding="utf-8")
    arguments = ("--word", "bc", "--sentences", str(text))
    out, err = run_program("word_composition", folder, capsys, *arguments)
    assert out == Senses(load_model(folder)).word_composition("bc", ["abc"]).table() + "\n"
    assert err.startswith("note: 1 sentences are left out, the first in line 2: the prompt has 14 tokens")
    text.write_text("xyz bc\n" + "bc" * 7, encoding="utf-8")
    out, err = run_program("word_composition", folder, capsys, *arguments, status=2)
    assert "note: 2 sentences are left out" in err
    assert err.splitlines()[-1] == "error: 'bc' stands in none of the 0 sentences: give some that hold it"


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("explain", [], "prompt is empty"),
        ("explain", ["--prompt", "aaaaaaaaaaaaaaaa"], "16 tokens"),
        ("explain", ["--prompt", "a", "--next", "bc"], "2 tokens"),
        ("explain", ["--prompt", "a", "--next", "z"], "'z'"),
        ("explain", ["--prompt", "a", "--k", "0"], "k=0"),
        ("explain", ["--prompt", "a", "--plot", "nowhere/a.png"], "no folder nowhere"),
        ("word_composition", ["--word", "ab"], "sentences is empty"),
        ("word_composition", ["--word", "ab", "--sentences", "missing.txt"], "missing.txt"),
    ],
)
def test_program_errors(
    folder: Path, capsys: pytest.CaptureFixture[str], program: str, arguments: list[str], message: str
):
    out, err = run_program(program, folder, capsys, *arguments, status=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_gpt_has_no_senses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings: dict[str, Any] = {"model_name": "gpt2"}
    folder = save_tiny(tmp_path / "gpt", LETTERS, **settings)
    _, err = run_program("explain", folder, capsys, "--prompt", "a", status=2)
    assert err == "error: this model is a GPT and has no senses: open a Backpack\n"
