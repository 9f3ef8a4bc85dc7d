"""From Python: a wrong type is one clear TypeError, a text can be continued, and threads and async tasks that
share a model see neither each other's edits nor a changed mode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from oracle import plain_generate
from torch import Tensor

import nanobackpack as nb
from nanobackpack import BackpackLM, InputError
from nanobackpack.analysis import control
from nanobackpack.analysis.control import ScaleSense
from nanobackpack.evaluate.bias import bias_ratio
from nanobackpack.model.generate import beam_search, stream
from nanobackpack.text.tokenizer import Tokenizer

IDS = torch.tensor([[1, 4, 2], [3, 3, 5]])
NO_SENSES, TWICE = ScaleSense(tuple(range(11)), 0.0), ScaleSense(tuple(range(11)), 2.0)  # logits · 0 and · 2

# --- Wrong types ------------------------------------------------------------------------------

NO_IDS = [[[1, 2]], [1, 2], np.array([[1, 2]]), None, "ab", 3, IDS.float(), IDS.int(), IDS.bool()]
NO_TEXT = [None, 3, 1.5, b"ab", ["a", "b"], [1.0], IDS, np.array([0.5])]
NO_TEXTS = [None, 3, "ab", [1, 2], [None]]
NO_NUMBERS = ["ab", 3, b"ab", [1.5], ["1"], IDS[0] / 2]
DOORS: dict[str, tuple[Callable[[Any, Any], object], list[Any]]] = {
    "model": (lambda m, x: m(x), NO_IDS),
    "targets": (lambda m, x: m(IDS, x), [x for x in NO_IDS if x is not None]),
    "contextualization": (lambda m, x: m.contextualization(x), NO_IDS),
    "generate": (lambda m, x: m.generate(x, 3), [x for x in NO_IDS if not isinstance(x, (str, list))]),
    "beam_search": (lambda m, x: beam_search(m, x, 2, 2), NO_IDS),
    "sense_vectors": (lambda m, x: m.sense_vectors(x), NO_NUMBERS),
    "encode": (lambda m, x: m.tokenizer.encode(x), NO_TEXT),
    "decode": (lambda m, x: m.tokenizer.decode(x), [None, *NO_NUMBERS]),
    "word": (lambda m, x: nb.Senses(m).sense_projection(x), NO_TEXT),
    "prompt": (lambda m, x: nb.Senses(m).next_tokens(x), NO_TEXT),
    "words": (lambda m, x: nb.Senses(m).many_senses(x), NO_TEXTS),
    "prompts": (lambda m, x: nb.Senses(m).localize("a", x), NO_TEXTS),
    "sentences": (lambda m, x: nb.Senses(m).word_composition("ab", x), NO_TEXTS),
    "knowledge_edit": (lambda m, x: control.knowledge_edit(m, x, 1, 2), [None, "a", 1.5, [1]]),
    "topic": (lambda m, x: control.topic(m, x), ["ab", [1.5], [None], ["a"]]),
    "Senses": (lambda m, x: nb.Senses(x), [None, "out", 3]),
    "applied": (lambda m, x: control.applied(x, TWICE).__enter__(), [None, "out", 3]),
}


@pytest.mark.parametrize(("door", "bad"), [(door, x) for door, (_, values) in DOORS.items() for x in values])
def test_wrong_types(speller: BackpackLM, door: str, bad: Any):
    """Each door says in one line what came and what is wanted. As all bad input it is an InputError too."""
    with pytest.raises(TypeError, match=r"must be .*, not .* \(\w+\)$") as error:
        DOORS[door][0](speller, bad)
    assert isinstance(error.value, InputError)


def test_numbers_of_any_library_are_ids(speller: BackpackLM):
    for ids in ((1, 2), np.array([1, 2]), torch.tensor([1, 2]), [np.uint16(1), torch.tensor(2)]):
        assert speller.tokenizer.decode(ids) == "ab"
        assert torch.equal(nb.Senses(speller).word_senses(ids), speller.sense_vectors([1, 2]).mean(dim=0))
        assert control.knowledge_edit(speller, *ids, 3).tokens == (1,)


def test_generate_continues_a_text(speller: BackpackLM):
    """A text comes back with what was added to it, the same as of its ids."""
    ids = torch.tensor([speller.tokenizer.encode("bad")])
    for settings in ({}, {"edits": TWICE}):
        row = speller.generate(ids, 20, temperature=0, **settings)[0]
        assert speller.generate("bad", 20, temperature=0, **settings) == speller.tokenizer.decode(row)
    for prompt, message in (("", "0 tokens"), ("z", "unknown character 'z'")):
        with pytest.raises(ValueError, match=message):
            speller.generate(prompt, 3)
    with pytest.raises(InputError, match="came without a tokenizer"):
        tiny_model().generate("bad", 3)
    # The token that begins a document is read, and is no part of the text that comes back.
    inner = Tokenizer.char("abcdefg")._inner
    inner.add_special_tokens(["<s>"])
    speller.tokenizer = Tokenizer(inner)
    row = speller.generate(torch.tensor([[7, 1, 0]]), 8, temperature=0)[0]
    assert speller.generate("ba", 8, temperature=0) == speller.tokenizer.decode(row[1:])


# --- Edits in force ---------------------------------------------------------------------------


def test_threads_do_not_see_each_others_edits(speller: BackpackLM):
    """While one thread is under edits, another one's logits, texts and analysis are those of the model."""
    plain, text = speller(IDS).logits, speller.generate(IDS, 5, temperature=0)
    inside, looked = threading.Event(), threading.Event()

    def under_edits() -> Tensor:
        with control.applied(speller, NO_SENSES):
            inside.set()
            assert looked.wait(60)
            return speller(IDS).logits

    with ThreadPoolExecutor() as pool:
        other = pool.submit(under_edits)
        assert inside.wait(60)
        assert torch.equal(speller(IDS).logits, plain)
        assert torch.equal(speller.generate(IDS, 5, temperature=0), text)
        assert speller.sense_vectors().any()
        with control.applied(speller, TWICE):
            assert speller.edits == (TWICE,)
        looked.set()
        assert not other.result(60).any()
    assert not speller.blocks


def test_async_tasks_do_not_see_each_others_edits(speller: BackpackLM):
    """A task is under its own edits across every await, and under those of its maker while these last."""
    plain = speller(IDS).logits

    async def look(edit: ScaleSense, all_inside: asyncio.Barrier) -> Tensor:
        with control.applied(speller, edit):
            await all_inside.wait()
            return speller(IDS).logits

    async def look_later(begin: asyncio.Event) -> Tensor:
        await begin.wait()
        return speller(IDS).logits

    async def run() -> list[Tensor]:
        both, over = asyncio.Barrier(2), asyncio.Event()
        found = await asyncio.gather(look(NO_SENSES, both), look(TWICE, both))
        with control.applied(speller, NO_SENSES):
            found.append(await asyncio.to_thread(lambda: speller(IDS).logits))
            late = asyncio.create_task(look_later(over))
            await asyncio.sleep(0)
        over.set()
        return [*found, await late]

    for got, factor in zip(asyncio.run(run()), (0, 2, 0, 1), strict=True):
        assert torch.allclose(got, factor * plain, atol=1e-5)


def test_blocks_end_in_any_order_and_anywhere(speller: BackpackLM):
    """A block that a generator left open ends with it, also in another thread, and takes no other along."""

    def block(edit: ScaleSense) -> Iterator[None]:
        with control.applied(speller, edit):
            yield

    first, second = block(NO_SENSES), block(TWICE)
    assert [next(first), next(second), speller.edits] == [None, None, (NO_SENSES, TWICE)]
    with ThreadPoolExecutor() as pool:
        pool.submit(first.close).result(60)
    assert speller.edits == (TWICE,)
    second.close()
    assert speller.edits == ()


def test_streams_and_caches_keep_their_edits(speller: BackpackLM):
    """Those in force where they were made, not where they are used, and the model sees none between."""
    plain, edited = (speller.generate(IDS, 6, temperature=0, edits=e)[:, 3:] for e in ((), NO_SENSES))
    outside = stream(speller, IDS, 6, temperature=0)
    with control.applied(speller, NO_SENSES), torch.no_grad():
        inside, cache = stream(speller, IDS, 6, temperature=0), speller.new_cache()
        assert torch.equal(torch.stack(list(outside), dim=1), plain)
    for i in range(6):
        assert torch.equal(next(inside), edited[:, i])
        assert speller(IDS).logits.any()
    assert not speller.next_logits(IDS, cache).any()


# --- The mode ---------------------------------------------------------------------------------

USES: dict[str, Callable[[Any], object]] = {
    "generate": lambda m: m.generate(IDS, 4, temperature=0),
    "beam_search": lambda m: beam_search(m, IDS[:1], 3, 2)[1],
    "sense_vectors": lambda m: m.sense_vectors(),
    "contextualization": lambda m: m.contextualization(IDS),
    "next_tokens": lambda m: nb.Senses(m).next_tokens("bad").scores,
    "bias_ratio": lambda m: torch.tensor(bias_ratio(m, IDS.tolist(), 1, 2)),
}


@pytest.mark.parametrize("use", USES)
def test_no_use_changes_the_mode(use: str):
    """What needs no dropout has none, whatever the mode, and nobody sees another mode meanwhile or later,
    not even of a part that was in a mode of its own."""
    model = tiny_model(vocab_size=11, vocab_used=8, dropout=0.5)
    model.tokenizer = Tokenizer.char("abcdefg\n")
    expected, seen = USES[use](model), []
    for part in (model.wte, model.context):
        part.register_forward_hook(lambda *_: seen.append([part.training for part in model.modules()]))
    for mode in (True, False):
        model.train(mode).context.h[0].train(not mode)
        modes = [part.training for part in model.modules()]
        assert torch.equal(USES[use](model), expected)
        assert seen
        assert all(found == modes for found in (*seen, [part.training for part in model.modules()]))
        seen.clear()


def test_training_goes_on_while_texts_are_read():
    """Between the tokens of a text, read in another thread without dropout, the model trains with dropout."""
    model = tiny_model(dropout=0.5)
    expected = plain_generate(model, IDS, 6, temperature=0)[:, 3:]
    tokens = stream(model.train(), IDS, 6, temperature=0)
    with ThreadPoolExecutor() as pool:
        for i in range(6):
            assert torch.equal(pool.submit(next, tokens).result(60), expected[:, i])
            assert model(IDS, IDS).loss != model(IDS, IDS).loss
