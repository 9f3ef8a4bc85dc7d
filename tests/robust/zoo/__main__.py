"""Write the zoo, or feed its beasts to their loaders in this process and watch what it does.

    python -m tests.robust.zoo DIR                       # writes all, and says why each is hostile
    python -m tests.robust.zoo DIR BEAST:LOADER...       # what test_zoo.py starts: the beasts lie in DIR

Feeding prints one JSON line for each: what came of it, and whatever the process did that opening a file does
not need. A beast that takes longer than TIMEOUT_S ends the process with SIGALRM.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 (what is imported later, now)
import torch

from nanobackpack import TrainConfig, load_model
from nanobackpack.analysis import control
from nanobackpack.errors import InputError
from nanobackpack.evaluate.lexical_similarity import read_pairs
from nanobackpack.evaluate.scoring import read_json_lines
from nanobackpack.text.corpus import from_files
from nanobackpack.text.data import TokenData
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer
from nanobackpack.train.log import Log, plot_losses

from . import BEASTS, dataset, train, write

TIMEOUT_S = 20
MEMORY_BYTES = 4 << 30  # of address space: torch itself needs half of it


# --- What the beasts are fed to: all that reads files which may come from strangers -----------


def use_model(folder: Path) -> None:
    model = load_model(folder)
    assert model.config.vocab_size == 4
    assert all(p.isfinite().all() for p in model.parameters())


def use_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    ids = tokenizer.encode("a" * 40 + "b")
    assert max(ids) < tokenizer.vocab_size < 100
    tokenizer.decode(ids)
    tokenizer.decode([0, 0])


def use_foreign_tokenizer(folder: Path) -> None:
    assert max(load_tokenizer(str(folder)).encode("the cat")) < 2000


def use_corpus(folder: Path) -> None:
    for piece in from_files([folder]).read():
        piece.text.encode()


def use_test_sets(folder: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".jsonl":
            read_json_lines(file, ("text",))
        else:
            read_pairs("ws353", file)


def use_data(folder: Path) -> None:
    opened = TokenData(folder)
    assert opened.vocab_size is not None
    assert opened.tokenizer is not None
    opened.tokenizer.encode("a" * 40 + "b")
    for ids in opened.splits.values():
        assert int(ids.max()) < opened.vocab_size


def use_run(folder: Path) -> None:
    outside = folder.parent / f"outside-{folder.name}"
    try:
        train(folder.parent / "data", folder)
    finally:
        assert not outside.exists() or outside.read_text(encoding="utf-8") == "precious"


def use_metrics(folder: Path) -> None:
    log = Log(TrainConfig(out_dir=str(folder), init_from="resume"), 5)
    log.record(step=6, train_loss=1.0)
    log.close()
    plot_losses(folder / "metrics.jsonl", folder / "loss.png")


LOADERS: dict[str, Callable[[Path], object]] = {
    "model": use_model,
    "resume": lambda folder: train(folder.parent / "data", folder, init_from="resume"),
    "tokenizer": use_tokenizer,
    "found": use_foreign_tokenizer,
    "edits": lambda folder: control.load(folder / "edits.safetensors"),
    "corpus": use_corpus,
    "testset": use_test_sets,
    "data": use_data,
    "run": use_run,
    "metrics": use_metrics,
    "unsafe": lambda folder: torch.load(folder / "ckpt.pt", weights_only=False),  # what nobody should do
}
MAY_WRITE = ("resume", "run", "metrics")  # loaders that write into the folder they are given


# --- Watching ---------------------------------------------------------------------------------

NEVER = ("os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "subprocess", "socket", "pty")
NEVER += ("webbrowser", "pickle.find_class", "ctypes.dlopen", "os.kill", "os.putenv")
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil")


class Watch:
    """What the process did, as Python's audit hook tells."""

    def __init__(self) -> None:
        self.allowed: Path | None = None  # the folder that may be written to
        self.did: list[str] = []
        self.on = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        written: list[Any] = []
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written = [args[0]]
        elif event.startswith(WRITES):
            paths = [os.fsdecode(a) for a in args if isinstance(a, str | bytes | os.PathLike)]
            written = [os.path.join(os.path.realpath(os.path.dirname(p)), os.path.basename(p)) for p in paths]
        # ctypes.CDLL(None) is this process itself, and a run notes the name of its machine in its lock.
        never = event.startswith(NEVER) and args != (None,) and event != "socket.gethostname"
        if never or any(self.is_outside(w, event == "open") for w in written):
            self.did.append(f"{event} {args!r}"[:200])

    def is_outside(self, path: Any, follow: bool) -> bool:
        if isinstance(path, int) or self.allowed is None:
            return self.allowed is None
        whole = os.path.realpath(os.fsdecode(path)) if follow else path
        return not (whole + os.sep).startswith(str(self.allowed) + os.sep)


def feed(root: Path, meals: list[str]) -> None:
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    os.chdir(scratch)  # where PROOF would appear
    (root / "data").mkdir(exist_ok=True)
    dataset(root / "data")
    train(root / "data", root / "warm")  # torch imports much more once it is used
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    watch = Watch()

    def memory_mb(what: str) -> float:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split(f"{what}:")[1].split()[0]) / 1024

    for meal in meals:
        name, loader = meal.split(":")
        watch.did, watch.allowed = [], root / name if loader in MAY_WRITE else None
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before, start = memory_mb("VmRSS"), time.process_time()
        signal.alarm(3 if loader == "unsafe" else TIMEOUT_S)
        watch.on = True
        try:
            LOADERS[loader](root / name)
            outcome, message = "opened", ""
        except InputError as error:
            outcome, message = "refused", str(error)
        except BaseException:
            outcome, message = "failed", traceback.format_exc()[-1500:]
        watch.on = False
        signal.alarm(0)
        if os.listdir(scratch):
            watch.did.append(f"left {os.listdir(scratch)} behind")
        row = {"meal": meal, "outcome": outcome, "message": message, "did": watch.did}
        row |= {"mb": memory_mb("VmHWM") - before, "s": time.process_time() - start}
        print("\n" + json.dumps(row), flush=True)


def write_all(root: Path) -> None:
    for name, beast in BEASTS.items():
        write(name, root / name)
        print(f"{name:<28} {', '.join(beast.loaders):<16} {beast.why}")


if __name__ == "__main__":
    folder, *meals = sys.argv[1:]
    feed(Path(folder).resolve(), meals) if meals else write_all(Path(folder))
