"""What a run starts from: fresh weights, its own last checkpoint, or another model.

    initial = initial_model(config, data)      # .model in training mode, .config with its architecture

Settings of the architecture that have their default values follow the checkpoint, and a note says which;
others must agree with it, but dropout may change, and a smaller block_size drops positions. A run that goes
on takes all other settings as they are now, and a note lists those that are new; its data must be the same.
A GPT that is to become a Backpack gives its embedding and its blocks, as the context network; the senses
start fresh.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanobackpack.config import Architecture, ModelConfig, TrainConfig
from nanobackpack.errors import InputError, first_line
from nanobackpack.model.backpack import GPT, BackpackLM, NanoSenses
from nanobackpack.safe.files import display_path
from nanobackpack.safe.untrusted import check_parts
from nanobackpack.text.data import TokenData
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.optim import adapt_state
from nanobackpack.train.parallel import Processes

# What a run's checkpoint holds besides its model and its optimizer. Older files do not have all of it.
PARTS: dict[str, Any] = {
    "iter_num": int, "best_val_loss": float, "scaler": dict, "world_size": int | None, "config": dict | None,
    "tokenizer": str | None, "data": dict | None, "run": str | None,
}  # fmt: skip


@dataclass(frozen=True)
class Initial:
    """The model of a run, in training mode on the CPU, and where it comes from."""

    model: BackpackLM | GPT
    config: TrainConfig  # the settings, where those of the architecture are the model's
    state: dict[str, Any] | None = None  # the checkpoint of the run that goes on
    source: Path | None = None  # its file
    origin: str = ""  # of weights from elsewhere, for people
    notes: list[str] = field(default_factory=list)  # lines on what is not as one might expect


def initial_model(config: TrainConfig, data: TokenData) -> Initial:
    """Make the model that config.init_from asks for, with the vocabulary of `data`."""
    if config.init_from == "resume":
        return resume(config, data)
    # Without a tokenizer the ids are taken for GPT-2's, 50257 padded to 50304 as nanoBackpackLM does.
    size, used = (data.tokenizer.padded_size, data.tokenizer.vocab_size) if data.tokenizer else (50304, 50257)
    fresh = config.model_config(size, used if used < size else 0)
    if config.init_from == "scratch":
        return Initial(checkpoint.build_model(fresh).train(), config)
    # The weights of another model, whose ids must mean the same tokens.
    source = checkpoint.load_model(config.init_from)
    checkpoint.check_vocabulary(source, config.init_from, data)
    same = source.config.n_token == fresh.n_token
    return start_from(source, config, fresh.vocab_size if same else source.config.vocab_size)


# --- Going on with a run ----------------------------------------------------------------------


def resume(config: TrainConfig, data: TokenData) -> Initial:
    """Go on with the newest checkpoint in out_dir that is not damaged."""
    state, source, fallback = checkpoint.last_good_checkpoint(Path(config.out_dir))
    if state.get("format") != checkpoint.FORMAT:
        raise InputError("only checkpoints of nanobackpack can be resumed; --init_from=scratch starts anew")
    check_parts(state, PARTS, source)
    # The architecture is the checkpoint's, but for dropout and, if it is smaller, block_size.
    stored = dataclasses.replace(checkpoint.stored_config(state, source), dropout=config.dropout)
    config, follows = adopt_architecture(config, stored)
    check_same_run(state, stored, config, data, source)
    model = checkpoint.model_from(state | {"model_args": dataclasses.asdict(stored)}, source)
    if config.block_size < stored.block_size:
        whole, shorter = model, dataclasses.replace(model.config, block_size=config.block_size)
        model = checkpoint.build_model(shorter)
        copy_weights(whole, model)
        model.tokenizer = whole.tokenizer
    # All other settings are as they are now; say which are new.
    before, now = state.get("config") or {}, dataclasses.asdict(config)
    names = [name for name in now if name in before and name not in ("init_from", "out_dir")]
    changes = describe_changes(before, now, names)
    new = "settings that are new: " + ", ".join(changes) if changes else ""
    return Initial(model.train(), config, state, source, notes=[n for n in (fallback, follows, new) if n])


def check_same_run(
    state: dict[str, Any], stored: ModelConfig, config: TrainConfig, data: TokenData, source: Path
) -> None:
    """Refuse to go on with another architecture, vocabulary, optimizer or text; list old and new values."""
    # The settings on which the saved tensors depend.
    names = architecture_fields(config.model_name)
    if config.block_size < stored.block_size:  # then the last positions are dropped
        names.remove("block_size")
    before, now = dataclasses.asdict(stored), dataclasses.asdict(config)
    if data.tokenizer:
        names.append("vocab_size")
        before["vocab_size"], now["vocab_size"] = stored.n_token, data.tokenizer.vocab_size
    if "optimizer" in (settings := state.get("config") or {}):
        names.append("optimizer")
        before["optimizer"] = settings["optimizer"]
    differ = describe_changes(before, now, names)
    # The tokenizer. Its library may have come to write it in another way, so that its text is not all.
    theirs = state.get("tokenizer")
    if data.tokenizer and theirs != data.tokenizer.to_json():
        known = Tokenizer.from_json(theirs, f"the tokenizer in {source}") if theirs else None
        if difference := known.difference(data.tokenizer) if known else "it has none":
            differ.append(f"another tokenizer: {difference}")
    if differ:
        raise InputError(
            f"the checkpoint does not fit these settings ({', '.join(differ)}): "
            "give the settings it was trained with, or --init_from=scratch"
        )
    # The text.
    text, now = state.get("data"), data.fingerprint()
    if text is not None and (differ := describe_changes(text, now, sorted(text | now))):
        more = f" and {n} more" if (n := len(differ) - 3) > 0 else ""
        raise InputError(
            f"{display_path(data.folder)} is not the text of this run ({', '.join(differ[:3])}{more}): go on "
            f"with that, or start a new run with its weights, --init_from={config.out_dir} and another "
            "--out_dir"
        )


def describe_changes(before: dict[str, Any], now: dict[str, Any], names: Iterable[str]) -> list[str]:
    """List which of these values differ, each as "name old → new"."""
    return [
        f"{name:.40} {before.get(name)!s:.80} → {now.get(name)!s:.80}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def describe_world_size_change(state: dict[str, Any], config: TrainConfig, world_size: int) -> str:
    """Say what a run that goes on with another number of processes cannot keep; "" if on as many."""
    before, settings = state.get("world_size", 1), state.get("config") or {}
    if before == world_size:
        return ""
    counts = [before, settings.get("batch_size"), settings.get("gradient_accumulation_steps")]
    if not all(isinstance(n, int) and n > 0 for n in counts):
        raise InputError(f"{config.out_dir}/ckpt.pt: its world_size or its config is missing or damaged")
    then, now = math.prod(counts), config.batch_size * config.gradient_accumulation_steps * world_size
    if now != then:
        what = (
            f"a step sees {now} sequences, not {then}, so the pass through the text starts at another place: "
            f"keep {then} with --gradient_accumulation_steps"
        )
    elif config.dropout:
        what = "other units are dropped, so it goes on like the first run, but not exactly so"
    else:
        what = "sums are in another order, so it goes on as the first run but for rounding"
    return f"processes: {world_size} now, {before} before: {what}"


def restore(
    initial: Initial, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, processes: Processes
) -> tuple[int, float]:
    """Bring the rest of a run to where its checkpoint left it; return steps done and best validation loss."""
    state = initial.state
    if state is None:
        return 0, math.inf
    try:
        fitting = adapt_state(state["optimizer"], optimizer)
        if state["scaler"]:  # {} in a run that needed none, as its dtype was another
            scaler.load_state_dict(state["scaler"])
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        what = f"its optimizer does not fit this run's ({first_line(error)})"
        raise InputError(f"{initial.source}: {what}") from error
    processes.load_optimizer(initial.model, optimizer, fitting)
    return state["iter_num"], state["best_val_loss"]


# --- Starting from another model --------------------------------------------------------------


def start_from(source: BackpackLM | GPT, config: TrainConfig, vocab_size: int) -> Initial:
    """Make a new run's model with the weights of `source`.

    A Backpack made of a GPT gets vocab_size rows, if these are more: the padding of all our models. A GPT
    stays as it is: padding has logit 0, GPT-2's own are far below, and all probability would go there.
    """
    # Which architecture? That of the source, or a Backpack around it.
    name, target = config.init_from, dataclasses.replace(source.config, dropout=config.dropout)
    origin = f"weights of {name}"
    if source.config.model_name != config.model_name:
        if not isinstance(source, GPT):
            raise InputError(f"{name} is a Backpack, which cannot start a GPT: leave out --model_name=gpt2")
        target = backpack_around_gpt(target, config, vocab_size)
        origin = (
            f"embedding and context network of {name}, fresh senses; n_layer={target.n_layer} is its "
            f"{source.config.n_layer} blocks" + (" and the sense network" * (config.sense_network == "nano"))
        )
    # Settings at their defaults follow it, the others must agree; only block_size may be smaller.
    config, follows = adopt_architecture(config, target)
    differ = []
    for key in architecture_fields(target.model_name):
        wanted, has = getattr(config, key), getattr(target, key)
        if wanted != has and not (key == "block_size" and wanted < has):
            differ.append(f"{key}={wanted} (it has {has})")
    if differ:
        raise InputError(f"{name} does not fit {', '.join(differ)}: leave these settings out or adapt them")
    # Fresh weights, and over them those that the source has.
    model = checkpoint.build_model(dataclasses.replace(target, block_size=config.block_size))
    if target.model_name != source.config.model_name:
        shorten_senses(model, source)
    copy_weights(source, model)
    model.tokenizer = source.tokenizer
    return Initial(model.train(), config, origin=origin, notes=[follows] if follows else [])


def backpack_around_gpt(gpt: ModelConfig, config: TrainConfig, vocab_size: int) -> ModelConfig:
    """Return the architecture of the Backpack whose context network is that GPT."""
    return dataclasses.replace(
        gpt,
        model_name="backpack-lm",
        sense_network=config.sense_network,
        n_sense_vector=config.n_sense_vector,
        n_layer=gpt.n_layer + (config.sense_network == "nano"),
        vocab_size=max(gpt.vocab_size, vocab_size),
        vocab_used=gpt.n_token,
    )


@torch.no_grad()
def shorten_senses(model: BackpackLM | GPT, source: BackpackLM | GPT) -> None:
    """Make fresh senses shorter, as befits the embedding of `source`.

    They are made for a fresh embedding, of deviation 0.02. GPT-2's is seven times as long, and so would the
    first logits be: hopelessly sure of themselves. So the senses become that much shorter.
    """
    if isinstance(model, BackpackLM) and isinstance(model.senses, NanoSenses):
        model.senses.ln_2.weight.mul_(0.02 / source.wte.weight.std())


@torch.no_grad()
def copy_weights(source: BackpackLM | GPT, model: BackpackLM | GPT) -> None:
    """Fill model with what source has: the first positions, and zeros for ids that source does not have."""
    ours = model.state_dict()
    for name, t in source.state_dict().items():
        n = min(len(t), len(ours[name]))
        ours[name][:n] = t[:n]
        if name == "wte.weight":
            ours[name][n:] = 0


# --- Architectures ----------------------------------------------------------------------------


def adopt_architecture(config: TrainConfig, found: ModelConfig) -> tuple[TrainConfig, str]:
    """Give settings of the architecture that have their default values those of `found`; also return a note.

    Not model_name, which decides what becomes of a checkpoint, nor dropout, which may change.
    """
    free = [f.name for f in dataclasses.fields(Architecture) if getattr(config, f.name) == f.default]
    new = {name: getattr(found, name) for name in free if name not in ("model_name", "dropout")}
    new = {name: value for name, value in new.items() if value != getattr(config, name)}
    follows = ", ".join(f"{name}={value}" for name, value in new.items())
    return dataclasses.replace(config, **new), follows and f"as the checkpoint has it: {follows}"


def architecture_fields(model_name: str) -> list[str]:
    """Name the settings of the architecture on which the tensors of such a model depend."""
    unused = {"dropout", "n_sense_vector", "sense_network"} if model_name == "gpt2" else {"dropout"}
    return [f.name for f in dataclasses.fields(Architecture) if f.name not in unused]
