"""Which part of a corpus is held out: every piece of every document goes to exactly one split."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from nanobackpack.errors import InputError
from nanobackpack.text.corpus import Piece

SEED = 2357  # of the documents held out, as in nanoBackpackLM and nanoGPT


class Counts(NamedTuple):
    """The size of a corpus."""

    documents: int
    chars: int


class Split(NamedTuple):
    """A way to divide a corpus."""

    names: tuple[str, ...]  # of the splits
    assign: Callable[[Iterable[Piece], Counts], Iterator[tuple[str, Piece]]]
    """Gives each piece the name of its split; refuses too few documents."""


def split_tail(val: float) -> Split:
    """Hold out the last `val` of the characters for validation."""
    if not 0 < val < 1:
        raise InputError(f"val={val} is out of range: it must lie between 0 and 1, as 0.1")

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        left = int(counts.chars * (1 - val))  # characters still to go to train
        for piece in pieces:
            n = len(piece.text)
            if n <= left:
                yield "train", piece
            elif left > 0:  # the border lies within this piece
                yield "train", piece._replace(text=piece.text[:left], closes=False)
                yield "val", piece._replace(text=piece.text[left:], opens=False)
            else:
                yield "val", piece
            left -= n

    return Split(("train", "val"), assign)


def fraction(share: float, least: int = 0, most: float = 1.0) -> Callable[[int], int]:
    """Make a function that takes that share of n documents, rounded up: `least` or more, n * most or less."""
    return lambda n: min(max(math.ceil(n * share), least), math.ceil(n * most))


def split_random(**held_out: Callable[[int], int]) -> Split:
    """Hold out documents drawn at random, the same each time; the rest is train.

    held_out: for each split, in the order they are drawn, how many of n documents it gets.
    """

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        n, random = counts.documents, np.random.default_rng(SEED)
        # Draw the numbers of the documents of each split held out, then go through all documents.
        owner: dict[int, str] = {}
        taken = np.empty(0, np.int64)  # numbers drawn so far, sorted
        for name, share in held_out.items():
            k = share(n)
            if k >= n - len(taken):
                raise InputError(
                    f"the text has only {n:,} documents, too few to hold out {k:,} for {name}: give more, "
                    "or let `nanobackpack prepare FILE` split it by characters"
                )
            ranks = random.choice(n - len(taken), k, replace=False)  # (k) among the documents left
            # Rank r is document r + i, where i of the taken ones come before it.
            chosen = ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")  # (k)
            owner.update(dict.fromkeys(chosen.tolist(), name))
            taken = np.sort(np.concatenate([taken, chosen]))
        number = -1
        for piece in pieces:
            number += piece.opens
            yield owner.get(number, "train"), piece

    return Split(("train", *reversed(held_out)), assign)


def deal_shards(n_shards: int) -> Split:
    """Divide into shards "0", "1", ...: each document in turn goes to the one with the least text."""

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        if counts.documents < n_shards:
            raise InputError(
                f"the text has only {counts.documents:,} documents, too few for {n_shards} shards: give more"
            )
        shards = [(0, i) for i in range(n_shards)]  # (characters, number): a heap
        for piece in pieces:
            chars, number = shards[0]
            yield str(number), piece
            shards[0] = chars + len(piece.text), number
            if piece.closes:
                heapq.heapreplace(shards, shards[0])

    return Split(tuple(map(str, range(n_shards))), assign)
