"""Settings: what a model is made of, how it is trained, how it is read.

    config = TrainConfig(n_layer=6, n_embd=384, n_head=6)    # frozen; wrong values raise InputError
    config.model_config(vocab_size=65).n_block               # 5

Dataclasses with a line of help per field; `cli.py` turns them into flags and `--help`. Names and defaults are
nanoBackpackLM's, except where its default fails on a plain machine (device, dtype and compile are "auto") or
is of another run (its names for trackers).
Nothing here knows about files, devices or the command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nanobackpack.errors import InputError, short_repr


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all settings have in common: their values are checked when they are made."""

    def __post_init__(self) -> None:
        check_types(self)
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class Architecture(Settings):
    """The shape of the network: what `ModelConfig` and `TrainConfig` have in common."""

    model_name: Literal["backpack-lm", "gpt2"] = "backpack-lm"
    """backpack-lm: the Backpack; gpt2: the Transformer baseline, whatever its size and weights."""
    n_layer: int = 12
    """Layers; the nano Backpack has n_layer - 1 Transformer blocks, its sense network is the other."""
    n_head: int = 12
    """Attention heads of each block; must divide n_embd."""
    n_embd: int = 768
    """Width D of embeddings, blocks and sense vectors."""
    block_size: int = 1024
    """Longest context, in tokens."""
    n_sense_vector: int = 16
    """Sense vectors K of each token; must divide n_embd."""
    sense_network: Literal["nano", "paper"] = "nano"
    """nano: nanoBackpackLM's sense network; paper: that of the Backpack paper (backpack-gpt2)."""
    context_network: Literal["gpt2", "modern"] = "gpt2"
    """gpt2: the originals'; modern: rotary positions, normalised queries and keys, and with Muon an embedding
    that learns 4 times as fast, for a lower loss after as many steps."""
    dropout: float = 0.0
    """Dropout probability: 0 for pretraining, 0.1 to 0.2 on small data."""
    bias: bool = False
    """Biases in linear layers and LayerNorms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_backpack = self.model_name == "backpack-lm"
        at_least(self, "n_layer", 1 if is_backpack else 0)
        for divisor in ("n_head", "n_sense_vector") if is_backpack else ("n_head",):
            d, n = getattr(self, divisor), self.n_embd
            if n % d:
                choices = ", ".join(str(i) for i in range(1, min(n, 64) + 1) if n % i == 0)
                raise InputError(
                    f"{divisor}={short_repr(d)} does not divide n_embd={short_repr(n)}: take a divisor "
                    f"such as {choices}"
                )
            if self.is_modern and n // d % 2:
                raise InputError(
                    f"context_network='modern' turns numbers in pairs, and {n} / {d}, n_embd / {divisor}, is "
                    f"odd: take another {divisor}, or --context_network=gpt2"
                )

    @property
    def is_modern(self) -> bool:
        return self.context_network == "modern"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """All that is needed to build a model; stored in each checkpoint."""

    vocab_size: int = 50304
    """Rows V of the embedding, padding included."""
    vocab_used: int = 0
    """Ids below this one are real tokens, the rest padding that is never listed or sampled (0: all)."""
    sense_table: bool = False
    """Senses are a table of V·K vectors in place of a network, as nanobackpack.control.bake makes them."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Divide the attention scores of block i by i + 1, as backpack-gpt2 does."""
    sense_intermediate_scale: int = 4
    """Width of the paper's last sense MLP, in D; 1 in the smaller models of the paper's table 8."""
    alpha_dropout: bool = False
    """Dropout on α with the paper's sense network too, as Levanter's Backpacks have; nano always has it."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """tanh: GPT-2's approximation; exact: as nanoGPT's own since May 2023."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_used > self.vocab_size:
            raise out_of_range("vocab_used", self.vocab_used, f"at most vocab_size={self.vocab_size}")

    @property
    def n_block(self) -> int:
        """Transformer blocks: nanoBackpackLM counts the sense network as one layer."""
        nano = self.model_name == "backpack-lm" and self.sense_network == "nano"
        return self.n_layer - 1 if nano else self.n_layer

    @property
    def n_token(self) -> int:
        """Number of real tokens, padding excluded."""
        return self.vocab_used or self.vocab_size


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Architecture):
    """A training run."""

    out_dir: str = "out"
    """Folder for checkpoints, metrics.jsonl, config.json and loss.png."""
    init_from: str = "scratch"
    """scratch: new weights; resume: go on exactly where out_dir/ckpt.pt stopped; or the weights of gpt2,
    gpt2-medium, gpt2-large, gpt2-xl, backpack-small (the paper's, where no folder is called so), of a run's
    folder, a checkpoint, a model folder, or a hub's name."""
    overwrite: bool = False
    """Replace the run that is in out_dir; False: a new run moves it to out_dir/older-1, older-2, ..."""
    eval_interval: int = 2000
    """Evaluate and save every so many steps."""
    eval_iters: int = 200
    """Batches per split in an evaluation; the same windows each time."""
    eval_only: bool = False
    """Evaluate once, train nothing."""
    log_interval: int = 1
    """Steps between lines of the log."""
    always_save_checkpoint: bool = True
    """Whoever opens out_dir gets its last state (True) or its best one (False); both are kept."""
    backup_checkpoint_step: int = 5000
    """Keep a copy ckpt_STEP.pt every so many steps (0: never)."""
    keep_last: int = 2
    """Checkpoints to keep: ckpt.pt and those before it, ckpt_prev.pt, ..., used if ckpt.pt is damaged."""

    dataset: str = "openwebtext"
    """Folder under data/, or the path of one: with train.bin and val.bin, or with several languages."""
    data_bin_dtype: Literal["auto", "uint16", "uint32"] = "auto"
    """Type of the ids in the .bin files; auto: what meta.json says, else uint16, of languages uint32."""
    tokenizer_name: str = "auto"
    """auto: the one stored with the data. Another must agree with it; it is used where none is stored."""
    huge_pack_dir: str = ""
    """Folder with LANGUAGE/LANGUAGE_0.bin, ...: several languages in many files; used instead of dataset."""
    xlm_alpha: float = 0.3
    """A language is drawn with probability ∝ its share of the tokens to this power, up to 1; 0: all alike."""

    batch_size: int = 12
    """Sequences in a micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per step in each process; their gradients are averaged."""
    recompute: bool = False
    """Compute each block again in the backward pass: far less memory, a quarter slower."""
    max_iters: int = 600000
    """Optimizer steps in all."""
    max_minutes: float = 0.0
    """Minutes of training in all: then the run ends whole (0: no limit). If that is short, its learning rates
    follow the clock, and no other run repeats it."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon: orthogonal steps for matrices, AdamW for the rest; learns from fewer steps."""
    muon_lr_factor: float = 3.0
    """With muon all learning rates are multiplied by this, so that one learning_rate suits both."""
    learning_rate: float = 6e-4
    """Peak learning rate."""
    decay_lr: bool = True
    """Warm up, then decay to min_lr; False: constant."""
    lr_schedule: Literal["auto", "cosine", "linear"] = "auto"
    """Shape of the decay; auto: linear with muon, else cosine."""
    warmup_iters: int = 2000
    """Steps of linear warm-up."""
    lr_decay_iters: int = 600000
    """Step at which the decay reaches min_lr."""
    min_lr: float = 6e-5
    """Learning rate at the end of the decay."""
    weight_decay: float = 0.1
    """Weight decay, on the weights of linear layers only."""
    beta1: float = 0.9
    """AdamW decay of the mean of gradients."""
    beta2: float = 0.95
    """AdamW decay of the mean of squared gradients."""
    grad_clip: float = 1.0
    """Largest gradient norm (0: no clipping)."""

    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; auto: bfloat16 on GPUs that have it, else float32."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the model; auto: on CUDA where a compiler is found."""
    distributed: Literal["ddp", "fsdp"] = "ddp"
    """With several processes each keeps the whole model (ddp) or a slice of it (fsdp): docs/scaling.md."""
    backend: Literal["nccl", "gloo"] = "nccl"
    """Communication between GPUs; CPUs use gloo either way."""
    timeout_s: int = 600
    """With several processes: seconds to wait for one that hangs; one that ends is noticed at once."""
    seed: int = 1337
    """Start of all randomness."""

    tracker: Literal["auto", "wandb", "trackio", "tensorboard"] = "auto"
    """Report to a tracker too (pip install 'nanobackpack[NAME]'); auto: to wandb with wandb_log=True."""
    wandb_log: bool = False
    """Log to Weights & Biases too (pip install 'nanobackpack[wandb]')."""
    wandb_project: str = "nanobackpack"
    """Project name there, and in Trackio."""
    wandb_run_name: str = "auto"
    """Run name there; auto: those of the data set and the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out_dir != self.out_dir.encode(errors="replace").decode():
            raise InputError(
                f"out_dir={short_repr(self.out_dir)} is no UTF-8, which torch cannot open: rename it"
            )
        # Settings that contradict each other, and the way out.
        if self.decay_lr and self.min_lr > self.learning_rate:
            raise InputError(
                f"min_lr={self.min_lr:g} is above learning_rate={self.learning_rate:g}: "
                "lower --min_lr, or keep the rate constant with --decay_lr=False"
            )
        if self.decay_lr and self.warmup_iters > self.lr_decay_iters:
            raise InputError(
                f"warmup_iters={self.warmup_iters} is above lr_decay_iters={self.lr_decay_iters}: "
                "the decay would end before the warm-up; lower --warmup_iters"
            )
        if self.distributed == "fsdp" and self.dtype == "float16":
            raise InputError(
                "dtype='float16' scales its gradients, which distributed='fsdp' does not support here: "
                "take --dtype=bfloat16 or --distributed=ddp"
            )

    @property
    def tracker_name(self) -> str:
        """The tracker that the settings ask for, "" for none; a named one goes before wandb_log."""
        return self.tracker if self.tracker != "auto" else "wandb" if self.wandb_log else ""

    def model_config(self, vocab_size: int, vocab_used: int = 0) -> ModelConfig:
        """Return the settings of the model that this run trains, for a vocabulary of that size."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(Architecture)}
        return ModelConfig(vocab_size=vocab_size, vocab_used=vocab_used, **shared)


Special = Literal["auto", "allow", "plain"]


@dataclass(frozen=True, kw_only=True)
class LoadConfig(Settings):
    """Which model to open and where to run it: shared by every program that reads a model."""

    init_from: str = "resume"
    """resume: the model in out_dir; words-small, which comes with the package; or a checkpoint, a run's
    folder, a model folder, or a hub's name."""
    out_dir: str = "out"
    """Folder of a training run."""
    seed: int = 1337
    """Start of all randomness."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; auto: bfloat16 on GPUs that have it, else float32."""
    compile: Literal["auto"] | bool = "auto"
    """No effect: only training is compiled. nanoBackpackLM's commands give it."""
    tokenizer_name: str = "auto"
    """auto: the one stored in the checkpoint or beside its data; else a name, a file or a folder."""

    @property
    def model_path(self) -> str:
        return self.out_dir if self.init_from == "resume" else self.init_from


@dataclass(frozen=True, kw_only=True)
class SampleConfig(LoadConfig):
    """Text from a model."""

    start: str = "\n"
    """The prompt, or FILE:prompt.txt to read it from a file. A line end, the default, is the beginning of a
    document if training had documents, and the most frequent token if it had no line ends."""
    prompts: str = ""
    """In place of start a file of prompts, one a line, or JSON lines (.jsonl) with `prompt`."""
    special: Special = "auto"
    """allow: names in a prompt such as <|endoftext|> are these special tokens; plain: they are text; auto:
    allow in what is typed, plain in files."""
    num_samples: int = 10
    """Number of samples."""
    max_new_tokens: int = 500
    """Tokens to add to the prompt in each sample, at most."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample, which is cut before them (a shell writes a line end as $'\\n')."""
    ignore_eos: bool = False
    """Go on where a document ends; the mark at its end is printed."""
    temperature: float = 0.8
    """1: the model's own distribution, below 1: more cautious, 0: always the likeliest token."""
    top_k: int = 200
    """Choose among the k likeliest tokens (0: all)."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Choose among tokens that are at least this many times as likely as the likeliest (0: all)."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that the text has already are less likely; 1.1 to 1.3 is usual."""
    restart: bool = False
    """When the context is full go on from its later half: many times faster, a little worse."""
    edits: str = ""
    """A file of edits (nanobackpack.control.save) to sample under."""
    newlines: Literal["lf", "keep"] = "lf"
    """Of the prompt: lf: the line ends of Windows and old Macs become \\n; keep: they stay."""
    normalize: Literal["none", "nfc"] = "none"
    """Of the prompt: nfc: a letter and its accents become one character (Unicode's NFC)."""
    json: str = ""
    """Also write the samples to this file: prompt, text, ids, log-probabilities of these, what ended it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "num_samples", 1)
        if self.prompts and self.start != SampleConfig.start:
            raise InputError("start and prompts are both given: leave one out")
        if not all(self.stop):
            raise InputError("stop holds an empty text: give at least one character")


@dataclass(frozen=True, kw_only=True)
class ReadConfig(LoadConfig):
    """What the programs that read or evaluate a model share."""

    bos: Literal["auto"] | bool = "auto"
    """Begin prompts with the token that begins a document; auto: if there is one, as sample.py does."""
    json: str = ""
    """Also write the result to this file as JSON."""


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(ReadConfig):
    """What the programs that analyse a model share."""

    dtype: Literal["auto", "float32"] = "auto"
    """Type of the matrix products; analysis is in float32, whatever the device."""


def changed_settings(config: Any) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by name."""
    fields = dataclasses.fields(config)
    return {f.name: value for f in fields if (value := getattr(config, f.name)) != f.default}


# --- Checks: each raises one clear line -------------------------------------------------------

# The numbers that a setting of a name may be, in every program: (in words, the test, the names).
# NaN passes no test.
BOUNDS: list[tuple[str, Callable[[float], bool], str]] = [
    ("from -1 up", lambda x: -1 <= x < math.inf, "sense"),
    (
        "a number from 0 up",
        lambda x: 0 <= x < math.inf,
        "vocab_used backup_checkpoint_step max_iters warmup_iters seed learning_rate muon_lr_factor "
        "max_minutes min_lr weight_decay grad_clip temperature top_k limit",
    ),
    (
        "a number from 1 up",
        lambda x: 1 <= x < math.inf,
        "n_head n_embd block_size n_sense_vector vocab_size eval_interval log_interval batch_size "
        "lr_decay_iters k sense_intermediate_scale",
    ),
    # More than these would take for ever.
    ("a number from 0 up to 1,000,000", lambda x: 0 <= x <= 10**6, "num_samples batches shards"),
    (
        "a number from 1 up to 1,000,000",
        lambda x: 1 <= x <= 10**6,
        "eval_iters gradient_accumulation_steps keep_last timeout_s max_new_tokens max_iter length",
    ),
    ("a number from 0 up to 1,000", lambda x: 0 <= x <= 1000, "n_layer num_proc"),
    ("from 0 up to 1", lambda x: 0 <= x <= 1, "xlm_alpha min_p"),
    ("from 0.01 up to 100", lambda x: 0.01 <= x <= 100, "repetition_penalty"),
    ("from 0 to below 1", lambda x: 0 <= x < 1, "dropout beta1 beta2"),
    ("above 0 and up to 1", lambda x: 0 < x <= 1, "top_p"),
]


def check_bounds(config: Any) -> None:
    """Refuse numbers out of range."""
    for allowed, is_allowed, names in BOUNDS:
        for name in names.split():
            value = getattr(config, name, None)
            if isinstance(value, (int, float)) and not is_allowed(value):
                raise out_of_range(name, value, allowed)
    for name, value in vars(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise out_of_range(name, value, "a finite number")
            if isinstance(number, int) and abs(number) >= 1 << 63:
                raise out_of_range(name, value, "below 9.2e18")


def at_least(config: Any, name: str, low: float) -> None:
    """Refuse a number below what this program allows, where that is more than BOUNDS ask for."""
    value = getattr(config, name)
    if not low <= value < math.inf:
        raise out_of_range(name, value, f"a number from {low} up")


def out_of_range(name: str, value: object, allowed: str) -> InputError:
    return InputError(f"{name}={short_repr(value)} is out of range: it must be {allowed}")


def check_types(config: Any) -> None:
    """Refuse values of the wrong type (config files are Python and may hold anything)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not matches_type(value, hint):
            raise wrong_type(name, short_repr(value), hint)
        if hint is float:  # an int is fine for a float
            try:
                object.__setattr__(config, name, float(value))
            except OverflowError:
                raise InputError(f"{name} is too large: it must be a number below 1.8e308") from None


def wrong_type(name: str, text: str, hint: Any) -> InputError:
    """Say what a setting may be: one of a few values, or any value of a type."""
    wrong = "" if _choices(hint) else "has the wrong type: it "
    return InputError(f"{name}={text} {wrong}must be {describe_type(hint)}")


def matches_type(value: object, hint: Any) -> bool:
    """Tell whether a value may stand in a field of that type; True and False are no numbers."""
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if get_origin(hint) in (tuple, list):
        kind, part = get_origin(hint), get_args(hint)[0]
        return isinstance(value, kind) and all(matches_type(v, part) for v in value)
    if get_origin(hint) is dict:
        parts = get_args(hint)  # of keys and of values
        return isinstance(value, dict) and all(
            matches_type(v, part) for pair in value.items() for v, part in zip(pair, parts, strict=True)
        )
    if get_origin(hint) is not None:  # a union
        return any(matches_type(value, part) for part in get_args(hint))
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def describe_type(hint: Any) -> str:
    """Put a type into words, for error messages."""
    words = {int: "a whole number", float: "a number", str: "text"}
    if choices := _choices(hint):
        *most, last = choices
        return f"{', '.join(most)} or {last}" if most else last
    if get_origin(hint) is tuple:
        return "a list of " + describe_type(get_args(hint)[0])
    if get_origin(hint) is not None:
        return " or ".join(describe_type(part) for part in get_args(hint))
    return words[hint]


def _choices(hint: Any) -> list[str]:
    """List the values of a type that has a few; [] for others."""
    if hint is bool:
        return ["True", "False"]
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    if get_origin(hint) not in (Union, UnionType):
        return []
    parts = [_choices(part) for part in get_args(hint)]
    return [choice for part in parts for choice in part] if all(parts) else []
