"""The benchmark measures and reports what it says; how fast anything is, no test may ask."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PAPER, TINY

from nanobackpack.bench import BenchConfig, cases, gpu, main, workers
from nanobackpack.bench.cases import Case
from nanobackpack.bench.work import Setup, Text
from nanobackpack.bench.workers import Bench
from nanobackpack.config import ModelConfig
from nanobackpack.model.flops import flops_per_step, peak_flops

SMALL = Setup(V=23, L=3, H=2, D=16, T=12, B=2, K=4)
MANY = SMALL._replace(V=64)  # more tokens than the model is wide
KEYS = {"what", "config", "unit", *workers.COLUMNS, "compares", "ratio", "target", "met", "note"}


@pytest.mark.parametrize("settings", [{}, {"bias": True}, PAPER, {"model_name": "gpt2"}])
def test_flops_are_those_torch_counts_on_the_plain_formula(settings: dict[str, Any]) -> None:
    config = ModelConfig(**TINY | settings)
    assert flops_per_step(config, 3) == pytest.approx(cases.counted_flops(config, 3), rel=0.01)
    assert flops_per_step(config, 3, length=5) < flops_per_step(config, 3)


def test_the_peak_is_known_for_some_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu")) is None
    for name, peak in {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA GeForce RTX 4090": 165e12,
        "Voodoo2": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak


@pytest.mark.parametrize(
    ("compares", "low", "high", "ratio", "target", "met"),
    [
        ("plain/ours", 2, math.inf, 3.0, ">= 2", True),
        ("plain/ours", 4, math.inf, 3.0, ">= 4", False),
        ("ours/gpt", 0, 1.15, 1.25, "<= 1.15", False),
        ("ours/plain", 0.3, 0.4, 1 / 3, "0.3 to 0.4", True),
        ("ours/peak", 0.45, math.inf, None, ">= 0.45", None),
    ],
)
def test_a_row_compares_the_numbers_it_names(
    compares: str, low: float, high: float, ratio: float | None, target: str, met: bool | None
) -> None:
    numbers = {"ours": 5.0, "plain": 15.0, "gpt": 4.0}
    row = Case("x", SMALL, "ms", compares, low, high, lambda *_: numbers).run(Bench("cpu", quick=True))
    assert row.keys() == KEYS
    assert row["ratio"] == (None if ratio is None else pytest.approx(ratio))
    assert (row["target"], row["met"]) == (target, met)


def test_what_is_left_out_is_not_measured() -> None:
    for case in cases.cases(quick=True):
        if case.skip:
            row = case.run(Bench("cpu", quick=True))
            assert row["met"] is None
            assert "--quick" in row["note"]


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_the_measures_end_in_a_table_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SECONDS", (0.0, 0.0))
    inf, decoded, named = math.inf, MANY._replace(T=32), SMALL._replace(V=200)
    slides, restarts = (partial(cases.generate_on, n=20, restart=restart) for restart in (False, True))
    ten = partial(cases.generate, n=8, samples=10, some=2)
    table = [
        Case("step", SMALL, "ms", "plain/ours", 2, inf, cases.steps),
        Case("busy", SMALL, "ms", "plain/ours", 10, inf, cases.steps_beside_others),
        Case("slides", SMALL, "tokens/s", "ours/plain", 2, inf, slides),
        Case("step", MANY, "ms", "ours/gpt", 0, 1.15, cases.steps),
        Case("ten", SMALL, "tokens/s", "ours/plain", 2, inf, ten),
        Case("restarts", SMALL, "tokens/s", "ours/plain", 2, inf, restarts),
        Case("decode", decoded, "ms", "ours/gpt", 0, 1.15, cases.decode),
        Case("prefill", decoded, "ms", "ours/gpt", 0, 1.15, cases.prefill),
        Case(
            "prompts",
            decoded._replace(B=3),
            "tokens/s",
            "exported/transformers",
            1,
            inf,
            partial(cases.batch_of_prompts, n=4),
        ),
        Case("topic", decoded, "ms", "ours/free", 0, 1.3, partial(cases.topic, position=16, samples=2)),
        Case("nearest", named, "ms", "plain/ours", 100, inf, partial(cases.nearest, words=3)),
        Case("batch", SMALL, "ms", "ours/step", 0, 0.02, cases.batch_from_disk),
        Case("prepare", Text(1, "bpe:300"), "MB/s", "ours/plain", 0.8, inf, cases.prepare),
        Case("peak", Text(1, "char"), "MB", "ours/limit", 0, 1, partial(cases.prepare, peak=True)),
        Case("memory", MANY, "MB", "ours/plain", 0, 1 / 3, partial(cases.memory, ours="ours recompute")),
    ]
    bench = Bench("cpu", quick=True)
    try:
        cases.table((case.run(bench) for case in table), "cpu", str(tmp_path / "bench.json"))
    finally:
        bench.close()
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {"cpu", "cores", "torch", "device"} <= result["machine"].keys()
    assert [row["what"] for row in result["rows"]] == [case.what for case in table]
    for row in result["rows"]:
        assert row.keys() == KEYS
        assert row["ratio"] > 0, row
        above, below = (row.get(name) for name in row["compares"].split("/"))
        if below is not None:
            assert row["ratio"] == pytest.approx(above / below)
        if row["what"] == "slides":
            assert "the same text" in row["note"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(table)  # the machine, the head, the rows
    assert lines[2].startswith(table[0].what)


def test_only_plain_has_the_threads_of_stock_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    bench = Bench("cpu", quick=True)
    try:
        show = [sys.executable, "-c", "import os; print(os.environ.get('GOMP_SPINCOUNT'))"]
        seen = [
            bench.worker(kind).submit(subprocess.check_output, show).result() for kind in ("plain", "ours")
        ]
    finally:
        bench.close()
    assert [value.split() for value in seen] == [[b"None"], [b"1000"]]


def test_a_process_that_died_is_a_note_in_its_row() -> None:
    def dies(bench: Bench, setup: Setup) -> dict[str, Any]:
        raise BrokenProcessPool

    row = Case("x", SMALL, "ms", "ours/plain", 0, 1, dies).run(Bench("cpu", quick=True))
    assert (row["ours"], row["met"]) == (None, None)
    assert "died" in row["note"]


def test_only_chooses_rows_by_name(tmp_path: Path) -> None:
    main(BenchConfig(device="cpu", only="flop", json=str(tmp_path / "flops.json")))
    rows = json.loads((tmp_path / "flops.json").read_text())["rows"]
    assert [row["met"] for row in rows] == [True, True]


@pytest.mark.parametrize(
    "only", ["sum: ours", "sum: scaled", "sum: the same", "head: ours", "step: ours", "generate 1"]
)
def test_the_rows_of_a_gpu(only: str) -> None:
    """On a CPU and in small: the ways that need no compiler agree with the plain formula."""
    rows = [*gpu.rows(torch.device("cpu"), only, MANY._replace(D=24, T=16), (2, 1))]
    assert rows
    for row in rows:
        assert row.keys() == KEYS
        assert row["ours"] or row["plain"] or row["gpt"], row
        if "error" in row["note"]:
            assert float(row["note"].split("error ")[1]) < 1e-5
