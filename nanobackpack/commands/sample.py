"""Sample text from a model."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from nanobackpack.analysis import control
from nanobackpack.config import SampleConfig
from nanobackpack.errors import InputError
from nanobackpack.model.generate import stream
from nanobackpack.runtime import autocast, keep_memory, pick_compile, pick_dtype, seed_of
from nanobackpack.safe.files import read_text
from nanobackpack.train.checkpoint import load_model
from nanobackpack.train.parallel import Processes, joined


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
        restart=config.restart,
        edits=edits,
        temperature=config.temperature,
        top_k=config.top_k or None,
        top_p=config.top_p,
        generator=draws,
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
