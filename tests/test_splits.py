"""Splits: every document goes to exactly one, the number asked for, the same ones each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanobackpack.errors import InputError
from nanobackpack.text.corpus import Piece, document
from nanobackpack.text.splits import (
    Counts,
    Split,
    deal_shards,
    fraction,
    split_random,
    split_spread,
    split_tail,
)  # fmt: skip


def pieces_of(documents: list[list[str]]) -> Iterator[Piece]:
    for texts in documents:
        for i, text in enumerate(texts):
            yield Piece(text, i == 0, i == len(texts) - 1)


def assign(split: Split, documents: list[list[str]]) -> list[tuple[str, Piece]]:
    return list(split.assign(pieces_of(documents), Counts([sum(map(len, texts)) for texts in documents])))


DOCUMENTS = st.lists(st.lists(st.text(max_size=9), min_size=1, max_size=4), min_size=1, max_size=30)


@given(DOCUMENTS, st.floats(0.01, 0.99))
def test_tail(documents: list[list[str]], val: float):
    assigned = assign(split_tail(val), documents)
    parts = {name: "".join(p.text for n, p in assigned if n == name) for name in ("train", "val")}
    whole = "".join(text for texts in documents for text in texts)
    assert parts["train"] + parts["val"] == whole
    assert len(parts["train"]) == int(len(whole) * (1 - val))
    assert sum(p.opens for _, p in assigned) == sum(p.closes for _, p in assigned) == len(documents)


@given(DOCUMENTS, st.floats(0.01, 0.5))
def test_spread_loses_and_tears_nothing_short(documents: list[list[str]], val: float):
    assigned = assign(split_spread(val), documents)
    assert "".join(p.text for _, p in assigned) == "".join(text for texts in documents for text in texts)
    assert sum(p.opens for _, p in assigned) == sum(p.closes for _, p in assigned) == len(documents)
    assert assigned == assign(split_spread(val), documents)
    n_chars = sum(len(p.text) for _, p in assigned)
    owners = [set[str]() for _ in documents]  # of each document
    number = -1
    for name, piece in assigned:
        number += piece.opens
        owners[number].add(name)
    for texts, names in zip(documents, owners, strict=True):
        assert len(names) == 1 or sum(map(len, texts)) > n_chars * val


PROSE = [f"Line {i} of a text{' that goes on' * (i % 5)}.\n" for i in range(4000)]  # 162,000 characters
LONG, NOTE = "".join(PROSE), "".join(PROSE[:9])
SPREAD = {  # documents, what is said of them, and how many of them are in val
    "one": ([LONG], "2 blocks of about 4,", 1),
    "one line": ([LONG.replace("\n", " ")], "2 blocks of about 4,", 1),
    "one word": (["x" * 9000], "1 block of about 450 characters from 1 of 1 long documents", 1),
    "two": ([LONG, LONG[:30_000]], "3 blocks of about 3,", 2),
    "languages": ([LONG[:60_000]] * 3, "3 blocks of about 3,000 characters from 3 of 3 long documents", 3),
    "short texts": ([NOTE] * 40, "2 of 40 documents", 2),
    "few pages": ([LONG[:6000]] * 20, "20 blocks of about 300 characters from 20 of 20 long documents", 20),
    "few words": (["a few words"] * 5, "1 block of about 11 characters from 1 of 5 long documents", 1),
    "notes": ([NOTE] * 200, "10 of 200 documents", 10),
    "sentences": (PROSE, "200 of 4,000 documents", 200),
    "a novel among notes": ([*PROSE, LONG], "200 of 4,000 documents and 2 blocks of about", 201),
    "a note beside a novel": ([LONG, NOTE], "2 blocks of about 4,", 1),
}


@pytest.mark.parametrize("name", SPREAD)
def test_spread_holds_out_of_everything(name: str):
    texts, said, n_owners = SPREAD[name]
    split, counts = split_spread(0.05), Counts([len(text) for text in texts])
    assert split.held_out(counts).startswith(said)
    held, number, owners = [], -1, set()
    for n, piece in split.assign((piece for text in texts for piece in document([text])), counts):
        number += piece.opens
        if n == "val" and piece.text:
            held.append(piece.text)
            owners.add(number)
    assert len(owners) == n_owners
    assert abs(len("".join(held)) / counts.chars - 0.05) < (0.01 if counts.chars > 1000 else 0.15)
    if name not in ("one word", "few words"):  # no word is torn, nor a line where blocks are not tiny
        assert set(" ".join(held).split()) <= set(LONG.split())
        if name != "one line":
            assert set("".join(held).splitlines(True)) <= set(PROSE)
    places = [i for i, text in enumerate(texts) if i in owners]
    if len(texts) > 100:  # one in each stretch of twenty
        assert [i // 20 for i in places[:200]] == list(range(len(texts) // 20))[:200]


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
@pytest.mark.parametrize("split", [split_tail, split_spread])
def test_share_out_of_range(split: Callable[[float], Split], val: float):
    with pytest.raises(InputError, match=f"val={val}"):
        split(val)
