"""Device, number type, compilation and randomness; and that importing the package does nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_house import MODULES

from nanobackpack.errors import InputError
from nanobackpack.runtime import autocast, generator, pick_compile, pick_device, pick_dtype, seed_of
from nanobackpack.safe.run import start_aside

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)


# --- Work in a library ------------------------------------------------------------------------


def test_work_aside_gives_its_result_or_its_error() -> None:
    assert start_aside(lambda: 3)() == 3
    with pytest.raises(ZeroDivisionError):
        start_aside(lambda: 1 // 0)(limit=9)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_work_aside_is_left_at_ctrl_c_and_at_its_limit() -> None:
    released = threading.Event()
    result = start_aside(released.wait)  # hears no signal
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        result()
    with pytest.raises(TimeoutError):
        result(limit=-1)
    released.set()
    assert result() is True


# --- Device, type, compilation ----------------------------------------------------------------


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "CPU", "cpu:1", "meta"])
def test_a_device_that_is_not_here_is_one_line(name: str) -> None:
    with pytest.raises(
        InputError, match=f"^device='{name}' is not here: this machine has .*cpu.*--device=auto"
    ):
        pick_device(name)


@no_gpu
def test_a_plain_machine_has_a_cpu_alone() -> None:
    assert pick_device("auto") == CPU
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(InputError, match="this machine has cpu "):
            pick_device(name)


def test_dtype_on_cpu() -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("float32", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(InputError, match=r"float16.*cpu.*--dtype=float32"):
        pick_dtype("float16", CPU)
    assert pick_dtype("float16", torch.device("cuda")) == torch.float16


def test_autocast_sets_the_type_of_products_inside_it_alone() -> None:
    a = torch.ones(2, 2)
    with autocast(CPU, torch.float32):
        assert (a @ a).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    assert (a @ a).dtype == torch.float32


def test_compile_is_off_on_cpu_unless_asked_for() -> None:
    assert pick_compile("auto", CPU) is False
    assert pick_compile(False, CPU) is False
    assert pick_compile(False, torch.device("cuda")) is False


def test_compile_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("c++") is None
    with pytest.raises(InputError, match="--compile=False"):
        pick_compile(True, CPU)
    assert pick_compile("auto", CPU) is False
    compiler = tmp_path / ("cl.exe" if sys.platform == "win32" else "c++")
    compiler.write_text("")
    compiler.chmod(0o755)
    assert pick_compile(True, CPU) is True


# --- Randomness -------------------------------------------------------------------------------


def test_seeds_are_fixed_numbers() -> None:
    """Their values are part of what makes old runs repeatable, so they must not drift."""
    assert seed_of(1337, 0) == 6791203004760804454
    assert seed_of(1337, 1, 0, 0) == 8311963500192281539
    assert seed_of(0) == 7896617691693857887


def test_seeds_differ_for_different_keys() -> None:
    keys = [(s, p, t, m) for s in (0, 1, 1337) for p in range(4) for t in range(30) for m in range(3)]
    seeds = {seed_of(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed >> 40 for seed in seeds}) > 0.99 * len(keys)  # spread out, not consecutive
    assert seed_of(1, 2) != seed_of(2, 1)


def test_generators_repeat_and_are_independent() -> None:
    def draw(*key: int) -> list[int]:
        return torch.randint(10**6, (8,), generator=generator(*key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    draws = [draw(s, p, t) for s in range(3) for p in range(3) for t in range(3)]
    assert len({tuple(d) for d in draws}) == 27
    one, two, before = generator(5, 1), generator(5, 2), torch.get_rng_state()
    torch.rand(100, generator=one)  # drawing from one leaves the other alone, and torch's own
    assert torch.equal(torch.rand(4, generator=two), torch.rand(4, generator=generator(5, 2)))
    assert torch.equal(torch.get_rng_state(), before)


# --- Importing --------------------------------------------------------------------------------

PROBE = """
import importlib, json, logging, random, signal, sys
import numpy, torch

class NoReading(list):
    def __getitem__(self, index):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("nanobackpack"):
            raise SystemExit(f"{caller} read argv")
        return super().__getitem__(index)
    def __iter__(self):
        return iter([self[i] for i in range(len(self))])

def state():
    return {
        "torch": torch.initial_seed(),
        "torch state": torch.get_rng_state().tolist(),
        "numpy": [numpy.random.get_state()[1].tolist(), numpy.random.get_state()[2]],
        "random": hash(random.getstate()),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "handlers": len(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
    }

modules, absent = json.loads(sys.argv[1])
sys.argv = NoReading(["probe", "--no_such_setting=1"])
before = state()
package = importlib.import_module("nanobackpack")
heavy = [m for m in ("matplotlib", "pandas", "transformers", *absent) if m in sys.modules]
sys.modules.update(dict.fromkeys(absent))
for name in modules:
    importlib.import_module(name)
names = [name for name in package.__all__ if getattr(package, name) is None or name not in dir(package)]
after = state()
changed = [k for k in before if before[k] != after[k]]
with open("result.json", "w") as f:
    json.dump({"changed": changed, "heavy": heavy, "names": names, "argv": list.copy(sys.argv)}, f)
"""


EXTRAS = ["transformers", "datasets", "wandb", "scipy", "sklearn", "tiktoken", "pytest", "hypothesis"]
EXTRAS += ["trackio", "tensorboard", "lm_eval", "gradio", "playwright"]
# One goes with exported models and is imported by transformers, the other measures that library.
OF_TRANSFORMERS = ["nanobackpack.hub.modeling_backpack", "nanobackpack.bench.library"]


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ([m for m in MODULES if not m.endswith(("__main__", *OF_TRANSFORMERS))], EXTRAS),
        pytest.param(["nanobackpack.hub", *OF_TRANSFORMERS], [], marks=pytest.mark.slow),
    ],
    ids=["core", "transformers"],
)
def test_importing_does_nothing_else(tmp_path: Path, modules: list[str], absent: list[str]) -> None:
    """Every module, in a fresh interpreter in an empty folder; what pip installs without extras is enough for
    them and for every public name."""
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "probe.py", json.dumps([modules, absent])],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = json.loads((tmp_path / "result.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} - {"probe.py", "result.json", "__pycache__"} == set()
    assert result["argv"] == ["probe", "--no_such_setting=1"]
    assert result["changed"] == []  # seeds, default type and device, threads, logging, signals
    assert result["heavy"] == result["names"] == []
