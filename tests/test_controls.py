"""Controls: intervals as the bootstrap defines them, models to compare with, the table of an evaluation."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from nanobackpack.analysis import control
from nanobackpack.config import AnalysisConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import Evaluation, Figure, intervals, mean_of, rank_correlation
from nanobackpack.evaluate.cost import CostConfig, cost, held_out
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.generate import beam_search
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import load_model, save_checkpoint, save_model


def numbers(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_weight_is_a_repeated_item() -> None:
    """Mean and Spearman's ρ of weighted items equal those of the items written out, ties included."""

    def ranks(x: torch.Tensor) -> torch.Tensor:
        rank = (x[:, None] > x).sum(dim=1) + (x[:, None] == x).sum(dim=1) / 2
        return rank - rank.mean()

    x, gold = numbers(40, 1).round(decimals=1), numbers(40, 2).round(decimals=1)
    weights = torch.randint(4, (5, 40), generator=torch.Generator().manual_seed(3)).double()
    rho, mean = rank_correlation(x, gold), mean_of(x, sizes=gold.abs().tolist())
    for row, found, average in zip(weights, rho.of(weights), mean.of(weights), strict=True):
        a, b = (side.repeat_interleave(row.long()) for side in (x, gold))
        assert found.item() == pytest.approx(torch.cosine_similarity(ranks(a), ranks(b), dim=0).item())
        assert average.item() == pytest.approx((a @ b.abs() / b.abs().sum()).item())
    assert rho.value == pytest.approx(torch.cosine_similarity(ranks(x), ranks(gold), dim=0).item())
    assert math.isnan(rank_correlation(torch.ones(3), numbers(3, 1)).value)


def test_intervals() -> None:
    """Of a mean: as the normal distribution has it. Of a difference: that of pairs, not of two samples."""
    a, noise = numbers(400, 1), numbers(400, 2) / 20
    figures = {"a": mean_of(a), "b": mean_of(a + noise + 0.01)}
    figures["b − a"] = figures["b"] - figures["a"]
    found = intervals(figures)
    for name, values in (("a", a), ("b − a", noise + 0.01)):
        half = 1.96 * values.std().item() / 20
        assert list(found[name]) == pytest.approx(
            [values.mean().item() + s * half for s in (-1, 1)], abs=half / 4
        )
    assert found == intervals(figures)
    assert intervals({"a": figures["a"]})["a"] == found["a"]  # the same draws, whatever else is asked


def test_no_interval_where_most_draws_are_no_numbers() -> None:
    """Of 40 pairs one shares a token: in a third of the draws it is missing, and all ranks are tied."""
    shared = torch.zeros(40)
    shared[7] = 1
    figures = {"shared": rank_correlation(shared, numbers(40, 1)), "other": mean_of(numbers(40, 2))}
    found = intervals(figures)
    assert [math.isnan(end) for ends in found.values() for end in ends] == [True, True, False, False]
    shared[:7] = 1  # now in 1 of 10,000
    assert not math.isnan(intervals({"shared": rank_correlation(shared, numbers(40, 1))})["shared"][0])


def test_seeds_are_other_runs_of_the_same_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is refused that is named twice or is the model itself; one note lists what differs."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, seed: int, rate: float = 0.1, text: str = "1", **shape: int) -> LanguageModel:
        model = tiny_model(seed=seed, **shape)
        args = {"model": model.state_dict(), "model_args": vars(model.config), "tokenizer": None}
        Path(name).mkdir()
        save_checkpoint(Path(name, "ckpt.pt"), args | {"data": {"train": text}, "run": name})
        stored = {"out_dir": name, "run": name, "learning_rate": rate, "seed": seed}
        Path(name, "config.json").write_text(json.dumps(stored))
        return load_model(name)

    model = run("out", 0)
    run("out-1", 1)
    run("out-2", 2)
    run("rate", 3, rate=0.2)
    run("other", 4, text="2", n_layer=2)
    shutil.copy("out-1/ckpt.pt", "copy.pt")  # the same weights, elsewhere
    save_model(tiny_model(seed=9), "out/best.pt")  # other weights of the same run
    check = lambda *seeds: controls.check_runs(model, Settings(out_dir="out", seeds=seeds))  # noqa: E731
    for seeds, same in (
        (["out-1", "out-1"], "out-1"), (["out"], "out"), (["out/ckpt.pt"], "out"), (["out/best.pt"], "out"),
        (["out-1", "out-2", "copy.pt"], "out-1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"seeds={seeds[-1]} is the same run as {same}:"):
            check(*seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check("out-1", "out-2")
    with pytest.warns(UserWarning, match="more than the seed") as noted:
        check("out-1", "rate", "other")
    (note,) = noted
    assert "from out in" in str(note.message)
    assert "the seed: rate (learning_rate), other (n_layer, training text); " in str(note.message)


def test_models_to_compare_with(speller: BackpackLM) -> None:
    """Untrained: the same shape, other weights, the same for a seed. Unigram: the shares of the training
    text, after any prompt and in a cache too; padding is never predicted."""
    state = torch.random.get_rng_state()
    one, two, again = (controls.untrained(speller, seed) for seed in (0, 1, 0))
    assert torch.equal(state, torch.random.get_rng_state())
    assert (one.config, one.tokenizer) == (speller.config, speller.tokenizer)
    assert torch.equal(one.wte.weight, again.wte.weight)
    assert not torch.equal(one.wte.weight, two.wte.weight)
    assert not torch.equal(one.wte.weight, speller.wte.weight)
    assert controls.unigram(speller) is None
    speller.token_counts = torch.tensor([5, 0, 3, 0, 0, 9, 0, 0, 0, 0, 0])
    model = controls.unigram(speller)
    assert model is not None
    p = model(torch.tensor([[1, 4, 2]])).logits.softmax(dim=2)
    expected = (speller.token_counts[:8] + 1) / 25
    assert torch.allclose(p[0, :, :8], expected.expand(3, 8), atol=1e-6)
    assert p[..., 8:].sum() == 0
    ids, _ = beam_search(model, torch.tensor([[1]]), 2, 1, [5])
    assert ids.tolist() == [[0, 0]]


@dataclass(frozen=True, kw_only=True)
class Settings(AnalysisConfig, controls.ControlsConfig):
    pass


@dataclass(frozen=True, kw_only=True)
class Edited(AnalysisConfig, CostConfig):
    pass


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model is measured once, and stands in its own column; a figure that one lacks is left out."""
    model = tiny_model(vocab_size=11, vocab_used=8)
    model.tokenizer, model.token_counts = Tokenizer.char("abcdefg\n"), torch.arange(11)
    seen: list[object] = []

    def measure(other: object) -> Evaluation:
        seen.append(other)
        first = other.wte.weight[:4, 0].detach()  # type: ignore[attr-defined]
        figures = {"first": mean_of(first)} | ({"own": mean_of(first)} if other is model else {})
        return Evaluation(title="weights", figures=figures)

    other = tiny_model(seed=5, vocab_size=11, vocab_used=8)
    monkeypatch.setattr("nanobackpack.train.checkpoint.load_model", lambda *_: other)
    settings = Settings(seeds=("out-2",))
    found = controls.compare(model, measure(model), settings, measure, counts=True)
    assert len(seen) == 1 + 3 + 1 + 1
    mean = [m.wte.weight[:4, 0].mean().item() for m in seen]  # type: ignore[attr-defined]
    assert found.values == pytest.approx([mean[0]] * 2)
    assert found.untrained[0] == pytest.approx(mean[1:4])
    assert found.unigram[0] == pytest.approx(mean[4])
    assert found.seeds[0] == pytest.approx([mean[0], mean[5]])
    assert [math.isnan(x) for x in found.untrained[1]] == [True] * 3
    assert "95 %  " in found.table()
    assert f"{found.values[0]:.3f} ± " not in found.table()
    plain = controls.compare(model, measure(model), replace(settings, controls=False), measure)
    assert (plain.untrained, plain.unigram) == ([[], []], [])
    assert "figures" not in Evaluation(title="", figures={"a": Figure(1, torch.sum)}).to_json()


def test_what_an_edit_costs(speller: BackpackLM, tmp_path: Path) -> None:
    """KL and loss by hand: where the word stands, from there on; where it does not, nothing changes."""
    text = tmp_path / "text.txt"
    text.write_text("abcdefg\nabcd" + "bcdcbdbdccbd" + "bcag", encoding="utf-8")  # 28 letters: two windows
    settings = Edited(held_out=str(text))
    edit = control.ScaleSense((1,), 0.0)  # "a", in the first window at 0 and 8
    found = held_out(speller, settings, [[1]])
    assert found is not None
    assert [len(rows) for rows in found.rows] == [2, 1]
    assert found.occurrences == 3
    result = cost(speller, edit, found)
    assert result is not None
    ids = torch.tensor(speller.tokenizer.encode(text.read_text()))
    pieces = []
    for start, first, end in ((0, 0, 12), (24, 2, 27)):  # from the first "a" of each window on
        x, y = ids[None, start:end], ids[start + 1 : end + 1]
        with torch.no_grad():
            p, q = (speller(x, edits=e).logits[0].log_softmax(dim=1) for e in ((), edit))
        losses = torch.stack([p, q]).gather(2, y.expand(2, -1)[..., None])[..., 0]  # (2, T)
        pieces.append(((p.exp() * (p - q)).sum(dim=1)[first:], (losses[0] - losses[1])[first:]))
    kl, change = (torch.cat(side).mean().item() for side in zip(*pieces, strict=True))
    assert kl > 1e-3
    assert (result.kl[0], result.loss_change[0]) == pytest.approx((kl, change), abs=1e-5)
    assert (result.kl[1], result.loss_change[1]) == (0, 0)
    assert result.windows == [2, 1]
    everywhere = held_out(speller, settings, [()])  # for an edit of all tokens
    assert everywhere is not None
    assert (everywhere.occurrences, [len(rows) for rows in everywhere.rows]) == (27, [3, 0])
    nowhere = held_out(speller, settings, [[7, 7]])
    assert nowhere is not None
    assert math.isnan(cost(speller, edit, nowhere).kl[0])  # type: ignore[union-attr]
    assert held_out(speller, Edited(out_dir=str(tmp_path)), [[1]]) is None
    with pytest.raises(InputError, match="nowhere"):
        held_out(speller, Edited(held_out="nowhere"), [[1]])
