"""What must hold of exported models where nanobackpack is not: python tests/hub_checks.py FOLDER...

Each folder is an export with expected.safetensors beside the model: ids (B, T), and what ours says of them.
tests/test_export.py makes them and runs this; it runs by itself too, with any transformers.
"""

from __future__ import annotations

import sys


class Absent:
    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name.partition(".")[0] == "nanobackpack":
            raise ImportError("nanobackpack is not here")


sys.meta_path.insert(0, Absent)  # type: ignore[arg-type]

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
NEW = int(transformers.__version__.split(".")[0]) >= 5


def opened(folder: Path | str, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **settings).eval()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b).abs().max().item()


@torch.no_grad()
def check(folder: Path) -> float:
    """All of it for one model; returns how far its logits are from ours."""
    model, ours = opened(folder), load_file(folder / "expected.safetensors")
    assert "nanobackpack" not in sys.modules
    assert type(model).__module__.startswith("transformers_modules")
    ids, n = ours["ids"], ours["ids"].size(1)

    out = model(ids, output_attentions=True, output_senses=True, output_hidden_states=True)
    assert gap(out.logits, ours["logits"]) < 1e-5
    assert gap(out.attentions[0], ours["alpha"]) < 1e-5
    assert gap(out.senses, ours["senses"]) < 1e-5
    assert gap(model.sense_vectors(ids[0]), ours["senses"][0]) < 1e-5
    assert len(out.hidden_states) == model.config.num_hidden_layers
    assert len(out.past_key_values.layers) == model.config.num_hidden_layers

    # The loss is shifted, and -100 is left out.
    labels = ids.clone()
    labels[0] = -100
    flat = ours["logits"][1:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(flat, ids[1:, 1:].flatten())
    assert gap(model(ids, labels=labels).loss, expected) < 1e-5

    # With a cache, in two parts and token by token; with a mask that is ready.
    first = model(ids[:, :3], use_cache=True)
    parts, cache = [first.logits], first.past_key_values
    for start, end in [(3, 5), *((i, i + 1) for i in range(5, n))]:
        parts.append(model(ids[:, start:end], past_key_values=cache).logits)
    assert gap(torch.cat(parts, 1), ours["logits"]) < 1e-5
    causal = torch.ones(n, n).tril().bool().expand(len(ids), 1, n, n)
    assert gap(model(ids, attention_mask=causal).logits, ours["logits"]) < 1e-5
    assert gap(model(ids, logits_to_keep=2).logits, ours["logits"][:, -2:]) < 1e-5

    # Generation.
    prompt, plain = ids[:, :4], {"eos_token_id": None, "pad_token_id": model.config.vocab_size - 1}
    greedy = {"do_sample": False, **plain}
    assert torch.equal(model.generate(prompt, **greedy), ours["greedy"])  # to the end of the context
    assert torch.equal(model.generate(prompt, use_cache=False, **greedy), ours["greedy"])
    assert torch.equal(model.generate(prompt, max_new_tokens=99, **greedy), ours["greedy"])
    beams = model.generate(prompt, num_beams=3, **greedy)
    assert torch.equal(beams, model.generate(prompt, num_beams=3, use_cache=False, **greedy))
    torch.manual_seed(0)
    sampled = model.generate(prompt.repeat(20, 1), do_sample=True, top_k=0, **plain)
    assert sampled.max() < model.config.vocab_used
    assert len(sampled.unique(dim=0)) > 20
    padded = torch.nn.functional.pad(ids[:1, :3], (2, 0), value=1)
    batch = torch.cat([padded, ids[1:2, :5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    together = model.generate(batch, attention_mask=mask, max_new_tokens=4, **greedy)
    for row, alone in zip(together, (ids[:1, :3], ids[1:2, :5]), strict=True):
        assert torch.equal(row[-4:], model.generate(alone, max_new_tokens=4, **greedy)[0, -4:])
    logits = model(batch, attention_mask=mask).logits
    assert gap(logits[0, 2:], model(ids[:1, :3]).logits[0]) < 1e-5
    if NEW:
        static = model.generate(prompt, cache_implementation="static", disable_compile=True, **greedy)
        assert torch.equal(static, ours["greedy"])
        looked_up = model.generate(prompt[:1], prompt_lookup_num_tokens=3, **greedy)
        assert torch.equal(looked_up, ours["greedy"][:1])

    # Texts.
    if (folder / "tokenizer.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        text = bytes(ours["text"].tolist()).decode()
        assert tokenizer(text)["input_ids"] == ours["text ids"].tolist()
        write = pipeline("text-generation", model=model, tokenizer=tokenizer)
        found = write(text, do_sample=False, max_new_tokens=4, eos_token_id=None, return_tensors=True)
        assert found[0]["generated_token_ids"] == ours["text greedy"].tolist()
        assert isinstance(write(text, max_new_tokens=2)[0]["generated_text"], str)

    # Number types, sizes, copies.
    half = opened(folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert gap(half(ids).logits, ours["logits"]) < 0.05 * ours["logits"].abs().max()
    half.generate(prompt, **greedy)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    V = ours["logits"].size(2)
    assert gap(model(ids).logits[..., :V], ours["logits"]) < 1e-5
    model(torch.tensor([[V + 2]]))
    with tempfile.TemporaryDirectory() as copy:
        model.save_pretrained(copy)
        again = opened(copy)
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert again.lm_head.weight is again.wte.weight
    check_gradients(folder, ids)
    return gap(out.logits, ours["logits"])


@torch.enable_grad()
def check_gradients(folder: Path, ids: torch.Tensor) -> None:
    """Recomputed blocks give the same gradients."""
    plain, recomputing = opened(folder), opened(folder)
    recomputing.gradient_checkpointing_enable()
    for model in (plain, recomputing):
        model.train()
        torch.manual_seed(0)
        model(ids, labels=ids).loss.backward()
    pairs = zip(plain.parameters(), recomputing.parameters(), strict=True)
    assert all(gap(a.grad, b.grad) < 1e-6 for a, b in pairs)
    assert all(a.grad.any() for a in plain.parameters())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"transformers {transformers.__version__}: {Path(name).name} {check(Path(name)):.1e}")
