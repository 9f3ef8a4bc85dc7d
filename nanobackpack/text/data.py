"""Token files on disk: opened once, checked, and cut into windows for training and evaluation.

A data set is a folder with train.bin and val.bin (raw little-endian ids), where held out for the end
evaluation.bin, meta.json and tokenizer.json. nanoBackpackLM's folders, with meta.pkl or with the .bin
files alone, are read too. Several languages at once: mixture.py.
Shapes: B batch, T time (positions).


Several languages in one data set: a language per batch, the rare ones more often than their share.

Language i is drawn with probability q_i ∝ p_i^alpha, where p_i is its share of the training tokens
(XLM, Lample and Conneau 2019, section 3.1): alpha 1 leaves the shares, 0 makes all equal. Two layouts:
    de_train.bin, de_val.bin, de_evaluation.bin   in one folder, the last one optional
    de/de_0.bin, ..., de/de_99.bin                "huge packs": the last file is held out, its first 40 %
                                                  for validation, its last 60 % for evaluation
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError, short_repr
from nanobackpack.safe.files import (
    MEGABYTE,
    display_path,
    plain_name,
    read_bytes,
    read_json,
    replacing,
    sha256,
)
from nanobackpack.safe.untrusted import check_pickle
from nanobackpack.text.tokenizer import Tokenizer, resolve

SPLITS = ("train", "val")
HELD_OUT = "evaluation"  # the split no run looks at; not every data set has one
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_SCAN_TOKENS = 1 << 22  # ids looked at in one go when a file is checked
_MAX_SUMMED = 1 << 35  # bytes whose checksums are looked at: a minute or two, where a run takes days


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What meta.json says about a data set."""

    vocab_size: int
    dtype: str  # of the ids in the .bin files: uint16 or uint32
    tokens: dict[str, int]  # of each split
    chars: dict[str, int]  # of each split, in Unicode characters
    tokenizer: str  # file name, in the same folder
    source: str  # where the text came from, for people
    sha256: dict[str, str]  # of each .bin file and of the tokenizer, in hex
    languages: list[str] = dataclasses.field(default_factory=list)
    """Of a data set in several: its splits are LANGUAGE_train, LANGUAGE_val, ... or shards LANGUAGE_0, ..."""

    @classmethod
    def load(cls, path: Path) -> Meta:
        """Reads a meta.json. Raises InputError if it is missing, malformed or of another kind."""
        try:
            values = read_json(path)
            seal = values.pop("checksum", None) if isinstance(values, dict) else None
            problem = _problem(values)
            if not problem and seal not in (None, _seal(values)):
                problem = 'is damaged (if you changed it yourself, take its "checksum" out)'
            if not problem:
                return cls(**values)
            problem = f"{display_path(path)} {problem}"
        except OSError as error:
            problem = f"{display_path(path)} cannot be read ({error.strerror})"
        except InputError as error:
            problem = str(error)
        raise InputError(f"{problem}: {prepare_command(path.parent)}")

    def to_json(self) -> bytes:
        """The content of a meta.json."""
        values = dataclasses.asdict(self)
        return (json.dumps(values | {"checksum": _seal(values)}, indent=2) + "\n").encode()

    def save(self, path: Path) -> None:
        """Writes a meta.json, atomically."""
        with replacing(path) as file:
            file.write(self.to_json())


def prepare_command(folder: Path) -> str:
    """What to run to make the data set in `folder`."""
    if (folder / "prepare.py").is_file():
        return f"make it with `python {display_path(folder)}/prepare.py`"
    name = folder.resolve().name
    return f"make it with `python data/textfiles/prepare.py FILE --name={name}`"


def _seal(values: dict[str, Any]) -> str:
    """The checksum of a meta.json's other entries, whatever their order and layout."""
    return hashlib.sha256(json.dumps({"languages": [], **values}, sort_keys=True).encode()).hexdigest()


def _problem(values: Any) -> str:
    """What is wrong with the content of a meta.json, "" if nothing is."""
    if not isinstance(values, dict):
        return "is not a JSON object"
    names = {field.name for field in dataclasses.fields(Meta)}
    if unknown := sorted(values.keys() - names):
        return f"has an unknown entry {short_repr(unknown[0])}"
    if missing := sorted(names - values.keys() - {"languages"}):
        return f"has no entry {missing[0]!r}"
    languages = values.get("languages", [])
    needed = () if languages else SPLITS

    def counts(value: Any) -> bool:
        if not isinstance(value, dict) or not all(split in value for split in needed):
            return False
        return all(type(count) is int and count >= 0 for count in value.values())

    hashes, size = values["sha256"], values["vocab_size"]
    valid = {
        "vocab_size": type(size) is int and size > 0,
        "dtype": isinstance(values["dtype"], str) and values["dtype"] in DTYPES,
        "tokens": counts(values["tokens"]),
        "chars": counts(values["chars"]),
        "tokenizer": plain_name(values["tokenizer"]) and values["tokenizer"] != "",
        "source": isinstance(values["source"], str),
        "sha256": isinstance(hashes, dict) and all(isinstance(h, str) for h in hashes.values()),
        "languages": isinstance(languages, list) and all(isinstance(name, str) for name in languages),
    }
    return next((f"has a wrong {name!r}" for name, ok in valid.items() if not ok), "")


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a data set, None if the folder is not there or does not have one.

    Raises InputError if its meta.json, meta.pkl or tokenizer.json cannot be used.
    """
    if (folder / "meta.json").exists():
        described = Meta.load(folder / "meta.json")
        path = folder / described.tokenizer
        known = described.sha256.get(path.name) if path.is_file() else None
        if known and sha256(path) != known:
            raise InputError(
                f"{display_path(path)} is damaged: its sha256 is not the one in meta.json: "
                f"{prepare_command(folder)}"
            )
        try:
            return Tokenizer.load(path)
        except InputError as error:
            raise InputError(f"{error}: {prepare_command(folder)}") from None
    if not (folder / "meta.pkl").exists():
        return None
    from nanobackpack.text.data import read_legacy_meta

    meta = read_legacy_meta(folder / "meta.pkl")
    tokenizer = Tokenizer.from_symbols([meta["itos"][i] for i in range(len(meta["itos"]))])
    if meta.get("vocab_size") != tokenizer.vocab_size:
        raise InputError(
            f"{display_path(folder / 'meta.pkl')} says vocab_size {short_repr(meta.get('vocab_size'))}, "
            f"but names {tokenizer.vocab_size} characters"
        )
    return tokenizer


class Splits:
    """A folder of token files: `splits` maps the name of each to its memory-mapped ids (N,).

    `meta`, `tokenizer` and `vocab_size` are None where the folder does not tell.
    """

    usual_dtype = "uint16"  # of the ids, where neither meta.json nor the caller says
    scanned_tokens: int | None = None  # looked at in each file by check_ids; None: all

    def __init__(self, folder: Path | str, dtype: str | None = None) -> None:
        """Raises InputError if meta.json, tokenizer and the given `dtype` contradict each other."""
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        if not self.folder.exists():
            raise InputError(f"{display_path(self.folder)} does not exist: {prepare_command(self.folder)}")
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        meta_path = self.folder / "meta.json"
        self.meta = Meta.load(meta_path) if meta_path.exists() else None
        if self.meta and dtype not in (None, self.meta.dtype):
            raise InputError(
                f"dtype={dtype!r} contradicts {display_path(meta_path)}, which says {self.meta.dtype!r}: "
                "leave it out"
            )
        self.dtype = self.meta.dtype if self.meta else dtype or self.usual_dtype
        self.tokenizer = read_tokenizer(self.folder)
        if self.meta and self.meta.vocab_size != self.vocab_size:
            raise InputError(
                f"{display_path(meta_path)} says vocab_size {self.meta.vocab_size}, but "
                f"{self.meta.tokenizer} has {self.vocab_size}: {prepare_command(self.folder)}"
            )
        self.splits: dict[str, Any] = {}
        self.paths: dict[str, Path] = {}  # where each split comes from, for messages
        self._files: list[Path] = []  # all that were opened
        self.n_ids = self.vocab_size or 0  # ids are below it, as far as is known (0: it is not)
        self._orders: dict[str, tuple[object, np.ndarray]] = {}  # the last one of each split

    @property
    def vocab_size(self) -> int | None:
        """Number of ids of the tokenizer."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    def open(self, path: Path, split: str = "") -> np.ndarray:
        """The ids (N,) in a file, mapped into memory.

        Raises InputError if it is missing, or not as long as it must be for ids, or for `split` in meta.json.
        """
        dtype, again = DTYPES[self.dtype], prepare_command(self.folder)
        if not path.is_file():  # opening a pipe would wait forever, and a device has no end
            what = "is not a file" if path.exists() else "does not exist"
            raise InputError(f"{display_path(path)} {what}: {again}")
        n_bytes = path.stat().st_size
        if not n_bytes or n_bytes % dtype.itemsize:
            raise InputError(
                f"{display_path(path)} has {n_bytes:,} bytes, which is no sequence of "
                f"{self.dtype} ids: {again}"
            )
        self._files.append(path)
        # np.asarray drops the memmap subclass, whose indexing is slow, and keeps the mapping.
        tokens = np.asarray(np.memmap(path, dtype, mode="r"))
        expected = self.meta.tokens.get(split, len(tokens)) if self.meta else len(tokens)
        if len(tokens) != expected:
            raise InputError(
                f"{display_path(path)} has {len(tokens):,} tokens, but meta.json says {expected:,}: {again}"
            )
        return tokens

    def add(self, split: str, path: Path) -> None:
        """Take in the file of a split. Raises InputError as `open`."""
        self.splits[split], self.paths[split] = self.open(path, split), path

    def parts(self, split: str) -> dict[str, float]:
        """What a split consists of, and how much each part counts in training: here itself alone."""
        return {split: 1.0}

    def n_tokens(self, split: str) -> int:
        """Tokens in all parts of a split."""
        return sum(len(self.splits[part]) for part in self.parts(split))

    def chars_per_token(self, split: str) -> float | None:
        """Characters of text for each token, None if not known."""
        parts = self.parts(split)
        if not self.meta or not self.meta.chars.keys() >= parts.keys():
            return None
        return sum(self.meta.chars[part] for part in parts) / self.n_tokens(split)

    def check_ids(self, vocab_size: int) -> None:
        """Raises InputError if a file holds an id that is not below vocab_size; what is not looked at
        now will be when it is read."""
        self.n_ids = vocab_size
        for split, tokens in self.splits.items():
            for start in range(0, min(len(tokens), self.scanned_tokens or len(tokens)), _SCAN_TOKENS):
                self._checked(split, tokens[start : start + _SCAN_TOKENS])

    def _checked(self, split: str, ids: np.ndarray) -> np.ndarray:
        """Ids of a split, as they are. Raises InputError if one is not in the vocabulary."""
        n = self.n_ids
        if n and (highest := int(ids.max())) >= n:
            raise InputError(
                f"{display_path(self.paths[split])} holds the id {highest}, but the vocabulary "
                f"has only {n} (ids 0 to {n - 1}): {prepare_command(self.folder)}"
            )
        return ids

    def check_sums(self) -> list[Path]:
        """Compare the opened files with their sha256 in meta.json; returns those left out as too large.

        Raises InputError naming the first that differs.
        """
        known = self.meta.sha256 if self.meta else {}
        files = [path for path in self._files if path.name in known]
        sizes = np.array([p.stat().st_size for p in files], np.int64)
        n = int(np.searchsorted(sizes.cumsum(), _MAX_SUMMED, side="right"))
        total = int(sizes[:n].sum())
        with tqdm(desc="checking data", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for path in files[:n]:
                if sha256(path, bar.update) != known[path.name]:
                    raise InputError(
                        f"{display_path(path)} is damaged: its sha256 is not the one in meta.json: "
                        f"{prepare_command(self.folder)}"
                    )
        return files[n:]

    def fingerprint(self) -> dict[str, str]:
        """What tells the training and validation text from others: a sha256 or, unknown, a length by file."""
        known = self.meta.sha256 if self.meta else {}
        sums = {n: f"sha256 {h[:12]}" for n, h in sorted(known.items()) if HELD_OUT not in n}
        lengths = {s: f"{self.n_tokens(s):,} tokens" for s in SPLITS}
        return sums or lengths

    def check_length(self, split: str, block_size: int) -> None:
        """Raises InputError unless each part of the split holds a window: block_size + 1 tokens."""
        for part in self.parts(split):
            if (n := len(self.splits[part])) < block_size + 1:
                raise InputError(
                    f"{display_path(self.paths[part])} has {n:,} tokens, too few for "
                    f"block_size={block_size}, which needs {block_size + 1}: "
                    "use a smaller --block_size or more text"
                )

    def batch(
        self, split: str, batch_size: int, block_size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows x and the tokens y that follow each position: (B, T) int64, on the CPU."""
        self.check_length(split, block_size)
        starts = torch.randint(len(self.splits[split]) - block_size, (batch_size,), generator=generator)
        return self._at(split, starts.numpy(), block_size)

    def shuffled(
        self, split: str, number: int, batch_size: int, block_size: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `batch`, but windows number, number + 1, ... of an endless order that `seed` decides.

        The split is cut into windows at a random offset and these are shuffled, then it is cut and
        shuffled anew: no token comes again before all have been seen. With little data that is worth
        more than any other choice of windows (docs/LOG.md), and what a step sees depends on its number.
        """
        self.check_length(split, block_size)
        starts = np.empty(batch_size, np.int64)
        for i in range(batch_size):
            order = self._order(split, seed, number + i, block_size)
            starts[i] = order[(number + i) % len(order)]
        return self._at(split, starts, block_size)

    def _order(self, split: str, seed: int, number: int, block_size: int) -> np.ndarray:
        """The shuffled starts of all windows, of the pass through the split that window `number` is in."""
        spare = len(self.splits[split]) - 1  # tokens that can be predicted
        n_windows = max(1, spare // block_size - 1)  # one less than fit leaves room for the offset
        key = (seed, number // n_windows, block_size)
        last, order = self._orders.get(split, (None, np.empty(0, np.int64)))
        if last != key:
            draw = np.random.default_rng([seed, key[1]])
            offset = draw.integers(spare - n_windows * block_size + 1)
            order = draw.permutation(n_windows) * block_size + offset
            self._orders[split] = key, order
        return order

    def _at(self, split: str, starts: np.ndarray, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = starts[:, None] + np.arange(block_size + 1)  # (B, T+1)
        ids = self._checked(split, self.splits[split][rows])
        window = torch.from_numpy(ids.astype(np.int64))  # (B, T+1)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()  # (B, T) each

    def windows(
        self, split: str, batch_size: int, block_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All of a split in order, so that each token but the first is predicted exactly once.

        Yields x and y, (b, T) int64 with b <= batch_size, then what is left as one (1, t), t < T.
        """
        n_windows, left = divmod(len(self.splits[split]) - 1, block_size)
        for first in range(0, n_windows, batch_size):
            b = min(batch_size, n_windows - first)
            yield self._cut(split, first * block_size, b, block_size)
        if left:
            yield self._cut(split, n_windows * block_size, 1, left)

    def _cut(self, split: str, start: int, b: int, t: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._checked(split, self.splits[split][start : start + b * t + 1])
        piece = torch.from_numpy(ids.astype(np.int64))  # (b*t + 1,)
        return piece[:-1].view(b, t), piece[1:].view(b, t)


class TokenData(Splits):
    """The usual data set: train.bin and val.bin, and evaluation.bin if there is one.

    Raises InputError if a file is missing, malformed, or contradicts the others or the given `dtype`.
    """

    def __init__(self, folder: Path | str, dtype: str | None = None) -> None:
        super().__init__(folder, dtype)
        held_out = [HELD_OUT] if (self.folder / f"{HELD_OUT}.bin").exists() else []
        for split in (*SPLITS, *held_out):
            self.add(split, self.folder / f"{split}.bin")
        if self.vocab_size:
            self.check_ids(self.vocab_size)


_BLOCK = 4096  # languages drawn in one go


class Shards:
    """Arrays of ids in a row, read as if they were one (N,)."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([len(a) for a in arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        if isinstance(where, slice):
            where = np.arange(*where.indices(len(self)))
        of = np.searchsorted(self.ends, where, side="right")
        ids = np.empty(where.shape, self.arrays[0].dtype)
        for shard in np.unique(of):
            here, array = of == shard, self.arrays[shard]
            ids[here] = array[where[here] - (self.ends[shard] - len(array))]
        return ids


class Mixture(Splits):
    """An opened data set of several languages. Its splits are de_train, de_val, fr_train, ...;
    "train", "val" and "evaluation" stand for those of all languages.

    Raises InputError if there are no languages, or a file is missing or malformed.
    """

    usual_dtype = "uint32"
    scanned_tokens = 1 << 26  # the packs can have hundreds of gigabytes: a look at each file's beginning

    def __init__(self, folder: Path | str, dtype: str | None = None, alpha: float = 1.0) -> None:
        super().__init__(folder, dtype)
        self.languages = languages_in(self.folder)
        if not self.languages:
            raise InputError(
                f"{display_path(self.folder)} has neither LANGUAGE_train.bin nor LANGUAGE/LANGUAGE_0.bin: "
                "make them with `python data/common_crawl/prepare.py`"
            )
        for language in self.languages:
            packs = self.folder / language
            if packs.is_dir():
                self._open_packs(language, packs)
            else:
                self._open_files(language)
        sizes = np.array([len(self.splits[f"{language}_train"]) for language in self.languages], np.float64)
        weights = (sizes / sizes.sum()) ** alpha
        self.q = weights / weights.sum()
        """How often each language is drawn; sums to 1."""
        self._earlier: dict[int, list[np.ndarray]] = {}
        if self.vocab_size:
            self.check_ids(self.vocab_size)

    def _open_files(self, language: str) -> None:
        for split in (*SPLITS, HELD_OUT):
            name = f"{language}_{split}"
            path = self.folder / f"{name}.bin"
            if split in SPLITS or path.exists():
                self.add(name, path)

    def _open_packs(self, language: str, packs: Path) -> None:
        n = len(list(packs.glob(f"{language}_*.bin")))
        if n < 2:
            raise InputError(
                f"{display_path(packs)} has only {n} .bin file: at least 2 are needed, one to hold out"
            )
        *train, last = [self.open(packs / f"{language}_{i}.bin", f"{language}_{i}") for i in range(n)]
        cut = len(last) * 2 // 5
        streams: list[Any] = [Shards(train), last[:cut], last[cut:]]
        for split, tokens in zip((*SPLITS, HELD_OUT), streams, strict=True):
            name = f"{language}_{split}"
            self.splits[name] = tokens
            self.paths[name] = packs if split == "train" else packs / f"{language}_{n - 1}.bin"

    def parts(self, split: str) -> dict[str, float]:
        """The split of each language that has it, and how often it is drawn."""
        if split in self.splits:
            return {split: 1.0}
        shares = zip(self.languages, self.q.tolist(), strict=True)
        return {name: q for language, q in shares if (name := f"{language}_{split}") in self.splits}

    def batch(
        self, split: str, batch_size: int, block_size: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Random windows of one language, drawn with q: x and y, (B, T) int64 each."""
        if split not in self.splits:
            parts = self.parts(split)
            drawn = torch.multinomial(torch.tensor(list(parts.values())), 1, generator=generator)
            split = list(parts)[int(drawn)]
        return super().batch(split, batch_size, block_size, generator)

    def shuffled(
        self, split: str, number: int, batch_size: int, block_size: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows number, ..., number + B - 1 of the training's endless order: all of one language.

        Within each language no token comes again before all have been seen. `number` is a multiple of
        batch_size; what it stands for depends on the seed alone, so that a run can go on anywhere.
        """
        if split not in self.splits:
            assert number % batch_size == 0, "batches do not overlap"
            language, earlier = self._draw(number // batch_size, seed)
            split, number = f"{self.languages[language]}_{split}", earlier * batch_size
        return super().shuffled(split, number, batch_size, block_size, seed)

    def _draw(self, batch: int, seed: int) -> tuple[int, int]:
        """The language of that batch, and how many batches before it had the same."""
        block, at = divmod(batch, _BLOCK)
        earlier = self._earlier.setdefault(seed, [np.zeros(len(self.q), np.int64)])
        while len(earlier) <= block:  # a tenth of a millisecond for each block of 4096 batches
            counts = np.bincount(self._block(len(earlier) - 1, seed), minlength=len(self.q))
            earlier.append(earlier[-1] + counts)
        drawn = self._block(block, seed)
        language = int(drawn[at])
        return language, int(earlier[block][language] + (drawn[:at] == language).sum())

    def _block(self, block: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng([seed, block, 1])  # 1: not the key of any order of windows
        return draw.choice(len(self.q), _BLOCK, p=self.q)

    def windows(
        self, split: str, batch_size: int, block_size: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All of one language in order, then the next; no window has two of them."""
        for part in self.parts(split):
            yield from super().windows(part, batch_size, block_size)


def languages_in(folder: Path) -> list[str]:
    """The languages a folder has token files for, in alphabetical order."""
    files = [m[1] for p in folder.glob("*_train.bin") if (m := re.fullmatch(r"(.+)_train\.bin", p.name))]
    packs = [p.parent.name for p in folder.glob("*/*_0.bin") if p.name == f"{p.parent.name}_0.bin"]
    return sorted({*files, *packs})


def open_folder(folder: Path, dtype: str, alpha: float = 1.0) -> TokenData | Mixture:
    """The data set in a folder, of one language or several; dtype "auto" is what the folder says.

    Raises InputError if it cannot be used, or could be either.
    """
    known = None if dtype == "auto" else dtype
    languages = languages_in(folder)
    if not languages:
        return TokenData(folder, known)
    if (folder / "train.bin").exists():
        raise InputError(
            f"{display_path(folder)} holds train.bin and languages such as {languages[0]}: "
            f"move one of the two"
        )
    return Mixture(folder, known, alpha)


def find_folder(dataset: str) -> Path:
    """The folder a --dataset names: a path, or a name under data/."""
    folder = Path(dataset)
    return folder if folder.is_dir() else Path("data") / dataset


def open_data(config: TrainConfig) -> TokenData | Mixture:
    """The data of a run: huge_pack_dir if there is one, else dataset; tokenizer_name must agree with its
    tokenizer, or takes its place where it has none. Raises InputError."""
    if config.huge_pack_dir:
        dtype = None if config.data_bin_dtype == "auto" else config.data_bin_dtype
        data: TokenData | Mixture = Mixture(config.huge_pack_dir, dtype, config.xlm_alpha)
    else:
        data = open_folder(find_folder(config.dataset), config.data_bin_dtype, config.xlm_alpha)
    tokenizer = resolve(config.tokenizer_name, data.tokenizer, display_path(data.folder))
    if tokenizer and not data.tokenizer:
        data.tokenizer = tokenizer
        data.check_ids(tokenizer.vocab_size)
    return data


def read_legacy_meta(path: Path) -> dict[str, Any]:
    """nanoBackpackLM's meta.pkl: {"vocab_size": int, "itos": {id: character}, ...}.

    Raises: InputError if the file is damaged or holds anything but plain values.
    """
    try:
        data = read_bytes(path, 4 * MEGABYTE)
        check_pickle(io.BytesIO(data))  # dicts, lists, texts and numbers: no class or function is looked up
        meta = pickle.loads(data)
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise InputError(f"{path} cannot be read safely: {str(e)[:200]}") from e
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos or itos.keys() != set(range(len(itos))):
        raise InputError(f"{path}: not a table of characters (itos)")
    if not all(isinstance(c, str) and len(c) == 1 for c in itos.values()):
        raise InputError(f"{path}: itos must map each id to one character")
    return meta
