"""The house: imports go down, never in a circle; --help needs no torch; what is published is complete."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import mutants

import nanobackpack
from nanobackpack.cli import CONFIGS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nanobackpack"
# From the ground up: a module may import from its own floor and from those above it in this list.
FLOORS = [
    ["errors", "program", "config", "runtime", "cli"],
    *([name] for name in ("safe", "text", "model", "train", "analysis", "evaluate", "hub", "app")),
    ["commands", "bench", "__main__"],
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
MODULES = {  # __init__.py of the package is the front door: it has names of all floors, imported on first use
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def imports(module: str) -> Iterator[str]:
    """The modules of this package that one imports, wherever the import stands: lazy ones and types too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                home = node.module or ""
                if home == "nanobackpack" and alias.name in nanobackpack._HOMES:
                    home = f"nanobackpack.{nanobackpack._HOMES[alias.name]}"
                full = f"{home}.{alias.name}"
                yield from [full] if full in MODULES else [home] if home in MODULES else []


def test_every_module_has_a_floor() -> None:
    assert {module.split(".")[1] for module in MODULES} <= FLOOR.keys()


def test_imports_go_down_and_never_in_a_circle() -> None:
    graph = {module: set(imports(module)) - {module} for module in MODULES}
    floor = {module: FLOOR[module.split(".")[1]] for module in MODULES}
    up = [
        f"{module} → {other}" for module in graph for other in graph[module] if floor[other] > floor[module]
    ]
    assert up == []
    assert set(TopologicalSorter(graph).static_order()) == MODULES.keys()  # CycleError names the circle


# --- What needs no torch ----------------------------------------------------------------------

NO_TORCH = ["errors", "config", "cli", "program", "__main__", "analysis.results", "text.corpus", "text.words"]
NO_TORCH += ["text.tokenizer", "text.tokenizer_files", "text.dictionaries", "text.readers", "text.splits"]
NO_TORCH += ["text.prepare"]
NO_TORCH_FOLDERS = ("safe", "evaluate", "commands")


def python(code: str) -> str:
    """What a Python of its own prints, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


WITHOUT = """
import sys
class Without:
    def find_spec(name, *_):
        if name in {names}:
            raise ImportError(f"needs {{name}}")
sys.meta_path.insert(0, Without)
"""


def test_modules_that_need_no_torch() -> None:
    modules = [f"nanobackpack.{name}" for name in NO_TORCH]
    modules += [m for m in MODULES if m.split(".")[1] in NO_TORCH_FOLDERS]
    code = f"""{WITHOUT.format(names=["torch"])}
import importlib
for name in {modules}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, error)
"""
    assert python(code) == ""


def test_help_and_completion_need_nothing_slow() -> None:
    code = f"""{WITHOUT.format(names=["torch", "numpy", "tokenizers", "tqdm"])}
import contextlib, io
from nanobackpack import cli, commands
for argv in [*([verb, "--help"] for verb in commands.VERBS), *([cli.COMPLETION[0], s] for s in cli.SHELLS)]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            commands.main(argv)
    except (ImportError, AttributeError) as error:
        print(argv, error)
"""
    assert python(code) == ""


def test_the_hub_is_imported_where_it_is_used() -> None:
    """It imports transformers if that is installed, for more than two seconds."""
    at_start = [
        module
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nanobackpack.hub")
    ]
    assert {module.split(".")[1] for module in at_start} <= {"hub", "bench"}


# --- What is published ------------------------------------------------------------------------


def test_the_wheel_holds_every_folder_and_the_config_files() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setup = settings["tool"]["setuptools"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(setup["packages"]) == folders | {"nanobackpack.configs"}
    assert ROOT / setup["package-dir"]["nanobackpack.configs"] == CONFIGS
    assert all(folder in folders for folder in {module.rpartition(".")[0] for module in MODULES})


def test_versions_agree() -> None:
    version = nanobackpack.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")[:30]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    assert settings["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert settings["tool"]["mypy"]["python_version"] == oldest
    classifiers = settings["project"]["classifiers"]
    assert min(c.split(".")[-1] for c in classifiers if "Python :: 3" in c) == oldest.split(".")[1]


def test_the_mutants_are_of_the_code_as_it_is() -> None:
    for mutant in mutants.MUTANTS:
        assert (PACKAGE / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1, mutant
        file, test = mutant.test.split("::")
        assert f"def {test.split('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), mutant
