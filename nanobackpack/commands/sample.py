"""Continue a prompt with text sampled from a model.

    nanobackpack sample --out_dir=out-shakespeare-char
    nanobackpack sample --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=5
    nanobackpack sample --init_from=gpt2 --start="What is the answer to life?" --max_new_tokens=100
    nanobackpack sample --out_dir=out-zh --start=却说曹 --edits=cao.safetensors

On a terminal the first sample appears as it grows; each is followed by a line of dashes.
"""

from __future__ import annotations

import sys
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nanobackpack.config import SampleConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import read_text, with_lf
from nanobackpack.text.tokenizer import Tokenizer, needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel

LINE = "-" * 15


def main(settings: SampleConfig) -> None:
    """Print settings.num_samples continuations of settings.start, all grown in one batch.

    Of several processes each grows its share, and rank 0 prints all: the same texts as one process would, as
    each sample has its own seed.
    """
    import torch

    from nanobackpack.analysis import control
    from nanobackpack.model.generate import stream
    from nanobackpack.runtime import autocast, keep_memory, pick_dtype, seed_of
    from nanobackpack.train.checkpoint import load_model
    from nanobackpack.train.parallel import joined

    keep_memory()
    with joined(settings.device) as processes:
        device = processes.device
        dtype = pick_dtype(settings.dtype, device)
        model = load_model(settings.model_path, settings.tokenizer_name).to(device)
        if model.tokenizer is None:
            raise InputError(f"{settings.model_path} came without a tokenizer, so it cannot read a prompt")
        edits = control.load(settings.edits, model) if settings.edits else ()
        with warnings.catch_warnings():
            if processes.rank:  # one process says it
                warnings.simplefilter("ignore")
            prompt, ids = read_prompt(settings, model)

        # Each sample has a random generator of its own, so it does not matter which process grows it.
        own = processes.share(settings.num_samples)
        steps = stream(
            model,
            torch.tensor([ids], device=device).expand(len(own), -1),  # (B, T)
            settings.max_new_tokens,
            restart=settings.restart,
            edits=edits,
            temperature=settings.temperature,
            top_k=settings.top_k or None,
            top_p=settings.top_p,
            generator=[torch.Generator(device).manual_seed(seed_of(settings.seed, i)) for i in own],
        )
        watched = processes.rank == 0 and sys.stdout.isatty()
        with autocast(device, dtype):
            texts = grow(model.tokenizer, prompt, ids, steps if own else (), len(own), watched)
        texts = processes.gather(texts)
        for text in texts[watched:] if processes.rank == 0 else ():
            print(text + "\n" + LINE)


def read_prompt(settings: SampleConfig, model: LanguageModel) -> tuple[str, list[int]]:
    """Return the prompt that the settings give, or name a file of, and its ids as the model reads them."""
    from nanobackpack.analysis.prompts import as_read, usual_start

    tokenizer = needs_tokenizer(model.tokenizer)
    if settings.start == SampleConfig.start and model.token_counts is not None:
        ids = usual_start(model)
        return "" if ids[0] in tokenizer.special.values() else tokenizer.decode(ids), ids
    prompt, special = settings.start, settings.special != "plain"
    if prompt.startswith("FILE:"):
        prompt, special = read_text(Path(prompt.removeprefix("FILE:"))), settings.special == "allow"
    prompt = prompt.removeprefix("\ufeff")
    if settings.newlines == "lf":
        prompt = with_lf(prompt)
    if settings.normalize == "nfc":
        prompt = unicodedata.normalize("NFC", prompt)
    ids = tokenizer.prompt_ids(prompt, special)
    if not ids:
        raise InputError("the prompt is empty: give at least one character with --start")
    return prompt, as_read(model, ids)


def grow(
    tokenizer: Tokenizer, prompt: str, ids: list[int], steps: Iterable[Tensor], n: int, watched: bool
) -> list[str]:
    """Collect n samples from the steps of `stream`; if someone watches, print the first one as it grows."""
    rows: list[list[int]] = [[] for _ in range(n)]
    printed = 0  # characters of the first sample
    if watched:
        print(prompt, end="", flush=True)
    for new in steps:  # (B): one token more for each sample
        for row, token in zip(rows, new.tolist(), strict=True):
            row.append(token)
        if watched:
            text = tokenizer.decode_after(ids, rows[0])
            if not text.endswith("\ufffd"):  # half a character: wait for the rest
                print(text[printed:], end="", flush=True)
                printed = len(text)
    texts = [prompt + tokenizer.decode_after(ids, row) for row in rows]
    if watched:
        print(texts[0][len(prompt) + printed :] + "\n" + LINE)
    return texts
