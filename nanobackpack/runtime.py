"""Where and how things run: device, number type, compilation, memory, and where randomness comes from.

device = pick_device("auto")                      # cuda, else mps, else cpu
with autocast(device, pick_dtype("auto", device)), eval_mode(model) as model:
    logits = model(ids.to(device)).logits
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanobackpack.errors import InputError

AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device called `name`; "auto" takes cuda, else mps, else cpu.

    With several processes, local_rank says which of this machine's processes this is.
    """
    # Several processes: each takes a GPU of its own, or all share the CPU.
    if local_rank is not None:
        gpus = torch.cuda.device_count()
        if name not in ("auto", "cuda", "cpu"):
            raise InputError(
                f"device={name!r} is for one process: of several each takes a GPU of its own with "
                "--device=cuda (or auto), or all share the CPU with --device=cpu"
            )
        if name != "cpu" and 0 < gpus <= local_rank:
            raise InputError(
                f"process {local_rank} of this machine has no GPU, since it has {gpus}: "
                f"start at most --nproc_per_node={gpus}"
            )
        if name == "auto":
            name = "cuda" if gpus else "cpu"
        if name == "cuda" and gpus:
            name = f"cuda:{local_rank}"
    # One process: whatever this machine has, the fastest first.
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found[0:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name == "auto":
        return torch.device(found[0])
    if name not in found:
        raise InputError(
            f"device={name!r} is not here: this machine has {', '.join(found)} (or --device=auto)"
        )
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products; "auto": bfloat16 on GPUs with hardware for it, else float32."""
    cuda = device.type == "cuda"
    if name == "auto":
        has_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float32
    if name == "float16" and not cuda:  # only there are its gradients scaled
        raise InputError(f"dtype=float16 needs a CUDA device, not {device}: take --dtype=float32 or auto")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Run matrix products in `dtype`; nothing to do for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Rows of ids of different lengths as one tensor (B, T), filled up with 0 on the right, where nothing
    that comes before can see it."""
    T = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (T - len(row))] for row in rows], device=device)  # (B, T)


def in_eval_mode(model: AnyModule) -> AnyModule:
    """Return the model in eval mode: itself if it is, else a twin that shares its weights. The mode of the
    model itself, which other threads may see, never changes."""
    if not any(part.training for part in model.modules()):
        return model
    twin = copy.copy(model)  # all that it has is the same but for its parts and its mode
    twin._modules = {name: part and in_eval_mode(part) for name, part in model._modules.items()}
    twin.training = False
    return twin


@contextlib.contextmanager
def any_length() -> Iterator[None]:
    """Attend without cuDNN, which on a GPU plans for 50 ms whenever it meets a text of a new length. That
    is well spent in training, where all are of one length, but not on text that grows token by token."""
    if not torch.cuda.is_initialized():
        yield
        return
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


@contextlib.contextmanager
def eval_mode(model: AnyModule) -> Iterator[AnyModule]:
    """Use a model without training it: `with eval_mode(model) as model:` has it in eval mode, and there are
    no gradients."""
    with torch.no_grad(), any_length():
        yield in_eval_mode(model)


def pick_compile(setting: Literal["auto"] | bool, device: torch.device) -> bool:
    """Decide whether to compile; "auto" does on CUDA where Triton is installed."""
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # no part of torch imports it before this

        missing = "" if has_triton() else "Triton"
    else:
        compilers = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")
        missing = "" if any(map(shutil.which, compilers)) else "a C++ compiler"
    if missing and setting is True:
        raise InputError(f"compile=True needs {missing}, not found here: take --compile=False")
    return not missing


def check_memory(what: str, needed: int, device: torch.device | None = None) -> None:
    """Refuse what needs more bytes than the device (None: this machine) has at all."""
    there: float = math.inf
    if device and device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise InputError(
            f"out of memory: {what} needs {needed / 1e9:,.0f} GB or more, and there are "
            f"{there / 1e9:,.0f}: "
            "take smaller sizes, such as --n_embd, --n_layer, --block_size or --batch_size"
        )


def keep_memory(keep: bool = True) -> None:
    """Keep the memory that tensors free, for speed; or else give it back at once, to need less.

    By default glibc gives back each tensor above 32 MB, and the next one is fetched from the kernel page by
    page: a quarter of a CPU step with a large vocabulary. Smaller ones it keeps, in pieces that do not always
    fit the next tensor: a quarter more memory (docs/LOG.md). Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
            if keep:
                libc.mallopt(M_MMAP_MAX, 0)
                libc.mallopt(M_TRIM_THRESHOLD, -1)
            else:
                libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
                libc.mallopt(M_TRIM_THRESHOLD, 1 << 20)


def seed_of(*key: int) -> int:
    """Make a 63-bit seed from a few numbers such as (seed, purpose, step): a different one for each key."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def generator(*key: int) -> torch.Generator:
    """Make a CPU generator for the draw that `key` names, independent of all other draws."""
    return torch.Generator().manual_seed(seed_of(*key))
