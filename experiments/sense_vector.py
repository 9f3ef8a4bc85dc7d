"""What each sense of some words predicts: the same as `nanobackpack senses` (commands/senses.py).

    python experiments/sense_vector.py --device=cpu --compile=False --out_dir=out-shakespeare-char
    python experiments/sense_vector.py --words tasty quickly --k 6 --sense 12 --plot tasty.png

This file is made to be changed. For example, let `main` print what sense 9 of some characters predicts:

    ex = SenseVectorExperiment()
    for word in ["天", "武", "快", "冯"]:
        print(ex.sense_projection(word)[9])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanobackpack.commands import run
from nanobackpack.program import guard

if TYPE_CHECKING:
    from nanobackpack.commands.senses import SenseConfig


class SenseVectorExperiment:
    """A model and its senses; without settings it takes those of the command line."""

    def __init__(self, settings: SenseConfig | None = None) -> None:
        # These take time to import, in which guard hears Ctrl-C.
        from nanobackpack import Senses, cli
        from nanobackpack.commands.senses import SenseConfig
        from nanobackpack.train.checkpoint import load_model_of

        self.settings = settings or cli.parse(SenseConfig)
        self.model = load_model_of(self.settings)
        self.senses = Senses(self.model, self.settings.bos)  # with all the analysis of this package

    def sense_projection(self, word: str, k: int = 5) -> list[list[str]]:
        """List for each sense of the word the k tokens it predicts most: K lists of k."""
        return self.senses.sense_projection(word, k).tokens


def main() -> None:
    run("senses")


if __name__ == "__main__":
    guard(main)
