"""Text from a model: cached decoding and sampling.

The cache holds what earlier positions contribute, so each new token costs one position. Once the context
is full the window slides; learned positions shift with it, so nothing cached stays valid and the window is
computed again for each token, as the plain definition asks. With `restart` it is cut to its later half
instead, which lasts half a window: many times faster, but the model sees between half a window and a
whole one, 3/4 on average (docs/RESULTS.md says what that does to the loss).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from nanobackpack.checkpoint import load_model
from nanobackpack.config import InputError, SampleConfig
from nanobackpack.layers import LanguageModel, check_ids
from nanobackpack.prepare import read_text
from nanobackpack.runtime import autocast, keep_memory, pick_compile, pick_device, pick_dtype


@torch.inference_mode()
def stream(
    model: LanguageModel,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    restart: bool = False,
) -> Iterator[Tensor]:
    """Continue input_ids (B, T), T from 1 to any length; yield the new ids (B) one step at a time.

    temperature 0 takes the likeliest token. The model is put in eval mode while this runs.
    Raises: ValueError for ids, max_new_tokens, temperature, top_k or top_p out of range, and logits that
    are no numbers.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be >= 0")
    size = model.config.block_size
    check_ids(input_ids, model.config.vocab_size, max(size, input_ids.numel()))  # a longer prompt is cut
    was_training = model.training
    model.eval()
    try:
        cache, ids = model.new_cache(), input_ids[:, -size:]  # (B, T)
        new = ids
        for _ in range(max_new_tokens):
            if cache.length == size:
                cache.clear()
                new = ids = ids[:, -max(1, size // 2) :] if restart else ids[:, -size:]
            if cache.length == 0 and len(new) > 1 and new.stride(0) == 0:  # one prompt for all
                logits = model.next_logits(new[:1], cache).expand(len(new), -1)  # (B, V)
                cache.expand(len(new))
            else:
                logits = model.next_logits(new, cache)  # (B, V)
            chosen = choose(logits[:, : model.config.n_token], temperature, top_k, top_p, generator)
            yield chosen
            new = chosen[:, None]  # (B, 1)
            ids = torch.cat([ids, new], dim=1)[:, -size:]
    finally:
        model.train(was_training)


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One id (B) per row of logits (B, V).

    Temperature first, then top_k, then top_p: the smallest set of likeliest tokens whose probability
    reaches top_p (Holtzman et al. 2020). None switches either off.
    Raises: ValueError for a temperature below 0 or infinite, top_k below 1, top_p outside (0, 1], and on
    the CPU (elsewhere it would stall the device) for logits of which none is finite or one is no number.
    """
    if not 0 <= temperature < math.inf or (top_k is not None and top_k < 1):  # `not >=` also refuses NaN
        raise ValueError(f"temperature {temperature} must be >= 0 and finite, and top_k {top_k} >= 1 or None")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} must be above 0 and at most 1")
    highest = logits.amax(dim=1, keepdim=True)  # (B, 1)
    if logits.device.type == "cpu" and not highest.isfinite().all():
        raise InputError("the logits are not finite numbers: the weights of this model are too large")
    finite = torch.finfo(logits.dtype)
    if temperature < finite.tiny:
        return logits.argmax(dim=1)
    # The likeliest at 0, so that a tiny temperature cannot make it infinite.
    logits = (logits - highest) / min(temperature, finite.max)
    if top_k is not None and top_k < logits.size(1):
        kth = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, order = logits.softmax(dim=1).sort(dim=1, descending=True)
        outside = ranked.cumsum(dim=1) - ranked >= top_p  # what the likelier ones already cover
        outside[:, 0] = False  # whatever top_p is rounded to
        logits = logits.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


def sample(config: SampleConfig) -> None:
    """Print config.num_samples continuations of config.start, all grown in one batch.

    On a terminal the first appears as it grows. Each is followed by a line of dashes.
    Raises: InputError for a prompt or model that cannot be used.
    """
    keep_memory()
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    pick_compile(config.compile, device)  # decoding is not compiled; a wrong setting is still refused
    model = load_model(config.model_path).to(device)
    if model.tokenizer is None:
        raise InputError(f"{config.model_path} came without a tokenizer, so it cannot read a prompt")
    prompt = config.start
    if prompt.startswith("FILE:"):
        prompt = read_text(Path(prompt.removeprefix("FILE:")))
    ids = model.tokenizer.encode(prompt)
    if not ids:
        raise InputError("the prompt is empty: give at least one character with --start")
    start = torch.tensor([ids], device=device).expand(config.num_samples, -1)  # (B, T)
    draw = torch.Generator(device).manual_seed(config.seed)

    watched = sys.stdout.isatty()
    if watched:
        print(prompt, end="", flush=True)
    rows: list[list[int]] = [[] for _ in range(config.num_samples)]
    with autocast(device, dtype):
        for new in stream(
            model,
            start,
            config.max_new_tokens,
            config.temperature,
            config.top_k or None,
            config.top_p,
            draw,
            config.restart,
        ):
            for row, token in zip(rows, new.tolist(), strict=True):
                row.append(token)
            if watched:
                shown = model.tokenizer.decode(rows[0][:-1])
                print(model.tokenizer.decode(rows[0])[len(shown) :], end="", flush=True)
    texts = [prompt + model.tokenizer.decode(row) for row in rows]
    if watched:
        print("\n" + "-" * 15)
    for text in texts[watched:]:
        print(text + "\n" + "-" * 15)
