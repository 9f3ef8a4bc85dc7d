"""The tab Train: the losses of runs in one picture, while they train too, and how their settings differ."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanobackpack.app import html
from nanobackpack.app.curve import curve as draw
from nanobackpack.app.view import View
from nanobackpack.config import TrainConfig
from nanobackpack.train.checkpoint import run_settings
from nanobackpack.train.log import duration, read_metrics

POINTS = 400  # of a curve that are drawn, at most
CURVES = {"val_loss": "validation", "train_eval_loss": "training split", "train_loss": "training batch"}


def is_run(path: str) -> bool:
    """Tell whether a folder is of a run that has begun to train."""
    return Path(path, "metrics.jsonl").is_file()


def runs(paths: list[str], curve: str = "val_loss") -> View:
    """Show one loss of each run over its steps, where each run stands, and how the runs differ."""
    records = {path: read_metrics(Path(path, "metrics.jsonl")) for path in paths}
    lines = {path: thinned(losses(records[path], curve)) for path in paths}
    drawn = draw({path: points for path, points in lines.items() if points}, "step", "nats per token")
    head = ["run", "step", "validation loss", "best", "tokens/s", "state"]
    pieces = [
        drawn or html.note("no such loss is written yet: the first comes with the first evaluation"),
        html.section("Where they stand", html.table([standing(p, r) for p, r in records.items()], head)),
        html.section("Their settings", html.table(*settings_table(paths))),
    ]
    read = f"[json.loads(line) for line in open({str(Path(paths[0], 'metrics.jsonl'))!r})]" if paths else "[]"
    return View(
        html=html.show(*pieces),
        python=f"import json\n\nrecords = {read}\n"
        f"print([(r['step'], r[{curve!r}]) for r in records if {curve!r} in r])",
        command=shlex.join(["nanobackpack", "explore", "--out_dir", *paths]),
        state={"curve": curve},
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


def settings_table(paths: list[str]) -> tuple[list[list[str]], list[str]]:
    """List the settings that are not at their defaults, a run a column; those that differ come first."""
    usual = {field.name: field.default for field in fields(TrainConfig)}
    chosen = [run_settings(Path(path)) for path in paths]
    names = [n for n in usual if any(s.get(n, usual[n]) != usual[n] for s in chosen) and n != "out_dir"]
    rows = [[name, *(str(s.get(name, usual[name])) for s in chosen)] for name in names]
    return sorted(rows, key=lambda row: len(set(row[1:])) == 1), ["setting", *paths]
