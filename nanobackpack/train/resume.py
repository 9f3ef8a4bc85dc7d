"""What a run starts from: fresh weights, its own last state, or another model.

Settings of the architecture that have their default values follow the checkpoint, even where these were
asked for, and a line says which; others must agree with it, but dropout may change, and a smaller block_size
drops positions. A run goes on with the settings of its training as they are now, and says which are new; its
data must be the same. A GPT that is to become a Backpack gives its embedding and its blocks, as the context
network; the senses start fresh.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from nanobackpack.config import Architecture, ModelConfig, TrainConfig
from nanobackpack.errors import InputError, short_repr
from nanobackpack.model.backpack import GPT, BackpackLM, NanoSenses
from nanobackpack.safe.files import display_path
from nanobackpack.text.data import TokenData
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint
from nanobackpack.train.checkpoint import last_good_checkpoint
from nanobackpack.train.optim import averages_of
from nanobackpack.train.parallel import Processes

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shape(model_name: str) -> list[str]:
    """The settings of the architecture that the tensors of such a model depend on; block_size too."""
    senses = {"n_sense_vector", "sense_network"} if model_name == "gpt2" else set()
    return [f.name for f in dataclasses.fields(Architecture) if f.name not in {"dropout", *senses}]


@dataclass(frozen=True)
class Start:
    """The model of a run, in training mode on the CPU, and what was found out on the way."""

    model: BackpackLM | GPT
    config: TrainConfig  # the settings, where those of the architecture are the model's
    resumed: dict[str, Any] | None = None  # the checkpoint, if its run goes on
    note: str = ""  # where the weights come from, for people
    source: Path | None = None  # the checkpoint's file
    said: list[str] = field(default_factory=list)  # lines on what is not as it was


def start(config: TrainConfig, data: TokenData) -> Start:
    """What config.init_from asks for, for the vocabulary of `data`. Fresh weights come from torch's seed.

    Raises: InputError if the checkpoint cannot be used, or does not fit the settings or the data.
    """
    if config.init_from == "resume":
        return resume(config, data)
    # Without a tokenizer the ids are taken for GPT-2's, 50257 padded to 50304 as nanoBackpackLM does.
    size, used = (data.tokenizer.padded_size, data.tokenizer.vocab_size) if data.tokenizer else (50304, 50257)
    fresh = config.model_config(size, used if used < size else 0)
    if config.init_from == "scratch":
        return Start(checkpoint.build_model(fresh).train(), config)
    source = checkpoint.load_model(config.init_from)
    checkpoint.check_vocabulary(source, config.init_from, data)
    same = source.config.n_token == fresh.n_token
    return start_from(source, config, fresh.vocab_size if same else source.config.vocab_size)


def resume(config: TrainConfig, data: TokenData) -> Start:
    """The last whole state of a run. Raises: InputError if there is none, or it does not fit."""
    resumed, source, fallback = last_good_checkpoint(Path(config.out_dir))
    if resumed.get("format") != checkpoint.FORMAT:
        raise InputError("only checkpoints of nanobackpack can be resumed; --init_from=scratch starts anew")
    check_state(resumed, source)
    found = dataclasses.asdict(checkpoint.stored_config(resumed, source))
    config, follows = following(config, found)
    check_same(resumed, found, config, data, source)
    model = checkpoint.model_from(resumed | {"model_args": found | {"dropout": config.dropout}}, source)
    if config.block_size < model.config.block_size:
        whole, model = (
            model,
            checkpoint.build_model(dataclasses.replace(model.config, block_size=config.block_size)),
        )
        copy_weights(whole, model)
        model.tokenizer = whole.tokenizer
    said = [line for line in (fallback, follows, changed(resumed.get("config"), config)) if line]
    return Start(model.train(), config, resumed, source=source, said=said)


def check_state(state: dict[str, Any], source: Path) -> None:
    """Raises: InputError naming the first part of a run's state that is missing, or not of its type.

    Not its model and its optimizer, which are looked at where they are taken in.
    """

    def flat(values: Any) -> bool:
        """Whether it is a dict of names and plain values; or None, in older files."""
        return values is None or (
            isinstance(values, dict) and all(type(k) is str and plain(v) for k, v in values.items())
        )

    def plain(value: Any) -> bool:
        return type(value) in (bool, float, str, NoneType) or (type(value) is int and abs(value) < 1 << 63)

    def counts(value: Any) -> bool:
        return type(value) is int and plain(value) and value >= 0

    best = state.get("best_val_loss")
    valid = {
        "iter_num": counts(state.get("iter_num")),
        "best_val_loss": type(best) is float and not math.isnan(best),
        "world_size": counts(state.get("world_size", 1)),
        "tokenizer": isinstance(state.get("tokenizer"), str | None),
        "run": isinstance(state.get("run"), str | None),
        "scaler": isinstance(state.get("scaler"), dict) and flat(state["scaler"]),
        "config": flat(state.get("config")),
        "data": flat(state.get("data")),
    }
    if wrong := [name for name, ok in valid.items() if not ok]:
        raise InputError(f"{source}: its {wrong[0]} is missing or damaged")


def changed(old: object, config: TrainConfig) -> str:
    """A line that lists the settings a run goes on with which are not those it had; "" if all are."""
    before = old if isinstance(old, dict) else {}
    now = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("init_from", "out_dir")}
    differ = [f"{k} {short_repr(before[k])} → {v}" for k, v in now.items() if k in before and before[k] != v]
    return "settings that are new: " + ", ".join(differ) if differ else ""


def restore(
    resumed: dict[str, Any],
    model: BackpackLM | GPT,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    processes: Processes,
    source: Path,
) -> tuple[int, float]:
    """Bring the rest of a run to where a checkpoint left it; returns steps done and best validation loss.

    Raises: InputError, naming `source`, if these are damaged or those of another model or optimizer.
    """
    try:
        state = fitted(resumed["optimizer"], optimizer)
        processes.load_optimizer(model, optimizer, state)
        if resumed["scaler"]:  # {} in a run that needed none, as its dtype was another
            scaler.load_state_dict(resumed["scaler"])
    except (LookupError, ValueError, TypeError, AttributeError) as e:
        raise InputError(f"{source}: its optimizer does not fit this run's ({str(e)[:200]})") from e
    return resumed["iter_num"], resumed["best_val_loss"]


def fitted(state: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state for the one of this run: with the rates and decays of its settings, and
    without the positions that a smaller block_size drops.

    Raises one of many exceptions unless all parameters have their own numbers in `state`, or none.
    """
    own = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups, held = state["param_groups"], state["state"]
    numbers = [i for group in groups for i in group["params"]]
    if not all(type(i) is int for i in numbers) or numbers != list(range(len(parameters))):
        raise ValueError("it has other parameters")
    if not isinstance(held, dict) or (held and held.keys() != set(numbers)):
        raise ValueError("it has the averages of other parameters")
    averages = [a for group in own for a in [averages_of(group)] * len(group["params"])]
    for i, names in enumerate(averages if held else []):
        if held[i].keys() != names:
            raise ValueError(f"parameter {i} has {short_repr(list(held[i]))} where {sorted(names)} belong")
    if not all(type(group["lr"]) is float and math.isfinite(group["lr"]) for group in groups):
        raise ValueError("a learning rate is not a finite number")

    def cut(name: str, value: Any, shape: torch.Size) -> Tensor:
        if not isinstance(value, Tensor) or value.dtype not in _REAL:
            raise ValueError(f"{name} is not a tensor of real numbers")
        shape = torch.Size() if name == "step" else shape
        value = value[: shape[0]] if shape else value  # (T, D), or all of another parameter
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)} where {tuple(shape)} belongs")
        if name == "step" and not 0 <= value.item() < math.inf:
            raise ValueError(f"step is {value.item()}")
        return value

    return {
        "state": {
            i: {k: cut(k, v, parameters[i].shape) for k, v in averages.items()}
            for i, averages in held.items()
        },
        "param_groups": [o | {"lr": old["lr"]} for o, old in zip(own, groups, strict=True)],
    }


def following(config: TrainConfig, found: dict[str, Any]) -> tuple[TrainConfig, str]:
    """The settings, those of the architecture that have their default values as `found` has them; and a line
    on those that are not as they were, "" if all are.

    Not model_name, which decides what becomes of a checkpoint, nor dropout, which may change.
    """
    names = {f.name for f in dataclasses.fields(Architecture) if getattr(config, f.name) == f.default}
    names -= {"model_name", "dropout"}
    new = {k: v for k, v in found.items() if k in names and v != getattr(config, k)}
    follows = ", ".join(f"{name}={value}" for name, value in new.items())
    return dataclasses.replace(config, **new), follows and f"as the checkpoint has it: {follows}"


def start_from(source: BackpackLM | GPT, config: TrainConfig, vocab_size: int) -> Start:
    """A new run's model with the weights of `source`.

    A Backpack made of a GPT gets vocab_size rows, if these are more: the padding of all our models. A GPT
    stays as it is: padding has logit 0, GPT-2's own are far below, and all probability would go there.
    Raises: InputError naming the settings that do not fit.
    """
    name, target = config.init_from, dataclasses.replace(source.config, dropout=config.dropout)
    note = f"weights of {name}"
    if source.config.model_name != config.model_name:
        if not isinstance(source, GPT):
            raise InputError(f"{name} is a Backpack, which cannot start a GPT: leave out --model_name=gpt2")
        target = around(source.config, config, vocab_size)
        note = (
            f"embedding and context network of {name}, fresh senses; n_layer={target.n_layer} is its "
            f"{source.config.n_layer} blocks" + (" and the sense network" * (config.sense_network == "nano"))
        )
    config, follows = following(config, dataclasses.asdict(target))
    differ = []
    for key in shape(target.model_name):
        wanted, has = getattr(config, key), getattr(target, key)
        if wanted != has and not (key == "block_size" and wanted < has):
            differ.append(f"{key}={wanted} (it has {has})")
    if differ:
        raise InputError(f"{name} does not fit {', '.join(differ)}: leave these settings out or adapt them")
    model = checkpoint.build_model(dataclasses.replace(target, block_size=config.block_size))
    if target.model_name != source.config.model_name:
        shorten_senses(model, source)
    copy_weights(source, model)
    model.tokenizer = source.tokenizer
    return Start(model.train(), config, note=note, said=[follows] if follows else [])


def around(gpt: ModelConfig, config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The Backpack whose context network is that GPT."""
    return dataclasses.replace(
        gpt,
        model_name="backpack-lm",
        sense_network=config.sense_network,
        n_sense_vector=config.n_sense_vector,
        n_layer=gpt.n_layer + (config.sense_network == "nano"),
        vocab_size=max(gpt.vocab_size, vocab_size),
        vocab_used=gpt.n_token,
        dropout=config.dropout,
    )


@torch.no_grad()
def shorten_senses(model: BackpackLM | GPT, source: BackpackLM | GPT) -> None:
    """Fresh senses are made for a fresh embedding, of deviation 0.02. GPT-2's is seven times as long, and
    so would the first logits be: hopelessly sure of themselves. So the senses become that much shorter."""
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


def check_same(
    old: dict[str, Any], before: dict[str, Any], config: TrainConfig, data: TokenData, source: Path
) -> None:
    """Refuse to resume a run `old`, whose architecture was `before`, with a model of another shape, another
    tokenizer, optimizer or text.

    Raises: InputError listing old and new values.
    """
    tokenizer = data.tokenizer
    after = {key: getattr(config, key) for key in shape(config.model_name)}
    if tokenizer:
        after |= {"vocab_size": tokenizer.vocab_size}
        before = before | {"vocab_size": before["vocab_used"] or before["vocab_size"]}
    settings = old.get("config")
    if isinstance(settings, dict) and "optimizer" in settings:
        before, after = before | {"optimizer": settings["optimizer"]}, after | {"optimizer": config.optimizer}
    differ = [f"{k} {short_repr(before[k])} → {v}" for k, v in after.items() if before[k] != v]
    if config.block_size < before["block_size"]:  # then the last positions are dropped
        differ = [d for d in differ if not d.startswith("block_size ")]
    theirs = old.get("tokenizer")
    if tokenizer and theirs != tokenizer.to_json():  # the library may also have come to write it otherwise
        known = Tokenizer.from_json(theirs, f"the tokenizer in {source}") if theirs else None
        if difference := known.difference(tokenizer) if known else "it has none":
            differ.append(f"another tokenizer: {difference}")
    if differ:
        raise InputError(
            f"the checkpoint does not fit these settings ({', '.join(differ)}): "
            "give the settings it was trained with, or --init_from=scratch"
        )
    text, now = old.get("data"), data.fingerprint()
    if isinstance(text, dict) and text != now:
        differ = [
            f"{k:.40} {text.get(k)!s:.40} → {now.get(k)!s:.40}"
            for k in sorted(text | now)
            if text.get(k) != now.get(k)
        ]
        more = f" and {n} more" if (n := len(differ) - 3) > 0 else ""
        raise InputError(
            f"{display_path(data.folder)} is not the text of this run "
            f"({', '.join(differ[:3])}{more}): go on with "
            f"that, or start a new run with its weights, --init_from={config.out_dir} and another --out_dir"
        )
