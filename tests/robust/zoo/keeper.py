"""Feed beasts of the zoo to their loaders, in this process, and watch what it does. Used by test_zoo.py.

    python -m tests.robust.zoo.keeper DIR BEAST:LOADER...

The beasts lie in folders of DIR. Prints one JSON line for each: what came of it, and whatever the process
did that opening a file does not need. A beast that takes longer than TIMEOUT_S ends it with SIGALRM.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 (what is imported later, now)

from nanobackpack.errors import InputError

from . import LOADERS
from .loaders import train
from .registry import dataset

TIMEOUT_S = 20
MEMORY_BYTES = 4 << 30  # of address space: torch itself needs half of it

NEVER = ("os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "subprocess", "socket", "pty")
NEVER += ("webbrowser", "pickle.find_class", "ctypes.dlopen", "os.kill", "os.putenv")
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil")
MAY_WRITE = ("resume", "run", "metrics")  # loaders that write into the folder they are given


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


def main() -> None:
    here, *meals = sys.argv[1:]
    root = Path(here).resolve()
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
        folder = root / name
        watch.did, watch.allowed = [], folder if loader in MAY_WRITE else None
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before, start = memory_mb("VmRSS"), time.process_time()
        signal.alarm(TIMEOUT_S)
        watch.on = True
        try:
            LOADERS[loader](folder)
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


if __name__ == "__main__":
    main()
