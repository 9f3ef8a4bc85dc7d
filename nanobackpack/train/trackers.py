"""Where a run can report besides metrics.jsonl: Weights & Biases, Trackio or TensorBoard.

    tracker = start_tracker(config, step=0, run_id="3f2a...")  # None if the settings ask for none
    tracker.log({"train_loss": 4.1}, step=1)
    tracker.finish()

All get the same numbers, and a run that is resumed goes on there as the same run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nanobackpack.config import TrainConfig
from nanobackpack.errors import InputError, first_line


def start_tracker(
    config: TrainConfig, step: int, run_id: str | None, kept: Sequence[dict[str, Any]] = ()
) -> Any:
    """Start or continue the run of that id with the tracker that the settings name, if they name one.

    `kept` are the lines of metrics.jsonl that stay in a run that goes on.
    """
    name = config.wandb_run_name
    if name == "auto":
        name = f"{Path(config.huge_pack_dir or config.dataset).resolve().name} {config.model_name}"
    # An evaluation is a run of its own there.
    id_there = None if config.eval_only else run_id
    tracker = config.tracker_name
    if config.wandb_log and tracker != "wandb":
        warnings.warn(f"tracker={tracker} goes before wandb_log=True: wandb is told nothing", stacklevel=2)
    try:
        if tracker == "wandb":
            return start_wandb(config, name, id_there)
        if tracker == "trackio":
            return start_trackio(config, name, id_there)
        return TensorBoard(config, step, kept) if tracker == "tensorboard" else None
    except ImportError as error:
        how = "wandb_log=True" if config.tracker == "auto" else f"tracker={tracker}"
        raise InputError(f"{how} needs {tracker}: pip install 'nanobackpack[{tracker}]'") from error


def start_wandb(config: TrainConfig, name: str, run_id: str | None) -> Any:
    """Start or continue a run on Weights & Biases; with WANDB_MODE=offline in out_dir/wandb."""
    from wandb import init  # which a mere folder called wandb does not have

    # WANDB_RUN_ID is for a copy of a run, and of a sweep.
    id_there = None if config.eval_only else os.environ.get("WANDB_RUN_ID", run_id)
    try:
        return init(
            project=config.wandb_project, name=name, config=dataclasses.asdict(config), dir=config.out_dir,
            id=id_there, resume="allow" if id_there else None,
        )  # fmt: skip
    except Exception as error:  # of the network, of the account, of the version
        raise InputError(
            f"wandb does not start: {first_line(error)} Or keep the log here: WANDB_MODE=offline"
        ) from error


def start_trackio(config: TrainConfig, name: str, run_id: str | None) -> Any:
    """Start or continue a run in Trackio's files on this machine, or in a Space that TRACKIO_SPACE_ID names.

    Trackio finds a run by its name, so that the id is a part of it. It cannot take a step back: what a run
    that was killed does again stands there twice.
    """
    from trackio import init

    unique = f"{name} {run_id[:8]}" if run_id else name
    resume, settings = "allow" if run_id else "never", dataclasses.asdict(config)
    try:
        return init(config.wandb_project, unique, config=settings, resume=resume)
    except Exception as error:
        raise InputError(f"trackio does not start: {first_line(error)}") from error


class TensorBoard:
    """The event files of a run, in its out_dir; a new run moves them away with the rest of an older one."""

    def __init__(self, config: TrainConfig, step: int, kept: Sequence[dict[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

        self._open, self._config, self._step = SummaryWriter, config, step
        self._again = [] if config.eval_only else [r for r in kept if r["step"] == step]

    @cached_property
    def _writer(self) -> Any:
        """The file, made when the first number comes: by then an older run has left the folder."""
        config = self._config
        folder = Path(config.out_dir, "evaluation" if config.eval_only else "")
        # From this step on TensorBoard forgets what was reported: what a run that was killed does again, and
        # the evaluation with which a run goes on. What else there is of this step is told once more.
        purge_step = self._step if config.init_from == "resume" else None
        writer = self._open(str(folder), purge_step=purge_step)
        settings = json.dumps(dataclasses.asdict(config), indent=4)
        writer.add_text("settings", f"```\n{settings}\n```", self._step)
        for name, value in (item for record in self._again for item in record.items()):
            if name != "step":
                writer.add_scalar(name, value, self._step)
        return writer

    def log(self, numbers: dict[str, Any], step: int) -> None:
        """Write some numbers of one step, so that they can be seen at once."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()
