"""One page about a model, to send: its training, what it writes, its senses, and three predictions explained.

    text = report(model, "out-demo", words=["king"])     # one file of HTML, which needs no network

Of a model without senses or without a tokenizer the page says so where they would be.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nanobackpack import __version__
from nanobackpack.analysis.prompts import usual_start
from nanobackpack.app import html
from nanobackpack.app.curve import curve
from nanobackpack.app.predict import predict
from nanobackpack.app.runs import CURVES, losses, settings_table, thinned
from nanobackpack.app.words import contexts_of, suggest, words
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.text.words import needs_tokenizer
from nanobackpack.train.log import read_metrics

_SAMPLES, _NEW_TOKENS = 3, 200
_PROMPT_TOKENS = 20  # of a prompt that is the beginning of a sample
_ABOUT = (
    "A Backpack gives every token a few sense vectors, which are the same in every context. The context only "
    "decides how much each of them counts, by weights α. So each prediction is exactly a sum over the senses "
    "of the tokens before it, and this page shows such sums."
)


def report(
    model: LanguageModel, source: str, words: Sequence[str] = (), prompts: Sequence[str] = (), seed: int = 0
) -> str:
    """Write the page of a model that was opened as `source`. Words and prompts that are not given are chosen:
    frequent words, and beginnings of what the model itself writes."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    name = Path(source).name or source
    written: list[str] = []
    given = [(prompt, "") for prompt in prompts]

    def write() -> str:
        written.extend(_samples(model, seed))
        return "".join(html.tag("pre", html.escape(text)) for text in written)

    parts = {
        "Training": (_training(folder), ""),
        "What it writes": (_or_why(write), f"Sampled from nothing, temperature 0.8, seed {seed}."),
        "What its senses mean": (
            _or_why(lambda: _senses(model, source, words or _frequent(model))),
            "For each sense of a word what it singles out, the tokens that it scores highest (says) and "
            "lowest (not), and those whose own sense points the same way (is like). Below, where text is at "
            "hand, places where it counted most: the word is marked, after the arrow comes what followed. "
            "Senses with a clear theme, in colour, come first.",
        ),
        "Why it predicts what it predicts": (
            _or_why(lambda: _predictions(model, source, given or _beginnings(model, written))),
            "Point at a cell, or walk with the arrow keys.",
        ),
    }
    sections = [
        html.tag("h2", html.escape(title)) + (html.tag("p", html.escape(about), class_="nb-about") + shown)
        for title, (shown, about) in parts.items()
        if shown
    ]
    head = html.tag("h1", html.escape(name)) + html.tag("p", html.escape(_what(model)))
    if isinstance(model, BackpackLM):
        head += html.tag("p", html.escape(_ABOUT), class_="nb-about")
    foot = html.tag("p", f"Written by nanobackpack {html.escape(__version__)}.", class_="nb-about")
    return page(name, html.show(head, *sections, foot))


def page(title: str, body: str) -> str:
    """Make one file of it, in which a browser runs hover.js alone, and asks nobody for anything."""
    digest = base64.b64encode(hashlib.sha256(html.file("hover.js").encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{html.file("style.css")}</style>
</head>
<body class="nb-page">
{body}
<script>{html.file("hover.js")}</script>
</body>
</html>
"""


def _or_why(make: Callable[[], str]) -> str:
    """Make a part of the page, or say why this model has none."""
    try:
        return make()
    except InputError as error:
        return html.note(str(error))


def _what(model: LanguageModel) -> str:
    c, n = model.config, sum(p.numel() for p in model.parameters())
    senses = f", {c.n_sense_vector} senses a token" if isinstance(model, BackpackLM) else ""
    kind = "Backpack language model" if isinstance(model, BackpackLM) else "GPT"
    tokenizer = f" ({model.tokenizer.kind})" if model.tokenizer else ""
    return (
        f"{kind} of {n:,} parameters: {c.n_layer} blocks, {c.n_head} heads, width {c.n_embd}{senses}, "
        f"context of {c.block_size} tokens, vocabulary of {c.n_token:,}{tokenizer}."
    )


def _training(folder: Path) -> str:
    """Show the settings of a run that are not at their defaults, and its losses; nothing if it is no run."""
    records = read_metrics(folder / "metrics.jsonl")
    rows = [row for row in settings_table([str(folder)])[0] if row[0] != "init_from"]  # perhaps a path
    lines = {name: points for key, name in CURVES.items() if (points := thinned(losses(records, key)))}
    table = html.section("Settings", html.table(rows)) if rows else ""
    drawn = html.section("Loss, in nats a token", curve(lines)) if lines else ""
    return html.columns(table, drawn) if table and drawn else table + drawn


def _samples(model: LanguageModel, seed: int) -> list[str]:
    """Sample some texts from nothing."""
    tokenizer, start = needs_tokenizer(model.tokenizer), usual_start(model)
    draw = torch.Generator(model.wte.weight.device).manual_seed(seed)
    stop = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    rows = model.generate([start] * _SAMPLES, _NEW_TOKENS, 0.8, generator=draw, stop=stop)
    marks = set(tokenizer.special.values())
    return [tokenizer.decode([i for i in row[len(start) :] if i not in marks]) for row in rows]


def _frequent(model: LanguageModel, n: int = 4) -> list[str]:
    """Choose frequent words; of a large vocabulary longer ones, which mean more than "the"."""
    known = suggest(model, "", 400)
    least = 5 if model.config.n_token > 1000 else 1
    found = [word for word in known if word.isalpha() and (len(word) >= least or not word.isascii())]
    return (found or known)[:n]


def _beginnings(model: LanguageModel, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Cut texts before a word, or a letter, which is to be explained: pairs of a prompt and that token. Where
    the texts have none, frequent words are the prompts, and the likeliest token is explained."""
    tokenizer, found = needs_tokenizer(model.tokenizer), []
    for text in texts:
        ids = tokenizer.encode(text.strip())
        words = [
            i for i in range(4, min(_PROMPT_TOKENS, len(ids))) if tokenizer.decode([ids[i]]).strip().isalpha()
        ]
        if words:
            found.append((tokenizer.decode(ids[: words[-1]]), tokenizer.token(ids[words[-1]])))
    return found or [(word, "") for word in _frequent(model, _SAMPLES)]


def _senses(model: LanguageModel, source: str, chosen: Sequence[str]) -> str:
    found = contexts_of(model, chosen, source)
    views = [words(model, [word], source=source, contexts=found, click=False) for word in chosen]
    return "".join(html.section(word, view.html) for word, view in zip(chosen, views, strict=True))


def _predictions(model: LanguageModel, source: str, asked: Sequence[tuple[str, str]]) -> str:
    """Explain the token that follows each prompt; "": the likeliest."""
    views = [predict(model, prompt, token, source=source, click=False) for prompt, token in asked]
    return "".join(html.section(text, view.html) for (text, _), view in zip(asked, views, strict=True))
