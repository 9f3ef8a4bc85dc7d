"""The two models: they reproduce the originals' numbers, equal the plain formula, and are Backpacks.

Golden numbers (tests/golden) were written by nanoBackpackLM and backpack-gpt2 themselves; so were those of
the self-check, whose weights come from a formula instead of a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BACKPACKS, GPTS, TINY, tiny_model
from oracle import plain_alpha, plain_logits, plain_loss, plain_rotary_scores, plain_senses
from safetensors.torch import load_file
from torch import Tensor

from nanobackpack import BackpackLM, ModelConfig, TrainConfig, load_model
from nanobackpack.model.kernels import unique_ids
from nanobackpack.model.layouts import NANO, PAPER, Layout, export_state, import_state
from nanobackpack.train.checkpoint import build_model
from nanobackpack.train.optim import make_optimizer

GOLDEN = Path(__file__).parent / "golden"


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max().item() <= tolerance


# --- The originals' numbers -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nano_checkpoint", "nano_checkpoint_bias", "backpack_gpt2"])
def test_golden(name: str):
    """Logits, α, senses and loss equal the original programs' within 1e-5."""
    model, expected = load_model(GOLDEN / name), load_file(GOLDEN / name / "expected.safetensors")
    ids = expected["input_ids"]
    out = model(ids, ids.roll(-1, dims=1))
    assert_close(out.logits, expected["logits"])
    assert_close(model.contextualization(ids), expected["contextualization"])
    assert_close(model.sense_vectors(), expected["sense_vectors"])
    if "loss" in expected:
        assert_close(out.loss, expected["loss"].squeeze())
        assert_close(model(expected["short_input_ids"]).logits, expected["short_logits"])


@pytest.mark.parametrize("kind", ["", "_bias"])
def test_golden_training(kind: str):
    """Twenty steps of training follow the original's losses and gradient norms within 1e-4."""
    curve = json.loads((GOLDEN / f"nano_training{kind}" / "curve.json").read_text())
    steps = load_file(GOLDEN / f"nano_training{kind}" / "tokens.safetensors")["tokens"]
    model = load_model(GOLDEN / f"nano_checkpoint{kind}").train()
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-3, min_lr=1e-4))
    losses, norms = [], []
    for tokens in steps:
        loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert len(losses) == 20
    assert losses == pytest.approx(curve["losses"], abs=1e-4)
    assert norms == pytest.approx(curve["grad_norms_before_clipping"], abs=1e-3)


SELF_CHECK = {"vocab_size": 7, "block_size": 5, "n_layer": 2, "n_head": 2, "n_embd": 8, "n_sense_vector": 4}
SELF_CHECK_IDS, SELF_CHECK_TARGETS = torch.tensor([[1, 4, 2, 6, 0]]), torch.tensor([[4, 2, 6, 0, 1]])
PAPER_SETTINGS = {"sense_network": "paper", "bias": True, "scale_attn_by_inverse_layer_idx": True}


def filled(layout: Layout, n_unique: int, numbered: dict[str, int], **settings: Any) -> BackpackLM:
    """A model whose tensor number p (foreign names sorted) holds s = sin(0.7 t + p + 1) at place t."""
    model = build_model(ModelConfig(**SELF_CHECK | settings)).eval()
    state = export_state(model, layout)
    names = sorted(state.keys() - {copy for copies in layout.copies.values() for copy in copies})
    assert len(names) == n_unique
    assert {name: names.index(name) for name in numbered} == numbered
    for p, name in enumerate(names):
        t = torch.arange(state[name].numel(), dtype=torch.float64)
        s = (0.7 * t + p + 1).sin().view(state[name].shape)
        norm = s.dim() == 1 and name.endswith(".weight")
        state[name] = (0.3 * s if s.dim() == 2 else 1 + 0.1 * s if norm else 0.1 * s).float()
    for ours, copies in layout.copies.items():
        state |= dict.fromkeys(copies, state[layout.key(ours)])
    import_state(model, state, layout, "self-check")
    return model


def filled_paper(**settings: Any) -> BackpackLM:
    return filled(PAPER, 44, {"backpack.sense_weight_net.c_attn.weight": 43}, **PAPER_SETTINGS | settings)


SELF_CHECKS: dict[str, tuple[Callable[[], BackpackLM], list[float], list[float], list[float], float]] = {
    "nano": (
        lambda: filled(NANO, 16, {"wte.weight": 15}),
        [0.20115, 0.19890, 0.19903, 0.19457, 0.20635],
        [0.50606, 0.32422, 1.00207, -1.20703],
        [0.23599, 0.30773, 0.24133, 0.06661, -0.13801, -0.28068, -0.29737],
        2.519876,
    ),
    "nano-bias": (
        lambda: filled(NANO, 29, {"wte.weight": 28}, bias=True),
        [0.02796, 0.05929, 0.04713, 0.43194, 0.43368],
        [-0.01436, -0.30261, 0.30427, 0.82687],
        [-0.71789, -1.01085, -0.85006, -0.30771, 0.37276, 0.88591, 1.00141],
        2.662077,
    ),
    "paper": (
        filled_paper,
        [0.433929, 0.198789, 0.234047, 0.009067, 0.124168],
        [-0.022078, 0.040511, 0.084047, 0.088055],
        [-0.305766, -0.122945, 0.115061, 0.301421, 0.352482, 0.245325, 0.028050],
        2.042043,
    ),
}


@pytest.mark.parametrize("column", SELF_CHECKS)
def test_self_check(column: str):
    """Weights written down as a formula give the originals' α, senses, logits and loss within 2e-5."""
    make, alpha, sense, logits, loss = SELF_CHECKS[column]
    model = make()
    out = model(SELF_CHECK_IDS, SELF_CHECK_TARGETS)
    assert model.contextualization(SELF_CHECK_IDS)[0, 1, 4].tolist() == pytest.approx(alpha, abs=2e-5)
    assert model.sense_vectors([4])[0, 2, :4].tolist() == pytest.approx(sense, abs=2e-5)
    assert out.logits[0, -1].tolist() == pytest.approx(logits, abs=2e-5)
    assert out.loss.item() == pytest.approx(loss, abs=2e-5)


def test_self_check_without_inverse_layer_scale():
    """The paper's α changes by the known amount where blocks are not scaled by 1 / (i + 1)."""
    model = filled_paper(scale_attn_by_inverse_layer_idx=False)
    alpha = model.contextualization(SELF_CHECK_IDS)[0, 1, 4].tolist()
    assert alpha == pytest.approx([0.43394, 0.19816, 0.23344, 0.00904, 0.12542], abs=2e-5)


COUNTS = [  # settings, all parameters, without positions (None: not published)
    ("V65 L6 D384 T256 K4", 13_400_448, 13_302_144),
    ("V65 L4 D128 T64 K4", 1_099_392, 1_091_200),
    ("V50304 L12 D768 T1024 K16", 163_313_664, 162_527_232),
    ("V50304 L12 D768 T1024 K16 gpt", 124_373_760, 123_587_328),
    ("V21184 L12 D768 T1024 K16", 140_949_504, 140_163_072),
    ("V21184 L12 D768 T1024 K16 gpt", 102_009_600, None),
    ("V21184 L6 D384 T1024 K16", 28_887_552, 28_494_336),
    ("V250048 L6 D384 T1024 K16", 116_771_328, None),
]
PARTS = [  # of the paper's models, as published: context network with the embedding, senses, α
    ("V50264 L6 D384 T512 K16 paper", 30_145_536, 11_218_560, 295_680),
    ("V50264 L8 D640 T512 K16 paper", 71_886_080, 31_149_440, 820_480),
    ("V50264 L12 D768 T512 K16 paper", 124_051_968, 44_850_432, 1_181_184),
]


def without_memory(size: str) -> torch.nn.Module:
    """The model that a line of COUNTS names, without memory for its weights."""
    numbers = {word[0]: int(word[1:]) for word in size.split() if word[1:].isdigit()}
    names = {"V": "vocab_size", "L": "n_layer", "D": "n_embd", "T": "block_size", "K": "n_sense_vector"}
    settings: dict[str, Any] = {name: numbers[letter] for letter, name in names.items()}
    settings |= {"n_head": settings["n_embd"] // 64}
    settings |= PAPER_SETTINGS if "paper" in size else {}
    settings |= {"model_name": "gpt2"} if "gpt" in size else {}
    with torch.device("meta"):
        return build_model(ModelConfig(**settings))


def test_parameter_counts():
    """Published model sizes, and the parts of the paper's, have exactly the originals' number of weights."""
    for size, n, n_without_positions in COUNTS:
        model = without_memory(size)
        assert model.num_params() == n, size
        assert n_without_positions in (None, model.num_params(positions=False)), size
    for size, *expected in PARTS:
        model = without_memory(size)
        parts = (model.context, model.senses, model.alpha)
        context, *others = [sum(p.numel() for p in part.parameters()) for part in parts]
        assert [context + model.wte.weight.numel(), *others] == expected, size
        assert model.num_params() == sum(expected), size


# --- The plain formula ------------------------------------------------------------------------


def assert_equals_plain_formula(model, ids: Tensor, **options: Any) -> None:
    """Logits, loss and every gradient equal the plain formula's within 1e-5 of their size."""
    targets = ids.roll(-1, dims=1)
    targets[:, ::3] = -1  # ignored
    out = model(ids, targets, **options)
    expected = plain_logits(model, ids)
    assert expected.std() > 0.3  # the weights are large enough to show a difference
    if "loss_only" in options:
        assert out.logits is None
    else:
        assert_close(out.logits, expected, 1e-5 * max(1.0, expected.abs().max().item()))
    loss = plain_loss(model, ids, targets)
    assert_close(out.loss, loss)
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours = torch.autograd.grad(out.loss, parameters)
    plain = torch.autograd.grad(loss, parameters)
    for name, a, b in zip(names, ours, plain, strict=True):
        assert (a - b).abs().max().item() <= 1e-5 * max(1.0, b.abs().max().item()), name


@pytest.mark.parametrize(("rows", "training"), [(1, True), (3, False)])
def test_equals_plain_formula(model, ids: Tensor, rows: int, training: bool):
    """Numbers and gradients are the plain formula's, for fewer positions than there are ids and for more."""
    assert_equals_plain_formula(model.train(training), ids[:rows])


@pytest.mark.parametrize("known", [False, True])
def test_training_equals_plain_formula(model, ids: Tensor, known: bool):
    """So are they in the form that training runs: without logits, with the unique ids found beforehand."""
    tokens = unique_ids(ids, TINY["vocab_size"], multiple=16) if known else None
    assert_equals_plain_formula(model.train(), ids, loss_only=True, unique=tokens)


@pytest.mark.parametrize(
    ("name", "vocab_size"),
    [("nano-bias-few", 23), ("paper-bias-inverse", 23), ("paper-k1-modern", 900), ("nano", 900)],
)
def test_equals_plain_formula_when_long(name: str, vocab_size: int):
    """Long sequences, which are worked on in blocks, give the same numbers and gradients too."""
    model = tiny_model(**BACKPACKS[name], block_size=300, vocab_size=vocab_size)
    draw = torch.Generator().manual_seed(2)
    assert_equals_plain_formula(model, torch.randint(vocab_size, (2, 300), generator=draw))


def test_logits_at_some_positions(model, ids: Tensor):
    """Asked for at some positions only, logits are those of these positions, in the order asked for."""
    rows, positions = torch.tensor([2, 0, 0]), torch.tensor([11, 3, 0])
    some, loss = model(ids, at=(rows, positions))  # (N, V), None without targets
    assert loss is None
    assert_close(some, model(ids).logits[rows, positions], 1e-5 * max(1.0, some.abs().max().item()))


def test_modern_attention():
    """One head after the other: gain · cosine · sqrt(d), turned by how far query and key are apart."""
    layer = tiny_model(**BACKPACKS["paper-k1-modern"]).context.h[0].attn
    x, H = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0)), 2
    heads = []
    parts = [t.split(32 // H, 2) for t in layer.c_attn(x).chunk(3, 2)]  # q, k, v: (B, T, D/H) of each head
    for head, (q, k, v) in enumerate(zip(*parts, strict=True)):
        q, k = (t / t.square().mean(2, keepdim=True).sqrt() for t in (q, k))
        scores = layer.gain[head] * plain_rotary_scores(q, k) / (32 // H) ** 0.5  # (B, T, T)
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(2) @ v)
    assert_close(layer(x), layer.c_proj(torch.cat(heads, dim=2)))


def test_alpha(backpack: BackpackLM, ids: Tensor):
    """contextualization is the plain α; its rows give nothing to the future."""
    alpha = backpack.contextualization(ids)  # (B, K, T, T)
    T = ids.size(1)
    assert_close(alpha, plain_alpha(backpack, ids))
    assert torch.equal(alpha, alpha.tril())
    assert (alpha[:, :, -1] - 1 / T).abs().max() > 0.05  # it does choose


def test_future_is_invisible(model, ids: Tensor):
    """Logits up to a position stay the same whatever comes after it, and change with what it holds."""
    other = ids.clone()
    other[:, 7:] = (other[:, 7:] + 1) % TINY["vocab_size"]
    before, after = model(ids).logits, model(other).logits
    assert_close(after[:, :7], before[:, :7], 1e-5 * before.abs().max().item())
    assert (after[:, 7] - before[:, 7]).abs().max() > 1e-2
    assert_close(model(ids[:, :7]).logits, before[:, :7], 1e-5 * before.abs().max().item())


def test_senses_depend_on_the_token_alone(backpack: BackpackLM, ids: Tensor):
    """The table of sense vectors is what each position uses, wherever and after whatever it stands."""
    table = backpack.sense_vectors()  # (V, K, D)
    assert len(table) == TINY["vocab_size"]
    assert_close(table[ids].transpose(1, 2), plain_senses(backpack, ids))


def test_sense_vectors_of_some_ids():
    """Rows come in the order asked for, repeats and padded ids included, in chunks of any size."""
    model = tiny_model()
    table, some = model.sense_vectors(), [5, 0, 22, 5]
    assert_close(model.sense_vectors(some), table[some])
    assert_close(model.sense_vectors(torch.tensor(some), chunk=3), table[some])
    for bad in ([23], [-1], [[1, 2]]):
        with pytest.raises(ValueError, match="22"):
            model.sense_vectors(bad)


# --- Sizes and errors -------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 4])
def test_one_layer_nano_has_no_blocks(K: int, ids: Tensor):
    """nano counts its sense network as a layer: with n_layer=1 α sees tokens and positions only."""
    model = tiny_model(n_layer=1, n_sense_vector=K)
    assert len(model.context.h) == 0
    assert len(tiny_model(n_layer=3, n_sense_vector=K).context.h) == 2
    assert len(tiny_model(n_layer=3, n_sense_vector=K, sense_network="paper").context.h) == 3
    assert_equals_plain_formula(model, ids)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 13, dtype=torch.int64), "13 tokens.*block_size=12"),
        (torch.zeros(1, 0, dtype=torch.int64), "0 tokens"),
        (torch.zeros(0, 3, dtype=torch.int64), "empty batch"),
        (torch.tensor([[3, 23]]), "token id 23 .* 0 to 22"),
        (torch.tensor([[-2, 3]]), "token id -2 "),
        (torch.zeros(1, 3, dtype=torch.int32), "int32"),
        (torch.zeros(1, 3), "float32"),
        (torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
    ],
)
def test_ids_a_model_cannot_take(bad: Tensor, message: str):
    """Ids of a wrong length, range, type or shape are ValueErrors that name what was wrong."""
    backpack, gpt = tiny_model(), tiny_model(**GPTS["gpt-bias"])
    for use in (backpack, backpack.contextualization, gpt):
        with pytest.raises(ValueError, match=message):
            use(bad)


@pytest.mark.parametrize("loss_only", [False, True])
def test_targets_a_model_cannot_take(model, ids: Tensor, loss_only: bool):
    """Found before any kernel indexes with them; -1 and the padded ids are none of them."""
    targets = ids.clone()
    targets[0, 3], targets[1, 2] = -1, 22
    assert model(ids, targets, loss_only=loss_only).loss.isfinite()
    for bad in (-2, -100, 23, 10**12):
        targets[2, 11] = bad
        with pytest.raises(ValueError, match=f"id {bad} is outside the vocabulary: -1 to 22"):
            model(ids, targets, loss_only=loss_only)
    for other in (ids.int(), ids.float(), ids[:, 1:], ids[:2], ids.flatten()):
        with pytest.raises(ValueError, match=r"targets must be \(3, 12\) int64"):
            model(ids, other, loss_only=loss_only)


# --- Initialisation and dropout ---------------------------------------------------------------


def test_initial_weights():
    """As GPT-2's: N(0, 0.02), c_proj scaled by sqrt(2 n_layer), norms 1, biases 0, a loss of about ln V."""
    model = build_model(ModelConfig(**TINY | {"n_embd": 128, "n_layer": 8, "bias": True}))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight"))))
        elif p.numel() > 10_000:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(p.mean().item()) < expected / 10


@pytest.mark.parametrize("name", ["nano", "paper-bias-inverse", "gpt-bias"])
def test_dropout_only_in_training(name: str, ids: Tensor):
    """In training mode each pass differs; in eval mode, and where senses and α are read, none does."""
    settings = (BACKPACKS | GPTS)[name]
    model, sure = tiny_model(**settings, dropout=0.3), tiny_model(**settings)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert torch.equal(model(ids).logits, sure(ids).logits)
    model.train()
    torch.manual_seed(0)
    first = model(ids).logits
    assert (model(ids).logits - first).abs().max() > 0.1
    torch.manual_seed(0)
    assert torch.equal(first, model(ids).logits)
    sure.train()
    assert torch.equal(sure(ids).logits, sure(ids).logits)
    if isinstance(model, BackpackLM):
        assert torch.equal(model.contextualization(ids), sure.contextualization(ids))
        assert torch.equal(model.sense_vectors(), sure.sense_vectors())
        assert all(module.training for module in model.modules())


def logits_in_training(model: BackpackLM, forward: Any, ids: Tensor, n: int) -> Tensor:
    """Logits (n, T, V) of n rows in training mode, each of which drops its own."""
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.cat([forward(ids.expand(50, -1)) for _ in range(n // 50)])


@pytest.mark.parametrize("name", ["nano-bias-few", "paper-bias-inverse", "gpt-bias"])
def test_recomputing_blocks_changes_nothing(name: str, ids: Tensor):
    """Not even what is dropped: a block that is computed again draws the same random numbers."""
    gradients = []
    for recompute in (False, True):
        model = tiny_model(**(BACKPACKS | GPTS)[name], dropout=0.3).train()
        model.context.recompute = recompute
        torch.manual_seed(0)
        model(ids, ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputing_keeps_one_tensor_of_a_block(recompute: bool):
    kept = []
    for n_layer in (3, 6):
        model, sizes = tiny_model(n_layer=n_layer, vocab_size=60), []
        model.context.recompute = recompute
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t) or t, id)
        with keep:
            model(torch.arange(12)[None], torch.arange(12)[None])
        kept.append(len(sizes))
    assert (kept[1] - kept[0] <= 3) == recompute  # three more blocks


@pytest.mark.parametrize("n_embd", [16, 32])
def test_alpha_dropout_is_unbiased(n_embd: int):
    """Dropout on α alone keeps the mean of the logits, which are linear in α; the paper's model has none."""
    ids = torch.tensor([[3, 3, 5, 8]])
    model = tiny_model(n_layer=1, n_embd=n_embd, dropout=0.5)
    exact = model(ids).logits[0]
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    logits = logits_in_training(model, lambda x: model(x).logits, ids, 1000)
    error = (logits.mean(dim=0) - exact).abs()
    spread = logits.std(dim=0)
    assert spread.min() > 0.1
    assert (error / (spread / math.sqrt(1000))).max() < 5  # standard errors
    # Position 0 sees only itself: each of its 4 senses is dropped or doubled, 2^4 outcomes.
    assert len(logits[:, 0].round(decimals=3).unique(dim=0)) == 2**4
    assert tiny_model(sense_network="paper", dropout=0.5).alpha.dropout == 0


@pytest.mark.parametrize("name", ["nano", "paper-bias-inverse"])
def test_dropout_distributes_as_in_the_plain_formula(name: str):
    """Training logits have the mean and spread of the plain formula's, where each position drops its own."""
    ids = torch.tensor([[3, 3, 3, 5, 8, 5]])
    model = tiny_model(**BACKPACKS[name] | {"n_layer": 1}, dropout=0.2)
    ours = logits_in_training(model, lambda x: model(x).logits, ids, 1500)
    plain = logits_in_training(model, lambda x: plain_logits(model, x), ids, 1500)
    error = (ours.mean(dim=0) - plain.mean(dim=0)).abs() / (plain.std(dim=0) * math.sqrt(2 / 1500))
    assert error.max() < 5  # standard errors
    ratio = ours.std(dim=0) / plain.std(dim=0)
    assert ratio.min() > 0.85
    assert ratio.max() < 1.15
