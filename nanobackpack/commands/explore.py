"""Look at models in the browser: what they predict and why, what their senses mean, what edits do.

    nanobackpack explore                                   # the model in out or out-demo, else words-small
    nanobackpack explore --init_from=words-small
    nanobackpack explore --out_dir out-en out-zh           # side by side; of runs their losses, live
    nanobackpack explore --out_dir=out-en --port=7861 --open=False

The page is served to this machine alone, and asks no other for anything: it works without a network. Ctrl-C
ends it. It needs gradio: pip install 'nanobackpack[app]'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nanobackpack.config import Settings


@dataclass(frozen=True, kw_only=True)
class ExploreConfig(Settings):
    """Which models to look at, and where the page is."""

    out_dir: tuple[str, ...] = ()
    """Folders of training runs, several to compare."""
    init_from: tuple[str, ...] = ()
    """words-small, which comes with the package; or a checkpoint, a model folder, or a hub's name."""
    port: int = 0
    """Port of 127.0.0.1 (0: the first from 7860 up that is free)."""
    open: bool = True
    """Open the page in the browser."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), cpu, mps, cuda, cuda:1, ..."""
    tokenizer_name: str = "auto"
    """auto: the one stored with the model; else a name, a file or a folder."""


def main(settings: ExploreConfig) -> None:
    from nanobackpack.app.explore import open_models, serve

    paths = [*settings.out_dir, *settings.init_from]
    if not paths:  # what is here: an own run, the demo's, or what comes with the package
        paths = [path for path in ("out", "out-demo") if Path(path, "metrics.jsonl").is_file()]
        paths = paths or ["words-small"]
        print(f"No model is named, so this shows {' and '.join(paths)}; --out_dir=FOLDER shows another.")
    models = open_models(paths, settings.device, settings.tokenizer_name)
    serve(models, settings.port, settings.open)
