"""What is measured: the rows of the table, and how the table, the file and the pictures are made of them.

    Case("train step", CHARS, "ms", "plain/ours", 2, inf, steps)

is a row: its name, the sizes, the unit, the two numbers whose ratio counts, the bounds that the ratio should
lie between, and the function that measures the numbers.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanobackpack.bench.plain import plain_logits
from nanobackpack.bench.work import Setup, Text
from nanobackpack.bench.workers import COLUMNS, KINDS, LIBRARY, Bench
from nanobackpack.config import ModelConfig
from nanobackpack.model.flops import flops_per_step
from nanobackpack.safe.files import writing
from nanobackpack.safe.pictures import picture
from nanobackpack.text.data import TokenData
from nanobackpack.train.checkpoint import build_model

ALL = (*KINDS, *LIBRARY) if find_spec("transformers") else KINDS
CACHED = tuple(kind for kind in ALL if kind != "plain")  # those that generate with a cache
CHARS = Setup(V=65, L=4, H=4, D=128, T=64, B=12, K=16)
WORDS = Setup(V=50304, L=6, H=6, D=384, T=256, B=4, K=16)
SHARED = "../shared/data"  # real texts and tokenizers, where the repository has them beside it
ENGLISH = Text(10, f"{SHARED}/gpt2", (f"{SHARED}/multilingual/en.txt", f"{SHARED}/tinyshakespeare/input.txt"))
CHINESE = Text(10, f"{SHARED}/zh/google_zh_vocab.txt", (f"{SHARED}/zh/hongloumeng.txt",))


class Case(NamedTuple):
    """A row of the table: the ratio of two of its numbers, and the bounds it should lie between."""

    what: str
    setup: Setup | Text
    unit: str
    compares: str  # such as plain/ours
    low: float
    high: float
    measure: Callable[[Bench, Any], dict[str, Any]]  # the numbers by name, and perhaps a "note"
    skip: bool = False

    def run(self, bench: Bench) -> dict[str, Any]:
        """Measure the row: what the file has of it."""
        numbers: dict[str, Any]
        try:
            numbers = {"note": "left out by --quick"} if self.skip else self.measure(bench, self.setup)
        except BrokenProcessPool:
            bench.close()
            numbers = {"note": "a process died: out of memory?"}
        above, below = (numbers.get(name) for name in self.compares.split("/"))
        ratio = above / below if below and above is not None else None
        at_most = f"{self.low:g} to {self.high:g}" if self.low else f"<= {self.high:.3g}"
        return {
            **{"what": self.what, "config": str(self.setup), "unit": self.unit},
            **{kind: numbers.get(kind) for kind in COLUMNS},
            "compares": self.compares,
            "ratio": ratio,
            "target": f">= {self.low:g}" if self.high == math.inf else at_most,
            "met": None if ratio is None else self.low <= ratio <= self.high,
            "note": numbers.get("note", ""),
        }


# --- What the rows measure --------------------------------------------------------------------


def steps(bench: Bench, setup: Setup, kinds: tuple[str, ...] = ALL) -> dict[str, Any]:
    return {kind.split()[0]: ms for kind, ms in bench.steps(setup, kinds).items()}


def steps_beside_others(bench: Bench, setup: Setup) -> dict[str, Any]:
    """A step while each core has another program to run as well, a loop in Python."""
    loop = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"  # ends even if we are killed
    tasks = {kind: bench.task(kind, setup, "step") for kind in KINDS}
    others = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(os.cpu_count() or 1)]
    try:
        return bench.turns(tasks, 2) | {"note": f"{len(others)} other programs run, a busy loop each"}
    finally:
        for other in others:
            other.kill()
            other.wait()


def memory(bench: Bench, setup: Setup, ours: str = "ours") -> dict[str, Any]:
    """What a step needs above the model and the optimizer's state: activations and gradients."""
    whole, above = {}, {}
    for kind in ("plain", ours):
        bench.close()  # so that the process is fresh, and alone
        name = kind.split()[0]
        whole[name], above[name] = (n / 1e6 for n in bench.ask(kind, setup, "memory"))
    bench.close()
    text = ", ".join(f"{kind} {cell_text(n)}" for kind, n in whole.items())
    return above | {"note": f"above model and optimizer state; the whole peak: {text}"}


def generate(bench: Bench, setup: Setup, n: int, samples: int = 1, some: int = 0) -> dict[str, Any]:
    """Sample n tokens; plain perhaps at `some` of the positions only, since it can take minutes."""
    tasks = {}
    for kind in ALL:
        bench.ask(kind, setup, "generate", 8, 1, 1.0, False, 0)  # the first is slow
        tasks[kind] = bench.task(kind, setup, "generate", n, samples, 1.0, False, some)
    notes = [f"plain at {some} of the positions"] * (some > 0) + ["plain: one sample"] * (samples > 1)
    return bench.turns(tasks, 1, warm=0) | {"note": ", ".join(notes)}


def generate_on(bench: Bench, setup: Setup, n: int, restart: bool) -> dict[str, Any]:
    """Take the likeliest token n times, past the end of the context: there the window slides or restarts."""
    tasks = {kind: bench.task(kind, setup, "generate", n, 1, 0.0, restart, 0) for kind in ("plain", "ours")}
    numbers = bench.turns(tasks, 1)
    if restart:
        return numbers | {"note": "plain slides"}
    same = bench.ask("plain", setup, "last_text") == bench.ask("ours", setup, "last_text")
    numbers["ours"] *= same  # what is wrong is not fast
    return numbers | {"note": "the same text" if same else "NOT THE SAME TEXT"}


def decode(bench: Bench, setup: Setup) -> dict[str, Any]:
    """A token that has not been met before, after half a context that is cached."""
    call = ("decode", setup.T // 2, 1, False, True)
    times = bench.turns({kind: bench.task(kind, setup, *call) for kind in CACHED}, 3)
    return times | {"note": f"at position {setup.T // 2}"}


def prefill(bench: Bench, setup: Setup) -> dict[str, Any]:
    """What comes after a prompt that fills the context."""
    return bench.turns({kind: bench.task(kind, setup, "prefill") for kind in CACHED}, 3)


def batch_of_prompts(bench: Bench, setup: Setup, n: int) -> dict[str, Any]:
    """Prompts of different lengths, n new tokens each."""
    return bench.turns({kind: bench.task(kind, setup, "batch_of_prompts", n) for kind in CACHED}, 1)


def topic(bench: Bench, setup: Setup, position: int, samples: int = 1) -> dict[str, Any]:
    """A token under topic control, next to one that is free of it."""
    on, off = (bench.task("ours", setup, "decode", position, samples, yes) for yes in (True, False))
    numbers = bench.turns({"ours": on, "free": off}, 3)
    return numbers | {"note": f"position {position}, samples: {samples}; free: {cell_text(numbers['free'])}"}


def nearest(bench: Bench, setup: Setup, words: int) -> dict[str, Any]:
    """The nearest tokens of a word in all of its senses, for one word or for some at once."""
    times = bench.turns({kind: bench.task(kind, setup, "nearest", words) for kind in ("ours", "plain")}, 2)
    return times | {"note": f"a word, of {words} at once; plain: loops over a sample, scaled"}


def batch_from_disk(bench: Bench, setup: Setup) -> dict[str, Any]:
    """A batch of T1024 B32 from files, and a step of that many tokens."""
    T, B = 1024, 32
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            ids = setup._replace(T=1 << 20, B=1).ids(0)
            ids.numpy().astype("<u2").tofile(Path(folder) / f"{split}.bin")
        data, draw = TokenData(folder), torch.Generator().manual_seed(0)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            data.batch("train", B, T, draw)
            times.append(time.perf_counter() - start)
    scale = T * B / (setup.T * setup.B)
    step = bench.steps(setup)["ours"] * scale
    note = f"a batch of T{T} B{B} in a step of {cell_text(step)} ms: {scale:g} times this one's, by tokens"
    return {"ours": 1000 * statistics.median(times), "step": step, "note": note}


def prepare(bench: Bench, text: Text, peak: bool = False) -> dict[str, Any]:
    """MB/s from a text file to .bin, or the most memory this takes."""
    missing = [path for path in text.sources if not Path(path).exists()]
    if missing:
        return {"note": f"{missing[0]} is not here"}
    with tempfile.TemporaryDirectory() as folder:
        # Python's own help texts are English that is on every machine.
        pages = [Path(p).read_bytes() for p in text.sources] or [topics[t].encode() for t in sorted(topics)]
        once = b"\n".join(pages)
        text = text._replace(file=f"{folder}/text.txt")
        with open(text.file, "wb") as file:
            for _ in range(text.mb * 10**6 // len(once) + 1):
                file.write(once)
        if peak:
            bench.close()  # so that the process is fresh
            n_bytes, speed = bench.ask("ours", text, "memory")
            return {"ours": n_bytes / 1e6, "limit": 1000.0, "note": f"limit 1 GB; {cell_text(speed)} MB/s"}
        speeds = bench.turns({kind: bench.task(kind, text, "encode") for kind in ("plain", "ours")}, 2)
    return speeds | {"note": "plain: the tokenizers library alone, without reading or writing"}


def count(bench: Bench, setup: Setup, kind: str) -> dict[str, Any]:
    """Operations of a step in GFLOP, as we count them and as torch does."""
    config, B = setup.model(kind), setup.B
    return {"ours": flops_per_step(config, B) / 1e9, "torch": counted_flops(config, B) / 1e9}


def counted_flops(config: ModelConfig, batch_size: int) -> int:
    """What torch counts in forward and backward of the plain formula, without computing anything."""
    with torch.device("meta"):
        model, ids = build_model(config), torch.zeros(batch_size, config.block_size, dtype=torch.int64)
    # A fused attention would count as one operation, or none.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_logits(model, ids).sum().backward()
    return counter.get_total_flops()


# --- The table --------------------------------------------------------------------------------


def cases(quick: bool) -> list[Case]:
    """The rows on a CPU, in order; gpu.py has those on a GPU."""
    chars4, inf, some = CHARS._replace(K=4), math.inf, 20 * quick
    slide, long, words = chars4._replace(B=1), chars4._replace(B=1, T=512), WORDS._replace(B=1, T=512)
    large = Setup(V=50304, L=12, H=12, D=768, T=1024, B=2, K=16)
    small = large._replace(T=512, B=1)  # the size of GPT-2 small
    senses = Setup(V=2000 if quick else 50257, L=1, H=12, D=768, T=64, B=1, K=16)
    text, two = Text(2 if quick else 10, "bpe:8192"), ("ours", "gpt")
    recompute = partial(memory, ours="ours recompute")
    slides, restarts = (partial(generate_on, n=500, restart=restart) for restart in (False, True))
    many, few = partial(generate, n=500, some=some), partial(generate, n=300, some=some)
    rows = [
        Case("train step", CHARS, "ms", "plain/ours", 2, inf, steps),
        Case("train step", chars4, "ms", "plain/ours", 1.4, inf, steps),
        Case("train step", WORDS, "ms", "plain/ours", 2.5, inf, steps),
        Case("train step, busy cores", chars4, "ms", "plain/ours", 10, inf, steps_beside_others),
        Case("train step, busy cores, GPT", chars4, "ms", "ours/gpt", 0, 1.15, steps_beside_others, quick),
        Case("train step, GPT", CHARS, "ms", "ours/gpt", 0, 1.15, steps),
        Case("train step, GPT", chars4, "ms", "ours/gpt", 0, 1.15, steps),
        Case("train step, GPT", WORDS._replace(B=32), "ms", "ours/gpt", 0, 1.15,
             partial(steps, kinds=two), quick),
        Case("train step, transformers", CHARS, "ms", "ours/transformers", 0, 1.15, steps),
        Case("train step, transformers", chars4, "ms", "ours/transformers", 0, 1.15, steps),
        Case("train step, transformers", WORDS, "ms", "ours/transformers", 0, 1.15, steps),
        Case("memory of a step", large, "MB", "ours/plain", 0, 1 / 3, memory, quick),
        Case("memory, recompute", large, "MB", "ours/plain", 0, 1 / 3, recompute, quick),
        Case("generate 500", long, "tokens/s", "ours/plain", 25, inf, many),
        Case("generate 10 x 500", long, "tokens/s", "ours/plain", 100, inf, partial(many, samples=10)),
        Case("generate 500, slides", slide, "tokens/s", "ours/plain", 3, inf, slides),
        Case("generate 500, restarts", slide, "tokens/s", "ours/plain", 15, inf, restarts),
        Case("generate 300", words, "tokens/s", "ours/plain", 15, inf, few),
        Case("decode, GPT", words, "ms", "ours/gpt", 0, 1.15, decode),
        Case("decode, GPT", small, "ms", "ours/gpt", 0, 1.15, decode, quick),
        Case("prefill, GPT", small, "ms", "ours/gpt", 0, 1.15, prefill, quick),
        Case("prefill, GPT", words, "ms", "ours/gpt", 0, 1.15, prefill),
        Case("100 tokens after 8 prompts", words._replace(B=8), "tokens/s", "ours/transformers", 1, inf,
             partial(batch_of_prompts, n=100), quick),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, partial(topic, position=256)),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, partial(topic, position=512)),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3,
             partial(topic, position=256, samples=10), quick),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3,
             partial(topic, position=512, samples=10), quick),
        Case("nearest tokens", senses, "ms", "plain/ours", 100, inf, partial(nearest, words=1)),
        Case("nearest tokens", senses, "ms", "plain/ours", 100, inf, partial(nearest, words=32)),
        Case("batch from disk", WORDS, "ms", "ours/step", 0, 0.02, batch_from_disk),
        Case("prepare text", text, "MB/s", "ours/plain", 0.8, inf, prepare),
        Case("prepare text", ENGLISH, "MB/s", "ours/plain", 0.8, inf, prepare, quick),
        Case("prepare text", CHINESE, "MB/s", "ours/plain", 0.8, inf, prepare, quick),
        Case("prepare text, memory", text._replace(mb=1000), "MB", "ours/limit", 0, 1,
             partial(prepare, peak=True), quick),
        Case("FLOP count", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, partial(count, kind="ours")),
        Case("FLOP count, GPT", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, partial(count, kind="gpt")),
    ]  # fmt: skip
    return rows


WIDTHS = {
    "what": 30, "config": 35, "unit": 8,
    "ours": -8, "plain": -8, "gpt": -8, "transformers": -12, "exported": -8, "compares": 17,
    "ratio": -6, "target": 12, "met": 3, "note": 0,
}  # fmt: skip


def line(cells: dict[str, Any]) -> str:
    """A row of the table, its cells aligned: on the right where the width is negative."""
    texts = ((cell_text(cells[name]), width) for name, width in WIDTHS.items())
    return "  ".join(text.rjust(-width) if width < 0 else text.ljust(width) for text, width in texts)


def cell_text(value: Any) -> str:
    if isinstance(value, float):  # three digits or more
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return {None: "-", True: "yes", False: "NO"}.get(value, str(value))


# --- The program ------------------------------------------------------------------------------


def table(rows: Iterable[dict[str, Any]], device: str, file: str = "") -> None:
    """Print each row as soon as it is measured; write those there are to the file, each time."""
    about, done = machine(device), []
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(line({name: name for name in WIDTHS}), flush=True)
    for row in rows:
        done.append(row)
        print(line(row), flush=True)
        if file:
            with writing(file) as f:
                f.write((json.dumps({"machine": about, "rows": done}, indent=2) + "\n").encode())


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on. Where `load` says that other programs ran too, do not trust them."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((text.split(": ")[1] for text in lines if text.startswith("model name")), cpu)
    about: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    about["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    about |= {"torch": torch.__version__, "python": platform.python_version()}
    return about | {"device": torch.cuda.get_device_name(device) if "cuda" in device else device}


def profile(bench: Bench, file: Path) -> None:
    for kind in KINDS:
        trace = file.with_name(f"{file.stem}-{kind}{file.suffix or '.json'}")
        bench.ask(kind, WORDS, "profile", str(trace))
        print(f"a step of {kind} is in {trace}: open it in ui.perfetto.dev")


def plot(bench: Bench, file: Path) -> None:
    """Draw the time of a step over each of four sizes, the others unchanged."""
    from matplotlib.ticker import LogLocator

    sizes = {"T": (16, 64, 256), "K": (1, 4, 16, 64), "V": (65, 512, 4096, 50304), "B": (1, 4, 16, 64)}
    bench.quick = True  # a point of a curve need not be as exact as a row
    with picture(writing(file), (9, 7)) as figure:
        for axes, (name, values) in zip(figure.subplots(2, 2).flat, sizes.items(), strict=True):
            times = [bench.steps(CHARS._replace(**{name: value})) for value in values]
            for kind in KINDS:
                axes.plot(values, [t[kind] for t in times], marker=".", label=kind)
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="step (ms)")
            axes.set_xticks(values, [str(value) for value in values])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            axes.grid(alpha=0.3)
            axes.legend()
        figure.suptitle(f"training step on {bench.device}; where not varied, {CHARS}")
