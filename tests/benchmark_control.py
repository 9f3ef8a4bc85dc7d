"""What topic control costs: time a token with it and without, in turns.

    python tests/benchmark_control.py

Tokens are decoded with a cache in the middle of the context, where they cost what one does on average, and
at its end. Of each the fastest of some rounds counts, in CPU time on one thread, which does not depend on
what else the machine does.
"""

from __future__ import annotations

import time

import torch

from nanobackpack import BackpackLM, ModelConfig
from nanobackpack.analysis.control import TopicControl
from nanobackpack.model.edits import EditLike
from nanobackpack.model.generate import KVCache

ROUNDS, TOKENS = 10, 8


@torch.inference_mode()
def seconds_a_token(model: BackpackLM, cache: KVCache, ids: torch.Tensor, edits: EditLike) -> float:
    start = time.process_time()
    for _ in range(TOKENS):
        model.next_logits(ids, cache, edits)
    return (time.process_time() - start) / TOKENS


@torch.inference_mode()
def filled(model: BackpackLM, ids: torch.Tensor, edits: EditLike) -> KVCache:
    cache = model.new_cache(edits)
    model.next_logits(ids, cache, edits)
    return cache


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for V, D, L, T, K in ((50304, 384, 6, 512, 16), (65, 384, 6, 256, 4)):
        config = ModelConfig(n_layer=L, n_head=6, n_embd=D, block_size=T, n_sense_vector=K, vocab_size=V)
        model = BackpackLM(config).eval()
        edit = TopicControl(torch.rand(V, K) + 1, f=0.3)
        for B, S in ((1, T // 2), (1, T), (10, T // 2), (10, T)):
            prompt = torch.randint(V, (B, S - TOKENS))
            caches = [(filled(model, prompt, e), e) for e in ((), edit)]
            times = []
            for _ in range(ROUNDS):
                for cache, _ in caches:
                    cache.length = prompt.size(1)  # the same positions again
                times.append([seconds_a_token(model, cache, prompt[:, :1], e) for cache, e in caches])
            plain, controlled = (min(column) * 1e3 for column in zip(*times, strict=True))
            print(
                f"V{V} k{K}, {B:2} samples, position {S}: {plain:.2f} ms, controlled {controlled:.2f} ms: "
                f"{controlled / plain:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
