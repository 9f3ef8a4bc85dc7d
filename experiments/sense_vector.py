"""Print what each sense of some words predicts: the tokens it scores highest, then those it scores lowest.

    python experiments/sense_vector.py --device=cpu --compile=False --out_dir=out-shakespeare-char
    python experiments/sense_vector.py --out_dir=out-shakespeare-char --words th he --k=8
    python experiments/sense_vector.py --words tasty quickly --k 6 --sense 12 --plot tasty.png
    python experiments/sense_vector.py --words tasty --neighbours

Change `main` to look at other things: `SenseVectorExperiment` is made for that, and its `senses` offers
all the analysis of nanobackpack.Senses.
"""

from typing import Literal

from nanobackpack import cli, files, senses
from nanobackpack.checkpoint import open_model
from nanobackpack.config import SenseConfig
from nanobackpack.results import Ranking, write_json


class SenseVectorExperiment:
    """A model and its senses; without settings it takes those of the command line."""

    def __init__(self, settings: SenseConfig | None = None) -> None:
        self.settings = settings or cli.parse(SenseConfig)
        self.model = open_model(self.settings)
        self.senses = senses.Senses(self.model, self.settings.bos)

    def sense_projection(self, word: str, k: int = 5) -> list[list[str]]:
        """For each sense of the word the k tokens it predicts most: K lists of k."""
        return self.senses.sense_projection(word, k).tokens

    def listings(self, word: str) -> list[Ranking]:
        """What the settings ask for: the highest and lowest scores of the senses, or their neighbours."""
        s = self.settings
        sense: int | Literal["all"] = "all" if s.sense < 0 else s.sense
        if s.neighbours:
            return [self.senses.nearest(word, s.k, sense)]
        return [self.senses.sense_projection(word, s.k, bottom, sense=sense) for bottom in (False, True)]


def main() -> None:
    ex = SenseVectorExperiment()
    for path in (ex.settings.json, ex.settings.plot):
        files.check_place(path)
    found = [ex.listings(word) for word in ex.settings.words]
    for listings in found:
        print("\n".join(listing.table() for listing in listings))
    if ex.settings.plot:
        found[0][0].plot(ex.settings.plot)
    write_json(ex.settings.json, found)


if __name__ == "__main__":
    cli.guard(main)
