"""Print what each sense of some words predicts.

    python experiments/sense_vector.py --device=cpu --compile=False --out_dir=out-shakespeare-char
    python experiments/sense_vector.py --out_dir=out-shakespeare-char --words th he --k=8

Change `main` to look at other things: `SenseVectorExperiment` is made for that.
"""

from nanobackpack import cli, runtime, senses
from nanobackpack.checkpoint import load_model
from nanobackpack.config import SenseConfig


class SenseVectorExperiment:
    """A model and its senses; without settings it takes those of the command line."""

    def __init__(self, settings: SenseConfig | None = None) -> None:
        self.settings = settings or cli.parse(SenseConfig)
        self.model = load_model(self.settings.model_path, self.settings.tokenizer_name)
        self.model.to(runtime.pick_device(self.settings.device))
        self.senses = senses.Senses(self.model)

    def sense_projection(self, word: str, k: int = 5) -> list[list[str]]:
        """For each sense of the word the k tokens it predicts most: K lists of k."""
        return [[t.token for t in row] for row in self.senses.sense_projection(word, k)]


def main() -> None:
    ex = SenseVectorExperiment()
    for word in ex.settings.words:
        print(senses.table(word, ex.sense_projection(word, ex.settings.k)))


if __name__ == "__main__":
    cli.guard(main)
