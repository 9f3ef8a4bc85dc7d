"""Print what each sense of some words predicts: the tokens it scores highest, then those it scores lowest.

    python experiments/sense_vector.py --device=cpu --compile=False --out_dir=out-shakespeare-char
    python experiments/sense_vector.py --out_dir=out-shakespeare-char --words th he --k=8
    python experiments/sense_vector.py --words tasty quickly --k 6 --sense 12 --plot tasty.png
    python experiments/sense_vector.py --words tasty --neighbours

Change `main` to look at other things: `SenseVectorExperiment` is made for that, and its `senses` offers
all the analysis of nanobackpack.Senses.
"""

from functools import partial
from typing import Literal

from nanobackpack import cli
from nanobackpack.analysis import senses
from nanobackpack.analysis.results import Ranking, write_json
from nanobackpack.config import SenseConfig
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


class SenseVectorExperiment:
    """A model and its senses; without settings it takes those of the command line."""

    def __init__(self, settings: SenseConfig | None = None) -> None:
        self.settings = settings or cli.parse(SenseConfig)
        self.model = open_model(self.settings)
        self.senses = senses.Senses(self.model, self.settings.bos)

    def sense_projection(self, word: str, k: int = 5) -> list[list[str]]:
        """For each sense of the word the k tokens it predicts most: K lists of k."""
        return self.senses.sense_projection(word, k).tokens

    def listings(self) -> list[list[Ranking]]:
        """For each word what the settings ask for: the highest and the lowest scores, or neighbours."""
        s = self.settings
        sense: int | Literal["all"] = "all" if s.sense < 0 else s.sense
        if s.neighbours:
            return [[ranking] for ranking in self.senses.nearest_many(s.words, s.k, sense)]
        project = partial(self.senses.sense_projection, k=s.k, sense=sense)
        return [[project(word), project(word, bottom=True)] for word in s.words]


def main() -> None:
    ex = SenseVectorExperiment()
    for path in (ex.settings.json, ex.settings.plot):
        files.check_writable(path)
    found = ex.listings()
    for listings in found:
        print("\n".join(listing.table() for listing in listings))
    if ex.settings.plot:
        found[0][0].plot(ex.settings.plot)
    write_json(ex.settings.json, found)


if __name__ == "__main__":
    cli.guard(main)
