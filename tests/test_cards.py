"""Cards of senses: contexts against the exact split of every prediction, labels against planted themes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import save_tiny, tiny_model
from torch import Tensor

from nanobackpack import BackpackLM, InputError, Senses
from nanobackpack.analysis.cards import sense_cards
from nanobackpack.analysis.contexts import Context, _readable, find_contexts
from nanobackpack.analysis.control import ReplaceSenses, applied
from nanobackpack.analysis.labels import NO_THEME, labels
from nanobackpack.commands import main
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer

SYMBOLS = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))  # of a model with enough tokens to have themes


@pytest.fixture
def senses(speller: BackpackLM) -> Senses:
    return Senses(speller)


@pytest.fixture
def many() -> Senses:
    model = tiny_model(vocab_size=len(SYMBOLS), vocab_used=0, n_embd=64)
    model.tokenizer = Tokenizer.char(SYMBOLS)
    return Senses(model)


def windows(*shapes: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Windows of random letters from \\n to c, x and y, in batches of these shapes."""
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(4, (b, t + 1), generator=draw) for b, t in shapes]
    ids[0][:2, :2] = torch.tensor([[1, 2], [2, 3]])  # "ab" and "b" begin a window
    return [(part[:, :-1], part[:, 1:]) for part in ids]


@pytest.mark.parametrize("word", ["b", "ab"])
def test_contexts_are_the_largest_of_all_contributions(senses: Senses, word: str) -> None:
    """Each prediction of the text is split by Senses.contributions; of each sense and following token the
    largest is kept, and of these the n largest. The share is what its definition says."""
    text, letters = windows((3, 12), (2, 7), (1, 1)), "\nabc"
    ids = senses.tokenizer.encode(word)
    best: list[dict[int, tuple[float, float, list[int], int]]] = [{} for _ in range(4)]
    occurrences, moved = 0, torch.zeros(4)
    reach = (senses.model.sense_vectors(ids) @ senses.embedding.T).std(dim=2)  # (W, K)
    for x, y in text:
        for row, following in zip(x.tolist(), y.tolist(), strict=True):
            at = [j for j in range(len(row)) if row[max(0, j + 1 - len(ids)) : j + 1] == ids]
            occurrences += len(at)
            for i in range(len(ids), len(row)):  # not where the word is all there is
                prompt = row[: i + 1]
                split = senses.contributions(prompt, [following[i]])
                for j in (j for j in at if j <= i):
                    span = slice(j + 1 - len(ids), j + 1)
                    moved += (split.weights[span] * reach).sum(dim=0)
                    weights, values = split.weights[span].sum(dim=0), split.contributions[span].sum(dim=0)
                    for known, value, weight in zip(best, values.tolist(), weights.tolist(), strict=True):
                        if value > known.get(following[i], (0.0,))[0]:
                            known[following[i]] = value, weight, prompt, j
    found = find_contexts(senses.model, ["g", word], text, n=3)[word]
    assert occurrences == found.occurrences > 1
    assert found.share == pytest.approx((moved / moved.sum()).tolist(), abs=1e-5)
    for contexts, known in zip(found.contexts, best, strict=True):
        expected = sorted(known.items(), key=lambda item: -item[1][0])[:3]
        assert len(contexts) == len(expected) > 0
        for context, (token, (value, weight, prompt, j)) in zip(contexts, expected, strict=True):
            assert (context.contribution, context.weight) == pytest.approx((value, weight), abs=1e-5)
            assert (context.prompt, context.next) == (prompt, senses.tokenizer.token(token))
            assert context.tokens[context.source] == word
            assert "".join(context.tokens) == "".join(letters[i] for i in prompt)
            assert len(prompt) - 1 - (context.last - context.source) == j
            assert context.predicted == senses.next_tokens(prompt, 1).tokens[0][0]


def test_a_text_is_read_no_further_than_asked(senses: Senses) -> None:
    x, y = windows((2, 12))[0]

    def text():
        yield x, y
        raise AssertionError("read on")

    assert find_contexts(senses.model, ["a"], text(), limit=24)["a"].occurrences == int((x == 1).sum())
    nowhere = find_contexts(senses.model, ["abcdefg"], [(x, y)])["abcdefg"]
    assert (nowhere.occurrences, nowhere.share, nowhere.contexts) == (0, None, [[]] * 4)
    with pytest.raises(InputError, match="no words"):
        find_contexts(senses.model, [], [])


def test_context_text_of_byte_tokens() -> None:
    """A character of three tokens stands at its last one; what is cut in its middle is shown at the end."""
    tokenizer = make_tokenizer("bpe:257", ["a b c"])
    ids = tokenizer.encode("a天b天")
    assert _readable(tokenizer, ids) == ["a", "", "", "天", "b", "", "", "天"]
    assert _readable(tokenizer, ids[:-1]) == ["a", "", "", "天", "b", "", "\ufffd"]


def test_labels_find_planted_themes_and_no_others(many: Senses) -> None:
    """A sense that promotes three tokens is labelled by them; one that promotes its own word is not; the size
    of all senses and what they have in common do not matter; random senses are labelled as chance allows."""
    E, C = many.embedding, many.model.sense_vectors()  # (V, D), (V, K, D)
    before = labels(many, SYMBOLS[0])
    C[0, 1] = 10 * E[[10, 20, 30]].sum(dim=0)
    C[0, 2] = 10 * E[0]
    with applied(many.model, ReplaceSenses(tuple(range(60)), C / 50 + E[7])):
        inside = labels(many, SYMBOLS[0])
    assert set(inside[1].split(", ")) == {SYMBOLS[i] for i in (10, 20, 30)}
    assert SYMBOLS[0] not in inside[2]
    assert inside[3] == before[3]
    assert labels(many, SYMBOLS[0]) == before != inside
    every = [label for symbol in SYMBOLS for label in labels(many, symbol)]
    assert sum(label != NO_THEME for label in every) < 0.1 * len(every)


def test_cards_show_what_senses_and_contexts_say(senses: Senses) -> None:
    senses.model.tokenizer = senses.tokenizer = Tokenizer.char("abcdefg\x1b")
    found = find_contexts(senses.model, ["b"], windows((5, 12)), n=2)
    with_text, without = sense_cards(senses, "b", 3, found), sense_cards(senses, "b", 3)
    top, bottom = (senses.sense_projection("b", 3, bottom=b) for b in (False, True))
    nearest = senses.nearest("b", 3)
    for i, (card, bare) in enumerate(zip(with_text.cards, without.cards, strict=True)):
        for one in (card, bare):
            assert (one.sense, one.top, one.bottom, one.nearest) == (i, top[i], bottom[i], nearest[i])
        assert (card.contexts, card.share) == (found["b"].contexts[i], found["b"].share[i])  # type: ignore[index]
        assert (bare.contexts, bare.share) == ([], None)
    stored = json.loads(with_text.to_json())
    assert [Context(**c) for c in stored["cards"][2]["contexts"]] == found["b"].contexts[2]
    assert len(with_text.records()) == 4
    assert with_text.table().count("[b]") == 8
    assert all(line.isprintable() for line in with_text.table().split("\n"))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a text, with none, and what is refused."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "run", "abcdefg\n")
    save_tiny(tmp_path / "gpt", "abcdefg\n", model_name="gpt2")
    Path("text.txt").write_text("abcabdab\ngfab" * 9, encoding="utf-8")

    def run(*flags: str, out_dir: str = "run") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["cards", f"--out_dir={out_dir}", "--device=cpu", *flags])
        return int(end.value.code or 0), *capsys.readouterr()

    status, out, err = run("--words", "b", "ab", "--held_out=text.txt", "--contexts=2", "--json=c.json")
    assert (status, err.count("\n")) == (0, 1)
    assert "'ab' is 2 tokens ('a', 'b'): shown is the mean of their senses" in err
    assert "# b, 35 times\n  sense 0 (" in out  # of the 36 the last is never read: nothing follows it
    assert "[ab]" in out
    b, ab = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert (b["occurrences"], ab["word"], len(ab["cards"][3]["contexts"])) == (35, "ab", 2)
    status, out, err = run("--words", "b")
    assert (status, out.count("  sense "), err.count("\n")) == (0, 4, 1)
    assert "--held_out" in err
    assert run("--words", "b", "--contexts=0")[::2] == (0, "")
    for flags, folder, said in (
        (["--words", "b", "--held_out=none.txt"], "run", "none.txt"),
        (["--words", "b", "--held_out=text.txt"], "gpt", "has no senses"),
        ([], "run", "words is empty"),
        (["--words", "b", "--contexts=-1"], "run", "contexts=-1 is out of range"),
    ):
        status, out, err = run(*flags, out_dir=folder)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err
