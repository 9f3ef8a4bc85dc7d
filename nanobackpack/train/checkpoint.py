"""Checkpoints: self-contained files, written whole or not at all, read without running anything in them.

    model = load_model("out")                              # or ckpt.pt, a model folder, a name on the hub
    save_model(model, "model.pt")                          # a model alone
    with BackgroundWriter(Path("out"), 2, None) as writer:
        writer.save("ckpt.pt", state)                      # the state of a run, while it goes on

A checkpoint is a dict of tensors and plain values, a superset of nanoBackpackLM's:
    format, version   "nanobackpack 1", and the version that wrote it
    model             tensors by parameter name
    model_args        ModelConfig
    tokenizer         the tokenizer's JSON, or None
    tokenizer_made_as as bpe:8192, "" if it is not known; not in older files
    token_counts      how often each id occurs in the text that it was trained on, None if not known
and of a run besides:
    config            TrainConfig
    optimizer, scaler, iter_num (steps done), best_val_loss
    elapsed_s         seconds of training so far, which max_minutes counts; not in older files
    world_size        number of processes; does not change the file's layout
    data              fingerprint of the training text
    run               id of the run, also in config.json; not in older files
All randomness of a step follows from (seed, step), so these are the whole state of a run.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanobackpack import __version__
from nanobackpack.cli import CONFIGS
from nanobackpack.config import LoadConfig, ModelConfig
from nanobackpack.errors import InputError, first_line, short_repr
from nanobackpack.model import layouts
from nanobackpack.model.backpack import GPT, BackpackLM, LanguageModel
from nanobackpack.runtime import check_memory, pick_device
from nanobackpack.safe import download
from nanobackpack.safe.files import display_path, read_json, replacing
from nanobackpack.safe.untrusted import found_in, load_untrusted
from nanobackpack.text.data import TokenData
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.tokenizer_files import CHECKPOINTS, tokenizer_in, tokenizer_of, tokenizer_to_use

FORMAT = "nanobackpack 1"
LAST, BEST = CHECKPOINTS
BUNDLED = Path(__file__).parents[1] / "weights"  # models that come with the package, by name
GO_ON = "go on with the same command and --init_from=resume"

# --- Writing ----------------------------------------------------------------------------------


def save_checkpoint(path: Path, state: dict[str, Any], before: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint; call `before` when it is on the disk, just before the file takes its name."""
    with replacing(path, before) as file:
        torch.save({"format": FORMAT, "version": __version__, **state}, file)


def save_model(model: LanguageModel, path: str | Path) -> None:
    """Write a model alone, with its tokenizer, as a checkpoint that load_model opens."""
    args = dataclasses.asdict(model.config)
    state = {"model": model.state_dict(), "model_args": args, **tokenizer_entries(model.tokenizer)}
    save_checkpoint(Path(path), state | {"token_counts": model.token_counts})


def tokenizer_entries(tokenizer: Tokenizer | None) -> dict[str, str | None]:
    """Return what a checkpoint says of a tokenizer; `tokenizer_of` reads it."""
    if tokenizer is None:
        return {"tokenizer": None}
    return {"tokenizer": tokenizer.to_json(), "tokenizer_made_as": tokenizer.made_as}


class BackgroundWriter:
    """Write the checkpoints of a run into its folder, one at a time, while training goes on.

    `resumed` is the checkpoint that the run goes on from, None for a new run. A damaged ckpt.pt is never kept
    as the previous one.
    """

    def __init__(self, folder: Path, keep_last: int, resumed: Path | None) -> None:
        self.folder = folder
        self._previous = [folder / name for name in previous_names(keep_last)]
        self._last_is_good = resumed is not None and resumed.name == LAST
        self._background = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None  # the save under way, or the last one

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self._background.shutdown()
        if error is None:  # otherwise the error that ended the run is the one to report
            self.wait()

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Copy a state to the host's memory, and begin to write it."""
        self.wait()
        copied = copy_to_host(state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # wait for the copies from a GPU
        self._writing = self._background.submit(self._write, name, copied)

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; raise what went wrong, once."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def check(self) -> None:
        """Raise what has gone wrong, without waiting."""
        if self._writing and self._writing.done():
            self.wait()

    def _write(self, name: str, state: dict[str, Any]) -> None:
        path = self.folder / name
        try:
            save_checkpoint(path, state, self._keep_previous if name == LAST else lambda: None)
        except (OSError, RuntimeError) as error:  # RuntimeError: torch's, of a write that failed
            kept = f"; {LAST} is still the previous checkpoint" if (self.folder / LAST).is_file() else ""
            what = f"cannot write {display_path(path)} ({_disk_error(error)}){kept}"
            raise InputError(f"{what}: make room or mend the disk, then {GO_ON}") from error

    def _keep_previous(self) -> None:
        """Rename the checkpoints that are there: ckpt.pt → ckpt_prev.pt → ckpt_prev2.pt ..."""
        # Those beyond keep_last go.
        for path in set(self.folder.glob("ckpt_prev*.pt")).difference(self._previous):
            path.unlink(missing_ok=True)
        # The others get the next older name, the oldest first. ckpt.pt keeps its own name too, until the new
        # file takes it: whenever the process is killed, there is a ckpt.pt.
        if self._last_is_good:
            for newer, older in reversed(list(itertools.pairwise([self.folder / LAST, *self._previous]))):
                if newer.is_file():
                    _link(newer, older)
        self._last_is_good = True


def previous_names(keep_last: int) -> list[str]:
    """Name the checkpoints before ckpt.pt, newest first."""
    return [f"ckpt_prev{i if i > 1 else ''}.pt" for i in range(1, keep_last)]


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no such thing, copy it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def copy_to_host(state: Any) -> Any:
    """Copy a state, its tensors to the CPU; copies from a GPU may not be done when this returns."""
    if isinstance(state, Tensor):
        gpu = state.device.type == "cuda"
        host = torch.empty_like(state, device="cpu", pin_memory=gpu, requires_grad=False)
        return host.copy_(state.detach(), non_blocking=gpu)
    if isinstance(state, dict):
        return {key: copy_to_host(value) for key, value in state.items()}
    return [copy_to_host(value) for value in state] if isinstance(state, list) else state


def _disk_error(error: BaseException) -> str:
    """Find the system's own message in an error, however torch wrapped it."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


# --- Reading ----------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as a dict of tensors and plain values."""
    if not path.is_file():
        older = next(path.parent.glob("older-*"), None)
        raise InputError(
            f"no checkpoint {path}: train one with `nanobackpack train`, or name its folder in --out_dir"
            + (f", such as {display_path(older)} of an earlier run" if older else "")
        )
    return load_untrusted(path)


def checkpoint_in(path: Path) -> Path:
    """Return the checkpoint that `path` stands for: a file, or a run's folder.

    A folder stands for its last checkpoint, ckpt.pt, or with always_save_checkpoint=False for its best.
    """
    if not path.is_dir():
        return path
    best, last = path / BEST, path / LAST
    if best.is_file() and last.is_file():
        return last if run_settings(path).get("always_save_checkpoint", True) else best
    return best if best.is_file() else last


def last_good_checkpoint(folder: Path) -> tuple[dict[str, Any], Path, str]:
    """Read a run's newest whole checkpoint; return it, its file, and a note if a newer one is damaged."""
    # Try the newest first. If none is whole, say what is wrong with the newest.
    problem: InputError | None = None
    for name in (LAST, *previous_names(len(list(folder.glob("ckpt_prev*.pt"))) + 1)):
        path = folder / name
        try:
            state = read_checkpoint(path)
            check_run(state, path)
        except InputError as error:
            problem = problem or error
            continue
        step = short_repr(state.get("iter_num"))
        return state, path, f"{problem}: going on from {name}, step {step}" if problem else ""
    assert problem
    raise problem


def check_run(state: dict[str, Any], file: Path) -> None:
    """Refuse a checkpoint that an earlier run left in a folder where a newer one has not saved yet."""
    run = run_settings(file.parent).get("run")
    if isinstance(run, str) and run != state.get("run"):  # older ones do not say
        raise InputError(
            f"{file} is of an earlier run, or of one elsewhere, not of that which config.json tells of: "
            "begin this with --init_from=scratch, or to use the file delete config.json and metrics.jsonl"
        )


def run_settings(folder: Path) -> dict[str, Any]:
    """Read the config.json of a run; {} if it cannot be read."""
    try:
        settings = read_json(folder / "config.json")
    except (OSError, InputError):
        return {}
    return settings if isinstance(settings, dict) else {}


# --- Models -----------------------------------------------------------------------------------


def build_model(config: ModelConfig) -> BackpackLM | GPT:
    """Make a model with fresh weights."""
    check_memory("this model", 4 * layouts.least_params(config))
    return GPT(config) if config.model_name == "gpt2" else BackpackLM(config)


class WithoutDraws(TorchFunctionMode):
    """Draw no fresh weights: a model made in this context holds what lay in memory, until a file fills it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given.get("tensor", *args[:1])
        return func(*args, **given)


def load_model(path: str | Path, tokenizer_name: str = "auto") -> BackpackLM | GPT:
    """Open a model, in eval mode, on the CPU: model.config, model.tokenizer (None if it has none).

    `path`: a run's folder, a checkpoint file (ours or nanoBackpackLM's ckpt.pt), a folder with config.json
    and weights (backpack-gpt2, GPT-2), or where there is no such path words-small, which comes with the
    package, or a name on the Hugging Face hub (gpt2, stanfordnlp/backpack-gpt2 or backpack-small, which is
    the same). Nothing found in a file is ever executed.
    `tokenizer_name`: for a model without a tokenizer, or one that its tokenizer must agree with.
    """
    # A checkpoint or a run's folder comes first, then a folder as on the Hugging Face hub, then the hub.
    path, file = Path(path), checkpoint_in(Path(path))
    if file.is_file():
        state = read_checkpoint(file)
        if file != path:  # chosen in a run's folder, not asked for by its name
            check_run(state, file)
    else:
        state, file = layouts.read_folder(_hugging_face_folder(path))
    model = model_from(state, file)
    # The tokenizer knows how many of the ids are tokens: the rest is padding.
    model.tokenizer = tokenizer_to_use(tokenizer_name, model.tokenizer, str(path))
    used = model.tokenizer.vocab_size if model.tokenizer else 0
    # Characters are never padded: where the model has another number of tokens, it was trained with others.
    # But a model of data without a tokenizer has a padded size, whatever its data were.
    char = (
        model.tokenizer and model.tokenizer.kind == "char" and model.config.vocab_size not in layouts.PADDED
    )
    if used > model.config.vocab_size or (char and used != model.config.n_token):
        found = f"{path} has {model.config.n_token:,} tokens, its tokenizer {used:,}"
        raise InputError(f"{found}: give the one that it was trained with, --tokenizer_name")
    if used and used != model.config.n_token:
        model.config = dataclasses.replace(model.config, vocab_used=used)
    return model.eval()


def load_model_of(settings: LoadConfig) -> BackpackLM | GPT:
    """Open the model that the settings of a command name, as load_model does, on their device."""
    device = pick_device(settings.device)
    return load_model(settings.model_path, settings.tokenizer_name).to(device)


def _hugging_face_folder(path: Path) -> Path:
    """Return the folder with config.json and weights: `path`, or a download if that is a name on the hub."""
    if (path / "config.json").is_file() and "out_dir" not in run_settings(path):  # a run's own is no model's
        return path
    if path.name == str(path) and (BUNDLED / path).is_dir() and not path.exists():
        return BUNDLED / path
    if path.is_dir():
        wanted = "ckpt.pt, or config.json with weights; give another file by its own name"
        raise InputError(f"no model in {path} ({wanted}): {found_in(path)}")
    if published := download.PUBLISHED.get(str(path)):
        try:
            folder = download.fetch_model(published)
        except InputError as error:
            raise InputError(f"no folder {path}, and {error}, or {_training_command(path.name)}") from None
        warnings.warn(f"no folder {path}: this is {published} of the Hugging Face hub", stacklevel=1)
        return folder
    if download.is_id(path.as_posix()):
        return download.fetch_model(path.as_posix())
    raise InputError(f"no model at {path}: {_training_command(path.name)}, or give the path of another")


def _training_command(name: str) -> str:
    """Say how to train the model that a folder of that name would hold: with the bundled config it is in."""
    for file in sorted(CONFIGS.glob("*.py")):
        if f'out_dir = "{name}"' in file.read_text(encoding="utf-8"):
            return f"train it with `nanobackpack train {file.stem.removeprefix('train_')}`"
    return "train one with `nanobackpack train`"


def model_from(checkpoint: dict[str, Any], source: Path) -> BackpackLM | GPT:
    """Build the model that was read from a file, of ours or of another program."""
    # Without a format it is another's, whose names and order of numbers differ.
    layout, state = None, checkpoint.get("model")
    if "format" not in checkpoint:
        config, state, layout = layouts.read_foreign(checkpoint, source)
        bare = "model_args" not in checkpoint
        tokenizer = tokenizer_in(source.parent) if bare else tokenizer_of(checkpoint, source)
    elif checkpoint["format"] != FORMAT:
        found = short_repr(checkpoint["format"])
        raise InputError(f"{source}: format {found} is unknown: this version reads {FORMAT!r}")
    elif not isinstance(state, dict):
        raise InputError(f"{source}: its model is missing or damaged")
    else:
        config, tokenizer = stored_config(checkpoint, source), tokenizer_of(checkpoint, source)
    layouts.check_tensors(state, str(source))
    layouts.check_size(config, state, str(source))
    # Its weights come from the file: to draw fresh ones first would take longer than all the rest.
    with WithoutDraws():
        model = build_model(config)
    layouts.import_state(model, state, layout, str(source))
    model.tokenizer, model.text = tokenizer, checkpoint.get("data")
    counts = checkpoint.get("token_counts")  # older files have none
    if counts is not None and tokenizer:
        if not isinstance(counts, Tensor) or counts.shape != (tokenizer.vocab_size,):
            raise InputError(f"{source}: its token_counts are damaged")
        model.token_counts = counts
    return model


def stored_config(checkpoint: dict[str, Any], source: str | Path) -> ModelConfig:
    """Return the architecture in a checkpoint of ours."""
    args = checkpoint.get("model_args")
    if not isinstance(args, dict):
        raise InputError(f"{source}: model_args are not those of this version")
    return layouts.model_config(args, str(source))


def check_vocabulary(model: LanguageModel, name: str, data: TokenData) -> None:
    """Refuse data whose ids mean other tokens than the model's.

    Data without a tokenizer is trusted as long as its ids are below the model's number of tokens.
    """
    theirs, ours, n_theirs = model.tokenizer, data.tokenizer, model.config.n_token
    if not ours:
        try:
            return data.check_ids(n_theirs)
        except InputError as error:
            raise InputError(f"{name} has {n_theirs:,} tokens: {error}") from error
    if theirs:
        difference = theirs.difference(ours)
    else:
        difference = "" if n_theirs == ours.vocab_size else "these are not the same"
    if difference:
        kind = f"a {theirs.kind} tokenizer of " if theirs else ""
        raise InputError(
            f"{name} has {kind}{n_theirs:,} tokens, {display_path(data.folder)} has a {ours.kind} tokenizer "
            f"of {ours.vocab_size:,} tokens: {difference}; prepare the data with the model's tokenizer"
        )
