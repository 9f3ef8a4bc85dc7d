"""Generation: the cache changes nothing, and choosing a token does exactly what its settings say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, GPTS, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_generate, plain_logits
from tokenizers import models
from torch import Tensor

from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM
from nanobackpack.model.edits import ScaleSense
from nanobackpack.model.generate import choose, stream
from nanobackpack.text.tokenizer import Tokenizer

# --- The cache --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "sampling"),
    [
        (1, {"temperature": 9.0}),
        (12, {"temperature": 6.0, "top_k": 5}),
        (17, {"temperature": 0}),
    ],
)
def test_cached_equals_uncached(model, T: int, sampling: dict[str, Any]):
    """Token for token what recomputing the whole window gives: greedy and sampled, for prompts shorter and
    longer than the window of 12, and on as the window slides."""
    prompt = torch.randint(19, (2, T), generator=torch.Generator().manual_seed(T))
    ours = model.generate(prompt, 20, **sampling, generator=torch.Generator().manual_seed(7))
    plain = plain_generate(model, prompt, 20, **sampling, generator=torch.Generator().manual_seed(7))
    assert ours.shape == (2, T + 20)
    assert torch.equal(ours[:, :T], prompt)
    assert torch.equal(ours, plain)
    assert sampling["temperature"] == 0 or len(ours[:, T:].unique()) >= 5  # a text worth comparing


def test_cached_logits_equal_the_plain_formula(model, ids: Tensor):
    """The numbers behind the tokens: with a cache, each position's logits are the plain formula's."""
    expected = plain_logits(model, ids)  # (B, T, V)
    cache = model.new_cache()
    with torch.no_grad():
        got = [model.next_logits(ids[:, :4], cache)]
        got += [model.next_logits(ids[:, i : i + 1], cache) for i in range(4, 12)]
        alone = model.next_logits(ids, model.new_cache())
    assert cache.length == 12
    tolerance = 1e-5 * max(1.0, expected.abs().max().item())
    assert (torch.stack(got, dim=1) - expected[:, 3:]).abs().max() < tolerance
    assert (alone - expected[:, -1]).abs().max() < tolerance


def test_restart_equals_plain_restart(model):
    """With restart each token sees what came since the window was last cut in half, and nothing else."""
    prompt = torch.randint(19, (2, 17), generator=torch.Generator().manual_seed(17))
    draws = [torch.Generator().manual_seed(5) for _ in range(3)]
    ours = model.generate(prompt, 40, 9.0, generator=draws[0], restart=True)
    assert torch.equal(ours, plain_generate(model, prompt, 40, 9.0, generator=draws[1], restart=True))
    if model.config.n_sense_vector == 4:  # (one sense and few layers: the cut is hardly felt)
        assert not torch.equal(ours, model.generate(prompt, 40, 9.0, generator=draws[2]))


def test_one_prompt_for_all_equals_copies_of_it(model):
    """An expanded prompt, read once for all rows, continues as copies of it do."""
    prompt = torch.tensor([[1, 2, 3]])
    for temperature in (0, 1.0):
        rows = prompt.expand(4, -1), prompt.repeat(4, 1)
        expanded, copies = (
            model.generate(r, 20, temperature, generator=torch.Generator().manual_seed(3)) for r in rows
        )
        assert torch.equal(expanded, copies)


def draws_of(seeds: Iterable[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("kind", "choice"),
    [
        ("nano", {"temperature": 0}),
        ("paper-bias-inverse", {"temperature": 9.0, "stop": [3, 4, 5]}),
        ("nano", {"temperature": 3.0, "restart": True, "stop": [3]}),
        ("paper-k1-modern", {"temperature": 3.0, "repetition_penalty": 1.3, "min_p": 0.05}),
        ("gpt-bias", {"temperature": 9.0, "stop": [3]}),
    ],
)
def test_prompts_of_any_lengths_grow_as_alone(kind: str, choice: dict[str, Any]):
    """Some are beyond the window of 12: each row becomes what it becomes alone, and ends apart."""
    model = tiny_model(**(BACKPACKS | GPTS)[kind])
    prompts = [[*range(1, n + 1)] for n in (1, 5, 11, 3, 16, 16, 1)]
    together = model.generate(prompts, 20, **choice, generator=draws_of(range(7)))
    new = [row[len(prompt) :] for row, prompt in zip(together, prompts, strict=True)]
    for i, prompt in enumerate(prompts):
        (alone,) = model.generate([prompt], 20, **choice, generator=draws_of([i]))
        assert together[i] == alone == prompt + new[i]
        free = model.generate(torch.tensor([prompt]), 20, **choice | {"stop": ()}, generator=draws_of([i]))
        assert free[0, : len(alone)].tolist() == alone  # a stop only ends
        ends = [at for at, token in enumerate(new[i]) if token in choice.get("stop", ())]
        assert ends == [len(new[i]) - 1] or (not ends and len(new[i]) == 20)
    assert "stop" not in choice or len(set(map(len, new))) > 2
    rows = model.generate([torch.tensor(p) for p in prompts], 20, **choice, generator=draws_of(range(7)))
    assert [row.tolist() for row in rows] == together


def test_what_fills_up_a_row_brings_in_no_other_token():
    """A token that is in no prompt may have senses without end."""
    model = tiny_model()
    prompts, choice = [[1, 2, 3], [4, 5, 6, 7, 8]], {"temperature": 0, "edits": ScaleSense((0,), 3e38)}
    together = model.generate(prompts, 5, **choice)
    assert together == [model.generate([prompt], 5, **choice)[0] for prompt in prompts]


def test_a_batch_that_stops_keeps_its_shape():
    """Rows of a tensor (B, T) that have ended repeat what ended them."""
    model, prompt = tiny_model(), torch.tensor([[1, 2], [3, 4], [5, 6]])
    free = model.generate(prompt, 30, 3.0, generator=draws_of(range(3)))
    rows = model.generate(prompt, 30, 3.0, generator=draws_of(range(3)), stop=[7, 8])
    assert rows.shape == (3, 32)
    for row, whole in zip(rows.tolist(), free.tolist(), strict=True):
        end = next((at for at in range(2, 32) if whole[at] in (7, 8)), 31)
        assert row == whole[: end + 1] + [whole[end]] * (31 - end)
    assert not torch.equal(rows, free)


@pytest.mark.parametrize("stop", [["e"], ["fe"], ["\n", "fg"], ["zz"], ["aaaa", "a"]])
def test_texts_end_before_a_stop(speller: BackpackLM, stop: list[str]):
    """A text of several tokens ends a row as soon as all of it is there, and is not part of it."""
    prompts = ["bad", "a", "face"]
    whole = speller.generate(prompts, 60, 3.0, generator=draws_of(range(3)))
    cut = speller.generate(prompts, 60, 3.0, generator=draws_of(range(3)), stop=stop)
    for prompt, full, text in zip(prompts, whole, cut, strict=True):
        new = full[len(prompt) :]
        assert text == prompt + new[: min((at for s in stop if (at := new.find(s)) >= 0), default=None)]
    assert (cut != whole) == (stop != ["zz"])
    assert speller.generate("bad", 9, 0, stop=stop) == speller.generate(["bad"], 9, 0, stop=stop)[0]
    ids = speller.tokenizer.encode("bad")
    (row,) = speller.generate([ids], 60, 3.0, generator=draws_of([0]), stop=stop)
    grown = speller.tokenizer.decode(row)
    assert grown == whole[0] or (grown.startswith(cut[0]) and grown.endswith(tuple(stop)))


def test_seed_decides():
    """The same seed gives the same text, another seed another; so does torch's own without a generator."""
    model, prompt = tiny_model(), torch.tensor([[1, 2, 3]])

    def text(seed: int) -> list[int]:
        return model.generate(prompt, 30, generator=torch.Generator().manual_seed(seed))[0].tolist()

    assert text(1) == text(1)
    assert text(1) != text(2)
    torch.manual_seed(3)
    first = model.generate(prompt, 30)
    assert not torch.equal(model.generate(prompt, 30), first)
    torch.manual_seed(3)
    assert torch.equal(model.generate(prompt, 30), first)


@pytest.mark.parametrize("temperature", [0, 100.0])
def test_padded_ids_are_never_sampled(temperature: float):
    """Ids from vocab_used on do not come up, even where the model would prefer them."""
    model = tiny_model(vocab_size=23, vocab_used=5)
    prompt = torch.randint(5, (8, 3), generator=torch.Generator().manual_seed(0))
    assert (plain_logits(model, prompt)[:, -1].argmax(dim=1) >= 5).any()
    draw = torch.Generator().manual_seed(0)
    new = model.generate(prompt, 40, temperature=temperature, generator=draw)[:, 3:]
    assert new.max() < 5
    assert temperature < 100 or set(new.flatten().tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("temperature", [0, 100.0])
def test_tokens_without_text_are_never_sampled(temperature: float):
    """[UNK], [PAD] and [MASK] do not come up, with the cache as without; [CLS] and [SEP] do."""
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|pad|>", *"abcdefghijklm"]
    inner = hf.Tokenizer(models.WordPiece({s: i for i, s in enumerate(symbols)}, unk_token="[UNK]"))
    inner.add_special_tokens(symbols[:6])
    model = tiny_model()
    prompt = torch.randint(19, (8, 3), generator=torch.Generator().manual_seed(0))
    assert {0, 1, 4, 5} & set(model.generate(prompt, 40, temperature)[:, 3:].flatten().tolist())
    model.tokenizer = Tokenizer(inner)
    ours = model.generate(prompt, 40, temperature, generator=torch.Generator().manual_seed(2))
    plain = plain_generate(model, prompt, 40, temperature, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours, plain)
    assert not {0, 1, 4, 5} & set(ours[:, 3:].flatten().tolist())
    assert temperature == 0 or {2, 3} <= set(ours[:, 3:].flatten().tolist())


def test_stream_yields_one_step_at_a_time():
    """stream gives the ids (B) of each step, together what generate appends."""
    model, prompt = tiny_model(), torch.tensor([[1, 2], [3, 4]])
    steps = list(stream(model, prompt, 6, temperature=0))
    assert [s.shape for s in steps] == [(2,)] * 6
    assert torch.equal(torch.stack(steps, dim=1), model.generate(prompt, 6, temperature=0)[:, 2:])
    assert torch.equal(model.generate(prompt, 0), prompt)


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (torch.tensor([[1, 23]]), {}, "token id 23"),
        (torch.tensor([[-1]]), {}, "token id -1"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "0 tokens"),
        (torch.tensor([[1.0]]), {}, "float32"),
        (torch.tensor([1, 2]), {}, r"\(2,\)"),
        (torch.tensor([[23] + [0] * 39]), {}, "id 23 is outside"),  # long out of sight
        (torch.tensor([[1]]), {"max_new_tokens": -1}, "max_new_tokens -1"),
        (torch.tensor([[1]]), {"temperature": -0.1}, "temperature -0.1"),
        (torch.tensor([[1]]), {"temperature": float("nan")}, "temperature nan"),
        (torch.tensor([[1]]), {"top_k": 0}, "top_k 0"),
        (torch.tensor([[1]]), {"top_p": 0.0}, "top_p 0.0"),
        (torch.tensor([[1]]), {"top_p": 1.1}, "top_p 1.1"),
        (torch.tensor([[1]]), {"min_p": 1.5}, "min_p 1.5"),
        (torch.tensor([[1]]), {"repetition_penalty": 0}, "repetition_penalty 0"),
        *((torch.tensor([[1]]), {"stop": stop}, "stop must be a list") for stop in ("ab", [""], [None], {3})),
        *((prompt, {}, "input_ids must be") for prompt in (None, 3, b"a", [1, 2], [[1.5]], [None])),
        ([[1], []], {}, "0 tokens"),
        ([[1], [2]], {"generator": [torch.Generator()]}, "1 generators, but there are 2 rows"),
        ([[1], [23]], {}, "token id 23"),
        ([[1], "a"], {}, "came without a tokenizer"),
        ([], {}, "no sequence"),
    ],
)
def test_errors(prompt: Tensor, sampling: dict[str, Any], message: str):
    """A prompt or setting out of range is a ValueError that names it."""
    for model in (tiny_model(), tiny_model(model_name="gpt2")):
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, **{"max_new_tokens": 3} | sampling)


# --- choose -----------------------------------------------------------------------------------

DRAWS = 8000


def draws(logits: list[float], **sampling: Any) -> list[int]:
    rows = torch.tensor(logits).expand(DRAWS, -1)
    return choose(rows, **sampling, generator=torch.Generator().manual_seed(0)).tolist()


def chosen(logits: list[float], **sampling: Any) -> set[int]:
    """Every id that comes up: so many draws miss none of the ids that can."""
    return set(draws(logits, **sampling))


different_logits = st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True).map(
    lambda numbers: [n / 40 for n in numbers]  # from -1 to 1: no ties, and none too rare to come up
)


def ranked(logits: list[float]) -> list[int]:
    return sorted(range(len(logits)), key=lambda i: -logits[i])


@given(different_logits)
@settings(max_examples=50)
def test_temperature_zero_takes_the_likeliest(logits: list[float]):
    """Temperature 0 is argmax, whatever top_k and top_p."""
    best = ranked(logits)[0]
    assert chosen(logits, temperature=0) == {best}
    assert chosen(logits, temperature=0, top_k=3, top_p=0.5) == {best}


@given(different_logits, st.integers(1, 14))
@settings(max_examples=50)
def test_top_k_is_exact(logits: list[float], k: int):
    """Precisely the k likeliest ids can come up; all of them if there are no more than k."""
    assert chosen(logits, top_k=k) == set(ranked(logits)[:k])


@given(
    different_logits, st.floats(0.01, 1.0), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([None, 1, 4])
)
@settings(max_examples=100)
def test_top_p_is_exact(logits: list[float], p: float, temperature: float, k: int | None):
    """Precisely the smallest set of likeliest ids that reaches p can come up, after temperature and top_k."""
    candidates = ranked(logits)[:k]
    weights = (
        torch.tensor([logits[i] / temperature for i in candidates], dtype=torch.float64).softmax(0).tolist()
    )
    expected: set[int] = set()
    mass = 0.0
    for i, weight in zip(candidates, weights, strict=True):
        if mass >= p - 1e-6:  # a set that reaches p up to rounding may be taken as enough or not
            if mass < p + 1e-6:
                return
            break
        expected.add(i)
        mass += weight
    assert chosen(logits, temperature=temperature, top_k=k, top_p=p) == expected


@pytest.mark.parametrize(
    ("min_p", "temperature", "kept"), [(0.5, 1, 1), (0.3, 1, 2), (0.3, 2, 3), (1, 9, 1), (0, 1, 4)]
)
def test_min_p_is_relative_to_the_likeliest(min_p: float, temperature: float, kept: int):
    """exp(-1) of the likeliest one's probability, exp(-2), exp(-3); after the temperature."""
    assert chosen([0.0, -1.0, -2.0, -3.0], min_p=min_p, temperature=temperature) == set(range(kept))


def test_repetition_penalty_is_that_of_transformers():
    """Logits of ids the text has are divided by it, negative ones multiplied, each once."""
    logits, seen = torch.tensor([[2.0, 1.5, -1.0, -1.5]] * 2), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]) > 0
    assert choose(logits, 0, repetition_penalty=1.25, seen=seen).tolist() == [0, 0]
    assert choose(logits, 0, repetition_penalty=1.5, seen=seen).tolist() == [1, 0]
    assert choose(-logits, 0, repetition_penalty=1.25, seen=seen).tolist() == [3, 3]
    p = (torch.tensor([2.0 / 2, 1.5, -1.0 * 2, -1.5])).softmax(dim=0)
    drawn = choose(logits[:1].expand(DRAWS, -1), 1, repetition_penalty=2.0, seen=seen[:1].expand(DRAWS, -1))
    assert (drawn.bincount() / DRAWS).tolist() == pytest.approx(p.tolist(), abs=0.02)
    # What counts is the prompt and all that came since, beyond the window of 12, too.
    model, row = tiny_model(), [1, 2, 3]
    expected = model.generate([row], 30, 0, repetition_penalty=1.3)[0]
    for _ in range(30):
        logits = plain_logits(model, torch.tensor([row[-12:]]))[:, -1, :19]  # (1, V)
        seen = torch.tensor([[i in row for i in range(19)]])
        row = [*row, int(choose(logits, 0, repetition_penalty=1.3, seen=seen))]
    assert row == expected != model.generate([row[:3]], 30, 0)[0]


def test_frequencies():
    """Ids come up as often as the softmax of logits / temperature says, renormalised over those allowed."""
    logits = [1.0, 0.5, 0.0, -0.5, -1.0]
    for kept, sampling in ((5, {}), (5, {"top_p": 1.0}), (3, {"top_k": 3}), (2, {"top_p": 0.8})):
        p = (torch.tensor(logits[:kept]) / 0.5).softmax(dim=0).tolist()
        drawn = draws(logits, temperature=0.5, **sampling)
        shares = [drawn.count(i) / DRAWS for i in range(5)]
        assert shares == pytest.approx([*p, *[0.0] * (5 - kept)], abs=0.02)


def test_rows_are_chosen_on_their_own():
    """Each row has its own k likeliest and its own smallest set."""
    logits = torch.tensor([[9.0, 0.0, 0.1], [0.0, 9.0, 0.1], [0.1, 0.0, 9.0]])
    for sampling in ({"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}):
        assert choose(logits, **sampling).tolist() == [0, 1, 2]


def test_settings_at_the_edge_of_float32():
    """A temperature or top_p that rounds to 0, or nearly, takes the likeliest; one beyond float32 does not
    revive what is impossible."""
    rows = torch.tensor([[0.0, 2.0, 1.0], [5.0, -torch.inf, 5.5]])
    for temperature in (0.0, 1e-320, 1e-40, 1e-39, 1e-3):
        assert choose(rows, temperature).tolist() == [1, 2]
    assert choose(rows, top_p=1e-320).tolist() == [1, 2]
    assert chosen([0.0, -torch.inf, 1.0], temperature=1e300) == {0, 2}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers(bad: float):
    for logits in (torch.tensor([[0.0, bad, 1.0]]), torch.full((1, 3), -torch.inf)):
        with pytest.raises(InputError, match="not finite"):
            choose(logits)
