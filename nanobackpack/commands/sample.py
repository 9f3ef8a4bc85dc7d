"""Continue a prompt with text sampled from a model.

    nanobackpack sample --out_dir=out-shakespeare-char
    nanobackpack sample --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=5
    nanobackpack sample --init_from=gpt2 --start="What is the answer to life?" --max_new_tokens=100
    nanobackpack sample --out_dir=out-zh --start=却说曹 --edits=cao.safetensors

On a terminal the first sample appears as it grows; each is followed by a line of dashes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nanobackpack.config import SampleConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import read_text

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
        # Open the model; read the prompt and the edits.
        device = processes.device
        dtype = pick_dtype(settings.dtype, device)
        model = load_model(settings.model_path, settings.tokenizer_name).to(device)
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise InputError(f"{settings.model_path} came without a tokenizer, so it cannot read a prompt")
        prompt = settings.start
        if prompt.startswith("FILE:"):
            prompt = read_text(Path(prompt.removeprefix("FILE:")))
        edits = control.load(settings.edits, model) if settings.edits else ()
        ids = tokenizer.prompt_ids(prompt)
        if not ids:
            raise InputError("the prompt is empty: give at least one character with --start")

        # Each sample has a random generator of its own.
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

        # Collect the tokens of all samples, and show those of the first one as they come.
        watched, printed = processes.rank == 0 and sys.stdout.isatty(), 0
        if watched:
            print(prompt, end="", flush=True)
        rows: list[list[int]] = [[] for _ in own]
        with autocast(device, dtype):
            for new in steps if own else ():
                for row, token in zip(rows, new.tolist(), strict=True):
                    row.append(token)
                if watched:
                    text = tokenizer.decode_after(ids, rows[0])
                    if not text.endswith("\ufffd"):  # half a character: wait for the rest
                        print(text[printed:], end="", flush=True)
                        printed = len(text)

        # Print the rest.
        texts = processes.gather([prompt + tokenizer.decode_after(ids, row) for row in rows])
        if watched:
            print(texts[0][len(prompt) + printed :] + "\n" + LINE)
        for text in texts[watched:]:
            print(text + "\n" + LINE)
