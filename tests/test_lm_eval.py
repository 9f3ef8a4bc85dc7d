"""The harness lm-eval: its numbers are ours, on tasks that read local files."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from nanobackpack import InputError, load_model
from nanobackpack.analysis import control
from nanobackpack.commands import run
from nanobackpack.evaluate import blimp, lambada
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.text.tokenizer import Tokenizer, make_tokenizer
from nanobackpack.train.checkpoint import save_model

pytestmark = pytest.mark.skipif(not find_spec("lm_eval"), reason="without the extra lm-eval")

PAIRS = [("a bad cab", "bad a cab"), ("a bee", "bee a"), ("he had a head", "a head he had"), ("fed", "def"),
         ("feed a bee", "feed an bee"), ("bad egg", "egg bad"), ("dad added", "added dad")]  # fmt: skip
PASSAGES = [
    "a bad cab",
    "he had a bad head",
    "feed a bee a bad egg",
    "he had a bag, a bag",
    "dad added a bed",
]
SCALE = {"sense": 1, "factor": 3.0}


def adapter(*arguments: Any, **settings: Any) -> Any:
    """The model as lm-eval takes it; to import that takes seconds, which only its tests wait for."""
    from nanobackpack.hub.lm_eval import NanobackpackLM

    return NanobackpackLM(*arguments, **settings)


@pytest.fixture(scope="module", params=["bpe:270", "char"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with edits, and tasks that read files. Its tokens are bytes, where <|endoftext|> ends
    documents, or characters, where nothing does."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tokenizer = make_tokenizer(request.param, [text for pair in PAIRS for text in pair] + PASSAGES)
    model = tiny_model(vocab_size=tokenizer.vocab_size + 3, vocab_used=tokenizer.vocab_size, block_size=24)
    model.tokenizer = tokenizer
    save_model(model, folder / "ckpt.pt")
    control.save([control.scale(model, "a", **SCALE)], folder / "edit.safetensors", model)
    pairs = [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS]
    for name, rows, task in (
        ("blimp", pairs, BLIMP),
        ("lambada", [{"text": text} for text in PASSAGES], LAMBADA),
    ):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        read = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(folder / "cache")}
        local = {"task": name, "dataset_path": "json", "dataset_kwargs": read, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps(local | task))  # YAML reads JSON
    return folder


ACCURACY = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
# As the harness's own, but that those put a space before a sentence.
BLIMP = {
    "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0, "target_delimiter": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}", "metric_list": [ACCURACY],
}  # fmt: skip
LAMBADA = {
    "output_type": "loglikelihood", "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
    "doc_to_target": "{{' '+text.split(' ')[-1]}}", "metric_list": [ACCURACY, PERPLEXITY],
}  # fmt: skip


def asked(*args: Any) -> Any:
    """A request of the harness."""
    return SimpleNamespace(args=args)


@pytest.mark.parametrize(
    ("folder", "bos", "edited"),
    [("bpe:270", "auto", False), ("bpe:270", False, True), ("char", "auto", True)],
    indirect=["folder"],
)
def test_the_harness_finds_what_we_find(
    folder: Path, bos: Any, edited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLiMP and LAMBADA, with edits and without."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    edit = str(folder / "edit.safetensors") if edited else ""
    lm = adapter(str(folder), edits=edit, bos=bos, batch_size=3, device="cpu")
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    names = ["blimp", "lambada"]
    found = lm_eval.simple_evaluate(lm, tasks=names, task_manager=tasks, bootstrap_iters=0)["results"]
    model = load_model(folder)
    with control.applied(model, control.load(edit, model) if edited else ()):
        pairs = blimp.blimp(model, {"all": PAIRS}, bos)
        words = lambada.lambada(model, PASSAGES, bos)
    assert found["blimp"]["acc,none"] == pairs.accuracy[0]
    assert found["lambada"]["acc,none"] == words.accuracy
    assert found["lambada"]["perplexity,none"] == pytest.approx(words.perplexity, rel=1e-5)


def log_p(model: LanguageModel, ids: Sequence[int]) -> torch.Tensor:
    """log p (T, V) after each of ids, which the model reads at once."""
    return model(torch.tensor([ids])).logits[0].log_softmax(dim=1)


@torch.no_grad()
@pytest.mark.parametrize("bos", ["auto", True, False])
def test_whole_texts(folder: Path, bos: Any) -> None:
    """Each token counts once, after as much as the context holds; the first one if something is before it."""
    model = load_model(folder)
    tokenizer, size = model.tokenizer, model.config.block_size
    assert tokenizer
    if bos is True and tokenizer.kind == "char":
        with pytest.raises(InputError, match="no token that begins a document"):
            adapter(str(folder), bos=bos)
        return
    texts = ["a bee", " ".join(PASSAGES), "b", ""]
    lm = adapter(str(folder), bos=bos, batch_size=2, device="cpu")
    for text, got in zip(texts, lm.loglikelihood_rolling([asked(text) for text in texts]), strict=True):
        ids = tokenizer.encode(text)
        ids = [tokenizer.eos_id, *ids] if bos and tokenizer.eos_id is not None else ids
        total, done = 0.0, 1  # windows one after the other, the last one full
        while done < len(ids):
            end = min(done + size, len(ids))
            start = max(0, end - 1 - size)
            p = log_p(model, ids[start : end - 1])
            total += sum(p[i - 1 - start, ids[i]].item() for i in range(done, end))
            done = end
        assert got == pytest.approx(total, abs=1e-4)


def test_continuations(folder: Path) -> None:
    """Texts of one batch become what each becomes alone, greedily, up to what ends them; edits hold."""
    model = load_model(folder)
    edits = control.load(folder / "edit.safetensors", model)
    lm = adapter(str(folder), edits=str(folder / "edit.safetensors"), batch_size=2, device="cpu")
    prompts, more = ["a bad", "he", "feed a bee a bad egg, dad"], {"until": ["d", ""], "max_gen_toks": 9}
    expected = [model.generate(p, 9, temperature=0, stop=["d"], edits=edits)[len(p) :] for p in prompts]
    assert lm.generate_until([asked(prompt, more) for prompt in prompts]) == expected
    assert len({*expected}) > 1
    mixed = [asked("he", more), asked("he", {"until": "d", "max_gen_toks": 2}), asked("a bad", more)]
    assert lm.generate_until(mixed)[::2] == [expected[1], expected[0]]
    with pytest.raises(InputError, match="num_beams is not known"):
        lm.generate_until([asked("he", {"num_beams": 3})])


@torch.no_grad()
def test_what_cannot_be_scored(folder: Path) -> None:
    lm = adapter(str(folder), device="cpu")
    # Of a text that is too long the end counts, and the others are scored as ever.
    ids = lm.words.encode(" bad" * 40)[-25:]
    log_ps = log_p(load_model(folder), ids[:-1])[torch.arange(24), ids[1:]]
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the 24 tokens"):
        found = lm.loglikelihood([asked("a", " bad" * 40), asked("a", " bad")])
    assert found[0][0] == pytest.approx(log_ps.sum().item(), abs=1e-4)
    assert found[1][0] == pytest.approx(lm.loglikelihood([asked("a", " bad")])[0][0])
    with pytest.raises(
        InputError, match=r"continue is empty, and nothing stands before it: (bos=False|this token)"
    ):
        adapter(str(folder), bos=False, device="cpu").generate_until([asked("", {"max_gen_toks": 2})])
    with pytest.raises(InputError, match="no file of edits"):
        adapter(str(folder), edits="nowhere.safetensors")
    if isinstance(lm.words, Tokenizer) and lm.words.kind == "char":
        with pytest.raises(InputError, match="unknown character"):
            lm.loglikelihood([asked("a", "xyz")])


def test_the_command_hands_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All flags but those that say which model; an error of the harness is one line, so is its absence."""
    import lm_eval.__main__

    given: list[str] = []

    def harness() -> None:
        given.extend(sys.argv[1:])
        raise ValueError("Tasks not found: nothing\nmore of it")

    flags = [f"--out_dir={folder}", "--tasks", "nothing", "more", "--bos=False", "--limit=3", "--log_samples"]
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", harness)
    monkeypatch.setattr("lm_eval.evaluator.get_git_commit_hash", lambda: "of here")
    monkeypatch.chdir(folder)  # no repository, of which git would complain
    for there, error in (
        (True, "lm-eval: Tasks not found: nothing"),
        (False, "lm-eval is not installed: pip"),
    ):
        if not there:
            monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
        with pytest.raises(SystemExit) as end:
            run("lm_eval", flags)
        err = capsys.readouterr().err
        assert (end.value.code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: {error}")
    assert given[:5] == ["--tasks", "nothing", "more", "--limit=3", "--log_samples"]
    assert json.loads(given[given.index("--model_args") + 1]) == {
        "path": str(folder), "bos": False, "edits": "", "tokenizer_name": "auto", "dtype": "auto"
    }  # fmt: skip
    assert given[5:7] == ["--model", "nanobackpack"]
    assert lm_eval.evaluator.get_git_commit_hash() is None
