"""Documents -> token files.

    meta = write_tokens(folder, {"": from_files(["notes/"])}, "bpe:8192", split_tail(val=0.05))
    print(summary(meta, folder))

The corpus is read two or three times: to count its documents, to make a tokenizer where one is to be made,
and to encode. Nothing but a few batches of it is ever in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from nanobackpack.errors import InputError, escape_controls
from nanobackpack.safe.files import Replacement, check_writable, display_path, finish_replacing, remove_stale
from nanobackpack.safe.run import start_aside
from nanobackpack.text.corpus import Corpus, Piece, composed, from_text
from nanobackpack.text.meta import COUNTS, DTYPES, Meta, is_trained_on
from nanobackpack.text.splits import Counts, Split, split_tail
from nanobackpack.text.tokenizer import END_OF_TEXT, Tokenizer, is_made, make_tokenizer
from nanobackpack.text.tokenizer_files import load_tokenizer

_BATCH_CHARS = 1 << 19  # of text encoded at a time: enough for some threads
_BATCHES_AHEAD = 2
_TITLES = 3  # of corpora that are named in a report
_CHARACTERS = 20  # that the tokenizer does not know, and that meta.json names
_TRAIN_CHARS = 1 << 25  # of text that a tokenizer is trained on,
_TRAIN_WORD_BYTES = 1 << 22  # and of different words in it: each costs a hundred bytes of memory


def write_tokens(
    folder: Path,
    corpora: Mapping[str, Corpus],
    tokenizer: str | Tokenizer,
    split: Split,
    *,
    add_bos_eos: bool = True,
    dtype: Literal["", "uint16", "uint32"] = "",
    languages: Iterable[str] = (),
    normalize: Literal["none", "nfc"] = "none",
    threads: int = 0,
) -> Meta:
    """Write <prefix><split>.bin for each {prefix: corpus}, counts.bin, tokenizer.json and, last, meta.json.

    add_bos_eos: begin each document with bos_id and end it with eos_id, as far as the tokenizer has them;
    without eos_id a line end stands between two. dtype: of the ids; "": the smallest that holds them.
    normalize: "nfc" makes one character of a letter and its accents, and the tokenizer do so with prompts.
    threads: that encode, 0: one for each core; it counts when the process encodes for the first time.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if threads:
        os.environ["RAYON_NUM_THREADS"] = str(threads)
    if isinstance(tokenizer, str) and not is_made(tokenizer):
        tokenizer = load_tokenizer(tokenizer)
    if normalize == "nfc":
        corpora = {prefix: composed(corpus) for prefix, corpus in corpora.items()}
    no_eos = tokenizer.eos_id is None if isinstance(tokenizer, Tokenizer) else tokenizer == "char"
    if add_bos_eos and no_eos:
        corpora = {prefix: corpus._replace(read=_joined(corpus)) for prefix, corpus in corpora.items()}

    # Is there a place to write to?
    with _folder_for(folder):
        check_writable(str(folder / "meta.json"))

    # The first reading counts, since a split must know how much there is. The second makes a tokenizer.
    counts = {prefix: _count(corpus) for prefix, corpus in corpora.items()}
    if isinstance(tokenizer, str):
        tokenizer = _make(tokenizer, corpora.values(), sum(count.chars for count in counts.values()))
    if normalize == "nfc":
        tokenizer = tokenizer.composing()
    meta = Meta(
        vocab_size=tokenizer.vocab_size,
        dtype=dtype or ("uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"),
        tokens={},
        chars={},
        tokenizer="tokenizer.json",
        source=_titles(corpora.values()),
        sha256={},
        languages=list(languages),
        held_out="; ".join(filter(None, map(split.held_out, counts.values()))),
        tokenizer_made_as=tokenizer.made_as,
    )

    # The last reading encodes. Files get their names when all are written: an error, or Ctrl-C, leaves the
    # data set as it was. What a killed run left unfinished is removed.
    with _folder_for(folder), Replacement(folder) as new:
        encoder = _Encoder(new, tokenizer, meta, add_bos_eos)
        finish_replacing(folder)
        remove_stale(folder)
        for prefix, corpus in corpora.items():
            paths = {name: folder / f"{prefix}{name}.bin" for name in split.names}
            place = paths[split.names[0]].parent
            place.mkdir(exist_ok=True)
            remove_stale(place)
            assigned = split.assign(corpus.read(), counts[prefix])
            title, total = escape_controls(f"encoding {prefix}".rstrip("_ ")), counts[prefix].chars
            with tqdm(desc=title, total=total, unit="char", unit_scale=True, disable=None) as bar:
                encoder.write_splits(paths, assigned, bar.update)
        meta.unknown_characters.update(encoder.unknown_characters())
        with new.open(folder / COUNTS) as file:
            file.write(encoder.counts.astype("<i8").data)
        content = tokenizer.to_json().encode()
        meta.sha256[meta.tokenizer] = hashlib.sha256(content).hexdigest()
        with new.open(folder / meta.tokenizer) as file:
            file.write(content)
        with new.open(folder / "meta.json") as file:
            file.write(meta.to_json())
    return meta


def write_dataset(folder: Path, text: str, tokenizer: Tokenizer, *, val_fraction: float, source: str) -> Meta:
    """Write a text that is in memory, the last `val_fraction` of it held out."""
    corpora = {"": from_text(text, source)}
    return write_tokens(folder, corpora, tokenizer, split_tail(val_fraction), add_bos_eos=False)


def summary(meta: Meta, folder: Path) -> str:
    """Report to people, in short: the vocabulary and what each file holds."""
    files: Counter[str] = Counter()
    for split, n in meta.tokens.items():
        files[re.sub(r"_\d+$", "_*", split) + ".bin"] += n  # shards as one
    rows = [("tokenizer.json", meta.vocab_size, "symbols")]
    rows += [(file, n, f"tokens ({meta.dtype})") for file, n in files.items()]
    width = max(len(file) for file, _, _ in rows)
    lines = [f"  {file:<{width}} {count:>13,} {what}" for file, count, what in rows]
    if meta.held_out:
        share = meta.chars["val"] / sum(meta.chars.values())
        lines.append(f"  held out: {share:.1%} of the text, {meta.held_out}")
    # Say what may surprise: fewer symbols than were asked for, and text that is lost.
    if meta.tokenizer_made_as not in ("", "char", f"bpe:{meta.vocab_size}"):
        lines.append(f"  {meta.tokenizer_made_as} has no more: each word that it was made from is one symbol")
    unknown = sum(share * meta.tokens[split] for split, share in meta.unknown_share.items())
    if unknown:
        found = [f"{c!r} {n:,} times" for c, n in meta.unknown_characters.items()][:5]
        what = f"{unknown / sum(meta.tokens.values()):.2%} of the tokens are unknown to the tokenizer"
        lines.append(f"  {what}: {', '.join(found) or 'long words'}; one made from the text knows all of it")
    return "\n".join([f"{display_path(folder)}, from {meta.source}:", *lines])


def _titles(corpora: Collection[Corpus]) -> str:
    more = len(corpora) - _TITLES
    named = [corpus.title for corpus in list(corpora)[:_TITLES]]
    return "; ".join(named + [f"{more} more"] * (more > 0))


def _joined(corpus: Corpus) -> Callable[..., Iterator[Piece]]:
    """Make a function that reads the corpus with a line end before each document but the first."""

    def read(*args: object) -> Iterator[Piece]:
        for i, piece in enumerate(corpus.read(*args)):
            yield piece._replace(text="\n" + piece.text) if piece.opens and i else piece

    return read


def _count(corpus: Corpus) -> Counts:
    lengths, marks = array("q"), 0  # (documents,)
    with tqdm(desc="reading", total=corpus.n_bytes or None, unit="B", unit_scale=True, disable=None) as bar:
        for piece in corpus.read(bar.update):
            if piece.opens:
                lengths.append(0)
            lengths[-1] += len(piece.text)
            marks += piece.text.count(END_OF_TEXT)
    if not any(lengths):
        raise InputError(f"{corpus.title} is empty: give files with text")
    if marks > len(lengths):
        what = f"{corpus.title} has {END_OF_TEXT} {marks:,} times, which is read as ordinary text"
        warnings.warn(f"{what}: if it separates documents, give --separator='{END_OF_TEXT}'", stacklevel=1)
    return Counts(lengths)


# --- A tokenizer for these texts ---------------------------------------------------------------


def _make(kind: str, corpora: Collection[Corpus], chars: int) -> Tokenizer:
    """Make a tokenizer for these texts of so many characters: from all of them or, if bpe, from a share."""
    if kind == "char":
        return make_tokenizer(kind, (piece.text for corpus in corpora for piece in corpus.read()))
    return make_tokenizer(kind, _sample(corpora, min(1.0, _TRAIN_CHARS / chars)))


def _sample(corpora: Iterable[Corpus], share: float) -> list[str]:
    """Choose pieces of text to train a tokenizer on: a share of all, spread evenly.

    Training holds each different word, and in Chinese whatever stands between two punctuation marks is one.
    Where that would be too much, every other piece is dropped, as often as need be.
    """
    kept: list[str] = []
    words: set[int] = set()
    n_bytes, due = 0, 0.0  # of the words; pieces that should have been kept by now and are not
    for corpus in corpora:
        for piece in corpus.read():
            due += share
            if due >= 1:
                due -= 1
                kept.append(piece.text)
                n_bytes += _add_words(piece.text, words)
            while n_bytes > _TRAIN_WORD_BYTES and len(kept) > 1:
                kept, share = kept[::2], share / 2
                words.clear()
                n_bytes = sum(_add_words(text, words) for text in kept)
    return kept


def _add_words(text: str, words: set[int]) -> int:
    """Add the words of a text to `words`, as their hashes; return how many bytes the new ones have."""
    found = {hash(word): len(word.encode()) for word in re.findall(r"\w+|[^\w\s]+", text)}
    n_bytes = sum(n for word, n in found.items() if word not in words)
    words.update(found)
    return n_bytes


# --- Encoding ----------------------------------------------------------------------------------


class _TokenFile:
    """A .bin that is being written."""

    def __init__(self, file: BinaryIO, dtype: str) -> None:
        self.file, self.dtype = file, DTYPES[dtype]
        self.sha256 = hashlib.sha256()
        self.tokens = 0

    def write(self, ids: list[np.ndarray]) -> np.ndarray:
        data = np.concatenate(ids).astype(self.dtype)  # (N,)
        self.file.write(data.data)
        self.sha256.update(data.data)
        self.tokens += len(data)
        return data


class _Encoder:
    """Encodes corpora into the new files of a data set, and enters in its `meta` what they hold."""

    def __init__(self, new: Replacement, tokenizer: Tokenizer, meta: Meta, add_bos_eos: bool) -> None:
        self.new, self.tokenizer, self.meta = new, tokenizer, meta
        special = (tokenizer.bos_id, tokenizer.eos_id)
        self.bos, self.eos = ([] if i is None or not add_bos_eos else [np.array([i])] for i in special)
        self.counts = np.zeros(meta.vocab_size, np.int64)  # (V,) of the ids that are to be trained on
        self.near_unknown: Counter[str] = Counter()  # characters of the pieces in which some are unknown

    def write_splits(
        self, paths: dict[str, Path], assigned: Iterator[tuple[str, Piece]], progress: Callable[[int], object]
    ) -> None:
        """Encode one corpus into the files of its splits; `progress` is told of the characters done."""
        chars, unknown = dict.fromkeys(paths, 0), dict.fromkeys(paths, 0)
        with ExitStack() as stack:
            files = {
                name: _TokenFile(stack.enter_context(self.new.open(path)), self.meta.dtype)
                for name, path in paths.items()
            }
            for batch, arrays in _encoded(assigned, self.tokenizer):
                parts: dict[str, list[np.ndarray]] = {}
                for (name, piece), ids in zip(batch, arrays, strict=True):
                    parts.setdefault(name, []).extend(
                        [*self.bos * piece.opens, ids, *self.eos * piece.closes]
                    )
                    chars[name] += len(piece.text)
                    if n := int((ids == self.tokenizer.unknown_id).sum()):
                        unknown[name] += n
                        self.near_unknown.update(piece.text)
                    progress(len(piece.text))
                for name, part in parts.items():
                    data = files[name].write(part)
                    if is_trained_on(name):
                        self.counts += np.bincount(data, minlength=len(self.counts))
        for name, file in files.items():
            if file.tokens < 2:
                raise InputError(
                    f"the text has {sum(chars.values())} characters, too few: its {name} part would have "
                    f"{file.tokens} tokens and needs 2; give more text"
                )
            split, meta = paths[name].stem, self.meta
            meta.tokens[split], meta.chars[split] = file.tokens, chars[name]
            meta.unknown_share[split] = unknown[name] / file.tokens
            meta.sha256[paths[name].name] = file.sha256.hexdigest()

    def unknown_characters(self) -> Iterator[tuple[str, int]]:
        """Yield the commonest characters that the tokenizer does not know, and how often each came."""
        unknown = self.tokenizer.unknown_id
        found = ((c, n) for c, n in self.near_unknown.most_common() if unknown in self.tokenizer.encode(c))
        return itertools.islice(found, _CHARACTERS)


Batch = list[tuple[str, Piece]]
"""Pieces, each with the name of its split."""


def _encoded(
    assigned: Iterator[tuple[str, Piece]], tokenizer: Tokenizer
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """Yield the pieces in batches with their ids (N,), encoded in the background, some batches ahead."""
    waiting: deque[tuple[Batch, Callable[[], list[np.ndarray]]]] = deque()
    for batch in _batches(assigned):
        if len(waiting) == _BATCHES_AHEAD:
            done, result = waiting.popleft()
            yield done, result()
        texts = [piece.text for _, piece in batch]
        waiting.append((batch, start_aside(partial(tokenizer.encode_batch, texts))))
    for done, result in waiting:
        yield done, result()


def _batches(assigned: Iterator[tuple[str, Piece]]) -> Iterator[Batch]:
    batch: Batch = []
    chars = 0
    for name, piece in assigned:
        batch.append((name, piece))
        chars += len(piece.text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


@contextmanager
def _folder_for(folder: Path) -> Iterator[None]:
    """Make the folder, and take it away again if nothing came to be in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"cannot write to {display_path(folder)}: {error.strerror}") from None
    finally:
        with suppress(OSError):
            folder.rmdir()  # fails unless it is empty
