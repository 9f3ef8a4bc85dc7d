"""A model as the harness lm-eval asks for it: all its tasks, under edits too.

    nanobackpack lm-eval --out_dir=out --tasks lambada_openai blimp
    lm = NanobackpackLM("out", edits="edit.safetensors"); lm_eval.simple_evaluate(lm, tasks=["blimp"])

Importing this registers the class: then the harness knows `model="nanobackpack"`. What stands before a text:

    bos=auto    the token that begins a document, if the tokenizer has one, as in training; where a task gives
                no context, as BLiMP, else the one that ends documents: the harness does so for all models
    bos=True    one of these two before every text
    bos=False   nothing: without a context a text is scored from its second token on
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nanobackpack.analysis import control
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import TextScore, TextToScore, score_texts
from nanobackpack.model.texts import Row, grow
from nanobackpack.runtime import autocast, in_eval_mode, pick_device, pick_dtype
from nanobackpack.text.tokenizer import Bos
from nanobackpack.text.words import bos_ids, needs_tokenizer
from nanobackpack.train.checkpoint import load_model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:  # the extra lm-eval is not there: commands/lm_eval.py says so
    TemplateLM, register_model = object, lambda name: lambda cls: cls

NAME = "nanobackpack"
# What the harness may ask of a generation, besides a length and texts that end it; others are refused.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_length")


@register_model(NAME)
class NanobackpackLM(TemplateLM):
    """What `load_model(path)` opens, for the harness; `edits` is a file of edits that hold throughout."""

    def __init__(
        self,
        path: str = "out",
        edits: str = "",
        bos: Bos = "auto",
        batch_size: int | str = 16,
        device: str = "auto",
        dtype: str = "float32",
        tokenizer_name: str = "auto",
        max_batch_size: int | None = None,  # with which it calls all models
    ) -> None:
        super().__init__()
        self._device = pick_device(device)
        self.model = in_eval_mode(load_model(path, tokenizer_name).to(self._device))
        self.words = needs_tokenizer(self.model.tokenizer)  # `tokenizer` would have to be one of transformers
        self.edits = control.load(edits, self.model) if edits else ()
        self.dtype = pick_dtype(dtype, self._device)
        self.batch_size = batch_size if isinstance(batch_size, int) else 16  # it may ask for "auto"
        self.before = bos_ids(self.words, bos)
        self.first = self.words.eos_id if self.words.bos_id is None else self.words.bos_id
        if bos is False:
            self.first = None

    @property
    def eot_token_id(self) -> int | None:
        return self.words.eos_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that has no context; None: nothing does."""
        return self.first

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self.words.encode(string)
        return ids if add_special_tokens is False else self.before + ids

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with control.applied(self.model, self.edits), autocast(self._device, self.dtype):
            yield

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[TextScore]:
        """Score (texts, ids of the context, ids that follow) each: log p of these, and if they are greedy."""
        texts: dict[int, TextToScore] = {}
        size, n_cut = self.model.config.block_size, 0
        for i, (_texts, context, ids) in enumerate(requests):
            context = [token for token in context if token is not None]
            if len(ids) > size:
                context, ids, n_cut = [], (context + ids)[-size - 1 :], n_cut + 1
            start = len(context) or 1
            if start < len(context) + len(ids):
                texts[i] = TextToScore(context + ids, start)
        if n_cut:
            what = f"{n_cut} of {len(requests)} texts are longer than the {size} tokens that this model reads"
            warnings.warn(f"{what}: of these the last {size} tokens are scored", stacklevel=2)
        with self._computing():
            scores = score_texts(self.model, list(texts.values()), self.batch_size, "lm-eval")
        found = dict(zip(texts, scores, strict=True))
        nothing = TextScore(0.0, True)  # is certain
        return [found.get(i, nothing) for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts of any length, each token once, in windows that the harness lays."""
        windows: list[Any] = []
        counts = []
        for text in (request.args[0] for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            if self.first is not None:
                ids = [self.first, *ids]
            parts = get_rolling_token_windows(ids[1:], ids[0], self.model.config.block_size, 1) if ids else ()
            new = [(None, *make_disjoint_window(part)) for part in parts]
            windows += new
            counts.append(len(new))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(n)) for n in counts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts, those in one batch that are asked for in the same way; greedily unless told."""
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(i)
        texts: dict[int, str] = {}
        for group in alike.values():
            for first in range(0, len(group), self.batch_size):
                batch = group[first : first + self.batch_size]
                asked = dict(requests[batch[0]].args[1])
                grown = self._generate([requests[i].args[0] for i in batch], asked)
                texts |= zip(batch, grown, strict=True)
        return [texts[i] for i in range(len(requests))]

    def _generate(self, contexts: list[str], asked: dict[str, Any]) -> list[str]:
        until = asked.pop("until", [])
        stop = [text for text in ([until] if isinstance(until, str) else until or []) if text]
        length = next((asked[name] for name in LENGTHS if name in asked), self.model.config.block_size // 2)
        sampling = asked.pop("do_sample", bool(asked.get("temperature")))
        choice = {name: asked.pop(name) for name in SAMPLING if name in asked}
        if unknown := asked.keys() - LENGTHS:
            raise InputError(f"gen_kwargs {unknown.pop()} is not known here: {', '.join(SAMPLING)} are")
        if not sampling:
            choice |= {"temperature": 0}
        start = [] if self.first is None else [self.first]
        rows = [Row(self.tok_encode(context) or start) for context in contexts]
        if not all(row.prompt for row in rows):
            no_token = self.words.eos_id is None and self.words.bos_id is None
            why = "this tokenizer has no token that begins a document" if no_token else "bos=False"
            raise InputError(f"a text to continue is empty, and nothing stands before it: {why}")
        ends = [*stop, *([] if self.words.eos_id is None else [self.words.eos_id])]
        with self._computing():
            for _ in grow(self.model, rows, int(length), stop=ends, **choice):
                pass
        return [row.text(self.words) for row in rows]
