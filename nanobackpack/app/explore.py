"""The explorer: models in the browser. `nanobackpack explore` serves it, and docs/space/app.py in a Space.

    serve(open_models(["out-en", "words-small"]))

A tab is a function from what is typed to a View (predict.py, words.py, steer.py, runs.py), page.py puts it on
its page, and this file says which fields it has. The models are shared by all who look, and nothing here
changes them: edits are handed to each call.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from nanobackpack.app import html
from nanobackpack.app.page import (
    PRIVATE,
    TO_ADDRESS,
    Frame,
    Opened,
    Page,
    about,
    bounded,
    collect_warnings,
    gr,
)  # fmt: skip
from nanobackpack.app.predict import predict
from nanobackpack.app.runs import CURVES, is_run, runs
from nanobackpack.app.steer_tab import steer_tab, with_sliders
from nanobackpack.app.view import View
from nanobackpack.app.words import MOST, contexts_of, first_words, suggest
from nanobackpack.app.words import words as cards
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import pick_device
from nanobackpack.text.words import needs_tokenizer
from nanobackpack.train.checkpoint import load_model

AT_ONCE = 4  # views that are computed at the same time; more wait
SUGGESTED = 4000  # words of the vocabulary

PREDICT = (
    "A Backpack gives every token a few <b>senses</b>: vectors that are the same in every text. The text "
    "only decides how much each of them counts, and their sum predicts the next token. So every prediction "
    "can be taken apart, exactly. Type a text, and choose a candidate to see why."
)
SENSES = (
    "What each sense of a word says, wherever it stands. On a card <b>says</b> are the tokens that the sense "
    "makes likeliest, <b>not</b> the least likely, <b>is like</b> words whose own sense points the same way. "
    "The coloured line is its theme, what it singles out; those with a clear one come first, strongest ahead."
)
TRAIN = "How the training of these runs went, or goes: the picture is drawn anew while they train."
CSS = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.gradio-container .app { padding: 16px min(4vw, 32px) !important; }
.gradio-container .nb h1 { margin: 0; font-size: 24px; }
.gradio-container .nb p { margin: 0 0 4px; }
footer { display: none !important; }
"""
# An example for the model that comes with the package, then for others the first that they can read.
SMALL = (" nurse : a woman who", "nurse king")
EXAMPLES = (("The nurse said that", "nurse king"), ("My lord, the k", "k q"), ("却说曹", "曹 天"))


def open_models(paths: Sequence[str], device: str = "auto", tokenizer_name: str = "auto") -> list[Opened]:
    """Open models, once for all who look. Refuse what neither reads text nor is a run's folder."""
    opened = []
    for path in dict.fromkeys(paths):
        found: LanguageModel | InputError
        try:
            found = load_model(path, tokenizer_name).to(pick_device(device))
            needs_tokenizer(found.tokenizer)
        except InputError as error:
            if not is_run(path):
                raise
            found = error
        opened.append(Opened(path, found))
    return opened


def serve(models: Sequence[Opened], port: int = 0, browser: bool = False, host: str = "127.0.0.1") -> None:
    """Serve the page until Ctrl-C, and print its address first."""
    demo = explorer(models)
    # Fonts that every system has: others would be asked for on the network.
    sans = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "Noto Sans Mono", "monospace"]
    theme = gr.themes.Base(
        font=sans, font_mono=mono, primary_hue="amber", neutral_hue="stone", radius_size="sm"
    )
    script = "addEventListener('popstate', () => location.reload());" + html.file("hover.js")
    with warn_if_taken(port):
        _, address, _ = demo.launch(
            server_name=host,
            server_port=port or None,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            theme=theme,
            head=f"<style>{html.file('style.css')}{CSS}</style><script>{script}</script>",
        )
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    demo.block_thread()


@contextlib.contextmanager
def warn_if_taken(port: int) -> Iterator[None]:
    """Say in a line that a port is not free."""
    try:
        yield
    except OSError:
        taken = f"port {port} of this machine is taken" if port else "the ports from 7860 up are taken"
        raise InputError(f"{taken}: give another with --port") from None


def explorer(models: Sequence[Opened]) -> Any:
    """Build the page, as Gradio's Blocks."""
    if gr is None:
        raise InputError("explore needs gradio: pip install 'nanobackpack[app]'")
    collect_warnings()
    paths = [model.path for model in models]
    prompt, words = example(models[0])
    title = html.tag("h1", "nanobackpack") + html.tag("p", html.escape(", ".join(paths)), class_="nb-about")
    with gr.Blocks(
        title="nanobackpack", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as demo:
        gr.HTML(html.show(title), apply_default_css=False)
        which = gr.CheckboxGroup(paths, value=paths[:1], label="Models", visible=len(paths) > 1)
        frame = Frame({model.path: model for model in models}, which, gr.Textbox(visible="hidden"))
        with gr.Tabs() as tabs:
            predict_tab(frame, prompt)
            senses_tab(frame, words)
            sliders = steer_tab(frame, prompt, words.split()[0], demo.GRADIO_CACHE)
            if trained := [path for path in paths if is_run(path)]:
                train_tab(frame, trained)
        connect(demo, frame, tabs, sliders)
    return demo.queue(default_concurrency_limit=AT_ONCE)


def example(model: Opened) -> tuple[str, str]:
    """Choose a text and words to begin with, that the model can read: each word one token."""
    if isinstance(model.found, InputError):
        return EXAMPLES[0]
    tokenizer = needs_tokenizer(model.found.tokenizer)
    for prompt, words in ((SMALL,) if Path(model.path).name == "words-small" else ()) + EXAMPLES:
        with contextlib.suppress(InputError):
            tokenizer.encode(prompt)
            if all(len(tokenizer.word_ids(word)) == 1 for word in words.split()):
                return prompt, words
    some = suggestions(model)[:2] or ["a"]
    return some[0], " ".join(some)


def suggestions(model: Opened) -> list[str]:
    """List words of the vocabulary, the most frequent of the training text first."""
    if isinstance(model.found, InputError):
        return []
    return [word for word in suggest(model.found, "", SUGGESTED) if word.isalpha()]


# --- The tabs -----------------------------------------------------------------------------------


def predict_tab(frame: Frame, example: str) -> None:
    with gr.Tab("Predict", id="predict") as tab:
        about(PREDICT)
        with gr.Row():
            prompt = gr.Textbox(example, label="Text", scale=5, min_width=300)
            token = gr.Textbox(label="Why", placeholder="the likeliest", min_width=110)
            versus = gr.Textbox(label="rather than", placeholder="–", min_width=110)

        def make(which: list[str], prompt: str, token: str, versus: str) -> View:
            text = bounded(prompt)
            return frame.views(which, lambda m: predict(m.model, text, token, versus, source=m.path))

        page = Page(frame, "predict", {"prompt": prompt, "token": token, "versus": versus}, make)
    typed = [event for box in (prompt, token, versus) for event in (box.submit, box.blur)]
    page.follow(tab, frame.which.input, *typed)


def senses_tab(frame: Frame, example: str) -> None:
    with gr.Tab("Senses", id="senses") as tab:
        about(SENSES)
        words = gr.Dropdown(
            suggestions(next(iter(frame.models.values()))),
            value=example.split(),
            label=f"Words, up to {MOST} side by side",
            multiselect=True,
            allow_custom_value=True,
            max_choices=MOST,
        )

        places = gr.Checkbox(label="With places in the text where each counts most (takes longer)")

        def make(which: list[str], words: list[str], places: bool) -> View:
            some = first_words(words)

            def of(m: Opened) -> View:
                found = contexts_of(m.senses.model, some, m.path) if places else None
                return cards(m.senses.model, some, source=m.path, senses=m.senses, contexts=found)

            return frame.views(which, of)

        page = Page(frame, "senses", {"words": words, "places": places}, make)
    page.follow(tab, frame.which.input, words.change, places.change)


def train_tab(frame: Frame, trained: list[str]) -> None:
    with gr.Tab("Train", id="train") as tab:
        about(TRAIN)
        curve = gr.Radio([(text, name) for name, text in CURVES.items()], value="val_loss", label="Loss")

        def make(which: list[str], curve: str) -> View:
            return runs([path for path in which if path in trained] or trained, curve)

        page = Page(frame, "train", {"curve": curve}, make)
        drawn = gr.State("")
    page.follow(tab, frame.which.input, curve.input)

    def redraw(which: list[str], curve: str, before: str) -> list[Any]:
        now = str([Path(path, "metrics.jsonl").stat().st_mtime for path in trained if is_run(path)])
        return [gr.skip(), before] if now == before else [page.look(which, [curve]).html, now]

    gr.Timer(2).tick(redraw, [*page.inputs, drawn], [page.view, drawn], show_progress="hidden", **PRIVATE)


# --- Addresses ----------------------------------------------------------------------------------


def connect(demo: Any, frame: Frame, tabs: Any, sliders: list[Any]) -> None:
    """Restore what an address shows, as the page is loaded and where a view has a link."""
    scale = frame.pages["steer"].fields["scale"]
    everything = [tabs, frame.which, *sliders, frame.address]
    for page in frame.pages.values():
        everything += [*page.fields.values(), *(part for part in page.shown if part is not frame.address)]

    def restore(query: dict[str, str], kept: str = "") -> dict[Any, Any]:
        page = frame.pages.get(query.get("tab", ""), frame.pages["predict"])
        try:
            named = [path for path in json.loads(query.get("models", "[]")) if path in frame.models]
        except (ValueError, TypeError, RecursionError):
            named = []
        which, more = named or frame.which.value, {}
        if page.name == "steer":
            try:
                listed = with_sliders(query.get("scale", scale.value))
            except InputError:  # as if it were not there
                listed = with_sliders(scale.value)
            if kept not in ("", scale.value):  # a link of a card adds to what is there, but for the example
                listed = with_sliders(kept, json.loads(listed[0]))
            more, query = dict(zip([scale, *sliders], listed, strict=True)), query | {"scale": listed[0]}
        return {tabs: gr.Tabs(selected=page.name), frame.which: which} | page.restored(query, which) | more

    def load(request: gr.Request) -> dict[Any, Any]:
        return restore(dict(request.query_params))

    def clicked(address: str, kept: str, event: gr.EventData) -> dict[Any, Any]:
        """Explain a candidate, or no longer if it is chosen again; or follow a link to another view."""
        query, link = dict(parse_qsl(address)), dict(parse_qsl(event.text))
        if event.name:
            return restore(query | {event.name: event.text if query.get(event.name) != event.text else ""})
        return restore(link | {"models": query.get("models", "")}, kept)

    first = demo.load(load, None, everything, show_progress="hidden", **PRIVATE)
    first.then(None, frame.address, js=TO_ADDRESS)
    for page in frame.pages.values():
        again = page.view.click(
            clicked, [frame.address, scale], everything, show_progress="hidden", **PRIVATE
        )
        again.then(None, frame.address, js=TO_ADDRESS)
