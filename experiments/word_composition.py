"""Say how the tokens of a word share its weight, sense by sense, and whether that depends on the context.

    python experiments/word_composition.py --out_dir=out-zh --word 新闻 --sentences sentences.txt

`sentences` is a text file with one sentence a line; lines without the word are passed over, and so, with a
note, are those longer than block_size or with characters the model does not know. Each row of the table is a
sense: the mean share of each token, and how far the first one's share strays from its mean.
"""

import warnings
from dataclasses import dataclass

from nanobackpack import InputError, Senses, cli
from nanobackpack.analysis.results import write_json
from nanobackpack.config import AnalysisConfig
from nanobackpack.evaluate.scoring import lines
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class CompositionConfig(AnalysisConfig):
    """How the tokens of a word share its weight over some sentences."""

    word: str = ""
    """A word of two tokens or more."""
    sentences: str = ""
    """A text file with one sentence a line."""
    plot: str = ""
    """Also draw the mean shares to this PNG."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sentences:
            raise InputError("sentences is empty: name a text file with one sentence a line")


def main(settings: CompositionConfig) -> None:
    for path in (settings.json, settings.plot):
        files.check_writable(path)
    senses = Senses(open_model(settings), settings.bos)
    sentences, left_out = [], []
    for number, line in lines(settings.sentences):
        try:
            senses.encode(line)
            sentences.append(line)
        except InputError as error:
            left_out.append(f"line {number}: {error}")
    if left_out:
        warnings.warn(f"{len(left_out)} sentences are left out, the first in {left_out[0]}", stacklevel=2)
    result = senses.word_composition(settings.word, sentences)
    print(result.table())
    if settings.plot:
        result.plot(settings.plot)
    write_json(settings.json, result)


if __name__ == "__main__":
    cli.run(main, CompositionConfig)
