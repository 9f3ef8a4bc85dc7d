"""Predict a word of a Chinese text from its context: top-1 and top-3 (WPLC, nanoBackpackLM's wcpc test).

    python experiments/wcpc.py --out_dir=out-zh --data dev.json
    python experiments/wcpc.py --out_dir=out-zh --data dev.json --protocol v2

v1 reads only the text before the word (3 beams); v2 takes 10 beams and ranks them anew by the text after it.
The file holds JSON lines with `masked_text`, one `<mask>` for each character of the word, and
`correct_word`. A text longer than block_size loses its beginning. Backpacks and GPTs alike.
"""

from dataclasses import dataclass

from nanobackpack import InputError, cli, runtime
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.evaluate import wcpc
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class WcpcConfig(ReadConfig):
    """How often a model finds the word left out of a text."""

    data: str = ""
    """A file of JSON lines with `masked_text` and `correct_word`."""
    protocol: wcpc.Protocol = "v1"
    """v1: from the text before the word; v2: 10 beams, ranked anew by the text after it."""
    limit: int = 0
    """Only the first so many items (0: all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "limit", 0)
        if not self.data:
            raise InputError("data is empty: name a file, as in --data dev.json")


def main(settings: WcpcConfig) -> None:
    files.check_writable(settings.json)
    items = wcpc.read(settings.data)[: settings.limit or None]
    model = open_model(settings)
    device = model.wte.weight.device
    with runtime.autocast(device, runtime.pick_dtype(settings.dtype, device)):
        result = wcpc.word_prediction(model, items, settings.protocol, settings.bos)
    print(result.table())
    write_json(settings.json, result)


if __name__ == "__main__":
    cli.run(main, WcpcConfig)
