"""Senses matched across models: the similarity by its plain formula, planted permutations, steps of a run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, save_tiny, tiny_model

from nanobackpack import BackpackLM, InputError
from nanobackpack.analysis.matching import check_comparable, drift, match, sample_ids, similarity
from nanobackpack.commands import main
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.train.checkpoint import save_model


def mixed(a: LanguageModel, b: LanguageModel, share: float) -> LanguageModel:
    """A model part of the way from a to b."""
    between = copy.deepcopy(a)
    with torch.no_grad():
        for p, q in zip(between.parameters(), b.parameters(), strict=True):
            p.lerp_(q, share)
    return between


def test_similarity_is_the_mean_correlation_of_projections() -> None:
    """Of two models of different widths; padding takes no part."""
    a, b = tiny_model(), tiny_model(seed=1, n_embd=32)
    ids = torch.tensor([3, 7, 11])
    n, scores = TINY["vocab_used"], []
    for model in (a, b):
        assert isinstance(model, BackpackLM)
        scores.append(model.sense_vectors(ids) @ model.wte.weight[:n].T.detach())  # (3, K, V)
    got = similarity(a, b, ids, ids)
    for i in range(4):
        for j in range(4):
            each = [torch.corrcoef(torch.stack([x[i], y[j]]))[0, 1] for x, y in zip(*scores, strict=True)]
            assert got[i, j].item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-5)


def test_senses_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures of the second half of the tokens; controls lie far below."""
    a, order = tiny_model(n_embd=32), [2, 0, 3, 1]
    b, own = copy.deepcopy(a), a.sense_vectors  # type: ignore[operator]
    monkeypatch.setattr(b, "sense_vectors", lambda ids: own(ids)[:, order])
    got = match(a, b, sample_ids(a), [tiny_model(seed, n_embd=32) for seed in (1, 2)])
    assert got.partners == [order.index(sense) for sense in range(4)]
    assert got.matched == pytest.approx([1.0] * 4, abs=1e-5)
    rest = sample_ids(a)[1::2]  # the partners were chosen on the others
    assert torch.equal(got.similarity, similarity(a, b, rest, rest))
    assert got.grid().values.diagonal().tolist() == got.matched
    assert max(map(abs, [*got.other_tokens, *got.untrained])) < 0.6
    assert got.other_senses[0] == pytest.approx((got.similarity[0].sum().item() - got.matched[0]) / 3)


def test_when_senses_appear() -> None:
    """A sense that was there once and left again has not appeared; at the end all are there."""
    start, end = tiny_model(seed=5), tiny_model()
    shares = {1: 1.0, 2: 0.0, 3: 0.9, 4: 1.0}
    got = drift(
        end, ((step, mixed(start, end, share)) for step, share in shares.items()), sample_ids(end), [start]
    )
    assert got.appears == [3] * 4
    assert got.similarity[[0, 3]].tolist() == [pytest.approx([1.0] * 4, abs=1e-5)] * 2
    assert got.similarity[1].tolist() == pytest.approx(got.untrained, abs=1e-5)
    assert (got.at_home[0], got.at_home[3]) == (4, 4)
    assert drift(end, [(1, end), (2, start)], sample_ids(end), [start]).appears == [None] * 4


def run(*flags: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["match", "--device=cpu", *flags])
    return int(end.value.code or 0)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "run", "abcdefg\n")
    assert run(f"--out_dir={folder}") == 2
    assert "--backup_checkpoint_step" in capsys.readouterr().err
    for step, name in ((2, "ckpt_002"), (10, "ckpt_10")):  # in the order of the numbers
        model = tiny_model(seed=step, vocab_size=11, vocab_used=8)
        save_model(model, folder / f"{name}.pt")
    monkeypatch.chdir(folder)  # a shipped model has no checkpoints; those that lie here are of another run
    assert run("--init_from=words-small") == 2
    assert "no ckpt_STEP.pt in words-small" in capsys.readouterr().err
    written = [f"--json={tmp_path / 'a.json'}", f"--plot={tmp_path / 'a.png'}"]
    assert run(f"--out_dir={folder}", *written) == 0
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert found["steps"] == [2, 10]
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert "appears at" in capsys.readouterr().out
    assert run(f"--out_dir={folder}", "--others", str(folder), str(folder / "ckpt_002.pt")) == 0
    assert capsys.readouterr().out.count("matched with those of") == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_used": 20}, "other has another vocabulary .19 tokens and 20"),
        ({"n_sense_vector": 8}, "here are 4 and there 8"),
        ({"model_name": "gpt2"}, "a GPT has no senses"),
    ],
)
def test_what_cannot_be_matched(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_comparable(tiny_model(), tiny_model(**settings), "other")


def test_the_sample_is_of_tokens_that_occur() -> None:
    model = tiny_model()
    model.token_counts = torch.arange(23)
    assert sorted(sample_ids(model).tolist()) == list(range(10, 19))
    model.token_counts = torch.zeros(23)
    with pytest.raises(InputError, match="train on more"):
        sample_ids(model)
