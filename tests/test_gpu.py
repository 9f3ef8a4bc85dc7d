"""On a GPU: the fast paths equal the plain formula, compiled and in bfloat16 too. Run by tests/gpu.sh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKPACKS, TINY, tiny_model
from oracle import plain_generate, plain_loss
from test_trainer import saved, tiny, write_foxes

from nanobackpack.model.kernels import UniqueIds, sense_sum, sense_sum_plain, unique_ids
from nanobackpack.train.trainer import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICE = torch.device("cuda")


def batch(settings: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, UniqueIds]:
    V = (TINY | settings)["vocab_size"]
    x = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(1))
    tokens = unique_ids(x, V, multiple=16)
    return x.to(DEVICE), x.roll(-1, 1).to(DEVICE), UniqueIds(*(t.to(DEVICE) for t in tokens))


@pytest.mark.parametrize("name", BACKPACKS)
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_equal_the_plain_formula(name: str, compiled: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny_model(**BACKPACKS[name]).to(DEVICE).train()
    x, y, tokens = batch(BACKPACKS[name])
    plain = plain_loss(model, x, y)
    expected = torch.autograd.grad(plain, list(model.parameters()))
    run = torch.compile(model, fullgraph=True) if compiled else model
    loss = run(x, y, unique=tokens, loss_only=True).loss
    got = torch.autograd.grad(loss, list(model.parameters()))
    assert (loss - plain).abs() < 1e-5
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("name", ["nano", "nano-bias-few", "paper-bias-inverse"])
def test_bfloat16_is_near(name: str) -> None:
    model = tiny_model(**BACKPACKS[name]).to(DEVICE).train()
    x, y, tokens = batch(BACKPACKS[name])
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(x, y, unique=tokens, loss_only=True).loss
    assert (loss - plain_loss(model, x, y)).abs() < 0.1


def test_gradients_of_a_frequent_token_are_added_in_float32() -> None:
    """3,000 positions of 5 tokens: in bfloat16 their sum would be off by several per cent."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(12, 2, 250, 16, generator=draw).to(DEVICE, torch.bfloat16) for _ in range(2))
    C = torch.randn(5, 2, 32, generator=draw).to(DEVICE).requires_grad_()
    where = torch.randint(5, (12, 250), generator=draw).to(DEVICE)
    weights = torch.randn(12, 250, 32, generator=draw).to(DEVICE)
    plain = sense_sum_plain(q.float(), k.float(), C, where)
    with torch.autocast("cuda", torch.bfloat16):
        compiled = torch.compile(sense_sum)(q, k, C, where)
    right, got = (torch.autograd.grad((o.float() * weights).sum(), C)[0] for o in (plain, compiled))
    assert (got - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("name", ["nano", "nano-bias-few", "paper-bias-inverse"])
def test_cached_equals_uncached(name: str) -> None:
    model = tiny_model(**BACKPACKS[name]).to(DEVICE)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]], device=DEVICE)
    assert torch.equal(model.generate(prompt, 20, temperature=0), plain_generate(model, prompt, 20, 0))
    with pytest.raises(ValueError, match="token id -1 is outside"):  # it would count as no token at all
        model.generate(torch.tensor([[-1, 2]], device=prompt.device), 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_runs_and_resumes(tmp_path: Path, optimizer: str) -> None:
    data = write_foxes(tmp_path / "data")
    settings = {"device": "cuda", "compile": "auto", "optimizer": optimizer, "dropout": 0.1}
    train(tiny(data, tmp_path / "out", **settings, max_iters=4))
    train(tiny(data, tmp_path / "out", **settings, max_iters=6, init_from="resume"))
    assert saved(tmp_path / "out")["iter_num"] == 6


def test_replayed_training_equals_the_plain_one(tmp_path: Path) -> None:
    """A step that is compiled and replayed as a CUDA graph, and one that is neither, learn the same."""
    data = write_foxes(tmp_path / "data")
    losses = []
    for compiled in (False, True):
        out = tmp_path / f"compiled-{compiled}"
        train(tiny(data, out, device="cuda", dtype="float32", compile=compiled, max_iters=12, n_embd=64))
        losses.append(saved(out)["best_val_loss"])
    assert abs(losses[0] - losses[1]) < 1e-4
