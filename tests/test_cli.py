"""Settings and the command line: flags, config files, and errors of one line with exit status 2."""

from __future__ import annotations

import dataclasses
import os
import re
import string
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanobackpack import __version__, cli, commands
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.config import LoadConfig, ModelConfig, SampleConfig, TrainConfig
from nanobackpack.errors import InputError

ROOT = Path(__file__).resolve().parents[1]

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


def train(*argv: str | Path) -> TrainConfig:
    return cli.parse(TrainConfig, [str(a) for a in argv])


def sample(*argv: str) -> SampleConfig:
    return cli.parse(SampleConfig, argv)


def error_of(*argv: str | Path, kind: type = TrainConfig) -> str:
    """The message for bad arguments: one line."""
    with pytest.raises(InputError) as error:
        cli.parse(kind, [str(a) for a in argv])
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


def file(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


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


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        train().n_layer = 3  # type: ignore[misc]


# --- Flags ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--n_layer=3"], "n_layer", 3),
        (["--n_layer", "3"], "n_layer", 3),
        (["--n-layer=3"], "n_layer", 3),
        (["--n-layer", "3"], "n_layer", 3),
        (["--lr-decay_iters=7000"], "lr_decay_iters", 7000),
        (["--device", "mps"], "device", "mps"),
        (["--dropout=0"], "dropout", 0.0),
        (["--learning_rate=1"], "learning_rate", 1.0),
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--compile=False"], "compile", False),
        (["--compile=True"], "compile", True),
        (["--compile=auto"], "compile", "auto"),
        (["--compile", "False"], "compile", False),
        (["--bias=True"], "bias", True),
        (["--bias"], "bias", True),
        (["--bias", "--n_layer=12"], "bias", True),
        (["--bias", "False"], "bias", False),
        (["--decay_lr", "False"], "decay_lr", False),
        (["--out_dir=a=b=c"], "out_dir", "a=b=c"),
        (["--out_dir", "a=b"], "out_dir", "a=b"),
        (["--out-dir=with-dash_and space"], "out_dir", "with-dash_and space"),
        (["--dataset="], "dataset", ""),
        (["--out_dir=Größe"], "out_dir", "Größe"),
        (["--n_layer=3", "--n_layer=5"], "n_layer", 5),
        (["--dtype=bfloat16"], "dtype", "bfloat16"),
        (["--data_bin_dtype", "uint32"], "data_bin_dtype", "uint32"),
        (["--model_name=gpt2"], "model_name", "gpt2"),
    ],
)
def test_flag_forms(argv: list[str], name: str, value: Any) -> None:
    config = train(*argv)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    assert dataclasses.replace(TrainConfig(), **{name: value}) == config  # nothing else changed


def test_text_is_taken_as_it_is() -> None:
    assert sample("--start=--n_layer=3").start == "--n_layer=3"
    assert sample("--start=two\nlines").start == "two\nlines"
    assert sample("--start", "-1").start == "-1"
    assert sample("--start= 007 ").start == " 007 "
    assert sample("--start=None").start == "None"
    assert sample("--start='quoted'").start == "'quoted'"
    assert sample("--start=FILE:prompt.txt").start == "FILE:prompt.txt"


def test_negative_numbers_reach_the_range_check() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Numbers:
        """Two numbers."""

        shift: int = 0
        """One."""
        scale: float = 0.0
        """Another."""

    assert cli.parse(Numbers, ["--shift", "-3", "--scale=-1e-2"]) == Numbers(shift=-3, scale=-0.01)
    assert cli.parse(Numbers, ["--scale", "-2"]).scale == -2.0
    assert "seed=-1" in error_of("--seed", "-1")
    assert "top_k=-5" in error_of("--top_k=-5", kind=SampleConfig)


def test_lists_take_several_values() -> None:
    config = cli.parse(SenseConfig, ["--words", "king", "queen", "--k", "3", "--words", "a", "b"])
    assert (config.words, config.k) == (("a", "b"), 3)
    assert cli.parse(SenseConfig, ["--words=x=y"]).words == ("x=y",)
    assert cli.parse(SenseConfig, ["--words=--", "-h3", "--k=2"]).words == ("--", "-h3")

    @dataclass(frozen=True, kw_only=True)
    class Numbers:
        """Numbers."""

        shares: tuple[float, ...] = ()
        """Shares."""
        k: int = 1
        """Another."""

    assert cli.parse(Numbers, ["--shares", "-1", "2.5", "--k=3"]) == Numbers(shares=(-1.0, 2.5), k=3)
    assert cli.parse(Numbers, ["--shares", "0.5"]).shares == (0.5,)
    with pytest.raises(InputError, match="shares='--' has the wrong type"):
        cli.parse(Numbers, ["--shares=--", "--k=3"])


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


def test_config_files_set_lists(tmp_path: Path) -> None:
    path = file(tmp_path, "words = ['king', 'two words']\nk = 2\n")
    assert cli.parse(SenseConfig, [str(path)]).words == ("king", "two words")


def test_config_files_have_a_namespace_of_their_own(tmp_path: Path) -> None:
    # Names that the parser uses itself, and one file's names in the next.
    first = file(tmp_path, "_fields = {}\n_shared = 1\nn_head = 2\n", "first.py")
    second = file(tmp_path, "n_layer = 7 if '_shared' not in globals() and __name__ != '__main__' else 1\n")
    before = dict(vars(cli)), sys.argv[:], sys.path[:]
    config = train(first, second)
    assert (config.n_head, config.n_layer) == (2, 7)
    after = dict(vars(cli)), sys.argv[:], sys.path[:]
    assert before == after
    for ours in ("fields", "given", "argv", "namespace", "flags"):
        assert f"unknown name {ours}" in error_of(file(tmp_path, f"{ours} = {{}}\n"))
    assert TrainConfig().n_layer == 12


def test_unknown_name_in_a_file_names_the_nearest(tmp_path: Path) -> None:
    message = error_of(file(tmp_path, "n_layers = 3\n"))
    assert "n_layers" in message
    assert "did you mean n_layer?" in message
    assert "mine.py" in message
    assert "--help" in error_of(file(tmp_path, "zzzzqqqq = 3\n"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("n_layer = 1\nn_head = = 2\n", 2, "SyntaxError"),
        ("n_layer = 1\n\nn_head = 1 / 0\n", 3, "ZeroDivisionError"),
        ("def _f():\n    return nothing\n\nn_layer = _f()\n", 2, "NameError"),
        ("import no_such_module_at_all\n", 1, "ModuleNotFoundError"),
        ("raise ValueError('two\\nlines')\n", 1, "ValueError"),
        ("if True:\nn_layer = 1\n", 2, "IndentationError"),
    ],
)
def test_a_failing_config_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, what: str
) -> None:
    message = exit_of([str(file(tmp_path, text))], capsys)
    assert f"line {line}" in message
    assert what in message
    assert "mine.py" in message


def test_a_missing_config_file_names_the_nearest(tmp_path: Path) -> None:
    file(tmp_path, "", "train_small.py")
    assert "train_small.py?" in error_of(tmp_path / "train_smal.py")
    message = error_of(tmp_path / "nothing" / "x.py")
    assert "no config file" in message
    assert "--name=value" in message
    assert "no config file" in error_of(tmp_path)  # a folder is no file


@pytest.mark.parametrize(
    "text",
    [
        "n_layer = 2.5\n",
        "n_layer = 'six'\n",
        "n_layer = True\n",
        "n_layer = None\n",
        "n_layer = [2, 4]\n",
        "n_layer = 6,\n",
        "n_layer = []\n",
        "n_layer = lambda: 6\n",
        "def seed():\n    return 3\n",
        "bias = 1\n",
        "bias = 'yes'\n",
        "dropout = '0.1x'\n",
        "dtype = 'int8'\n",
        "out_dir = ['a', 'b']\n",
    ],
)
def test_a_config_file_value_of_the_wrong_type_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    message = exit_of([str(file(tmp_path, text))], capsys)
    assert re.search("n_layer|seed|bias|dropout|dtype|out_dir", message)


def test_the_laptop_command_parses() -> None:
    line = (
        "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
        "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0"
    )
    config_file, *flags = line.split()
    config = train(ROOT / config_file, *flags)
    assert (config.device, config.compile, config.n_embd, config.dropout) == ("cpu", False, 128, 0.0)
    assert (config.beta2, config.n_sense_vector, config.eval_interval) == (0.99, 4, 250)


# --- Errors: exit status 2 and one line -------------------------------------------------------


def exit_of(argv: list[str], capsys: pytest.CaptureFixture[str], kind: type = TrainConfig) -> str:
    """The error line of a run with these arguments, whose main must not be reached."""

    def main(config: object) -> int:
        raise AssertionError(f"accepted: {config}")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, kind, argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    return err


BAD_TRAIN = [
    "--n_layer=six", "--n_layer=2.5", "--n_layer=1e3", "--n_layer=", "--n_layer=True", "--n_layer=-1",
    "--n_layer=0", "--n_head=0", "--n_head=5", "--n_embd=0", "--n_embd=100", "--n_sense_vector=7",
    "--block_size=0", "--dropout=1", "--dropout=-0.1", "--dropout=nan", "--dropout=high", "--bias=1",
    "--bias=maybe", "--compile=sometimes", "--compile=1", "--dtype=int8", "--data_bin_dtype=uint8",
    "--model_name=gpt3", "--sense_network=other", "--batch_size=0", "--batch_size=1.5",
    "--gradient_accumulation_steps=0", "--max_iters=-1", "--max_iters=1e4", "--learning_rate=fast",
    "--learning_rate=-1", "--learning_rate=nan", "--learning_rate=inf", "--learning_rate=1,5",
    "--min_lr=1", "--beta1=1", "--beta2=1.5", "--beta2=-1", "--grad_clip=-1", "--weight_decay=-0.1",
    "--warmup_iters=-1", "--lr_decay_iters=0", "--eval_interval=0", "--eval_iters=0", "--log_interval=0",
    "--backup_checkpoint_step=-1", "--seed=-1", "--seed=1.0", "--eval_only=si", "--decay_lr=None",
    "--no_such_setting=1", "--n_layer", "--n_layer --n_head=2", "--", "--=1", "no_such_file.py", "-x",
    "n_layer=3", "--config=x", "--backend=mpi", "--wandb_log=1", "--xlm_alpha=-0.5", "--distributed=dp",
    "--distributed=fsdp --optimizer=muon", "--distributed=fsdp --dtype=float16",
]  # fmt: skip
BAD_SAMPLE = [
    "--temperature=-1", "--temperature=hot", "--temperature=inf", "--top_k=-1", "--top_k=1.5", "--top_p=0",
    "--top_p=1.1", "--top_p=nan", "--num_samples=0", "--max_new_tokens=0", "--n_layer=3", "--start",
    "--seed=x",
]  # fmt: skip


@pytest.mark.parametrize("line", BAD_TRAIN)
def test_bad_training_settings(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = exit_of(line.split(" "), capsys)
    name = re.match(r"--(\w+)", line)
    if name:
        assert name[1] in message


@pytest.mark.parametrize("line", BAD_SAMPLE)
def test_bad_sampling_settings(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = exit_of(line.split(" "), capsys, SampleConfig)
    assert re.match(r"--(\w+)", line)[1] in message  # type: ignore[index]


def test_unknown_flag_names_the_nearest() -> None:
    assert "did you mean n_layer?" in error_of("--n_layers=3")
    assert "did you mean learning_rate?" in error_of("--learning-rat", "1")
    assert "did you mean temperature?" in error_of("--temprature=1", kind=SampleConfig)
    assert "--help" in error_of("--qqqqzzzz=1")


def test_missing_value_shows_how_to_give_one() -> None:
    assert "--n_layer=12" in error_of("--n_layer")
    assert "--out_dir=out" in error_of("--out_dir", "--n_layer=3")


def test_messages_name_the_value_and_what_is_allowed() -> None:
    assert "'six'" in error_of("--n_layer=six")
    assert "a whole number" in error_of("--n_layer=six")
    message = error_of("--n_head=5")
    assert "n_head=5" in message
    assert "n_embd=768" in message
    assert "4" in message  # a divisor that would do
    message = error_of("--dtype=int8")
    assert all(word in message for word in ("int8", "auto", "float32", "bfloat16", "float16"))
    assert "--decay_lr=False" in error_of("--learning_rate=1e-5")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (TrainConfig, {"n_layer": "3"}),
        (TrainConfig, {"n_layer": True}),
        (TrainConfig, {"n_layer": 3.0}),
        (TrainConfig, {"learning_rate": "1e-3"}),
        (TrainConfig, {"learning_rate": False}),
        (TrainConfig, {"bias": 1}),
        (TrainConfig, {"compile": "yes"}),
        (TrainConfig, {"compile": 0}),
        (TrainConfig, {"out_dir": Path("out")}),
        (TrainConfig, {"dtype": None}),
        (SampleConfig, {"top_k": None}),
        (LoadConfig, {"seed": None}),
        (SenseConfig, {"words": ["a"]}),
        (SenseConfig, {"words": (1,)}),
        (SenseConfig, {"words": ()}),
        (ModelConfig, {"vocab_size": 0}),
        (ModelConfig, {"vocab_size": 10, "vocab_used": 11}),
        (ModelConfig, {"n_embd": 768.0}),
    ],
)
def test_settings_made_in_python_are_checked_too(kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(reversed(values))):
        kind(**values)


def test_an_integer_for_a_float_becomes_one_in_python_too() -> None:
    config = TrainConfig(dropout=0, learning_rate=1)
    assert [type(v) for v in (config.dropout, config.learning_rate)] == [float, float]


def test_gpt_needs_no_senses() -> None:
    config = TrainConfig(model_name="gpt2", n_embd=24, n_head=2, n_sense_vector=16)
    assert config.model_config(10).n_block == config.n_layer
    with pytest.raises(InputError, match="n_sense_vector"):
        TrainConfig(n_embd=24, n_head=2, n_sense_vector=16)


# --- Exit status ------------------------------------------------------------------------------


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (130, 130)])
def test_exit_status_is_what_main_returns(returned: int | None, status: int) -> None:
    seen = []

    def main(config: TrainConfig) -> int | None:
        seen.append(config.n_layer)
        return returned

    with pytest.raises(SystemExit) as stop:
        cli.run(main, TrainConfig, ["--n_layer=3"])
    assert (stop.value.code or 0, seen) == (status, [3])


def test_errors_of_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status_of(error: BaseException | None, action: Any = None) -> tuple[Any, str]:
        def main() -> int:
            if error is not None:
                raise error
            action()
            return 0

        with pytest.raises(SystemExit) as stop:
            cli.guard(main)
        return stop.value.code, capsys.readouterr().err

    assert status_of(InputError("one\ntwo")) == (2, "error: one two\n")
    missing = tmp_path / "missing"
    status, err = status_of(None, missing.read_text)
    assert status == 2
    assert err.count("\n") == 1
    assert str(missing) in err
    assert status_of(KeyboardInterrupt()) == (130, "")
    with pytest.raises(ZeroDivisionError):  # a bug of ours keeps its traceback
        status_of(None, lambda: 1 // 0)


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from nanobackpack import cli; cli.guard(lambda: [print('x' * 99) for _ in range(9999)] and None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()


# --- Help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TrainConfig, SampleConfig, SenseConfig])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_setting_with_its_default(
    kind: type, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda config: 1, kind, ["--n_layers=3", flag])
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert err == ""
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
    with pytest.raises(SystemExit) as stop:
        commands.main([verb.replace("_", "-"), "--help"])
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    about = sys.modules[f"nanobackpack.{commands.VERBS[verb][0]}"].__doc__ or ""
    examples = [
        line.strip() for line in about.splitlines() if line.strip().startswith(("nanobackpack ", "torchrun "))
    ]
    assert any(example.startswith(f"nanobackpack {verb}") for example in examples)
    for example in examples:
        assert " ".join(example.split()) in shown


def test_a_script_shows_help_in_any_folder(tmp_path: Path) -> None:
    env = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--help"], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "--out_dir" in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- Anything at all --------------------------------------------------------------------------

NAMES = [f.name for f in dataclasses.fields(TrainConfig)]
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
VALUE = st.one_of(
    TEXT, st.integers(-3, 99).map(str), st.floats().map(str), st.sampled_from(["True", "False", "auto", "-1"])
)
WORD = st.one_of(
    VALUE,
    st.sampled_from(NAMES).map(lambda n: f"--{n}"),
    st.builds(lambda n, v: f"--{n}={v}", st.sampled_from(NAMES), VALUE),
    st.text(string.punctuation, max_size=5).map(lambda t: f"--{t}"),
)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.lists(WORD, max_size=4))
def test_any_argv_gives_settings_or_one_line(argv: list[str]) -> None:
    result = outcome(argv)
    if {"--help", "-h"} & set(argv):
        assert result in (0, None)
    else:
        assert isinstance(result, TrainConfig) or (isinstance(result, str) and result)


def outcome(argv: list[str]) -> object:
    """The settings, the message, or the exit status."""
    try:
        return cli.parse(TrainConfig, argv)
    except InputError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(["out_dir", "dataset", "device"]), TEXT, st.booleans())
def test_any_text_survives_parsing(name: str, value: str, joined: bool) -> None:
    if joined:
        assert getattr(train(f"--{name}={value}"), name) == value
    elif not value.startswith("--"):
        assert getattr(train(f"--{name}", value), name) == value


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10**12))
def test_any_number_survives_parsing(dropout: float, max_iters: int) -> None:
    config = train(f"--dropout={dropout!r}", f"--max_iters={max_iters}")
    assert (config.dropout, config.max_iters) == (dropout, max_iters)


# --- The program nanobackpack -------------------------------------------------------------------


def answer(*argv: str, status: int = 0) -> tuple[str, str]:
    """What `python -m nanobackpack ARGV` prints to stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "nanobackpack", *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_the_program_lists_its_verbs_and_its_version() -> None:
    out, err = answer("--help")
    assert err == ""
    assert out == answer()[0]  # without a verb, too
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    for verb, (_, purpose) in commands.VERBS.items():
        assert purpose in lines[verb]
    assert answer("--version") == (f"nanobackpack {__version__}\n", "")


def test_a_verb_that_is_not_known() -> None:
    assert answer("trian", status=2) == ("", "error: unknown verb trian: did you mean train?\n")
    assert "lexical_similarity" in answer("lexical-similarty", status=2)[1]
    assert "nanobackpack --help lists the verbs" in answer("--qqq", status=2)[1]


def test_a_verb_with_wrong_settings() -> None:
    out, err = answer("train", "shakespeare_char", "--n_layers=3", status=2)
    assert (out, err) == ("", "error: unknown setting --n_layers: did you mean n_layer?\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_verbs_and_flags(shell: str, tmp_path: Path) -> None:
    printed, written = cli.COMPLETION
    script, err = answer(printed, shell)
    assert err == ""
    assert all(word in script for word in (*commands.VERBS, "n_sense_vector", "num_samples"))
    assert answer(written, shell, str(tmp_path / "script")) == ("", "")
    assert (tmp_path / "script").read_text(encoding="utf-8").strip() == script.strip()
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    of_one_verb = answer("train", "--tyro-print-completion", shell)[0]
    assert "n_sense_vector" in of_one_verb
    for argv in (
        ["--tyro-print-completion"],
        ["--tyro-write-completion", shell],
        ["train", "--tyro-print-completion", "sh"],
    ):
        assert "bash, zsh, tcsh" in answer(*argv, status=2)[1]


@pytest.mark.parametrize("name", ["shakespeare_char", "train_shakespeare_char", "shakespeare_char.py"])
def test_a_bundled_config_file_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(name).dataset == "shakespeare_char"
    file(tmp_path, "n_layer = 2", name)  # a file of one's own comes first
    assert train(name).dataset == "openwebtext"


def test_a_bundled_config_file_nearly_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean shakespeare_char?" in error_of("shakespear_char")
    assert "settings are given as --name=value" in error_of("config/shakespeare_char")  # a path is a path
