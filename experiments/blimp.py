"""Sentence pairs: how often is the grammatical one likelier (BLiMP, Table 2 of the Backpack paper)?

    python experiments/blimp.py --out_dir=out --data blimp/
    python experiments/blimp.py --out_dir=out --data anaphor_gender_agreement.jsonl --limit 100

A folder stands for its .jsonl files, which hold JSON lines with `sentence_good` and `sentence_bad`. Backpacks
and GPTs alike. `--bos` begins each sentence with the token that begins a document, which scores its first
word too.
"""

from dataclasses import dataclass
from pathlib import Path

from nanobackpack import InputError, cli, runtime
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.evaluate import blimp
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class BlimpConfig(ReadConfig):
    """How often a model prefers the grammatical one of two sentences."""

    data: tuple[str, ...] = ()
    """Files of JSON lines, one test set each, or folders of them."""
    limit: int = 0
    """Only the first so many pairs of each file (0: all)."""
    batch_size: int = 32
    """Sentences at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "limit", 0)
        at_least(self, "batch_size", 1)
        if not self.data:
            raise InputError("data is empty: name one or more files, as in --data blimp/*.jsonl")


def main(settings: BlimpConfig) -> None:
    files.check_writable(settings.json)
    given = [Path(path) for path in settings.data]
    paths = [file for path in given for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not paths:
        raise InputError(
            f"{files.display_path(given[0])} has no .jsonl files: name the folder that BLiMP came in"
        )
    sets = {path.stem: blimp.read(path)[: settings.limit or None] for path in paths}
    model = open_model(settings)
    device = model.wte.weight.device
    with runtime.autocast(device, runtime.pick_dtype(settings.dtype, device)):
        result = blimp.sentence_pairs(model, sets, settings.bos, settings.batch_size)
    print(result.table())
    write_json(settings.json, result)


if __name__ == "__main__":
    cli.run(main, BlimpConfig)
