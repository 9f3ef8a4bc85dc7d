"""The views of the explorer and the report, without a browser: their numbers, their escapes, their calls.

What imports gradio or transformers, seconds of it, is imported by the tests that use it: each process that
runs tests reads this file.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import save_gpt2, save_tiny, tiny_model

import nanobackpack as nb
from nanobackpack.analysis.cards import sense_cards
from nanobackpack.analysis.contexts import Contexts
from nanobackpack.analysis.results import to_json_values
from nanobackpack.app import html
from nanobackpack.app.characters import text_of
from nanobackpack.app.predict import predict
from nanobackpack.app.report import report
from nanobackpack.app.runs import runs
from nanobackpack.app.view import View
from nanobackpack.app.words import contexts_of, first_words, suggest, words
from nanobackpack.commands import main
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

HOSTILE = "<img/src=x/onerror=alert(1)>"


class Elements(HTMLParser):
    """The elements of a page, as a browser reads them: their names, attributes, and all of the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        return [str(a[attribute]) for _, a in self.tags if attribute in a]


def hostile_model() -> Any:
    """A Backpack one of whose tokens is an element with a script, and another the end of one."""
    names = [HOSTILE, "</style><script>f()</script>", '"onfocus="f()', "king", "\x1b[31m", "夏侯", "?"]
    inner = hf.Tokenizer(hf.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    inner.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    model = tiny_model(vocab_size=9, block_size=32, vocab_used=len(names))
    model.tokenizer = Tokenizer(inner)
    return model


def check_harmless(page: str) -> None:
    found = Elements(page)
    assert not {tag for tag, _ in found.tags} & {"img", "iframe", "object", "link", "base", "form"}
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert not {"src", "srcset", "action"} & {name for _, attributes in found.tags for name in attributes}
    assert "\x1b" not in page


def run_python(view: View) -> tuple[dict[str, Any], str]:
    """Run what a view gives as Python; its names and what it prints."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(view.python, names)
    return names, printed.getvalue()


def run_command(view: View, capsys: pytest.CaptureFixture[str]) -> str:
    program, *argv = shlex.split(view.command)
    assert program == "nanobackpack"
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert not end.value.code
    return capsys.readouterr().out


def test_a_prediction_shows_the_numbers_of_the_library(speller: nb.BackpackLM) -> None:
    view = predict(speller, "abcab", "d", "e", k=1, source="run")
    why = nb.Senses(speller).contributions("abcab", "d", versus="e")
    cells = {
        a["data-at"]: a["data-says"] for _, a in Elements(view.html).tags if a.get("data-says") is not None
    }
    T, K = why.contributions.shape
    for j in range(T):
        for k in range(K):
            weight, value = why.weights[j, k].item(), why.contributions[j, k].item()
            says = f"{why.tokens[j]!r}, sense {k}: weight {weight:.4f}, adds {value:+.4f}"
            assert cells[f"{j},{k}"] == says
        assert cells[f"{j},{K}"].endswith(f": {why.contributions[j].double().sum().item():+.4f}")
    assert f"the model's own logit: {why.logit:+.4f}" in str(cells[f"{T},{K}"])
    assert len(cells) == (T + 1) * (K + 1)
    # The bars are the likeliest tokens, and those asked about, however unlikely.
    p = nb.Senses(speller).next_probabilities("abcab")
    first = speller.tokenizer.token(int(p.argmax()))
    tokens = Elements(view.html).all("data-token")
    assert set(tokens) == set(Elements(view.html).all("data-versus")) == {first, "d", "e"}
    assert tokens == sorted(tokens, key=lambda token: -p[speller.tokenizer.id(token)].item())
    # In words: the strongest, with the numbers they have in the table.
    text, ten = Elements(view.html).text, why.ranked(10)
    assert min(value for _, _, value in ten) < 0 < max(value for _, _, value in ten)
    for _, k, value in ten:
        does = "pushes 'd'" if value > 0 else "pushes 'e' instead"
        assert f"sense {k}, {does} by {abs(value):.2f}" in text
    for _, k, value in nb.Senses(speller).contributions("abcab", "d").ranked(10):
        does = "pushes 'd'" if value > 0 else "holds 'd' back"
        text = Elements(predict(speller, "abcab", "d").html).text
        assert f"sense {k}, {does} by {abs(value):.2f}" in text


def test_small_contributions_are_not_rounded_to_nothing(speller: nb.BackpackLM) -> None:
    """A cell with a colour and a number has a number that is not 0, however small all of them are."""
    why = nb.Senses(speller).contributions("abcab", "d")
    for scale in (1.0, 0.24, 0.01):
        small = replace(why, contributions=why.contributions / why.contributions.abs().max() * scale)
        cells = re.findall(r'class="nb-(?:up|down)[^>]*><b>([^<]*)</b>', html.heat_map(small))
        assert cells
        assert all(float(cell.replace("−", "-")) for cell in cells)


def test_bytes_are_shown_with_their_character() -> None:
    senses = nb.Senses(nb.load_model("words-small"), typed=True)
    parts = senses.tokenizer.word_ids("中")
    assert len(parts) > 1
    page = Elements(predict(senses.model, "king 中 king", "king").html)
    names = [f"中({n}/{len(parts)})<#{i}>" for n, i in enumerate(parts, 1)]
    titles = page.all("title")
    assert all(titles.count(repr(name)) == 2 for name in names)  # a chip, and a row of the heat map
    assert (
        f"'中' is {len(parts)} tokens ({', '.join(map(repr, names))})"
        in Elements(words(senses.model, ["中"]).html).text
    )
    tokens = [senses.tokenizer.token(i) for i in [*parts, *senses.tokenizer.word_ids("king"), *parts[:-1]]]
    assert text_of(senses.tokenizer, tokens) == "中".join(["", "".join(tokens[len(parts) :])])


def test_a_prediction_can_be_made_again(
    folder: Path, speller: nb.BackpackLM, capsys: pytest.CaptureFixture[str]
) -> None:
    for token, versus in (("", ""), ("d", "e")):
        view = predict(speller, "ab'c"[:2] + "c", token, versus, source=str(folder))
        names, printed = run_python(view)
        why = view.results[1]
        assert torch.equal(names["why"].contributions, why.contributions)
        assert printed == f"{view.results[0].table(scores=True)}\n{why.table()}\n"
        assert why.table() in run_command(view, capsys)
        state: dict[str, Any] = dict(view.state)
        state["sense"] = int(state["sense"])
        assert predict(speller, **state, source=str(folder)).html == view.html


def gpt(folder: Path) -> nb.GPT:
    """A tiny GPT that knows some letters, saved in a file of its own: no run's folder."""
    model = tiny_model(model_name="gpt2", vocab_size=11, vocab_used=8, block_size=32)
    model.tokenizer = Tokenizer.char("abcdefg\n")
    save_model(model, folder / "gpt.pt")
    return model


def test_a_gpt_shows_what_it_expects_and_that_it_has_no_senses(tmp_path: Path) -> None:
    from nanobackpack.app.explore import open_models

    model, path = gpt(tmp_path), str(tmp_path / "gpt.pt")
    (opened,) = open_models([path], "cpu")
    view = predict(opened.model, "abc", "d", source=path, k=3)
    with torch.no_grad():
        p = model(torch.tensor([model.tokenizer.encode("abc")])).logits[0, -1].softmax(dim=0)[:8]
    page = Elements(view.html)
    best = dict.fromkeys([*p.topk(3).indices.tolist(), model.tokenizer.id("d")])
    for i in best:  # what was asked about, too
        assert html.token(model.tokenizer.token(i)) in view.html
        assert html.percent(p[i].item()) in page.text
    assert [a.get("class") for tag, a in page.tags].count("nb-bar") == len(best)
    assert [a.get("class") for tag, a in page.tags].count("nb-chip") == 3
    assert "is a GPT and has no senses" in page.text
    names, printed = run_python(view)
    assert torch.equal(names["likeliest"].scores, p.topk(3).values[None])
    assert printed == f"{view.results[0].table(scores=True)}\n"
    assert shlex.split(view.command) == ["python", "-c", view.python]
    with pytest.raises(nb.InputError, match="is a GPT and has no senses"):
        opened.senses  # noqa: B018
    with pytest.raises(nb.InputError, match="the prompt is empty"):
        predict(model, "")
    save_gpt2(tmp_path / "mute", vocab_used=0)
    with pytest.raises(nb.InputError, match="came without a tokenizer"):
        open_models([str(tmp_path / "mute")], "cpu")


def test_far_tokens_share_a_row(speller: nb.BackpackLM) -> None:
    why = nb.Senses(speller).contributions("abcdefgabc", "d")
    says = Elements(html.heat_map(why, most=3)).all("data-says")
    K = why.weights.size(1)
    assert len(says) == (1 + 3 + 1) * (K + 1)
    assert says[0] == (
        f"'… 7 before', sense 0: weight {why.weights[:7, 0].sum().item():.4f}, adds "
        f"{why.contributions[:7, 0].double().sum().item():+.4f}"
    )
    assert says[-1].startswith(f"all together: {why.contributions.double().sum().item():+.4f};")


def test_cards_of_words(folder: Path, speller: nb.BackpackLM, capsys: pytest.CaptureFixture[str]) -> None:
    view = words(speller, ["a", "bc", "a"], k=3, source=str(folder))
    one, two = (sense_cards(nb.Senses(speller), word, 3) for word in ("a", "bc"))
    assert view.state == {"words": "a,bc"}
    assert [result.to_json() for result in view.results] == [one.to_json(), two.to_json()]
    page = Elements(view.html)
    cards = [a for tag, a in page.tags if tag == "article"]
    assert len(cards) == 2 * len(one.cards)
    assert "'bc' is 2 tokens ('b', 'c'): shown is the mean of their senses" in page.text
    first = re.search(r"a · sense 0.*?says(.*?)not(.*?)is like", page.text, re.DOTALL)
    assert first
    assert first[1] == "".join(token.replace("\n", "↵") for token, _ in one.cards[0].top)
    assert run_python(view)[1] == run_command(view, capsys) == f"{one.table()}\n{two.table()}\n"
    with pytest.warns(UserWarning, match=r"5 words are given: shown are the first 4, not 'e'$"):
        assert first_words([*"abcde"]) == [*"abcd"]
    with pytest.raises(nb.InputError, match="no word is given"):
        words(speller, [""])


def test_cards_with_places_in_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("abc dead face\n".replace(" ", "\n") * 40, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["prepare", "t.txt", "--name=t", "--tokenizer=char"])
    save_tiny(tmp_path / "run", "abcdef\n", vocab_size=10)
    Path("run/config.json").write_text('{"dataset": "t"}', encoding="utf-8")
    model = nb.load_model("run")
    found = contexts_of(model, ["a"], "run")
    assert found
    view = words(model, ["a"], source="run", contexts=found)
    capsys.readouterr()
    assert run_python(view)[1] == run_command(view, capsys) == view.results[0].table() + "\n"
    places = [place for of_sense in found["a"].contexts for place in of_sense]
    assert [tag for tag, _ in Elements(view.html).tags].count("mark") == len(places) > 0
    assert contexts_of(model, ["a"], "words-small") is None


def test_cards_with_a_theme_come_first(speller: nb.BackpackLM, monkeypatch: pytest.MonkeyPatch) -> None:
    themes = ["no clear theme", "c, d", "e, f", "no clear theme"]
    monkeypatch.setattr("nanobackpack.analysis.cards.labels", lambda senses, word: themes)
    one, two = (card.top[0].score for card in sense_cards(nb.Senses(speller), "a").cards[1:3])
    best = [1, 2] if one > two else [2, 1]
    order = re.findall(r">sense (\d)<", words(speller, ["a"]).html)
    assert [*map(int, order)] == [*best, 0, 3]
    # What a text has shown counts more.
    found = Contexts(occurrences=1, contexts=[[]] * 4, share=[0.4, 0.3, 0.2, 0.1])
    order = re.findall(r">sense (\d)<", words(speller, ["a"], contexts={"a": found}).html)
    assert [*map(int, order)] == [1, 2, 0, 3]


def test_the_command_of_an_edit_gives_its_distribution(
    folder: Path, speller: nb.BackpackLM, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanobackpack.app.steer import Wishes, steer

    senses = nb.Senses(speller, "auto", special=True, typed=True)
    view = steer(senses, str(folder), "abc", Wishes(scale=(("c", 1, 0.5),)), k=3)
    distribution, about, sample = view.command.splitlines()
    found = replace(view.results[0], tested=[])
    assert found.table() in run_command(replace(view, command=distribution), capsys)
    assert about.startswith("# The sample, once the edits are saved as edits.safetensors")
    assert "--edits=edits.safetensors" in sample
    view = steer(senses, str(folder), "abc", Wishes(scale=(("c", 1, 0.5),), bag="a"), k=3)
    assert len(view.command.splitlines()) == 2  # a slider is not all that is wished for


def picture(data: bytes) -> Any:
    """Read a PNG: (height, width, 4), from 0 to 1."""
    from matplotlib.image import imread

    return imread(io.BytesIO(data))


@pytest.mark.slow
def test_runs_are_read_from_all_folders(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for n, path in enumerate(paths):
        Path(path).mkdir()
        lines = [json.dumps({"step": i, "val_loss": n + i / 10, "train_loss": 9.0}) for i in range(3)]
        Path(path, "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        Path(path, "config.json").write_text(json.dumps({"max_iters": 5, "seed": n}), encoding="utf-8")
    view = runs(paths, "val_loss")
    (found,) = json.loads(json.dumps(to_json_values(view.results)))
    assert found["losses"] == {path: [[i, n + i / 10] for i in range(3)] for n, path in enumerate(paths)}
    assert ["seed", "0", "1"] in found["settings"]
    assert [row[:4] for row in found["standings"]] == [
        [paths[0], "2 of 5", "0.2000", "0.0000"], [paths[1], "2 of 5", "1.2000", "1.0000"]
    ]  # fmt: skip
    assert run_python(view)[0]["found"] == view.results[0]
    told = subprocess.run(shlex.split(view.command), capture_output=True, text=True, check=True).stdout
    assert [line.split(":")[0] for line in told.splitlines()] == [
        f"{path}/metrics.jsonl" for path in paths for _ in range(3)
    ]
    one, none = picture(view.png()), picture(runs(paths, "train_eval_loss").png())
    assert one.shape == none.shape
    assert (one != none).any()


@pytest.mark.slow
def test_each_view_has_a_picture(speller: nb.BackpackLM) -> None:
    from nanobackpack.app.steer import Wishes, steer

    senses = nb.Senses(speller)
    one, two = words(speller, ["a"]), words(speller, ["a", "b"])
    assert picture(two.png()).shape[0] == 2 * picture(one.png()).shape[0]  # one below the other
    assert picture(predict(speller, "abc").png()).ndim == 3
    as_it_is, edited = (
        steer(senses, "run", "abc", Wishes(scale=(("c", -1, factor),))) for factor in (1.0, 0.0)
    )
    # Left is the model as it is, right with the edits: these alone make a difference.
    before, after = picture(as_it_is.png()), picture(edited.png())
    assert before.shape == after.shape
    assert (before != after).any()


def test_suggestions_are_words_of_the_vocabulary(speller: nb.BackpackLM) -> None:
    assert suggest(speller, "") == [*"abcdefg"]
    speller.token_counts = torch.arange(8)
    assert suggest(speller, "", 2) == ["g", "f"]
    assert suggest(speller, " C") == ["c"]
    small = nb.load_model("words-small")
    assert suggest(small, "kingd") == ["kingdom"]
    assert all(small.tokenizer.word_ids(word) for word in suggest(small, "qu"))


def test_hostile_tokens_are_text() -> None:
    model = hostile_model()
    pages = [predict(model, f"king {HOSTILE} 夏侯", HOSTILE).html, words(model, [HOSTILE, "king"]).html]
    for page in pages:
        check_harmless(page)
        found = Elements(page)
        assert "script" not in {tag for tag, _ in found.tags}
        assert HOSTILE in found.text
    assert HOSTILE in Elements(pages[0]).all("data-token")
    assert "夏侯" in Elements(pages[0]).text
    page = report(model, HOSTILE, [HOSTILE], [HOSTILE])
    check_harmless(page)
    assert [tag for tag, _ in Elements(page).tags].count("script") == 1
    assert "\\x1b[31m" in page


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save_tiny(tmp_path / "run", "abcdefg\n", block_size=32)
    settings = {"out_dir": str(run), "dataset": "letters", "n_layer": 3}
    (run / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    lines = [{"step": step, "val_loss": 3.0 - step / 10} for step in range(5)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    out = tmp_path / "out.html"
    with pytest.raises(SystemExit) as end:
        main(["report", str(out), f"--out_dir={run}", "--device=cpu", "--words", "a", "--seed=3"])
    assert not end.value.code
    assert capsys.readouterr().out == f"wrote {out}: open it in a browser\n"
    page = out.read_text(encoding="utf-8")
    check_harmless(page)
    found = Elements(page)
    assert len(page) < 1 << 20
    assert str(tmp_path) not in page  # where it lay on this machine is nobody's business
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|url\(|@import", page)
    names = [tag for tag, _ in found.tags]
    assert (names.count("svg"), names.count("pre"), names.count("article")) == (1, 3, 4)
    assert [a.get("class") for tag, a in found.tags if tag == "figure"].count("nb-map") == 3
    assert "datasetletters" in found.text


def test_report_of_models_without_senses_or_tokenizer(tmp_path: Path) -> None:
    page = report(save_gpt2(tmp_path / "gpt2", vocab_used=0), str(tmp_path / "gpt2"))
    assert "came without a tokenizer" in Elements(page).text
    gpt(tmp_path)
    page = report(nb.load_model(tmp_path / "gpt.pt"), str(tmp_path / "gpt.pt"))
    assert "this model is a GPT and has no senses: open a Backpack" in Elements(page).text
    assert (page.count("<pre>"), page.count("What may come next")) == (3, 3)


def test_report_wants_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["report"])
    assert (end.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


# --- The explorer's fields, without a browser ---------------------------------------------------------


Found = dict[Any, Any]


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Found]]:
    """Open the explorer at an address: what each of its components then has, by its id, else itself."""
    pytest.importorskip("gradio")
    from nanobackpack.app.explore import explorer, open_models

    folder = save_tiny(tmp_path_factory.mktemp("explored") / "run", "abcdefg\n")
    (folder / "metrics.jsonl").write_text('{"step": 0, "val_loss": 3.0}\n', encoding="utf-8")
    with warnings.catch_warnings():  # which the explorer collects
        demo = explorer(open_models([str(folder)], device="cpu"))
        load = next(call.fn for call in demo.fns.values() if call.name == "load")

        def at(**query: str) -> Found:
            found = load(SimpleNamespace(query_params=query))
            return {getattr(part, "elem_id", None) or part: value for part, value in found.items()}

        at.demo = demo  # type: ignore[attr-defined]
        yield at


def sliders(found: Found) -> list[tuple[str, float]]:
    """The sliders of Steer that are seen."""
    all_of_them = [value for value in found.values() if getattr(value, "step", 0) == 0.1]
    return [(slider.label, slider.value) for slider in all_of_them if slider.visible]


def test_steer_starts_with_the_slider_of_its_example(restored: Any) -> None:
    """However one comes to the tab: by its address, or from another with a click."""
    built = {part: part for part in restored.demo.blocks.values()}
    start = [("'a', all senses", 0.0)]
    assert sliders(built) == sliders(restored(tab="steer")) == start
    assert sliders(restored(tab="steer", scale='[["b", 2, 1.5]]')) == [("'b', sense 2", 1.5)]


def test_no_file_is_opened_through_a_link(
    restored: Any, speller: nb.BackpackLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "edits.safetensors"
    nb.control.save(nb.control.scale(speller, "a", 0.0), file, speller)
    usual = restored(tab="steer")
    monkeypatch.setattr(nb.control, "load", lambda *_: pytest.fail("a file was opened"))
    for path in (file, file.name, "run/ckpt.pt", "/etc/passwd"):
        found = restored(tab="steer", file=str(path))
        assert found["steer-file"] is None
        assert found["view-steer"] == usual["view-steer"]


@pytest.mark.parametrize(
    "query",
    [
        {"tab": "steer", "scale": '[["a", Infinity, 1]]'},
        {"tab": "steer", "scale": '[["a", 1, NaN]]'},
        {"tab": "steer", "scale": "[" * 10_000},
        {"tab": "steer", "tokens": "1e9", "seed": "x"},
        {"tab": "train", "curve": "nope", "models": "[" * 10_000},
    ],
)
def test_what_an_address_cannot_mean_is_as_if_it_were_not_there(restored: Any, query: dict[str, str]) -> None:
    found, usual = restored(**query), restored(tab=query["tab"])
    assert sliders(found) == sliders(usual)
    same = [name for name in usual if isinstance(name, str)]
    assert f"view-{query['tab']}" in same
    assert {name: found[name] for name in same} == {name: usual[name] for name in same}


def test_a_number_that_is_cleared_is_the_usual_one() -> None:
    pytest.importorskip("gradio")
    from nanobackpack.app import page

    fields = {name: SimpleNamespace(value=value) for name, value in (("seed", 1337), ("tokens", 60))}
    assert page.Page.given(SimpleNamespace(fields=fields), [None, 7]) == {"seed": 1337, "tokens": 7}  # type: ignore[arg-type]


def test_a_slider_is_added_or_it_is_said_why_not(restored: Any) -> None:
    from nanobackpack.app.steer_tab import SLIDERS, added

    two = '[["a", 1, 0.5], ["b", -1, 2.0]]'
    said, scale, *_ = added(two, "c", None)  # no sense: all of them
    assert (said, json.loads(scale)) == ("", [["a", 1, 0.5], ["b", -1, 2.0], ["c", -1, 0.0]])
    full = json.dumps([["a", sense, 0.5] for sense in range(SLIDERS)])
    for scale, word, why in ((full, "b", "no room for more"), (two, "", "type a word")):
        said, *kept = added(scale, word, 3)
        assert why in said
        assert len(kept) == 1 + SLIDERS
        assert all(isinstance(part, dict) and part["__type__"] == "update" for part in kept)  # as it was
    assert added(full, "a", 3)[0] == ""  # it has its slider already


def test_the_message_of_an_upload_does_not_say_where_it_lies(speller: nb.BackpackLM, tmp_path: Path) -> None:
    from nanobackpack.app.steer import Wishes

    file = tmp_path / "bad.safetensors"
    file.write_bytes(b"no edits")
    with pytest.raises(nb.InputError, match=r"^bad\.safetensors cannot be used") as error:
        Wishes(file=str(file)).edits(nb.Senses(speller))
    assert str(tmp_path) not in str(error.value)


def test_what_takes_too_long_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanobackpack.app.steer import in_time

    assert list(in_time([1, 2])) == [1, 2]
    monkeypatch.setattr("nanobackpack.app.steer.MOST_SECONDS", -1.0)
    steps = in_time([1, 2])
    assert next(steps) == 1
    with pytest.raises(nb.InputError, match="stopped after"):
        next(steps)
