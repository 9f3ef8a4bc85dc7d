"""The files in config/: their values against a table of nanoBackpackLM's, and a tiny run of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from conftest import save_gpt2

from nanobackpack import cli, load_model
from nanobackpack.config import TrainConfig
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.log import read_metrics
from nanobackpack.train.trainer import train

ROOT = Path(__file__).resolve().parents[1]
FILES = {p.name: p for p in sorted((ROOT / "config").glob("*.py"))}

MICRO = {"n_layer": 6, "n_head": 6, "n_embd": 384}
CHINESE = {"tokenizer_name": "chinese-character-bert"}
XLM = {"tokenizer_name": "xlm-250k", "data_bin_dtype": "uint32", "xlm_alpha": 0.3}
GPT = {"model_name": "gpt2"}


def training(out_dir: str, run_name: str, n_steps: int, **more: Any) -> dict[str, Any]:
    """12 × 1024 × 5 tokens per process; GPT-2 small's sizes, 16 senses and openwebtext are the defaults."""
    return {
        "batch_size": 12, "block_size": 1024, "gradient_accumulation_steps": 5, "weight_decay": 0.1,
        "max_iters": n_steps, "lr_decay_iters": n_steps, "eval_interval": 1000, "eval_iters": 200,
        "log_interval": 10, "out_dir": out_dir, "wandb_log": True, "wandb_run_name": run_name, **more,
    }  # fmt: skip


def small(out_dir: str, n_steps: int, width: int, n_layer: int, **more: Any) -> dict[str, Any]:
    """A model for a little data: Muon, a short run, and the best state counts."""
    return {
        "out_dir": out_dir, "max_iters": n_steps, "lr_decay_iters": n_steps, "n_embd": width,
        "n_layer": n_layer, "n_head": n_layer, "optimizer": "muon", "learning_rate": 1e-3, "min_lr": 1e-4,
        "beta2": 0.99, "always_save_checkpoint": False, **more,
    }  # fmt: skip


WORDS = small(
    "", 3000, 128, 4, eval_interval=500, eval_iters=20, log_interval=50, batch_size=32, block_size=128,
    warmup_iters=100, backup_checkpoint_step=0,
)  # fmt: skip

# The effective values of each file, whichever of them it states.
TABLE: dict[str, dict[str, Any]] = {
    "train_backpack_lm.py": training("backpack-small", "backpack-small", 600000),
    "train_gpt2.py": training("out", "gpt2-124M", 500000, **GPT),
    "train_clue_small.py": training(
        "clue_small", "backpack-clue-124M", 500000, dataset="clue_small", **CHINESE
    ),
    "train_clue_micro.py": training(
        "clue_micro", "backpack-clue-30M", 500000, dataset="clue_small", **MICRO, **CHINESE
    ),
    "train_tigerbot.py": training(
        "backpack_tigerbot_small", "backpack-tigerbot-124M", 500000, dataset="tigerbot", **CHINESE
    ),
    "train_tigerbot_gpt2.py": training(
        "gpt_tigerbot_small", "gpt2-tigerbot-124M", 500000, dataset="tigerbot", **CHINESE, **GPT
    ),
    "train_backpack_xlm_micro.py": training(
        "backpack_xlm", "backpack-xlm-micro", 200000, dataset="common_crawl", **MICRO, **XLM
    ),
    "finetune_shakespeare.py": {
        "init_from": "gpt2-xl", "batch_size": 1, "gradient_accumulation_steps": 32, "max_iters": 20,
        "learning_rate": 3e-5, "decay_lr": False, "eval_interval": 5, "eval_iters": 40,
        "always_save_checkpoint": False, "out_dir": "out-shakespeare", "dataset": "shakespeare",
        "wandb_log": False, "wandb_project": "shakespeare", "wandb_run_name": "ft-shakespeare", **GPT,
    },
    **{
        f"eval_{name.replace('-', '_')}.py": {
            "init_from": name, "out_dir": f"eval-{name}", "batch_size": 8, "eval_iters": 500,
            "eval_only": True, **GPT,
        }
        for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
    },
    "train_shakespeare_char.py": small(
        "out-shakespeare-char", 5000, 384, 6, dataset="shakespeare_char", eval_interval=250, eval_iters=200,
        log_interval=10, batch_size=64, block_size=256, dropout=0.2, n_sense_vector=4, warmup_iters=100,
    ),
    "demo.py": small(
        "out-demo", 4000, 128, 4, dataset="shakespeare_char", eval_interval=500, eval_iters=20,
        log_interval=100, batch_size=12, block_size=64, n_sense_vector=4, warmup_iters=100, max_minutes=3.0,
    ),
    "train_shakespeare_char_modern.py": small(
        "out-shakespeare-char-modern", 2000, 128, 4, dataset="shakespeare_char", eval_interval=500,
        eval_iters=20, log_interval=50, batch_size=12, block_size=64, n_sense_vector=4, warmup_iters=100,
        context_network="modern",
    ),
    "small.py": small(
        "out", 1500, 192, 4, eval_interval=250, eval_iters=20, log_interval=50, batch_size=16,
        block_size=128, n_sense_vector=16, warmup_iters=50,
    ),
    "words.py": {
        **WORDS, "out_dir": "out-words", "dataset": "words", "n_embd": 256, "always_save_checkpoint": True,
    },
    "words_small.py": {**WORDS, "out_dir": "out-words-small", "dataset": "words_small", "dropout": 0.1},
}  # fmt: skip


def test_every_file_is_in_the_tables() -> None:
    assert FILES.keys() == TABLE.keys()
    readme = (ROOT / "config" / "README.md").read_text(encoding="utf-8")
    assert ", _medium, _large, _xl" in readme  # of eval_gpt2.py
    assert all(name in readme for name in FILES if not name.startswith("eval_gpt2_"))


@pytest.mark.parametrize("name", FILES)
def test_values(name: str) -> None:
    """Each file means what its row says, has a docstring, and states only what differs from the defaults."""
    assert parse(name) == TrainConfig(**TABLE[name])
    stated = cli.read_config_file(str(FILES[name]), get_type_hints(TrainConfig))
    assert not [key for key, value in stated.items() if value == getattr(TrainConfig, key)]
    assert FILES[name].read_text(encoding="utf-8").startswith('"""')


def parse(name: str, *flags: str) -> TrainConfig:
    return cli.parse(TrainConfig, [str(FILES[name]), *flags])


# --- A tiny run of each -----------------------------------------------------------------------

SMALL = [
    "--device=cpu", "--compile=False", "--tokenizer_name=auto", "--eval_iters=2", "--batch_size=2",
    "--wandb_log=False", "--warmup_iters=1",
]  # fmt: skip
SIZES = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=8", "--max_iters=2", "--warmup_iters=0"]
TEXT = "abcdefghijklmnopqrs" * 20


def run_tiny(name: str, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """Run a file on a small text, into folder/out, and return its metrics."""
    write_dataset(folder / "data", TEXT, Tokenizer.char(TEXT), val_fraction=0.1, source="a test")
    places = [f"--dataset={folder / 'data'}", f"--out_dir={folder / 'out'}"]
    assert train(parse(name, *SMALL, *places, *flags)) == 0
    return read_metrics(folder / "out" / "metrics.jsonl")


@pytest.mark.parametrize("name", ["train_backpack_lm.py", "train_gpt2.py", "train_backpack_xlm_micro.py"])
def test_a_tiny_training(name: str, tmp_path: Path) -> None:
    """A file trains what its name says: the GPT one a GPT, the one for languages all of them."""
    flags = [*SIZES, "--n_sense_vector=4"]
    if "xlm" in name:
        for language in ("de", "fr"):
            (tmp_path / "packs" / language).mkdir(parents=True)
            for i in range(3):
                ids = np.random.default_rng(i).integers(19, size=60).astype("<u4")
                ids.tofile(tmp_path / "packs" / language / f"{language}_{i}.bin")
        flags += [f"--huge_pack_dir={tmp_path / 'packs'}", "--n_layer=1", "--n_embd=4"]
    records = run_tiny(name, tmp_path, *flags)
    assert load_model(tmp_path / "out").config.model_name == ("gpt2" if "gpt2" in name else "backpack-lm")
    assert any("fr_val_loss" in record for record in records) == ("xlm" in name)


@pytest.mark.parametrize("name", ["finetune_shakespeare.py", "eval_gpt2.py"])
def test_a_tiny_gpt2(name: str, tmp_path: Path) -> None:
    """Fine-tuning keeps what improves; evaluating trains and writes no model."""
    gpt = save_gpt2(tmp_path / "gpt", vocab_size=19, vocab_used=0)
    less_work = ["--gradient_accumulation_steps=2"] * name.startswith("finetune")
    records = run_tiny(name, tmp_path, f"--init_from={tmp_path / 'gpt'}", *less_work)
    losses = {r["step"]: r["val_loss"] for r in records if "val_loss" in r}
    if name.startswith("eval"):
        assert len(losses) == 1
        assert not list((tmp_path / "out").glob("*.pt"))
        return
    assert list(losses) == [0, 5, 10, 15, 20]
    assert {r["lr"] for r in records if "lr" in r} == {3e-5}
    assert min(losses.values()) < losses[0]
    assert load_model(tmp_path / "out").config.n_layer == gpt.config.n_layer
