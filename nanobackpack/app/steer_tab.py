"""The fields and buttons of the tab Steer; steer.py says what they do."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanobackpack.app import html, steer
from nanobackpack.app.page import PRIVATE, SAVE, Frame, Opened, Page, about, bounded, file_text, gr
from nanobackpack.app.view import View
from nanobackpack.errors import InputError

ABOUT = (
    "Change what a word says: let one of its senses count more, less (0: not at all), and see what follows. "
    "The model itself stays as it is. Of several models, samples, cost and files are of the first."
)
SLIDERS = 8


def steer_tab(frame: Frame, example: str, word: str, cache: str) -> list[Any]:
    with gr.Tab("Steer", id="steer") as tab:
        about(ABOUT)
        prompt = gr.Textbox(example, label="Text")
        # The sliders stand for this list of [word, sense, factor].
        scale = gr.Textbox(json.dumps([[word, -1, 0.0]]), visible="hidden")
        with gr.Row():
            new = gr.Textbox(label="Word", placeholder="a word of the text", scale=3)
            sense = gr.Number(-1, label="Sense (-1: all)", precision=0, minimum=-1, min_width=110)
            add, clear = gr.Button("Add a slider", min_width=110), gr.Button("Remove all", min_width=110)
        _, *sliders = with_sliders(scale.value)
        with gr.Accordion("A topic, or another fact", open=False):
            with gr.Row():
                bag = gr.Textbox(label="Topic, as words", placeholder="love heart", scale=3)
                strength = gr.Slider(0, 3, 2, step=1, label="Strength", buttons=[])
            with gr.Row():
                fact = [gr.Textbox(label=text) for text in ("What is said of", "is no longer", "but")]
            file = gr.File(label=f"Edits from a file such as {steer.FILE}, before these", height=110)
        # These two stand further down, where the samples are.
        top, below = steer.MOST_TOKENS, {"render": False, "min_width": 110}
        tokens = gr.Slider(1, top, 60, step=1, label="Tokens of a sample", buttons=[], **below)
        seed = gr.Number(1337, label="Seed", precision=0, minimum=0, **below)
        fields = {"prompt": prompt, "scale": scale, "bag": bag, "strength": strength, "tokens": tokens}
        fields |= {"seed": seed, "of": fact[0], "remove": fact[1], "add": fact[2], "file": file}

        def make(which: list[str], prompt: str, tokens: int, seed: int, **wished: Any) -> View:
            text, wishes, sizes = bounded(prompt), steer.read_wishes(**wished), (int(tokens), int(seed))
            return frame.views(which, lambda m: steer.steer(m.senses, m.path, text, wishes, *sizes))

        page = Page(frame, "steer", fields, make)
        with gr.Row():
            tokens.render()
            seed.render()
        with gr.Row():
            write = gr.Button("Write two samples", variant="primary", size="sm", min_width=130)
            labels = ("Stop", "What does it cost?", "Save the edits", "Export the edited model")
            stop, price, save, export = (gr.Button(label, size="sm", min_width=130) for label in labels)
        said = gr.HTML(elem_id="said", apply_default_css=False)
        with gr.Row():
            left = gr.Textbox(label="As the model is", lines=8, elem_id="without", interactive=False)
            right = gr.Textbox(label="With your edits", lines=8, elem_id="with", interactive=False)
        kept, zipped = gr.Textbox(visible="hidden"), gr.File(visible=False, label="The edited model")

    # What is typed is shown at once.
    typed = [event for box in (prompt, bag, *fact) for event in (box.submit, box.blur)]
    page.follow(tab, frame.which.input, scale.change, strength.change, file.change, *typed)
    moved = {"show_progress": "hidden", "trigger_mode": "always_last", **PRIVATE}
    gr.on([s.input for s in sliders], moved_to, [scale, *sliders], scale, **moved)
    gr.on([add.click, new.submit], added, [scale, new, sense], [said, scale, *sliders], **PRIVATE)
    clear.click(lambda: ["", *with_sliders("[]")], None, [said, scale, *sliders], **PRIVATE)

    # What takes longer, of the first model that is looked at; what goes wrong is said in place.
    def asked(which: list[str], values: Sequence[Any]) -> tuple[Opened, steer.Wishes, str, tuple[int, int]]:
        given = page.given(values)
        text, sizes = bounded(given.pop("prompt")), (int(given.pop("tokens")), int(given.pop("seed")))
        return frame.chosen(which)[0], steer.read_wishes(**given), text, sizes

    def write_samples(which: list[str], *values: Any) -> Iterator[list[Any]]:
        try:
            model, wishes, text, sizes = asked(which, values)
            for pair in steer.streams(model.senses, text, wishes.edits(model.senses), *sizes):
                yield ["", *pair]
        except InputError as error:
            yield [wrong(error), gr.skip(), gr.skip()]

    def tell_price(progress: Any = gr.Progress(), *given: Any) -> str:  # noqa: B008
        try:
            which, *values = given
            model, wishes, *_ = asked(which, values)
            found = steer.price(model.senses, model.path, wishes, lambda rows: progress.tqdm(rows))
            return html.show(html.tag("pre", html.escape(found.table())))
        except InputError as error:
            return wrong(error)

    def save_edits(which: list[str], *values: Any) -> list[str]:
        try:
            model, wishes, *_ = asked(which, values)
            data = steer.edit_file(model.senses, wishes)
            return ["", file_text(steer.FILE, "application/octet-stream", data)]
        except InputError as error:
            return [wrong(error), ""]

    def export_edited(which: list[str], *values: Any) -> list[Any]:
        try:
            model, wishes, *_ = asked(which, values)
            folder = tempfile.mkdtemp(dir=cache)
            return [
                "",
                gr.File(str(steer.baked(model.senses, model.path, wishes, Path(folder))), visible=True),
            ]
        except InputError as error:
            return [wrong(error), gr.skip()]

    inputs, slow = page.inputs, {"concurrency_limit": 1, **PRIVATE}
    writing = write.click(write_samples, inputs, [said, left, right], show_progress="hidden", **PRIVATE)
    pricing = price.click(tell_price, inputs, said, **slow)
    stop.click(None, cancels=[writing, pricing])
    save.click(save_edits, inputs, [said, kept], **PRIVATE).then(None, kept, js=SAVE)
    export.click(export_edited, inputs, [said, zipped], **slow)
    return sliders


def moved_to(scale: str, *factors: float) -> str:
    """Give the list with the factors that the sliders were moved to."""
    items = steer.read_scale(scale)
    return json.dumps([[*item[:2], factor] for item, factor in zip(items, factors, strict=False)])


def added(scale: str, word: str, sense: int | None) -> list[Any]:
    """Add a slider to the list of [word, sense, factor], or say in place why not."""
    try:
        if not word:
            raise InputError("type a word of the text, then add its slider")
        new = (word, -1 if sense is None else sense)
        if len({item[:2] for item in steer.read_scale(scale)} | {new}) > SLIDERS:
            raise InputError(f"there are {SLIDERS} sliders, and no room for more: remove them first")
        return ["", *with_sliders(scale, [[*new, 0.0]])]
    except InputError as error:
        return [wrong(error)] + [gr.skip()] * (1 + SLIDERS)


def with_sliders(scale: str, more: Sequence[Any] = ()) -> list[Any]:
    """Add to the list of [word, sense, factor]; give it, and the sliders for it."""
    items = {item[:2]: item for item in steer.read_scale(scale) + steer.read_scale(json.dumps(more))}
    shown = list(items.values())[:SLIDERS]
    looks = [
        {"label": f"{word!r}, " + ("all senses" if k < 0 else f"sense {k}"), "value": factor, "visible": True}
        for word, k, factor in shown
    ]
    looks += [{"visible": False}] * (SLIDERS - len(shown))
    return [json.dumps(shown), *(gr.Slider(0, 4, step=0.1, buttons=[], **look) for look in looks)]


def wrong(error: InputError) -> str:
    return html.show(html.note(str(error), kind="error"))
