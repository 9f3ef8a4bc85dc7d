"""Topic control, gender bias, knowledge edits: the protocols by hand on tiny models, and their commands."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_program, save_gpt2, save_tiny, tiny_model
from oracle import plain_edited_logits, plain_logits

from nanobackpack import BackpackLM, InputError, Senses, load_model
from nanobackpack.analysis import control
from nanobackpack.analysis.control import ScaleSense
from nanobackpack.analysis.effect import effect
from nanobackpack.evaluate import bias, topic
from nanobackpack.evaluate.bias import BiasConfig
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.evaluate.topic import TopicConfig
from nanobackpack.model.backpack import LanguageModel
from nanobackpack.runtime import seed_of
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.text.words import first_ids
from nanobackpack.train.checkpoint import save_model

WORDS = ["[UNK]", "he", "she", "nurse", "developer", "CEO", "My", "The", "said", "that", "was", "with", "car"]
Capture = pytest.CaptureFixture[str]


def word_tokenizer() -> Tokenizer:
    """One token a word, for a few words."""
    inner = json.loads(Tokenizer.char("ab").to_json())
    inner["pre_tokenizer"], inner["decoder"] = {"type": "Whitespace"}, None
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    inner["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    return Tokenizer.from_json(json.dumps(inner))


def worded(**settings: Any) -> Any:
    model = tiny_model(**{"vocab_size": 16, "vocab_used": len(WORDS), "block_size": 24} | settings)
    model.tokenizer = word_tokenizer()
    return model


def test_sets_are_complete():
    """As many topics, nouns and prompts as the papers have; none is both fitted to and measured on."""
    sets = control_sets()
    assert len(sets["topics"]) == 17
    assert sum(map(len, sets["topics"].values())) == 33
    english, chinese = sets["bias"]["en"], sets["bias"]["zh"]
    assert [len(english[name]) for name in ("nouns", "prompts", "estimation")] == [40, 13, 5]
    assert [len(chinese[name]) for name in ("nouns", "prompts")] == [6, 5]
    for language in (english, chinese):
        assert not set(language["prompts"]) & set(language["estimation"])
    for prompts in (language[n] for language in (english, chinese) for n in ("prompts", "estimation")):
        assert all(prompt.count("{}") == 1 for prompt in prompts)
        assert len(set(prompts)) == len(prompts)


# --- Bias ---------------------------------------------------------------------------------------


def ratio_by_hand(model: LanguageModel, rows: list[list[int]], edits: tuple[control.Edit, ...] = ()) -> float:
    """Mean of max(p(he)/p(she), p(she)/p(he)), prompt by prompt, from the probabilities."""
    found = []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = plain_edited_logits(model, ids, edits)[0] if edits else plain_logits(model, ids)[0, -1]
        p = logits.double().softmax(dim=0)
        found.append(max(p[1] / p[2], p[2] / p[1]).item())
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", [{}, {"sense_network": "paper"}, {"model_name": "gpt2"}])
def test_bias_ratio(kind: dict[str, Any]):
    """Prompts of different lengths in one batch, each read at its own end, and cut if too long."""
    model = worded(**kind, block_size=12)
    rows = [[6, 3, 8, 9], [7, 4], [3] * 12, [5] * 11 + [3, 8, 7], [3, 8], [5, 3, 8] * 4]
    cut = [row[-12:] for row in rows]
    by_hand = ratio_by_hand(model, cut)
    assert bias.bias_ratio(model, rows, 1, 2) == pytest.approx(by_hand, rel=1e-4)
    assert bias.bias_ratio(model, rows, 2, 1) == pytest.approx(by_hand, rel=1e-4)
    assert not model.training
    if isinstance(model, BackpackLM):  # an edit that depends on the text acts in each row on its own
        edit = control.AmplifyInWord((3, 8), (8.0, 1.0))
        edited = ratio_by_hand(model, cut, (edit,))
        assert edited != pytest.approx(by_hand, rel=1e-4)
        assert bias.bias_ratio(model, rows, 1, 2, edit) == pytest.approx(edited, rel=1e-4)


def prompts(which: str, noun: str) -> list[list[int]]:
    texts = control_sets()["bias"]["en"][which]
    return [word_tokenizer().encode(text.format(noun)) for text in texts]


def test_gender_bias():
    """Table 5 of a tiny Backpack, by hand: the sense that helps most, a factor that lowers the objective."""
    model = worded()
    tokens = {"developer": (4,), "CEO": (5,), "nurse": (3,)}  # the set's order; the other nouns are unknown

    def by_hand(which: str, noun: str, factor: float, sense: int | None) -> float:
        return ratio_by_hand(model, prompts(which, noun), (ScaleSense(tokens[noun], factor, sense),))

    found = bias.bias(model, BiasConfig(max_iter=25))
    assert found.nouns == list(tokens)
    assert list(found.ratios) == ["unmodified", "removed", "optimised"]
    removed = [sum(by_hand("estimation", noun, 0.0, k) for noun in tokens) for k in range(4)]
    assert found.sense == removed.index(min(removed))
    for i, (noun, factor) in enumerate(zip(found.nouns, found.factors, strict=True)):
        for name, p in (("unmodified", 1.0), ("removed", 0.0), ("optimised", factor)):
            expected = by_hand("prompts", noun, p, found.sense)
            assert found.ratios[name][i] == pytest.approx(expected, rel=1e-3)
        before = by_hand("estimation", noun, 1.0, found.sense)
        after = by_hand("estimation", noun, factor, found.sense) + abs(1 - factor)
        assert after < before or (factor == 1 and after == pytest.approx(before))
    assert any(factor != 1 for factor in found.factors)
    means = {name: sum(values) / 3 for name, values in found.ratios.items()}
    assert found.means == pytest.approx(means)
    share = (means["unmodified"] - means["removed"]) / (means["unmodified"] - 1)
    assert found.reduction("removed") == pytest.approx(100 * share)
    assert found.reduction("unmodified") == 0
    assert model.edits == ()
    assert bias.bias(model, BiasConfig(sense=2, max_iter=1)).sense == 2
    with pytest.raises(InputError, match="senses 0 to 3"):
        bias.bias(model, BiasConfig(sense=4))


def test_gender_bias_of_a_gpt():
    """For a GPT she - he is projected out of what it reads of the noun."""
    model = worded(model_name="gpt2")
    with pytest.raises(InputError, match="sense=2: this model is a GPT"):
        bias.bias(model, BiasConfig(sense=2))
    with torch.no_grad():
        model.wte.weight.mul_(8)  # so sure of itself that it pays to change it
    found = bias.bias(model, BiasConfig(max_iter=5))
    assert found.sense is None
    assert list(found.ratios) == ["unmodified", "projected", "optimised"]
    for name, factor in (("projected", 0.0), ("optimised", found.factors[2])):
        edit = control.nullspace(model, [3], 2, 1, factor)
        by_hand = ratio_by_hand(model, prompts("prompts", "nurse"), (edit,))
        assert found.ratios[name][2] == pytest.approx(by_hand, rel=1e-3)
    assert found.ratios["projected"][2] != pytest.approx(found.ratios["unmodified"][2], rel=1e-3)
    assert any(factor != 1 for factor in found.factors)


def test_gender_bias_in_chinese(tmp_path: Path, capsys: Capture):
    """Nouns of several characters are scaled in all of them; what cannot be spelled is left out. What that
    costs is measured on text with these nouns and without."""
    folder = save_tiny(tmp_path / "run", "他她士兵教师那个说，进到屋子里走了过来想一想站起")
    (tmp_path / "text.txt").write_text(
        "那个士兵说，进到屋子里走那个人".replace("人", "他") * 3, encoding="utf-8"
    )
    out, err = run_program(
        "gender_bias", folder, capsys, "--language=zh", "--max_iter=3", f"--json={tmp_path}/b",
        f"--held_out={tmp_path}/text.txt",
    )  # fmt: skip
    assert err == ""
    result = json.loads((tmp_path / "b").read_text())
    assert result["nouns"] == ["士兵", "教师"]
    for noun in result["nouns"]:
        assert re.search(rf"{noun} +[\d.]+ +[\d.]+ +[\d.]+ +-?[\d.]+$", out, re.MULTILINE)
    model = load_model(folder)
    encode = model.tokenizer.encode
    he, she = encode("他她")
    rows = [encode(text) for text in ("那个士兵说，", "士兵进到屋子里，", "士兵走了过来，")]
    edit = ScaleSense(tuple(encode("士兵")), 0.0, result["sense"])
    assert list(result["costs"]) == ["removed", "optimised"]
    assert result["costs"]["removed"]["kl"][0] > 0
    assert result["seen"] is None
    assert len(result["controls"]["untrained"][0]) == 3
    assert result["ratios"]["removed"][0] == pytest.approx(bias.bias_ratio(model, rows, he, she, edit))


# --- Topics -------------------------------------------------------------------------------------


def test_controlled_texts():
    """Texts are what the model generates from the start under the edit; the shares are counted by hand."""
    model = worded()
    settings = TopicConfig(strength=3, num_samples=4, length=60, seed=5)
    for wrong, message in ((model, "begin a text"), (worded(model_name="gpt2"), "is a GPT")):
        with pytest.raises(InputError, match=message):
            next(topic.topic(wrong, {"mine": ["nurse"]}, TopicConfig()))
    model.tokenizer = Tokenizer.char("abcdefghijklm\n")
    with pytest.warns(UserWarning, match="'ab' is 2 tokens"):
        ((result, edit),) = topic.topic(model, {"mine": ["ab", "c"]}, settings)
    start = torch.tensor([model.tokenizer.encode("\n")]).expand(4, -1)
    draws = [torch.Generator().manual_seed(seed_of(5, i)) for i in range(4)]
    rows = model.generate(start, 59, edits=edit, generator=draws)[:, 1:]
    assert result.texts == [model.tokenizer.decode(row.tolist()) for row in rows]
    assert torch.equal(edit.delta, control.topic(model, [1, 3], 3).delta)
    hits = sum(token in (1, 3) for row in rows.tolist() for token in row)
    assert result.bag_tokens == pytest.approx(100 * hits / (4 * 59))
    words = [word for text in result.texts for word in text.split("\n") if word]
    share = sum(word in ("ab", "c") for word in words) / (len(words) + 4)  # with the mark that begins each
    assert result.bag_words == pytest.approx(100 * share)
    with pytest.warns(UserWarning, match="'ab' is 2 tokens"):
        ((again, _),) = topic.topic(model, {"mine": ["ab", "c"]}, replace(settings, batch_size=3))
    assert again.texts == result.texts
    with pytest.warns(UserWarning, match="'ab' is 2 tokens"):
        ((free, _),) = topic.topic(model, {"mine": ["ab", "c"]}, replace(settings, strength=0))
    for what, gain in (
        ("tokens", result.bag_tokens - free.bag_tokens),
        ("words", result.bag_words - free.bag_words),
    ):
        assert result.figures[f"mine, bag {what} − without control"].value == pytest.approx(gain)
    ((plain, nothing),) = topic.topic(model, {"mine": ["a"]}, replace(settings, strength=0))
    assert nothing.inert
    assert plain.texts != result.texts


def test_word_share():
    """Words are counted as such, in Chinese by the characters they have in the text."""
    for text, words, plain, paper in (
        ("Film, film and TV!", ["film", "TV"], (3 / 4, 4), (2 / 7, 7)),  # as Table 12: with , ! and a mark
        ("a filmy tv", ["film", "TV"], (1 / 3, 3), (0, 4)),
        ("却说曹操大骂，操贼曹操曹操。", ["曹操"], (6 / 12, 12), (6 / 15, 15)),
        ("曹操曹操曹", ["操曹"], (4 / 5, 5), (4 / 6, 6)),
        ("", ["a"], (0, 1), (0, 1)),
    ):
        assert topic.word_share(text, words, "plain") == plain
        assert topic.word_share(text, words, "paper") == paper


def test_sentiment():
    """A topic of its own, with the deltas and the annealing of the spec; it has two strengths."""
    model = tiny_model(vocab_size=16, vocab_used=16, block_size=32)
    model.tokenizer = Tokenizer.char("\nhlkgapyovendrsu")
    with pytest.warns(UserWarning, match="stands for it"):
        ((result, edit),) = topic.topic(
            model, {"sentiment": ["happy", "love"]}, TopicConfig(num_samples=2, length=5)
        )
    assert result.words == ["happy", "love"]
    assert topic.bags("sentiment") == {"sentiment": ["happy", "love", "kind", "generous"]}
    first = [model.tokenizer.id(letter) for letter in "hl"]
    expected = control.topic(model, first, deltas=(2.4, 1.8, 1.3, 1.0), f_scale=12.5)
    assert torch.equal(edit.delta, expected.delta)
    assert edit.f == pytest.approx(2.4 / 12.5)
    with pytest.raises(InputError, match="strength=3 is out of range: of sentiment it is 0 to 2"):
        next(topic.topic(model, {"sentiment": ["h"]}, TopicConfig(strength=3)))


def test_bags():
    """A topic by name, all of them, or words of one's own."""
    assert topic.bags("celebrity_pop_culture") == {"celebrity_pop_culture": ["celebrity", "pop", "culture"]}
    assert len(topic.bags("all")) == 17
    assert topic.bags("all", ["king", "crown"]) == {"king crown": ["king", "crown"]}
    with pytest.raises(InputError, match="'sport' is unknown: take all, sentiment, arts_culture"):
        topic.bags("sport")


def test_first_ids():
    """The first token stands for a word, and a warning says which, if there are more."""
    tokenizer = Tokenizer.char("abc")
    with pytest.warns(UserWarning, match="'cab' is 3 tokens: its first, 'c', stands for it"):
        assert first_ids(tokenizer, ["a", "cab"]) == [0, 2]
    assert first_ids(word_tokenizer(), ["nurse", "he"]) == [3, 1]
    with pytest.raises(InputError, match="unknown word 'doctor'"):
        first_ids(word_tokenizer(), ["doctor"])


@pytest.mark.slow
def test_classifier(tmp_path: Path):
    """A local classifier's labels are matched to the topics, and its probabilities counted above 1/2."""
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "goal", "vote"]))
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label={0: "sports", 1: "news_&_social_concern"},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(30)
    model.save_pretrained(tmp_path)
    classifier = topic.Classifier(str(tmp_path))
    texts = ["goal", "vote vote", "goal vote goal", "vote", "goal goal"]
    encode = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for label, name in enumerate(("sports", "news_social_concern")):
        by_hand = 0
        for text in texts:
            with torch.no_grad():
                by_hand += bool(model(**encode(text, return_tensors="pt")).logits[0, label].sigmoid() > 0.5)
        assert classifier.success(texts, name) == by_hand / len(texts)
    with pytest.raises(InputError, match=r"no topic 'gaming': its own are sports, news_social_concern"):
        topic.Classifier(str(tmp_path), ["sports", "gaming"])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        topic.Classifier(str(tmp_path))


# --- Effects ------------------------------------------------------------------------------------


def test_effect(speller: BackpackLM):
    """Next tokens and samples without and with the edit, drawn with the same numbers."""
    edit = control.knowledge_edit(speller, 1, remove=2, add=3)
    found = effect(Senses(speller), edit, "bad", k=3, n=2, new_tokens=9, temperature=2.0, seed=4, tested="ef")
    ids = torch.tensor([speller.tokenizer.encode("bad")])
    for i, (edits, ranking, samples) in enumerate((
        ((), found.next_before, found.samples_before),
        ((edit,), found.next_after, found.samples_after),
    )):  # fmt: skip
        with torch.no_grad():
            p = plain_edited_logits(speller, ids, edits)[0].softmax(dim=0)[:8]
        assert ranking.ids[0].tolist() == p.topk(3).indices.tolist()
        assert ranking.scores[0].tolist() == pytest.approx(p.topk(3).values.tolist(), abs=1e-5)
        assert found.probabilities[:, i].tolist() == pytest.approx(p[[5, 6]].tolist(), abs=1e-6)
        draw = torch.Generator().manual_seed(4)
        rows = speller.generate(ids.expand(2, -1), 9, 2.0, generator=draw, edits=edits)
        assert samples == [speller.tokenizer.decode(row[3:].tolist()) for row in rows]
    assert found.samples_before != found.samples_after
    assert re.findall(r"^  (\w+) ", found.table(), re.MULTILINE) == ["before", "after"]


# --- Commands -----------------------------------------------------------------------------------


EDITS: list[tuple[str, list[str], str, Callable[[Any, Callable[[str], int]], control.Edit]]] = [
    ("knowledge_edit", ["--word=a", "--remove=bad", "--add=d"],
     "'bad' is 3 tokens: its first, 'b', stands for it",
     lambda model, i: control.knowledge_edit(model, i("a"), i("b"), i("d"))),
    ("knowledge_edit", ["--word=a", "--copy=b", "--senses", "1", "3", "--prompt=cde"],
     "'cde' has none of the edited tokens ('a'), so nothing changes before one comes",
     lambda model, i: control.copy_senses(model, i("a"), i("b"), [1, 3])),
    ("knowledge_edit", ["--word=Brady", "--prompt=Brady", "--tokens", "B"],  # the paper's: needs no more
     "'Patriots' is 8 tokens: its first, 'P', stands for it",
     lambda model, i: control.knowledge_edit(model, i("B"), i("P"), i("C"))),
    ("knowledge_edit", ["--word=bab", "--remove=e", "--add=d", "--everywhere"], "",
     lambda model, i: [control.knowledge_edit(model, i(token), i("e"), i("d")) for token in "ba"]),
    ("steer", ["--word=ba", "--factor=3"], "", lambda _, i: control.ScaleWord((i("b"), i("a")), 3.0)),
    ("steer", ["--word=ab", "--prompt=cdeab", "--factor=3", "--sense=1", "--everywhere"], "",
     lambda _, i: ScaleSense((i("a"), i("b")), 3.0, 1)),
    ("steer", ["--everywhere", "--sense=1"], "", lambda *_: ScaleSense("all", 0.0, 1)),
    ("steer", ["--word=ac", "--prompt=cdea"],
     "'cdea' has none of the edited tokens ('ac'), so nothing changes before one comes",
     lambda _, i: control.ScaleWord((i("a"), i("c")), 0.0)),
    ("steer", ["--word=a", "--sense=2", "--factor=-3", "--tokens", "e", "f"], "",
     lambda _, i: ScaleSense((i("a"),), -3.0, 2)),
    ("steer", ["--word=ba", "--amplify", "8", "1"], "",
     lambda _, i: control.AmplifyInWord((i("b"), i("a")), (8.0, 1.0))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "note", "edit"), EDITS)
def test_editing_commands(
    tmp_path: Path, capsys: Capture, name: str, arguments: list[str], note: str, edit: Callable[..., Any]
):
    """They show before and after, and keep the edit for sample.py: its file is that of the edit by hand."""
    folder = save_tiny(tmp_path / "run", "abcdefgBryPtiosCl\n")
    files = [f"--save={folder}/edit", f"--json={folder}/j"]
    out, err = run_program(name, folder, capsys, "--prompt=bad", *arguments, "--max_new_tokens=5", *files)
    assert err.startswith(f"note: {note}\n" if note else "")
    model = load_model(folder)
    control.save(edit(model, model.tokenizer.id), folder / "expected", model)
    assert (folder / "edit").read_bytes() == (folder / "expected").read_bytes()
    found = json.loads((folder / "j").read_text())
    (result,) = found if isinstance(found, list) else [found]
    assert len(result["samples_after"]) == {"knowledge_edit": 3, "steer": 2}[name]
    before, after = re.findall(r"^  (?:before|after) +(.*)", out, re.MULTILINE)
    assert (before == after) == ("none of" in note)
    for token, (p, q) in zip(result["tested"], result["probabilities"], strict=True):
        assert f"{token!r} {p:.3g} {q:.3g} {q / p:.3f}" in " ".join(out.split())
    assert len(result["tested"]) == 2 * ("f" in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--word=ab"], "'ab' is the tokens 'a' (2 other places in the prompt, 7 in training), 'b' (1 other"),
        (["--word=ab", "--copy=c"], "name some of them, as --tokens 'a', or take all with --everywhere"),
        (["--word=ab", "--tokens", "b", "c"], "name some of them"),
        (["--word=a", "--tokens", "b"], "name some of them"),
    ],
)
def test_a_table_of_senses_cannot_hold_for_a_word(
    tmp_path: Path, capsys: Capture, arguments: list[str], message: str
):
    """What edits the senses of tokens says where else these stand, and asks which of them are meant."""
    folder = save_tiny(tmp_path / "run", "abcdef\n")
    model = load_model(folder)
    model.token_counts = torch.arange(7) + 6
    save_model(model, folder / "ckpt.pt")
    given = ["--remove=d", "--add=e", "--prompt=abbaa", *arguments]
    _, err = run_program("knowledge_edit", folder, capsys, *given, status=2)
    assert message in err
    assert len(err.splitlines()) == 1


def test_steer_with_the_shipped_prompts(tmp_path: Path, capsys: Capture):
    """Without a prompt those of nanoBackpackLM that hold the word, and its test tokens."""
    folder = save_tiny(tmp_path / "run", "沙滩上有不少在这人间里，充满了片非常好看丘撒堡粒石海球晒")
    given = ["--word=沙滩", "--amplify", "4", "1", "--num_samples=0", f"--json={tmp_path}/j"]
    out, _ = run_program("steer", folder, capsys, *given)
    found = json.loads((tmp_path / "j").read_text())
    assert [r["title"] for r in found] == ["after '沙滩上有不少'", "after '这片沙滩非常好看，'"]
    assert found[0]["tested"] == list("丘撒堡粒石海人球晒")
    assert found[0]["samples_before"] == []
    assert out.count("ratio") == 2


def test_topic_command(folder: Path, capsys: Capture):
    """It prints texts and shares, and keeps the edit."""
    given = ["--bag", "a", "b", "--strength=3", "--num_samples=2", "--length=9", f"--save={folder}/e"]
    out, err = run_program("topic_control", folder, capsys, *given, f"--json={folder}/j")
    assert err == ""
    assert out.count("-" * 15) == 2
    share = json.loads((folder / "j").read_text())["topics"][0]["bag_tokens"]
    assert re.search(rf"^  a b +{share:.2f} % +[\d.]+ %$", out, re.MULTILINE)
    model = load_model(folder)
    (edit,) = control.load(folder / "e", model)
    assert torch.equal(edit.delta, control.topic(model, [1, 2], 3).delta)


def gpt2_folder(folder: Path) -> Path:
    """A tiny GPT-2 as the hub has them, which knows words of a and b."""
    save_gpt2(folder, vocab_size=8, vocab_used=8, block_size=64)
    inner = json.loads(Tokenizer.char("ab\n").to_json())
    inner["added_tokens"] = [
        {"id": 3, "content": "<end>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(inner))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


needs_mauve = pytest.mark.skipif(not importlib.util.find_spec("mauve"), reason="without the extra mauve")


@needs_mauve
@pytest.mark.slow
def test_topic_command_measures_mauve(tmp_path: Path, capsys: Capture):
    """Texts next to themselves have a higher MAUVE than next to others; it is printed and in the file."""
    folder, features = save_tiny(tmp_path / "run", "ab\n"), gpt2_folder(tmp_path / "gpt2-tiny")
    arguments = ["--bag", "a", "--strength=1", "--num_samples=40", "--length=12", f"--json={tmp_path}/j"]
    run_program("topic_control", folder, capsys, *arguments)
    own = [t.replace("\n", "") for t in json.loads((tmp_path / "j").read_text())["topics"][0]["texts"]]
    for name, texts in (("own", own), ("others", ["a" * 11] * 40)):
        (tmp_path / name).write_text("\n".join(texts))
    # In a process of its own, as mauve-text's libraries can crash torch afterwards.
    code = """if True:
        import contextlib, sys
        from nanobackpack.commands import main
        for real in ("own", "others"):
            with contextlib.suppress(SystemExit):
                main(["topic", "--evaluate", f"--reference={real}", *sys.argv[1:]])
    """
    command = [sys.executable, "-c", code, f"--out_dir={folder}", "--device=cpu", *arguments]
    command += [f"--features={features}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    own_score, others_score = map(float, re.findall(r"\n  MAUVE (.*)", done.stdout))
    assert json.loads((tmp_path / "j").read_text())["mauve"] == pytest.approx(others_score, abs=6e-4)
    assert others_score < own_score <= 1


@needs_mauve
def test_mauve_is_refused_before_texts_are_drawn(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
):
    """A name that mauve-text cannot take is one line; without the package there is a note, and no number."""
    real = folder / "real.txt"
    real.write_text("abc\nabd\n")
    given = ["--bag", "a", "--num_samples=2", "--length=9", f"--reference={real}"]
    for features, message in (("xlnet", "wants gpt2 or bert"), (f"{folder}/gpt2", "cannot be read")):
        out, err = run_program("topic_control", folder, capsys, *given, f"--features={features}", status=2)
        assert (out, err.count("\n")) == ("", 1)
        assert message in err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out, err = run_program("topic_control", folder, capsys, *given, "--evaluate")
    assert out.startswith("# strength 2")
    assert "MAUVE" not in out
    assert err == "note: MAUVE is not measured: pip install 'nanobackpack[mauve]'\n"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("topic_control", ["--bag", "x"], "'x'"),
        ("topic_control", ["--bag", "a", "--length=1"], "length=1"),
        ("topic_control", ["--bag", "a", "--num_samples=0"], "num_samples=0"),
        ("topic_control", ["--bag", "a", "--reference=nowhere"], "nowhere"),
        ("topic_control", ["--bag", "a", "--classifier=nowhere"], "classifier='nowhere'"),
        ("topic_control", ["--bag", "a", "--save=nowhere/x"], "no folder nowhere"),
        ("gender_bias", [], "pronoun 'he' is not one token"),
        ("gender_bias", ["--max_iter=0"], "max_iter=0"),
        ("steer", ["--word=a"], "prompt is empty"),
        ("knowledge_edit", ["--word=", "--remove=b", "--add=c"], "empty word"),
        ("knowledge_edit", ["--word=a", "--remove=b"], "'a' is none of MacBook, Brady, Obama, Barack"),
        ("knowledge_edit", ["--json=nowhere/x"], "no folder nowhere"),
        ("sense_vector", ["--plot=."], "is a folder"),
        ("sense_vector", ["--bos", "--words", "a"], "begins a document"),
        ("sense_vector", ["--dtype=bfloat16"], "float32"),
        ("explain", [], "prompt is empty"),
        ("word_composition", ["--word=ab"], "sentences is empty"),
        ("word_composition", ["--word=ab", "--sentences=missing.txt"], "missing.txt"),
    ],
)
def test_command_errors(folder: Path, capsys: Capture, name: str, arguments: list[str], message: str):
    """Bad input ends a command with status 2 and one line that names it."""
    out, err = run_program(name, folder, capsys, *arguments, status=2)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    assert re.search(message, err)
