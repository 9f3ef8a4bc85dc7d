"""Many processes as one: who they are, what they agree on, and a model spread over them.

    with joined("auto") as processes:          # those that torchrun started, or this one alone
        forward = processes.wrap(model, "ddp", compiled=False)
        loss = processes.mean(loss)

torchrun starts the processes and names them in the environment; torch.distributed connects them, by NCCL
between GPUs and by gloo between CPUs. A run of one process touches none of it. Two ways to spread a model:

    ddp    Distributed data parallel: each process has a whole copy of the model and trains it on batches of
           its own. Their gradients are averaged, while backward still computes, so the copies stay equal.
    fsdp   Fully sharded data parallel (FSDP2): each process keeps a slice of every weight, its gradient and
           its optimizer state. A block's weights are gathered just before it computes, and dropped after.

docs/scaling.md says how to start them and what each costs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanobackpack.errors import InputError, ProcessLost, first_line, short_repr
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import pick_device

X = TypeVar("X")


@dataclass(frozen=True)
class Processes:
    """The processes of a job as one of them sees them. The one of rank 0 writes and prints.

    All must call `max`, `sum`, `mean`, `gather` and the methods below alike and in the same order.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1

    @property
    def is_local_first(self) -> bool:
        """True on one process per machine (LOCAL_RANK 0)."""
        return not self.is_distributed or _number("LOCAL_RANK", default="0") == 0

    # --- What they agree on -------------------------------------------------------------------

    def max(self, value: int) -> int:
        """Return the highest of the processes' values, by way of the CPU, so that no GPU waits for it."""
        if self.is_distributed:
            highest = torch.tensor(int(value))
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            value = int(highest)
        return value

    def sum(self, t: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.is_distributed:
            dist.all_reduce(t)
        return t

    def mean(self, t: Tensor) -> Tensor:
        """Average over the processes, in place."""
        return self.sum(t).div_(self.world_size)

    def deal(self, items: Iterable[X]) -> Iterator[tuple[X, bool]]:
        """Yield this process's share of items dealt out in turn, one each round, as (item, is_own).

        All processes get the same number, as a sharded model needs. If the last round has fewer items than
        processes, the rest get a copy that must not be counted: is_own is False.
        """
        source = iter(items)
        while one_each := list(islice(source, self.world_size)):
            yield one_each[min(self.rank, len(one_each) - 1)], self.rank < len(one_each)

    def share(self, n: int) -> range:
        """Return this process's part of range(n): consecutive numbers, nearly as many for each process."""
        start, end = (-(-n * rank // self.world_size) for rank in (self.rank, self.rank + 1))
        return range(start, end)

    def gather(self, items: list[X]) -> list[X]:
        """Return all processes' items one after the other."""
        lists = [items] * self.world_size
        if self.is_distributed:
            dist.all_gather_object(lists, items)
        return [item for some in lists for item in some]

    # --- A model spread over them -------------------------------------------------------------

    def wrap(
        self, model: LanguageModel, how: Literal["ddp", "fsdp"], compiled: bool, replay: bool = False
    ) -> nn.Module:
        """Move a model to the device and return what to call for its forward pass.

        Its weights must be the same in all processes. `replay`, for compiled code on a GPU whose shapes never
        change: its kernels are recorded once as a CUDA graph and then started together.
        """
        if self.is_distributed and how == "fsdp":
            self._shard(model, compiled)
            return model
        model.to(self.device)
        mode = "reduce-overhead" if replay else None
        run: nn.Module = torch.compile(model, mode=mode) if compiled else model  # type: ignore[assignment]
        return DistributedDataParallel(run, gradient_as_bucket_view=True) if self.is_distributed else run

    def _shard(self, model: LanguageModel, compiled: bool) -> None:
        """Slice each block, the sense network, and then what is left."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # It warns of in-place operations on what the sense network returns: there are none.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        # And that gloo gathers slices where Muon exchanges them: only NCCL saves memory there.
        logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        # Weights go to the device block by block, so that the whole never lies on it. What is gathered at
        # once is also what is compiled at once.
        for part in model.fsdp_parts:
            if compiled:
                part.compile()
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def sync_on_last(self, forward: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Return the context in which forward and backward of a micro-batch run.

        Whole copies (ddp) average their gradients once a step, in its last micro-batch. Slices (fsdp) do so
        in every micro-batch, as no process has room for a whole gradient.
        """
        wait = isinstance(forward, DistributedDataParallel) and not last
        return forward.no_sync() if wait else contextlib.nullcontext()  # type: ignore[operator]

    def state_of(
        self, model: LanguageModel, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the state dicts of both as one process would have them.

        A sharded model's are gathered on the CPU of rank 0, and are empty elsewhere.
        """
        if not self._is_sharded(model):
            return model.state_dict(), optimizer.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, named = get_state_dict(model, optimizer, options=options)
        if self.rank:
            return {}, {}
        # torch names parameters here; an optimizer of one process numbers them, in the order of its groups.
        state: dict[str, Any] = named["state"]  # type: ignore[assignment]
        groups: list[dict[str, Any]] = named["param_groups"]  # type: ignore[assignment]
        order = [name for group in groups for name in group["params"]]
        return weights, {
            "state": {i: state[name] for i, name in enumerate(order) if name in state},
            "param_groups": optimizer.state_dict()["param_groups"],
        }

    def load_optimizer(
        self, model: LanguageModel, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Load an optimizer's state, which `state_of` gave for the same model however it was spread."""
        if not self._is_sharded(model):
            return optimizer.load_state_dict(state)
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        # From numbers back to names.
        names = {id(p): name for name, p in model.named_parameters()}
        order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        named: dict[str, Any] = {
            "state": {order[i]: s for i, s in state["state"].items()},
            "param_groups": [g | {"params": [order[i] for i in g["params"]]} for g in state["param_groups"]],
        }
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(model, optimizer, optim_state_dict=named, options=options)
        for group in optimizer.param_groups:
            group["betas"] = tuple(group["betas"])  # torch has turned them into lists

    def _is_sharded(self, model: nn.Module) -> bool:
        if not self.is_distributed:
            return False
        from torch.distributed.fsdp import FSDPModule

        return isinstance(model, FSDPModule)


@contextlib.contextmanager
def joined(
    device: str, backend: Literal["nccl", "gloo"] = "nccl", timeout_s: int = 600
) -> Iterator[Processes]:
    """Connect the processes that torchrun started while this lasts; or yield the single one.

    `device` is the setting: each of several processes on a machine takes a GPU of its own. If a process dies,
    or does not answer for `timeout_s`, the others raise ProcessLost.
    """
    # Who are we? torchrun says so in the environment.
    world_size = _number("WORLD_SIZE", lowest=1, default="1")
    if world_size == 1:
        yield Processes(pick_device(device))
        return
    missing = [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE={world_size} asks for several processes, but {missing[0]} is not set: "
            "start them with torchrun (docs/scaling.md), or unset WORLD_SIZE"
        )
    rank, address = _number("RANK", world_size - 1), os.environ["MASTER_ADDR"]
    try:
        socket.getaddrinfo(address or ".", _number("MASTER_PORT", 65535, lowest=1))
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"MASTER_ADDR={short_repr(address)} in the environment is not the name or the address of a "
            f"machine ({first_line(error)}): give torchrun that of the first one with --master_addr"
        ) from error
    own = pick_device(device, _number("LOCAL_RANK"))
    if own.type == "cuda":
        torch.cuda.set_device(own)

    # Find the others.
    try:
        between = "cpu:gloo,cuda:nccl" if own.type == "cuda" and backend == "nccl" else "gloo"
        with _without_stderr():
            dist.init_process_group(between, timeout=timedelta(seconds=timeout_s))
    except RuntimeError as error:
        raise InputError(
            f"process {rank} of {world_size} cannot reach the others ({_reason(error)}): check "
            "--master_addr, --master_port (another run may use it) and the firewall, and name the network "
            "card in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from error

    # Work together, until one of them is lost or all are done.
    try:
        yield Processes(own, rank, world_size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(name in str(error) for name in ("gloo", "NCCL")):
            raise
        raise ProcessLost(
            f"another process of this job ended or cannot be reached ({_reason(error)}); "
            "what was saved before is whole"
        ) from error
    finally:
        # gloo's threads may still drop tensors of the last sum: if Python ends meanwhile, the process aborts.
        time.sleep(0.2)
    # Not after an exception: it could wait for the others. They notice when this process ends.
    dist.destroy_process_group()


def _number(name: str, highest: int = 999_999_999, lowest: int = 0, default: str = "") -> int:
    """Return a number in the environment."""
    text = os.environ.get(name, default)
    if not re.fullmatch(r"[0-9]{1,9}", text) or not lowest <= int(text) <= highest:
        raise InputError(
            f"{name}={short_repr(text)} in the environment is not a number from {lowest} to {highest}: unset "
            "it, or start several processes with torchrun, which sets it"
        )
    return int(text)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keep torch's C++ from printing its stack when it cannot connect: the error says all."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reason(error: Exception) -> str:
    """Say what went wrong, without gloo's source line before it and its advice after it."""
    return re.sub(r"^\[.*?\] ", "", first_line(error)).split(". ")[0]
