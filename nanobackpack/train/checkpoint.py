"""Checkpoints: one self-contained file, written whole or not at all, opened without running anything.

A checkpoint is a dict of tensors and plain values, a superset of nanoBackpackLM's:
    format          "nanobackpack 1"
    model           tensors by parameter name
    model_args      ModelConfig
    config          TrainConfig of the run
    tokenizer       the tokenizer's JSON, or None
    optimizer, scaler, iter_num (steps done), best_val_loss
    world_size      processes that trained it; the file is the same whatever it says
    run             which run it is of: config.json beside it says the same; not in older files
All randomness of a step follows from (seed, step), so these are the whole state of a run.


The states of a run on disk: written in the background, the last few kept, and found again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nanobackpack.config import LoadConfig, ModelConfig, TrainConfig
from nanobackpack.errors import InputError, short_repr
from nanobackpack.model import layouts as compat
from nanobackpack.model.backpack import GPT, BackpackLM, LanguageModel
from nanobackpack.runtime import pick_device
from nanobackpack.safe import download as hub
from nanobackpack.safe import untrusted as foreign
from nanobackpack.safe.files import display_path, plain_name, read_json, replacing
from nanobackpack.text.data import TokenData
from nanobackpack.text.meta import read_tokenizer
from nanobackpack.text.tokenizer import Tokenizer, in_folder, resolve

FORMAT = "nanobackpack 1"
MAX_BLOCKS = 1000  # building more than any model has would take forever


def build_model(config: ModelConfig) -> BackpackLM | GPT:
    """A model with fresh weights."""
    return GPT(config) if config.model_name == "gpt2" else BackpackLM(config)


def save_checkpoint(path: Path, state: dict[str, Any], before: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint: temporary name, flushed to disk, then renamed over the old one; see `replacing`."""
    with replacing(path, before) as f:
        torch.save({"format": FORMAT, **state}, f)


def save_model(model: LanguageModel, path: str | Path) -> None:
    """Write a model alone, with its tokenizer, as a checkpoint that load_model opens."""
    tokenizer = None if model.tokenizer is None else model.tokenizer.to_json()
    args = dataclasses.asdict(model.config)
    save_checkpoint(Path(path), {"model": model.state_dict(), "model_args": args, "tokenizer": tokenizer})


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint file as a dict: tensors and plain values, whatever else it holds is refused.

    Raises: InputError if it is missing, damaged, or would have to run code.
    """
    if not path.is_file():
        raise InputError(
            f"no checkpoint {path}: train one with python train.py, or name its folder in --out_dir"
        )
    try:
        mmap = foreign.check_archive(path)  # all but files of torch before 1.6
        if mmap:
            _check_sums(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        checkpoint = foreign.copy_plain_values(loaded)
    except (pickle.UnpicklingError, InputError) as e:
        raise InputError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged ({_first(e)})"
        ) from e
    except Exception as e:  # a damaged file can raise nearly anything
        raise InputError(f"{path} cannot be read as a checkpoint: {_first(e)}") from e
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path} holds a {type(checkpoint).__name__}, a checkpoint is a dict")
    return checkpoint


def _check_sums(path: Path) -> None:
    """Compare each part of a checkpoint with the CRC-32 that was written with it; torch does not look at
    them. Raises: zipfile.BadZipFile if one differs."""
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"its part {damaged} is damaged")


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].split(". ")[0][:200]


def describe_world_size_change(old: dict[str, Any], config: TrainConfig, world_size: int) -> str:
    """What a run resumed on another number of processes cannot keep, in a line; "" if on as many.

    Raises: InputError if the checkpoint does not tell how many there were, and their batches.
    """
    before, settings = old.get("world_size", 1), old.get("config")
    if before == world_size:
        return ""
    batch = ("batch_size", "gradient_accumulation_steps")
    counts = [before, *(settings.get(n) if isinstance(settings, dict) else None for n in batch)]
    if not all(type(n) is int and n > 0 for n in counts):
        raise InputError(f"{config.out_dir}/ckpt.pt: its world_size or its config is missing or damaged")
    sequences = config.batch_size * config.gradient_accumulation_steps * world_size
    then = math.prod(counts)
    if sequences != then:
        what = (
            f"a step sees {sequences} sequences, not {then}, so the pass through the text starts at another "
            f"place: keep {then} with --gradient_accumulation_steps"
        )
    elif config.dropout:
        what = "other units are dropped, so it goes on like the first run, but not exactly so"
    else:
        what = "sums are in another order, so it goes on as the first run but for rounding"
    return f"processes: {world_size} now, {before} before: {what}"


def checkpoint_in(path: Path) -> Path:
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


def check_run(state: dict[str, Any], file: Path) -> None:
    """Refuse a state that an earlier run left in its folder, where one begun since has not saved yet.

    Raises: InputError if the config.json beside it is of another run. Older ones do not say.
    """
    try:
        run = read_json(file.parent / "config.json").get("run")
    except (OSError, InputError, AttributeError):
        return
    if type(run) is str and run != state.get("run"):
        raise InputError(
            f"{file} is of an earlier run, and the one that config.json tells of has saved nothing yet: "
            "begin it with --init_from=scratch, or to use the earlier one delete config.json, metrics.jsonl"
        )


def load_model(path: str | Path, tokenizer_name: str = "auto") -> BackpackLM | GPT:
    """Open a model, in eval mode, on the CPU: model.config, model.tokenizer (None if it has none).

    `path`: a run's folder, a checkpoint file (ours or nanoBackpackLM's ckpt.pt), a folder with
    config.json and weights (backpack-gpt2, GPT-2), or where there is no such path the name of one on the
    Hugging Face hub (gpt2, stanfordnlp/backpack-gpt2). Nothing found in a file is ever executed.
    `tokenizer_name`: for a model without a tokenizer, or one that its tokenizer must agree with.
    Raises: InputError with one line if there is nothing there or it cannot be used.
    """
    path = Path(path)
    file = checkpoint_in(path)
    if file.is_file():
        state = read_checkpoint(file)
        if file != path:  # else that very file is asked for
            check_run(state, file)
        model = model_from(state, file)
    elif (path / "config.json").is_file():
        model = _load_hugging_face(path)
    elif path.is_dir():
        raise InputError(f"no model in {path}: expected ckpt.pt, best.pt, or config.json with weights")
    elif hub.is_id(path.as_posix()):
        model = _load_hugging_face(hub.fetch_model(path.as_posix()))
    else:
        raise InputError(f"no model at {path}: {_recipe(path.name)}, or give the path of another")
    model.tokenizer = resolve(tokenizer_name, model.tokenizer, str(path))
    used = model.tokenizer.vocab_size if model.tokenizer else 0
    if used > model.config.vocab_size:
        raise InputError(f"{path} has {model.config.vocab_size:,} ids, its tokenizer {used:,}: give another")
    if used and used < model.config.n_token:  # the rest is padding
        model.config = dataclasses.replace(model.config, vocab_used=used)
    return model.eval()


def _recipe(name: str) -> str:
    """The command that trains the model a folder of that name would hold."""
    for file in sorted(Path("config").glob("*.py")):
        if re.search(rf"""^out_dir *= *["']{re.escape(name)}["']""", file.read_text(encoding="utf-8"), re.M):
            return f"train it with `python train.py {file.as_posix()}`"
    return "train one with python train.py"


def open_model(config: LoadConfig) -> BackpackLM | GPT:
    """The model that settings name, on their device. Raises: InputError if either cannot be had."""
    device = pick_device(config.device)
    return load_model(config.model_path, config.tokenizer_name).to(device)


def model_from(checkpoint: dict[str, Any], source: Path) -> BackpackLM | GPT:
    """The model a checkpoint read by read_checkpoint holds.

    Raises: InputError if its settings or tensors do not fit together.
    """
    if checkpoint.get("format") != FORMAT:
        if "format" in checkpoint:
            raise InputError(
                f"{source}: format {short_repr(checkpoint['format'])} is unknown: this version "
                f"reads {FORMAT!r}"
            )
        config, tensors, layout = compat.read_nano(checkpoint, str(source))
        return _filled(config, tensors, layout, _beside(checkpoint.get("config")), str(source))
    state, tokenizer = checkpoint.get("model"), checkpoint.get("tokenizer")
    if not isinstance(state, dict) or not isinstance(tokenizer, str | None):
        raise InputError(f"{source}: its model or its tokenizer is missing or damaged")
    own = Tokenizer.from_json(tokenizer, f"the tokenizer in {source}") if tokenizer else None
    return _filled(stored_config(checkpoint, source), state, None, own, str(source))


def stored_config(checkpoint: dict[str, Any], source: str | Path) -> ModelConfig:
    """The architecture in a checkpoint of ours. Raises: InputError if it is not one we know."""
    args = checkpoint.get("model_args")
    if not isinstance(args, dict):
        raise InputError(f"{source}: model_args are not those of this version")
    return compat.model_config(args, str(source))


def _filled(
    config: ModelConfig,
    state: compat.State,
    layout: compat.Layout | None,
    tokenizer: Tokenizer | None,
    source: str,
) -> BackpackLM | GPT:
    """The model of that config with those tensors; memory is taken only after they are found to fit."""
    compat.check_tensors(state, source)
    V, D, K = config.vocab_size, config.n_embd, config.n_sense_vector
    senses = (V if config.sense_table else 4 * D) * K if config.model_name == "backpack-lm" else 0
    # Nearly all parameters, each of a byte or more: so that memory is bounded by the file's size.
    least = D * (V + config.block_size + 12 * D * config.n_block + senses)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if least > sum(held.values()) or config.n_block > MAX_BLOCKS:  # the same bytes may have many names
        raise InputError(
            f"{source}: {short_repr(config.n_block)} blocks with {short_repr(least)} parameters cannot be in "
            f"{sum(held.values())} bytes"
        )
    model = build_model(config)
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
        state = read_checkpoint(weights)
    config, state, layout = compat.read_hugging_face(settings, state, str(folder))
    return _filled(config, state, layout, in_folder(folder), str(weights))


def check_vocabulary(model: BackpackLM | GPT, name: str, data: TokenData) -> None:
    """Raises InputError, naming both, if the ids of a model and of the data mean different tokens.

    Data without a tokenizer is trusted as long as its ids are below the model's number of tokens.
    """
    theirs, ours = model.tokenizer, data.tokenizer
    n_theirs = model.config.n_token
    if not ours:
        try:
            return data.check_ids(n_theirs)
        except InputError as error:
            raise InputError(f"{name} has {n_theirs:,} tokens: {error}") from error
    same_size = n_theirs == ours.vocab_size
    difference = theirs.difference(ours) if theirs else "" if same_size else "these are not the same"
    if difference:
        kind = f"a {theirs.kind} tokenizer of " if theirs else ""
        raise InputError(
            f"{name} has {kind}{n_theirs:,} tokens, {display_path(data.folder)} has a {ours.kind} "
            f"tokenizer of "
            f"{ours.vocab_size:,} tokens: {difference}; prepare the data with the model's tokenizer"
        )


LAST = "ckpt.pt"


class BackgroundWriter:
    """Writes the states of a run into its folder, one at a time, while training goes on.

    `resumed` is the file the run goes on from, if it does. States of a run before it stay until this one
    saves, and never beside those of this one; nor does a damaged ckpt.pt take the place of the one before it.
    """

    def __init__(self, folder: Path, keep_last: int, resumed: Path | None) -> None:
        self.folder = folder
        self._previous = [folder / name for name in previous(keep_last)]
        self._first = resumed is None
        self._last_is_whole = resumed is not None and resumed.name == LAST
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread:
            self._thread.join()
        if error is None:
            self.check()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Begin to write a state: returns when it is copied to memory of the host.

        Raises: InputError if the one before could not be written.
        """
        self.wait()
        held = on_host(state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies have arrived
        self._thread = threading.Thread(target=self._write, args=(name, held))
        self._thread.start()

    def wait(self) -> None:
        """Return when the last state is on the disk. Raises: InputError if it could not be written."""
        if self._thread:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises: InputError if a state could not be written."""
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, name: str, state: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            save_checkpoint(path, state, self._keep if name == LAST else lambda: None)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's, of a write that failed
            kept = f"; {LAST} is still the state before" if (self.folder / LAST).is_file() else ""
            self._error = InputError(
                f"cannot write {display_path(path)} ({_reason(error)}){kept}: make room or mend the disk, "
                "then go on with the same command and --init_from=resume"
            )
            self._error.__cause__ = error
        except Exception as error:  # a bug of ours, to be shown where someone looks
            self._error = error

    def _keep(self) -> None:
        """Give the states that are there their new names; at no moment is there none called ckpt.pt."""
        kept = [] if self._first else self._previous
        others = [self.folder / "best.pt"] if self._first else []
        for path in (*self.folder.glob("ckpt_prev*.pt"), *others):
            if path not in kept:
                path.unlink(missing_ok=True)
        if self._last_is_whole:
            for newer, older in reversed(list(itertools.pairwise([self.folder / LAST, *kept]))):
                if newer.is_file():
                    _copy(newer, older)
        self._first, self._last_is_whole = False, True


def previous(keep_last: int) -> list[str]:
    """The names of the states before ckpt.pt, newest first."""
    return [f"ckpt_prev{i if i > 1 else ''}.pt" for i in range(1, keep_last)]


def _copy(source: Path, target: Path) -> None:
    """Put a file under another name too: a second name for it, or where there is no such thing a copy."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def on_host(state: Any) -> Any:
    """A copy of a state whose tensors are on the CPU; from a GPU it may still be under way."""
    if isinstance(state, Tensor):
        gpu = state.device.type == "cuda"
        host = torch.empty_like(state, device="cpu", pin_memory=gpu, requires_grad=False)
        return host.copy_(state.detach(), non_blocking=gpu)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    return [on_host(value) for value in state] if isinstance(state, list) else state


def last_good_checkpoint(folder: Path) -> tuple[dict[str, Any], Path, str]:
    """The newest whole state of the run in a folder: its content, its file, and a line if a newer one is
    damaged.

    Raises: InputError if there is none.
    """
    problem: InputError | None = None
    for name in (LAST, *previous(len(list(folder.glob("ckpt_prev*.pt"))) + 1)):
        path = folder / name
        try:
            state = read_checkpoint(path)
            check_run(state, path)
        except InputError as error:
            problem = problem or error
        else:
            note = (
                f"{problem}: going on from {name}, step {short_repr(state.get('iter_num'))}"
                if problem
                else ""
            )
            return state, path, note
    assert problem
    raise problem


def _reason(error: BaseException) -> str:
    """The system's word for what went wrong, however torch wrapped it."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
