"""Which senses of which tokens make a prediction: the exact share of each in the next token's logit.

    nanobackpack explain --out_dir=out-zh --prompt "却说曹" --next 操 --versus 丕
    nanobackpack explain --prompt "The nurse said that" --next he --versus she --plot heat.png

This is direct logit attribution, and exact: the logit of `next` is a sum over positions and senses of
α · (E · C). With `versus` the difference of two logits is explained, the logarithm of how many times likelier
`next` is. Without `next` the likeliest token is taken. Positive contributions raise the logit of `next`,
negative ones lower it (or raise that of `versus`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanobackpack.analysis.results import Contributions, Ranking, Result, report
from nanobackpack.config import AnalysisConfig, Special

if TYPE_CHECKING:
    from nanobackpack.model.backpack import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(AnalysisConfig):
    """Why a model predicts a token: the contribution of each sense of each token of the prompt."""

    prompt: str = ""
    """The text before the token."""
    special: Special = "auto"
    """allow, auto: a name in the prompt such as <|endoftext|> is that special token; plain: it is text."""
    next: str = ""
    """The token to explain, as a word (empty: the likeliest)."""
    versus: str = ""
    """Explain instead why `next` is likelier, or less likely, than this token."""
    k: int = 15
    """Contributions to list."""
    plot: str = ""
    """Also draw all contributions to this PNG: red raises the token's logit, blue lowers it."""


@dataclass(frozen=True, kw_only=True)
class Explanation(Result):
    """The likeliest next tokens, and the contributions to the logit of one."""

    next_tokens: Ranking
    contributions: Contributions
    k: int
    """Contributions to list."""

    def table(self) -> str:
        return f"{self.next_tokens.table(scores=True)}\n{self.contributions.table(self.k)}"

    def records(self) -> list[dict[str, Any]]:
        return self.contributions.records()

    def plot(self, path: str) -> None:
        self.contributions.plot(path)


def main(settings: ExplainConfig) -> None:
    report(settings, lambda model: explain(model, settings))


def explain(model: LanguageModel, settings: ExplainConfig) -> Explanation:
    """Explain what the settings ask for."""
    from nanobackpack.analysis.senses import Senses

    senses = Senses(model, settings.bos, special=settings.special != "plain", typed=True)
    prompt = settings.prompt
    likeliest = senses.next_tokens(prompt)
    token = settings.next or likeliest.ids[0, :1].tolist()
    found = senses.contributions(prompt, token, settings.versus or None)
    return Explanation(title=prompt, next_tokens=likeliest, contributions=found, k=settings.k)
