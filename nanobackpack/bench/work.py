"""What a program that is compared does in its process: a model of a size, and what can be measured of it.

    ModelWork("ours", setup, device).step()         # milliseconds of a training step
    TextWork("ours", text, device).encode()         # MB/s

Letters: B batch, T time (positions), K senses, N tokens.
"""

from __future__ import annotations

import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from torch import Tensor

from nanobackpack import control
from nanobackpack.analysis.senses import Senses
from nanobackpack.bench.plain import plain_generate, plain_loss, plain_nearest
from nanobackpack.config import ModelConfig, TrainConfig
from nanobackpack.model.kernels import Linear, UniqueIds, unique_ids
from nanobackpack.runtime import autocast, pick_compile, pick_dtype
from nanobackpack.text.corpus import from_files
from nanobackpack.text.prepare import write_tokens
from nanobackpack.text.splits import split_tail
from nanobackpack.text.tokenizer import Tokenizer, is_made, make_tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer
from nanobackpack.train.checkpoint import build_model
from nanobackpack.train.optim import make_optimizer

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
        if kind in ("gpt", "gpt deep", "transformers"):  # deep: as many layers as the Backpack has, and else
            n_layer = self.L - (kind != "gpt deep")  # the same context network
            return ModelConfig(model_name="gpt2", n_layer=n_layer, vocab_size=self.V, **sizes)
        return ModelConfig(n_layer=self.L, n_sense_vector=self.K, vocab_size=self.V, **sizes)

    def ids(self, seed: int) -> Tensor:
        """Ids (B, T + 1) as frequent as words are: by Zipf's law, the r-th in proportion to 1/r."""
        draw = torch.Generator().manual_seed(seed)
        frequency = 1 / torch.arange(1.0, self.V + 1)  # (V)
        ids = torch.multinomial(frequency, self.B * (self.T + 1), replacement=True, generator=draw)
        return ids.view(self.B, -1)  # (B, T + 1)

    def prompts(self) -> list[list[int]]:
        """B prompts, from an eighth to half of T tokens long."""
        lengths = torch.linspace(self.T // 8, self.T // 2, self.B).int().tolist()
        return [row[:length].tolist() for row, length in zip(self.ids(0), lengths, strict=True)]


class Text(NamedTuple):
    """A text to prepare, and the tokenizer to do it with."""

    mb: int
    tokenizer: str
    sources: tuple[str, ...] = ()  # files, repeated up to the size; none: Python's help texts
    file: str = ""  # where the text has been written

    def __str__(self) -> str:
        return f"{self.mb} MB, {Path(self.tokenizer).stem}"


class ModelWork:
    """What can be measured of a model of one kind and size."""

    def __init__(self, kind: str, setup: Setup, device: torch.device) -> None:
        self.plain, self.setup, self.device = kind.startswith("plain"), setup, device
        self.dtype = pick_dtype("auto", device)
        torch.manual_seed(0)
        self.model: Any = build_model(setup.model(kind)).to(device).train()
        self.model.context.recompute = kind == "ours recompute"
        self.optimizer = make_optimizer(self.model, TrainConfig(optimizer="adamw"))
        self.forward: Callable[..., Any] = plain_loss if self.plain else self.model
        if self.plain:  # torch's own layers, and AdamW as nanoGPT makes it
            for module in self.model.modules():
                if isinstance(module, Linear):
                    module.__class__ = torch.nn.Linear  # type: ignore[assignment]
            for group in self.optimizer.param_groups:
                group["fused"] = device.type == "cuda"
        if kind != "plain" and pick_compile("auto", device):
            self.forward = torch.compile(self.forward)
        self.batches = itertools.cycle([self.batch(setup.ids(seed)) for seed in range(4)])
        self.ids = itertools.cycle(range(setup.V))
        self.caches: dict[tuple[int, int, bool], Any] = {}

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor, UniqueIds | None]:
        x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # (B, T) each
        tokens = None
        if self.device.type == "cuda" and not self.plain and self.setup.V > self.setup.D:
            # While a GPU computes, the CPU has the time to find the different ids of the next batch.
            tokens = UniqueIds(*(t.to(self.device) for t in unique_ids(x, self.setup.V, multiple=1024)))
        return x.to(self.device), y.to(self.device), tokens

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def loss(self, x: Tensor, y: Tensor, tokens: UniqueIds | None) -> Any:
        if self.plain:
            return self.forward(self.model, x, y)
        return self.forward(x, y, unique=tokens, loss_only=True).loss

    def step(self, times: int = 2) -> float:
        """Milliseconds of a training step, the last of some. A single one would pay for the turns of the
        other programs: the memory that it frees and asks for again has gone back to the system meanwhile."""
        for _ in range(times):
            x, y, tokens = next(self.batches)
            start = self.now()
            with autocast(self.device, self.dtype):
                loss = self.loss(x, y, tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return 1000 * (self.now() - start)

    @torch.inference_mode()
    def prefill(self) -> float:
        """Milliseconds until a prompt of T tokens has told what comes next."""
        ids = self.setup.ids(0)[:1, :-1].to(self.device)  # (1, T)
        with autocast(self.device, self.dtype):
            cache, start = self.model.eval().new_cache(), self.now()
            self.model.next_logits(ids, cache)
        return 1000 * (self.now() - start)

    def batch_of_prompts(self, n: int) -> float:
        """New tokens per second when prompts of different lengths grow by n tokens each, in one batch."""
        torch.manual_seed(0)
        start = self.now()
        self.model.generate(self.setup.prompts(), n)
        return self.setup.B * n / (self.now() - start)

    def memory(self) -> tuple[int, int]:
        """The most bytes in use in the first steps: in all, and above model and optimizer state."""
        before = peak_memory(self.device, reset=True)  # with the model, and no optimizer state yet
        self.step(3)
        tensors = (t for state in self.optimizer.state.values() for t in state.values())
        peak = peak_memory(self.device)
        return peak, peak - before - sum(t.numel() * t.element_size() for t in tensors)

    def profile(self, file: str) -> None:
        self.step()
        with torch.profiler.profile() as profile:
            self.step(1)
        profile.export_chrome_trace(file)

    def generate(self, n: int, samples: int, temperature: float, restart: bool, some: int) -> float:
        """Tokens per second when one token is continued by n. The plain program makes one sample after the
        other, so one tells its speed; with `some` it makes single tokens at that many of the positions."""
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
    def decode(self, position: int, samples: int = 1, controlled: bool = False, new: bool = False) -> float:
        """Milliseconds for a token of each of some samples, up to a position: under topic control or not,
        the same token again or one that has not been met before, whose senses must be computed."""
        n, key = 8, (position, samples, controlled)
        with autocast(self.device, self.dtype):
            if key not in self.caches:
                # Fill a cache up to n positions before that; every measurement goes on from there.
                draw = torch.Generator().manual_seed(0)
                strength = torch.rand(self.setup.V, self.setup.K, generator=draw) + 1
                prompt = torch.randint(self.setup.V, (samples, position - n), generator=draw)
                edits = [control.TopicControl(strength, f=0.3)] * controlled
                cache = self.model.eval().new_cache(edits)
                self.model.next_logits(prompt.to(self.device), cache)
                self.caches[key] = cache
            cache, tokens = self.caches[key], [next(self.ids) if new else 0 for _ in range(n)]
            cache.length = position - n
            start = self.now()
            for token in tokens:
                ids = torch.full((samples, 1), token, device=self.device)
                self.model.next_logits(ids, cache)
        return 1000 * (self.now() - start) / n

    @functools.cached_property
    def senses(self) -> Senses:
        """The analysis of the model, whose tokens are named by characters beyond the usual ones."""
        self.model.tokenizer = Tokenizer.from_symbols([chr(0x10000 + i) for i in range(self.setup.V)])
        return Senses(self.model)

    def nearest(self, words: int) -> float:
        """Milliseconds to find the tokens nearest to a word's senses; plain: among a sample, scaled."""
        if self.plain:
            table = self.model.sense_vectors(list(range(LOOP_TOKENS)))  # (N, K, D)
            start = self.now()
            plain_nearest(table, table[7], 6)
            return 1000 * (self.now() - start) * self.setup.V / LOOP_TOKENS
        start = self.now()
        for found in self.senses.nearest_many([chr(0x10000 + 7 + i) for i in range(words)], k=6):
            found.scores.cpu()
        return 1000 * (self.now() - start) / words


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
        with tempfile.TemporaryDirectory() as folder:
            library = tokenizers.Tokenizer.from_str(self.tokenizer.to_json())
            pieces = [piece.text for piece in self.corpus.read()] if self.plain else []
            start = time.perf_counter()
            if not self.plain:
                write_tokens(Path(folder) / "out", {"": self.corpus}, self.tokenizer, split_tail(0.1))
            for i in range(0, len(pieces), 8):
                library.encode_batch(pieces[i : i + 8], add_special_tokens=False)
            return self.n_bytes / 1e6 / (time.perf_counter() - start)

    def memory(self) -> tuple[int, float]:
        """The most bytes that the process takes while it prepares the text, and MB/s."""
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
