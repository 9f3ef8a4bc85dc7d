"""Translation: planted translations are found by their sense alone; lines by what the model adds for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from nanobackpack import BackpackLM, InputError
from nanobackpack.commands import main
from nanobackpack.evaluate.translation import (
    hit,
    line_vectors,
    read_dictionary,
    read_lines,
    shared,
    translation,
)
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

LATIN, GREEK = "abcdefghijklmnopqrst", "αβγδεζηθικλμνξοπρστυ"


@pytest.fixture
def model() -> BackpackLM:
    model = tiny_model(vocab_size=43, vocab_used=40, n_embd=32)
    assert isinstance(model, BackpackLM)
    model.tokenizer = Tokenizer.char(LATIN + GREEK)
    return model


def plant(model: BackpackLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sense 1 of a Greek letter is that of the Latin one, and what all Greek letters have besides."""
    tokenizer, own = model.tokenizer, model.sense_vectors
    assert tokenizer
    twin = torch.arange(43)
    twin[tokenizer.encode(GREEK)] = torch.tensor(tokenizer.encode(LATIN))

    def planted(ids: list[int]) -> torch.Tensor:
        senses, at = own(ids).clone(), torch.as_tensor(ids)
        is_greek = (twin[at] != at)[:, None] * torch.ones(32)
        senses[:, 1] = own(twin[at])[:, 1] + 4 * is_greek
        return senses

    monkeypatch.setattr(model, "sense_vectors", planted)


def test_a_planted_translation_is_found(model: BackpackLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(model, monkeypatch)
    found = translation(model, [*zip(LATIN, GREEK, strict=True), ("a", "Z")])
    precision = dict(zip(found.measures, found.precision, strict=True))
    assert precision["sense 1"] == found.figures["sense of the other half"].value == 1.0
    assert max(precision[name] for name in ("E", "sense 0", "sense 2", "sense 3")) < 0.3
    assert precision["shared tokens"] == found.chance == pytest.approx(1 / 20)
    assert found.coverage == pytest.approx(20 / 21)
    lines = [(LATIN[i : i + 5], GREEK[i : i + 5]) for i in range(16)]
    by_line = translation(model, lines, lines=True)
    assert by_line.precision[by_line.measures.index("sense 1")] > 0.5
    assert "16 lines, 16 to choose from" in by_line.table()


def test_several_translations_are_all_right(model: BackpackLM) -> None:
    pairs = [("a", "α"), ("a", "β"), ("b", "β"), ("c", "a")]
    found = translation(model, pairs)
    assert found.chance == pytest.approx(4 / 9)
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.2, 0.9]])
    right = torch.tensor([[True, False, False], [True, False, False], [False, True, False]])
    assert hit(scores, right).tolist() == pytest.approx([1 / 2, 1 / 3, 0])
    assert shared([[1, 1, 2]], [[2, 3], [4]]).tolist() == [[0.5, 0.0]]


def test_what_senses_add_to_a_line_makes_its_logits(model: BackpackLM) -> None:
    """Summed over the senses it is what the model predicts, mean over the positions."""
    assert model.tokenizer
    ids = torch.tensor([model.tokenizer.encode("abcab")])
    (got,) = line_vectors(model, ["abcab"])
    logits = got[1:].sum(dim=0).float() @ model.wte.weight.detach().T
    assert torch.allclose(logits, model(ids).logits[0].mean(dim=0), atol=1e-4)
    assert len(line_vectors(model, ["abcde" * 9])) == 1  # longer than the context


def test_the_command(tmp_path: Path, model: BackpackLM, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(model, tmp_path / "ckpt.pt")
    words, first, second = (tmp_path / name for name in ("words.csv", "first.txt", "second.txt"))
    words.write_text("id,to,from\n" + "".join(f"1,{t},{s}\n" for s, t in zip(LATIN, GREEK, strict=True)))
    first.write_text("\n".join(LATIN) + "\n")
    second.write_text("\n".join(GREEK) + "\n")
    assert read_dictionary(str(words), "from,to")[1] == ("b", "β")
    for flags, status in (
        (["--data", str(words), "--columns=from,to", f"--json={tmp_path / 'a.json'}"], 0),
        (["--text", str(first), str(second), "--limit=9", "--controls=False"], 0),
        ([], 2),
        (["--text", str(first)], 2),
        (["--text", str(first), str(second), "--columns=en,fr"], 2),
    ):
        with pytest.raises(SystemExit) as end:
            main(["translation", f"--out_dir={tmp_path}", "--device=cpu", *flags])
        printed = capsys.readouterr()
        assert (end.value.code or 0) == status, printed.err
        assert ("precision@1" in printed.out) == (status == 0)
    assert len(json.loads((tmp_path / "a.json").read_text())["controls"]["untrained"][0]) == 3
    second.write_text("α\nβ\n")
    with pytest.raises(InputError, match="20 lines"):
        read_lines(str(first), str(second))
    with pytest.raises(InputError, match="spell 0 of the targets"):
        translation(model, [("a", "Z")])
