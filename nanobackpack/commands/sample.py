"""Continue prompts with text sampled from a model.

    nanobackpack sample --out_dir=out-shakespeare-char
    nanobackpack sample --out_dir=out-shakespeare-char --start=FILE:prompt.txt --num_samples=5
    nanobackpack sample --init_from=gpt2 --start="What is the answer to life?" --max_new_tokens=100
    nanobackpack sample --out_dir=out-stories --start="<|endoftext|>" --stop "The end." --min_p=0.05
    nanobackpack sample --out_dir=out-stories --prompts=prompts.txt --num_samples=1 --json=texts.json
    nanobackpack sample --out_dir=out-zh --start=却说曹 --edits=cao.safetensors

On a terminal the first sample appears as it grows; each is followed by a line of dashes. A sample ends where
its document ends. A file of prompts has one a line, or JSON lines with `prompt` if its name ends in .jsonl.
--json writes for each sample its prompt, the text that follows (printed is both), the ids of that, what ended
it included, and their log-probabilities under the model itself: no temperature, nothing ruled out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanobackpack.analysis.results import write_json
from nanobackpack.config import SampleConfig
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import numbered_lines, read_json_lines
from nanobackpack.safe.files import check_writable, read_text
from nanobackpack.text.words import needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel

LINE = "-" * 15
ROWS = 64  # that grow in one batch, or more if they are samples of one prompt


Prompt = tuple[str, list[int]]
"""A prompt, and its ids as the model reads them."""


def main(settings: SampleConfig) -> None:
    """Print settings.num_samples continuations of each prompt, grown in batches.

    Of several processes each grows its share, and rank 0 prints all: the same texts as one process would, as
    each sample has its own seed.
    """
    from nanobackpack.analysis import control
    from nanobackpack.runtime import autocast, keep_memory, pick_dtype
    from nanobackpack.train.checkpoint import load_model
    from nanobackpack.train.parallel import joined

    check_writable(settings.json)
    keep_memory()
    with joined(settings.device) as processes:
        device = processes.device
        dtype = pick_dtype(settings.dtype, device)
        model = load_model(settings.model_path, settings.tokenizer_name).to(device)
        if model.tokenizer is None:
            raise InputError(f"{settings.model_path} came without a tokenizer, so it cannot read a prompt")
        edits = control.load(settings.edits, model) if settings.edits else ()
        if processes.rank == 0 and any("\\n" in text for text in settings.stop):
            warnings.warn("stop has a backslash and an n: a shell writes a line end as $'\\n'", stacklevel=1)
        with warnings.catch_warnings():
            if processes.rank:  # one process says it
                warnings.simplefilter("ignore")
            prompts = read_prompts(settings, model)

        # Sample i of a prompt has a random generator of its own, so it matters neither which process grows it
        # nor what grows beside it.
        wanted = [(prompt, i) for prompt in prompts for i in range(settings.num_samples)]
        own = [wanted[i] for i in processes.share(len(wanted))]
        watched = processes.rank == 0 and sys.stdout.isatty()
        samples: list[dict[str, Any]] = []
        n = max(ROWS, settings.num_samples)
        with autocast(device, dtype):
            for start in range(0, len(own), n):
                samples += grow_samples(model, own[start : start + n], settings, edits, watched and not start)
        samples = processes.gather(samples)
        if processes.rank == 0:
            for sample in samples[watched:]:
                print(sample["prompt"] + sample["text"] + "\n" + LINE)
            write_json(settings.json, samples)


def read_prompts(settings: SampleConfig, model: LanguageModel) -> list[Prompt]:
    """Return the prompts that the settings give, or name a file of."""
    from nanobackpack.analysis.prompts import as_read, cleaned, usual_start, warn_of_names

    tokenizer, typed = needs_tokenizer(model.tokenizer), False
    if settings.prompts:
        texts = prompts_in(settings.prompts)
    elif settings.start.startswith("FILE:"):
        texts = [read_text(Path(settings.start.removeprefix("FILE:")))]
    elif settings.start == SampleConfig.start and model.token_counts is not None:
        ids = usual_start(model)
        return [("" if ids[0] in tokenizer.special.values() else tokenizer.decode(ids), ids)]
    else:
        texts, typed = [settings.start], True
    texts = [cleaned(text, settings.newlines, settings.normalize) for text in texts]
    special = settings.special == "allow" or (settings.special == "auto" and typed)
    if settings.special == "auto" and not typed:
        warn_of_names(tokenizer, "\n".join(texts), "the file", "make it this token with --special=allow")
    rows = [tokenizer.prompt_ids(text, special) for text in texts]
    if not all(rows):
        raise InputError("the prompt is empty: give at least one character with --start")
    return [(text, as_read(model, ids)) for text, ids in zip(texts, rows, strict=True)]


def prompts_in(file: str) -> list[str]:
    """Read a file of prompts: one a line, or JSON lines."""
    if file.endswith(".jsonl"):
        return [row["prompt"] for row in read_json_lines(file, ("prompt",))]
    prompts = [line for _, line in numbered_lines(file)]
    if not prompts:
        raise InputError(f"{file} has no prompts: give one a line")
    return prompts


def grow_samples(
    model: LanguageModel,
    wanted: Sequence[tuple[Prompt, int]],
    settings: SampleConfig,
    edits: Any,
    watched: bool,
) -> list[dict[str, Any]]:
    """Grow samples, each of a prompt and with a number that is its seed, in one batch; if someone watches,
    print the first one as it grows."""
    import torch

    from nanobackpack.model.texts import Row, grow
    from nanobackpack.runtime import seed_of

    tokenizer, device = needs_tokenizer(model.tokenizer), model.wte.weight.device
    mark = [] if settings.ignore_eos or tokenizer.eos_id is None else [tokenizer.eos_id]
    rows = [Row(ids) for (_, ids), _ in wanted]
    names = ("restart", "temperature", "top_p", "min_p", "repetition_penalty")
    steps = grow(
        model,
        rows,
        settings.max_new_tokens,
        stop=[*mark, *settings.stop],
        log_p=bool(settings.json),
        edits=edits,
        top_k=settings.top_k or None,
        generator=[torch.Generator(device).manual_seed(seed_of(settings.seed, i)) for _, i in wanted],
        **{name: getattr(settings, name) for name in names},
    )
    printed = 0  # characters of the first sample
    held = max(map(len, settings.stop), default=1) - 1  # that may be the beginning of a text that ends it
    if watched:
        print(wanted[0][0][0], end="", flush=True)
    for _ in steps:
        if watched:
            text = rows[0].text(tokenizer)
            sure = len(text) if rows[0].end is not None else len(text) - held
            if sure > printed and not text.endswith("\ufffd"):  # half a character: wait for the rest
                print(text[printed:sure], end="", flush=True)
                printed = sure
    if watched:
        print(rows[0].text(tokenizer)[printed:] + "\n" + LINE)
    samples = []
    for ((prompt, _), _), row in zip(wanted, rows, strict=True):
        end = "length" if row.end is None else "stop"
        sample = {"prompt": prompt, "text": row.text(tokenizer), "ids": row.new, "logprobs": row.log_p}
        samples.append(sample | {"finish_reason": end})
    return samples
