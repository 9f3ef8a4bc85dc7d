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
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from nanobackpack import __version__
from nanobackpack.config import Architecture, ModelConfig, TrainConfig
from nanobackpack.errors import InputError, first_line
from nanobackpack.model.backpack import GPT, BackpackLM, NanoSenses
from nanobackpack.runtime import generator
from nanobackpack.safe.files import display_path
from nanobackpack.safe.untrusted import check_parts
from nanobackpack.text.data import TokenData
from nanobackpack.text.meta import SPLITS
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.optim import adapt_state
from nanobackpack.train.parallel import Processes

# What a run's checkpoint holds besides its model and its optimizer. Older files do not have all of it.
PARTS: dict[str, Any] = {
    "iter_num": int, "best_val_loss": float, "scaler": dict, "world_size": int | None, "config": dict | None,
    "tokenizer": str | None, "data": dict | None, "run": str | None,
    "elapsed_s": int | None,
}  # fmt: skip

# Settings that may differ between the processes of a run: where things are on a machine and how it computes,
# and what rank 0 alone does. What they stand for is compared: the text, the weights, the type of numbers.
OWN = {
    "out_dir", "init_from", "overwrite", "dataset", "huge_pack_dir", "data_bin_dtype", "tokenizer_name",
    "device", "dtype", "compile", "timeout_s", "tracker", "wandb_log", "wandb_project",
    "wandb_run_name",
}  # fmt: skip


@dataclass(frozen=True)
class Initial:
    """The model of a run, in training mode on the CPU, and where it comes from."""

    model: BackpackLM | GPT
    config: TrainConfig  # the settings, where those of the architecture are the model's
    state: dict[str, Any] | None = None  # the checkpoint of the run that goes on
    source: Path | None = None  # its file
    origin: str = ""  # of weights from elsewhere, for people
    notes: tuple[str, ...] = ()  # what to tell the user before the run starts; "" is left out


def initial_model(config: TrainConfig, data: TokenData) -> Initial:
    """Make the model that config.init_from asks for, and check that `data` suits it."""
    if config.init_from == "resume":
        initial = from_checkpoint(config, data)
    else:
        # Without a tokenizer the ids are taken for GPT-2's: 50257, padded to 50304 as nanoBackpackLM does.
        tokenizer = data.tokenizer
        size, used = (tokenizer.padded_size, tokenizer.vocab_size) if tokenizer else (50304, 50257)
        fresh = config.model_config(size, used if used < size else 0)
        if config.init_from == "scratch":
            for split in SPLITS:  # before an absurd block_size takes memory
                data.check_length(split, config.block_size)
            initial = Initial(checkpoint.build_model(fresh).train(), config)
            initial.model.token_counts = data.token_counts()
        else:
            initial = from_other_model(config, fresh, data)
    # Each split must hold a window. Ids were compared with the tokenizer's when the data was opened; where
    # there is none, only the model says how many there are.
    for split in SPLITS:
        data.check_length(split, initial.config.block_size)
    if not data.tokenizer:
        data.check_ids(initial.model.config.vocab_size)
    return initial


def check_agreement(processes: Processes, initial: Initial, data: TokenData, dtype: torch.dtype) -> None:
    """Refuse to start unless all processes are about to do the same; name one that differs, and in what."""
    if not processes.is_distributed:
        return
    config, state, is_fresh = initial.config, initial.state, initial.config.init_from == "scratch"
    # Not all data has checksums, so look at a thousand tokens of each part too. Of the weights take the
    # embedding, but not of fresh ones, which two kinds of CPU may round differently.
    parts = [part for split in SPLITS for part in data.parts(split)]
    tokens = torch.cat([data.batch(part, 1000, 1, generator(0))[0] for part in parts])  # (1000 a part, 1)
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in OWN} | {
        "init_from": config.init_from if is_fresh or state else "other weights",
        "step": state["iter_num"] if state else 0,
        "run": state.get("run") if state else None,
        "weights": 0 if is_fresh else crc32(initial.model.wte.weight.detach().numpy().data),
        **data.fingerprint(),
        "text": crc32(tokens.numpy().data),
        "tokenizer": data.tokenizer and crc32(data.tokenizer.to_json().encode()),
        "dtype": dtype,
        "nanobackpack": __version__,
        "torch": torch.__version__,
    }
    every = processes.gather([values])
    # What most of them have is usual; of two, what rank 0 has.
    usual = {name: Counter(theirs.get(name) for theirs in every).most_common(1)[0][0] for name in values}
    for rank, theirs in enumerate(every):
        if differ := describe_changes(usual, theirs, usual):
            raise InputError(
                f"the process of RANK {rank} differs from the others (theirs → its own: "
                f"{', '.join(differ[:4])}): give all the same settings, data and versions"
            )


# --- Going on with a run ----------------------------------------------------------------------


def from_checkpoint(config: TrainConfig, data: TokenData) -> Initial:
    """Load the newest checkpoint in out_dir that is not damaged, to go on with its run."""
    state, source, fallback = checkpoint.last_good_checkpoint(Path(config.out_dir))
    if state.get("format") != checkpoint.FORMAT:
        raise InputError("only checkpoints of nanobackpack can be resumed; --init_from=scratch starts anew")
    check_parts(state, PARTS, source)
    # The architecture is the checkpoint's, but for dropout and, if it is smaller, block_size.
    stored = dataclasses.replace(checkpoint.stored_config(state, source), dropout=config.dropout)
    config, follows = adopt_architecture(config, stored)
    check_same_settings(state, stored, config, data, source)
    check_same_text(state, config, data)
    model = checkpoint.model_from(state | {"model_args": dataclasses.asdict(stored)}, source)
    # A smaller block_size drops the last positions.
    if config.block_size < stored.block_size:
        whole, shorter = model, dataclasses.replace(model.config, block_size=config.block_size)
        model = checkpoint.build_model(shorter)
        copy_model(whole, model)
    # All other settings are as they are now; say which are new.
    before, now = state.get("config") or {}, dataclasses.asdict(config)
    unsaid = ("init_from", "out_dir", "overwrite")
    names = [name for name in now if name in before and name not in unsaid]
    changes = ", ".join(describe_changes(before, now, names))
    new = changes and f"settings that are new: {changes}"
    return Initial(model.train(), config, state, source, notes=(fallback, follows, new))


def check_same_settings(
    state: dict[str, Any], stored: ModelConfig, config: TrainConfig, data: TokenData, source: Path
) -> None:
    """Refuse another architecture, vocabulary or optimizer than the checkpoint's; list old and new values."""
    # The saved tensors depend on the architecture, of which only block_size may be smaller, and on the
    # number of tokens.
    before, now = dataclasses.asdict(stored), dataclasses.asdict(config)
    names = architecture_fields(config.model_name)
    if config.block_size < stored.block_size:
        names.remove("block_size")
    if data.tokenizer:
        names.append("vocab_size")
        before["vocab_size"], now["vocab_size"] = stored.n_token, data.tokenizer.vocab_size
    # The saved averages depend on the optimizer, which older checkpoints do not name.
    if "optimizer" in (settings := state.get("config") or {}):
        names.append("optimizer")
        before["optimizer"] = settings["optimizer"]
    differ = describe_changes(before, now, names)
    # Two versions of the library may write the same tokenizer differently, so if the JSON differs, compare
    # the ids.
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


def check_same_text(state: dict[str, Any], config: TrainConfig, data: TokenData) -> None:
    """Refuse another text than the one the run was trained on, if its checkpoint says which that was."""
    before, now = state.get("data"), data.fingerprint()
    if before is not None and (differ := describe_changes(before, now, sorted(before | now))):
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
    """Say what changes in a run that goes on with another number of processes; "" if with as many."""
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


def load_optimizer_state(
    initial: Initial, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, processes: Processes
) -> None:
    """Bring the optimizer and the scaler to where the run's checkpoint left them."""
    assert initial.state
    try:
        fitting = adapt_state(initial.state["optimizer"], optimizer)
        if initial.state["scaler"]:  # {} in a run that needed none, as its dtype was another
            scaler.load_state_dict(initial.state["scaler"])
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        what = f"its optimizer does not fit this run's ({first_line(error)})"
        raise InputError(f"{initial.source}: {what}") from error
    processes.load_optimizer(initial.model, optimizer, fitting)


# --- Starting from another model --------------------------------------------------------------


def from_other_model(config: TrainConfig, fresh: ModelConfig, data: TokenData) -> Initial:
    """Load the weights of the model that init_from names, to start a new run with them.

    `fresh` is the model this run would make without. A Backpack made of a GPT gets as many rows, if these
    are more: the padding of all our models. A GPT gets no padding rows. Their logits would be 0 and GPT-2's
    real logits are far below 0, so the padding would take nearly all probability.
    """
    # Its ids must mean the same tokens as those of the data.
    source = checkpoint.load_model(config.init_from)
    checkpoint.check_vocabulary(source, config.init_from, data)
    # Which architecture? That of the source, or a Backpack around it.
    name, target = config.init_from, dataclasses.replace(source.config, dropout=config.dropout)
    origin = f"weights of {name}"
    if source.config.model_name != config.model_name:
        if not isinstance(source, GPT):
            raise InputError(f"{name} is a Backpack, which cannot start a GPT: leave out --model_name=gpt2")
        n_rows = fresh.vocab_size if source.config.n_token == fresh.n_token else source.config.vocab_size
        target = dataclasses.replace(
            target,
            model_name="backpack-lm",
            sense_network=config.sense_network,
            n_sense_vector=config.n_sense_vector,
            n_layer=target.n_layer + (config.sense_network == "nano"),
            vocab_size=max(target.vocab_size, n_rows),
            vocab_used=target.n_token,
        )
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
    copy_model(source, model)
    before, now = source.token_counts, data.token_counts()
    model.token_counts = None if before is None or now is None else before + now
    return Initial(model.train(), config, origin=origin, notes=(follows,))


@torch.no_grad()
def shorten_senses(model: BackpackLM | GPT, source: BackpackLM | GPT) -> None:
    """Make fresh senses as much shorter as the embedding of `source` is longer than a fresh one.

    A fresh embedding has a standard deviation of 0.02, and fresh senses are made for it. GPT-2's is seven
    times that, and so would the first logits be: nearly certain of a random token.
    """
    if isinstance(model, BackpackLM) and isinstance(model.senses, NanoSenses):
        model.senses.ln_2.weight.mul_(0.02 / source.wte.weight.std())


@torch.no_grad()
def copy_model(source: BackpackLM | GPT, model: BackpackLM | GPT) -> None:
    """Fill model with what source has: the first positions, and zeros for ids that source does not have."""
    model.tokenizer, model.token_counts = source.tokenizer, source.token_counts
    ours = model.state_dict()
    for name, t in source.state_dict().items():
        n = min(len(t), len(ours[name]))
        ours[name][:n] = t[:n]
        if name == "wte.weight":
            ours[name][n:] = 0


# --- Architectures ----------------------------------------------------------------------------


def adopt_architecture(config: TrainConfig, found: ModelConfig) -> tuple[TrainConfig, str]:
    """Take the settings of the architecture that are at their defaults from `found`; also return a note.

    Leave out model_name, which decides what is made of a checkpoint, and dropout, which may change.
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
