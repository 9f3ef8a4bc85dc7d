"""One tab of the explorer on its page: what is typed, the view of it, its address, copies and files.

What is typed in a tab is the query of the page's address, so that an address restores a view.
"""

from __future__ import annotations

import base64
import functools
import json
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from nanobackpack.analysis.results import to_json_values
from nanobackpack.analysis.senses import Senses
from nanobackpack.app import html
from nanobackpack.app.view import View
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import LanguageModel

try:
    import gradio as gr
except ImportError:  # explore.py says so; without the extra all modules can still be imported
    gr = None

MOST_CHARACTERS = 4000  # of a prompt
PRIVATE = {"api_visibility": "private"}
# What a click in a view asks for: a field of the tab and its value, or another view by its address.
CLICKS = """
element.addEventListener('click', event => {
  const hit = event.target.closest('[data-token], [data-versus], a[href^="?"]');
  if (!hit) return;
  event.preventDefault();
  const name = ['token', 'versus'].find(name => name in hit.dataset);
  trigger('click', {name: name || '', text: name ? hit.dataset[name] : hit.getAttribute('href').slice(1)});
})"""
# The address follows what is shown, and Back returns to what was; a theme that was asked for stays.
TO_ADDRESS = """query => {
  const theme = new URLSearchParams(location.search).get('__theme');
  const next = '?' + query + (theme ? '&__theme=' + theme : '');
  if (query && next !== location.search)
    history[location.search.includes('tab=') ? 'pushState' : 'replaceState'](null, '', next);
}"""
COPY = "text => { navigator.clipboard.writeText(text); }"
COPY_ADDRESS = "() => { navigator.clipboard.writeText(location.href); }"
SAVE = """file => {
  if (!file) return;
  const {name, type, data} = JSON.parse(file), link = document.createElement('a');
  link.download = name;
  link.href = `data:${type};base64,${data}`;
  link.click();
}"""


# --- Models, and views of several ----------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A model that was named, or why it cannot be looked at: of a run its losses still can."""

    path: str
    found: LanguageModel | InputError

    @property
    def model(self) -> LanguageModel:
        if isinstance(self.found, InputError):
            raise self.found
        return self.found

    @functools.cached_property
    def senses(self) -> Senses:
        """Its senses: all views share what these remember. A GPT has none, and says so."""
        return Senses(self.model, "auto", special=True, typed=True)


@dataclass
class Frame:
    """What the tabs share: the models, which of them are looked at, and the address of what is shown."""

    models: dict[str, Opened]
    which: Any
    address: Any
    pages: dict[str, Page] = field(default_factory=dict)

    def chosen(self, which: Sequence[str]) -> list[Opened]:
        """Give the models that are looked at, the first one if none is."""
        return [self.models[path] for path in which if path in self.models] or [*self.models.values()][:1]

    def views(self, which: Sequence[str], make: Callable[[Opened], View]) -> View:
        """Make a view of each model that is looked at, one beside the other."""
        models = self.chosen(which)
        views = [in_place(functools.partial(make, model)) for model in models]
        if len(views) == 1:
            return views[0]
        pieces = [html.section(model.path, view.html) for model, view in zip(models, views, strict=True)]
        return View(
            html=html.show(html.columns(*pieces)),
            results=[result for view in views for result in view.results],
            drawn=[result for view in views for result in view.drawn],
            python="\n".join(view.python for view in views),
            command="\n".join(view.command for view in views),
        )


# What the library warns of while a view is made, in threads beside each other.
NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)


def collect_warnings() -> None:
    """From now on give each warning to the view that it belongs to; Python would show each once."""

    def collect(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if (notes := NOTES.get()) is not None and category is UserWarning:
            notes.append(str(message))

    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = collect


def in_place(make: Callable[[], View]) -> View:
    """Make a view, with what the library warns of; what is wrong with the input becomes its one line."""
    notes: list[str] = []
    before = NOTES.set(notes)
    try:
        view = make()
    except InputError as error:
        view = View(html=html.show(html.note(str(error), kind="error")))
    finally:
        NOTES.reset(before)
    return replace(view, html=html.show(html.note(*dict.fromkeys(notes))) + view.html) if notes else view


def bounded(prompt: str) -> str:
    """Refuse a prompt that nobody types, before it is computed with."""
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(f"the text has {len(prompt):,} characters: give at most {MOST_CHARACTERS:,}")
    return prompt


def about(text: str) -> None:
    """Say in a line what a tab is for."""
    gr.HTML(html.show(html.tag("p", text)), apply_default_css=False)


# --- A tab --------------------------------------------------------------------------------------


class Page:
    """A tab: its fields, by their names in the address, and what shows the view that they ask for."""

    def __init__(self, frame: Frame, name: str, fields: dict[str, Any], make: Callable[..., View]) -> None:
        self.name, self.fields, self.make = name, fields, make
        self.view = gr.HTML(js_on_load=CLICKS, elem_id=f"view-{name}", apply_default_css=False)
        for key, component in fields.items():
            component.elem_id = f"{name}-{key}"
        labels = ("Copy as Python", "Copy as command", "Copy link", "JSON", "PNG")
        with gr.Row(elem_classes="nb-take"):
            buttons = [gr.Button(label, size="sm", min_width=90) for label in labels]
        python, command, file = (gr.Textbox(visible="hidden") for _ in range(3))
        self.inputs = [frame.which, *fields.values()]
        self.shown = [self.view, frame.address, python, command]
        # The browser copies what is there; a file is made when it is asked for.
        buttons[0].click(None, python, js=COPY)
        buttons[1].click(None, command, js=COPY)
        buttons[2].click(None, js=COPY_ADDRESS)
        for button, write in zip(buttons[3:], (self.json, self.png), strict=True):
            button.click(write, self.inputs, file, **PRIVATE).then(None, file, js=SAVE)
        frame.pages[name] = self

    def follow(self, tab: Any, *events: Any) -> None:
        """Show the view anew as its tab is chosen, and after each of these events; of many in a row the last
        one counts."""
        again = {"trigger_mode": "always_last", "show_progress": "hidden", **PRIVATE}
        address = self.shown[1]

        def chosen(address: str, *values: Any) -> list[Any]:
            # The first tab is chosen as the page is loaded, before its fields have what its address says.
            return self.show(*values) if address else [gr.skip()] * len(self.shown)

        for shown in (
            tab.select(chosen, [address, *self.inputs], self.shown, **again),
            gr.on([*events], self.show, self.inputs, self.shown, **again),
        ):
            shown.then(None, address, js=TO_ADDRESS)

    def look(self, which: list[str], values: Sequence[Any]) -> View:
        """Make the view of some models."""
        return in_place(lambda: self.make(which, **self.given(values)))

    def given(self, values: Sequence[Any]) -> dict[str, Any]:
        """Name what the fields have: an untouched text is empty, a cleared number is the usual one."""
        first = ["" if isinstance(field, gr.Textbox) else field.value for field in self.fields.values()]
        some = [usual if value is None else value for value, usual in zip(values, first, strict=True)]
        return dict(zip(self.fields, some, strict=True))

    def show(self, which: list[str], *values: Any) -> list[str]:
        """Give the view, the query of its address, and its two calls."""
        view = self.look(which, values)
        asked = {
            name: text
            for name, text in zip(self.fields, values, strict=True)
            if text not in ("", None, False)
        }
        words = {name: " ".join(text) if isinstance(text, list) else text for name, text in asked.items()}
        words.pop("file", None)  # is on the disk of who looks
        query = urlencode({"tab": self.name, **words, "models": json.dumps(which)})
        return [view.html, query, view.python, view.command]

    def restored(self, query: dict[str, str], which: list[str]) -> dict[Any, Any]:
        """Give all that the tab shows for an address, whose fields stand where it names them."""
        values = [read_field(field, query.get(name)) for name, field in self.fields.items()]
        fields = dict(zip(self.fields.values(), values, strict=True))
        return fields | dict(zip(self.shown, self.show(which, *values), strict=True))

    def json(self, which: list[str], *values: Any) -> str:
        """Give the numbers of the view as a file; of one that is a message there is none."""
        if not (results := self.look(which, values).results):
            return ""
        found = json.dumps(to_json_values(results), ensure_ascii=False, indent=1)
        return file_text(f"{self.name}.json", "application/json", found.encode())

    def png(self, which: list[str], *values: Any) -> str:
        """Give the picture of the view as a file; of one that is a message there is none."""
        view = self.look(which, values)
        return file_text(f"{self.name}.png", "image/png", view.png()) if view.drawn else ""


def read_field(field: Any, text: str | None) -> Any:
    """Read a field from an address; what it cannot be is as if it were not there."""
    if text is None or isinstance(field, gr.File):  # what lies on this machine is not opened through a link
        return field.value
    if isinstance(field, gr.Radio):
        return text if text in [value for _, value in field.choices] else field.value
    if isinstance(field, gr.Dropdown) and field.multiselect:
        return text.split()
    if isinstance(field, gr.Checkbox):
        return text == "True"
    if isinstance(field, gr.Slider | gr.Number):
        try:
            return min(max(int(text), field.minimum or 0), field.maximum or 2**31)
        except ValueError:
            return field.value
    return text


def file_text(name: str, kind: str, data: bytes) -> str:
    """Write a file as what SAVE takes."""
    return json.dumps({"name": name, "type": kind, "data": base64.b64encode(data).decode()})
