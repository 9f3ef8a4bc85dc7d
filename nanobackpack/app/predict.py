"""Why this next token? The distribution, and exactly what each sense of each token adds to a logit.

view = predict(model, "The nurse said that", "she", "he", source="out-en")
view.html, view.python, view.command
"""

from __future__ import annotations

from nanobackpack.analysis.results import Contributions, Ranking
from nanobackpack.analysis.senses import Senses
from nanobackpack.app import html
from nanobackpack.app.view import View, command_of, python_of, warned
from nanobackpack.model.backpack import LanguageModel

_STRONGEST = 10  # contributions that are told in words


def predict(
    model: LanguageModel,
    prompt: str,
    token: str = "",
    versus: str = "",
    sense: int | None = None,
    *,
    k: int = 12,
    source: str = "out",
    click: bool = True,
) -> View:
    """Show what a model expects after a prompt, and why `token` (the likeliest, if it is not given), or why
    it and not `versus`. `sense` is the one whose weights the prompt shows at first; `source` is what the
    model was opened as. With `click` each candidate can be asked about (html.bars)."""
    with warned() as said:
        senses = Senses(model, bos="auto", special=True, typed=True)
        likeliest = senses.next_tokens(prompt, k)
        asked = token or likeliest.ids[0, :1].tolist()
        why = senses.contributions(prompt, asked, versus or None)
    chosen = [senses.tokenizer.token(senses.tokenizer.word_ids(word)[0]) for word in (asked, versus) if word]
    if sense is None or not 0 <= sense < why.weights.size(1):
        sense = why.ranked(1)[0][1]
    flags = [f"--next={token}"] * bool(token) + [f"--versus={versus}"] * bool(versus)
    given = [repr(token)] if token else ["likeliest.ids[0, :1].tolist()"]
    given += [f"versus={versus!r}"] * bool(versus)
    state = {"prompt": prompt, "token": token, "versus": versus, "sense": str(sense)}
    return View(
        html=html.show(html.note(*dict.fromkeys(said)), _shown(likeliest, why, chosen, sense, click)),
        results=[likeliest, why],
        python=python_of(
            source,
            f"prompt = {prompt!r}",
            f"likeliest = senses.next_tokens(prompt, k={k})",
            f"why = senses.contributions(prompt, {', '.join(given)})",
            "print(likeliest.table(scores=True))",
            "print(why.table())",
        ),
        command=command_of("explain", source, f"--prompt={prompt}", *flags),
        state={name: value for name, value in state.items() if value},
    )


def _shown(likeliest: Ranking, why: Contributions, chosen: list[str], sense: int, click: bool) -> str:
    names, shares = list(likeliest.tokens[0]), likeliest.scores[0].tolist()
    for name, share in zip(chosen, why.probability, strict=True):
        if name not in names:  # what was asked for is among the bars, however unlikely
            names.append(name)
            shares.append(share)
    what = " and not ".join(map(repr, chosen))
    reading = "the logit of " + " minus that of ".join(map(repr, chosen))
    return "".join(
        [
            html.section(
                "What the model reads",
                html.overlay(why, sense),
                about="Its tokens. The darker, the more this sense of the token counts for the next one.",
            ),
            html.columns(
                html.section(
                    "What may come next",
                    html.bars(names, shares, chosen=chosen, click=click),
                    about="Choose a token to see why; vs compares it with another." if click else "",
                ),
                html.section(f"Why {what}, in words", strongest(why, chosen)),
            ),
            html.section(
                f"Why {what}, exactly",
                html.heat_map(why),
                about=f"Each sense of each token adds its weight times what it says. The sum, "
                f"{html.signed(why.logit)}, is {reading}: nothing is left over.",
            ),
        ]
    )


def strongest(why: Contributions, chosen: list[str], n: int = _STRONGEST) -> str:
    """Say the n strongest contributions in words, those against the token too."""
    lines = []
    for j, sense, value in why.ranked(n):
        name = why.tokens[j]
        # A token that stands in several places is told by its number.
        where = f" ({j + 1}. token)" if why.tokens.count(name) > 1 else ""
        if value > 0:
            does, kind, by = f"pushes {chosen[0]!r} by", "nb-for", value
        elif len(chosen) > 1:
            does, kind, by = f"pushes {chosen[1]!r} instead by", "nb-against", value
        else:
            does, kind, by = f"holds {chosen[0]!r} back by", "nb-against", value
        says = html.escape(f"{name!r}{where}, sense {sense}, {does} ")
        lines.append(html.tag("li", says, html.tag("b", html.signed(by), class_=kind)))
    return html.tag("ol", *lines, class_="nb-ranked")
