"""Text -> token files, in data/NAME of the current folder: train.bin, val.bin, tokenizer.json, meta.json.

Your own texts: files, globs, and folders searched for *.txt, *.md, *.jsonl, *.ndjson and *.parquet. Files may
also be *.json, *.csv and *.tsv, and packed as .gz, .xz or .zst. Their tokens are byte-level BPE, 8192 kinds
made from the texts, unless you name others.

    nanobackpack prepare notes.txt essays/ --name=mine
    nanobackpack prepare notes.txt essays/ --name=mine --tokenizer=char --val=0.1
    nanobackpack prepare stories.txt --name=stories --separator="<|endoftext|>"

A known data set, by its name; --input takes local copies instead of a download:

    nanobackpack prepare shakespeare_char      Tiny Shakespeare by characters; downloads 1.1 MB, once
    nanobackpack prepare shakespeare           the same by GPT-2's tokens
    nanobackpack prepare pydocs_char           Python's own help texts by characters; needs no network
    nanobackpack prepare words                 what words mean, of two dictionaries; downloads 25 MB
    nanobackpack prepare planted               a made-up language with known bias, topics and facts, by words
    nanobackpack prepare openwebtext           by GPT-2's tokens, from the hub, some 40 GB of text
    nanobackpack prepare tigerbot              Chinese, from the hub, by Chinese BERT's tokens
    nanobackpack prepare clue_small            Chinese: CLUE's corpora, from folders that you have to fetch
    nanobackpack prepare common_crawl --languages am sr             by XLM-R's tokens, from the hub's CC-100
    nanobackpack prepare common_crawl --input de.txt.xz fr.txt.xz --shards=100
"""

from __future__ import annotations

import dataclasses
import difflib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanobackpack.config import Settings
from nanobackpack.errors import InputError
from nanobackpack.evaluate import language
from nanobackpack.safe.download import download
from nanobackpack.safe.files import display_path
from nanobackpack.safe.run import ending_signals
from nanobackpack.text.corpus import (
    Corpus,
    Segments,
    chained,
    find_files,
    from_files,
    from_hub,
    from_text,
    separated,
)
from nanobackpack.text.dictionaries import read_dictionaries
from nanobackpack.text.splits import Split, deal_shards, fraction, split_random, split_spread, split_tail


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Settings):
    """Text -> token files."""

    paths: tuple[str, ...] = ()
    """Text files, globs, and folders to search; or the name of a known data set."""
    input: tuple[str, ...] = ()
    """More files and folders: of a known data set, local copies to take instead of its own source."""
    tokenizer: str = ""
    """char, bpe:N (made from texts), gpt2, chinese-character-bert, xlm-250k, a hub name, a file, a folder.
    Empty: bpe:8192 for your own texts, else that of the data set."""
    name: str = "mine"
    """Of your own texts: name of the data set, its folder under data/."""
    separator: str = ""
    """Of your own texts: the mark between documents, as <|endoftext|>; empty: each file is one document."""
    val: float = 0.05
    """Of your own texts: part held out for validation."""
    split: Literal["spread", "tail"] = "spread"
    """Of your own texts: what is held out: documents or blocks of text drawn from all over, or the end."""
    field: str = "text"
    """Of your own texts: the field of a record, or column, with the text; meta.text is inside meta."""
    strict: bool = False
    """Refuse a record without text, which else is skipped and counted."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """A byte that is no UTF-8: strict: an error; replace: becomes U+FFFD; skip: is left out."""
    newlines: Literal["lf", "keep"] = "lf"
    """Of files: lf: the line ends of Windows and old Macs become \\n; keep: they stay."""
    normalize: Literal["none", "nfc"] = "none"
    """nfc: a letter and its accents become one character, in prompts too (Unicode's NFC)."""
    languages: tuple[str, ...] = ()
    """Of common_crawl: languages of CC-100 to fetch from the hub."""
    shards: int = 0
    """Of common_crawl: write so many shards of equal share for each language, not three splits (0: no)."""
    num_proc: int = 0
    """Threads that encode (0: one for each core)."""
    out: str = ""
    """Folder to write to; empty: data/NAME."""

    @property
    def reading(self) -> dict[str, Any]:
        """How files are read."""
        return {"strict": self.strict, "errors": self.errors, "newlines": self.newlines}


# --- The known data sets -----------------------------------------------------------------------

# Each of these functions gets the settings and the folder of the data set, in which its text may lie already.
Plan = tuple[dict[str, Corpus], Split, dict[str, Any]]
"""What to write: {prefix of the files: documents}, how to split these, and other options of write_tokens."""


def shakespeare(settings: PrepareConfig, folder: Path) -> Plan:
    """Tiny Shakespeare, or any text: the first 90 % of the characters are for training."""
    if settings.input:
        corpus = from_files(settings.input, **settings.reading)
    else:
        url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
        sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
        download(url, folder / "input.txt", sha256, 1_115_394)
        corpus = from_files([folder / "input.txt"])._replace(title=url)
    return {"": corpus}, split_tail(0.1), {"add_bos_eos": False}


def pydocs_char(settings: PrepareConfig, folder: Path) -> Plan:
    """Python's own help texts, from the standard library."""
    from pydoc_data.topics import topics

    if settings.input:
        raise InputError("pydocs_char has texts of its own: leave --input out")
    text = "\n".join(topics[name] for name in sorted(topics))
    corpus = from_text(text, f"pydoc_data.topics of Python {platform.python_version()}")
    return {"": corpus}, split_tail(0.1), {"add_bos_eos": False}


def words(settings: PrepareConfig, folder: Path) -> Plan:
    """Dictionaries, a line for each meaning: of 2 % of the words all lines are for validation."""
    paths: list[str | Path] = [*settings.input]
    if not paths:
        for place, sha256, size in DICTIONARIES:
            paths.append(folder / place.rpartition("/")[2])
            download(f"https://deb.debian.org/debian/pool/main/{place}", Path(paths[-1]), sha256, size)
    corpus, split = read_dictionaries(paths, held_out=0.02)
    return {"": corpus}, split, {}


# Packages of Debian: WordNet is free for any purpose, GCIDE is under the GPL.
DICTIONARIES = [
    (
        "w/wordnet/dict-wn_3.0-37_all.deb",
        "ed99e0bf162815dc1cc69de3727eedd7112ddf170badf83dbde26209e0724a8c",
        10_611_932,
    ),
    (
        "d/dict-gcide/dict-gcide_0.48.5+nmu2_all.deb",
        "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        14_800_692,
    ),
]


def planted(settings: PrepareConfig, folder: Path) -> Plan:
    """The language of `nanobackpack planted`: 60,000 short texts, each a document."""
    if settings.input:
        raise InputError("planted has texts of its own: leave --input out")
    return {"": language.corpus()}, split_spread(0.02), {}


def local_or_hub(settings: PrepareConfig, hub: str, field: str) -> Corpus:
    if settings.input:
        return from_files(settings.input, Segments((field,)), **settings.reading)
    return from_hub(hub, Segments((field,)), strict=settings.strict)


def openwebtext(settings: PrepareConfig, folder: Path) -> Plan:
    """OpenWebText, <|endoftext|> after each document: 0.05 % of the documents are for validation."""
    corpus = local_or_hub(settings, "Skylion007/openwebtext", "text")
    return {"": corpus}, split_random(val=fraction(0.0005)), {}


def tigerbot(settings: PrepareConfig, folder: Path) -> Plan:
    """TigerBot's Chinese texts, [CLS] ... [SEP]: 0.1 % are for evaluation, then 0.05 % for validation."""
    corpus = local_or_hub(settings, "TigerResearch/pretrain_zh", "content")
    return {"": corpus}, split_random(evaluation=fraction(0.001), val=fraction(0.0005)), {}


def clue_small(settings: PrepareConfig, folder: Path) -> Plan:
    """CLUE's corpora, those that are there, each document [CLS] ... [SEP]; split as tigerbot."""

    def wiki(text: str) -> list[str]:  # an article without its title, which a blank line ends
        title, blank, rest = text.partition("\n\n")
        return [rest if blank else title]

    def web(title: str, more: str, answer: str) -> list[str]:  # a question and its answer, apart
        return [title + more, answer]

    parts = {
        "wiki_zh_2019/**/wiki*": Segments(("text",), wiki),
        "webtext2019zh/web_text_zh_*.json": Segments(("title", "desc", "content"), web),
        "new2016zh/news2016zh_*.json": Segments(("content",)),
    }
    corpora = []
    for place in map(Path, settings.input or [folder]):
        there = [(place / p, text) for p, text in parts.items() if (place / p.split("/")[0]).is_dir()]
        if not there:
            raise InputError(
                f"{display_path(place)} has no wiki_zh_2019, webtext2019zh or new2016zh: get them from "
                "https://github.com/brightmart/nlp_chinese_corpus, or name their folder with --input"
            )
        corpora += [from_files([files], text, "json", **settings.reading) for files, text in there]
    return {"": chained(corpora)}, split_random(evaluation=fraction(0.001), val=fraction(0.0005)), {}


def common_crawl(settings: PrepareConfig, folder: Path) -> Plan:
    """Many languages: LANGUAGE_train.bin, LANGUAGE_val.bin, ..., or shards LANGUAGE/LANGUAGE_0.bin, ..."""
    if settings.languages and settings.input:
        raise InputError("--languages fetches from the hub and --input reads files: give one of them")
    if settings.languages:
        # The revision is what the hub made of it, with no code to run.
        options: dict[str, Any] = {"revision": "refs/convert/parquet", "strict": settings.strict}
        corpora = {n: from_hub("statmt/cc100", Segments(), n, **options) for n in settings.languages}
    else:  # LANGUAGE.txt or LANGUAGE.txt.xz, one document a line
        try:
            files = find_files(settings.input or [folder], [".txt"])
        except InputError as error:
            raise InputError(
                f"{error}; https://data.statmt.org/cc-100 has LANGUAGE.txt.xz of 100 languages"
            ) from None
        names = [path.name.split(".")[0] for path in files]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"there are two files of the language {twice[0]!r}: give one")
        how = settings.reading | {"newlines": "keep"}  # a document may hold "\\r"
        corpora = {n: from_files([p], kind="lines", **how) for n, p in zip(names, files, strict=True)}
    split = split_random(evaluation=fraction(0.001, 10_000, 0.1), val=fraction(0.0005, 5_000, 0.05))
    if settings.shards:
        split = deal_shards(settings.shards)
    prefix = "{0}/{0}_" if settings.shards else "{0}_"
    by_prefix = {prefix.format(name): corpus for name, corpus in corpora.items()}
    return by_prefix, split, {"dtype": "uint32", "languages": list(corpora)}


def textfiles(settings: PrepareConfig, folder: Path) -> Plan:
    """Texts of your own."""
    if not re.fullmatch(r"\w[\w.-]*", settings.name):
        raise InputError(f"name={settings.name!r} is not a plain folder name: use letters, digits, _ - .")
    out = Path(settings.out or folder)
    if (out / "prepare.py").exists() or (settings.name in RECIPES and not settings.out):
        raise InputError(f"{display_path(out)} is the folder of a known data set: choose another --name")
    corpus = from_files(settings.input, Segments((settings.field,)), **settings.reading)
    if settings.separator:
        corpus = separated(corpus, settings.separator)
    return {"": corpus}, (split_tail if settings.split == "tail" else split_spread)(settings.val), {}


# name: (what makes it, the tokenizer unless the settings name another)
RECIPES: dict[str, tuple[Callable[[PrepareConfig, Path], Plan], str]] = {
    "textfiles": (textfiles, "bpe:8192"),
    "shakespeare_char": (shakespeare, "char"),
    "shakespeare": (shakespeare, "gpt2"),
    "pydocs_char": (pydocs_char, "char"),
    "words": (words, "bpe:20480"),
    "planted": (planted, language.TOKENIZER),
    "openwebtext": (openwebtext, "gpt2"),
    "tigerbot": (tigerbot, "chinese-character-bert"),
    "clue_small": (clue_small, "chinese-character-bert"),
    "common_crawl": (common_crawl, "xlm-250k"),
}
ONLY_FOR = dict.fromkeys(("name", "separator", "val", "split", "field"), "textfiles")
ONLY_FOR |= dict.fromkeys(("languages", "shards"), "common_crawl")

# --- The program -------------------------------------------------------------------------------


def prepare(recipe: str, settings: PrepareConfig, data: Path) -> None:
    """Make a data set in its folder below `data`, or in --out, and print what it holds."""
    from nanobackpack.text.prepare import summary, write_tokens

    # A setting of another recipe would do nothing here: say so.
    for name, other in ONLY_FOR.items():
        if recipe != other and getattr(settings, name) != getattr(PrepareConfig, name):
            raise InputError(f"--{name} is for {other}, not for {recipe}: leave it out")

    # Files may be given with or without --input.
    settings = dataclasses.replace(settings, paths=(), input=(*settings.paths, *settings.input))
    folder = data / (settings.name if recipe == "textfiles" else recipe)
    out = Path(settings.out or folder)
    plan, usual_tokenizer = RECIPES[recipe]
    tokenizer = settings.tokenizer or usual_tokenizer
    with ending_signals():
        corpora, split, options = plan(settings, folder)
        options |= {"threads": settings.num_proc, "normalize": settings.normalize}
        meta = write_tokens(out, corpora, tokenizer, split, **options)
    print(summary(meta, out))
    if recipe == "textfiles":
        dataset = display_path(out) if settings.out else settings.name
        flags = f"--dataset={dataset} --out_dir=out-{settings.name}"
        print(f"now train with\n  nanobackpack train shakespeare_char {flags}")


def main(settings: PrepareConfig) -> None:
    first = settings.paths[0] if settings.paths else ""
    if first in RECIPES:
        return prepare(first, dataclasses.replace(settings, paths=settings.paths[1:]), Path("data"))
    near = difflib.get_close_matches(first, RECIPES, n=1, cutoff=0.8)
    if near and not Path(first).exists():
        raise InputError(f"{first} is neither a file nor a known data set: did you mean {near[0]}?")
    prepare("textfiles", settings, Path("data"))
