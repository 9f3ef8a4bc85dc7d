"""The tab Train: the losses of runs in one picture, while they train too, and how their settings differ."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanobackpack.analysis.results import Result, table
from nanobackpack.app import html
from nanobackpack.app.curve import curve as draw
from nanobackpack.app.view import View
from nanobackpack.config import TrainConfig
from nanobackpack.safe.files import writing
from nanobackpack.safe.pictures import picture
from nanobackpack.train.checkpoint import run_settings
from nanobackpack.train.log import duration, read_metrics

POINTS = 400  # of a curve that are drawn, at most
CURVES = {"val_loss": "validation", "train_eval_loss": "training split", "train_loss": "training batch"}
UNIT = "nats per token"
HEAD = ["run", "step", "validation loss", "best", "tokens/s", "state"]


@dataclass(frozen=True, kw_only=True)
class Curves(Result):
    """One loss of some runs, and how they stand and differ."""

    losses: dict[str, list[tuple[float, float]]]  # of each run its points: step and loss
    standings: list[list[str]]  # a run a row, under HEAD
    settings: list[list[str]]  # those not at their defaults: the name, then what each run has

    def table(self) -> str:
        return table(self.title, HEAD, self.standings)

    def records(self) -> list[dict[str, Any]]:
        return [{"run": p, "step": s, "loss": x} for p, points in self.losses.items() for s, x in points]

    def plot(self, path: str) -> None:
        """Write the curves as a PNG."""
        with picture(writing(path), (8, 5), "".join([self.title, *self.losses])) as figure:
            axes = figure.subplots()
            for run, points in self.losses.items():
                if points:
                    axes.plot(*zip(*thinned(points), strict=True), label=run)
            axes.set(xlabel="step", ylabel=UNIT, title=self.title)
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend()


def is_run(path: str) -> bool:
    """Tell whether a folder is of a run that has begun to train."""
    return Path(path, "metrics.jsonl").is_file()


def runs(paths: list[str], curve: str = "val_loss") -> View:
    """Show one loss of each run over its steps, where each run stands, and how the runs differ."""
    found = curves(paths, curve)
    drawn = draw({path: thinned(points) for path, points in found.losses.items() if points}, "step", UNIT)
    pieces = [
        drawn or html.note("no such loss is written yet: the first comes with the first evaluation"),
        html.section("Where they stand", html.table(found.standings, HEAD)),
        html.section("Their settings", html.table(found.settings, ["setting", *paths])),
    ]
    return View(
        html=html.show(*pieces),
        results=[found],
        drawn=[found],
        python="from nanobackpack.app.runs import curves\n\n"
        f"found = curves({paths!r}, {curve!r})\nprint(found.table())\nprint(found.losses)\n",
        # No command of ours prints losses: they are text.
        command=shlex.join(["grep", "-H", f'"{curve}"', *(str(Path(p, "metrics.jsonl")) for p in paths)]),
        state={"curve": curve},
    )


def curves(paths: Sequence[str], curve: str = "val_loss") -> Curves:
    """Read one loss of each run, where each run stands, and how the runs differ."""
    records = {path: read_metrics(Path(path, "metrics.jsonl")) for path in paths}
    return Curves(
        title=f"{CURVES[curve]} loss",
        losses={path: losses(of_run, curve) for path, of_run in records.items()},
        standings=[standing(path, of_run) for path, of_run in records.items()],
        settings=settings_table(paths)[0],
    )


def losses(records: list[dict[str, Any]], curve: str) -> list[tuple[float, float]]:
    """Give the points (step, loss) of a curve; what is no finite number is left out."""
    found = [(r["step"], r[curve]) for r in records if type(r.get(curve)) is float]
    return [(step, loss) for step, loss in found if abs(loss) < 1e30]


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep as many points as can be seen: of each few in a row their mean, and the last one."""
    n = -(-len(points) // POINTS)
    if n <= 1:
        return points
    groups = [points[i : i + n] for i in range(0, len(points), n)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def standing(path: str, records: list[dict[str, Any]]) -> list[str]:
    """Say where a run stands: its last step, its losses, and whether it has ended."""
    end = next((r for r in records if r.get("event") == "end"), None)
    measured = [loss for _, loss in losses(records, "val_loss")]
    speeds = [r["tokens_per_s"] for r in records if type(r.get("tokens_per_s")) in (int, float)]
    last, target = max((r["step"] for r in records), default=0), run_settings(Path(path)).get("max_iters")
    took = end.get("elapsed_s") if end else None
    ended = "ended" if end else "not ended"
    return [
        path,
        f"{last:,}" + (f" of {target:,}" if type(target) is int else ""),
        f"{measured[-1]:.4f}" if measured else "–",
        f"{min(measured):.4f}" if measured else "–",
        f"{speeds[-1]:,.0f}" if speeds else "–",
        f"{ended} after {duration(took)}" if isinstance(took, int | float) else ended,
    ]


def settings_table(paths: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """List the settings that are not at their defaults, a run a column; those that differ come first."""
    usual = {field.name: field.default for field in fields(TrainConfig)}
    chosen = [run_settings(Path(path)) for path in paths]
    names = [n for n in usual if any(s.get(n, usual[n]) != usual[n] for s in chosen) and n != "out_dir"]
    rows = [[name, *(str(s.get(name, usual[name])) for s in chosen)] for name in names]
    return sorted(rows, key=lambda row: len(set(row[1:])) == 1), ["setting", *paths]
