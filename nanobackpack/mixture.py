"""Several languages in one data set: a language per batch, the rare ones more often than their share.

Language i is drawn with probability q_i ∝ p_i^alpha, where p_i is its share of the training tokens
(XLM, Lample and Conneau 2019, section 3.1): alpha 1 leaves the shares, 0 makes all equal. Two layouts:
    de_train.bin, de_val.bin, de_evaluation.bin   in one folder, the last one optional
    de/de_0.bin, ..., de/de_99.bin                "huge packs": the last file is held out, its first 40 %
                                                  for validation, its last 60 % for evaluation
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanobackpack.config import InputError, TrainConfig
from nanobackpack.data import HELD_OUT, SPLITS, Splits, TokenData
from nanobackpack.files import shown
from nanobackpack.tokenizers import resolve

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
                f"{shown(self.folder)} has neither LANGUAGE_train.bin nor LANGUAGE/LANGUAGE_0.bin: "
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
            raise InputError(f"{shown(packs)} has only {n} .bin file: at least 2 are needed, one to hold out")
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
            f"{shown(folder)} holds train.bin and languages such as {languages[0]}: move one of the two"
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
    tokenizer = resolve(config.tokenizer_name, data.tokenizer, shown(data.folder))
    if tokenizer and not data.tokenizer:
        data.tokenizer = tokenizer
        data.check_ids(tokenizer.vocab_size)
    return data
