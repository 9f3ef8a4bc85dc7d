"""What only a GPU can tell: a GPT-2-small in bfloat16, and the ways there are to compute the hot operations.

    nanobackpack bench --device=cuda                # this table, some minutes on an H100
    nanobackpack bench --device=cuda --only=sum     # the rows whose name contains this

Everything runs in one process, a row after the other, so that nothing else uses the GPU meanwhile.
Each way to compute an operation is compared with the plain formula in float32: `error` is the largest
difference, as a share of the largest number. tests/gpu.sh runs this between the GPU's tests and a training.

Letters: B batch, T time (positions), D width, K senses, U unique token ids, N = B·T tokens, V vocabulary.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanobackpack.bench.work import ModelWork, Setup, peak_memory
from nanobackpack.bench.workers import COLUMNS
from nanobackpack.model import kernels
from nanobackpack.model.flops import flops_per_step, peak_flops
from nanobackpack.model.kernels import linear_cross_entropy, sense_sum, sense_sum_plain, unique_ids
from nanobackpack.runtime import autocast, pick_dtype

SMALL = Setup(V=50304, L=12, H=12, D=768, T=1024, B=12, K=16)
Row = dict[str, Any]
Way = Callable[..., Tensor]
Inputs = tuple[list[Tensor], Tensor]  # what has gradients, and what has none
KINDS = ("ours", "gpt deep", "plain", "gpt", "plain compiled")


def rows(
    device: torch.device, only: str = "", setup: Setup = SMALL, batches: tuple[int, ...] = (12, 4, 32)
) -> Iterator[Row]:
    """Measure the rows of the table whose name contains `only`, one at a time."""
    todo: list[tuple[str, Setup, Callable[[Setup], Row]]] = []

    def add(what: str, sizes: Setup, measure: Callable[..., Row], **settings: Any) -> None:
        todo.append((what, sizes, partial(measure, device=device, **settings)))

    for B in batches:  # the usual size first, in case that the time is short
        sizes, is_first = setup._replace(B=B), batches[0] == B
        for kind in KINDS if is_first else KINDS[:3]:
            add(f"train step: {kind}", sizes, step, kind=kind)
        for name, way in sums().items() if is_first else []:
            add(f"weighted sum: {name}", sizes, compare, way=way, plain=sense_sum_plain, make=sum_inputs)
        for name, way in losses().items() if is_first else []:
            add(f"loss of the head: {name}", sizes, compare, way=way, plain=plain_head, make=loss_inputs)
        for samples in (1, 64) if is_first else ():
            add(f"generate {samples}", setup._replace(B=1), generate, samples=samples)
            add(f"a token of {samples}", setup._replace(B=1), graphed, samples=samples)
    empty = dict.fromkeys((*COLUMNS, "ratio", "met"))
    empty |= dict.fromkeys(("compares", "target", "note"), "")
    for what, sizes, measure in todo:
        if only.lower() in what:
            forget(device)
            yield {"what": what, "config": str(sizes), "unit": "ms"} | empty | measure(sizes)


def median_ms(device: torch.device, work: Callable[[], Any], times: int = 10, warm: int = 3) -> float:
    """Milliseconds that `work` takes: the median of some calls, after others that compile and fill caches."""
    measured = []
    for _ in range(warm + times):
        start = clock(device)
        work()
        measured.append(1000 * (clock(device) - start))
    return statistics.median(measured[warm:])


def clock(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget(device: torch.device) -> None:
    """Free what earlier rows left: memory, and compiled code, of which torch keeps only some per function."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- Ways to compute an operation -------------------------------------------------------------


def sum_inputs(setup: Setup, device: torch.device) -> Inputs:
    """q, k, C of random numbers, and where: the tokens of text, as frequent as words are."""
    ids = unique_ids(setup.ids(0)[:, :-1].contiguous(), setup.V, multiple=1024)
    B, T, K, D = setup.B, setup.T, setup.K, setup.D
    shapes = [(B, K, T, D // K), (B, K, T, D // K), (len(ids.ids), K, D)]  # q, k, C
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(device) for shape in shapes], ids.where.to(device)


def torch_sum(q: Tensor, k: Tensor, C: Tensor, where: Tensor, parts: int = 1) -> Tensor:
    """The weighted sum as attention whose heads are added; with `parts`, the senses cut into narrower values,
    each with queries and keys of its own, since some of torch's kernels take narrow ones only."""
    values = C[where].transpose(1, 2)  # (B, K, T, D)
    values = values.unflatten(3, (parts, -1)).movedim(3, 1).flatten(1, 2)  # (B, parts·K, T, D/parts)
    q, k = q.repeat(1, parts, 1, 1), k.repeat(1, parts, 1, 1)  # (B, parts·K, T, D/K)
    o = F.scaled_dot_product_attention(q, k, values, is_causal=True, scale=1.0)
    return o.unflatten(1, (parts, -1)).sum(dim=2).movedim(1, 2).flatten(2)  # (B, T, D)


def flex_sum(q: Tensor, k: Tensor, C: Tensor, where: Tensor) -> Tensor:
    """The weighted sum by flex_attention, which compiles a kernel of its own."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    T = q.size(2)
    causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=q.device.type)
    return flex_attention(q, k, C[where].transpose(1, 2), block_mask=causal, scale=1.0).sum(dim=1)


def sums() -> dict[str, Way]:
    return {
        "ours": sense_sum,
        "plain": sense_sum_plain,
        "compiled plain": torch.compile(sense_sum_plain),
        "scaled_dot_product_attention": torch_sum,
        "the same in 6 parts": partial(torch_sum, parts=6),
        "flex_attention": torch.compile(flex_sum),
    }


def loss_inputs(setup: Setup, device: torch.device) -> Inputs:
    """h and E of random numbers, and the targets."""
    draw = torch.Generator().manual_seed(0)
    h, E = (torch.randn(*s, setup.D, generator=draw) / 8 for s in ((setup.B, setup.T), (setup.V,)))
    return [h.to(device), E.to(device)], setup.ids(0)[:, 1:].to(device)


def plain_head(h: Tensor, E: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((h @ E.T).float().flatten(0, 1), targets.flatten())


def losses() -> dict[str, Way]:
    def chunked(size: int, h: Tensor, E: Tensor, targets: Tensor) -> Tensor:
        usual, kernels.CHUNK_LOGITS = kernels.CHUNK_LOGITS, size
        try:
            return linear_cross_entropy(h, E, targets)
        finally:
            kernels.CHUNK_LOGITS = usual

    ways: dict[str, Way] = {"ours": linear_cross_entropy}
    ways |= {f"ours, chunks of 2^{n} logits": partial(chunked, 1 << n) for n in (24, 26, 27, 28, 29)}
    ways |= {"plain": plain_head, "compiled plain": torch.compile(plain_head)}
    if theirs := getattr(F, "linear_cross_entropy", None):  # new in torch 2.13
        ways["F.linear_cross_entropy"] = lambda h, E, y: theirs(h.flatten(0, 1), E, y.flatten())
    return ways


def compare(
    setup: Setup, device: torch.device, way: Way, plain: Way, make: Callable[[Setup, torch.device], Inputs]
) -> Row:
    """Forward and backward of a way; in the note forward alone, the memory, and the error."""
    dtype = pick_dtype("auto", device)
    try:
        # First on one sequence: what is right, in float32, and what the way makes of it in the device's type.
        inputs, last = make(setup._replace(B=1), device)
        expected = gradients(plain, inputs, last)
        pairs = zip(gradients(way, [t.to(dtype) for t in inputs], last), expected, strict=True)
        error = max(((got.float() - right).abs().max() / right.abs().max()).item() for got, right in pairs)
        # Then its time and memory.
        inputs, last = make(setup, device)
        inputs = [t.to(dtype) for t in inputs]
        with torch.no_grad():
            forward = median_ms(device, lambda: way(*inputs, last))
        before = peak_memory(device, reset=True)
        both = median_ms(device, lambda: gradients(way, inputs, last))
        peak = (peak_memory(device) - before) / 1e6
    except (RuntimeError, NotImplementedError, torch._dynamo.exc.TorchDynamoException) as error_:
        return {"note": f"fails: {str(error_).strip().splitlines()[0][:90]}"}
    return {"ours": both, "note": f"forward {forward:.3g} ms, {peak:,.0f} MB, error {error:.1e}"}


def gradients(way: Way, inputs: list[Tensor], last: Tensor) -> list[Tensor]:
    """What a way computes, and the gradients of its inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = way(*inputs, last)
    weights = (
        torch.linspace(-1, 1, out.size(-1), device=out.device, dtype=out.dtype) if out.dim() else out * 0 + 1
    )
    return [out.detach(), *torch.autograd.grad((out * weights.detach()).sum(), inputs)]


# --- A training step, and generation ----------------------------------------------------------


def step(setup: Setup, device: torch.device, kind: str) -> Row:
    """A training step, its memory above model and optimizer state, and MFU; out of memory is a result too."""
    try:
        work = ModelWork(kind, setup, device)
        work.step(5)  # compiles, also for each number of unique ids
        _, above = work.memory()
        ms = statistics.median(work.step(1) for _ in range(8))
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    config, peak = setup.model(kind), peak_flops(device)
    mfu = f", MFU {flops_per_step(config, setup.B) / peak / ms * 1000:.1%}" if peak else ""
    note = f"{setup.B * setup.T / ms * 1000:,.0f} tokens/s, {above / 1e6:,.0f} MB{mfu}"
    return {kind.split()[0]: ms, "note": note}


def generate(setup: Setup, device: torch.device, samples: int, n: int = 500) -> Row:
    """Tokens per second of ours and of a GPT with the same context network."""
    speeds: dict[str, float] = {}
    for kind in ("ours", "gpt"):
        work = ModelWork(kind, setup, device)
        work.generate(8, samples, 1.0, False, 0)
        speeds[kind] = work.generate(min(n, setup.T - 1), samples, 1.0, False, 0)
    note = f"{1000 * samples / speeds['ours']:.2f} ms for a token of each"
    return speeds | {
        "unit": "tokens/s",
        "compares": "ours/gpt",
        "ratio": speeds["ours"] / speeds["gpt"],
        "note": note,
    }


def graphed(setup: Setup, device: torch.device, samples: int) -> Row:
    """A token in mid-context, its kernels started one by one (plain) or as a CUDA graph (ours)."""
    if device.type != "cuda":
        return {"note": "needs CUDA"}
    work = ModelWork("ours", setup, device)
    model, half = work.model.eval(), setup.T // 2
    with torch.inference_mode(), autocast(device, work.dtype):
        cache = model.new_cache()
        prompt = torch.zeros(samples, half, dtype=torch.int64, device=device)
        model.next_logits(prompt, cache)
        new = torch.zeros(samples, 1, dtype=torch.int64, device=device)
        # All senses are known, so that no number has to come back to the CPU.
        cache.sense_memory = cache.sense_memory.rows.__getitem__

        def token() -> Tensor:
            cache.length = half
            logits: Tensor = model.next_logits(new, cache)
            return logits

        one_by_one = median_ms(device, token)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            token()
        at_once = median_ms(device, graph.replay)
    return {"ours": at_once, "plain": one_by_one, "compares": "plain/ours", "ratio": one_by_one / at_once,
            "note": "CUDA graph against kernel by kernel"}  # fmt: skip
