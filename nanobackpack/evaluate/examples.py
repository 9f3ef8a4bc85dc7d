"""Canonical examples from files of JSON lines, and the other text that stands beside them in training.

    examples = read_examples(model, "facts.jsonl", bos="auto")
    name, texts = other_texts(model, settings)

commands/finetune_senses.py says what stands in a line.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from nanobackpack.errors import InputError
from nanobackpack.evaluate.cost import open_windows
from nanobackpack.evaluate.scoring import encode_or_none, numbered_lines
from nanobackpack.safe.files import display_path, parse_json
from nanobackpack.text.words import bos_ids, needs_tokenizer

if TYPE_CHECKING:
    from nanobackpack.analysis.finetuning import Example, Text
    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.text.tokenizer import Bos

TOKENS = 8192  # of other text, at most: half to train beside, half to measure on


def read_examples(model: LanguageModel, path: str, bos: Bos) -> list[Example]:
    """Read a file of examples; a line that is none is refused with its number."""
    from nanobackpack.analysis.finetuning import KINDS, Example

    tokenizer, found, size = needs_tokenizer(model.tokenizer), list[Example](), model.config.block_size
    for number, line in numbered_lines(path):
        where = f"{display_path(path)}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: not a JSON object")
        pair = bool({"suffix1", "suffix2"} & row.keys())
        kinds = KINDS[2:] if pair else KINDS[:2]
        if (kind := row.get("kind", kinds[0])) not in kinds:
            raise InputError(f"{where}: kind {kind!r} must be {' or '.join(kinds)}, by its suffixes")
        ids = []
        for name in ("prefix", "suffix1", "suffix2") if pair else ("prefix", "suffix"):
            if not isinstance(text := row.get(name), str) or not text:
                raise InputError(f"{where}: no text under {name!r}")
            own = encode_or_none(tokenizer.encode, text)
            if not own or tokenizer.unknown_id in own or (name != "prefix" and len(own) > size):
                raise InputError(f"{where}: {text!r} is no text of 1 to {size} tokens that this model knows")
            ids.append(own)
        # A long prefix loses its beginning, so that the model can read all before the last token.
        prefix = [*bos_ids(tokenizer, bos), *ids[0]][-(size + 1 - max(map(len, ids[1:]))) :]
        found.append(Example(kind, prefix, ids[1:]))
    if not found:
        raise InputError(f"{display_path(path)} has no lines: give a file of JSON lines")
    return found


def other_texts(model: LanguageModel, settings: Any) -> tuple[str, list[Text]]:
    """Collect windows of held-out text, or texts that the model writes."""
    import torch

    from nanobackpack.analysis.finetuning import Text
    from nanobackpack.analysis.prompts import usual_start

    T = model.config.block_size
    n = max(2, TOKENS // T)
    try:
        name, batches = open_windows(model, settings)
        rows = islice((row for x, y in batches for row in torch.cat([x, y[:, -1:]], dim=1)), n)
        return name, [Text(tuple(row.tolist())) for row in rows]
    except InputError:
        if settings.held_out:
            raise
    draws = torch.Generator(model.wte.weight.device).manual_seed(settings.seed)
    start, T = usual_start(model), min(T, 128)
    rows = model.generate([start] * (TOKENS // T), T - len(start), generator=draws)
    return "texts that it writes", [Text(tuple(row)) for row in rows]
