"""Why this next token? The distribution, and exactly what each sense of each token adds to a logit.

view = predict(model, "The nurse said that", "she", "he", source="out-en")
view.html, view.python, view.command
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from urllib.parse import urlencode

import torch

from nanobackpack.analysis.prompts import as_read, cleaned
from nanobackpack.analysis.results import Contributions, Ranking
from nanobackpack.analysis.senses import Senses
from nanobackpack.app import html
from nanobackpack.app.characters import shown_tokens
from nanobackpack.app.view import View, command_of, python_of
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.runtime import eval_mode
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import needs_tokenizer, token_id

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
    model was opened as. With `click` each candidate can be asked about (html.bars). Of a
    GPT, which cannot be taken apart so, only the distribution is shown."""
    if not isinstance(model, BackpackLM):
        return _without_senses(model, prompt, [word for word in (token, versus) if word], k, source)
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
        html=html.show(_shown(senses.tokenizer, likeliest, why, chosen, sense, click)),
        results=[likeliest, why],
        drawn=[why],
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


def next_tokens(model: LanguageModel, prompt: str, k: int = 12) -> Ranking:
    """List the k likeliest next tokens of any model, a GPT too; `scores` (1, k) are their probabilities."""
    p = _probabilities(model, _read(model, prompt))
    best, tokenizer = p.topk(min(k, len(p))), needs_tokenizer(model.tokenizer)
    tokens = [[tokenizer.token(i) for i in best.indices.tolist()]]
    return Ranking(
        title=f"after {prompt!r}",
        labels=["next"],
        ids=best.indices[None],
        scores=best.values[None],
        tokens=tokens,
    )


def _read(model: LanguageModel, prompt: str) -> list[int]:
    """Give the ids of a prompt, as `nanobackpack sample` reads it."""
    if not prompt:
        raise InputError("the prompt is empty: give at least one character")
    return as_read(model, needs_tokenizer(model.tokenizer).prompt_ids(cleaned(prompt), True))


def _probabilities(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """Give p of each real token as the next one, (V)."""
    with eval_mode(model):
        logits = model(torch.tensor([ids], device=model.wte.weight.device)).logits[0, -1]
    return logits.softmax(dim=0)[: model.config.n_token]


def _without_senses(model: LanguageModel, prompt: str, asked: list[str], k: int, source: str) -> View:
    """Show what a GPT reads and expects, and the tokens asked about, however unlikely."""
    tokenizer, ids = needs_tokenizer(model.tokenizer), _read(model, prompt)
    likeliest = next_tokens(model, prompt, k)
    p, shares = (
        _probabilities(model, ids),
        dict(zip(likeliest.tokens[0], likeliest.scores[0].tolist(), strict=True)),
    )
    shares |= {tokenizer.token(i): p[i].item() for i in (token_id(tokenizer, word) for word in asked)}
    names = sorted(shares, key=lambda name: -shares[name])
    python = (
        "import nanobackpack as nb\nfrom nanobackpack.app.predict import next_tokens\n\n"
        f"likeliest = next_tokens(nb.load_model({source!r}), {prompt!r}, k={k})\n"
        "print(likeliest.table(scores=True))\n"
    )
    return View(
        html=html.show(
            html.note("This model is a GPT and has no senses, so why it expects this cannot be shown."),
            html.section(
                "What the model reads", html.chips(shown_tokens(tokenizer, [tokenizer.token(i) for i in ids]))
            ),
            html.section("What may come next", html.bars(names, [shares[n] for n in names], click=False)),
        ),
        results=[likeliest],
        drawn=[likeliest],
        python=python,
        command=shlex.join(["python", "-c", python]),
        state={"prompt": prompt},
    )


def _shown(
    tokenizer: Tokenizer, likeliest: Ranking, why: Contributions, chosen: list[str], sense: int, click: bool
) -> str:
    shares = dict(zip(likeliest.tokens[0], likeliest.scores[0].tolist(), strict=True))
    shares |= dict(zip(chosen, why.probability, strict=True))  # however unlikely
    names = sorted(shares, key=lambda name: -shares[name])
    first, *other = map(html.quoted, chosen)
    what = f"{first} and not {other[0]}" if other else first
    shown = shown_tokens(tokenizer, why.tokens)
    sum_of = f"{first} minus that of {other[0]}" if other else first
    bars = html.section(
        "What may come next",
        html.bars(names, [shares[name] for name in names], chosen=chosen, click=click),
        about="Choose a token to see why; vs compares it with another." if click else "",
    )
    heat_map = html.section(
        f"Why {what}: the whole sum",
        html.heat_map(replace(why, tokens=shown)),
        about="A cell is what one sense of one token adds: its weight α times what it says. Red is for "
        f"{first}, blue {f'for {other[0]}' if other else 'against it'}. All cells together are the logit of "
        f"{sum_of}, {html.signed(why.logit)}; nothing is left over.",
    )
    reads = html.section(
        "What the model reads",
        html.chips(shown, why.weights.tolist(), sense),
        about="Its tokens; a dot is a space. The stronger the colour, the more this sense counts here.",
    )
    words = html.section(f"Why {what}: the strongest", strongest(tokenizer, why, chosen, click))
    return reads + html.columns(bars, heat_map + words)


def strongest(
    tokenizer: Tokenizer, why: Contributions, chosen: list[str], click: bool, n: int = _STRONGEST
) -> str:
    """Say the n strongest contributions in words, those against the token too."""
    first, *other = map(html.quoted, chosen)
    lines, digits = [], max(2, html.digits_for(why.contributions.abs().max().item()))
    shown = shown_tokens(tokenizer, why.tokens)
    for j, sense, value in why.ranked(n):
        name = html.escape(html.quoted(shown[j]))
        if click:
            query = urlencode({"tab": "senses", "words": why.tokens[j].strip(" ") or why.tokens[j]})
            name = html.tag("a", name, href=f"?{query}")
        if why.tokens.count(why.tokens[j]) > 1:  # one that stands in several places is told by its number
            name += f" (token {j})"
        if value > 0:
            does = f"pushes {first}"
        else:
            does = f"pushes {other[0]} instead" if other else f"holds {first} back"
        says = f"{name}, sense {sense}, {html.escape(does)} by "
        number = html.tag("b", f"{abs(value):.{digits}f}", class_="nb-for" if value > 0 else "nb-against")
        lines.append(html.tag("li", says + number))
    return html.tag("ol", *lines, class_="nb-ranked")
