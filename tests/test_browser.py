"""The explorer in a real browser, headless, as its users have it: one server, and real tiny models.

CHROMIUM names the browser where it is not found by its name; `.ci/run` installs Debian's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import tokenizers as hf
from conftest import save_tiny, tiny_model

from nanobackpack import Senses, load_model
from nanobackpack.commands import sample
from nanobackpack.config import SampleConfig
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

BROWSER = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gradio"), reason="the extra app is not installed"),
    pytest.mark.skipif(not find_spec("playwright"), reason="playwright is not installed"),
    pytest.mark.skipif(BROWSER is None, reason="no browser here: apt-get install chromium"),
]
HOSTILE = '<img src="http://192.0.2.1/x" onerror="document.title=\'obeyed\'">'
TEXT = "the nurse said"


# The program, but a token takes its time, as it does with a model of some size: there is something to stop.
SLOWED = """
import time
from nanobackpack.app import steer
from nanobackpack.commands import main
grow = steer.grow
def slowly(*rows, **settings):
    for step in grow(*rows, **settings):
        time.sleep(0.03)
        yield step
steer.grow = slowly
main()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of which there are losses, and a model whose vocabulary is hostile."""
    base = tmp_path_factory.mktemp("browser")
    run = save_tiny(base / "run", "abcdefghijklmnopqrstuvwxyz \n", block_size=32)
    steps = [{"step": step, "train_loss": 4.0 - step / 10, "val_loss": 4.1 - step / 10} for step in range(9)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    (run / "config.json").write_text(json.dumps({"out_dir": "run", "n_layer": 3}), encoding="utf-8")
    hostile = base / "hostile"
    hostile.mkdir()
    model, inner = tiny_model(vocab_size=8, vocab_used=4), hf.Tokenizer(hf.models.BPE({"a": 0, "b": 1}, []))
    inner.add_tokens([HOSTILE, "${alert(1)}{{value}}"])
    inner.decoder = hf.decoders.Fuse()
    model.tokenizer = Tokenizer(inner)
    save_model(model, hostile / "ckpt.pt")
    return [str(run), str(hostile)]


@pytest.fixture(scope="module")
def address(folders: list[str]) -> Iterator[str]:
    """Where `nanobackpack explore` serves both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SLOWED, "explore", "--out_dir", *folders, "--device=cpu"]
    command += [f"--port={port}", "--open=False"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        first = server.stdout.readline()
        assert first.startswith(f"http://127.0.0.1:{port}"), first
        yield first.split()[0]
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


Show = Callable[..., Any]


@pytest.fixture
def show(browser: Any, address: str) -> Iterator[Show]:
    """Open a view in a browser of its own. None may complain, or ask any other host for anything."""
    contexts, wrong = [], []

    def note(error: str) -> None:
        # A page that is left while it waits for an answer: Gradio lets its own request fail.
        if not error.startswith(("AbortError: signal is aborted", "Connection errored out")):
            wrong.append(error)

    def open_view(width: int = 1280, **query: str) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: note(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: note(str(error)))
        own = (address, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
        page.goto(f"{address}?{urlencode(query)}")
        page.wait_for_selector(f"#view-{query.get('tab', 'predict')} .nb")
        return page

    yield open_view
    assert wrong == []
    for context in contexts:
        context.close()


def senses_of(folder: str) -> Senses:
    return Senses(load_model(folder), "auto", special=True, typed=True)


LINES = "document.querySelectorAll(`#view-steer section:nth-child(${column}) li`)"
BARS = f"column => [...{LINES}].map(line => line.innerText)"


def probabilities(page: Any, column: int = 2) -> list[str]:
    """The bars of Steer: without the edits (1) or with them (2)."""
    found: list[str] = page.evaluate(BARS, column)
    assert len(found) == 12
    return found


def changes(page: Any, do: Callable[[], object]) -> list[str]:
    """Do something, wait until the distribution with the edits is another, and give it."""
    before = probabilities(page)
    do()
    page.wait_for_function(f"before => String(({BARS})(2)) != before", arg=",".join(before))
    return probabilities(page)


# --- What is shown ------------------------------------------------------------------------------


TABS = {"predict": ".nb-map td", "senses": ".nb-card", "steer": ".nb-bar", "train": "polyline"}


@pytest.mark.parametrize("width", [1280, 400])
def test_each_tab_at_both_widths(show: Show, width: int) -> None:
    page = show(width, tab="train")  # an address first, then the tabs one after the other
    for tab, wanted in reversed(TABS.items()):
        page.get_by_role("tab", name=tab.title()).click()
        page.wait_for_selector(f"#view-{tab} {wanted}", state="visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        page.wait_for_url(f"**tab={tab}&**")


def test_an_attribution_has_the_librarys_numbers(show: Show, folders: list[str]) -> None:
    page = show(tab="predict", prompt=TEXT, token="a", versus="e")
    cells = page.locator("#view-predict td:not(.nb-sum)").evaluate_all(
        "cells => cells.map(cell => [cell.dataset.at, cell.dataset.says])"
    )
    shown = {at: float(re.findall(r"[-+][\d.]+", says)[-1]) for at, says in cells}
    why = senses_of(folders[0]).contributions(TEXT, "a", versus="e")
    T, K = why.contributions.shape
    assert len(shown) == T * K
    for j, row in enumerate(why.contributions.tolist()):
        assert [shown[f"{j},{k}"] for k in range(K)] == pytest.approx(row, abs=6e-5)
    assert f"the model's own logit: {why.logit:+.4f}" in page.locator("#view-predict").inner_html()


def test_a_click_explains_and_the_address_restores(show: Show) -> None:
    page = show(tab="predict", prompt=TEXT)
    chosen = page.locator("#view-predict .nb-bar").nth(3)
    token = chosen.get_attribute("data-token")
    chosen.click()
    page.wait_for_function("document.querySelectorAll('.nb-bar')[3].ariaPressed == 'true'")
    page.wait_for_url(f"**{urlencode({'token': token})}**")
    page.reload()
    page.wait_for_selector("#view-predict .nb-bar[aria-pressed=true]")
    assert page.locator("#view-predict .nb-bar[aria-pressed=true]").get_attribute("data-token") == token
    assert page.locator("#predict-token textarea").input_value() == token
    page.get_by_role("button", name="Copy as Python").click()
    assert f"{TEXT!r}" in page.evaluate("navigator.clipboard.readText()")


def test_numbers_and_pictures_are_downloaded(show: Show, folders: list[str]) -> None:
    page = show(tab="predict", prompt=TEXT, token="a")
    with page.expect_download() as found:
        page.locator("button:visible", has_text="JSON").click()
    (_, why) = json.loads(Path(found.value.path()).read_text(encoding="utf-8"))
    assert why["logit"] == pytest.approx(senses_of(folders[0]).contributions(TEXT, "a").logit, abs=1e-5)
    with page.expect_download() as found:
        page.locator("button:visible", has_text="PNG").click()
    assert Path(found.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_hostile_tokens_are_shown_and_not_obeyed(show: Show, folders: list[str]) -> None:
    asked = {"models": json.dumps(folders[1:]), "prompt": "ab" + HOSTILE, "words": "a b", "token": HOSTILE}
    for tab in ("predict", "senses", "steer"):
        page = show(tab=tab, **asked)
        page.wait_for_selector(f"#view-{tab} .nb-token, #view-{tab} .nb-error")
        assert "onerror" in page.locator(f"#view-{tab}").inner_text()
        assert page.locator(f"#view-{tab} img").count() == 0
        assert page.title() == "nanobackpack"


def test_what_cannot_be_is_said_in_place(show: Show) -> None:
    page = show(tab="predict", prompt="HELLO")
    assert "'H'" in page.locator("#view-predict .nb-error").inner_text()
    page.locator("#predict-prompt textarea").fill(TEXT)
    page.keyboard.press("Enter")
    page.wait_for_selector("#view-predict .nb-map")


# --- What is changed ----------------------------------------------------------------------------

SCALE = json.dumps([["d", -1, 0.0]])


def test_a_slider_changes_the_distribution_of_one_user(show: Show) -> None:
    """Two browsers at once: what one changes, the other does not see."""
    mine, other = show(tab="steer", prompt=TEXT, scale="[]"), show(tab="steer", prompt=TEXT, scale="[]")
    start = probabilities(mine, 1)
    assert probabilities(mine) == probabilities(other) == start
    mine.get_by_label("Word", exact=True).fill("d")
    edited = changes(mine, mine.get_by_role("button", name="Add a slider").click)
    assert edited != start
    assert probabilities(mine, 1) == start
    slider = mine.locator("input[type=range]:visible").first
    slider.focus()
    assert changes(mine, lambda: slider.press("ArrowRight")) not in (start, edited)
    # The other one asks again, for another text and back.
    for text in ("the", TEXT):
        other.locator("#steer-prompt textarea").fill(text)
        changes(other, lambda: other.keyboard.press("Enter"))
    assert probabilities(other) == probabilities(other, 1) == start


def test_a_saved_edit_gives_the_same_sample_on_the_command_line(
    show: Show, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = show(tab="steer", prompt=TEXT, scale=SCALE, tokens="20", seed="5")
    page.get_by_role("button", name="Write two samples").click()
    page.wait_for_function("document.querySelector('#with textarea').value.length >= 34")
    with page.expect_download() as found:
        page.get_by_role("button", name="Save the edits").click()
    file = tmp_path / "edits.safetensors"
    found.value.save_as(file)
    without, edited = (page.locator(f"#{name} textarea").input_value() for name in ("without", "with"))
    assert without != edited
    for text, edits in ((without, ""), (edited, str(file))):
        settings = {"start": TEXT, "num_samples": 1, "max_new_tokens": 20, "seed": 5, "edits": edits}
        sample.main(SampleConfig(out_dir=folders[0], device="cpu", **settings))
        assert capsys.readouterr().out == f"{text}\n{sample.LINE}\n"


def test_a_sample_can_be_stopped(show: Show) -> None:
    page = show(tab="steer", prompt=TEXT, tokens="300")
    page.get_by_role("button", name="Write two samples").click()
    page.wait_for_function("document.querySelector('#with textarea').value.length > 20")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(300)
    text = page.locator("#with textarea").input_value()
    page.wait_for_timeout(500)
    assert page.locator("#with textarea").input_value() == text
    assert len(text) < len(TEXT) + 300
