"""Hand a model on: to transformers, to the Hugging Face hub, to the programs that other Backpacks are in.

    nanobackpack export out-en king
    nanobackpack export out-en king-no-queen --edits=edit.safetensors
    nanobackpack export out-en king --push=me/king
    nanobackpack export out-en king-nano --layout=nanobackpacklm

The second argument is a new folder. Edits of senses are baked in: what opens the folder needs no edit file.
docs/hub.md says what opens what.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanobackpack.config import Settings
from nanobackpack.errors import InputError
from nanobackpack.safe.download import is_id


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """Which model, and as what."""

    paths: tuple[str, ...] = ()
    """The model, as a run's folder, a checkpoint or a name on the hub; and a new folder to write."""
    layout: Literal["transformers", "backpack-gpt2", "nanobackpacklm"] = "transformers"
    """transformers: with its code; backpack-gpt2: the paper's class; nanobackpacklm: a ckpt.pt."""
    edits: str = ""
    """A file of edits of senses to bake into the model (steer and edit --save write one)."""
    push: str = ""
    """Also put the folder on the Hugging Face hub, as user/name."""
    tokenizer_name: str = "auto"
    """auto: the one stored with the model; else a name, a file or a folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) != 2:
            raise InputError("give the model and a new folder, as in nanobackpack export out king")
        if self.push and ("/" not in self.push or not is_id(self.push)):
            raise InputError(f"push={self.push!r} is no name on the hub: give user/name")


def main(settings: ExportConfig) -> None:
    from nanobackpack.analysis import control
    from nanobackpack.hub.card import card
    from nanobackpack.hub.export import export, push
    from nanobackpack.train.checkpoint import load_model, run_settings

    run, folder = map(Path, settings.paths)
    model = load_model(run, settings.tokenizer_name)
    if settings.edits:
        model = control.bake(model, control.load(settings.edits, model))
    name = settings.push or folder.name
    dataset = str(run_settings(run.parent if run.is_file() else run).get("dataset", ""))
    text = card(model, run, name, settings.layout, settings.edits)
    export(model, folder, settings.layout, text, dataset)
    if model.tokenizer is None:
        print(f"{run} has no tokenizer, so none goes with it: --tokenizer_name gives one")
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if settings.push:
        push(folder, settings.push)
        print(f"https://huggingface.co/{settings.push}")
