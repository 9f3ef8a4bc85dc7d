"""Every notebook runs from top to bottom, shortened: `make notebooks`. And what they show is what they do:

python notebooks/test_notebooks.py      # runs them as they are, some minutes, and keeps the new outputs
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def run(notebook: Any, folder: str | Path) -> Any:
    """Run a notebook in a folder, with this Python and this nanobackpack; an error in a cell is raised."""
    paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": HERE.parent}
    for name, path in paths.items():
        os.environ[name] = f"{path}{os.pathsep}{os.environ.get(name, '')}"
    # nothing outside is asked: what is in a notebook works without a network
    os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All run in one folder, so that the later ones find the model of the first."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, folder: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"(--\w+_iters|--eval_interval)=\d+", r"\1=50", cell.source)
    run(notebook, folder)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_shows_what_it_does(path: Path) -> None:
    """Each cell has been run, in order, without an error, and nothing tells where."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert not re.search(r"/(tmp|home|root|work)/", str(cells))


def settled(text: str) -> str:
    """What a terminal shows at last: of each line what was written over it, and no progress bars."""
    lines = [re.split(r"\r|\x1b\[2K", line.rstrip("\r"))[-1] for line in text.split("\n")]
    return "\n".join(line for line in lines if not re.search("[█░]|%[|]", line))


def keep(notebook: Any, path: Path) -> None:
    """Write a notebook that has been run, with its outputs, but without progress bars and times."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            written = [output for output in cell.outputs if output.output_type == "stream"]
            text = settled("".join(output.text for output in written if output.name == "stdout"))
            shown = [output for output in cell.outputs if output not in written]
            cell.outputs = ([nbformat.v4.new_output("stream", text=text)] if text else []) + shown
    nbformat.write(notebook, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for path in NOTEBOOKS:
            keep(run(nbformat.read(path, as_version=4), made), path)
