"""What users of the transformers library have: its own GPT-2, and a Backpack as the library opens our export.

    LibraryWork("exported", setup, device).step()       # milliseconds, as ModelWork tells them

Letters: B batch, T time (positions).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from nanobackpack.bench.work import ModelWork, Setup
from nanobackpack.hub.export import export
from nanobackpack.model.kernels import UniqueIds
from nanobackpack.runtime import autocast


class LibraryWork(ModelWork):
    """The same measures, each written as the library's users would."""

    def __init__(self, kind: str, setup: Setup, device: torch.device) -> None:
        super().__init__(kind, setup, device)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        # A GPT is exported as the library's GPT-2, a Backpack with its own code.
        with tempfile.TemporaryDirectory() as folder:
            export(self.model, Path(folder) / "model")
            self.model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", trust_remote_code=True)
        self.model.to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def loss(self, x: Tensor, y: Tensor, tokens: UniqueIds | None) -> Any:
        return self.model(x, labels=x, use_cache=False).loss  # the library shifts the labels itself

    def generate(self, n: int, samples: int, temperature: float, restart: bool, some: int) -> float:
        prompts = self.setup.ids(0)[:1, :1].expand(samples, 1).to(self.device)  # (samples, 1)
        return samples * n / self._seconds(prompts, None, n)

    def batch_of_prompts(self, n: int) -> float:
        """The shorter prompts are filled up on the left, as a tokenizer of the library does it."""
        prompts = [torch.tensor(ids) for ids in self.setup.prompts()]
        ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")  # (B, longest)
        ones = [torch.ones_like(prompt) for prompt in prompts]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side="left")
        return len(ids) * n / self._seconds(ids.to(self.device), mask.to(self.device), n)

    def _seconds(self, ids: Tensor, mask: Tensor | None, n: int) -> float:
        """Seconds in which the library's own loop samples n tokens after each row of ids (B, T)."""
        mask = torch.ones_like(ids) if mask is None else mask
        start = self.now()
        with autocast(self.device, self.dtype):
            self.model.eval().generate(
                ids, attention_mask=mask, max_new_tokens=n, do_sample=True, top_k=0, pad_token_id=0
            )
        return self.now() - start

    @torch.inference_mode()
    def prefill(self) -> float:
        ids = self.setup.ids(0)[:1, :-1].to(self.device)  # (1, T)
        start = self.now()
        with autocast(self.device, self.dtype):
            self.model.eval()(ids, use_cache=True, logits_to_keep=1)
        return 1000 * (self.now() - start)

    @torch.inference_mode()
    def decode(self, position: int, samples: int = 1, controlled: bool = False, new: bool = False) -> float:
        n, key = 8, (position, samples, controlled)
        with autocast(self.device, self.dtype):
            if key not in self.caches:
                draw = torch.Generator().manual_seed(0)
                prompt = torch.randint(self.setup.V, (samples, position - n), generator=draw)
                out = self.model.eval()(prompt.to(self.device), use_cache=True, logits_to_keep=1)
                self.caches[key] = out.past_key_values
            cache, tokens = self.caches[key], [next(self.ids) if new else 0 for _ in range(n)]
            start = self.now()
            for token in tokens:
                ids = torch.full((samples, 1), token, device=self.device)
                self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            seconds = self.now() - start
            cache.crop(-n)  # back to where the next measurement begins
        return 1000 * seconds / n
