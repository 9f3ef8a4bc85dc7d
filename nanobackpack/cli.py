"""The command line: flags, config files, help, and errors of one line.

    cli.run(main, TrainConfig)                                     # what a program ends with
    cli.parse(TrainConfig, ["config/demo.py", "--max_iters=10"])   # the settings alone

Order: defaults of the dataclass < config files in the order given < flags. `--key=value`, `--key value` and
`--some-key=value` all work, and a bare `--key` where the value is True or False. tyro turns text into values
and writes `--help` and shell completion. What is done here is what nanoGPT's users expect on top: config
files, and errors of one line that name the nearest setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import runpy
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from nanobackpack.config import out_of_range, wrong_type
from nanobackpack.errors import InputError, short_repr
from nanobackpack.program import STDOUT, guard, protect_terminal

C = TypeVar("C")
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
SHELLS = ("bash", "zsh")  # tyro has others, with more installed
# The bundled config files: in the package once it is installed, in config/ of a copy of the repository.
_PACKAGED = Path(__file__).with_name("configs")
CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "config"


# --- Running a program --------------------------------------------------------------------------


def run(
    main: Callable[[Any], int | None],
    config_type: type,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    about: str | None = None,
) -> NoReturn:
    """Parse argv (default: the program's own) into config_type, call main with it, and exit.

    --help shows `about`, by default the docstring of the module that main is in.
    """
    about = about or sys.modules[main.__module__].__doc__

    def program() -> int | None:
        settings: Any = parse(config_type, argv, about, prog)
        # Where a result is to be written to stdout, all else is printed to stderr.
        to_stdout = any(value in STDOUT for value in vars(settings).values())
        with contextlib.redirect_stdout(sys.stderr if to_stdout else sys.stdout):
            protect_terminal()
            return main(settings)

    guard(program)


# --- Arguments -> settings ----------------------------------------------------------------------


def parse(
    config_type: type[C],
    argv: Sequence[str] | None = None,
    about: str | None = None,
    prog: str | None = None,
) -> C:
    """Return the settings that argv asks for, as an instance of the dataclass config_type.

    Positional arguments are config files, or the field `paths` where config_type has one. --help and the
    flags of shell completion print and exit.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    prog = prog or Path(sys.argv[0]).name
    # What prints and exits.
    if "--help" in argv or "-h" in argv:
        os.environ["COLUMNS"] = str(max(20, shutil.get_terminal_size().columns))  # in fewer tyro never ends
        print(fit_to_terminal(about or ""), end="\n\n")  # tyro would join the lines of the examples
        tyro.cli(config_type, args=["--help"], description="", **_options(prog))
    if argv and argv[0] in COMPLETION:
        complete(config_type, argv, prog)

    # What is given: each setting's type says how its text is read.
    hints = get_type_hints(config_type)
    kinds = {f.name: hints[f.name] for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    flags, positional = _split(argv, config_type, kinds)
    # Config files in the order given, then flags over them; checked once, all together.
    settings: dict[str, Any] = {}
    if "paths" in kinds:
        settings["paths"] = tuple(positional)
    else:
        for file in positional:
            settings |= read_config_file(file, kinds)
    settings |= {name: _value(name, texts, kinds[name]) for name, texts in flags.items()}
    return config_type(**settings)


def fit_to_terminal(text: str) -> str:
    """Break the paragraphs of a text where a line of the terminal ends; what is indented keeps its lines."""
    width = min(shutil.get_terminal_size().columns, 110)
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(p if p.startswith(" ") else wrapper.fill(p) for p in paragraphs)


def complete(kinds: type | dict[str, type], argv: Sequence[str], prog: str) -> None:
    """Print or write the completion script of a program, or of a program with verbs, and exit."""
    if len(argv) < 2 + (argv[0] == COMPLETION[1]) or argv[1] not in SHELLS:
        file = " and a file" if argv[0] == COMPLETION[1] else ""
        raise InputError(f"{argv[0]} needs a shell{file}: {' or '.join(SHELLS)}")
    if isinstance(kinds, dict) and argv[1] == "bash":  # which shows no help
        kinds = {verb: _without_help(kind) for verb, kind in kinds.items()}
    make: Callable[..., Any] = tyro.extras.subcommand_cli_from_dict if isinstance(kinds, dict) else tyro.cli
    make(kinds, args=argv, **_options(prog))


def _without_help(config_type: type) -> type:
    """Make a dataclass of the same flags whose help tyro need not look for, in the source of each class."""
    hints, fields = get_type_hints(config_type), []
    for f in dataclasses.fields(config_type):
        fields.append((f.name, hints[f.name], dataclasses.field(default=f.default, metadata={"help": ""})))
    return dataclasses.make_dataclass(config_type.__name__, fields, init=False, repr=False, eq=False)


def _options(prog: str) -> dict[str, Any]:
    return {"prog": prog, "use_underscores": True, "config": (tyro.conf.FlagConversionOff,)}


def _split(
    argv: Sequence[str], config_type: type, kinds: dict[str, Any]
) -> tuple[dict[str, list[str]], list[str]]:
    """Split argv into flags, {name: texts}, and the arguments that are not flags."""
    flags: dict[str, list[str]] = {}
    positional: list[str] = []
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            positional.append(arg)
            continue
        # --some-key=value or --some_key value
        name, equals, value = arg[2:].partition("=")
        name = name.replace("-", "_")
        if name not in kinds and "handed_on" in kinds:  # to another program, with all up to the next flag
            theirs = flags.setdefault("handed_on", [])
            theirs.append(arg)
            while rest and not rest[0].startswith("--"):
                theirs.append(rest.pop(0))
            continue
        if name not in kinds:
            raise InputError(f"unknown setting --{name}{nearest(name, kinds)}")
        kind = kinds[name]
        no_value = not rest or rest[0].startswith("--")
        if equals:
            flags[name] = [value]
        elif no_value and bool in (kind, *get_args(kind)):
            flags[name] = ["True"]
        elif no_value:
            default = getattr(config_type, name)
            example = " ".join(default) if _is_list(kind) else str(default)
            example = example if example.isprintable() else repr(example)
            raise InputError(f"--{name} needs a value, as in --{name}={example}")
        else:
            flags[name] = [rest.pop(0)]
        # A list takes all that follows up to the next flag.
        while _is_list(kind) and rest and not rest[0].startswith("--"):
            flags[name].append(rest.pop(0))
    return flags, positional


def _value(name: str, texts: list[str], kind: Any) -> Any:
    """Turn the text of a flag into a value, by tyro's rule for that type."""
    rule = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
    assert isinstance(rule, PrimitiveConstructorSpec), f"{name}: tyro cannot make a {kind} from text"
    try:
        if rule.choices and not set(texts) <= set(rule.choices):
            raise ValueError
        return rule.instance_from_str(texts)
    except ValueError:
        text = short_repr(" ".join(texts))
        if kind is int and all(text.lstrip("+-").isdecimal() for text in texts):
            raise out_of_range(name, text, "a number below 9.2e18") from None
        raise wrong_type(name, text, kind) from None


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a name that is not known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ": --help lists the settings"


# --- Config files -------------------------------------------------------------------------------


def read_config_file(file: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """Run a config file in a namespace of its own; return the settings it names.

    Config files are the user's own Python and may compute; names with a leading underscore are theirs.
    """
    path = str(find_config(file))
    try:
        namespace = runpy.run_path(path)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(error, path)
        raise InputError(f"config file {file}, line {line}: {type(error).__name__}: {error}") from error
    # Take the settings, pass over what is the file's own (imports, functions, _names), refuse the rest.
    given: dict[str, Any] = {}
    for name, value in namespace.items():
        if name in kinds:
            if _is_list(kinds[name]) and isinstance(value, list):
                value = tuple(value)
            given[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
        elif not (name.startswith("_") or isinstance(value, types.ModuleType) or callable(value)):
            raise InputError(f"config file {file} sets the unknown name {name}{nearest(name, kinds)}")
    return given


def find_config(file: str) -> Path:
    """Find a config file by its path; or a bundled one by its name, with or without `train_` and `.py`."""
    path = Path(file)
    if path.is_file():
        return path
    near = [str(p) for p in path.parent.glob("*.py")]
    if path.name == file:  # a bare name
        bundled = {p.stem.removeprefix("train_"): p for p in sorted(CONFIGS.glob("*.py"))}
        name = path.name.removesuffix(".py").removeprefix("train_")
        if name in bundled:
            return bundled[name]
        near += bundled
    close = difflib.get_close_matches(file, near, n=1)
    hint = f": did you mean {close[0]}?" if close else "; settings are given as --name=value"
    raise InputError(f"no config file {file}{hint}")


def _line_in(error: BaseException, file: str) -> int | str:
    """Find the line of the file that an error came from, the innermost one."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else "?"
