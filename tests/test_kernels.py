"""Each kernel against its plain formula: values and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from oracle import plain_loss
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.model import kernels
from nanobackpack.model.kernels import linear, linear_cross_entropy, sense_sum, sense_sum_plain, unique_ids


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def assert_same(ours: Tensor, plain: Tensor, inputs: list[Tensor], tolerance: float = 1e-5) -> None:
    """Equal values, and equal gradients of a random scalar product, relative to the largest number."""
    g = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9))
    pairs = [(ours, plain)]
    pairs += zip(torch.autograd.grad(ours, inputs, g), torch.autograd.grad(plain, inputs, g), strict=True)
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


# --- linear -----------------------------------------------------------------------------------


@pytest.fixture
def not_intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products go to oneDNN, whatever processor this is."""
    monkeypatch.setattr(kernels, "is_intel", lambda: False)


@pytest.mark.parametrize(("vendor", "expected"), [("GenuineIntel", False), ("AuthenticAMD", True)])
def test_intel_has_mkl(vendor: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(kernels, "is_intel", kernels.is_intel.__wrapped__)  # without its memory
    if torch.backends.mkldnn.is_available():
        assert kernels.on_onednn(torch.zeros(1)) == expected


@pytest.mark.parametrize("shape", [(1, 8), (3, 5, 8), (40, 8), (2, 33, 8)])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.usefixtures("not_intel")
def test_linear(shape: tuple[int, ...], onednn: bool) -> None:
    for bias in ([], [draw(12, seed=2)]):
        inputs = [draw(*shape), draw(12, 8, seed=1), *bias]
        with torch.backends.mkldnn.flags(enabled=onednn):
            ours = linear(*inputs)
            assert_same(ours, F.linear(*inputs), inputs)
            with torch.no_grad():
                assert (linear(*inputs) - ours).abs().max() < 1e-5


# --- sense_sum --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("B", "K", "T", "d", "U", "W"),
    [
        (1, 1, 1, 1, 1, 1),
        (3, 4, 12, 2, 5, 7),
        (2, 3, 130, 4, 20, 6),  # two blocks of queries
        (2, 2, 300, 3, 9, 5),  # three
        (2, 16, 128, 2, 40, 64),  # products large enough to go to oneDNN one by one
        (40, 8, 64, 2, 10, 8),  # batch rows in several blocks
    ],
)
@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.usefixtures("not_intel")
def test_sense_sum(B: int, K: int, T: int, d: int, U: int, W: int) -> None:
    q, k, C = draw(B, K, T, d), draw(B, K, T, d, seed=1), draw(U, K, W, seed=2)
    index = torch.randint(U, (B, T), generator=torch.Generator().manual_seed(3))
    for onednn in (True, False):
        with torch.backends.mkldnn.flags(enabled=onednn):
            assert_same(sense_sum(q, k, C, index), sense_sum_plain(q, k, C, index), [q, k, C])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_without_gradients_the_sum_needs_no_operator(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since torch imports its compiler to call one; the numbers are the same."""
    inputs = [draw(2, 3, 130, 4), draw(2, 3, 130, 4, seed=1), draw(20, 3, 6, seed=2)]
    inputs.append(torch.arange(260).view(2, -1) % 20)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            torch.manual_seed(5)
            by_operator = sense_sum(*inputs, dropout)
            torch.manual_seed(5)
            with torch.no_grad(), monkeypatch.context() as patch:
                patch.setattr(kernels, "_sense_sum", None)
                assert torch.equal(sense_sum(*inputs, dropout), by_operator)


@pytest.mark.parametrize("T", [6, 270])
def test_sense_sum_with_dropout(T: int) -> None:
    """The α that dropout leaves are read off with senses that are unit vectors, one for each (j, l)."""
    B, K, d, p = 2, 3, 2, 0.4
    q, k, index = draw(B, K, T, d), draw(B, K, T, d, seed=1), torch.arange(T).expand(B, -1)
    torch.manual_seed(5)
    units = torch.eye(T * K).view(T, K, T * K)
    left = sense_sum(q, k, units, index, p).unflatten(2, (T, K)).permute(0, 3, 1, 2)  # (B, K, T, T)
    full = sense_sum(q, k, units, index).unflatten(2, (T, K)).permute(0, 3, 1, 2)
    kept = torch.where(full > 0, left / full, 0.0).detach().round(decimals=3)
    causal = torch.ones(T, T).tril().bool().expand_as(kept)
    assert kept[causal].unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], abs=1e-3)
    assert kept[causal].mean().item() == pytest.approx(1.0, abs=0.2 if T < 100 else 0.02)
    # No two rows of the batch, and no two blocks of queries, drop the same.
    assert not torch.equal(kept[0], kept[1])
    if T > 256:  # the numbers drawn 16,256th and later, in blocks of 128 queries with 128 and 256 keys
        assert not torch.equal(kept[0, 0, 127, :64], kept[0, 0, 191, 128:192])
    C = draw(T, K, 5, seed=2)
    kept = torch.where(kept > 0, 1 / (1 - p), 0.0)
    plain = sense_sum_plain(q, k, C, index, change=lambda alpha, senses: alpha * kept)
    torch.manual_seed(5)  # the same α are dropped again
    assert_same(sense_sum(q, k, C, index, p), plain, [q, k, C])


def test_unique_ids() -> None:
    x = torch.tensor([[7, 7, 3, 900]])
    ids, inverse = unique_ids(x, 1000, multiple=8)
    assert torch.equal(ids[inverse], x)
    assert ids.tolist() == [3, 7, 900, 3, 3, 3, 3, 3]
    ids, inverse = unique_ids(x[:, :3], 3)  # not more ids than positions: simply all
    assert ids.tolist() == [0, 1, 2]
    assert torch.equal(inverse, x[:, :3])


# --- linear_cross_entropy ---------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1 << 25, 100, 1])
def test_linear_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one chunk, in several, and with one token in each; some targets are left out."""
    monkeypatch.setattr(kernels, "CHUNK_LOGITS", chunk)
    h, E = draw(3, 7, 6), draw(50, 6, seed=1)
    y = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(2))
    y[0, 3:] = -1
    plain = F.cross_entropy((h @ E.T).flatten(0, 1), y.flatten(), ignore_index=-1)
    assert_same(linear_cross_entropy(h, E, y), plain, [h, E])
    with torch.no_grad():
        assert linear_cross_entropy(h, E, y).item() == pytest.approx(plain.item(), abs=1e-6)


def test_linear_cross_entropy_of_unlikely_targets() -> None:
    """A probability below what float32 can hold still has a finite logarithm."""
    h, E = torch.tensor([[[200.0]]]), torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(h, E, torch.tensor([[1]])).item() == pytest.approx(400.0)


# --- In the models ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(s, marks=pytest.mark.slow) for s in ({"n_embd": 32}, {"model_name": "gpt2"}))],
)
def test_compiled_without_a_break(settings: dict[str, Any]) -> None:
    """torch.compile takes a whole step as one graph: where there is a break, fullgraph is an error."""
    model = tiny_model(**settings, n_layer=2).train()
    x = torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(0))
    tokens = unique_ids(x, 23, multiple=16)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss, plain = run(x, x, unique=tokens, loss_only=True).loss, plain_loss(model, x, x)
    assert_same(loss, plain, list(model.parameters()))
