"""Last words of passages: perplexity and accuracy (LAMBADA, Table 2 of the Backpack paper).

    python experiments/lambada.py --out_dir=out --data lambada_test.jsonl

The file holds JSON lines with `text`. Backpacks and GPTs alike. `--bos` begins each passage with the token
that begins a document. Passages longer than block_size lose their beginning.
"""

from dataclasses import dataclass

from nanobackpack import InputError, cli, runtime
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.evaluate import lambada
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class LambadaConfig(ReadConfig):
    """How well a model predicts the last word of passages."""

    data: str = ""
    """A file of JSON lines with `text`."""
    limit: int = 0
    """Only the first so many passages (0: all)."""
    batch_size: int = 16
    """Passages at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "limit", 0)
        at_least(self, "batch_size", 1)
        if not self.data:
            raise InputError("data is empty: name a file, as in --data lambada_test.jsonl")


def main(settings: LambadaConfig) -> None:
    files.check_writable(settings.json)
    passages = lambada.read(settings.data)[: settings.limit or None]
    model = open_model(settings)
    device = model.wte.weight.device
    with runtime.autocast(device, runtime.pick_dtype(settings.dtype, device)):
        result = lambada.last_word(model, passages, settings.bos, settings.batch_size)
    print(result.table())
    write_json(settings.json, result)


if __name__ == "__main__":
    cli.run(main, LambadaConfig)
