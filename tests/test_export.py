"""Models on their way out, to transformers and others, and back in: the same numbers everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from conftest import BACKPACKS, save_tiny, tiny_model
from safetensors.torch import load_file, save_file

from nanobackpack import BackpackLM, InputError, Senses, cli, control, load_model
from nanobackpack.commands.export import ExportConfig, main
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train.checkpoint import save_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
LAYOUTS = ("transformers", "backpack-gpt2", "nanobackpacklm")


def export(*arguments: Any) -> None:
    """Export a model. That imports transformers, which takes seconds: only tests that export wait for it."""
    from nanobackpack.hub import export

    export.export(*arguments)


def word_pieces(n: int) -> Tokenizer:
    """A tokenizer as BERT's with n ids, of which [CLS] begins each text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef", *(f"##{c}" for c in "abcdefghijkl")][:n]
    inner = hf.Tokenizer(hf.models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    inner.decoder = hf.decoders.WordPiece()
    inner.add_special_tokens(names[:5])
    return Tokenizer(inner)


MODELS: dict[str, dict[str, Any]] = {
    "nano-char": BACKPACKS["nano"],
    "paper-word-pieces": BACKPACKS["paper-bias-inverse"],
    "nano-bias-few-baked": BACKPACKS["nano-bias-few"],
    "modern": BACKPACKS["paper-k1-modern"],
}


def made(name: str) -> BackpackLM:
    model = tiny_model(**MODELS[name])
    assert isinstance(model, BackpackLM)
    n = model.config.n_token
    model.tokenizer = word_pieces(n) if "pieces" in name else Tokenizer.char("abcdefghijklmnopqrs"[:n])
    if "baked" in name:
        model = control.bake(model, control.ScaleSense((3, 7), 0.0, 1))
    return model


@torch.no_grad()
def expected(model: BackpackLM, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What hub_checks.py compares with."""
    found = {"ids": ids, "logits": model(ids).logits, "alpha": model.contextualization(ids)}
    found["senses"] = model.sense_vectors(ids.flatten()).unflatten(0, ids.shape)  # (B, T, K, D)
    room = model.config.block_size - 4
    found["greedy"] = model.generate(ids[:, :4], room, temperature=0)
    text = "abcdef"
    assert model.tokenizer
    prompt = torch.tensor([model.tokenizer.prompt_ids(text)])
    found |= {"text": torch.tensor([*text.encode()]), "text ids": prompt[0]}
    return found | {"text greedy": model.generate(prompt, 4, temperature=0)[0]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each model, exported, with what it says of some ids."""
    root = tmp_path_factory.mktemp("exports")
    ids = torch.randint(19, (3, 12), generator=torch.Generator().manual_seed(1))
    for name in MODELS:
        model = made(name)
        export(model, root / name)
        save_file(
            {key: t.contiguous().clone() for key, t in expected(model, ids).items()},
            root / name / "expected.safetensors",
        )
    return {name: root / name for name in MODELS}


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, os.environ.get("OTHER_TRANSFORMERS")])
def test_without_nanobackpack(folders: dict[str, Path], python: str | None) -> None:
    """In a process of its own; also in the Python, with another transformers, that OTHER_TRANSFORMERS is."""
    if python is None:
        pytest.skip("OTHER_TRANSFORMERS names no other Python")
    command = [python, str(ROOT / "tests" / "hub_checks.py"), *map(str, folders.values())]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("transformers ") == len(folders)


@pytest.mark.parametrize("name", MODELS)
def test_comes_home(folders: dict[str, Path], name: str) -> None:
    """load_model opens the export as what it was."""
    model, back = made(name), load_model(folders[name])
    assert back.config == model.config
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert model.tokenizer is not None
    assert back.tokenizer is not None
    assert model.tokenizer.difference(back.tokenizer) == ""
    assert model.tokenizer.prompt_ids("abd") == back.tokenizer.prompt_ids("abd")


@pytest.mark.parametrize("name", ["nano_checkpoint", "nano_checkpoint_bias", "backpack_gpt2"])
def test_golden(tmp_path: Path, name: str) -> None:
    """The originals' numbers, with the classes that nanobackpack.hub registers: no remote code."""
    from transformers import AutoModelForCausalLM

    export(load_model(GOLDEN / name), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    original = load_file(GOLDEN / name / "expected.safetensors")
    out = model(original["input_ids"], output_attentions=True)
    assert type(model).__module__ == "nanobackpack.hub.modeling_backpack"
    assert (out.logits - original["logits"]).abs().max() < 1e-5
    assert (out.attentions[0] - original["contextualization"]).abs().max() < 1e-5
    assert (model.sense_vectors() - original["sense_vectors"]).abs().max() < 1e-5


def same_logits(a: Any, b: Any) -> None:
    ids = torch.arange(12)[None]
    assert (a(ids).logits - b(ids).logits).abs().max() < 1e-5


def gpt(**settings: Any) -> Any:
    return tiny_model(model_name="gpt2", **settings)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gpt_is_gpt2(tmp_path: Path, bias: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """In transformers, where no code goes with it, and back, with biases of 0 if it had none."""
    import transformers

    model = gpt(bias=bias)
    export(model, tmp_path / "out")
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.glob("out/*.py"))
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(other) is transformers.GPT2LMHeadModel
    same_logits(model, other)
    same_logits(model, load_model(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["nano", "baked", "gpt"])
def test_characters(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A vocabulary without a row to spare: texts of different lengths in a batch, and [PAD] comes home."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

    model = tiny_model(vocab_size=4, vocab_used=0, model_name="gpt2" if kind == "gpt" else "backpack-lm")
    if kind == "baked":
        model = control.bake(model, control.ScaleSense((3,), 0.0, 1))
    model.tokenizer = Tokenizer.char("abc\n")
    export(model, tmp_path / "out")
    back = load_model(tmp_path / "out").config
    assert (back == model.config) if kind != "gpt" else (back.vocab_size, back.vocab_used) == (4, 0)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (other.config.eos_token_id, other.config.bos_token_id, other.config.pad_token_id) == (None,) * 3
    if kind == "gpt":  # the library's own class needs a row for it
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        other.resize_token_embeddings(len(tokenizer))
    batch = tokenizer(["ab", "ab\nc"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[4, 4, 1, 2], [1, 2, 0, 3]]
    capfd.readouterr()
    grown = other.generate(**batch, max_new_tokens=4, do_sample=False)
    alone = other.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert torch.equal(grown[0, 2:], alone[0])
    assert grown[:, 4:].max() < 4  # never [PAD]
    if kind != "gpt":
        assert other.generate(**batch, max_new_tokens=99, do_sample=False).size(1) == 12
        assert capfd.readouterr().err == ""  # that two lengths are given is nothing to warn of
    rows = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer("ab"), tokenizer("ab\nc")])
    assert (rows["labels"] == -100).sum() == 2
    other(**rows).loss.backward()
    for name in ("saved", "resized"):
        if name == "resized":
            other.resize_token_embeddings(len(tokenizer))
        other.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        home = load_model(tmp_path / name)
        assert home.tokenizer
        assert (home.tokenizer.kind, home.config.n_token) == ("char", 4)
        assert home.tokenizer.difference(model.tokenizer) == ""
        ids = torch.tensor([[1, 2, 0, 3]])
        assert (home(ids).logits - other(ids).logits).abs().max() < 1e-5
    with pytest.raises(Exception, match="Missing"):  # a character that it does not know, as docs/hub.md says
        tokenizer("é")


def test_rotary_positions_are_those_that_are_given(folders: dict[str, Path]) -> None:
    """Only how far apart they are matters: later ones say the same, other distances do not."""
    from nanobackpack.hub.modeling_backpack import BackpackForCausalLM

    model = BackpackForCausalLM.from_pretrained(folders["modern"]).eval()
    ids, places = torch.arange(12)[None] + 3, torch.arange(12)[None]
    usual = model(ids).logits
    assert (model(ids, position_ids=places + 5).logits - usual).abs().max() < 1e-4
    assert (model(ids, position_ids=places * 2).logits - usual).abs().max() > 0.01


def test_fresh_weights() -> None:
    """Those of a part whose result is added up begin smaller, as ours do."""
    from nanobackpack.hub.modeling_backpack import BackpackConfig, BackpackForCausalLM

    fresh = BackpackForCausalLM(BackpackConfig(n_layer=3, n_embd=64, n_head=2, vocab_size=99, block_size=8))
    for name, factor in (("attn.c_attn", 1), ("attn.c_proj", 6**-0.5), ("mlp.c_proj", 6**-0.5)):
        std = fresh.get_submodule(f"context.h.0.{name}").weight.std().item()
        assert std == pytest.approx(0.02 * factor, rel=0.1)


# --- Fine-tuned elsewhere, then home ----------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """Eight rows of ids to learn."""

    ids = torch.randint(19, (8, 12), generator=torch.Generator().manual_seed(2))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "attention_mask": torch.ones(12).long(), "labels": self.ids[i]}


def trained(model: Any, folder: Path, steps: int, resume: bool = False) -> Any:
    """Train with transformers' Trainer, over accelerate; a checkpoint at the second step."""
    import transformers

    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, save_steps=2,
        lr_scheduler_type="constant", report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=Rows())
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@torch.no_grad()
def loss(model: Any) -> float:
    return model.eval()(Rows.ids, labels=Rows.ids).loss.item()


@pytest.mark.slow
def test_trainer(folders: dict[str, Path], tmp_path: Path) -> None:
    """Trainer learns; resumed it does what it does uninterrupted; what it saved comes home."""
    from transformers import AutoModelForCausalLM

    whole, half, resumed, untrained = (
        AutoModelForCausalLM.from_pretrained(folders["nano-bias-few-baked"]) for _ in range(4)
    )
    trained(whole, tmp_path / "whole", 4)
    assert loss(whole) < loss(untrained) - 0.1
    trained(half, tmp_path / "half", 2)
    trained(resumed, tmp_path / "half", 4, resume=True)
    assert abs(loss(half) - loss(whole)) > 0.01
    same_logits(resumed, whole)
    same_logits(load_model(tmp_path / "half" / "checkpoint-4"), whole)


@pytest.mark.slow
@pytest.mark.parametrize("target", [r".*c_attn", r"senses\..*c_(fc|proj)"])
def test_lora(folders: dict[str, Path], tmp_path: Path, target: str) -> None:
    """A LoRA on all attention, or on the senses alone, merged: home again it is analysed as any model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peft = pytest.importorskip("peft")
    folder, merged = folders["paper-word-pieces"], tmp_path / "merged"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2, task_type="CAUSAL_LM"))
    trained(tuned, tmp_path / "run", 4)
    after = loss(tuned)
    tuned.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(folder).save_pretrained(merged)

    home, before = load_model(merged), load_model(folder)
    changed = [k for k, p in home.named_parameters() if not torch.equal(p, before.state_dict()[k])]
    assert changed
    assert all(re.fullmatch(rf"{target}\.weight", name) for name in changed)
    assert home(Rows.ids[:, :-1], Rows.ids[:, 1:].contiguous()).loss.item() == pytest.approx(after, abs=1e-5)
    assert home.config == before.config
    why = Senses(home, bos="auto").contributions("abc", "d")
    assert home.tokenizer
    prompt, d = torch.tensor([home.tokenizer.prompt_ids("abc")]), home.tokenizer.word_ids("d")
    logit = home(prompt).logits[0, -1, d].item()
    assert why.contributions.sum().item() == pytest.approx(logit, abs=1e-4)


class Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, use_cache=False).logits


@pytest.mark.slow
def test_onnx(folders: dict[str, Path], tmp_path: Path) -> None:
    """The recipe of docs/hub.md, where onnxruntime is installed: any batch and length."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders["nano-char"]).eval()
    sizes = ({0: torch.export.Dim("B"), 1: torch.export.Dim("T", min=2, max=12)},)
    torch.onnx.export(
        Logits(model), (Rows.ids[:2, :7],), tmp_path / "out.onnx", dynamo=True, dynamic_shapes=sizes,
        input_names=["input_ids"], output_names=["logits"], verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    for ids in (Rows.ids, Rows.ids[:1, :5]):
        (logits,) = session.run(None, {"input_ids": ids.numpy()})
        assert (torch.from_numpy(logits) - model(ids).logits).abs().max() < 1e-4


# --- Other layouts ----------------------------------------------------------------------------

PAPER = BACKPACKS["paper-bias-inverse"]


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("backpack-gpt2", PAPER),
        ("nanobackpacklm", {}),
        ("nanobackpacklm", {"bias": True, "dropout": 0.1}),
        ("nanobackpacklm", {"model_name": "gpt2"}),
    ],
)
def test_other_layouts(tmp_path: Path, layout: str, settings: dict[str, Any]) -> None:
    model = tiny_model(**settings)
    export(model, tmp_path / "out", layout)
    same_logits(load_model(tmp_path / "out"), model)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("dead link", {}, "dead link is there already"),
        ("file/model", {}, r"cannot write .*file/model \(File exists\)"),
        ("backpack-gpt2", {}, "backpack-gpt2 has no model with sense_network=nano, only with .*=paper"),
        ("backpack-gpt2", PAPER | {"bias": False}, "bias=False"),
        ("backpack-gpt2", {"model_name": "gpt2"}, "model_name=gpt2"),
        (
            "backpack-gpt2",
            PAPER | {"context_network": "modern", "n_sense_vector": 4},
            "=modern, only .*=gpt2",
        ),
        ("mine anew", {"model_name": "gpt2", "context_network": "modern"}, "GPT-2 has no .*=modern"),
        ("nanobackpacklm", {"context_network": "modern"}, "nanoBackpackLM has no .*=modern"),
        ("nanobackpacklm", PAPER, "nanoBackpackLM has no model with sense_network=paper"),
        ("nanobackpacklm", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("nanobackpacklm", {"sense_table": True}, "table"),
        ("mine", {}, "is there already"),
    ],
)
def test_what_cannot_be_held_is_refused(
    tmp_path: Path, layout: str, settings: dict[str, Any], message: str
) -> None:
    """By the name of the layout and of the setting, or of the folder; nothing is left behind."""
    (tmp_path / "dead link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "it").touch()
    layout, out = (layout, "out") if layout in LAYOUTS else ("transformers", layout)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        export(tiny_model(**settings), tmp_path / out, layout)
    assert sorted(tmp_path.rglob("*")) == before


# --- The command ------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, with an edit baked in and a card; what was written stays when the hub cannot be reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    folder = save_tiny(tmp_path / "run", "`<b>abc\n")
    (folder / "config.json").write_text(json.dumps({"dataset": "letters", "out_dir": "run"}))
    (folder / "metrics.jsonl").write_text(
        '{"step": 7, "val_loss": 2.5}\n{"step": 8, "val_loss_full": 1.25}\n'
    )
    model = load_model(folder)
    edit = control.ScaleSense((3,), 0.0, 1)
    control.save(edit, "edit.safetensors", model)
    words = ["run", "out/steered", "--edits=edit.safetensors", "--push=me/steered"]
    with pytest.raises(InputError, match=r"out/steered is written, .* me/steered .*hf upload"):
        main(cli.parse(ExportConfig, words))
    assert capsys.readouterr().err == ""
    back = load_model("out/steered")
    ids = torch.arange(6)[None]
    assert back.config.sense_table
    assert (back(ids).logits - model(ids, edits=edit).logits).abs().max() < 1e-5
    assert (back(ids).logits - model(ids).logits).abs().max() > 0.01
    card = Path("out/steered/README.md").read_text(encoding="utf-8")
    for part in ("# me/steered\n", "Data: letters\n", "8 steps, then a loss of 1.2500", "Licence: none yet"):
        assert part in card
    assert card.count("      sense 3  ") == 3  # of a, b, c and no other, in lines that are code
    assert "\n<" not in card
    assert "edits of its senses in edit.safetensors are baked in" in card
    opening = card.partition("## How to open it")[2].partition("In nanobackpack")[0]
    exec(textwrap.dedent(opening.replace('me/steered", trust_remote_code=True', 'out/steered"')), {})
    assert "generate" in opening
    assert len({file.stat().st_mode for file in Path("out/steered").iterdir()}) == 1


def test_command_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its run's data and its own loss, not a later one; without a tokenizer, a card that does without."""
    folder = tmp_path / "run"
    save_tiny(folder, "abc")
    (folder / "config.json").write_text('{"dataset": "letters"}')
    (folder / "metrics.jsonl").write_text('{"step": 7, "val_loss": 2.5}\n{"step": 8, "val_loss": 3.5}\n')
    save_model(tiny_model(), folder / "ckpt.pt")
    torch.save(torch.load(folder / "ckpt.pt") | {"iter_num": 7}, folder / "best.pt")
    main(cli.parse(ExportConfig, [str(folder / "best.pt"), str(tmp_path / "out")]))
    assert "best.pt has no tokenizer" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Data: letters\n* Training: 7 steps, then a loss of 2.5" in card
    assert "AutoTokenizer" not in card


@pytest.mark.parametrize(
    "words", [["run"], ["run", "out", "--push=nowhere"], ["run", "out", "--layout=gguf"]]
)
def test_command_refused(words: list[str]) -> None:
    with pytest.raises(InputError):
        cli.parse(ExportConfig, words)
