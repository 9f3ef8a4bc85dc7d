"""Measure the gender bias of nouns, and take it out: one sense scaled, or a GPT's embedding projected.

    python experiments/gender_bias.py --out_dir=out
    python experiments/gender_bias.py --out_dir=out-zh --language zh --sense auto
    python experiments/gender_bias.py --init_from=gpt2-folder

The bias is how many times likelier one pronoun is than the other after a prompt about the noun, on average;
1 is none (Backpack paper, section 6.2, Table 5). `removed` takes the sense out of the noun, `optimised`
scales it by a factor found for each noun; for a GPT `projected` takes she - he out of what it reads.
"""

from dataclasses import dataclass
from typing import Literal

from nanobackpack import cli
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.evaluate import bias
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class BiasConfig(ReadConfig):
    """Gender bias without and with its remedies, and by how much they reduce it."""

    language: Literal["en", "zh"] = "en"
    """The set of nouns and prompts."""
    sense: Literal["auto"] | int = "auto"
    """The sense to scale, from 0; auto: the one whose removal helps most on prompts kept apart for that."""
    max_iter: int = 50
    """Most steps of the optimisation of a factor."""


def main(settings: BiasConfig) -> None:
    at_least(settings, "max_iter", 1)
    files.check_writable(settings.json)
    found = bias.gender_bias(
        open_model(settings), settings.language, settings.sense, max_iter=settings.max_iter, bos=settings.bos
    )
    print(found.table())
    write_json(settings.json, found)


if __name__ == "__main__":
    cli.run(main, BiasConfig)
