"""Say why a model prefers a next token: the exact share of each sense of each token of the prompt.

    python experiments/explain.py --out_dir=out-shakespeare-char --prompt "O Rome" --next o --versus a
    python experiments/explain.py --prompt "The nurse said that" --next he --versus she --plot heat.png

The logit of `next` is a sum over positions and senses, α · (E · C); with `versus` it is the difference of
two logits, the logarithm of how many times likelier `next` is. Without `next` the likeliest token is taken.
Positive contributions speak for `next`, negative ones against it (or for `versus`).
"""

from dataclasses import dataclass

from nanobackpack import Senses, cli
from nanobackpack.analysis.results import write_json
from nanobackpack.config import AnalysisConfig, at_least
from nanobackpack.safe import files
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(AnalysisConfig):
    """Why a model predicts a token: the contribution of each sense of each token of the prompt."""

    prompt: str = ""
    """The text before the token; at most block_size tokens."""
    next: str = ""
    """The token to explain, as a word (empty: the likeliest)."""
    versus: str = ""
    """Explain instead why `next` is likelier, or less likely, than this token."""
    k: int = 15
    """Contributions to list."""
    plot: str = ""
    """Also draw all contributions to this PNG: red speaks for the token, blue against it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "k", 1)


def main(settings: ExplainConfig) -> None:
    for path in (settings.json, settings.plot):
        files.check_writable(path)
    senses = Senses(open_model(settings), settings.bos)
    likeliest = senses.next_tokens(settings.prompt)
    next = settings.next or likeliest.ids[0, :1].tolist()
    result = senses.contributions(settings.prompt, next, settings.versus or None)
    print(likeliest.table(scores=True))
    print(result.table(settings.k))
    if settings.plot:
        result.plot(settings.plot)
    write_json(settings.json, {"next_tokens": likeliest, "contributions": result})


if __name__ == "__main__":
    cli.run(main, ExplainConfig)
