"""Which part of a corpus is held out: every piece of every document goes to exactly one split."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from nanobackpack.errors import InputError
from nanobackpack.text.corpus import Piece

SEED = 2357  # of the documents held out, as in nanoBackpackLM and nanoGPT
_BLOCK_CHARS = 4096  # of a long document are held out in one place, more or less
_FEW_CHARS = 256  # documents that are due fewer are put together, as long as that leaves eight blocks,
_LEAST_CHARS = 16  # and in any case where they are due fewer than these, which may be a single token


class Counts(NamedTuple):
    """The size of a corpus."""

    lengths: Sequence[int]  # of each document, in characters

    @property
    def documents(self) -> int:
        return len(self.lengths)

    @property
    def chars(self) -> int:
        return sum(self.lengths)


class Split(NamedTuple):
    """A way to divide a corpus."""

    names: tuple[str, ...]  # of the splits
    assign: Callable[[Iterable[Piece], Counts], Iterator[tuple[str, Piece]]]
    """Gives each piece the name of its split; refuses too few documents."""
    held_out: Callable[[Counts], str] = lambda counts: ""
    """Tells people what is held out for validation."""


def split_spread(val: float) -> Split:
    """Hold out `val` of the text, drawn from all over it, the same each time.

    Of short documents one in so many is held out whole. A long one, of more than a page and more than a
    quarter of all that is to be held out, or of more than all of it, is taken for a text: blocks of a few
    pages are cut out of it, from line end to line end.
    Where a block was, its neighbours meet as lines of one text do. No token that ends a document stands
    there, since none ends: a model would learn to stop in the middle of a text.
    """
    _check_share(val)

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        whole, blocks, _ = _draw(counts.lengths, val)
        number, begin = -1, 0  # of the document, and where in it the piece begins
        for piece in pieces:
            if piece.opens:
                number, begin = number + 1, 0
                name, other = ("val", "train") if number in whole else ("train", "val")
                # The place of each cut, and how far the line end after it may be.
                cuts = [(at, (e - s) // 2) for s, e in blocks.get(number, []) for at in (s, e)]
            text, start = piece.text, 0
            while cuts and cuts[0][0] - begin < len(text):
                at, reach = cuts.pop(0)
                end = max(start, _line_end(text, at - begin, reach))
                if begin + end == counts.lengths[number]:
                    break  # nothing follows but the token that ends the document
                if end > start:
                    part = text[start:end]
                    yield name, piece._replace(text=part, opens=piece.opens and not start, closes=False)
                name, other, start = other, name, end
            yield name, piece._replace(text=text[start:], opens=piece.opens and not start)
            begin += len(text)

    def held_out(counts: Counts) -> str:
        whole, blocks, n_long = _draw(counts.lengths, val)
        sizes = [end - start for document in blocks.values() for start, end in document]
        parts = [f"{len(whole):,} of {counts.documents - n_long:,} documents"] if whole else []
        if sizes:
            n, size = len(sizes), sum(sizes) // len(sizes)
            what = f"{n:,} block{'s' * (n > 1)} of about {size:,} characters"
            parts.append(f"{what} from {len(blocks):,} of {n_long:,} long documents")
        return " and ".join(parts)

    return Split(("train", "val"), assign, held_out)


def _draw(lengths: Sequence[int], val: float) -> tuple[set[int], dict[int, list[tuple[int, int]]], int]:
    """Draw what is held out: the numbers of whole documents, and of long ones {number: [(start, end)]}.

    Tell also how many are long.
    """
    import numpy as np

    n, random = np.asarray(lengths, np.int64), np.random.default_rng(SEED)  # (documents,)
    # What is shorter than a block stays whole, unless it is more than all that is to be held out.
    is_long = n > np.clip(_BLOCK_CHARS, n.sum() * val / 4, n.sum() * val)

    # Documents: one of each stretch of 1 / val that follow one another.
    short = np.flatnonzero(~is_long)
    k = round(len(short) * val)
    edges = np.linspace(0, len(short), k + 1).astype(np.int64)
    whole = short[edges[:-1] + (random.random(k) * np.diff(edges)).astype(np.int64)]  # (k,)

    # Blocks: one anywhere in each stretch of a long document, all stretches alike. What is due from one that
    # is too short for a block is taken from the next.
    least = max(_LEAST_CHARS, min(_FEW_CHARS, n.sum() * val / 8))
    blocks, due = {}, 0.0
    for i in np.flatnonzero(is_long).tolist():
        due += n[i] * val
        if due < least and is_long[i + 1 :].any():
            continue
        due = min(max(due, min(_LEAST_CHARS, n.sum() / 2)), n[i])  # a very short text gives up to a half
        k = max(1, round(due / _BLOCK_CHARS))
        starts = (np.arange(k) + random.random(k) * (1 - due / n[i])) * n[i] / k  # (k,)
        blocks[i] = [(int(start), int(start + due / k)) for start in starts]
        due = 0.0
    return set(whole.tolist()), blocks, int(is_long.sum())


def _line_end(text: str, at: int, reach: int) -> int:
    """Return where the line at `at` ends; if that is beyond reach where the word does, or `at` itself."""
    for mark, length in (("\n", 1), (" ", 0)):  # a space belongs to the word after it
        if (found := text.find(mark, at, at + reach)) >= 0:
            return found + length
    return at


def split_tail(val: float) -> Split:
    """Hold out the last `val` of the characters for validation."""
    _check_share(val)

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

    return Split(("train", "val"), assign, lambda counts: "its end")


def _check_share(val: float) -> None:
    if not 0 < val < 1:
        raise InputError(f"val={val} is out of range: it must lie between 0 and 1, as 0.1")


def fraction(share: float, least: int = 0, most: float = 1.0) -> Callable[[int], int]:
    """Make a function that takes that share of n documents, rounded up: `least` or more, n * most or less."""
    return lambda n: min(max(math.ceil(n * share), least), math.ceil(n * most))


def split_random(**held_out: Callable[[int], int]) -> Split:
    """Hold out documents drawn at random, the same each time; the rest is train.

    held_out: for each split, in the order they are drawn, how many of n documents it gets.
    """

    def assign(pieces: Iterable[Piece], counts: Counts) -> Iterator[tuple[str, Piece]]:
        import numpy as np

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
