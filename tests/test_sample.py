"""Prompts and samples as the command line has them: where texts begin and end, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from conftest import tiny_model

import nanobackpack as nb
from nanobackpack import commands
from nanobackpack.analysis.prompts import as_read, usual_start
from nanobackpack.config import TrainConfig
from nanobackpack.model.backpack import BackpackLM
from nanobackpack.program import guard
from nanobackpack.text.data import open_data
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.train.checkpoint import save_model
from nanobackpack.train.resume import initial_model

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


SIZES = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--n_sense_vector=2"]
SIZES += ["--block_size=16", "--batch_size=2"]


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
    save_model(nb.control.bake(model), "baked.pt")
    assert torch.equal(nb.load_model("baked.pt").token_counts, model.token_counts)
    # A run with its weights adds what it trains on, as far as it is known what the first was trained on.
    config = TrainConfig(init_from="out", dataset="mine", block_size=16)
    assert torch.equal(initial_model(config, open_data(config)).model.token_counts, 2 * model.token_counts)
    model.token_counts = None
    save_model(model, "old.pt")
    config = dataclasses.replace(config, init_from="old.pt")
    assert initial_model(config, open_data(config)).model.token_counts is None


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
    trained(verb, text, "--tokenizer=char")
    typed = ["--out_dir=out", "--device=cpu", "--prompt=\ufeffété\r\nLe café"]
    for program in (["explain"], ["steer", "--word=c"], ["edit", "--word=c", "--remove=a", "--add=e"]):
        assert verb(*program, *typed)[1] == ""
    note = "note: 'ca' is 2 tokens ('c', 'a'): shown is the mean of their senses\n"
    assert verb("senses", "--words", "ca", "é", *typed[:2])[1] == note


def test_what_is_noted_twice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        warnings.simplefilter("always")
        for note in ("a", "b", "a"):
            warnings.warn(note, stacklevel=1)

    with pytest.raises(SystemExit):
        guard(main)
    assert capsys.readouterr().err == "note: a\nnote: b\n"


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


# --- Samples --------------------------------------------------------------------------------------


def spelling(*symbols: str) -> Tokenizer:
    """A tokenizer of characters and <|endoftext|>: with so few tokens, each comes up."""
    inner = hf.Tokenizer(hf.models.WordLevel({c: i for i, c in enumerate(symbols)}, unk_token="[UNK]"))
    inner.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
    inner.decoder = hf.decoders.Fuse()
    inner.add_special_tokens([MARK])
    return Tokenizer(inner)


SMALL = spelling("[UNK]", *"Once foxarh.T\n<|dt>")


def sampled(verb: Verb, *flags: str) -> list[dict[str, Any]]:
    """What `nanobackpack sample` writes as JSON, on a tiny model that it makes; printed is the same."""
    model = tiny_model(vocab_size=40, vocab_used=SMALL.vocab_size, block_size=128)
    model.tokenizer = SMALL
    Path("out").mkdir(exist_ok=True)
    save_model(model, Path("out/ckpt.pt"))
    out, err = verb("sample", "--device=cpu", "--max_new_tokens=25", "--top_k=0", "--json=a.json", *flags)
    samples = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert out == "".join(s["prompt"] + s["text"] + "\n" + "-" * 15 + "\n" for s in samples)
    assert err == "" or f"'{MARK}', which is read as text" in err
    return samples


def test_a_sample_ends_where_its_document_does(verb: Verb) -> None:
    """The mark is not printed; its id and log-probability, under the plain model, are in the JSON."""
    ended = sampled(verb, "--start=Once", "--temperature=3")
    whole = sampled(verb, "--start=Once", "--temperature=3", "--ignore_eos")
    model = nb.load_model("out")
    for short, long in zip(ended, whole, strict=True):
        assert (len(long["ids"]), long["finish_reason"]) == (25, "length")
        assert short["text"] == long["text"].partition(MARK)[0]
        assert short["ids"] == long["ids"][: len(short["ids"])]
        assert short["finish_reason"] == ("stop" if MARK in long["text"] else "length")
        ids = torch.tensor([SMALL.encode("Once") + short["ids"]])
        with torch.no_grad():
            log_p = model(ids).logits.log_softmax(dim=2)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        assert short["logprobs"] == pytest.approx(log_p[-len(short["ids"]) :].tolist(), abs=1e-4)
    assert {sample["finish_reason"] for sample in ended} == {"stop", "length"}


def test_several_prompts_are_sampled_as_alone(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of lines or JSON lines; in batches of any size; --start gives each of them the same texts."""
    prompts = ["Once a fox ran.", "The", "Once", f" hen {MARK}"]
    Path("a.txt").write_text("\n".join(prompts) + "\n\n")
    Path("a.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    flags = ["--num_samples=3", "--repetition_penalty=1.2", "--min_p=0.001", "--temperature=3"]
    together = sampled(verb, "--prompts=a.txt", *flags)
    assert [sample["prompt"] for sample in together] == [p for p in prompts for _ in range(3)]
    assert len({len(sample["ids"]) for sample in together}) > 3
    alone = [s for prompt in prompts for s in sampled(verb, f"--start={prompt}", "--special=plain", *flags)]
    for one, other in zip(together, alone, strict=True):
        assert one.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-4)
        assert one == other
    monkeypatch.setattr("nanobackpack.commands.sample.ROWS", 5)
    again = sampled(verb, "--prompts=a.jsonl", *flags)
    assert [sample["ids"] for sample in again] == [sample["ids"] for sample in together]
    named = [sample["ids"] for sample in sampled(verb, "--prompts=a.txt", "--special=allow", *flags)]
    assert named[:9] == [sample["ids"] for sample in together[:9]]
    assert named[9:] == [sample["ids"] for sample in sampled(verb, f"--start= hen {MARK}", *flags)]
    assert named[9:] != [sample["ids"] for sample in together[9:]]


def test_a_stop_is_never_shown(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a terminal either, where the first sample appears as it grows: the same text, piece by piece."""
    flags = ["--start=Once", "--ignore_eos", "--num_samples=4", "--temperature=3"]
    whole = sampled(verb, *flags)
    stop = [whole[0]["text"][18:21], whole[1]["text"][9:12], "zzz"]
    cut = sampled(verb, *flags, "--stop", *stop)
    for full, short in zip(whole, cut, strict=True):
        ends = [at for text in stop if (at := full["text"].find(text)) >= 0]
        assert short["text"] == full["text"][: min(ends, default=None)]
    assert {sample["finish_reason"] for sample in cut} >= {"stop"}
    pieces: list[str] = []
    write = sys.stdout.write
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout.isatty", lambda: True)
        patch.setattr("sys.stdout.write", lambda text: pieces.append(text) or write(text))
        sampled(verb, *flags, "--stop", *stop)
    assert "a shell writes a line end as" in verb("sample", "--max_new_tokens=1", "--stop", r"\n")[1]
    assert len([piece for piece in pieces if piece and piece in cut[0]["text"]]) > 5


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--stop", ""], "stop holds an empty text"),
        (["--prompts=no.txt"], "cannot read no.txt"),
        (["--prompts=empty.txt"], "has no prompts"),
        (["--prompts=bad.jsonl"], "line 1: no text under 'prompt'"),
        (["--prompts=empty.txt", "--start=a"], "start and prompts are both given"),
        (["--min_p=2"], "min_p=2.0 is out of range"),
        (["--repetition_penalty=0"], "repetition_penalty=0.0 is out of range"),
        (["--json=no/a.json"], "there is no folder no"),
    ],
)
def test_samples_that_cannot_be(verb: Verb, flags: list[str], reason: str) -> None:
    sampled(verb, "--num_samples=1")
    Path("empty.txt").write_text("\n\n")
    Path("bad.jsonl").write_text('{"text": "a"}\n')
    assert reason in verb("sample", "--device=cpu", *flags, status=2)[1]


def test_steering_shows_documents_to_their_ends(verb: Verb) -> None:
    sampled(verb, "--num_samples=1")
    flags = ["--prompt=Once", "--word=Once", "--max_new_tokens=90", "--num_samples=8", "--device=cpu"]
    out, _ = verb("steer", *flags)
    assert MARK not in out.replace(f"'{MARK}'", "")  # it may be a likely token
    (title, *_), words = out.splitlines(), verb("senses", f"--words={MARK}", "--device=cpu")[0]
    assert title == "# after 'Once'"
    assert words.splitlines()[0] == f"# {MARK}"
    number = f"<#{SMALL.eos_id}>"
    assert words == verb("senses", f"--words={number}", "--device=cpu")[0].replace(number, MARK)
    assert words != verb("senses", f"--words= {MARK}", "--device=cpu")[0].replace(f" {MARK}", MARK)
    explained = verb("explain", f"--prompt={MARK}Once", f"--next={MARK}", "--device=cpu")[0]
    assert f"logit of '{MARK}' after '{MARK}Once'" in explained
    assert explained != verb("explain", f"--prompt={MARK}Once", "--special=plain", "--device=cpu")[0]
