"""Which parameters decay, at what rate a step is taken; and Muon against its definition by singular values.

AdamW is torch's own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, tiny_model
from test_trainer import assert_same_run, records, saved, tiny, write_foxes
from torch import Tensor

from nanobackpack import TrainConfig
from nanobackpack.train import optim
from nanobackpack.train.optim import Muon, learning_rate, make_optimizer, orthogonalize
from nanobackpack.train.trainer import train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_foxes(tmp_path / "data")


# --- Rates and groups -------------------------------------------------------------------------


def schedule(**changes: Any) -> list[float]:
    """The rates of the first 200 steps."""
    settings = {"learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 10, "lr_decay_iters": 110} | changes
    config = TrainConfig(**settings)
    return [learning_rate(step, config) for step in range(200)]


def test_learning_rates_warm_up_and_decay() -> None:
    for kind, at_35 in (("cosine", 1e-4 + 9e-4 * (1 + 0.5**0.5) / 2), ("linear", 7.75e-4)):
        rates = schedule(lr_schedule=kind)
        assert [rates[i] for i in (0, 4, 9)] == pytest.approx([1e-3 / 11, 5e-3 / 11, 1e-2 / 11])
        assert max(rates) == rates[10] == pytest.approx(1e-3)
        assert [rates[i] for i in (35, 60, 110)] == pytest.approx([at_35, 5.5e-4, 1e-4])
        assert rates[111:] == pytest.approx([1e-4] * 89)
        assert rates[:11] == sorted(rates[:11])
        assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(optimizer="adamw") == schedule(lr_schedule="cosine")
    assert schedule(optimizer="muon") == schedule(lr_schedule="linear")


def test_learning_rates_without_decay_or_warm_up() -> None:
    assert set(schedule(decay_lr=False)) == {1e-3}
    assert schedule(warmup_iters=0)[0] == pytest.approx(1e-3)
    late = schedule(warmup_iters=50, lr_decay_iters=50)  # no decay: still rates to use
    assert all(0 < rate <= 1e-3 for rate in late)


def test_the_schedule_is_compressed_into_the_time() -> None:
    config = TrainConfig(
        optimizer="muon", learning_rate=1e-3, min_lr=0, warmup_iters=10, max_iters=110, lr_decay_iters=110
    )
    usual = [learning_rate(step, config) for step in range(111)]
    # In time, or in the first tenth of it: the usual rates, exactly.
    assert [learning_rate(step, config, min(1.0, 0.1 + step / 130)) for step in range(111)] == usual
    assert [learning_rate(step, config, 0.1) for step in range(111)] == usual
    # Ten times too slow: step by step the rates of where the run should be; at the end the last one.
    assert [learning_rate(int(11 * used), config, used) for used in (0.551, 0.731, 1.001)] == [
        usual[55], usual[77], usual[110],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "shape", [{}, {"sense_network": "paper", "bias": True}, {"model_name": "gpt2", "bias": True}]
)
def test_only_the_weights_of_linear_layers_decay(shape: dict[str, Any]) -> None:
    model = tiny_model(**shape)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3, beta1=0.8, beta2=0.9))
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert decay.keys() == {0.3, 0.0}
    assert sorted([*decay[0.3], *decay[0.0]]) == sorted(names.values())
    assert decay[0.0] >= {"wte.weight", "context.wpe.weight", "context.ln_f.weight"}
    assert decay[0.3] == {n for n in names.values() if re.search(r"(c_attn|c_proj|c_fc)\.weight$", n)}
    assert all(g["betas"] == (0.8, 0.9) for g in optimizer.param_groups)


def test_a_model_without_linear_layers_has_an_optimizer_too() -> None:
    model = tiny_model(model_name="gpt2", n_layer=0)
    optimizer = make_optimizer(model, TrainConfig(model_name="gpt2", n_layer=0))
    ids, before = torch.tensor([[0, 1, 2]]), model.wte.weight.detach().clone()
    model(ids, ids).loss.backward()
    optimizer.step()
    assert not torch.equal(model.wte.weight, before)


# --- Muon -------------------------------------------------------------------------------------


def plain_orthogonalize(matrix: Tensor) -> Tensor:
    """U f(S) Vᵀ in float64: the quintic five times over, on the singular values alone."""
    U, S, Vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    S = S / S.norm()
    for _ in range(5):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return U @ S.diag() @ Vh


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 40), (2, 40, 5), (4, 1, 7), (2, 64, 200)])
def test_orthogonalize_is_the_polynomial_of_the_singular_values(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([plain_orthogonalize(m) for m in matrices])
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        monkeypatch.setattr(optim, "_fast_dtype", lambda device, dtype=dtype: dtype)
        assert (orthogonalize(matrices) - expected).abs().max() < allowed


def test_orthogonalize_brings_singular_values_near_one_and_keeps_zero() -> None:
    matrices = torch.randn(2, 30, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert 0.5 < values.min() < values.max() < 1.3
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 3)), torch.zeros(1, 4, 3))


def one_step(**settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after one step, and the gradients it took."""
    model = tiny_model().train()
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-2, min_lr=0.0, **settings))
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * group["lr_scale"]
    ids = torch.randint(TINY["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(0))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(ids, ids.roll(-1, 1)).loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    return before, {n: p.detach() for n, p in model.named_parameters()}, grads


def test_the_parts_of_a_matrix_step_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the K senses, of q, k, v, and of α's q and k takes the step it would take alone."""
    monkeypatch.setattr(optim, "_fast_dtype", lambda device: torch.float32)
    before, after, grads = one_step(optimizer="muon", weight_decay=0.5)
    for name, n_matrices in {
        "senses.ff_2.c_proj.weight": 4,
        "senses.ff_2.c_fc.weight": 1,
        "context.h.0.attn.c_attn.weight": 3,
        "context.h.1.mlp.c_proj.weight": 1,
        "alpha.c_attn.weight": 2,
    }.items():
        parts = grads[name].view(n_matrices, -1, grads[name].size(1))
        steps = torch.stack([plain_orthogonalize(g) for g in parts]).float()
        rate, length = 3e-2, 0.2 * max(parts.shape[1:]) ** 0.5
        expected = before[name] * (1 - rate * 0.5) - rate * length * steps.view_as(before[name])
        assert (after[name] - expected).abs().max() < 1e-5, name


def test_what_is_no_matrix_takes_the_steps_of_adamw() -> None:
    """Embeddings and norms: AdamW's steps at the scaled rate, without weight decay."""
    _, muon, _ = one_step(optimizer="muon", weight_decay=0.5, muon_lr_factor=2.0)
    before, adamw, _ = one_step(optimizer="adamw", weight_decay=0.5)
    _, free, _ = one_step(optimizer="adamw", weight_decay=0.0)
    for name in ("wte.weight", "context.wpe.weight", "context.ln_f.weight", "senses.ln_2.weight"):
        moved = adamw[name] - before[name]
        assert moved.abs().max() > 1e-3
        assert torch.equal(adamw[name], free[name]), name
        assert (muon[name] - before[name] - 2 * moved).abs().max() < 1e-6, name
    name = "alpha.c_attn.weight"  # of a linear layer
    torch.testing.assert_close(adamw[name], free[name] - 0.5 * 1e-2 * before[name], rtol=0, atol=1e-7)


def test_the_embedding_of_a_modern_model_learns_four_times_as_fast() -> None:
    model = tiny_model(context_network="modern")
    settings: dict[str, Any] = {"context_network": "modern", "muon_lr_factor": 2.0}
    groups = make_optimizer(model, TrainConfig(optimizer="muon", **settings)).param_groups
    rates = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len([*model.parameters()])
    assert rates == {id(p): 8 if p is model.wte.weight else 2 for p in model.parameters()}
    groups = make_optimizer(model, TrainConfig(optimizer="adamw", **settings)).param_groups
    assert {group["lr_scale"] for group in groups} == {1}


@pytest.mark.parametrize("network", ["gpt2", "modern"])
def test_a_resumed_run_with_muon_equals_an_uninterrupted_one(
    data: Path, tmp_path: Path, network: str
) -> None:
    settings = {"optimizer": "muon", "max_iters": 4, "eval_interval": 9, "dropout": 0.1}
    settings |= {"context_network": network}
    train(tiny(data, tmp_path / "whole", **settings))
    train(tiny(data, tmp_path / "parts", **settings | {"max_iters": 2}))
    train(tiny(data, tmp_path / "parts", **settings, init_from="resume"))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    kinds = [set(s) for s in saved(tmp_path / "whole")["optimizer"]["state"].values()]
    assert {"step", "momentum"} in kinds
    assert {"step", "exp_avg", "exp_avg_sq"} in kinds


def test_muon_learns_faster_than_adamw_at_the_same_settings(data: Path, tmp_path: Path) -> None:
    losses = {}
    for name in ("adamw", "muon"):
        train(tiny(data, tmp_path / name, optimizer=name, max_iters=40, eval_interval=40, lr_decay_iters=40))
        losses[name] = records(tmp_path / name)[-1]["val_loss_full"]
    assert losses["muon"] < losses["adamw"] - 0.1


def test_float16_scaling_is_not_left_to_the_fused_kernel() -> None:
    """Which knows nothing of our steps: the scaler itself must skip a step with infinite gradients."""
    optimizer = make_optimizer(tiny_model(), TrainConfig(optimizer="muon"))
    assert isinstance(optimizer, Muon)
    assert not optimizer._step_supports_amp_scaling
