"""Sense finetuning by its definition, its command, the ensemble, and the study in small."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKPACKS, tiny_model
from test_planted import planted_model
from torch import Tensor

from nanobackpack import BackpackLM, InputError
from nanobackpack.analysis import control
from nanobackpack.analysis.ensemble import Ensemble
from nanobackpack.analysis.finetuning import (
    Epoch,
    Example,
    Shifted,
    Text,
    Tuning,
    example_losses,
    failures,
    finetune_senses,
    kept,
    predict,
    select_senses,
    tune,
)  # fmt: skip
from nanobackpack.commands.finetune_senses import FinetuneConfig, main
from nanobackpack.evaluate.canonical import CanonicalConfig, _tasks, canonical
from nanobackpack.evaluate.canonical_methods import EPSILONS
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

TEXTS = [Text((1, 4, 2, 2, 7, 9, 3), 1), Text((2, 5, 4, 1, 8), 3), Text((4, 4), 1)]
PAIRS = [(4, 0), (2, 3), (2, 0), (13, 1)]  # of a token and a sense; no text has token 13
EXAMPLES = [
    Example("good", (1, 4), [(3,)]),
    Example("bad", (2,), [(5, 6)]),
    Example("balance", (4, 2), [(3,), (7, 7)]),
    Example("good-versus-bad", (1, 2), [(3,), (8,)]),
]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["nano-bias-few", "paper-bias-inverse"])
def test_predictions_and_gradients_are_those_of_the_edited_model(kind: str):
    model = tiny_model(**BACKPACKS[kind])
    pairs = [(token, sense % model.config.n_sense_vector) for token, sense in PAIRS]
    shifted = Shifted(model, pairs)
    with torch.no_grad():
        shifted.offsets.copy_(draw(*shifted.offsets.shape))
    edit = shifted.edit(Epoch(1, 0.0, 0.0, [shifted.offsets.detach()]))
    tolerance = {"atol": 1e-4, "rtol": 1e-5}
    assert torch.allclose(shifted.before(TEXTS), predict(model, TEXTS), **tolerance)
    assert torch.allclose(shifted.after(TEXTS), predict(model, TEXTS, edit), **tolerance)
    assert not torch.allclose(shifted.after(TEXTS), shifted.before(TEXTS), atol=0.1)
    # Texts of which only the end is predicted, as each alone.
    alone = torch.cat([model(torch.tensor([t.ids[:-1]])).logits[0, t.start - 1 :] for t in TEXTS])
    assert torch.allclose(predict(model, TEXTS), alone, **tolerance)
    (ours,) = torch.autograd.grad(example_losses(EXAMPLES, shifted.after).sum(), shifted.offsets)
    object.__setattr__(edit, "offsets", edit.offsets.requires_grad_())
    (theirs,) = torch.autograd.grad(
        example_losses(EXAMPLES, partial(predict, model, edits=edit)).sum(), edit.offsets
    )
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-3)
    with (
        control.applied(model, control.TopicControl(torch.full((23, model.config.n_sense_vector), 2.0), 0.1)),
        pytest.raises(InputError, match="edits of the weights"),
    ):
        Shifted(model, pairs)


def test_losses_and_failures_by_hand():
    """A model for which each next token has the probability of its id."""
    p = {3: 0.19, 5: 0.4, 6: 0.0026, 7: 0.3, 8: 0.012}
    logits = torch.full((9,), -math.inf)
    for token, probability in p.items():
        logits[token] = math.log(probability)
    logits[0] = math.log(1 - sum(p.values()))
    say = lambda texts: logits.expand(sum(len(t.ids) - t.start for t in texts), 9)  # noqa: E731
    expected = [-math.log(0.19), math.log(0.4 * 0.0026), abs(math.log(0.19 / 0.09)), -math.log(0.19 / 0.012)]
    assert example_losses(EXAMPLES, say).tolist() == pytest.approx(expected, rel=1e-5)
    # p = .19 < .2; p = .00104 > .001; the ratio 2.1 > 1.5; the ratio 15.8 < 16: just failures.
    assert failures(EXAMPLES, say) == [True] * 4
    assert failures(EXAMPLES, say, (0.18, 0.0011, 2.2, 15.0)) == [False] * 4
    swapped = EXAMPLES[2]._replace(suffixes=EXAMPLES[2].suffixes[::-1])
    assert failures([swapped], say) == [True]


def test_senses_are_chosen_by_their_use():
    """The definition, position by position; with a large λ no sense of a token that the background has."""
    model, background = tiny_model(), TEXTS[:2]

    def use(texts: list[Text]) -> Tensor:
        total, n = torch.zeros(23, 4), 0
        for ids, start in texts:
            alpha = model.contextualization(torch.tensor([ids[:-1]]))[0]  # (K, T, T)
            for i in range(start - 1, len(ids) - 1):
                n += 1
                for j in range(i + 1):
                    total[ids[j]] += alpha[:, i, j]
        return total / n

    example = Example("balance", (1, 11, 2, 11, 12), [(3, 4), (5,)])
    for rarity in (0.0, 0.5, 1000.0):
        how = Tuning(per_example=3, rarity=rarity)
        score = use(example.texts) - rarity * use(background)
        score[use(example.texts) == 0] = -math.inf
        expected = [divmod(i, 4) for i in score.flatten().topk(3).indices.tolist()]
        assert select_senses(model, [example, example], background, how) == expected
    assert {token for token, _ in expected} <= {11, 12}


def test_all_examples_of_a_step_count_and_the_last_fit_epoch_is_kept():
    """Adam's first step goes by the sign of the gradient: that of the mean of both examples, and w · KL."""
    model = tiny_model()
    examples = EXAMPLES[:2]
    shifted, how = Shifted(model, PAIRS), Tuning(epochs=1, batch=2, learning_rate=1e-3)
    gradients = [
        torch.autograd.grad(example_losses([e], shifted.after).sum(), shifted.offsets)[0] for e in examples
    ]
    mean = sum(gradients) / 2
    assert (mean.sign() != gradients[1].sign()).any()
    (epoch,) = tune([shifted.offsets], shifted.before, shifted.after, examples, TEXTS[:1], TEXTS, how)
    assert torch.allclose(epoch.parameters[0], -1e-3 * mean / (mean.abs() + 1e-8), atol=2e-5)
    original = torch.nn.functional.cross_entropy(
        predict(model, TEXTS), torch.tensor([i for t in TEXTS for i in t.ids[t.start :]])
    )
    assert epoch.original_loss == pytest.approx(original.item(), rel=1e-5)
    assert epoch.general_loss != epoch.original_loss
    epochs = [Epoch(i, loss, 2.0, []) for i, loss in enumerate((2.1, 2.002, 1.9, 2.003))]
    assert [e and kept(epochs, e).number for e in (0.1, 1e-3, 1e-5)] == [3, 2, 2]
    assert kept(epochs[:1], 1e-3) is None


def test_a_fact_moves_in_other_sentences_too(tmp_path: Path):
    """One sentence changes all; the edit is saved, opened and baked as others are."""
    model = planted_model()
    encode, end = model.tokenizer.encode, model.tokenizer.eos_id

    def after(text: str) -> Example:
        return Example("good", (end, *encode(text)), [encode(" Vesk")])

    others = [Text((end, *encode(f"The capital of {c} is {t}."))) for c, t in (("Florin", "Guilder"),) * 4]
    senses, epochs = finetune_senses(
        model,
        [after("The capital of Arland is")],
        others[:2],
        others[2:],
        Tuning(learning_rate=0.5, per_example=4),
    )
    edit = senses.edit(kept(epochs, 1e-4))
    tests = [after("The king of Arland lives in"), after("Ships from Arland sail home to")]
    assert failures(tests, partial(predict, model)) == [True, True]
    assert failures(tests, partial(predict, model, edits=edit)) == [False, False]
    assert set(edit.tokens) == {*encode(" Arland")}
    control.save(edit, tmp_path / "e.safetensors", model)
    (loaded,) = control.load(tmp_path / "e.safetensors", model)
    assert failures(tests, partial(predict, control.bake(model, loaded))) == [False, False]
    with pytest.raises(InputError, match="a GPT has no senses to finetune"):
        finetune_senses(tiny_model(model_name="gpt2"), tests, others, others, Tuning())


LINES = [{"prefix": "abc", "suffix": "d", "kind": "bad"}, {"prefix": "a", "suffix1": "b", "suffix2": "cc"}]


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, test, save = tmp_path / "examples.jsonl", tmp_path / "test.jsonl", tmp_path / "edit.safetensors"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    test.write_text(json.dumps({"prefix": "gabcabcabcabcabc", "suffix": "d", "kind": "bad"}))
    main(FinetuneConfig(
        out_dir=str(folder), device="cpu", examples=str(path), test=str(test), hard_negatives=str(path),
        save=str(save), epsilon=1.0, epochs=3, json=str(tmp_path / "found.json"),
        thresholds=(0.2, 1e-9, 1.0001, 16.0),
    ))  # fmt: skip
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "texts that it writes" in printed
    assert [(s["n"], s["before"]) for s in found["sets"].values()] == [(2, 1.0), (1, 1.0), (2, 1.0)]
    assert found["epoch"] == 3
    (edit,) = control.load(save)
    assert f"{len(edit.tokens)} of 32 sense vectors changed" in printed  # of 8 tokens, without the padding
    assert found["sets"]["test"]["kl"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rarity": 1e39}, "rarity=1e.39 is out of range"),
        ({"kl_weight": 1e39}, "kl_weight=1e.39 is out of range"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range"),
        ({"epsilon": 0.0, "learning_rate": 9.0}, r"e\.safetensors is not written: .* --learning_rate$"),
        ({"held_out": "short.txt"}, "short.txt fills only one window of 12 tokens"),
    ],
)
def test_what_finetuning_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    """And an edit that is there stays as it was, with an error: nobody goes on with it unknowingly."""
    monkeypatch.chdir(tmp_path)
    Path("examples.jsonl").write_text(json.dumps(LINES[0]))
    Path("short.txt").write_text("abc")
    Path("e.safetensors").write_bytes(b"older")
    given = {"examples": "examples.jsonl", "save": "e.safetensors", "epochs": 1} | changes
    with pytest.raises(InputError, match=message):
        main(FinetuneConfig(out_dir=str(folder), device="cpu", **given))
    assert Path("e.safetensors").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ("[]", "line 2: not a JSON object"),
        ('{"prefix": "a"}', "line 2: no text under 'suffix'"),
        ('{"prefix": "a", "suffix": ""}', "line 2: no text under 'suffix'"),
        ('{"prefix": "a", "suffix1": "b"}', "line 2: no text under 'suffix2'"),
        ('{"prefix": "a", "suffix": "xyz"}', "line 2: 'xyz' is no text of 1 to 12 tokens"),
        ('{"prefix": "a", "suffix": "b", "kind": "balance"}', "line 2: kind 'balance' must be good or bad"),
        ('{"prefix": "a", "suffix": "b", "kind": []}', "line 2: kind"),
    ],
)
def test_a_bad_line_is_named(folder: Path, tmp_path: Path, line: str, message: str):
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n" + line)
    with pytest.raises(InputError, match=r"examples\.jsonl, " + message):
        main(FinetuneConfig(out_dir=str(folder), device="cpu", examples=str(path), save=str(tmp_path / "e")))
    assert not (tmp_path / "e").exists()


def test_the_ensemble_adds_what_the_edit_changes(ids: Tensor):
    large, small = tiny_model(1, model_name="gpt2", vocab_size=20), tiny_model()
    edit = control.ScaleSense((9, 16), 0.0)
    both = Ensemble(large, small, edit, weight=8.0)
    with torch.no_grad():
        gained = (small(ids % 19, edits=edit).logits.log_softmax(2) - small(ids % 19).logits.log_softmax(2))[
            ..., :19
        ]
        expected = large(ids % 19).logits[..., :19] + 8 * gained
        assert torch.allclose(both(ids % 19).logits[..., :19], expected, atol=1e-5)
    text = ids[:1, :4] % 19
    grown = both.generate(text, 20, temperature=0)  # past the context, cached
    for n in range(4, 24):
        with torch.no_grad():
            logits = both(grown[:, max(0, n - 12) : n]).logits[:, -1, :19]
        assert logits.argmax() == grown[0, n]
    assert not torch.equal(grown, large.generate(text, 20, temperature=0))
    with pytest.raises(InputError, match="same tokens, not 18 and 19"):
        Ensemble(large, tiny_model(vocab_used=18), edit)
    large.tokenizer, small.tokenizer = Tokenizer.char("ab"), Tokenizer.char("ac")
    with pytest.raises(InputError, match="same tokens: id 1"):
        Ensemble(large, small, edit)


@pytest.mark.slow
def test_the_study_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One task, on a model whose facts were put in by hand: all figures are there, and what must be 0 is."""
    facts_alone = _tasks()[:1]
    monkeypatch.setattr("nanobackpack.evaluate.canonical._tasks", lambda: facts_alone)
    model = planted_model()
    assert isinstance(model, BackpackLM)
    settings = CanonicalConfig(
        out_dir=str(tmp_path), methods=("backpack, senses", "backpack, LoRA"),
        seeds=1, trials=1, texts=10, jobs=1,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"no model in .*backpack-0: `nanobackpack planted"):
        next(canonical(settings))
    (tmp_path / "backpack-0").mkdir()
    save_model(model, tmp_path / "backpack-0" / "ckpt.pt")
    *_, found = canonical(settings)
    facts = found.runs[0]["facts: backpack, senses"]
    assert facts["unedited"]["elsewhere"] == 0 < facts["0.001"]["elsewhere"]
    assert facts["0.001"]["numbers changed"] % 32 == 0
    assert found.table().count("backpack, LoRA") == len(EPSILONS)
    with pytest.raises(InputError, match="'gpt, senses' is unknown"):
        CanonicalConfig(methods=("gpt, senses",))
    with pytest.raises(InputError, match="jobs=-1 is out of range"):
        CanonicalConfig(jobs=-1)
