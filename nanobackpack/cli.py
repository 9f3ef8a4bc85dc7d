"""The command line: the only place that reads argv, prints usage, and turns an error into one line.

Order: defaults of the dataclass < config files in the order given < flags. `--key=value`, `--key value`
and `--some-key=value` all work, and a bare `--key` where the value is True or False. tyro parses the values
and writes `--help`; what is done here is what nanoGPT's users expect on top: config files, and errors of one
line that name the nearest setting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import runpy
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import tyro

from nanobackpack.config import describe
from nanobackpack.errors import InputError, ProcessLost
from nanobackpack.runtime import speaks_first
from nanobackpack.safe.run import ignore_closed_stdout

C = TypeVar("C")


def run(main: Callable[[Any], int | None], config_type: type, argv: Sequence[str] | None = None) -> NoReturn:
    """Parse argv (default: the program's own) into config_type, call main with it, and exit."""
    guard(lambda: main(parse(config_type, argv)))


def guard(main: Callable[[], int | None]) -> NoReturn:
    """Call main and exit with what it returns (None: 0).

    Exit status 2 with one line for bad input, 130 for Ctrl-C. Bugs keep their traceback; a warning is a
    note. Of several processes only the first to fail prints its line, and those it leaves behind exit with 1.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            status = main()
        sys.stdout.flush()
    except InputError as e:
        status = fail(str(e))
    except ProcessLost as e:
        status = fail(str(e), 1)
    except BrokenPipeError:  # the reader went away, as in `python sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as e:
        status = fail(f"{e.filename}: {e.strerror}" if e.filename else str(e))
    except KeyboardInterrupt:
        status = 130
    with ignore_closed_stdout():  # or Python itself would fail to, and exit with a status of its own
        sys.stderr.flush()
    sys.exit(status)


def fail(message: str, status: int = 2) -> int:
    if speaks_first():
        print("error: " + " ".join(message.split("\n")), file=sys.stderr, flush=True)
    return status


def parse(config_type: type[C], argv: Sequence[str] | None = None) -> C:
    """The settings argv asks for, as an instance of the dataclass config_type.

    Positional arguments are config files, or the field `paths` where config_type has one.
    Raises: InputError for anything unknown or malformed; SystemExit after --help.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    prog = Path(sys.argv[0]).name
    if "--help" in argv or "-h" in argv:
        _tyro(config_type, ["--help"], prog)
    fields = {f.name: f for f in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    flags, positional = _split(argv, fields)
    settings: dict[str, Any] = {}
    if "paths" in fields:
        settings["paths"] = tuple(positional)
    else:
        for file in positional:
            settings |= read_config_file(file, fields)
    # Lists of texts are taken as they are: "--" alone would end the flags for tyro, and is no number anyway.
    texts = {name: tuple(v) for name, v in flags.items() if str(fields[name].type) == "tuple[str, ...]"}
    args = {
        name: [f"--{name}", *(w.replace("--", " --") for w in v)] if len(v) > 1 else [f"--{name}={v[0]}"]
        for name, v in flags.items()
        if name not in texts
    }
    # tyro would turn the messages of __post_init__ into its own; so it only parses, and we construct.
    plain = type(config_type.__name__, (config_type,), {"__post_init__": lambda self: None})
    quiet = contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            values = _tyro(plain, [a for v in args.values() for a in v], prog)
    except SystemExit:
        for name, arg in args.items():  # one of them has a value its type cannot take: find it
            try:
                with quiet:
                    _tyro(plain, arg, prog)
            except SystemExit:
                text, kind = " ".join(flags[name]), describe(get_type_hints(config_type)[name])
                raise InputError(f"{name}={text!r} has the wrong type: it must be {kind}") from None
        raise
    return config_type(**settings | texts | {name: getattr(values, name) for name in args})


def _tyro(config_type: type, args: Sequence[str], prog: str) -> Any:
    options = (tyro.conf.FlagConversionOff,)
    about = sys.modules["__main__"].__doc__  # what the program says of itself, with examples
    return tyro.cli(
        config_type, args=args, prog=prog, description=about, use_underscores=True, config=options
    )


def _many(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).startswith("tuple")


def _split(argv: Sequence[str], fields: dict[str, Any]) -> tuple[dict[str, list[str]], list[str]]:
    """Flags as {name: values}, and the arguments that are not flags."""
    flags: dict[str, list[str]] = {}
    positional: list[str] = []
    rest = list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            positional.append(arg)
            continue
        name, equals, value = arg[2:].partition("=")
        name = name.replace("-", "_")
        if name not in fields:
            raise InputError(f"unknown setting --{name}{nearest(name, fields)}")
        if equals:
            flags[name] = [value]
        elif "bool" in str(fields[name].type) and (not rest or rest[0].startswith("--")):
            flags[name] = ["True"]
        elif not rest or rest[0].startswith("--"):
            raise InputError(f"--{name} needs a value, as in --{name}={_example(fields[name])}")
        else:
            flags[name] = [rest.pop(0)]
        while _many(fields[name]) and rest and not rest[0].startswith("--"):
            flags[name].append(rest.pop(0))
    return flags, positional


def _example(field: dataclasses.Field[Any]) -> str:
    default = field.default
    return (
        " ".join(default)
        if isinstance(default, tuple)
        else repr(default)
        if default == "\n"
        else str(default)
    )


def nearest(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """A hint for a name that is not known."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]}?" if close else ": --help lists the settings"


def read_config_file(file: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Run a config file in a namespace of its own; return the settings it names.

    Config files are the user's own Python and may compute; names with a leading underscore are theirs.
    Raises: InputError if the file is missing, fails, or sets an unknown name.
    """
    path = Path(file)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f": did you mean {path.parent / near[0]}?" if near else "; settings are given as --name=value"
        raise InputError(f"no config file {file}{hint}")
    try:
        namespace = runpy.run_path(file)
    except Exception as e:
        line = e.lineno if isinstance(e, SyntaxError) else _line_in(e, file)
        raise InputError(f"config file {file}, line {line}: {type(e).__name__}: {e}") from e
    given: dict[str, Any] = {}
    for name, value in namespace.items():
        if name in fields:
            if _many(fields[name]) and isinstance(value, list):
                value = tuple(value)
            given[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
        elif not (name.startswith("_") or isinstance(value, types.ModuleType) or callable(value)):
            raise InputError(f"config file {file} sets the unknown name {name}{nearest(name, fields)}")
    return given


def _line_in(error: BaseException, file: str) -> int | str:
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else "?"
