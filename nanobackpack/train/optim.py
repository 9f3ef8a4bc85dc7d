"""The optimizer, AdamW or Muon, and the learning rate of each step.

optimizer = make_optimizer(model, config)
for group in optimizer.param_groups:
    group["lr"] = learning_rate(step, config) * group["lr_scale"]
optimizer.step()
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nanobackpack.config import TrainConfig
from nanobackpack.errors import short_repr


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW or Muon for a model. A group's learning rate is the schedule's times its "lr_scale"."""
    # The weights of linear layers decay; embeddings, norms and biases do not.
    layers = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear)}
    linear = [p for p in model.parameters() if id(p) in layers]
    rest = [p for p in model.parameters() if id(p) not in layers]
    muon = config.optimizer == "muon"
    # With a modern context network and Muon the embedding, which is the head too, learns faster.
    faster = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and muon and config.is_modern]
    rest = [p for p in rest if all(p is not E for E in faster)]
    scale = config.muon_lr_factor if muon else 1.0
    groups: list[dict[str, Any]] = [
        {"params": linear, "weight_decay": config.weight_decay, "lr_scale": scale},
        {"params": rest, "weight_decay": 0.0, "lr_scale": scale},
    ]
    if faster:
        groups.append({"params": faster, "weight_decay": 0.0, "lr_scale": 4 * scale})
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "fused": rest[0].device.type in ("cpu", "cuda"),  # all parameters in one kernel
    }
    if not muon:
        return torch.optim.AdamW(groups, **settings)
    # A weight may hold several matrices, one below the other: the model says how many.
    groups[0]["parts"] = [getattr(layers[id(p)], "n_matrices", 1) for p in linear]
    return Muon(groups, **settings)


class Muon(torch.optim.AdamW):
    """AdamW, but a group with "parts" takes orthogonal steps (Jordan et al. 2024, kellerjordan.github.io).

    The step of a matrix is its momentum with all singular values set to about 1, times 0.2 sqrt(longer
    side): about as long as AdamW's step (Liu et al. 2025, arXiv 2502.16982), so both take the same rate.
    A weight that maps to several things at once, such as K senses, is stepped as so many matrices.

    torch.optim.Muon knows no parts, steps one matrix at a time, and always in bfloat16, which many CPUs
    compute slowly.
    """

    momentum = 0.95

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        # AdamW's fused kernel undoes the loss scaling of float16 itself, our steps do not: leave it to the
        # scaler, which then also skips a step whose gradients are infinite.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if "parts" in group:
                self._orthogonal_steps(group)
        return super().step(closure)  # AdamW's step, of the parameters that still have a gradient

    def _orthogonal_steps(self, group: dict[str, Any]) -> None:
        """Step all weights of a group.

        With FSDP a process has some rows of each weight. They are exchanged for columns, so that the rows can
        be cut into matrices, and these for some of the matrices, whole. Their steps go back the same way.
        """
        # First bring the momentum of each weight up to date and cut it into its matrices. They are turned so
        # that rows ≤ columns, which is cheapest, and collected by shape, to be computed in one batch.
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # (weight, its matrices)
        for p, n_matrices in zip(group["params"], group["parts"], strict=True):
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())  # unused, but AdamW looks for it when a state is loaded
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            ahead = p.grad.lerp_(state["momentum"], self.momentum)  # Nesterov: look one step ahead
            matrices = _spread(ahead, 1).view(n_matrices, -1, p.size(1))  # (n_matrices, rows, columns)
            if matrices.size(1) > matrices.size(2):
                matrices = matrices.mT  # (n_matrices, columns, rows)
            same_shape.setdefault(matrices.shape[1:], []).append((p, matrices))
            p.grad = None  # AdamW skips parameters without a gradient
        # Then make the matrices of each shape orthogonal, and step their weights.
        for shape, members in same_shape.items():
            steps = orthogonalize(_spread(torch.cat([m for _, m in members]), 0))
            steps = _spread(steps, 2)  # (all matrices, short, long)
            for (p, m), step in zip(members, steps.split([len(m) for _, m in members]), strict=True):
                if p.size(0) // len(m) > p.size(1):
                    step = step.mT  # turned back
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(_spread(step.reshape(p.shape), 0), alpha=group["lr"] * 0.2 * math.sqrt(shape[1]))


def _spread(t: Tensor, dim: int) -> Tensor:
    """Cut what FSDP spreads over the processes along another dimension; return other tensors as they are."""
    if type(t) is Tensor:
        return t
    from torch.distributed.tensor import Shard

    return t.redistribute(placements=[Shard(dim)])  # type: ignore[attr-defined]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring all singular values of matrices (N, rows, columns) near 1: U S Vᵀ becomes about U Vᵀ.

    Five Newton-Schulz steps X ← aX + (bA + cA²)X, A = XXᵀ, do it without a decomposition. Each applies
    s ← as + bs³ + cs⁵ to the singular values; these coefficients bring them within 0.7 and 1.2 fast.
    """
    if hasattr(matrices, "to_local"):  # FSDP's: this process has some of the matrices, whole
        m: Any = matrices
        own = orthogonalize(m.to_local())
        return type(m).from_local(own, m.device_mesh, m.placements, shape=m.shape, stride=m.stride())
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(_fast_dtype(matrices.device))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    for _ in range(5):
        A = x @ x.mT  # (N, rows, rows): cheapest with rows ≤ columns
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)  # (N, rows, columns)
    return x.to(matrices.dtype)


def _fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device multiplies it faster than float32: the steps correct their rounding."""
    if device.type == "cpu":
        fast = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def step_due(config: TrainConfig, time_used: float) -> int:
    """Return where a run should be when that share of its time is over. The first tenth does not count, so
    that one which started slowly, but has the time for all of its steps, is not late."""
    return int(config.max_iters * (time_used - 0.1) / 0.9)


def learning_rate(step: int, config: TrainConfig, time_used: float = 0.0) -> float:
    """Return the rate of a step, numbered from 0: a linear warm-up, then a decay to min_lr.

    A run that is short of time takes the rate of the step where it should be by now.
    """
    if not config.decay_lr:
        return config.learning_rate
    step = max(step, step_due(config, time_used))
    # The first step already moves (nanoBackpackLM's has rate 0), and the peak comes at warmup_iters.
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    # `left` falls from 1 to 0, by a cosine or, as suits Muon, in a straight line.
    span = max(1, config.lr_decay_iters - config.warmup_iters)
    left = 1 - min(1.0, (step - config.warmup_iters) / span)
    if config.lr_schedule == "cosine" or (config.lr_schedule == "auto" and config.optimizer != "muon"):
        left = 0.5 * (1 - math.cos(math.pi * left))
    return config.min_lr + left * (config.learning_rate - config.min_lr)


def describe_schedule(config: TrainConfig, step: int, before: float | None, time_used: float = 0.0) -> str:
    """Say what is unusual from `step` on, "" if nothing; `before`: the last rate of a run that goes on."""
    last, decay, now = config.max_iters, config.lr_decay_iters, learning_rate(step, config, time_used)
    if time_used >= 1:
        return f"no time is left: the run has had its {config.max_minutes:g} minutes; raise --max_minutes"
    if before is not None and step >= last:
        return f"no step is left: the run is at step {step}, max_iters={last}; raise it, and --lr_decay_iters"
    if config.decay_lr and 0 < last < config.warmup_iters:
        what = f"warms up for {config.warmup_iters} steps, longer than the {last} of this run"
    elif config.decay_lr and decay < last:
        since = f"from step {max(step, decay)} on: --lr_decay_iters={last} would let it fall until the end"
        what = f"stays at min_lr={config.min_lr:g} {since}"
    elif before is not None and step > config.warmup_iters and now > before * 1.001:
        what = f"rises from {before:.3g} to {now:.3g}, as its settings are new"
    else:
        return ""
    return f"the learning rate {what}"


def adapt_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a saved state as this optimizer can load it, or raise one of many errors if it does not fit.

    Weight decay and the like are those of the settings now; positions that a smaller block_size drops go.
    """
    groups = optimizer.state_dict()["param_groups"]
    for group, old in zip(groups, saved["param_groups"], strict=True):
        if old["params"] != group["params"]:
            raise ValueError("it has other parameters")
        group["lr"] = float(old["lr"])  # that of the last step; the next one has its own

    # From its first step on an optimizer keeps averages for each parameter, of the same shape.
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if saved["state"] and saved["state"].keys() != set(range(len(parameters))):
        raise ValueError("it has the averages of other parameters")
    for i, (p, group) in enumerate(parameters if saved["state"] else []):
        names = {"step", "momentum"} if "parts" in group else {"step", "exp_avg", "exp_avg_sq"}
        if saved["state"][i].keys() != names:
            raise ValueError(f"parameter {i} has {short_repr(list(saved['state'][i]))}, not {sorted(names)}")
        state[i] = {k: t if k == "step" else t[: p.shape[0]] for k, t in saved["state"][i].items()}
        for k, t in state[i].items():
            if t.shape != (() if k == "step" else p.shape) or not t.is_floating_point():
                raise ValueError(f"{k} of parameter {i} has another shape or type")
            if not t.to(p.dtype).isfinite().all():  # float64 may hold more than float32 can
                raise ValueError(f"{k} of parameter {i} holds other things than finite numbers")
        if not 0 <= state[i]["step"].item() < math.inf:
            raise ValueError(f"step of parameter {i} is {state[i]['step'].item()}")
    return {"state": state, "param_groups": groups}
