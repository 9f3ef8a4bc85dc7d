"""Measure speed and memory: the plain formula, this package, a GPT, and transformers' models, side by side.

    nanobackpack bench                                  # the whole table, twenty minutes on a laptop
    nanobackpack bench --quick                          # a minute or two: fewer repetitions, smaller sizes
    nanobackpack bench --only="train step" --json=bench.json
    nanobackpack bench --only=none --plot=bench.png     # no table: the time of a step over T, K, V and B
    nanobackpack bench --device=cuda                    # the table for a GPU, see gpu.py

The columns are programs, each in a process of its own:

    ours          this package, as its programs run it
    plain         the original's formula as its users run it: stock PyTorch in its default environment, AdamW
                  as nanoGPT makes it, generation that recomputes every position, Python loops over tokens;
                  and the tokenizers library by itself
    gpt           nanobackpack.GPT, run as ours, with as many Transformer blocks as the Backpack has
    transformers  the library's GPT-2 of the same sizes, in its default environment
    exported      the same Backpack exported, as the transformers library runs it

The last two need pip install 'nanobackpack[hub]'; without it these columns stay empty.

They take turns, so that whatever else the machine does slows all of them alike, and the table has medians.
Each row says which two numbers make its ratio and where that ratio should lie. See cases.py for what is
measured, work.py and workers.py for how.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack.config import Settings
from nanobackpack.safe.files import check_writable


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Settings):
    """Speed and memory of the plain formula, of this package and of a GPT, side by side."""

    quick: bool = False
    """Measure for a minute or two: fewer repetitions, and without the rows that take long."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, cuda, ..."""
    json: str = ""
    """File for the results."""
    profile: str = ""
    """File for torch's profile of a training step; the name of each program is added to it."""
    plot: str = ""
    """File for a picture of the time of a step over T, K, V and B."""
    only: str = ""
    """Measure only the rows whose name contains this."""


def main(settings: BenchConfig) -> None:
    """Measure the rows that are asked for, then profile and draw if asked to."""
    # torch and everything that needs it come in here, so that `nanobackpack bench --help` is quick
    from nanobackpack.bench import gpu
    from nanobackpack.bench.cases import cases, plot, profile, table
    from nanobackpack.bench.workers import Bench
    from nanobackpack.runtime import pick_device

    for path in (settings.json, settings.profile, settings.plot):
        check_writable(path)
    device = pick_device(settings.device)
    bench = Bench(str(device), settings.quick)
    try:
        chosen = [case for case in cases(settings.quick) if settings.only.lower() in case.what.lower()]
        on_gpu = device.type == "cuda"
        rows = gpu.rows(device, settings.only) if on_gpu else (case.run(bench) for case in chosen)
        table(rows, str(device), settings.json)
        if settings.profile:
            profile(bench, Path(settings.profile))
        if settings.plot:
            plot(bench, Path(settings.plot))
    finally:
        bench.close()
