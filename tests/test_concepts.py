"""Concepts: a sense that knows a list is found, one that does not is not, and no list is known by chance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from nanobackpack import BackpackLM, InputError
from nanobackpack.commands import main
from nanobackpack.evaluate.concepts import concepts, hidden_word, other_ids
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

LETTERS = "".join(map(chr, range(ord("a"), ord("z") + 1))) + "".join(map(chr, range(0x3B1, 0x3B1 + 24)))
CONCEPT = "bdgkqt"


@pytest.fixture
def model() -> BackpackLM:
    """A model of 50 letters and a stop, which has counted 4 of the letters once, the others often."""
    model = tiny_model(vocab_size=51, vocab_used=51, n_embd=32)
    assert isinstance(model, BackpackLM)
    model.tokenizer = Tokenizer.char(LETTERS + ".")
    return model


def test_a_planted_sense_is_found(model: BackpackLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sense 2 of the listed letters has a common part; a figure is of words its direction has not seen."""
    listed, own = model.tokenizer.encode(CONCEPT), model.sense_vectors  # type: ignore[union-attr]

    def planted(ids: list[int]) -> torch.Tensor:
        senses = own(ids).clone()
        where = torch.isin(torch.as_tensor(ids), torch.tensor(listed))
        senses[where, 2] += 3 * torch.eye(32)[0] * senses.norm(dim=2).mean()
        return senses

    monkeypatch.setattr(model, "sense_vectors", planted)
    found = concepts(model, list(CONCEPT), draws=99)
    assert found.auc[2] > 0.95
    assert found.p[2] == pytest.approx(0.01)
    assert min(found.p[:2] + found.p[3:]) > 0.05
    assert found.figures["sense of the other half"].value == pytest.approx(found.auc[2])
    assert "sense 2" in found.table().split("\n")[2]


def test_p_is_that_of_the_best_sense(model: BackpackLM) -> None:
    """Of random lists few are found, though each has senses to choose from: p lies anywhere from 0 to 1."""
    draw = torch.Generator().manual_seed(3)
    p = []
    for _ in range(12):
        some = [LETTERS[i] for i in torch.randperm(50, generator=draw)[:6].tolist()]
        p.append(min(concepts(model, some, draws=49).p[:4]))
    assert min(p) > 0.02  # 48 senses: uncorrected, the least of their p would be near 1/50
    assert 0.35 < sum(p) / len(p) < 0.7


def test_the_hidden_word_by_hand() -> None:
    """The direction of a hidden word is that of the others alone: 1 and -1 are led away."""
    units = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]])
    for listed, wanted in (([0, 1], [0.0, 0.0]), ([0, 2], [1.0, 1.0]), ([0, 2, 1], [0.0, 0.5, 0.0])):
        assert hidden_word(units[listed] @ units.T, torch.tensor(listed)).tolist() == wanted


def test_the_others_are_written_alike_and_as_frequent(
    model: BackpackLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.tokenizer.encode(CONCEPT)  # type: ignore[union-attr]
    assert len(other_ids(model, ids)) == 50 - 6  # no stop
    monkeypatch.setattr("nanobackpack.evaluate.concepts.OTHERS", 4)
    assert other_ids(model, [1]) == [2, 3, 4, 5]  # 0 is the stop
    assert other_ids(model, [1, 31]) == [2, 3, 30, 32]
    model.token_counts = 100 * (51 - torch.arange(51))
    model.token_counts[1] = 100 * (51 - 30) - 50  # less frequent than letter 30, more than 31
    assert other_ids(model, [1]) == [29, 30, 31, 32]


def test_the_command(tmp_path: Path, model: BackpackLM, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(model, tmp_path / "ckpt.pt")
    (tmp_path / "words.txt").write_text("\n".join([*CONCEPT, "ab"]))
    for flags, status, message in (
        (["--words", f"FILE:{tmp_path / 'words.txt'}"], 0, "told from 44 others"),
        (["--words", "ab", *"bdgk"], 0, "# b, d, g, k: 4 words"),
        (["--words", "a", "b"], 2, "at least 4 words"),
        (["--words", "ab", "b", "cd", "d"], 2, "2 of 4 words are one token"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["concepts", f"--out_dir={tmp_path}", "--device=cpu", *flags])
        printed = capsys.readouterr()
        assert (end.value.code or 0) == status, printed.err
        assert message in printed.out + printed.err
        assert ("untrained" in printed.out) == (status == 0)


def test_a_list_needs_others(model: BackpackLM) -> None:
    with pytest.raises(InputError, match="20 are needed"):
        concepts(model, list(LETTERS[:40]))
