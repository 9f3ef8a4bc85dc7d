"""What a run reports: lines for people, metrics.jsonl (and a tracker) for programs, the curve as a picture.

with contextlib.closing(Log(config, step=0)) as log:
    log.record(step=1, train_loss=4.1)
    log.say("step 1: loss 4.1")
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanobackpack.config import TrainConfig, changed_settings
from nanobackpack.errors import InputError, first_line
from nanobackpack.program import ignore_closed_stdout
from nanobackpack.safe.files import Replacement, remove_stale, replacing
from nanobackpack.safe.pictures import picture
from nanobackpack.safe.run import put_aside
from nanobackpack.train.checkpoint import GO_ON, LAST, run_settings
from nanobackpack.train.trackers import start_tracker

_HUGE = 1e30  # losses above it cannot be drawn beside others


class Log:
    """The console, metrics.jsonl and config.json of one run; a progress bar where someone is watching.

    `step` counts the optimizer steps done: a resumed run keeps the lines up to it, so that the file reads as
    if the run had never stopped. With enabled=False, as in all processes but the first, nothing is written.
    """

    def __init__(
        self, config: TrainConfig, step: int, run_id: str | None = None, enabled: bool = True
    ) -> None:
        self.config, self.step, self.run_id, self.enabled = config, step, run_id, enabled
        if not enabled:
            return
        # The folder, without what a killed run left half-written; the tracker first, as it may refuse.
        out_dir = Path(config.out_dir)
        self.path = out_dir / "metrics.jsonl"
        out_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(out_dir)
        goes_on = config.init_from == "resume"
        kept = [r for r in read_metrics(self.path) if _precedes(r, step)] if goes_on else []
        self._tracker = start_tracker(config, step, run_id, kept)
        watched = sys.stderr.isatty()
        self._bar = tqdm(initial=step, total=config.max_iters, unit="step", disable=not watched)
        # A run that goes on shortens its log; a new one first moves an earlier run out of its way. From when
        # config.json has its name the folder is this run's (checkpoint.check_run).
        settings = dataclasses.asdict(config) | ({"run": run_id} if run_id else {})
        log, note = self.path, ""
        if config.eval_only and not goes_on and (out_dir / LAST).is_file():
            log, note = Path(os.devnull), f"the run in {out_dir} stays: this evaluation is only printed"
        else:
            with Replacement() as new:
                with new.open(out_dir / "config.json") as file:
                    file.write(json.dumps(settings, indent=2).encode())
                with new.open(self.path) as file:
                    file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
                if not goes_on:
                    note = put_aside(out_dir, config.overwrite)
        self._file = open(log, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        if step and (not kept or kept[0]["step"] > 1):
            note = f"note: {self.path} was removed or replaced: steps before {step} are missing"
        if note:
            self.say(note)

    def record(self, **values: Any) -> None:
        """Append one JSON line; its numbers go to the tracker as well."""
        if not self.enabled:
            return
        self.check_folder()
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"cannot write {self.path} ({error.strerror}): make room, then {GO_ON}"
            ) from error
        numbers = {k: v for k, v in values.items() if k not in ("step", "event")}
        self._tell_tracker(lambda tracker: tracker.log(numbers, step=values["step"]))

    def check_folder(self) -> None:
        """End a run whose folder is not there any more; begin a metrics.jsonl that is not there anew."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._file.name)):
                return
        if run_settings(self.path.parent).get("run") != self.run_id or not self.path.parent.is_dir():
            raise InputError(
                f"{self.path.parent} was moved, removed or taken by another run while this one trained: "
                f"move it back, or give its new place as --out_dir, and {GO_ON}"
            )
        self._file.close()
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self.say(f"note: {self.path} was removed or replaced: the run adds to what is there now")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.enabled:
            with ignore_closed_stdout():
                self._bar.write(text, file=sys.stdout)
                sys.stdout.flush()

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
        drawn = self.path.with_name("loss.png")
        try:
            self._file.close()
            if self.path.is_file():
                plot_losses(self.path, drawn)
        except Exception as error:  # a picture must not end a run, nor hide the error that ended it
            self.say(f"note: {drawn} is not drawn ({first_line(error)})")
        self._tell_tracker(lambda tracker: tracker.finish())

    def _tell_tracker(self, call: Callable[[Any], object]) -> None:
        """Call the tracker, if this run has one; a run does not fail for it, but goes on without."""
        try:
            if self._tracker:
                call(self._tracker)
        except Exception as error:
            self._tracker, name = None, self.config.tracker_name
            self.say(f"note: {name} fails ({first_line(error)}): from here on only {self.path} is written")


# --- metrics.jsonl ----------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl, [] if there is none; skip lines cut short or not ours."""
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or any(isinstance(v, dict | list) for v in record.values()):
            continue  # what nests may be read, and yet be too deep to be written again
        step = record.get("step")
        if type(step) is int and 0 <= step < 1 << 63:
            records.append(record)
    return records


def _precedes(record: dict[str, Any], step: int) -> bool:
    """Tell whether a record stays when a run goes on from `step`, where it will evaluate again."""
    if "event" in record:
        return False
    return record["step"] < step or ("val_loss" not in record and record["step"] == step)


def plot_losses(metrics: Path, file: Path) -> None:
    """Draw the losses of a metrics.jsonl over the steps."""
    records, title = read_metrics(metrics), metrics.resolve().parent.name
    with picture(replacing(file), (8, 5), title) as figure:
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
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


# --- Words for people -------------------------------------------------------------------------


def describe_settings(config: Any) -> str:
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
