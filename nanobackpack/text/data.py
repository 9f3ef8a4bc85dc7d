"""Token files on disk, cut into windows for training and evaluation; one language or several.

    data = open_dataset("mine")            # the folder data/mine, or a path; open_data(config) for a run
    x, y = data.shuffled("train", 0, batch_size=12, block_size=1024, seed=1)      # (B, T) each
    for x, y in data.windows("val", batch_size=12, block_size=1024): ...          # all of it, in order

y is the text of x one token later: what the model has to predict at each position. A data set is a folder
with train.bin and val.bin (raw little-endian ids), evaluation.bin if a part is held out for the end, and what
meta.py reads. The .bin files are mapped into memory, so that they may be far larger than it.

Several languages: each batch is in one language, and rare ones come more often than their share. Language i
is drawn with probability q_i ∝ p_i^alpha, where p_i is its share of the training tokens (XLM, Lample and
Conneau 2019, section 3.1): alpha 1 leaves the shares, 0 makes all equal. Two layouts:
    de_train.bin, de_val.bin, de_evaluation.bin   in one folder, the last one optional
    de/de_0.bin, ..., de/de_99.bin                "huge packs": the last file is held out, its first 40 %
                                                  for validation, its last 60 % for evaluation
Shapes: B batch, T time (positions), N tokens of a split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.safe.files import display_path, finish_replacing, verify
from nanobackpack.text.meta import (
    DTYPES,
    HELD_OUT,
    SPLITS,
    Meta,
    prepare_command,
    read_counts,
    read_tokenizer,
)
from nanobackpack.text.tokenizer_files import tokenizer_to_use

_SCAN_TOKENS = 1 << 22  # ids looked at in one go when a file is checked
_MAX_SUMMED = 1 << 35  # bytes whose checksums are looked at: a minute or two, where a run takes days
_BLOCK = 4096  # batches whose languages are drawn in one go

# --- Opening -----------------------------------------------------------------------------------


def open_dataset(dataset: str | Path, dtype: str = "auto", alpha: float = 1.0) -> TokenData:
    """Open the data set that `dataset` names: a folder, or a name under data/.

    dtype of the ids: "auto" is what the folder says. alpha is for several languages, see above.
    """
    folder = Path(dataset) if Path(dataset).is_dir() else Path("data") / dataset
    languages = languages_in(folder)
    if not languages:
        return TokenData(folder, dtype)
    if (folder / "train.bin").exists():
        raise InputError(
            f"{display_path(folder)} holds train.bin and languages such as {languages[0]}: "
            f"move one of the two"
        )
    return Mixture(folder, dtype, alpha)


def open_data(config: TrainConfig) -> TokenData:
    """Open the data of a run: huge_pack_dir if that is given, else dataset."""
    if config.huge_pack_dir:
        data: TokenData = Mixture(config.huge_pack_dir, config.data_bin_dtype, config.xlm_alpha)
    else:
        data = open_dataset(config.dataset, config.data_bin_dtype, config.xlm_alpha)
    # tokenizer_name must agree with the tokenizer of the data, or takes its place where there is none.
    tokenizer = tokenizer_to_use(config.tokenizer_name, data.tokenizer, display_path(data.folder))
    if tokenizer and not data.tokenizer:
        data.tokenizer = tokenizer
        data.check_ids(tokenizer.vocab_size)
    return data


def languages_in(folder: Path) -> list[str]:
    """List the languages that a folder has token files for, in alphabetical order."""
    finish_replacing(folder)
    files = [m[1] for p in folder.glob("*_train.bin") if (m := re.fullmatch(r"(.+)_train\.bin", p.name))]
    packs = [p.parent.name for p in folder.glob("*/*_0.bin") if p.name == f"{p.parent.name}_0.bin"]
    return sorted({*files, *packs})


# --- One language ------------------------------------------------------------------------------


class TokenData:
    """An opened folder of token files: `splits` maps the name of each to its ids (N,), mapped into memory.

    `meta`, `tokenizer` and `vocab_size` are None where the folder does not tell. `files` are what to open,
    {split: path}; by default train.bin and val.bin, and evaluation.bin if there is one.
    """

    usual_dtype = "uint16"  # of the ids, where neither meta.json nor the caller says
    scanned_tokens: int | None = None  # looked at in each file when it is opened; None: all

    def __init__(
        self, folder: Path | str, dtype: str = "auto", files: Mapping[str, Path] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.splits: dict[str, Any] = {}
        self.paths: dict[str, Path] = {}  # where each split comes from, for messages
        self._files: list[Path] = []  # all that were opened
        self._orders: dict[str, tuple[object, np.ndarray]] = {}  # the last one of each split, see _order

        # Read what the folder says of itself; it, the tokenizer and the caller must agree.
        self.tokenizer = read_tokenizer(self.folder)
        meta_path = self.folder / "meta.json"
        self.meta = Meta.load(meta_path) if meta_path.exists() else None
        self._check_folder(dtype)
        self.dtype = self.meta.dtype if self.meta else self.usual_dtype if dtype == "auto" else dtype

        # Open the token files, and look for ids that the tokenizer does not have.
        self.n_ids = 0  # ids are below it, as far as is known (0: it is not)
        self._open_splits(files)
        if self.vocab_size:
            self.check_ids(self.vocab_size)

    @property
    def vocab_size(self) -> int | None:
        """Number of ids of the tokenizer."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    def _open_splits(self, files: Mapping[str, Path] | None) -> None:
        for split, path in (files or self._split_files("")).items():
            self.splits[split], self.paths[split] = self._open(path, split), path

    def _split_files(self, prefix: str) -> dict[str, Path]:
        """Return where the splits are whose names begin with a prefix; the one held out if there is one."""
        held_out = [HELD_OUT] if self._has(self.folder / f"{prefix}{HELD_OUT}.bin") else []
        names = [f"{prefix}{split}" for split in (*SPLITS, *held_out)]
        return {name: self.folder / f"{name}.bin" for name in names}

    def _has(self, path: Path) -> bool:
        """Tell whether a file is there and of this data set, not left by another that was here before."""
        return path.exists() and (self.meta is None or path.stem in self.meta.tokens)

    def _open(self, path: Path, split: str) -> np.ndarray:
        """Map a file into memory: ids (N,)."""
        self._check_file(path, split)
        self._files.append(path)
        # np.asarray drops the memmap subclass, whose indexing is slow, and keeps the mapping.
        return np.asarray(np.memmap(path, DTYPES[self.dtype], mode="r"))  # (N,)

    # What there is to know about a split. A split of several languages has parts, the others are their own.

    def parts(self, split: str) -> dict[str, float]:
        """Return what a split consists of, and how much each part counts in training."""
        return {split: 1.0}

    def n_tokens(self, split: str) -> int:
        """Count the tokens in all parts of a split."""
        return sum(len(self.splits[part]) for part in self.parts(split))

    def chars_per_token(self, split: str) -> float | None:
        """Return how many characters of text there are for each token, None if that is not known."""
        parts = self.parts(split)
        if not self.meta or not self.meta.chars.keys() >= parts.keys():
            return None
        return sum(self.meta.chars[part] for part in parts) / self.n_tokens(split)

    def token_counts(self) -> Tensor | None:
        """Return how often each id occurs in the text to train on, (V,), None where nobody has counted."""
        counts = read_counts(self.folder, self.meta) if self.meta else None
        return None if counts is None else torch.from_numpy(counts)

    def fingerprint(self) -> dict[str, str]:
        """Return a fingerprint of the training and validation text.

        It is the sha256 sums of the files, or the lengths of the splits where these are not known.
        """
        known = self.meta.sha256 if self.meta else {}
        sums = {name: f"sha256 {h[:12]}" for name, h in sorted(known.items()) if HELD_OUT not in name}
        return sums or {split: f"{self.n_tokens(split):,} tokens" for split in SPLITS}

    # Batches. x and y are (B, T) int64 on the CPU.

    def batch(
        self, split: str, batch_size: int, block_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return windows at random positions."""
        self.check_length(split, block_size)
        starts = torch.randint(len(self.splits[split]) - block_size, (batch_size,), generator=generator)
        return self._windows_at(split, starts.numpy(), block_size)

    def shuffled(
        self, split: str, first_window: int, batch_size: int, block_size: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return batch_size windows from an endless shuffled sequence, starting with number first_window.

        The split is cut into windows at a random offset and these are shuffled, then it is cut and shuffled
        anew: no token comes again before all have been seen. With little data that is worth more than any
        other choice of windows (docs/LOG.md). The sequence depends on `seed` alone, so a run can be resumed
        anywhere.
        """
        self.check_length(split, block_size)
        starts = np.empty(batch_size, np.int64)  # (B,)
        for i in range(batch_size):  # one by one: a pass through the split may end within a batch
            order = self._order(split, seed, first_window + i, block_size)
            starts[i] = order[(first_window + i) % len(order)]
        return self._windows_at(split, starts, block_size)

    def _order(self, split: str, seed: int, window: int, block_size: int) -> np.ndarray:
        """Shuffle the starts of all windows of one pass through the split: the pass that has this window."""
        spare = len(self.splits[split]) - 1  # tokens that can be predicted
        n_windows = max(1, spare // block_size - 1)  # one less than fit leaves room for the offset
        passes = window // n_windows  # that came before
        key = (seed, passes, block_size)
        last, order = self._orders.get(split, (None, np.empty(0, np.int64)))
        if last != key:
            draw = np.random.default_rng([seed, passes])
            offset = draw.integers(spare - n_windows * block_size + 1)
            order = draw.permutation(n_windows) * block_size + offset  # (n_windows,)
            self._orders[split] = key, order  # kept, since the next batches are of the same pass
        return order

    def windows(self, split: str, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all of a split in order, so that each token but the first is predicted exactly once.

        These are x and y, (b, T) with b <= batch_size, then what is left as one (1, t), t < T.
        """
        n_windows, left = divmod(len(self.splits[split]) - 1, block_size)
        for first in range(0, n_windows, batch_size):
            b = min(batch_size, n_windows - first)
            yield self._rows_of(split, first * block_size, b, block_size)
        if left:
            yield self._rows_of(split, n_windows * block_size, 1, left)

    def _windows_at(self, split: str, starts: np.ndarray, block_size: int) -> tuple[Tensor, Tensor]:
        """Cut the windows that begin at these positions (B,)."""
        positions = starts[:, None] + np.arange(block_size + 1)  # (B, T+1)
        ids = self._checked(split, self.splits[split][positions])  # (B, T+1)
        window = torch.from_numpy(ids.astype(np.int64))  # (B, T+1)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()  # (B, T) each

    def _rows_of(self, split: str, start: int, b: int, t: int) -> tuple[Tensor, Tensor]:
        """Cut b windows of t tokens that follow one another."""
        ids = self._checked(split, self.splits[split][start : start + b * t + 1])  # (b*t + 1,)
        piece = torch.from_numpy(ids.astype(np.int64))  # (b*t + 1,)
        return piece[:-1].view(b, t), piece[1:].view(b, t)  # (b, t) each

    # Checks of what the folder says and what its files hold.

    def _check_folder(self, dtype: str) -> None:
        """Refuse a folder that is not there, and a meta.json that contradicts the caller or the tokenizer."""
        if not self.folder.exists():
            raise InputError(f"{display_path(self.folder)} does not exist: {prepare_command(self.folder)}")
        if dtype not in ("auto", *DTYPES):
            raise InputError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
        meta, path = self.meta, display_path(self.folder / "meta.json")
        if meta and dtype not in ("auto", meta.dtype):
            raise InputError(f"dtype={dtype!r} contradicts {path}, which says {meta.dtype!r}: leave it out")
        if meta and meta.vocab_size != self.vocab_size:
            raise InputError(
                f"{path} says vocab_size {meta.vocab_size}, but {meta.tokenizer} has {self.vocab_size}: "
                f"{prepare_command(self.folder)}"
            )

    def _check_file(self, path: Path, split: str) -> None:
        """Refuse a file that does not hold whole ids, as many as meta.json says, if it does."""
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
        n_tokens = n_bytes // dtype.itemsize
        expected = self.meta.tokens.get(split, n_tokens) if self.meta else n_tokens
        if n_tokens != expected:
            raise InputError(
                f"{display_path(path)} has {n_tokens:,} tokens, but meta.json says {expected:,}: {again}"
            )

    def check_length(self, split: str, block_size: int) -> None:
        """Refuse a split of which a part does not hold one window: block_size + 1 tokens."""
        for part in self.parts(split):
            if (n := len(self.splits[part])) < block_size + 1:
                raise InputError(
                    f"{display_path(self.paths[part])} has {n:,} tokens, too few for "
                    f"block_size={block_size}, which needs {block_size + 1}: "
                    "use a smaller --block_size or more text"
                )

    def check_ids(self, vocab_size: int) -> None:
        """Refuse ids that are not below vocab_size: now, or in parts not looked at now when they are read."""
        self.n_ids = vocab_size
        for split, tokens in self.splits.items():
            for start in range(0, min(len(tokens), self.scanned_tokens or len(tokens)), _SCAN_TOKENS):
                self._checked(split, tokens[start : start + _SCAN_TOKENS])

    def _checked(self, split: str, ids: np.ndarray) -> np.ndarray:
        """Return the same ids of a split, if all are in the vocabulary."""
        n = self.n_ids
        if n and (highest := int(ids.max())) >= n:
            raise InputError(
                f"{display_path(self.paths[split])} holds the id {highest}, but the vocabulary "
                f"has only {n} (ids 0 to {n - 1}): {prepare_command(self.folder)}"
            )
        return ids

    def verify_files(self) -> list[Path]:
        """Compare the files with their sha256 in meta.json; return those left out as too large."""
        known = self.meta.sha256 if self.meta else {}
        files = [path for path in self._files if path.name in known]
        sizes = np.array([p.stat().st_size for p in files], np.int64)
        n = int(np.searchsorted(sizes.cumsum(), _MAX_SUMMED, side="right"))  # as many as together stay below
        total = int(sizes[:n].sum())
        with tqdm(desc="checking data", total=total, unit="B", unit_scale=True, disable=None) as bar:
            for path in files[:n]:
                verify(path, known[path.name], prepare_command(self.folder), bar.update)
        return files[n:]


# --- Several languages -------------------------------------------------------------------------


class Mixture(TokenData):
    """An opened data set of several languages. Its splits are de_train, de_val, fr_train, ...;
    "train", "val" and "evaluation" stand for those of all languages."""

    usual_dtype = "uint32"
    scanned_tokens = 1 << 26  # of each file only the beginning: packs can have hundreds of gigabytes

    def __init__(self, folder: Path | str, dtype: str = "auto", alpha: float = 1.0) -> None:
        super().__init__(folder, dtype)
        sizes = np.array([len(self.splits[f"{language}_train"]) for language in self.languages], np.float64)
        weights = (sizes / sizes.sum()) ** alpha
        self.q = weights / weights.sum()
        """How often each language is drawn; sums to 1."""
        self._earlier: dict[int, list[np.ndarray]] = {}  # see _draw

    def _open_splits(self, files: Mapping[str, Path] | None) -> None:
        known = self.meta.languages if self.meta else []
        self.languages = [name for name in languages_in(self.folder) if name in known or not known]
        if not self.languages:
            raise InputError(
                f"{display_path(self.folder)} has neither LANGUAGE_train.bin nor LANGUAGE/LANGUAGE_0.bin: "
                "make them with `nanobackpack prepare common_crawl`"
            )
        for language in self.languages:
            packs = self.folder / language
            if packs.is_dir():
                self._open_packs(language, packs)
            else:
                super()._open_splits(self._split_files(f"{language}_"))

    def _open_packs(self, language: str, packs: Path) -> None:
        n = sum(map(self._has, packs.glob(f"{language}_*.bin")))
        if n < 2:
            raise InputError(
                f"{display_path(packs)} has only {n} .bin file: at least 2 are needed, one to hold out"
            )
        *train, last = [self._open(packs / f"{language}_{i}.bin", f"{language}_{i}") for i in range(n)]
        cut = len(last) * 2 // 5
        streams: list[Any] = [JoinedFiles(train), last[:cut], last[cut:]]
        for split, tokens in zip((*SPLITS, HELD_OUT), streams, strict=True):
            name = f"{language}_{split}"
            self.splits[name] = tokens
            self.paths[name] = packs if split == "train" else packs / f"{language}_{n - 1}.bin"

    def parts(self, split: str) -> dict[str, float]:
        """Return the split of each language that has it, and how often it is drawn."""
        if split in self.splits:
            return {split: 1.0}
        shares = zip(self.languages, self.q.tolist(), strict=True)
        return {name: q for language, q in shares if (name := f"{language}_{split}") in self.splits}

    def batch(
        self, split: str, batch_size: int, block_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return windows at random positions of one language, drawn with q."""
        if split not in self.splits:
            parts = self.parts(split)
            drawn = torch.multinomial(torch.tensor(list(parts.values())), 1, generator=generator)
            split = list(parts)[int(drawn)]
        return super().batch(split, batch_size, block_size, generator)

    def shuffled(
        self, split: str, first_window: int, batch_size: int, block_size: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Return batch_size windows of one language from an endless shuffled sequence.

        Within each language no token comes again before all have been seen. first_window is a multiple of
        batch_size; again, the sequence depends on `seed` alone.
        """
        if split not in self.splits:
            assert first_window % batch_size == 0, "batches do not overlap"
            language, n_before = self._draw(first_window // batch_size, seed)
            split, first_window = f"{self.languages[language]}_{split}", n_before * batch_size
        return super().shuffled(split, first_window, batch_size, block_size, seed)

    def _draw(self, batch: int, seed: int) -> tuple[int, int]:
        """Return the language of a batch, and how many batches before it had the same.

        Languages are drawn in blocks of batches: `_earlier[seed][b]`, (languages,), counts how often each was
        drawn before block b.
        """
        block, at = divmod(batch, _BLOCK)
        earlier = self._earlier.setdefault(seed, [np.zeros(len(self.q), np.int64)])
        while len(earlier) <= block:  # a tenth of a millisecond for each block
            drawn = self._languages_drawn(len(earlier) - 1, seed)
            earlier.append(earlier[-1] + np.bincount(drawn, minlength=len(self.q)))
        drawn = self._languages_drawn(block, seed)
        language = int(drawn[at])
        return language, int(earlier[block][language] + (drawn[:at] == language).sum())

    def _languages_drawn(self, block: int, seed: int) -> np.ndarray:
        """Draw the languages of the batches of a block (4096,)."""
        draw = np.random.default_rng([seed, block, 1])  # the 1 makes it differ from all draws in _order
        return draw.choice(len(self.q), _BLOCK, p=self.q)

    def windows(self, split: str, batch_size: int, block_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all of one language in order, then the next; no window has two of them."""
        for part in self.parts(split):
            yield from super().windows(part, batch_size, block_size)


class JoinedFiles:
    """The ids of several files, one after the other, read as if they were one array (N,)."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.ends = np.cumsum([len(a) for a in arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        if isinstance(where, slice):
            where = np.arange(*where.indices(len(self)))
        file_of = np.searchsorted(self.ends, where, side="right")  # as `where`
        ids = np.empty(where.shape, self.arrays[0].dtype)
        for file in np.unique(file_of):
            here, array = file_of == file, self.arrays[file]
            ids[here] = array[where[here] - (self.ends[file] - len(array))]
        return ids
