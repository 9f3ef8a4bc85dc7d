"""Settings and the command line: flags, config files, verbs, and errors of one line with exit status 2."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanobackpack import __version__, cli, commands
from nanobackpack.commands.sample import main as sample_main
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.config import LoadConfig, ModelConfig, SampleConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint, trainer

ROOT = Path(__file__).resolve().parents[1]
PRINTED, WRITTEN = cli.COMPLETION

LEGACY_TRAIN = """
    out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint backup_checkpoint_step
    init_from wandb_log wandb_project wandb_run_name dataset huge_pack_dir xlm_alpha
    gradient_accumulation_steps batch_size block_size data_bin_dtype model_name n_layer n_head n_embd
    dropout bias n_sense_vector learning_rate max_iters weight_decay beta1 beta2 grad_clip decay_lr
    warmup_iters lr_decay_iters min_lr backend device dtype compile tokenizer_name seed
"""
LEGACY_SAMPLE = """
    init_from out_dir start num_samples max_new_tokens temperature top_k seed device dtype compile
    tokenizer_name
"""
LEGACY_DEFAULTS = {
    "out_dir": "out", "eval_interval": 2000, "log_interval": 1, "eval_iters": 200, "init_from": "scratch",
    "batch_size": 12, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.0,
    "bias": False, "n_sense_vector": 16, "learning_rate": 6e-4, "max_iters": 600000, "weight_decay": 0.1,
    "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 2000,
    "lr_decay_iters": 600000, "min_lr": 6e-5, "seed": 1337, "model_name": "backpack-lm",
    "device": "auto", "dtype": "auto", "compile": "auto",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers, checked by nobody."""

    shift: int = 0
    """One."""
    scale: float = 0.0
    """Another."""
    shares: tuple[float, ...] = ()
    """Several."""


def train(*argv: str | Path) -> TrainConfig:
    return cli.parse(TrainConfig, [str(a) for a in argv])


def sample(*argv: str) -> SampleConfig:
    return cli.parse(SampleConfig, argv)


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(*argv: str | Path, kind: type = TrainConfig) -> str:
    """The message for bad arguments."""
    with pytest.raises(InputError) as error:
        cli.parse(kind, [str(a) for a in argv])
    return str(error.value)


def ending(
    capsys: pytest.CaptureFixture[str], call: Callable[..., object], *args: Any
) -> tuple[Any, str, str]:
    """Exit status, output and errors of a program."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    return stop.value.code or 0, *capsys.readouterr()


def exit_of(
    argv: list[str], capsys: pytest.CaptureFixture[str], kind: type = TrainConfig, main: Any = None
) -> str:
    """The error line of a run with these arguments; by default of a main that must not be reached."""

    def accepted(config: object) -> int:
        raise AssertionError(f"accepted: {config}")

    status, out, err = ending(capsys, cli.run, main or accepted, kind, argv)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err


# --- Names and defaults -----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "names"), [(TrainConfig, LEGACY_TRAIN), (SampleConfig, LEGACY_SAMPLE)])
def test_every_legacy_name_is_a_setting(kind: type, names: str) -> None:
    assert set(names.split()) <= {f.name for f in dataclasses.fields(kind)}
    for name in names.split():  # and a flag: its own default is accepted
        value = getattr(kind(), name)
        assert getattr(cli.parse(kind, [f"--{name}={value}"]), name) == value


def test_defaults_are_the_legacy_ones() -> None:
    config = train()
    assert config == TrainConfig()
    assert {name: getattr(config, name) for name in LEGACY_DEFAULTS} == LEGACY_DEFAULTS
    c = sample()
    assert (c.num_samples, c.max_new_tokens, c.temperature, c.top_k) == (10, 500, 0.8, 200)
    assert (c.start, c.seed, c.init_from, c.out_dir) == ("\n", 1337, "resume", "out")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc]


# --- Flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--n_layer=3"], "n_layer", 3),
        (["--n-layer", "3"], "n_layer", 3),
        (["--lr-decay_iters=7000"], "lr_decay_iters", 7000),
        (["--dropout=0"], "dropout", 0.0),
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--compile=False"], "compile", False),
        (["--compile=auto"], "compile", "auto"),
        (["--bias=True"], "bias", True),
        (["--bias"], "bias", True),
        (["--bias", "--n_layer=12"], "bias", True),
        (["--decay_lr", "False"], "decay_lr", False),
        (["--out_dir=a=b=c"], "out_dir", "a=b=c"),
        (["--out-dir", "with-dash_and space=b"], "out_dir", "with-dash_and space=b"),
        (["--dataset="], "dataset", ""),
        (["--n_layer=3", "--n_layer=5"], "n_layer", 5),
        (["--data_bin_dtype", "uint32"], "data_bin_dtype", "uint32"),
    ],
)
def test_flag_forms(argv: list[str], name: str, value: Any) -> None:
    config = train(*argv)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    assert dataclasses.replace(TrainConfig(), **{name: value}) == config  # nothing else changed


def test_negative_numbers_are_values() -> None:
    assert cli.parse(Numbers, ["--shift", "-3", "--scale=-1e-2"]) == Numbers(shift=-3, scale=-0.01)
    assert cli.parse(Numbers, ["--scale", "-2"]).scale == -2.0
    assert "seed=-1" in error_of("--seed", "-1")


def test_lists_take_several_values() -> None:
    config = cli.parse(SenseConfig, ["--words", "king", "queen", "--k", "3", "--words", "a", "b"])
    assert (config.words, config.k) == (("a", "b"), 3)
    assert cli.parse(SenseConfig, ["--words=x=y"]).words == ("x=y",)
    assert cli.parse(SenseConfig, ["--words=--", "-h3", "--k=2"]).words == ("--", "-h3")
    assert cli.parse(Numbers, ["--shares", "-1", "2.5", "--shift=3"]) == Numbers(shares=(-1.0, 2.5), shift=3)
    assert "shares='--' has the wrong type" in error_of("--shares=--", "--shift=3", kind=Numbers)


def test_argv_is_read_only_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--n_layer=5"])
    assert cli.parse(TrainConfig).n_layer == 5
    assert cli.parse(TrainConfig, []).n_layer == 12


# --- Config files -----------------------------------------------------------------------------


def test_order_is_defaults_then_files_then_flags(tmp_path: Path) -> None:
    one = file(tmp_path, "n_layer = 1\nn_head = 1\nn_embd = 16\n", "one.py")
    two = file(tmp_path, "n_layer = 2\nn_head = 2\n", "two.py")
    config = train(one, two, "--n_layer=3")
    assert (config.n_layer, config.n_head, config.n_embd, config.batch_size) == (3, 2, 16, 12)
    config = train("--n_layer=3", two, one)  # where the flag stands does not matter; files keep their order
    assert (config.n_layer, config.n_head) == (3, 1)


def test_config_files_may_compute(tmp_path: Path) -> None:
    text = '''"""A comment."""
from pathlib import Path
import math

_width = 8
__also_mine = 3

def twice(x):
    return 2 * x

n_head = twice(4)
n_embd = _width * n_head
out_dir = Path("runs") / "a=b"
min_lr = learning_rate = math.sqrt(1e-6)
dropout = 0
compile = False
'''
    config = train(file(tmp_path, text))
    assert (config.n_head, config.n_embd, config.compile) == (8, 64, False)
    assert Path(config.out_dir) == Path("runs/a=b")
    assert config.learning_rate == config.min_lr == pytest.approx(1e-3)
    assert config.dropout == 0.0
    assert type(config.dropout) is float
    lists = file(tmp_path, "words = ['king', 'two words']\nk = 2\n")
    assert cli.parse(SenseConfig, [str(lists)]).words == ("king", "two words")


def test_config_files_have_a_namespace_of_their_own(tmp_path: Path) -> None:
    # Names that the parser uses itself, and one file's names in the next.
    first = file(tmp_path, "_fields = {}\n_shared = 1\nn_head = 2\n", "first.py")
    second = file(tmp_path, "n_layer = 7 if '_shared' not in globals() and __name__ != '__main__' else 1\n")
    before = dict(vars(cli)), sys.argv[:], sys.path[:]
    config = train(first, second)
    assert (config.n_head, config.n_layer) == (2, 7)
    after = dict(vars(cli)), sys.argv[:], sys.path[:]
    assert before == after


BAD_FILES = {
    "n_layer = 1\nn_head = = 2\n": "mine.py, line 2: SyntaxError",
    "def _f():\n    return nothing\n\nn_layer = _f()\n": "mine.py, line 2: NameError",
    "raise ValueError('two\\nlines')\n": "mine.py, line 1: ValueError: two lines",
    "n_layers = 3": "mine.py sets the unknown name n_layers: did you mean n_layer?",
    "zzzzqqqq = 3": "mine.py sets the unknown name zzzzqqqq: --help lists the settings",
    "n_layer = 2.5": "n_layer=2.5 has the wrong type: it must be a whole number",
    "def seed():\n    return 3": "has the wrong type",
    "dtype = 16": "dtype=16 must be auto, float32, bfloat16 or float16",
    "out_dir = ['a', 'b']": "out_dir=['a', 'b'] has the wrong type: it must be text",
    "n_layer = 10 ** 5000": "n_layer=a number of thousands of digits is out of range",
    "n_layer = 0": "n_layer=0 is out of range",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_config_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    message = exit_of([str(file(tmp_path, text))], capsys)
    assert BAD_FILES[text] in message


def test_a_missing_config_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    near, no_hint = file(tmp_path, "", "train_small.py"), "; settings are given as --name=value"
    for missing, hint in (
        (tmp_path / "train_smal.py", f": did you mean {near}?"),
        (tmp_path, no_hint),  # a folder is no file
        ("shakespear_char", ": did you mean shakespeare_char?"),
        ("config/shakespeare_char", no_hint),  # a path is a path
        ("-x", no_hint),
        ("n_layer=3", no_hint),
    ):
        assert error_of(missing) == f"no config file {missing}{hint}"


@pytest.mark.parametrize("name", ["shakespeare_char", "train_shakespeare_char", "shakespeare_char.py"])
def test_a_bundled_config_file_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(name).dataset == "shakespeare_char"
    file(tmp_path, "n_layer = 2", name)  # a file of one's own comes first
    assert train(name).dataset == "openwebtext"


# --- Settings that cannot be: one line that says what is allowed, and exit status 2 ---------------

# The arguments, and what the line says.
BAD = {
    "--n_layer=2.5": "n_layer='2.5' has the wrong type: it must be a whole number",
    "--n_layer=": "n_layer='' has the wrong type: it must be a whole number",
    "--learning_rate=1,5": "learning_rate='1,5' has the wrong type: it must be a number",
    "--bias=1": "bias='1' must be True or False",
    "--compile=1": "compile='1' must be auto, True or False",
    "--dtype=int8": "dtype='int8' must be auto, float32, bfloat16 or float16",
    "--n_layer=0": "n_layer=0 is out of range: it must be a number from 1 up",
    "--batch_size=0": "batch_size=0 is out of range: it must be a number from 1 up",
    "--dropout=nan": "dropout=nan is out of range: it must be from 0 to below 1",
    "--learning_rate=1e999": "learning_rate=inf is out of range: it must be a number from 0 up",
    f"--n_layer={'9' * 5000}": "is out of range: it must be a number below 9.2e18",
    f"--seed={10**400}": "is out of range: it must be below 9.2e18",
    "--eval_iters=1000000000": "out of range: it must be a number from 1 up to 1,000,000",
    "--n_layer=1000000000": "out of range: it must be a number from 0 up to 1,000",
    "--n_head=5": "n_head=5 does not divide n_embd=768: take a divisor such as 1, 2, 3, 4",
    "--n_sense_vector=5": "n_sense_vector=5 does not divide n_embd=768: take a divisor such as 1, 2, 3, 4",
    "--learning_rate=1e-5": "min_lr=6e-05 is above learning_rate=1e-05: lower --min_lr, or keep the rate",
    "--lr_decay_iters=100": "warmup_iters=2000 is above lr_decay_iters=100",
    "--distributed=fsdp --dtype=float16": "distributed='fsdp' does not support",
    "--n_layers=3": "unknown setting --n_layers: did you mean n_layer?",
    "--learning-rat 1": "unknown setting --learning_rat: did you mean learning_rate?",
    "--qqqqzzzz=1": "unknown setting --qqqqzzzz: --help lists the settings",
    "--": "unknown setting --: --help lists the settings",
    "--n_layer": "--n_layer needs a value, as in --n_layer=12",
    "--n_layer --n_head=2": "--n_layer needs a value, as in --n_layer=12",
}
BAD_SAMPLE = {
    "--n_layer=3": "unknown setting --n_layer",
    "--max_new_tokens=1000000000000": "out of range: it must be a number from 1 up to 1,000,000",
    "--start": r"--start needs a value, as in --start='\n'",
}
BAD_SENSES = {"--dtype=bfloat16": "dtype='bfloat16' must be auto or float32"}
CASES = [
    (kind, line, message)
    for kind, table in ((TrainConfig, BAD), (SampleConfig, BAD_SAMPLE), (SenseConfig, BAD_SENSES))
    for line, message in table.items()
]


@pytest.mark.parametrize(("kind", "line", "message"), CASES)
def test_bad_settings(kind: type, line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in exit_of(line.split(" "), capsys, kind)


KINDS = (TrainConfig, SampleConfig, SenseConfig, ModelConfig)
# The numbers that may not be 0, and those that have an upper end; no number may be below 0 or no number.
POSITIVE = [
    "n_layer", "n_head", "n_embd", "block_size", "n_sense_vector", "vocab_size", "batch_size",
    "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval", "lr_decay_iters",
    "keep_last", "timeout_s", "num_samples", "max_new_tokens", "k", "top_p",
    "repetition_penalty", "sense_intermediate_scale",
]  # fmt: skip
LARGEST = {"dropout": 0.99, "beta1": 0.99, "beta2": 0.99, "top_p": 1.0, "min_p": 1.0, "xlm_alpha": 1.0}
LARGEST |= {"vocab_used": 50304}


def wrong_values(name: str, hint: Any) -> list[object]:
    """Values that a setting of that name and type may not have, also when it is made in Python."""
    values: list[object] = [None, {"a": 1}, Path("out"), ["a"], (1, None)]
    if hint in (int, float):
        values += ["3", True, -2 if name == "sense" else -1]  # -1 of sense stands for all
        values += [0] * (name in POSITIVE)
        values += [3.0] if hint is int else [-1e-9, math.nan, math.inf]
        values += [LARGEST[name] + (1 if hint is int else 0.01)] if name in LARGEST else []
    else:
        values += [1, 1.5] if hint is str else [2, "no such word"]
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_refuses_wrong_values(kind: type) -> None:
    for name, hint in get_type_hints(kind).items():
        for value in wrong_values(name, hint):
            with pytest.raises(InputError, match=f"^{name}=.* must be "):
                kind(**{name: value})


def test_the_ends_of_ranges_are_taken() -> None:
    """So that the tables above are not true of everything."""
    for kind in KINDS:
        for name, hint in get_type_hints(kind).items():
            if hint in (int, float):
                more: dict[str, Any] = {"warmup_iters": 0} if name == "lr_decay_iters" else {}
                more |= {"n_head": 1, "n_sense_vector": 1} if name == "n_embd" else {}
                more |= {"min_lr": 0} if name == "learning_rate" else {}
                assert getattr(kind(**{name: int(name in POSITIVE), **more}), name) == int(name in POSITIVE)
                if name in LARGEST:
                    assert getattr(kind(**{name: LARGEST[name]}), name) == LARGEST[name]
    with pytest.raises(InputError, match="words is empty"):
        SenseConfig(words=())
    assert TrainConfig(decay_lr=False, min_lr=1, warmup_iters=700000).min_lr == 1  # nothing decays to it
    assert [type(v) for v in (TrainConfig(dropout=0).dropout, LoadConfig(seed=0).seed)] == [float, int]


def test_gpt_needs_no_senses() -> None:
    config = TrainConfig(model_name="gpt2", n_embd=24, n_head=2, n_sense_vector=16)
    assert config.model_config(10).n_block == config.n_layer
    with pytest.raises(InputError, match="n_sense_vector"):
        TrainConfig(n_embd=24, n_head=2, n_sense_vector=16)


# --- Exit status ------------------------------------------------------------------------------


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (130, 130)])
def test_exit_status_is_what_main_returns(
    returned: int | None, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(config: TrainConfig) -> int | None:
        print(config.n_layer)
        return returned

    assert ending(capsys, cli.run, main, TrainConfig, ["--n_layer=3"]) == (status, "3\n", "")


def test_errors_of_main(capsys: pytest.CaptureFixture[str]) -> None:
    def end(error: BaseException) -> tuple[Any, str, str]:
        def main() -> int:
            raise error

        return ending(capsys, cli.guard, main)

    assert end(InputError("one\ntwo")) == (2, "", "error: one two\n")
    assert end(InputError("\x1b[31mred")) == (2, "", "error:  [31mred\n")  # no colours of a stranger
    assert end(OSError(2, "not there", "one\ntwo")) == (2, "", "error: one two: not there\n")
    assert end(KeyboardInterrupt()) == (130, "", "")
    assert end(RuntimeError("std::bad_alloc"))[2].startswith(
        "error: out of memory: take a smaller --batch_size or --num_samples, if there is one"
    )
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        end(ZeroDivisionError())


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from nanobackpack import cli; cli.guard(lambda: [print('x' * 99) for _ in range(9999)] and None)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


# --- Help -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "flag"), [(TrainConfig, "--help"), (SampleConfig, "-h"), (SenseConfig, "--help")]
)
def test_help_lists_every_setting_with_its_default(
    kind: type, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = ending(capsys, cli.run, lambda config: 1, kind, ["--n_layers=3", flag])
    assert (status, err) == (0, "")
    text = " ".join(out.replace("│", " ").split())
    entries = re.split(r" (?=--\w+ )", text)
    for field in dataclasses.fields(kind):
        entry = next((e for e in entries if e.startswith(f"--{field.name} ")), "")
        assert entry, field.name
        default = field.default
        shown = " ".join(default) if isinstance(default, tuple) else str(default).strip()
        found = re.search(r"\(default: (.*?)\)", entry)
        assert found, field.name
        assert shown in found[1], field.name
        assert len(entry.split("(default")[0].split()) > 3, f"{field.name} has no line of help"


@pytest.mark.parametrize("verb", commands.VERBS)
def test_help_of_a_verb_teaches(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--help shows what a verb does and how it is called, in the words of its module."""
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(answer(capsys, verb.replace("_", "-"), "--help").split())
    about = sys.modules[f"nanobackpack.{commands.VERBS[verb][0]}"].__doc__ or ""
    examples = [
        line.strip() for line in about.splitlines() if line.strip().startswith(("nanobackpack ", "torchrun "))
    ]
    assert any(line.replace("-", "_").startswith(f"nanobackpack {verb}") for line in examples)
    assert all(" ".join(line.split()) in shown for line in examples)


def test_help_ends_on_a_narrow_terminal() -> None:
    """In a process of its own, since it once did not."""
    done = subprocess.run(
        [sys.executable, "-m", "nanobackpack", "sample", "--help"],
        env=os.environ | {"COLUMNS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, "--out_dir" in done.stdout) == (0, True)


# --- The program nanobackpack -------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    """What `nanobackpack ARGV` prints; to stdout if all is well, else to stderr."""
    code, out, err = ending(capsys, commands.main, argv)
    assert code == status, err
    assert (err if status == 0 else out) == ""
    return out or err


def test_the_program_lists_its_verbs_and_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    out = answer(capsys, "--help")
    assert out == answer(capsys)  # without a verb, too
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    for verb, (_, purpose) in commands.VERBS.items():
        assert purpose in lines[verb]
    version = subprocess.run(
        [sys.executable, "-m", "nanobackpack", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert version.stdout == answer(capsys, "--version") == f"nanobackpack {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown verb trian: did you mean train?"),
        (["lexical-similarty"], "unknown verb lexical-similarty: did you mean lexical_similarity?"),
        (["--qqq"], "unknown verb --qqq: nanobackpack --help lists the verbs"),
        (["train", "demo", "--n_layers=3"], "unknown setting --n_layers: did you mean n_layer?"),
        ([PRINTED], f"{PRINTED} needs a shell: bash or zsh"),
        ([WRITTEN, "bash"], f"{WRITTEN} needs a shell and a file: bash or zsh"),
        (["train", PRINTED, "sh"], f"{PRINTED} needs a shell: bash or zsh"),
    ],
)
def test_wrong_verbs(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, *argv, status=2) == f"error: {message}\n"


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_knows_verbs_and_flags(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = answer(capsys, PRINTED, shell)
    kinds = [commands._settings(commands._module(verb)) for verb in commands.VERBS]
    flags = {f"--{f.name}" for kind in kinds for f in dataclasses.fields(kind)}
    assert all(f"'{word}'" in script for word in (*commands.VERBS, *flags, "adamw"))
    assert ("Attention heads of each block" in script) == (shell == "zsh")  # bash shows no help
    assert "n_sense_vector" in answer(capsys, "train", PRINTED, shell)
    assert answer(capsys, WRITTEN, shell, str(tmp_path / "script")) == ""
    assert all(verb in (tmp_path / "script").read_text(encoding="utf-8") for verb in commands.VERBS)
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# --- What only a program can find --------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "d", "abcd" * 50, Tokenizer.char("abcd"), val_fraction=0.2, source="test")
    return tmp_path / "d"


SMALL = "--device=cpu --n_layer=1 --n_head=1 --n_embd=8 --n_sense_vector=1 --block_size=4 --warmup_iters=0"
AT_START = [
    ("--n_embd=10000000", "out of memory: this model needs"),
    ("--batch_size=1000000000039", "out of memory: this run needs"),
    ("--block_size=100000000", "too few for block_size=100000000"),
    ("--block_size=40", "val.bin has 40 tokens, too few for block_size=40, which needs 41"),
    ("--dataset=nowhere", "data/nowhere does not exist: make it with"),
    ("--init_from=resume", "no checkpoint"),
    ("--device=tpu", "device='tpu' is not here: this machine has"),
    ("--dtype=float16", "dtype=float16 needs a CUDA device, not cpu"),
    ("--compile=True", "compile=True needs a C++ compiler, not found here: take --compile=False"),
    ("--wandb_log=True", "wandb_log=True needs wandb: pip install 'nanobackpack[wandb]'"),
    ("--tracker=trackio", "tracker=trackio needs trackio: pip install 'nanobackpack[trackio]'"),
    ("--tracker=tensorboard", "needs tensorboard: pip install 'nanobackpack[tensorboard]'"),
]


@pytest.mark.parametrize(("flags", "message"), AT_START)
def test_a_run_that_cannot_start(
    flags: str, message: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(data))  # where no compiler is
    for tracker in ("wandb", "trackio", "tensorboard"):
        monkeypatch.setitem(sys.modules, tracker, None)  # as if not installed
    out = data.parent / "out"
    argv = [*SMALL.split(), f"--dataset={data}", f"--out_dir={out}", *flags.split()]
    assert message in exit_of(argv, capsys, TrainConfig, trainer.train)
    assert not out.exists()


def test_a_sample_that_cannot_start(
    tmp_path: Path, speller: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"model": speller.state_dict(), "model_args": dataclasses.asdict(speller.config)}
    checkpoint.save_checkpoint(tmp_path / "ckpt.pt", state | {"tokenizer": speller.tokenizer.to_json()})
    cases = [
        ("--start=xyz", "unknown character 'x'"),
        ("--start=", "the prompt is empty"),
        (f"--start=FILE:{tmp_path / 'no.txt'}", "cannot read"),
        ("--device=tpu", "device='tpu' is not here"),
        ("--dtype=float16", "dtype=float16 needs a CUDA device"),
        ("--out_dir=nowhere", "no model at nowhere"),
    ]
    for flag, message in cases:
        argv = ["--device=cpu", f"--out_dir={tmp_path}", flag]
        assert message in exit_of(argv, capsys, SampleConfig, sample_main)


def test_a_warm_up_longer_than_the_run_is_noted(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--warmup_iters=3", "--max_iters=2", f"--dataset={data}", f"--out_dir={data / 'out'}"]
    config = train(*SMALL.split(), *flags)
    assert trainer.train(config) == 0
    assert "warms up for 3 steps, longer than the 2 of this run" in capsys.readouterr().out


# --- Any value ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=60)
@given(TEXT, st.booleans())
@example("--n_layer=3", True)
@example("-1", False)
@example("None", True)
def test_any_text_survives_parsing(value: str, joined: bool) -> None:
    if joined:
        assert sample(f"--start={value}").start == value
    elif not value.startswith("--"):
        assert sample("--start", value).start == value


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10**12))
def test_any_number_survives_parsing(dropout: float, max_iters: int) -> None:
    config = train(f"--dropout={dropout!r}", f"--max_iters={max_iters}")
    assert (config.dropout, config.max_iters) == (dropout, max_iters)
