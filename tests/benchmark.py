"""The benchmark: the plain formula, this package, and a GPT with the same context network, side by side.

    plain   tests/oracle.py, as the original program computes it, by PyTorch's own products
    ours    BackpackLM as train.py and sample.py run it
    gpt     nanobackpack.GPT, run likewise, with as many Transformer blocks as the Backpack has

Each lives in a process of its own, since how memory is kept is settled for a whole process. They take
turns, step by step, so that whatever else the machine does slows all alike; medians are reported. A case
says what is measured, which two numbers make its ratio, and between which bounds that should lie.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from oracle import plain_generate, plain_logits, plain_loss
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanobackpack.config import ModelConfig, TrainConfig, check_types
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.model.kernels import UniqueIds, unique_ids
from nanobackpack.runtime import autocast, keep_memory, pick_compile, pick_device, pick_dtype
from nanobackpack.safe.files import replacing
from nanobackpack.text.data import TokenData
from nanobackpack.train.checkpoint import build_model
from nanobackpack.train.log import flops_per_step, peak_flops
from nanobackpack.train.optim import make_optimizer


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Speed and memory of the plain formula, of this package and of a GPT, side by side."""

    quick: bool = False
    """Under a minute on a laptop: fewer repetitions, and without what takes long."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, cuda, ..."""
    json: str = ""
    """File for the results."""
    profile: str = ""
    """File for torch's profiles of a training step; each variant's name is added to it."""
    plot: str = ""
    """File for a picture of the step's time over T, K, V and B."""
    only: str = ""
    """Measure only the rows whose name contains this."""

    def __post_init__(self) -> None:
        check_types(self)


class Setup(NamedTuple):
    """Sizes of a model and its batch."""

    V: int  # vocabulary
    L: int  # layers, of which the Backpack's sense network is one
    H: int  # attention heads
    D: int  # width
    T: int  # positions
    B: int  # sequences
    K: int  # senses

    def __str__(self) -> str:
        return " ".join(f"{name}{value}" for name, value in self._asdict().items())

    def model(self, kind: str) -> ModelConfig:
        sizes: dict[str, Any] = {"n_head": self.H, "n_embd": self.D, "block_size": self.T}
        if kind == "gpt":
            return ModelConfig(model_name="gpt2", n_layer=self.L - 1, vocab_size=self.V, **sizes)
        return ModelConfig(n_layer=self.L, n_sense_vector=self.K, vocab_size=self.V, **sizes)

    def ids(self, seed: int) -> Tensor:
        """Ids (B, T + 1) as frequent as words are: by Zipf's law the r-th in proportion to 1/r."""
        draw = torch.Generator().manual_seed(seed)
        frequency = 1 / torch.arange(1.0, self.V + 1)  # (V)
        ids = torch.multinomial(frequency, self.B * (self.T + 1), replacement=True, generator=draw)
        return ids.view(self.B, -1)


CHARS = Setup(V=65, L=4, H=4, D=128, T=64, B=12, K=16)
WORDS = Setup(V=50304, L=6, H=6, D=384, T=256, B=4, K=16)
KINDS = ("plain", "ours", "gpt")
SECONDS = (20.0, 1.5)  # how long they take turns, and how long with --quick


# --- In the process of a variant --------------------------------------------------------------


class Variant:
    """A model of one kind, and all that can be measured of it."""

    def __init__(self, kind: str, setup: Setup, device: torch.device) -> None:
        self.plain, self.setup, self.device = kind.startswith("plain"), setup, device
        self.dtype = pick_dtype("auto", self.device)
        torch.manual_seed(0)
        self.model: LanguageModel = build_model(setup.model(kind)).to(self.device).train()
        self.model.context.recompute = kind == "ours recompute"
        self.optimizer = make_optimizer(self.model, TrainConfig(optimizer="adamw"))
        self.run: Callable[..., Any] = plain_loss if self.plain else self.model
        if kind != "plain" and pick_compile("auto", self.device):
            self.run = torch.compile(self.run)
        self.batches = itertools.cycle([self.batch(setup.ids(seed)) for seed in range(4)])

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor, UniqueIds | None]:
        x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T) each
        types = None
        if self.device.type == "cuda" and not self.plain and self.setup.V > self.setup.D:
            # While a GPU computes, the CPU has the time to find the types of the next batch.
            types = UniqueIds(*(t.to(self.device) for t in unique_ids(x, self.setup.V, multiple=1024)))
        return x.to(self.device), y.to(self.device), types

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self) -> float:
        """Seconds of a training step."""
        x, y, types = next(self.batches)
        start = self.now()
        with autocast(self.device, self.dtype):
            if self.plain:
                loss = self.run(self.model, x, y)
            else:
                loss = self.run(x, y, tokens=types, loss_only=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.now() - start

    def second_step(self) -> float:
        """Seconds of a step that comes right after another, as it does in training. A first one would pay
        for the turns of the others: what it frees and asks for again has meanwhile gone back to the system.
        """
        self.step()
        return self.step()

    def memory(self) -> tuple[int, int]:
        """Most bytes in use in the first three steps: in all, and above model and optimizer state."""
        before = peak_memory(self.device, reset=True)  # with the model, and no state yet
        for _ in range(3):
            self.step()
        tensors = (t for state in self.optimizer.state.values() for t in state.values())
        peak = peak_memory(self.device)
        return peak, peak - before - sum(t.numel() * t.element_size() for t in tensors)

    def generate(self, n: int, samples: int, temperature: float, some: int, restart: bool) -> float:
        """Tokens per second in continuing one token by n; with `some`, from some of the positions.

        The plain program makes one sample after the other, so that one tells its speed.
        """
        ids = self.setup.ids(0)[:1].to(self.device)  # (1, T + 1)
        jobs = [(round(1 + n * (i + 0.5) / some), 1) for i in range(some)] or [(1, n)]
        torch.manual_seed(0)
        start = self.now()
        with autocast(self.device, self.dtype):
            if self.plain:
                for length, new in jobs:
                    text = plain_generate(self.model, ids[:, :length], new, temperature)
                total = sum(new for _, new in jobs)
            else:
                prompts = ids[:, :1].expand(samples, 1)
                text = self.model.generate(prompts, n, temperature, restart=restart)
                total = samples * n
        speed = total / (self.now() - start)
        self.text = text[0].tolist()
        return speed

    def last_text(self) -> list[int]:
        return self.text

    @torch.inference_mode()
    def decode(self, context: int, n: int) -> float:
        """Seconds for each of the n tokens that follow a cached context."""
        ids, cache = self.setup.ids(0)[:1].to(self.device), self.model.new_cache()  # (1, T + 1)
        with autocast(self.device, self.dtype):
            self.model.next_logits(ids[:, :context], cache)
            start = self.now()
            for i in range(context, context + n):
                self.model.next_logits(ids[:, i : i + 1], cache)
        return (self.now() - start) / n

    def profile(self, file: str) -> None:
        self.step()
        with torch.profiler.profile() as profile:
            self.step()
        profile.export_chrome_trace(file)


def peak_memory(device: torch.device, reset: bool = False) -> int:
    """Most bytes in use since the last reset; at a reset, the bytes in use now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except OSError:  # not Linux: the peak of this process's whole life, in which the steps come last
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(pipe: Connection, kind: str, device: str) -> None:
    """Do what the pipe asks and send back the result, until it closes."""
    onednn: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if kind.startswith("plain"):
        warnings.simplefilter("ignore", UserWarning)  # about other settings of the same name
        onednn = torch.backends.mkldnn.flags(enabled=False)
    else:
        keep_memory(kind != "ours recompute")
    variant: Variant | None = None
    with onednn, contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            setup, method, args = pipe.recv()
            if variant is None or variant.setup != setup:
                variant = None  # gone before there is the next
                variant = Variant(kind, setup, pick_device(device))
            pipe.send(getattr(variant, method)(*args))


# --- Taking turns -----------------------------------------------------------------------------


class Bench:
    """The processes of the variants, started when first asked."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.workers: dict[str, tuple[Connection, multiprocessing.process.BaseProcess]] = {}
        self.known: dict[tuple[Setup, tuple[str, ...]], dict[str, float]] = {}

    def ask(self, kind: str, setup: Setup, method: str, *args: Any) -> Any:
        """What a method of the variant of that kind and setup returns. Raises: EOFError if it failed."""
        if kind not in self.workers:
            spawn = multiprocessing.get_context("spawn")
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(theirs, kind, self.device), daemon=True)
            process.start()
            theirs.close()
            self.workers[kind] = pipe, process
        pipe = self.workers[kind][0]
        pipe.send((setup, method, args))
        return pipe.recv()

    def close(self) -> None:
        for pipe, process in self.workers.values():
            pipe.close()
            process.join()
        self.workers.clear()

    def turns(self, tasks: Mapping[str, Callable[[], float]], least: int) -> dict[str, float]:
        """Median of what each task returns; they take turns for some seconds, and `least` times."""
        results: dict[str, list[float]] = {name: [] for name in tasks}
        end, rounds = time.perf_counter() + SECONDS[self.quick], 0
        while rounds < least or time.perf_counter() < end:
            for name, task in tasks.items():
                time.sleep(0.02)  # the threads of the one before spin for a while: wait until they sleep
                results[name].append(task())
            rounds += 1
        return {name: statistics.median(values) for name, values in results.items()}

    def steps(self, setup: Setup, kinds: tuple[str, ...] = KINDS) -> dict[str, float]:
        """Milliseconds of a training step of each kind."""
        if (setup, kinds) not in self.known:
            tasks = {kind: functools.partial(self.ask, kind, setup, "second_step") for kind in kinds}
            for task in tasks.values():
                for _ in range(4 if "cuda" in self.device else 1):  # compiles for each number of types
                    task()
            times = self.turns(tasks, least=2 if self.quick else 5)
            self.known[setup, kinds] = {kind: 1000 * t for kind, t in times.items()}
        return self.known[setup, kinds]


# --- What is measured -------------------------------------------------------------------------

Measure = Callable[[Bench, Setup], dict[str, Any]]  # the numbers of a row by name, and perhaps a "note"


class Case(NamedTuple):
    """A row of the table: the ratio of two of its numbers, and the bounds it should lie between."""

    what: str
    setup: Setup
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


WIDTHS = {
    "what": 25, "config": 35, "unit": 8, "ours": -8, "plain": -8, "gpt": -8,
    "compares": 10, "ratio": -6, "target": 12, "met": 3, "note": 0,
}  # fmt: skip


def line(cells: dict[str, Any]) -> str:
    """A row of the table, its cells aligned."""
    texts = ((display_path(cells[name]), width) for name, width in WIDTHS.items())
    return "  ".join(text.rjust(-width) if width < 0 else text.ljust(width) for text, width in texts)


def display_path(value: Any) -> str:
    if isinstance(value, float):  # three digits or more
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return {None: "-", True: "yes", False: "NO"}.get(value, str(value))


def steps(*kinds: str) -> Measure:
    return lambda bench, setup: {k.split()[0]: ms for k, ms in bench.steps(setup, kinds).items()}


def utilisation(bench: Bench, setup: Setup) -> dict[str, Any]:
    """TFLOP/s in a step, as the plain formula counts them, and the most the device could do."""
    numbers = {k: flops_per_step(setup.model(k), setup.B) / ms / 1e9 for k, ms in bench.steps(setup).items()}
    peak = peak_flops(torch.device(bench.device))
    return numbers | ({"peak": peak / 1e12} if peak else {"note": "the peak of this device is not known"})


def memory(ours: str) -> Measure:
    """What a step needs above the model and the optimizer's state: activations and gradients."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        whole, above = {}, {}
        for kind in ("plain", ours):
            bench.close()  # so that the process is fresh, and alone
            name = kind.split()[0]
            whole[name], above[name] = (n / 1e6 for n in bench.ask(kind, setup, "memory"))
        bench.close()
        text = ", ".join(f"{kind} {display_path(n)}" for kind, n in whole.items())
        return above | {"note": f"above model and optimizer state; the whole peak: {text}"}

    return measure


def generate(
    n: int, samples: int = 1, temperature: float = 1.0, some: int = 0, restart: bool = False
) -> Measure:
    """Generating n tokens, by the plain program perhaps at `some` positions only: it can take minutes."""

    def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
        plain, ours = (functools.partial(bench.ask, kind, setup) for kind in ("plain", "ours"))
        for ask in (plain, ours):
            ask("generate", 8, 1, temperature, 0, False)  # the first is slow
        tasks = {
            "plain": functools.partial(plain, "generate", n, 1, temperature, some, False),
            "ours": functools.partial(ours, "generate", n, samples, temperature, 0, restart),
        }
        numbers: dict[str, Any] = bench.turns(tasks, least=1)
        notes = [f"plain at {some} of the positions"] if some else ["plain slides"] if restart else []
        if samples > 1:
            notes.append("plain: one sample, since it makes one after the other")
        if temperature == 0 and not restart:
            same = plain("last_text") == ours("last_text")
            notes.append("the same text" if same else "NOT THE SAME TEXT")
            numbers["ours"] *= same  # what is wrong is not fast
        return numbers | {"note": ", ".join(notes)}

    return measure


def decode(bench: Bench, setup: Setup) -> dict[str, Any]:
    tasks = {k: functools.partial(bench.ask, k, setup, "decode", setup.T // 2, 8) for k in ("ours", "gpt")}
    for task in tasks.values():
        task()
    numbers = {kind: 1000 * t for kind, t in bench.turns(tasks, least=3).items()}
    return numbers | {"note": f"after {setup.T // 2} cached positions"}


def assembly(bench: Bench, setup: Setup) -> dict[str, Any]:
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
    note = f"a batch of T{T} B{B} in a step of {display_path(step)} ms: {scale:g} times this one's, by tokens"
    return {"ours": 1000 * statistics.median(times), "step": step, "note": note}


def count(kind: str) -> Measure:
    return lambda bench, setup: {
        "ours": flops_per_step(setup.model(kind), setup.B) / 1e9,
        "torch": counted_flops(setup.model(kind), setup.B) / 1e9,
    }


def counted_flops(config: ModelConfig, batch_size: int) -> int:
    """What torch counts in forward and backward of the plain formula, without computing anything."""
    with torch.device("meta"):
        model, ids = build_model(config), torch.zeros(batch_size, config.block_size, dtype=torch.int64)
    # A fused attention would count as one operation, or none.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        plain_logits(model, ids).sum().backward()
    return counter.get_total_flops()


def cases(quick: bool, cuda: bool) -> list[Case]:
    """The table, in order."""
    chars4, inf, two, three = CHARS._replace(K=4), math.inf, steps("ours", "gpt"), steps(*KINDS)
    slide, long, words = chars4._replace(B=1), chars4._replace(B=1, T=512), WORDS._replace(B=1, T=512)
    large, some = Setup(V=50304, L=12, H=12, D=768, T=1024, B=12 if cuda else 2, K=16), 20 * quick
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
        Case("batch from disk", WORDS, "ms", "ours/step", 0, 0.02, assembly),
        Case("FLOP count", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, count("ours")),
        Case("FLOP count, GPT", WORDS, "GFLOP", "ours/torch", 0.99, 1.01, count("gpt")),
    ]  # fmt: skip
    compiled = steps("plain compiled", "ours")
    return rows + cuda * [
        Case("train step", large, "ms", "plain/ours", 3, inf, three),
        Case("train step, compiled", large, "ms", "plain/ours", 0, inf, compiled),
        Case("train step, GPT", large, "ms", "ours/gpt", 0, 1.15, three),
        Case("MFU", large, "TFLOP/s", "ours/peak", 0.45, inf, utilisation),
    ]


# --- The program ------------------------------------------------------------------------------


def main(config: BenchConfig) -> None:
    device = str(pick_device(config.device))
    bench = Bench(device, config.quick)
    try:
        chosen = cases(config.quick, cuda=device.startswith("cuda"))
        measure(bench, [c for c in chosen if config.only.lower() in c.what.lower()], config.json)
        if config.profile:
            profile(bench, Path(config.profile))
        if config.plot:
            plot(bench, Path(config.plot))
    finally:
        bench.close()


def measure(bench: Bench, cases: list[Case], file: str = "") -> None:
    """Print each case's row as it is measured; write all to the file."""
    about, rows = machine(bench.device), []
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(line({name: name for name in WIDTHS}))
    for case in cases:
        rows.append(case.run(bench))
        print(line(rows[-1]), flush=True)
    if file:
        with replacing(Path(file)) as f:
            f.write((json.dumps({"machine": about, "rows": rows}, indent=2) + "\n").encode())


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on; load is what else runs, beside which all of them mislead."""
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
    """Draw the time of a step over each of four sizes, the others kept."""
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
