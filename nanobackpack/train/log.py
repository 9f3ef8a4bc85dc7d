"""What a run reports: lines for people, metrics.jsonl (and wandb) for programs, the curve as a picture.

How many floating point operations a training step takes, and how many a GPU can do.

Matrix products only, 2 operations for each multiply and add, and twice the forward's for the backward,
which multiplies once for the gradient of each factor. We count the plain formula: senses of every
position, and all T x T pairs. What a faster way skips still counts, as is usual for MFU (model FLOPs
utilisation), so that a figure compares models and machines, not ways to compute.

Letters: N = B·T tokens, D width, K senses, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nanobackpack.cli import ignore_closed_stdout
from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import replacing

_HUGE = 1e30  # losses above it cannot be drawn beside others


class Log:
    """The console and metrics.jsonl of one run; a progress bar where someone is watching.

    `step` counts finished optimizer steps. A resumed run keeps the lines up to its step, so that the
    file reads as if the run had never stopped. `begin` is called just before the file of an earlier run
    is replaced.
    Raises: InputError if the run should be logged to wandb and wandb refuses.
    """

    def __init__(
        self, out_dir: Path, step: int, config: TrainConfig, begin: Callable[[], None] = lambda: None
    ) -> None:
        self._wandb = start_wandb(out_dir, config) if config.wandb_log else None
        self.path = out_dir / "metrics.jsonl"
        kept = [r for r in read_metrics(self.path) if _before(r, step)] if step else []
        with replacing(self.path, begin) as f:
            f.write("".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(initial=step, total=config.max_iters, unit="step", disable=not on_terminal)

    def record(self, **values: Any) -> None:
        """Append one JSON line; its numbers go to wandb as well. Raises: InputError if the disk is full."""
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as e:
            raise InputError(
                f"cannot write {self.path} ({e.strerror}): make room, "
                "then go on with the same command and --init_from=resume"
            ) from e
        if self._wandb:
            numbers = {k: v for k, v in values.items() if k not in ("step", "event")}
            self._wandb.log(numbers, step=values["step"])

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        with ignore_closed_stdout():
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def advance(self) -> None:
        with ignore_closed_stdout():
            self._bar.update()

    def close(self) -> None:
        """The end, also of a run that failed: draws the curve as loss.png."""
        with ignore_closed_stdout():
            self._bar.close()
        picture = self.path.with_name("loss.png")
        try:
            self._file.close()
            plot_losses(self.path, picture)
        except Exception as e:  # no reason for a run to fail, nor to hide what it fails for
            reason = (getattr(e, "strerror", None) or str(e) or type(e).__name__).splitlines()[0]
            self.say(f"note: {picture} is not drawn ({reason[:200]})")
        if self._wandb:
            self._wandb.finish()


class NoLog(Log):
    """The log of a process that leaves it to rank 0."""

    def __init__(self) -> None:
        pass

    def record(self, **values: Any) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def advance(self) -> None:
        pass

    def close(self) -> None:
        pass


def import_wandb() -> Any:
    """The wandb library. Raises: InputError if it is not installed."""
    try:
        import wandb
    except ImportError as e:
        raise InputError("wandb_log=True needs wandb: pip install 'nanobackpack[wandb]'") from e
    return wandb


def start_wandb(out_dir: Path, config: TrainConfig) -> Any:
    """A run on Weights & Biases, or in out_dir/wandb with WANDB_MODE=offline.

    Raises: InputError if it cannot be started, as without an account.
    """
    wandb = import_wandb()
    try:
        return wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name,
            config=dataclasses.asdict(config),
            dir=out_dir,
        )
    except wandb.Error as e:
        reason = str(e).strip().splitlines()[0]
        raise InputError(f"wandb does not start: {reason} Or keep the log here: WANDB_MODE=offline") from e


def _before(record: dict[str, Any], step: int) -> bool:
    """Whether a record stays when a run goes on from `step`, where it evaluates anew."""
    if "event" in record:
        return False
    return record["step"] < step or ("val_loss" not in record and record["step"] == step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, [] if there is none; lines cut short or not ours are left out."""
    records = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            step = record.get("step") if isinstance(record, dict) else None
            if type(step) is int and 0 <= step < 1 << 63:
                records.append(record)
    return records


def describe(config: Any) -> str:
    """The settings that differ from their defaults, as flags would set them, wrapped for a terminal."""
    changed = [
        f"{f.name}={getattr(config, f.name)}"
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default
    ]
    lines = [""]
    for item in changed or ["all at their defaults"]:
        if len(lines[-1]) + len(item) > 96:
            lines.append("")
        lines[-1] += "  " + item
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """12s, 3m05s, 2h07m."""
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


def plot_losses(metrics: Path, picture: Path) -> None:
    """Draw the losses of a metrics.jsonl over the steps."""
    import matplotlib.figure  # slow to import, needed once a run

    records = read_metrics(metrics)
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (
        ("train_loss", "training batch", {"color": "0.8", "linewidth": 0.8}),
        ("train_eval_loss", "training split", {"color": "C0", "marker": "."}),
        ("val_loss", "validation split", {"color": "C1", "marker": "."}),
    ):
        losses = [(r["step"], r[key]) for r in records if type(r.get(key)) is float]
        points = [(step, loss) for step, loss in losses if abs(loss) < _HUGE]  # not those that are no number
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=metrics.resolve().parent.name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with replacing(picture) as f:
        figure.savefig(f, format="png", dpi=120)


# Dense bfloat16 operations a second, as the makers state them; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_step(config: ModelConfig, batch_size: int, length: int | None = None) -> int:
    """Operations of forward and backward for batch_size sequences of `length` (None: block_size)."""
    T = length or config.block_size
    N, D, K, V = batch_size * T, config.n_embd, config.n_sense_vector, config.vocab_size
    block = (
        2 * N * D * 3 * D  # queries, keys, values: (N, D) @ (D, 3D)
        + 2 * N * T * D  # scores, for H heads: (T, D/H) @ (D/H, T)
        + 2 * N * T * D  # weighted values, for H heads: (T, T) @ (T, D/H)
        + 2 * N * D * D  # projection: (N, D) @ (D, D)
        + 2 * N * D * 8 * D  # MLP: (N, D) @ (D, 4D), (N, 4D) @ (4D, D)
    )
    forward = config.n_block * block + 2 * N * D * V  # head: (N, D) @ (D, V)
    if config.model_name == "backpack-lm":
        forward += (
            2 * N * D * 2 * D  # queries and keys of α: (N, D) @ (D, 2D)
            + 2 * N * T * D  # scores, for K senses: (T, D/K) @ (D/K, T)
            + 2 * N * D * 8 * D  # first MLP of the sense network: (N, D) @ (D, 4D), (N, 4D) @ (4D, D)
            + 2 * N * D * 4 * D  # second MLP: (N, D) @ (D, 4D)
            + 2 * N * 4 * D * K * D  # and (N, 4D) @ (4D, K·D)
            + 2 * N * T * K * D  # weighted sum, for K senses: (T, T) @ (T, D)
        )
    return 3 * forward


def peak_flops(device: torch.device) -> float | None:
    """What the device could do at best in bfloat16, operations a second; None if we do not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key.lower() in name.lower()), None)
