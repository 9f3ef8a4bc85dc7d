"""Splits: every document goes to exactly one, the number asked for, the same ones each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobackpack.errors import InputError
from nanobackpack.text.corpus import Piece
from nanobackpack.text.splits import Counts, Split, deal_shards, fraction, split_random, split_tail


def pieces_of(documents: list[list[str]]) -> Iterator[Piece]:
    for texts in documents:
        for i, text in enumerate(texts):
            yield Piece(text, i == 0, i == len(texts) - 1)


def assign(split: Split, documents: list[list[str]]) -> list[tuple[str, Piece]]:
    counts = Counts(len(documents), sum(len(text) for texts in documents for text in texts))
    return list(split.assign(pieces_of(documents), counts))


DOCUMENTS = st.lists(st.lists(st.text(max_size=9), min_size=1, max_size=4), min_size=1, max_size=30)


@given(DOCUMENTS, st.floats(0.01, 0.99))
def test_tail(documents: list[list[str]], val: float):
    assigned = assign(split_tail(val), documents)
    parts = {name: "".join(p.text for n, p in assigned if n == name) for name in ("train", "val")}
    whole = "".join(text for texts in documents for text in texts)
    assert parts["train"] + parts["val"] == whole
    assert len(parts["train"]) == int(len(whole) * (1 - val))
    assert sum(p.opens for _, p in assigned) == sum(p.closes for _, p in assigned) == len(documents)


@given(st.integers(3, 400), st.data())
def test_random_gives_each_document_to_one_split(n: int, data: st.DataObject):
    n_evaluation = data.draw(st.integers(0, n - 2))
    n_val = data.draw(st.integers(0, n - n_evaluation - 1))
    split = split_random(evaluation=lambda n: n_evaluation, val=lambda n: n_val)
    documents = [[f"{i}a", f"{i}b"] for i in range(n)]
    assigned = assign(split, documents)
    assert [p for _, p in assigned] == list(pieces_of(documents))  # all of them, in order
    owners = [name for name, piece in assigned if piece.opens]
    assert owners == [name for name, piece in assigned if piece.closes]  # no document is torn
    wanted = {"evaluation": n_evaluation, "val": n_val, "train": n - n_evaluation - n_val}
    assert Counter(owners) == Counter(wanted) - Counter()
    assert split.names == ("train", "val", "evaluation")


def test_random_is_the_same_each_time_and_uniform():
    documents = [[str(i)] for i in range(20_000)]
    split = split_random(evaluation=fraction(0.1), val=fraction(0.1))
    assigned = assign(split, documents)
    assert assigned == assign(split, documents)
    for name in ("evaluation", "val"):
        numbers = [int(p.text) for n, p in assigned if n == name]
        assert len(numbers) == 2000
        assert abs(sum(numbers) / 2000 - 10_000) < 4 * 20_000 / 12**0.5 / 2000**0.5
    alone = assign(split_random(evaluation=fraction(0.1)), documents)  # that val is drawn changes nothing
    assert [p for n, p in assigned if n == "evaluation"] == [p for n, p in alone if n == "evaluation"]


def test_random_from_too_few():
    split = split_random(evaluation=fraction(0.1), val=fraction(0.1))
    for n in (1, 2):
        with pytest.raises(InputError, match=f"only {n} documents"):
            assign(split, [["x"]] * n)
    assert len(assign(split, [["x"]] * 3)) == 3


def test_fraction():
    assert [fraction(0.001)(n) for n in (1, 1000, 1001, 0)] == [1, 1, 2, 0]
    share = fraction(0.001, 10_000, 0.1)
    assert [share(n) for n in (100, 99_990, 1_000_000, 20_000_000)] == [10, 9_999, 10_000, 20_000]


@given(DOCUMENTS, st.integers(1, 7))
def test_shards_get_equal_shares(documents: list[list[str]], n_shards: int):
    if len(documents) < n_shards:
        with pytest.raises(InputError, match=f"for {n_shards} shards"):
            assign(deal_shards(n_shards), documents)
        return
    assigned = assign(deal_shards(n_shards), documents)
    assert [p for _, p in assigned] == list(pieces_of(documents))
    assert [n for n, p in assigned if p.opens] == [n for n, p in assigned if p.closes]
    chars = {str(i): 0 for i in range(n_shards)}
    for name, piece in assigned:
        chars[name] += len(piece.text)
    longest = max(sum(map(len, texts)) for texts in documents)
    assert max(chars.values()) - min(chars.values()) <= longest


@pytest.mark.parametrize("val", [0, 1, -1, float("nan")])
def test_tail_out_of_range(val: float):
    with pytest.raises(InputError, match=f"val={val}"):
        split_tail(val)
