"""Text from a model: cached decoding, sampling, beams.

The cache holds what earlier positions contribute, so each new token costs one position. Once the context
is full the window slides; learned positions shift with it, so nothing cached stays valid and the window is
computed again for each token, as the plain definition asks. With `restart` it is cut to its later half
instead, which lasts half a window: many times faster, but the model sees between half a window and a
whole one, 3/4 on average (docs/RESULTS.md says what that does to the loss).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nanobackpack import control
from nanobackpack.checkpoint import load_model
from nanobackpack.config import InputError, SampleConfig
from nanobackpack.distributed import Processes, joined
from nanobackpack.edits import EditLike
from nanobackpack.layers import LanguageModel, check_ids
from nanobackpack.prepare import read_text
from nanobackpack.runtime import autocast, keep_memory, pick_compile, pick_dtype, reading, seed_of


@torch.inference_mode()
def stream(
    model: LanguageModel,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    restart: bool = False,
    edits: EditLike = (),
) -> Iterator[Tensor]:
    """Continue input_ids (B, T), T from 1 to any length; yield the new ids (B) one step at a time.

    temperature 0 takes the likeliest token. With a generator for each row, a row's text depends on its own
    alone. The model is put in eval mode while this runs. `edits` (control.py) hold for this generation;
    what they read of the text is the window.
    Raises: ValueError for ids, max_new_tokens, temperature, top_k or top_p out of range, and logits that
    are no numbers; InputError for unfit edits.
    """
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be >= 0")
    size = model.config.block_size
    check_ids(input_ids, model.config.vocab_size, max(size, input_ids.numel()))  # a longer prompt is cut
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache(edits, input_ids.size(1) + max_new_tokens)
        ids = input_ids[:, -size:]  # (B, T)
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
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Tensor:
    """One id (B) per row of logits (B, V).

    Temperature first, then top_k, then top_p: the smallest set of likeliest tokens whose probability
    reaches top_p (Holtzman et al. 2020). None switches either off. One generator for all rows, or a list
    of one for each.
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
    p = logits.softmax(dim=1)
    if isinstance(generator, list):
        drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(p, generator, strict=True)]
        return torch.cat(drawn)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample(config: SampleConfig) -> None:
    """Print config.num_samples continuations of config.start, all grown in one batch.

    On a terminal the first appears as it grows. Each is followed by a line of dashes. Of several processes
    each grows its share, and rank 0 prints all: the same, as each sample has its own seed.
    Raises: InputError for a prompt or model that cannot be used.
    """
    keep_memory()
    with joined(config.device) as processes:
        _sample(config, processes)


def _sample(config: SampleConfig, processes: Processes) -> None:
    device = processes.device
    dtype = pick_dtype(config.dtype, device)
    pick_compile(config.compile, device)  # decoding is not compiled; a wrong setting is still refused
    model = load_model(config.model_path, config.tokenizer_name).to(device)
    if model.tokenizer is None:
        raise InputError(f"{config.model_path} came without a tokenizer, so it cannot read a prompt")
    prompt = config.start
    if prompt.startswith("FILE:"):
        prompt = read_text(Path(prompt.removeprefix("FILE:")))
    edits = control.load(config.edits, model) if config.edits else ()
    ids = model.tokenizer.prompt_ids(prompt)
    if not ids:
        raise InputError("the prompt is empty: give at least one character with --start")
    own = processes.share(config.num_samples)
    start = torch.tensor([ids], device=device).expand(len(own), -1)  # (B, T)
    draws = [torch.Generator(device).manual_seed(seed_of(config.seed, i)) for i in own]

    watched, printed = processes.rank == 0 and sys.stdout.isatty(), 0
    if watched:
        print(prompt, end="", flush=True)
    rows: list[list[int]] = [[] for _ in own]
    steps = stream(
        model,
        start,
        config.max_new_tokens,
        config.temperature,
        config.top_k or None,
        config.top_p,
        draws,
        config.restart,
        edits,
    )
    with autocast(device, dtype):
        for new in steps if own else ():
            for row, token in zip(rows, new.tolist(), strict=True):
                row.append(token)
            if watched:
                text = model.tokenizer.decode_after(ids, rows[0])
                if not text.endswith("\ufffd"):  # half a character: wait for the rest
                    print(text[printed:], end="", flush=True)
                    printed = len(text)
    texts = processes.gather([prompt + model.tokenizer.decode_after(ids, row) for row in rows])
    if watched:
        print(texts[0][len(prompt) + printed :] + "\n" + "-" * 15)
    for text in texts[watched:]:
        print(text + "\n" + "-" * 15)


@torch.inference_mode()
def beam_search(
    model: LanguageModel, input_ids: Tensor, n: int, beams: int, banned: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """The likeliest continuations by n tokens of one prompt (1, T): ids (N, n), best first, and the sums
    of their log-probabilities (N). N is `beams`, or less where so few exist.

    At each step the `beams` best of all continuations by one token are kept, without the banned tokens
    and padding, which the softmax however counts. The prompt is cut on the left so that all fits block_size.
    Raises: ValueError for n, beams or ids out of range.
    """
    room = model.config.block_size - n + 1
    if n < 1 or beams < 1 or room < 1:
        raise ValueError(f"n={n} must be 1 to block_size={model.config.block_size}, beams={beams} 1 or more")
    context = input_ids[:, -room:]
    check_ids(context, model.config.vocab_size, model.config.block_size)
    device, V = input_ids.device, model.config.n_token
    ids = torch.empty(1, 0, dtype=torch.int64, device=device)
    scores, new = torch.zeros(1, device=device), context
    with reading(model):
        cache = model.new_cache()
        for _ in range(n):
            log_p = model.next_logits(new, cache).log_softmax(dim=1)[:, :V]  # (N, V)
            log_p[:, list(banned)] = -torch.inf
            total = (scores[:, None] + log_p).flatten()  # (N·V)
            scores, best = total.topk(min(beams, total.numel()))  # (N)
            best, scores = best[scores > -torch.inf], scores[scores > -torch.inf]
            rows, new = best // V, (best % V)[:, None]  # (N), (N, 1)
            ids = torch.cat([ids[rows], new], dim=1)
            cache.select(rows)
    return ids, scores
