"""What the beasts are fed to: all that reads files which may come from strangers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanobackpack import TrainConfig, load_model
from nanobackpack.analysis import control
from nanobackpack.evaluate.lexical_similarity import read_pairs
from nanobackpack.evaluate.scoring import read_json_lines
from nanobackpack.text import data
from nanobackpack.text.corpus import from_files
from nanobackpack.text.meta import read_legacy_meta
from nanobackpack.text.tokenizer import Tokenizer, load_tokenizer
from nanobackpack.train import trainer
from nanobackpack.train.log import Log, plot_losses

from .registry import SIZES


def use_model(folder: Path) -> None:
    model = load_model(folder)
    assert model.config.vocab_size == 4
    assert all(p.isfinite().all() for p in model.parameters())


def use_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    ids = tokenizer.encode("a" * 40 + "b")
    assert max(ids) < tokenizer.vocab_size < 100
    tokenizer.decode(ids)
    tokenizer.decode([0, 0])


def use_foreign_tokenizer(folder: Path) -> None:
    ids = load_tokenizer(str(folder)).encode("the cat")
    assert max(ids) < 2000


def use_corpus(folder: Path) -> None:
    for piece in from_files([folder]).read():
        piece.text.encode()


def use_test_sets(folder: Path) -> None:
    for file in folder.iterdir():
        if file.suffix == ".jsonl":
            read_json_lines(file, ("text",))
        else:
            read_pairs("ws353", file)


def use_data(folder: Path) -> None:
    opened = data.TokenData(folder)
    assert opened.vocab_size is not None
    assert opened.tokenizer is not None
    opened.tokenizer.encode("a" * 40 + "b")
    for ids in opened.splits.values():
        assert int(ids.max()) < opened.vocab_size


def train(folder: Path, out_dir: Path, **settings: Any) -> None:
    sizes = {k: v for k, v in SIZES.items() if k != "vocab_size"}
    steps = {"max_iters": 1, "eval_iters": 1, "batch_size": 1, "warmup_iters": 0, "device": "cpu"}
    config = TrainConfig(**sizes, **steps, dataset=str(folder), out_dir=str(out_dir), **settings)
    trainer.train(config)


def resume(folder: Path) -> None:
    train(folder.parent / "data", folder, init_from="resume")


def use_run(folder: Path) -> None:
    outside = folder.parent / f"outside-{folder.name}"
    try:
        train(folder.parent / "data", folder)
    finally:
        assert not outside.exists() or outside.read_text(encoding="utf-8") == "precious"


def use_metrics(folder: Path) -> None:
    log = Log(folder, 5, TrainConfig())
    log.record(step=6, train_loss=1.0)
    log.close()
    plot_losses(folder / "metrics.jsonl", folder / "loss.png")


LOADERS: dict[str, Callable[[Path], object]] = {
    "model": use_model,
    "resume": resume,
    "tokenizer": use_tokenizer,
    "found": use_foreign_tokenizer,
    "edits": lambda folder: control.load(folder / "edits.safetensors"),
    "corpus": use_corpus,
    "testset": use_test_sets,
    "data": use_data,
    "meta": lambda folder: read_legacy_meta(folder / "meta.pkl"),
    "run": use_run,
    "metrics": use_metrics,
    "unsafe": lambda folder: torch.load(folder / "ckpt.pt", weights_only=False),  # what nobody should do
}
