"""Backpacks of other programs, next to what their formula makes of their tensors, one step at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from nanobackpack import BackpackLM, InputError, load_model
from nanobackpack.train import checkpoint

V, D, L, H, K, T = 23, 12, 3, 2, 3, 9  # K is no power of two, so that dividing by it rounds
Weights = dict[str, Tensor]
IDS = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))  # (B, T)


def random(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Weights that all matter: matrices ±0.25, norms 1 ± 0.25, biases too."""
    draw = torch.Generator().manual_seed(0)
    is_norm = lambda name: name.endswith("weight") and ("norm" in name or "ln" in name)  # noqa: E731
    return {name: torch.randn(s, generator=draw) / 4 + is_norm(name) for name, s in shapes.items()}


def mix(x: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of one head, whose values may have any width: (B, T, ·)."""
    scores = (q @ k.mT) * scale + torch.triu(torch.full((T, T), -10000.0), 1)
    return scores.softmax(dim=2) @ v


# --- The .ckpt of the paper's own training: each block ends with the norm that the next begins with -------


def lightning(block: int = 4, final: int = 4) -> Weights:
    """Random weights under the names of the paper's training code; sense MLPs of so many times D."""
    shapes: dict[str, tuple[int, ...]] = {}
    gpt, content = "gpt2_model.", "content_model."

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes.update({f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)})

    norms = [f"{gpt}ln_0", f"{content}ln_0", f"{content}layers.0.norm1", f"{content}layers.0.norm2"]
    for i in range(L):
        linear(f"{gpt}layers.{i}.mixer.Wqkv", D, 3 * D)
        linear(f"{gpt}layers.{i}.mixer.out_proj", D, D)
        linear(f"{gpt}layers.{i}.mlp.fc1", D, 4 * D)
        linear(f"{gpt}layers.{i}.mlp.fc2", 4 * D, D)
        norms += [f"{gpt}layers.{i}.norm1", f"{gpt}layers.{i}.norm2"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    linear(f"{content}layers.0.mlp.fc1", D, block * D)
    linear(f"{content}layers.0.mlp.fc2", block * D, D)
    linear(f"{content}final_mlp.fc1", D, final * D)
    linear(f"{content}final_mlp.fc2", final * D, K * D)
    linear("contextualization_attn.Wqkv", D, 2 * D)
    shapes[f"{gpt}embeddings.word_embeddings.weight"] = (V, D)
    shapes[f"{gpt}embeddings.position_embeddings.weight"] = (T, D)
    return random(shapes)


def lightning_logits(w: Weights, divisor: int = 1) -> Tensor:
    """What the paper's training code computes, in its order: mix, add, norm, MLP, add, norm."""
    linear: Callable[[Tensor, str], Tensor] = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    norm: Callable[[Tensor, str], Tensor] = lambda x, name: F.layer_norm(  # noqa: E731
        x, (D,), w[f"{name}.weight"], w[f"{name}.bias"]
    )
    mlp = lambda x, name: linear(F.gelu(linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")  # noqa: E731
    E = w["gpt2_model.embeddings.word_embeddings.weight"]
    residual = E[IDS] + w["gpt2_model.embeddings.position_embeddings.weight"]  # (B, T, D)
    h = norm(residual, "gpt2_model.ln_0")
    for i in range(L):
        layer = f"gpt2_model.layers.{i}"
        heads = zip(
            *(x.split(D // H, dim=2) for x in linear(h, f"{layer}.mixer.Wqkv").chunk(3, dim=2)), strict=True
        )
        mixed = torch.cat([mix(h, *qkv, scale=(D // H) ** -0.5 / (i + 1)) for qkv in heads], dim=2)
        residual = residual + linear(mixed, f"{layer}.mixer.out_proj")
        residual = residual + mlp(norm(residual, f"{layer}.norm1"), f"{layer}.mlp")
        h = norm(residual, f"{layer}.norm2")
    senses = E[IDS]
    senses = norm(senses, "content_model.ln_0") + senses
    senses = senses + mlp(norm(senses, "content_model.layers.0.norm1"), "content_model.layers.0.mlp")
    senses = mlp(norm(senses, "content_model.layers.0.norm2"), "content_model.final_mlp").view(2, T, K, D)
    q, k = linear(h, "contextualization_attn.Wqkv").view(2, T, 2, K, D // K).unbind(2)  # (B, T, K, D/K)
    o = sum(mix(h, q[:, :, s], k[:, :, s], senses[:, :, s], (D // K) ** -0.5) for s in range(K))  # (B, T, D)
    return o / divisor @ E.T


def saved_ckpt(folder: Path, w: Weights, hyper: bool = True, **more: Any) -> Path:
    """A .ckpt as Lightning writes it, but for objects; the embeddings have all their four names."""
    state = {f"model.transformer.{name}": t for name, t in w.items()}
    for kind in ("word", "position"):
        t = w[f"gpt2_model.embeddings.{kind}_embeddings.weight"]
        for part in ("", "content_model."):
            state[f"model.transformer.{part}embeddings.{kind}_embeddings.weight"] = t
    state["model.lm_head.weight"] = w["gpt2_model.embeddings.word_embeddings.weight"]
    config = {"n_head": H, "scale_attn_by_inverse_layer_idx": True, "n_positions": "${datamodule.max_length}"}
    parameters = {"model": {"_target_": "src.models.backpack.BackpackLMHeadModel", "config": config}}
    content = {"epoch": 1, "global_step": 9, "state_dict": state | more, "hyper_parameters": parameters}
    if not hyper:
        del content["hyper_parameters"]
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def error_to(model: BackpackLM, logits: Tensor) -> float:
    assert logits.std() > 0.2
    return (model(IDS).logits - logits).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize(("block", "final"), [(4, 4), (1, 1), (4, 2)])
def test_lightning(tmp_path: Path, block: int, final: int):
    """Its logits, with its hyper-parameters or what a config.json says; also with narrow sense MLPs."""
    w = lightning(block, final)
    model = load_model(saved_ckpt(tmp_path, w))
    assert isinstance(model, BackpackLM)
    assert error_to(model, lightning_logits(w)) < 1e-5
    assert (model.config.sense_intermediate_scale, model.config.block_size) == (final, T)
    file = saved_ckpt(tmp_path, w, hyper=False)
    with pytest.raises(InputError, match="no n_head: put it into a config"):
        load_model(file)
    (tmp_path / "config.json").write_text(json.dumps({"n_head": H}))
    assert error_to(load_model(file), lightning_logits(w)) < 1e-5


def test_units_that_are_zero_stay_so(tmp_path: Path):
    """What fills a narrow MLP up to 4·D gets no gradient: the model trains as its own would."""
    model = load_model(saved_ckpt(tmp_path, lightning(block=1)))
    model(IDS, targets=IDS).loss.backward()
    assert isinstance(model, BackpackLM)
    mlp = model.senses.mlp
    for p, added in (
        (mlp.c_fc.weight, (slice(D, None),)),
        (mlp.c_proj.weight, (slice(None), slice(D, None))),
    ):
        assert not p.grad[added].any()
        assert p.grad.any()


def test_lightning_is_checked(tmp_path: Path):
    """An embedding that is not tied, a tensor that is missing or left over: refused by name."""
    w = lightning()
    without = {name: t for name, t in w.items() if "layers.1.norm2" not in name}
    for weights, more, name in (
        (w, {"model.lm_head.weight": torch.zeros(V, D)}, "lm_head.weight differs"),
        (w, {"model.transformer.rotary": torch.zeros(3)}, "unknown tensor"),
        (without, {}, "h.2.ln_1.weight"),
    ):
        with pytest.raises(InputError, match=name):
            load_model(saved_ckpt(tmp_path, weights, **more))


# --- Levanter: a folder as backpack-gpt2's, but for the division by K ---------------------------------

BLOCK = {
    "mixer.Wqkv": "attn.c_attn",
    "mixer.out_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
SETTINGS = {
    "n_embd": D, "n_head": H, "n_layer": L, "n_positions": T, "vocab_size": V, "num_senses": K,
    "activation_function": "gelu_new", "resid_pdrop": 0.1,
}  # fmt: skip
STANFORD = {
    "model_type": "gpt2",
    "auto_map": {"AutoModelForCausalLM": "backpack_model.BackpackGPT2LMHeadModel"},
}
LEVANTER = {"model_type": "", "auto_map": {"AutoModelForCausalLM": "backpack_model.BackpackLMHeadModel"}}


def folder_of(folder: Path, w: Weights, **settings: Any) -> Path:
    """The same weights under the names of backpack-gpt2, most of them (in, out)."""
    names = {
        f"gpt2_model.layers.{i}.{a}": f"gpt2_model.h.{i}.{b}" for i in range(L) for a, b in BLOCK.items()
    }
    names |= {f"gpt2_model.layers.{i}.norm1": f"gpt2_model.h.{i}.ln_2" for i in range(L)}
    names |= {f"gpt2_model.layers.{i}.norm2": f"gpt2_model.h.{i + 1}.ln_1" for i in range(L - 1)}
    names |= {"gpt2_model.ln_0": "gpt2_model.h.0.ln_1", f"gpt2_model.layers.{L - 1}.norm2": "gpt2_model.ln_f"}
    names |= {f"content_model.layers.0.norm{n}": f"sense_network.block.ln_{n}" for n in (1, 2)}
    for theirs, ours in {"fc1": "c_fc", "fc2": "c_proj"}.items():
        names[f"content_model.layers.0.mlp.{theirs}"] = f"sense_network.block.mlp.{ours}"
        names[f"content_model.final_mlp.{theirs}"] = f"sense_network.final_mlp.{ours}"
    names |= {
        "content_model.ln_0": "sense_network.ln",
        "contextualization_attn.Wqkv": "sense_weight_net.c_attn",
    }
    names |= {
        f"gpt2_model.embeddings.{k}_embeddings": f"gpt2_model.w{k[0]}e".replace("wwe", "wte")
        for k in ("word", "position")
    }
    state = {}
    for name, t in w.items():
        module, _, kind = name.rpartition(".")
        new = f"backpack.{names[module]}.{kind}"
        state[new] = t.T.contiguous() if t.dim() == 2 and ".c_" in new and "weight_net" not in new else t
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SETTINGS | settings))
    return folder


@torch.no_grad()
@pytest.mark.parametrize(
    ("settings", "divisor", "scale"),
    [
        (STANFORD, 1, 1),
        (STANFORD | {"model_type": "backpack-gpt2", "scale_attn_by_inverse_layer_idx": True}, 1, 5),
        (LEVANTER, K, 4),
        (LEVANTER | {"auto_map": None}, K, 1),
        (LEVANTER | {"model_type": "gpt2"}, K, 5),
    ],
)
def test_levanter(tmp_path: Path, settings: dict[str, Any], divisor: int, scale: int):
    """Its logits are K times smaller, whatever tells that it is Levanter's; and any width of the last MLP."""
    w = lightning(final=scale)
    model = load_model(folder_of(tmp_path, w, sense_intermediate_scale=scale, **settings))
    assert isinstance(model, BackpackLM)
    assert error_to(model, lightning_logits(w, divisor)) < 1e-5
    assert model.alpha.dropout == (0.1 if divisor > 1 else 0)
    # It stays what it is when we write it, and is one of ours then.
    checkpoint.save_model(model, tmp_path / "ckpt.pt")
    assert (load_model(tmp_path / "ckpt.pt")(IDS).logits == model(IDS).logits).all()


def test_dropout_on_alpha_of_levanter(tmp_path: Path):
    """In training α loses weights, so that its rows no longer sum to 1; of backpack-gpt2's they do not."""
    found = []
    for settings in (STANFORD, LEVANTER):
        model = load_model(folder_of(tmp_path, lightning(), **settings)).train()
        for part in (model.context, model.senses):
            part.eval()  # leaves α alone
        found.append(len({model(IDS).logits.sum().item() for _ in range(5)}))
    assert found == [1, 5]


@pytest.mark.parametrize("scale", [0, -1, "4", 2.5])
def test_widths_that_cannot_be(tmp_path: Path, scale: Any):
    with pytest.raises(InputError, match="sense_intermediate_scale="):
        load_model(folder_of(tmp_path, lightning(), sense_intermediate_scale=scale))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["transformers", "backpack-gpt2"])
def test_what_is_unusual_goes_out_again(tmp_path: Path, layout: str):
    """An exact GELU, any width of the last MLP, and dropout on α where the layout has it: as it is."""
    transformers = pytest.importorskip("transformers")
    from nanobackpack.hub.export import WRITERS

    unusual = LEVANTER | {"sense_intermediate_scale": 2, "activation_function": "gelu"}
    model = load_model(folder_of(tmp_path, lightning(final=2), **unusual))
    out = tmp_path / "out"
    out.mkdir()
    WRITERS[layout](model, out, "")
    again = load_model(out)
    alpha = layout == "transformers"  # the published class has no dropout there
    assert again.config == dataclasses.replace(model.config, alpha_dropout=alpha)
    assert (again(IDS).logits - model(IDS).logits).abs().max() < 1e-6
    if alpha:
        other = transformers.AutoModelForCausalLM.from_pretrained(out)
        assert (other(IDS).logits - model(IDS).logits).abs().max() < 1e-5
