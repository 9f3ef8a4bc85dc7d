"""Checkpoints: one self-contained file, written whole or not at all, opened without running anything.

A checkpoint is a dict of tensors and plain values, a superset of nanoBackpackLM's:
    format          "nanobackpack 1"
    model           tensors by parameter name
    model_args      ModelConfig
    config          TrainConfig of the run
    tokenizer       the tokenizer's JSON, or None
    optimizer, scaler, iter_num (steps done), best_val_loss
All randomness of a step follows from (seed, step), so these are the whole state of a run.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from nanobackpack import compat, foreign
from nanobackpack.backpack import BackpackLM
from nanobackpack.config import InputError, ModelConfig, brief
from nanobackpack.data import read_tokenizer
from nanobackpack.files import plain_name, read_json, replacing
from nanobackpack.gpt import GPT
from nanobackpack.tokenizers import Tokenizer

FORMAT = "nanobackpack 1"
MAX_BLOCKS = 1000  # building more than any model has would take forever


def build(config: ModelConfig) -> BackpackLM | GPT:
    """A model with fresh weights."""
    return GPT(config) if config.model_name == "gpt2" else BackpackLM(config)


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint: temporary name, flushed to disk, then renamed over the old one."""
    with replacing(path) as f:
        torch.save({"format": FORMAT, **checkpoint}, f)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint file as a dict: tensors and plain values, whatever else it holds is refused.

    Raises: InputError if it is missing, damaged, or would have to run code.
    """
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}: train one with python train.py, or name its folder in --out_dir"
        )
    try:
        mmap = foreign.check_archive(path)  # all but files of torch before 1.6
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        checkpoint = foreign.plain(loaded)
    except (pickle.UnpicklingError, InputError) as e:
        raise InputError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged ({_first(e)})"
        ) from e
    except Exception as e:  # a damaged file can raise nearly anything
        raise InputError(f"{path} cannot be read as a checkpoint: {_first(e)}") from e
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, a checkpoint is a dict")
    return checkpoint


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].split(". ")[0][:200]


def find(path: Path) -> Path:
    """The checkpoint file that `path` stands for: a file, or a run's folder.

    A folder stands for its last state, ckpt.pt, or with always_save_checkpoint=False for its best.
    """
    if not path.is_dir():
        return path
    best, last = path / "best.pt", path / "ckpt.pt"
    if not best.is_file() or not last.is_file():
        return best if best.is_file() else last
    try:
        keep_last = read_json(path / "config.json").get("always_save_checkpoint", True)
    except (OSError, InputError, AttributeError):
        keep_last = True
    return last if keep_last else best


def load_model(path: str | Path) -> BackpackLM | GPT:
    """Open a model, in eval mode, on the CPU: model.config, model.tokenizer (None if it has none).

    `path`: a run's folder, a checkpoint file (ours or nanoBackpackLM's ckpt.pt), or a folder with
    config.json and weights (backpack-gpt2, GPT-2). Nothing found in a file is ever executed.
    Raises: InputError with one line if there is nothing there or it cannot be used.
    """
    path = Path(path)
    file = find(path)
    if file.is_file():
        model = model_from(read(file), file)
    elif (path / "config.json").is_file():
        model = _load_hugging_face(path)
    elif path.is_dir():
        raise InputError(f"no model in {path}: expected ckpt.pt, best.pt, or config.json with weights")
    else:
        raise InputError(f"no model at {path}: train one with python train.py, or give the path of another")
    return model.eval()


def model_from(checkpoint: dict[str, Any], source: Path) -> BackpackLM | GPT:
    """The model a checkpoint read by `read` holds.

    Raises: InputError if its settings or tensors do not fit together.
    """
    if checkpoint.get("format") != FORMAT:
        if "format" in checkpoint:
            raise InputError(
                f"{source}: format {brief(checkpoint['format'])} is unknown: this version reads {FORMAT!r}"
            )
        config, tensors, layout = compat.read_nano(checkpoint, str(source))
        return _filled(config, tensors, layout, _beside(checkpoint.get("config")), str(source))
    state, tokenizer = checkpoint.get("model"), checkpoint.get("tokenizer")
    if not isinstance(state, dict) or not isinstance(tokenizer, str | None):
        raise InputError(f"{source}: its model or its tokenizer is missing or damaged")
    own = Tokenizer.from_json(tokenizer, f"the tokenizer in {source}") if tokenizer else None
    return _filled(config_of(checkpoint, source), state, compat.OWN, own, str(source))


def restore(
    checkpoint: dict[str, Any],
    model: BackpackLM | GPT,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    source: Path,
) -> tuple[int, float]:
    """Bring a run to the state a checkpoint of ours holds; returns steps done and best validation loss.

    Raises: InputError if the state is damaged or that of another model or optimizer.
    """
    state, step, best = (checkpoint.get(k) for k in ("model", "iter_num", "best_val_loss"))
    if not isinstance(state, dict) or type(step) is not int or step < 0 or type(best) is not float:
        raise InputError(f"{source}: its model, iter_num or best_val_loss is missing or damaged")
    compat.check_tensors(state, str(source))
    compat.import_state(model, state, compat.OWN, str(source))
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        scaler.load_state_dict(checkpoint["scaler"])
        for p, kept in optimizer.state.items():
            for value in kept.values():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != p.shape:
                    raise ValueError(f"a tensor {tuple(value.shape)} for one {tuple(p.shape)}")
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise InputError(f"{source}: its optimizer does not fit this run's ({_first(e)})") from e
    return step, best


def config_of(checkpoint: dict[str, Any], source: Path) -> ModelConfig:
    """The settings in a checkpoint of ours. Raises: InputError if they are not such."""
    args = checkpoint.get("model_args")
    if not isinstance(args, dict):
        raise InputError(f"{source}: model_args are not those of this version")
    return compat.model_config(args, str(source))


def _filled(
    config: ModelConfig, state: compat.State, layout: compat.Layout, tokenizer: Tokenizer | None, source: str
) -> BackpackLM | GPT:
    """The model of that config with those tensors; memory is taken only after they are found to fit."""
    compat.check_tensors(state, source)
    if tokenizer and tokenizer.vocab_size > config.vocab_size:  # its ids would lie outside the embedding
        raise InputError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} ids, the model takes {config.vocab_size}"
        )
    D, K = config.n_embd, config.n_sense_vector if config.model_name == "backpack-lm" else 0
    # Nearly all parameters, each of a byte or more: so that memory is bounded by the file's size.
    least = D * (config.vocab_size + config.block_size + 12 * D * config.n_block + 4 * D * K)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if least > sum(held.values()) or config.n_block > MAX_BLOCKS:  # the same bytes may have many names
        raise InputError(
            f"{source}: {brief(config.n_block)} blocks with {brief(least)} parameters cannot be in "
            f"{sum(held.values())} bytes"
        )
    model = build(config)
    compat.import_state(model, state, layout, source)
    model.tokenizer = tokenizer
    return model


def _beside(config: object) -> Tokenizer | None:
    """The tokenizer of the data a nanoBackpackLM checkpoint was trained on, if the data is still here."""
    name = config.get("dataset") if isinstance(config, dict) else None
    if not plain_name(name):  # a foreign name must not lead elsewhere
        return None
    return read_tokenizer(Path("data") / str(name))


def _load_hugging_face(folder: Path) -> BackpackLM | GPT:
    settings = read_json(folder / "config.json")
    if not isinstance(settings, dict):
        raise InputError(f"{folder / 'config.json'} must hold an object of settings")
    weights = folder / "model.safetensors"
    if weights.is_file():
        from safetensors.torch import load_file

        try:
            state: dict[str, Any] = load_file(weights)
        except Exception as e:  # a damaged file can raise nearly anything
            raise InputError(f"{weights} cannot be read: {_first(e)}") from e
    else:
        weights = folder / "pytorch_model.bin"
        if not weights.is_file():
            raise InputError(
                f"{folder} has a config.json but neither model.safetensors nor pytorch_model.bin"
            )
        state = read(weights)
    config, state, layout = compat.read_hugging_face(settings, state, str(folder))
    file = folder / "tokenizer.json"
    return _filled(config, state, layout, Tokenizer.load(file) if file.exists() else None, str(weights))
