"""Text to token files: speed next to the library's own batch encoding, and memory. Run:

python tests/prepare_speed.py                       # MB/s of both in turns, a few minutes
python tests/prepare_speed.py --memory_mb=1000      # peak memory on a generated corpus of that size

The first needs the texts and tokenizers of ../shared/data. MB are 10^6 bytes of UTF-8.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanobackpack import cli
from nanobackpack.text import prepare
from nanobackpack.text.corpus import from_files
from nanobackpack.text.splits import split_tail
from nanobackpack.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
CASES = {
    "GPT-2, English": ("gpt2", ["multilingual/en.txt", "tinyshakespeare/input.txt"]),
    "Chinese BERT": ("zh/google_zh_vocab.txt", ["zh/hongloumeng.txt", "zh/sanguo_yanyi.txt"]),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Speed and memory of preparing data."""

    mb: int = 20
    """Size of each text, in megabytes; the texts of ../shared/data are repeated up to that."""
    turns: int = 5
    """How often each side is timed."""
    memory_mb: int = 0
    """Measure memory instead, on a generated corpus of so many megabytes."""
    tokenizer: str = "bpe:8192"
    """The tokenizer of the memory test."""


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare_speed(settings: Settings, folder: Path) -> None:
    print(
        f"{'text → .bin':<18} {'ours MB/s':>10} {'library MB/s':>13} {'ratio':>6}   ({os.cpu_count()} cores)"
    )
    for name, (tokenizer_name, files) in CASES.items():
        once = b"\n".join((SHARED / file).read_bytes() for file in files)
        text = folder / "text.txt"
        text.write_bytes(once * (settings.mb * 10**6 // len(once) + 1))
        size_mb, tokenizer = text.stat().st_size / 1e6, load_tokenizer(str(SHARED / tokenizer_name))
        corpus = from_files([text])
        batches = [
            [piece.text for _, piece in batch] for batch in prepare._batches(("", p) for p in corpus.read())
        ]

        def ours(corpus: prepare.Corpus = corpus, tokenizer: prepare.Tokenizer = tokenizer) -> None:
            prepare.write_tokens(folder / "out", {"": corpus}, tokenizer, split_tail(0.1))

        def library(batches: list[list[str]] = batches, tokenizer: prepare.Tokenizer = tokenizer) -> None:
            for batch in batches:
                tokenizer._inner.encode_batch(batch, add_special_tokens=False)

        library()  # the first time starts threads
        times = [(seconds(ours), seconds(library)) for _ in range(settings.turns)]
        rates = [size_mb / statistics.median(side) for side in zip(*times, strict=True)]
        ratio = statistics.median(b / a for a, b in times)
        print(f"{name:<18} {rates[0]:>10.2f} {rates[1]:>13.2f} {ratio:>6.2f}")


def generate(folder: Path, size_mb: int) -> None:
    """JSON lines and one long text, half each: made-up words and runs of Chinese characters, few repeated."""
    random = np.random.default_rng(0)
    syllables = np.array([c + v for c in "bdfgklmnprstvz" for v in "aeiou"])
    written = 0
    with (
        open(folder / "a.jsonl", "w", encoding="utf-8") as lines,
        open(folder / "b.txt", "w", encoding="utf-8") as text,
    ):
        while written < size_mb * 10**6:
            words = ["".join(random.choice(syllables, n)) for n in random.integers(1, 5, 2000)]
            words += [
                "".join(map(chr, random.integers(0x4E00, 0x9FA5, n))) for n in random.integers(1, 30, 200)
            ]
            random.shuffle(words)
            document = " ".join(words[:1100]) + "\n" + " ".join(words[1100:])
            for _ in range(10):  # as often as a generator this slow needs
                lines.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
                text.write(document + "\n\n")
                written += 2 * len(document.encode())


def measure_memory(settings: Settings, folder: Path) -> None:
    generate(folder, settings.memory_mb)
    size_mb = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    command = [sys.executable, "data/textfiles/prepare.py", str(folder), "--tokenizer", settings.tokenizer]
    command += ["--out", str(folder / "out")]
    elapsed_s = seconds(lambda: subprocess.run(command, cwd=ROOT, check=True))
    peak_kb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # it is one process with threads
    speed = f"{size_mb:,.0f} MB in {elapsed_s:,.0f} s, {size_mb / elapsed_s:.2f} MB/s"
    print(f"{speed}, peak {peak_kb / 1e3:,.0f} MB of memory")


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (measure_memory if settings.memory_mb else compare_speed)(settings, Path(folder))


if __name__ == "__main__":
    cli.run(main, Settings)
