"""What is measured: the rows of the table, and how the table, the file and the pictures are made of them.

    Case("train step", CHARS, "ms", "plain/ours", 2, inf, steps("plain", "ours", "gpt"))

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
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanobackpack.bench import BenchConfig
from nanobackpack.bench.plain import plain_logits
from nanobackpack.bench.workers import KINDS, Bench, Setup, Text
from nanobackpack.config import ModelConfig
from nanobackpack.runtime import pick_device
from nanobackpack.safe.files import replacing
from nanobackpack.text.data import TokenData
from nanobackpack.train.checkpoint import build
from nanobackpack.train.log import flops_per_step, peak_flops

CHARS = Setup(V=65, L=4, H=4, D=128, T=64, B=12, K=16)
WORDS = Setup(V=50304, L=6, H=6, D=384, T=256, B=4, K=16)
SHARED = Path("../shared/data")  # more texts and tokenizers, where the repository has them beside it
SOURCES = {
    "English": ("multilingual/en.txt", "tinyshakespeare/input.txt"),
    "Chinese": ("zh/hongloumeng.txt", "zh/sanguo_yanyi.txt"),
}

Measure = Callable[[Bench, Any], dict[str, Any]]  # the numbers of a row by name, and perhaps a "note"


class Case(NamedTuple):
    """A row of the table: the ratio of two of its numbers, and the bounds it should lie between."""

    what: str
    setup: Setup | Text
    unit: str
    compares: str  # such as plain/ours
    low: float
    high: float
    measure: Measure
    skip: bool = False

    def run(self, bench: Bench) -> dict[str, Any]:
        numbers: dict[str, Any]
        try:
            numbers = {"note": "left out by --quick"} if self.skip else self.measure(bench, self.setup)
        except EOFError:
            bench.close()
            numbers = {"note": "a process died: out of memory?"}
        above, below = (numbers.get(name) for name in self.compares.split("/"))
        ratio = above / below if below and above is not None else None
        at_most = f"{self.low:g} to {self.high:g}" if self.low else f"<= {self.high:.3g}"
        return {
            **{"what": self.what, "config": str(self.setup), "unit": self.unit},
            **{kind: numbers.get(kind) for kind in ("ours", "plain", "gpt")},
            "compares": self.compares,
            "ratio": ratio,
            "target": f">= {self.low:g}" if self.high == math.inf else at_most,
            "met": None if ratio is None else self.low <= ratio <= self.high,
            "note": numbers.get("note", ""),
        }


# --- Training ---------------------------------------------------------------------------------


def steps(*kinds: str) -> Measure:
    return lambda bench, setup: {k.split()[0]: ms for k, ms in bench.steps(setup, kinds).items()}


def memory(ours: str) -> Measure:
    """What a step needs above the model and the optimizer's state: activations and gradients."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        whole, above = {}, {}
        for kind in ("plain", ours):
            bench.close()  # so that the process is fresh, and alone
            name = kind.split()[0]
            whole[name], above[name] = (n / 1e6 for n in bench.ask(kind, setup, "memory"))
        bench.close()
        text = ", ".join(f"{kind} {cell_text(n)}" for kind, n in whole.items())
        return above | {"note": f"above model and optimizer state; the whole peak: {text}"}

    return measure


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


def utilisation(bench: Bench, setup: Setup) -> dict[str, Any]:
    """TFLOP/s in a step, as the plain formula counts them, and the most the device could do."""
    numbers = {k: flops_per_step(setup.model(k), setup.B) / ms / 1e9 for k, ms in bench.steps(setup).items()}
    peak = peak_flops(torch.device(bench.device))
    return numbers | ({"peak": peak / 1e12} if peak else {"note": "the peak of this device is not known"})


def count(kind: str) -> Measure:
    return lambda bench, setup: {
        "ours": flops_per_step(setup.model(kind), setup.B) / 1e9,
        "torch": counted_flops(setup.model(kind), setup.B) / 1e9,
    }


def counted_flops(config: ModelConfig, batch_size: int) -> int:
    """What torch counts in forward and backward of the plain formula, without computing anything."""
    with torch.device("meta"):
        model, ids = build(config), torch.zeros(batch_size, config.block_size, dtype=torch.int64)
    # A fused attention would count as one operation, or none.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_logits(model, ids).sum().backward()
    return counter.get_total_flops()


# --- Generation -------------------------------------------------------------------------------


def generate(
    n: int, samples: int = 1, temperature: float = 1.0, some: int = 0, restart: bool = False
) -> Measure:
    """Generate n tokens; plain perhaps at `some` of the positions only, since it can take minutes."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        for kind in ("plain", "ours"):
            bench.ask(kind, setup, "generate", 8, 1, temperature, 0, False)
        plain, ours = (n, 1, temperature, some, False), (n, samples, temperature, 0, restart)
        numbers: dict[str, Any] = bench.compare(setup, "generate", {"plain": plain, "ours": ours}, least=1)
        notes = [f"plain at {some} of the positions"] if some else ["plain slides"] if restart else []
        if samples > 1:
            notes.append("plain: one sample, since it makes one after the other")
        if temperature == 0 and not restart:
            same = bench.ask("plain", setup, "last_text") == bench.ask("ours", setup, "last_text")
            notes.append("the same text" if same else "NOT THE SAME TEXT")
            numbers["ours"] *= same  # what is wrong is not fast
        return numbers | {"note": ", ".join(notes)}

    return measure


def decode(bench: Bench, setup: Setup) -> dict[str, Any]:
    call = (setup.T // 2, 8)
    times = bench.compare(setup, "decode", {"ours": call, "gpt": call}, least=3)
    return {k: 1000 * t for k, t in times.items()} | {"note": f"after {setup.T // 2} cached positions"}


# --- Analysis and control ---------------------------------------------------------------------


def nearest(words: int) -> Measure:
    """The nearest tokens of a word in all of its senses, for one word or some at once."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        times = bench.compare(setup, "nearest", {"ours": (words,), "plain": (1,)})
        note = "a word" + f" of {words}" * (words > 1) + "; the loop over a sample of the tokens, scaled"
        return {kind: 1000 * t for kind, t in times.items()} | {"note": note}

    return measure


def topic_token(samples: int, at_end: bool) -> Measure:
    """A token under topic control and one without, in the middle of the context or at its end."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        position = setup.T if at_end else setup.T // 2
        tasks = {
            name: lambda on=on: 1000 * bench.ask("ours", setup, "topic_token", samples, position, on)
            for name, on in (("ours", True), ("free", False))
        }
        for task in tasks.values():
            task()  # fills the cache
        numbers = bench.turns(tasks, least=3)
        note = f"samples: {samples}, up to position {position}; without control {cell_text(numbers['free'])}"
        return numbers | {"note": note}

    return measure


# --- Preparing text ---------------------------------------------------------------------------


def encode(bench: Bench, text: Text) -> dict[str, Any]:
    """MB/s from a text file to .bin."""
    with written(text) as text:
        if not text.file:
            return {"note": f"needs the texts of {SHARED}"}
        speeds = bench.compare(text, "encode", {"plain": (), "ours": ()})
    return speeds | {"note": "plain: the tokenizers library alone, without reading or writing"}


def encode_memory(bench: Bench, text: Text) -> dict[str, Any]:
    """The most memory of a process that prepares a large text: it should not depend on the text's size."""
    bench.close()  # so that the process is fresh
    with written(text) as text:
        peak, speed = bench.ask("ours", text, "memory")
    return {"ours": peak / 1e6, "limit": 1000.0, "note": f"limit: 1 GB; at {cell_text(speed)} MB/s"}


@contextlib.contextmanager
def written(text: Text) -> Iterator[Text]:
    """The text in a file for as long as this lasts; without a file where its sources are missing."""
    with tempfile.TemporaryDirectory() as folder:
        file, least = Path(folder) / "text.txt", text.mb * 10**6
        if text.what == "made-up words":
            write_words(file, least)
        else:
            sources = [SHARED / name for name in SOURCES.get(text.what, ())]
            if not all(source.exists() for source in sources):
                yield text
                return
            # Python's own help texts are English that is on every machine.
            pages = [source.read_bytes() for source in sources] or [
                topics[t].encode() for t in sorted(topics)
            ]
            once = b"\n".join(pages)
            file.write_bytes(once * (least // len(once) + 1))
        yield text._replace(file=str(file))


def write_words(file: Path, least: int) -> None:
    """Write so many bytes of made-up words and runs of Chinese characters, few of them repeated."""
    random, n_bytes = np.random.default_rng(0), 0
    syllables = np.array([c + v for c in "bdfgklmnprstvz" for v in "aeiou"])
    with open(file, "w", encoding="utf-8") as text:
        while n_bytes < least:
            words = ["".join(random.choice(syllables, n)) for n in random.integers(1, 5, 2000)]
            runs = [random.integers(0x4E00, 0x9FA5, n) for n in random.integers(1, 30, 200)]
            words += ["".join(map(chr, run)) for run in runs]
            random.shuffle(words)
            document = " ".join(words) + "\n\n"
            for _ in range(10):  # as often as a generator this slow needs
                text.write(document)
                n_bytes += len(document.encode())


# --- The table --------------------------------------------------------------------------------


def cases(quick: bool, cuda: bool) -> list[Case]:
    """The table, in order."""
    chars4, inf, two, three = CHARS._replace(K=4), math.inf, steps("ours", "gpt"), steps(*KINDS)
    slide, long, words = chars4._replace(B=1), chars4._replace(B=1, T=512), WORDS._replace(B=1, T=512)
    large, some = Setup(V=50304, L=12, H=12, D=768, T=1024, B=12 if cuda else 2, K=16), 20 * quick
    whole = Setup(V=2000 if quick else 50257, L=1, H=12, D=768, T=64, B=1, K=16)
    help_text = Text("Python's help", 2 if quick else 10, "bpe:8192")
    english, chinese = (
        Text("English", 10, f"{SHARED}/gpt2"),
        Text("Chinese", 10, f"{SHARED}/zh/google_zh_vocab.txt"),
    )
    large_text = Text("made-up words", 1000, "bpe:8192")
    rows = [
        Case("train step", CHARS, "ms", "plain/ours", 2, inf, three),
        Case("train step", chars4, "ms", "plain/ours", 1.4, inf, three),
        Case("train step", WORDS, "ms", "plain/ours", 2.5, inf, three),
        Case("train step, GPT", CHARS, "ms", "ours/gpt", 0, 1.15, three),
        Case("train step, GPT", chars4, "ms", "ours/gpt", 0, 1.15, three),
        Case("train step, GPT", WORDS._replace(B=32), "ms", "ours/gpt", 0, 1.15, two, skip=quick),
        Case("memory of a step", large, "MB", "ours/plain", 0, 1 / 3, memory("ours"), skip=quick),
        Case("memory, recompute", large, "MB", "ours/plain", 0, 1 / 3, memory("ours recompute"), skip=quick),
        Case("generate 500", long, "tokens/s", "ours/plain", 25, inf, generate(500, some=some)),
        Case("generate 10 x 500", long, "tokens/s", "ours/plain", 100, inf, generate(500, 10, some=some)),
        Case("generate 500, slides", slide, "tokens/s", "ours/plain", 3, inf, generate(500, temperature=0)),
        Case("generate 500, restarts", slide, "tokens/s", "ours/plain", 15, inf,
             generate(500, temperature=0, restart=True)),
        Case("generate 300", words, "tokens/s", "ours/plain", 15, inf, generate(300, some=some // 2)),
        Case("decode, GPT", words, "ms", "ours/gpt", 0, 1.15, decode),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, topic_token(1, False)),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, topic_token(1, True)),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, topic_token(10, False), skip=quick),
        Case("topic-controlled token", words, "ms", "ours/free", 0, 1.3, topic_token(10, True), skip=quick),
        Case("nearest tokens", whole, "ms", "plain/ours", 100, inf, nearest(1)),
        Case("nearest tokens, 32 words", whole, "ms", "plain/ours", 100, inf, nearest(32)),
        Case("batch from disk", WORDS, "ms", "ours/step", 0, 0.02, batch_from_disk),
        Case("prepare text", help_text, "MB/s", "ours/plain", 0.8, inf, encode),
        Case("prepare text", english, "MB/s", "ours/plain", 0.8, inf, encode, skip=quick),
        Case("prepare text", chinese, "MB/s", "ours/plain", 0.8, inf, encode, skip=quick),
        Case("prepare text, memory", large_text, "MB", "ours/limit", 0, 1, encode_memory, skip=quick),
        Case("FLOP count", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, count("ours")),
        Case("FLOP count, GPT", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, count("gpt")),
    ]  # fmt: skip
    return rows + cuda * [
        Case("train step", large, "ms", "plain/ours", 3, inf, three),
        Case("train step, compiled", large, "ms", "plain/ours", 0, inf, steps("plain compiled", "ours")),
        Case("train step, GPT", large, "ms", "ours/gpt", 0, 1.15, three),
        Case("MFU", large, "TFLOP/s", "ours/peak", 0.45, inf, utilisation),
    ]


# --- The program ------------------------------------------------------------------------------

WIDTHS = {
    "what": 25, "config": 35, "unit": 8, "ours": -8, "plain": -8, "gpt": -8,
    "compares": 10, "ratio": -6, "target": 12, "met": 3, "note": 0,
}  # fmt: skip


def run(settings: BenchConfig) -> None:
    """Measure the rows that are asked for, then profile and draw if asked to."""
    device = str(pick_device(settings.device))
    bench = Bench(device, settings.quick)
    try:
        chosen = cases(settings.quick, cuda=device.startswith("cuda"))
        table(bench, [c for c in chosen if settings.only.lower() in c.what.lower()], settings.json)
        if settings.profile:
            profile(bench, Path(settings.profile))
        if settings.plot:
            plot(bench, Path(settings.plot))
    finally:
        bench.close()


def table(bench: Bench, cases: list[Case], file: str = "") -> None:
    """Print each row as soon as it is measured; write all of them to the file."""
    about, rows = machine(bench.device), []
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(line({name: name for name in WIDTHS}))
    for case in cases:
        rows.append(case.run(bench))
        print(line(rows[-1]), flush=True)
    if file:
        with replacing(Path(file)) as f:
            f.write((json.dumps({"machine": about, "rows": rows}, indent=2) + "\n").encode())


def line(cells: dict[str, Any]) -> str:
    """A row of the table, its cells aligned: on the right where the width is negative."""
    texts = ((cell_text(cells[name]), width) for name, width in WIDTHS.items())
    return "  ".join(text.rjust(-width) if width < 0 else text.ljust(width) for text, width in texts)


def cell_text(value: Any) -> str:
    if isinstance(value, float):  # three digits or more
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return {None: "-", True: "yes", False: "NO"}.get(value, str(value))


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on. Where `load` says that other programs run too, do not trust them."""
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
    import matplotlib.figure  # slow to import, rarely needed

    sizes = {"T": (16, 64, 256), "K": (1, 4, 16, 64), "V": (65, 512, 4096, 50304), "B": (1, 4, 16, 64)}
    bench.quick = True  # a point of a curve need not be as exact as a row
    figure = matplotlib.figure.Figure(figsize=(9, 7), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, sizes.items(), strict=True):
        times = [bench.steps(CHARS._replace(**{name: value})) for value in values]
        for kind in KINDS:
            axes.plot(values, [t[kind] for t in times], marker=".", label=kind)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="step (ms)")
        axes.set_xticks(values, [str(value) for value in values])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"training step on {bench.device}; where not varied, {CHARS}")
    with replacing(file) as f:
        figure.savefig(f, format="png", dpi=120)
