"""Trainings in processes of their own that a test can kill, stop or hinder, started in milliseconds.

Python's fork server imports torch and the package once; each job is a fork of it, ends as train.py does, and
writes what it prints to a file.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import draw_nothing
from test_trainer import TEXT, identical, learned, records, temporary, tiny, without_timings
from tqdm import tqdm

from nanobackpack import cli
from nanobackpack.config import TrainConfig
from nanobackpack.text.corpus import from_text
from nanobackpack.text.prepare import write_dataset, write_tokens
from nanobackpack.text.splits import split_tail
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import log as train_log
from nanobackpack.train.checkpoint import BackgroundWriter
from nanobackpack.train.trainer import Trainer, train

SERVER = multiprocessing.get_context("forkserver")
# All that a training imports; torch does part of it only when an optimizer or FSDP is first used.
TORCH = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
SERVER.set_forkserver_preload(["jobs", "stress", *TORCH])
LIMIT_S = 120  # far above what any job takes

FULL = {"max_iters": 16, "eval_interval": 4, "dropout": 0.2, "gradient_accumulation_steps": 2}
"""Settings of the runs that faults strike."""


class Job:
    """A training, or other work, on one process or connected ones; `ranks` are the processes."""

    def __init__(
        self,
        config: Any,
        *,
        n: int = 1,
        before: Callable[[], None] | None = None,
        work: Callable[[Any], int | None] = train,
        log: Path | None = None,
    ) -> None:
        self.log = log or Path(config.out_dir).parent / f"{Path(config.out_dir).name[:40]}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the server's, when the first job starts it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.ranks = []
        for rank in range(n):
            env = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            args = (work, config, before, env, str(self.log))
            process = SERVER.Process(target=_run, args=args)
            process.start()
            self.ranks.append(process)

    @property
    def running(self) -> bool:
        return any(process.is_alive() for process in self.ranks)

    def kill(self, rank: int | None = None) -> None:
        """kill -9 all processes, or one."""
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            process.kill()
        for process in self.ranks if rank is None else [self.ranks[rank]]:
            process.join()

    def send(self, number: int, rank: int = 0) -> None:
        pid = self.ranks[rank].pid
        assert pid
        os.kill(pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Wait for all processes; whether they end in time."""
        end = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))
        return not self.running

    def result(self) -> tuple[int | None, str]:
        """The first process's exit status (None: it hangs), and what all printed."""
        if not self.ends_within(LIMIT_S):
            self.kill()
            return None, self.printed
        return self.ranks[0].exitcode, self.printed

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, seen: Callable[[], bool]) -> bool:
        """Look until something is the case; False if the job ended before it was."""
        end = time.monotonic() + LIMIT_S
        while not seen():
            if not self.running or time.monotonic() > end:
                return seen()
            time.sleep(0.0005)
        return True


def _run(
    work: Callable[[Any], int | None],
    config: Any,
    before: Callable[[], None] | None,
    env: dict[str, str],
    log: str,
) -> None:
    """In the new process: becomes as a program that was started from a shell."""
    os.environ.update(env)
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the server ignores
    torch.set_num_threads(1)
    train_log.plot_losses = draw_nothing
    tqdm.set_lock(threading.RLock())  # its own is shared by processes, and is left when one is killed
    if before:
        before()
    cli.guard(lambda: work(config))


# --- What hinders a job, called in its process ------------------------------------------------


def before_steps(disturb: Callable[[Trainer], object]) -> None:
    """Something happens before each step."""
    step = Trainer.train_step

    def train_step(self: Trainer, lr: float) -> torch.Tensor:
        disturb(self)
        return step(self, lr)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def slowly() -> None:
    """Each step takes 10 ms more, so that there is time to do something to the job."""
    before_steps(lambda trainer: time.sleep(0.01))


def small_files(n_bytes: int = 20_000) -> None:
    """No file can grow beyond that: the disk is full for all but small ones."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def tiny_files() -> None:
    """The disk is full for the settings of a run too, which have more than 500 bytes."""
    small_files(500)


def small_logs() -> None:
    """No file can grow while its log is written: the disk is full when metrics.jsonl has 1,500 bytes.

    The limit is that of the process, so meanwhile no checkpoint may be written in the background."""
    record, write, one_of_them = train_log.Log.record, BackgroundWriter._write, threading.Lock()

    def limited(self: train_log.Log, **values: Any) -> None:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        with one_of_them:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
            try:
                record(self, **values)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def unlimited(self: BackgroundWriter, name: str, state: dict[str, Any]) -> None:
        with one_of_them:
            write(self, name, state)

    train_log.Log.record = limited  # type: ignore[method-assign]
    BackgroundWriter._write = unlimited  # type: ignore[method-assign]


def little_memory() -> None:
    """The process may take 300 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 300_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def clock_backwards() -> None:
    """Each look at the clock is an hour before the last one."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    time.time = back


def no_network() -> None:
    """The hub is at an address where nobody answers."""
    for name in ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        os.environ[name] = "http://127.0.0.1:9"
    if "huggingface_hub" in sys.modules:
        sys.modules["huggingface_hub.constants"].ENDPOINT = "http://127.0.0.1:9"  # type: ignore[attr-defined]


# --- Runs to compare with ---------------------------------------------------------------------


def write_languages(folder: Path, de: str, fr: str) -> None:
    """A data set of two languages."""
    corpora = {"de_": from_text(de, "de"), "fr_": from_text(fr, "fr")}
    options: dict[str, Any] = {"add_bos_eos": False, "languages": ("de", "fr")}
    write_tokens(folder, corpora, Tokenizer.char(TEXT), split_tail(0.1), **options)


class World:
    """A folder with data and finished runs; `place` gives each test a new corner of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "foxes"
        write_dataset(self.data, TEXT, Tokenizer.char(TEXT), val_fraction=0.1, source="a test")
        self.languages = folder / "languages"
        write_languages(self.languages, TEXT, TEXT[900:])
        self._finished: dict[str, Path] = {}
        self._seconds: dict[Path, float] = {}
        self._places = 0

    def place(self) -> Path:
        self._places += 1
        path = self.folder / f"place{self._places}"
        path.mkdir()
        return path

    def config(self, out: Path, **changes: Any) -> TrainConfig:
        return tiny(self.data, out, **FULL | changes)

    def finished(self, n: int = 1, **changes: Any) -> Path:
        """The folder of a run with these settings that nothing happened to."""
        key = f"{n} {changes}"
        if key not in self._finished:
            out = self.place() / "out"
            begin = time.monotonic()
            status, printed = Job(self.config(out, **changes), n=n).result()
            assert status == 0, printed
            self._seconds[out] = time.monotonic() - begin
            self._finished[key] = out
        return self._finished[key]

    def seconds(self, out: Path) -> float:
        """How long a finished run took, from the start of its process on."""
        return self._seconds[out]

    def stopped(self) -> Path:
        """A copy of a run that ended at step 8 of 16, with the state of step 4 as the one before."""
        out = self.place() / "out"
        shutil.copytree(self.finished(max_iters=8), out)
        return out

    def goes_on(self, out: Path, n: int = 1, **changes: Any) -> str:
        """Resume a run to its end; what is not as if it had never stopped, "" if all is."""
        status, printed = Job(self.config(out, init_from="resume", **changes), n=n).result()
        if status != 0:
            return f"resuming ended with {status}: {printed[-500:]}"
        return difference(out, self.finished(n, **changes))


def difference(out: Path, other: Path) -> str:
    """In what a finished run differs from another, "" if bit for bit in nothing."""
    for name in ("ckpt.pt", "best.pt"):
        if not identical(learned(out, name), learned(other, name)):
            return f"{name} differs"
    if without_timings(records(out)) != without_timings(records(other)):
        return "metrics.jsonl differs"
    return f"{temporary(out)[0]} is left" if temporary(out) else ""
