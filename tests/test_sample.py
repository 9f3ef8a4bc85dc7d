"""Prompts and samples as the command line has them: where texts begin and end, and what is said of it."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model

import nanobackpack as nb
from nanobackpack import commands
from nanobackpack.analysis.prompts import as_read, usual_start
from nanobackpack.model.backpack import BackpackLM
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.train.checkpoint import save_model

MARK = "<|endoftext|>"
TALES = [f"Once a {who} {did}. The end." for who in ("fox", "hen", "owl") for did in ("ran", "sang", "hid")]

Verb = Callable[..., tuple[str, str]]


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verb:
    """Run `nanobackpack VERB` in an empty folder; what it printed to stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, status: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            commands.main(list(argv))
        printed = capfd.readouterr()
        assert (end.value.code or 0) == status, printed.err
        return printed.out, printed.err

    return run


SIZES = [
    "--n_layer=2",
    "--n_head=2",
    "--n_embd=16",
    "--n_sense_vector=2",
    "--block_size=16",
    "--batch_size=2",
]


def trained(verb: Verb, text: str, *flags: str) -> None:
    """A run in out/, of 1 step, on a text."""
    Path("a.txt").write_text(text, encoding="utf-8", newline="")
    verb("prepare", "a.txt", "--val=0.3", *flags)
    verb("train", *SIZES, "--dataset=mine", "--max_iters=1", "--eval_iters=1", "--device=cpu")


# --- What training had --------------------------------------------------------------------------


def test_a_model_knows_what_it_was_trained_on(verb: Verb) -> None:
    """Each id is counted when data is prepared; a run keeps the counts, one with its weights adds its own."""
    trained(verb, MARK.join(TALES), "--tokenizer=bpe:300", f"--separator={MARK}")
    model = nb.load_model("out")
    ids = np.fromfile("data/mine/train.bin", "<u2")
    assert model.token_counts is not None
    assert model.token_counts.tolist() == np.bincount(ids, minlength=model.tokenizer.vocab_size).tolist()
    more = ["--init_from=out", "--out_dir=more", "--dataset=mine", "--max_iters=1", "--eval_iters=1"]
    verb("train", *SIZES, *more, "--device=cpu")
    assert torch.equal(nb.load_model("more").token_counts, 2 * model.token_counts)
    save_model(nb.control.bake(model), "baked.pt")
    assert torch.equal(nb.load_model("baked.pt").token_counts, model.token_counts)
    # What is not known of the first weights is not known of those made of them.
    model.token_counts = None
    save_model(model, "old.pt")
    verb("train", *SIZES, *more, "--init_from=old.pt", "--out_dir=from-old", "--device=cpu")
    assert nb.load_model("from-old").token_counts is None


BPE = make_tokenizer("bpe:300", TALES)


def knowing(tokenizer: Tokenizer, ids: list[int]) -> BackpackLM:
    """A model that was trained on these ids."""
    model = tiny_model(vocab_size=320, vocab_used=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    model.token_counts = torch.bincount(torch.tensor(ids), minlength=tokenizer.vocab_size)
    return model


@pytest.mark.parametrize(
    ("tokenizer", "text", "documents", "expected"),
    [
        (BPE, "Once a fox\nran.", True, [0]),  # <|endoftext|>, though there are line ends
        (BPE, "Once a fox\nran.", False, BPE.encode("\n")),
        (BPE, "hen hen hen ran", False, BPE.encode(" hen")),
        (BPE, "é é", False, BPE.encode(" ")),  # the halves of é are as frequent, and no text
        (Tokenizer.char("ab\n"), "aab\n", False, [0]),
        (Tokenizer.char("abc"), "abb", False, [1]),
    ],
)
def test_a_text_from_nothing_begins_as_training_had_it(
    tokenizer: Tokenizer, text: str, documents: bool, expected: list[int]
) -> None:
    model = knowing(tokenizer, [*tokenizer.encode(text), *[0] * documents])
    assert usual_start(model) == expected


@pytest.mark.parametrize(
    ("prompt", "way"),
    [
        ("Once a ", "leave the space at its end out"),
        ("Once a fox\n", "leave the line end out"),
        (f"Once{MARK}", "give a text"),
        ("Once Z", "end it in another word"),
        ("Once a fox", ""),
    ],
)
def test_an_end_that_training_never_had(prompt: str, way: str) -> None:
    model = knowing(BPE, [i for tale in TALES for i in BPE.encode(tale)])
    with warnings.catch_warnings(record=True) as caught:
        as_read(model, BPE.encode(prompt, special=True))
        model.token_counts = None  # an older model does not know
        as_read(model, BPE.encode(prompt, special=True))
    assert len(caught) == bool(way)
    assert not way or str(caught[0].message).endswith(f"a guess: {way}")


def test_prompts_are_read_as_texts_are(verb: Verb) -> None:
    """Without a mark, with the same line ends, and with letters composed if the texts were."""
    text = "Le café était là.\r\n" * 9
    other_form = unicodedata.normalize("NFD", text)
    Path("prompt.txt").write_text("\ufeff" + unicodedata.normalize("NFD", "café\r\n"), "utf-8", newline="")
    sample = ["sample", "--start=FILE:prompt.txt", "--num_samples=1", "--max_new_tokens=1", "--device=cpu"]
    trained(verb, other_form, "--tokenizer=char", "--normalize=nfc")
    tokenizer = nb.load_model("out").tokenizer
    assert [tokenizer.token(i) for i in range(tokenizer.vocab_size)] == sorted(set(text) - {"\r"})
    assert verb(*sample)[1] == ""
    # Texts that are composed already make a tokenizer that says how prompts are.
    trained(verb, text, "--tokenizer=char", "--newlines=keep")
    assert "this letter is one character (NFC): give --normalize=nfc" in verb(*sample, status=2)[1]
    assert verb(*sample, "--normalize=nfc", "--newlines=keep")[1] == ""
    assert "the prompt ends in" not in verb(*sample, "--normalize=nfc")[1]


def test_what_is_cut_is_said_by_all_programs_alike(verb: Verb) -> None:
    trained(verb, "\n".join(TALES), "--tokenizer=char")
    prompt = "Once a hen ran. The"
    note = "note: the prompt has 19 tokens, this model reads 16: all before 'e a hen ran. The' is cut\n"
    short = ["--num_samples=1", "--max_new_tokens=2", "--device=cpu", "--out_dir=out"]
    assert verb("sample", f"--start={prompt}", *short)[1] == note
    assert verb("explain", f"--prompt={prompt}", *short[2:])[1] == note
    assert verb("steer", f"--prompt={prompt}", "--word=e", *short)[1] == note
    Path("passages.jsonl").write_text(f'{{"text": "a fox"}}\n{{"text": "{prompt}"}}\n')
    note = "note: 1 of 2 texts are longer than block_size=16: their beginnings are cut\n"
    assert verb("lambada", "--data=passages.jsonl", *short[2:])[1] == note
