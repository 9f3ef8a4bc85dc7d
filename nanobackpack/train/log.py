"""What a run reports: lines for people, metrics.jsonl (and wandb) for programs, the curve as a picture.

with contextlib.closing(Log(config, step=0)) as log:
    log.record(step=1, train_loss=4.1)
    log.say("step 1: loss 4.1")
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nanobackpack.cli import ignore_closed_stdout
from nanobackpack.config import ModelConfig, TrainConfig, changed_settings
from nanobackpack.errors import InputError, first_line
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.safe.files import remove_stale, replacing
from nanobackpack.text.data import TokenData
from nanobackpack.train.parallel import Processes

_HUGE = 1e30  # losses above it cannot be drawn beside others


class Log:
    """The console, metrics.jsonl and config.json of one run; a progress bar where someone is watching.

    `step` counts the optimizer steps done: a resumed run keeps the lines up to it, so that the file reads as
    if the run had never stopped. With enabled=False, as in all processes but the first, nothing is written.
    """

    def __init__(
        self, config: TrainConfig, step: int, run_id: str | None = None, enabled: bool = True
    ) -> None:
        self.config, self.step, self.enabled = config, step, enabled
        if not enabled:
            return
        # The folder, without what a killed run left half-written; wandb first, as it may refuse.
        out_dir = Path(config.out_dir)
        self.path = out_dir / "metrics.jsonl"
        out_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(out_dir)
        self._wandb = start_wandb(config) if config.wandb_log else None

        # Replace the log of an earlier run, or shorten that of this one. config.json is written just before
        # the log takes its name: from then on the folder is this run's (checkpoint.check_run).
        def write_config() -> None:
            settings = dataclasses.asdict(config) | ({"run": run_id} if run_id else {})
            with replacing(out_dir / "config.json") as file:
                file.write(json.dumps(settings, indent=2).encode())

        kept = [r for r in read_metrics(self.path) if _precedes(r, step)] if step else []
        with replacing(self.path, write_config) as file:
            file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        watched = sys.stderr.isatty()
        self._bar = tqdm(initial=step, total=config.max_iters, unit="step", disable=not watched)

    def record(self, **values: Any) -> None:
        """Append one JSON line; its numbers go to wandb as well."""
        if not self.enabled:
            return
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}): make room, "
                "then go on with the same command and --init_from=resume"
            ) from error
        if self._wandb:
            numbers = {k: v for k, v in values.items() if k not in ("step", "event")}
            self._wandb.log(numbers, step=values["step"])

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            with ignore_closed_stdout():
                self._bar.write(text, file=sys.stdout)
                sys.stdout.flush()

    def introduce(
        self,
        model: LanguageModel,
        data: TokenData,
        processes: Processes,
        dtype: torch.dtype,
        tokens_per_step: int,
        origin: str,
        notes: list[str],
    ) -> None:
        """Say what is about to be trained and how, and what is worth knowing beforehand."""
        config = self.config
        where = f"{processes.world_size} × {processes.device.type} ({config.distributed})"
        self.say(f"settings ({Path(config.out_dir) / 'config.json'} has all):\n{describe(config)}")
        self.say(
            f"{model.config.model_name} with {model.num_params():,} parameters "
            f"on {where if processes.is_distributed else processes.device} "
            f"in {str(dtype).removeprefix('torch.')}, {tokens_per_step:,} tokens per step of "
            f"{data.n_tokens('train'):,} in {data.folder}"
            + (f", from step {self.step}" if self.step else "")
            + (f"; {origin}" if origin else "")
        )
        if config.decay_lr and 0 < config.max_iters < config.warmup_iters:
            self.say(
                f"note: the learning rate warms up for {config.warmup_iters} steps, "
                f"longer than the {config.max_iters} of this run"
            )
        for note in notes:
            self.say(note)

    def report_step(
        self, step: int, loss: float, lr: float, ms: float, n_tokens: int, mfu: float | None
    ) -> None:
        """Record and print one training step, which took `ms` milliseconds for n_tokens tokens."""
        rate, left = n_tokens / ms * 1000, duration((self.config.max_iters - step) * ms / 1000)
        known = {} if mfu is None else {"mfu": mfu}
        self.record(step=step, train_loss=loss, lr=lr, ms_per_step=ms, tokens_per_s=rate, **known)
        self.say(
            f"step {step:>6}/{self.config.max_iters}: loss {loss:.4f}, {ms:.1f} ms/step, "
            f"{rate:,.0f} tokens/s, {'' if mfu is None else f'MFU {mfu:.1%}, '}{left} left"
        )

    def advance(self) -> None:
        """Move the progress bar by a step."""
        if self.enabled:
            with ignore_closed_stdout():
                self._bar.update()

    def close(self) -> None:
        """End the log, also that of a run that failed, and draw the curve as loss.png."""
        if not self.enabled:
            return
        with ignore_closed_stdout():
            self._bar.close()
        picture = self.path.with_name("loss.png")
        try:
            self._file.close()
            plot_losses(self.path, picture)
        except Exception as error:  # no reason for a run to fail, nor to hide what it fails for
            self.say(f"note: {picture} is not drawn ({first_line(error)})")
        if self._wandb:
            self._wandb.finish()


def start_wandb(config: TrainConfig) -> Any:
    """Start a run on Weights & Biases, or in out_dir/wandb with WANDB_MODE=offline."""
    try:
        import wandb
    except ImportError as error:
        raise InputError("wandb_log=True needs wandb: pip install 'nanobackpack[wandb]'") from error
    try:
        return wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name,
            config=dataclasses.asdict(config),
            dir=config.out_dir,
        )
    except wandb.Error as error:
        raise InputError(
            f"wandb does not start: {first_line(error)} Or keep the log here: WANDB_MODE=offline"
        ) from error


# --- metrics.jsonl ----------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl, [] if there is none, without lines cut short or not ours."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is int and 0 <= step < 1 << 63:
            records.append(record)
    return records


def _precedes(record: dict[str, Any], step: int) -> bool:
    """Whether a record stays when a run goes on from `step`: it evaluates there anew."""
    if "event" in record:
        return False
    return record["step"] < step or ("val_loss" not in record and record["step"] == step)


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
        points = [(step, loss) for step, loss in losses if abs(loss) < _HUGE]  # leaves out NaN as well
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=metrics.resolve().parent.name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    with replacing(picture) as file:
        figure.savefig(file, format="png", dpi=120)


# --- Words for people -------------------------------------------------------------------------


def describe(config: Any) -> str:
    """List the settings that differ from their defaults, as flags would set them, wrapped for a terminal."""
    changed = [f"{name}={value}" for name, value in changed_settings(config).items()]
    lines = [""]
    for item in changed or ["all at their defaults"]:
        if len(lines[-1]) + len(item) > 96:
            lines.append("")
        lines[-1] += "  " + item
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Write a time as 12s, 3m05s or 2h07m."""
    s = int(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


# --- Model FLOPs utilisation ------------------------------------------------------------------

# Dense bfloat16 operations a second, as the makers state them; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A10G": 70e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip


def model_flops_utilisation(
    config: ModelConfig, n_sequences: int, ms: float, device: torch.device
) -> float | None:
    """Return which part of what a device can do a step used that took `ms`; None if its peak is not known."""
    peak = peak_flops(device)
    return flops_per_step(config, n_sequences) / peak / ms * 1000 if peak else None


def flops_per_step(config: ModelConfig, batch_size: int, length: int | None = None) -> int:
    """Count the operations of a training step on batch_size sequences of `length` (None: block_size).

    Matrix products only, by the plain formula: senses of every position, and all T·T pairs. What a faster way
    skips still counts, as is usual for MFU, so that figures compare models and machines, not ways to compute.
    """
    T = length or config.block_size
    D, K, V = config.n_embd, config.n_sense_vector, config.vocab_size
    # Multiplications for each token, in the order of the model.
    block = 3 * D * D + 2 * T * D + D * D + 8 * D * D  # q, k, v; scores and weighted values; projection; MLP
    senses = 8 * D * D + (4 + 4 * K) * D * D  # the two MLPs of the sense network
    backpack = senses + 2 * D * D + T * D + T * K * D  # and q, k of α; its scores; the weighted sum
    per_token = config.n_block * block + (backpack if config.model_name == "backpack-lm" else 0) + D * V
    # An addition goes with each; and backward multiplies twice, once for the gradient of each factor.
    return 2 * 3 * per_token * batch_size * T


def peak_flops(device: torch.device) -> float | None:
    """Return the device's best in bfloat16, operations a second; None if we do not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((peak for key, peak in PEAK_FLOPS.items() if key.lower() in name), None)
