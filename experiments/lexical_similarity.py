"""Do words that people find alike have senses that point the same way? Spearman's ρ (Table 4 of the paper).

    python experiments/lexical_similarity.py --out_dir=out --data simlex=SimLex-999.txt rg65=RG65.csv
    python experiments/lexical_similarity.py --data wordsim240=240.txt --poolings avg contextualized

Test sets, each as its authors publish it: simlex, simverb, rg65, ws353, wordsim240, wordsim297. The rows of
the table are the embedding E, all senses together (flat), each sense, and the least cosine over the senses
(min); a GPT has only E. Poolings say how a word of several tokens becomes one: avg, first, contextualized.
"""

from dataclasses import dataclass

from nanobackpack import InputError, cli
from nanobackpack.analysis.results import write_json
from nanobackpack.analysis.senses import Pooling
from nanobackpack.config import ReadConfig
from nanobackpack.evaluate.lexical_similarity import lexical_similarity
from nanobackpack.evaluate.scoring import FORMATS, read_pairs
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class LexicalConfig(ReadConfig):
    """Rank correlation of the cosines of words with people's judgement of how alike they are."""

    data: tuple[str, ...] = ()
    """Test sets as NAME=FILE; NAME is simlex, simverb, rg65, ws353, wordsim240 or wordsim297."""
    poolings: tuple[Pooling, ...] = ("avg", "first")
    """How a word of several tokens becomes one vector: avg, first, contextualized."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data or not self.poolings:
            raise InputError("name one or more test sets, as in --data simlex=SimLex-999.txt")
        for item in self.data:
            if item.partition("=")[0] not in FORMATS or not item.partition("=")[2]:
                raise InputError(f"data={item!r} is not NAME=FILE with NAME one of {', '.join(FORMATS)}")


def main(settings: LexicalConfig) -> None:
    files.check_writable(settings.json)
    named = [item.partition("=")[::2] for item in settings.data]
    sets = {name: read_pairs(name, path) for name, path in named}
    result = lexical_similarity(open_model(settings), sets, settings.poolings)
    print(result.table())
    write_json(settings.json, result)


if __name__ == "__main__":
    cli.run(main, LexicalConfig)
