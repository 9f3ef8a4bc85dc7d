"""How it is measured: processes that hold one program each, and the clock that lets them take turns.

    bench = Bench("cpu", quick=True)
    bench.ask("ours", CHARS, "step")    # seconds of a training step, measured in the process of ours
    bench.steps(CHARS)                  # {"plain": 61.2, "ours": 24.8, "gpt": 14.8}: medians, milliseconds
    bench.close()

How a process keeps the memory it frees is settled for the whole process, and plain runs without the matrix
products that we choose (oneDNN on AMD). So no two programs may share a process.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from torch import Tensor

from nanobackpack import control
from nanobackpack.analysis.senses import Senses
from nanobackpack.bench.plain import plain_generate, plain_loss, plain_nearest
from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.model.generate import KVCache
from nanobackpack.model.kernels import UniqueIds, unique_ids
from nanobackpack.runtime import autocast, keep_memory, pick_compile, pick_device, pick_dtype
from nanobackpack.text.corpus import from_files
from nanobackpack.text.prepare import write_tokens
from nanobackpack.text.splits import split_tail
from nanobackpack.text.tokenizer import Tokenizer, is_made, load_tokenizer, make_tokenizer
from nanobackpack.train.checkpoint import build
from nanobackpack.train.optim import make_optimizer

KINDS = ("plain", "ours", "gpt")
SECONDS = (20.0, 1.5)  # how long the programs take turns for one row, and how long with --quick
LOOP_TOKENS = 125  # of the vocabulary, which the plain search for neighbours looks at


class Setup(NamedTuple):
    """The sizes of a model and its batch."""

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
        """Ids (B, T + 1) as frequent as words are: by Zipf's law, the r-th in proportion to 1/r."""
        draw = torch.Generator().manual_seed(seed)
        frequency = 1 / torch.arange(1.0, self.V + 1)  # (V)
        ids = torch.multinomial(frequency, self.B * (self.T + 1), replacement=True, generator=draw)
        return ids.view(self.B, -1)  # (B, T + 1)


class Text(NamedTuple):
    """A text to prepare, and the tokenizer to do it with."""

    mb: int
    tokenizer: str
    sources: tuple[str, ...] = ()  # files that are repeated up to this size; none: Python's help texts
    file: str = ""  # where the text has been written

    def __str__(self) -> str:
        return f"{self.mb} MB, {Path(self.tokenizer).stem}"


# --- In the process of a program --------------------------------------------------------------


class ModelWork:
    """What can be measured of a model of one kind and size."""

    def __init__(self, kind: str, setup: Setup, device: torch.device) -> None:
        self.plain, self.setup, self.device = kind.startswith("plain"), setup, device
        self.dtype = pick_dtype("auto", self.device)
        torch.manual_seed(0)
        self.model: LanguageModel = build(setup.model(kind)).to(self.device).train()
        self.model.context.recompute = kind == "ours recompute"
        self.optimizer = make_optimizer(self.model, TrainConfig(optimizer="adamw"))
        self.loss: Callable[..., Any] = plain_loss if self.plain else self.model
        if kind != "plain" and pick_compile("auto", self.device):
            self.loss = torch.compile(self.loss)
        self.batches = itertools.cycle([self.batch(setup.ids(seed)) for seed in range(4)])
        self.caches: dict[tuple[int, int, bool], KVCache] = {}

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor, UniqueIds | None]:
        x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T) each
        types = None
        if self.device.type == "cuda" and not self.plain and self.setup.V > self.setup.D:
            # While a GPU computes, the CPU has the time to find the different ids of the next batch.
            types = UniqueIds(*(t.to(self.device) for t in unique_ids(x, self.setup.V, multiple=1024)))
        return x.to(self.device), y.to(self.device), types

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def step(self, times: int = 2) -> float:
        """Seconds of a training step, the last of some. A single step would pay for the turns of the other
        programs: the memory that it frees and asks for again has gone back to the system meanwhile."""
        for _ in range(times):
            x, y, types = next(self.batches)
            start = self.now()
            with autocast(self.device, self.dtype):
                if self.plain:
                    loss = self.loss(self.model, x, y)
                else:
                    loss = self.loss(x, y, types=types, loss_only=True).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self.now() - start

    def memory(self) -> tuple[int, int]:
        """The most bytes in use in the first three steps: in all, and above model and optimizer state."""
        before = peak_memory(self.device, reset=True)  # with the model, and no optimizer state yet
        self.step(3)
        tensors = (t for state in self.optimizer.state.values() for t in state.values())
        peak = peak_memory(self.device)
        return peak, peak - before - sum(t.numel() * t.element_size() for t in tensors)

    def generate(self, n: int, samples: int, temperature: float, some: int, restart: bool) -> float:
        """Tokens per second when one token is continued by n; with `some`, measured at that many positions.

        The plain program makes one sample after the other, so one sample tells its speed.
        """
        ids = self.setup.ids(0)[:1].to(self.device)  # (1, T + 1)
        torch.manual_seed(0)
        start = self.now()
        with autocast(self.device, self.dtype):
            if self.plain:
                jobs = [(round(1 + n * (i + 0.5) / some), 1) for i in range(some)] or [(1, n)]
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

    @torch.inference_mode()
    def topic_token(self, samples: int, position: int, controlled: bool) -> float:
        """Seconds for a token of each of some samples, decoded up to a position with or without topic control."""
        n, key = 8, (samples, position, controlled)
        if key not in self.caches:
            # Fill a cache up to n positions before; every measurement goes on from there.
            draw = torch.Generator().manual_seed(0)
            strength = torch.rand(self.setup.V, self.setup.K, generator=draw) + 1
            edits = control.TopicControl(strength, f=0.3) if controlled else ()
            self.caches[key] = self.model.eval().new_cache(edits)
            prompt = torch.randint(self.setup.V, (samples, position - n), generator=draw)
            self.model.next_logits(prompt.to(self.device), self.caches[key])
        cache, token = self.caches[key], torch.zeros(samples, 1, dtype=torch.int64, device=self.device)
        cache.length = position - n
        start = self.now()
        for _ in range(n):
            self.model.next_logits(token, cache)
        return (self.now() - start) / n

    @functools.cached_property
    def senses(self) -> Senses:
        """The analysis of the model, whose tokens are named by characters beyond the usual ones."""
        self.model.tokenizer = Tokenizer.from_symbols([chr(0x10000 + i) for i in range(self.setup.V)])
        return Senses(self.model)

    def nearest(self, words: int) -> float:
        """Seconds a word to find the 6 nearest tokens in all of its senses; plain: from a sample of tokens."""
        if self.plain:
            table = self.model.sense_vectors(list(range(LOOP_TOKENS)))  # (N, K, D)
            start = self.now()
            plain_nearest(table, table[7], 6)
            return (self.now() - start) * self.setup.V / LOOP_TOKENS
        start = self.now()
        for found in self.senses.nearest_many([chr(0x10000 + 7 + i) for i in range(words)], k=6):
            found.scores.cpu()
        return (self.now() - start) / words

    def profile(self, file: str) -> None:
        self.step()
        with torch.profiler.profile() as profile:
            self.step(1)
        profile.export_chrome_trace(file)


class TextWork:
    """What can be measured of preparing a text."""

    def __init__(self, kind: str, text: Text, device: torch.device) -> None:
        self.plain, self.n_bytes = kind == "plain", Path(text.file).stat().st_size
        self.corpus = from_files([text.file])
        if is_made(text.tokenizer):
            # Make it of the first pieces: both programs then have the same one, and its making is not timed.
            pieces = itertools.islice(self.corpus.read(), 16)
            self.tokenizer = make_tokenizer(text.tokenizer, [piece.text for piece in pieces])
        else:
            self.tokenizer = load_tokenizer(text.tokenizer)

    def encode(self) -> float:
        """MB/s from text to .bin; plain: of the tokenizers library alone, in memory, in batches like ours."""
        if self.plain:
            library = tokenizers.Tokenizer.from_str(self.tokenizer.to_json())
            pieces = [piece.text for piece in self.corpus.read()]
            start = time.perf_counter()
            for i in range(0, len(pieces), 8):
                library.encode_batch(pieces[i : i + 8], add_special_tokens=False)
            return self.n_bytes / 1e6 / (time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_tokens(Path(folder) / "out", {"": self.corpus}, self.tokenizer, split_tail(0.1))
            return self.n_bytes / 1e6 / (time.perf_counter() - start)

    def memory(self) -> tuple[float, float]:
        """The most bytes that preparing the text takes, the process included; and MB/s."""
        peak_memory(torch.device("cpu"), reset=True)
        speed = self.encode()
        return peak_memory(torch.device("cpu")), speed


def peak_memory(device: torch.device, reset: bool = False) -> int:
    """The most bytes in use since the last reset; at a reset, the bytes in use now."""
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
    work: ModelWork | TextWork | None = None
    held: Setup | Text | None = None
    with onednn, contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            setup, method, args = pipe.recv()
            if held != setup:
                work = None  # free the model before the next one is built
                work = (TextWork if isinstance(setup, Text) else ModelWork)(kind, setup, pick_device(device))
                held = setup
            pipe.send(getattr(work, method)(*args))


# --- Taking turns -----------------------------------------------------------------------------


class Bench:
    """The processes of the programs, each started when it is first asked."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.workers: dict[str, tuple[Connection, multiprocessing.process.BaseProcess]] = {}
        self.known: dict[tuple[Setup, tuple[str, ...]], dict[str, float]] = {}

    def ask(self, kind: str, setup: Setup | Text, method: str, *args: Any) -> Any:
        """What a method returns in the process of that kind. Raises EOFError if the process died."""
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
        """The median of what each task returns; they take turns for some seconds, and `least` times."""
        results: dict[str, list[float]] = {name: [] for name in tasks}
        end, rounds = time.perf_counter() + SECONDS[self.quick], 0
        while rounds < least or time.perf_counter() < end:
            for name, task in tasks.items():
                time.sleep(0.02)  # the threads of the one before spin for a while: wait until they sleep
                results[name].append(task())
            rounds += 1
        return {name: statistics.median(values) for name, values in results.items()}

    def compare(
        self, setup: Setup | Text, method: str, calls: Mapping[str, tuple[Any, ...]], least: int = 2
    ) -> dict[str, float]:
        """The median of a method that programs of these kinds call in turns, with these arguments."""
        tasks = {
            kind: functools.partial(self.ask, kind, setup, method, *args) for kind, args in calls.items()
        }
        for task in tasks.values():
            task()  # the first call is slow: it starts threads, fills tables
        return self.turns(tasks, least)

    def steps(self, setup: Setup, kinds: tuple[str, ...] = KINDS) -> dict[str, float]:
        """Milliseconds of a training step of each kind."""
        if (setup, kinds) not in self.known:
            if "cuda" in self.device:
                for kind in kinds * 3:
                    self.ask(kind, setup, "step")  # compiles for each number of different ids
            times = self.compare(setup, "step", dict.fromkeys(kinds, ()), 2 if self.quick else 5)
            self.known[setup, kinds] = {kind: 1000 * t for kind, t in times.items()}
        return self.known[setup, kinds]
