"""Dictionaries of Debian: what is taken from them, what is left out, and what is held out."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest

from nanobackpack import InputError
from nanobackpack.commands.prepare import PrepareConfig, prepare
from nanobackpack.text.data import open_dataset
from nanobackpack.text.dictionaries import meanings, read_dictionaries

WORDNET = """
00-database-short
   WordNet
king
    n 1: a male sovereign; ruler
         of a kingdom [syn: {king}, {male monarch}] [ant: {queen}]
    2: (chess) the "most important" piece
King Arthur
    n 1: a legendary king
run
    v 1: move fast; "they ran {home}" [syn: {run}]
"""
GCIDE = r"""
00-database-info
   not a word
Doctor \Doc"tor\ (d[o^]k"t[~e]r), n. [OF. doctur, from L.
   docere to teach.]
   1. A teacher; one skilled
      in a profession. [Obs.] "Learned doctors." --Bacon.
      [1913 Webster]

   2. [fr. 1.] A physician who heals.

   Note: Not for the model to read.

   Syn: physician; surgeon; healer.

   a licensed medical practitioner
   [WordNet 1.5]

Leech \Leech\, n.
   See {Leach}.
"""


def package(path: Path, name: str, text: str) -> Path:
    """A .deb as Debian makes them: an ar archive with the files in data.tar.xz."""
    packed, files = gzip.compress(text.encode()), io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as tar:
        member = tarfile.TarInfo(f"./usr/share/dictd/{name}.dict.dz")
        member.size = len(packed)
        tar.addfile(member, io.BytesIO(packed))
    content = b"!<arch>\n"
    for file, data in (("debian-binary", b"2.0"), ("data.tar.xz", lzma.compress(files.getvalue()))):
        content += f"{file:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(data):<10}`\n".encode() + data
        content += b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


def test_meanings_and_examples_are_taken(tmp_path: Path) -> None:
    """No proper names, no lists of other words, nothing that GCIDE has from WordNet."""
    assert list(meanings(package(tmp_path / "w.deb", "wn", WORDNET))) == [
        ("king", "a male sovereign; ruler of a kingdom"),
        ("king", '(chess) the "most important" piece'),
        ("run", 'move fast; "they ran home"'),
    ]
    unpacked = tmp_path / "gcide.dict.dz"
    unpacked.write_bytes(gzip.compress(GCIDE.encode()))
    assert list(meanings(unpacked)) == [
        ("doctor", 'A teacher; one skilled in a profession. "Learned doctors."'),
        ("doctor", "A physician who heals."),
    ]


def test_a_word_is_held_out_with_all_that_is_said_of_it(tmp_path: Path) -> None:
    """Its definition is not learned from a synonym either."""
    entries = [f"w{i}x{j}\n    n 1: what {i} is\n    2: only {i} and {j}\n" for i in range(40) for j in "abc"]
    corpus, split = read_dictionaries([package(tmp_path / "w.deb", "wn", "\n" + "".join(entries))], 0.2)
    assert list(corpus.read()) == list(corpus.read())
    lines = {"train": {}, "val": {}}  # {split: {headword: what is said of it}}
    for name, piece in split.assign(corpus.read(), None):  # type: ignore[arg-type]
        assert piece.text.startswith(" ")
        word, meaning = piece.text[1:].split(" : ")
        lines[name].setdefault(word, set()).add(meaning)
    train, val = lines.values()
    assert 10 <= len(val) <= 40
    assert not train.keys() & val.keys()
    assert not set.union(*train.values()) & set.union(*val.values())
    assert len(train) + len(val) == 120  # a synonym keeps its own meanings
    assert f"{len(val)} of 120 headwords" in split.held_out(None)  # type: ignore[arg-type]


def test_prepare_words(tmp_path: Path) -> None:
    text = "\n" + "".join(f"word{i}\n    n 1: number {i} of all words\n" for i in range(300))
    package(tmp_path / "w.deb", "wn", text)
    prepare("words", PrepareConfig(input=(str(tmp_path / "w.deb"),), tokenizer="bpe:400"), tmp_path)
    data = open_dataset(tmp_path / "words")
    assert data.tokenizer
    first = data.tokenizer.decode(data.splits["val"]).split("<|endoftext|>")[0]
    assert first.startswith(" word")
    assert first.endswith(" of all words")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.deb", b"!<arch>\n", "no data.tar.xz"),
        (
            "x.deb",
            b"no package at all, but as long as the head of one of the files in it is",
            "no dictionary",
        ),
        ("wn.dict.dz", b"not packed", "no dictionary"),
        ("foldoc.dict.dz", gzip.compress(b"", mtime=0), "only wn and gcide"),
    ],
)
def test_what_is_no_dictionary(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_dictionaries([tmp_path / name], 0.02)
