"""nanoBackpackLM's page: each of its commands, as it stands there, what it does here, and what tests it.

All run from the root of the repository, with the settings of the page. The tests shrink the sizes and run
without a network or a GPU.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from nanobackpack import cli
from nanobackpack.commands import run
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.config import SampleConfig, TrainConfig
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT.parent / "shared" / "seed" / "nanoBackpackLM-page.txt"
README = "test_readme.py::test_readme_commands"
HERE = "test_page.py::test_train_and_sample_without_arguments"
EIGHT = "test_distributed.py::test_ddp, test_configs.py::test_a_tiny_training"
NODES = "torchrun --nproc_per_node=8 --nnodes=2"
MASTER = "--master_addr=123.456.123.456 --master_port=1234 train.py"
LAPTOP = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 "
    "--n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
COMMANDS = {
    # Downloads the text, checks its sha256, writes train.bin, val.bin, meta.json and tokenizer.json.
    "python data/shakespeare_char/prepare.py": README,
    # Trains with Muon; --optimizer=adamw is the original's recipe. docs/RESULTS.md has losses and times.
    "python train.py config/train_shakespeare_char.py": README,
    "python sample.py --out_dir=out-shakespeare-char": README,
    f"python train.py config/train_shakespeare_char.py {LAPTOP}": README,
    # A table of the top characters of each sense of a, e, c, s and t.
    "python experiments/sense_vector.py --device=cpu --compile=False --out_dir=out-shakespeare-char": README,
    # GPT-2's tokens of the hub's data set, or of --input files, an end-of-text after each document.
    "python data/openwebtext/prepare.py": "test_prepare.py::test_openwebtext",
    "torchrun --standalone --nproc_per_node=8 train.py config/train_backpack_lm.py": EIGHT,
    # The default settings, on openwebtext, into out/: on two nodes, and on one device.
    f"{NODES} --node_rank=0 {MASTER}": "test_distributed.py::test_two_nodes",
    f"{NODES} --node_rank=1 {MASTER}": "test_distributed.py::test_two_nodes",
    "python train.py": HERE,
    "python sample.py": HERE,
    # One token a character; keeps the evaluation split, which the original lost.
    "python data/clue_small/prepare.py": "test_prepare.py::test_clue_small",
    "torchrun --standalone --nproc_per_node=8 train.py config/train_clue_small.py": EIGHT,
    "python data/tigerbot/prepare.py": "test_prepare.py::test_tigerbot",
    "torchrun --standalone --nproc_per_node=8 train.py config/train_tigerbot.py": EIGHT,
    # Opens backpack-small/, else the paper's model from the hub; without either, one line names both ways.
    'python sample.py --init_from=backpack-small --start="What is the answer to life, the universe, and '
    'everything?" --num_samples=5 --max_new_tokens=100': (
        "test_init_from.py::test_the_page_s_command_on_backpack_small"
    ),
    "python sample.py --start=FILE:prompt.txt": HERE,
    # With the page's `main`, the top characters of sense 9. --tokenizer_name must agree with the checkpoint;
    # unknown weights are refused whatever --strict says.
    "python experiments/sense_vector.py --device=cpu --compile=False --out_dir=clue_small "
    "--tokenizer_name=chinese-character-bert --strict=False": (
        "test_senses.py::test_the_page_s_command_prints_sense_9"
    ),
    # Not on the page, but in its repository: over the whole evaluation split, each token once.
    "python experiments/perplexity.py --out_dir=clue_small": "test_perplexity.py::test_perplexity_py",
    "python experiments/perplexity_per_language.py --out_dir=backpack_xlm": (
        "test_perplexity.py::test_per_language"
    ),
}


@pytest.mark.skipif(not PAGE.exists(), reason="the page is not here")
def test_every_command_of_the_page_is_in_the_table() -> None:
    page = re.sub(r"\\\n\s*", "", PAGE.read_text(encoding="utf-8"))  # a command over several lines
    commands = re.findall(r"\$ ((?:python|torchrun) .*?)(?=\.?$| script\. )", page, re.MULTILINE)
    assert len(commands) >= 17
    assert set(commands) <= COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_its_script_and_its_tests_are_there(command: str) -> None:
    """The files are where the page has them, the flags are settings, and what tests the command exists."""
    words = shlex.split(command)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[script]).is_file()
    kinds = {"train.py": TrainConfig, "sample.py": SampleConfig, "sense_vector.py": SenseConfig}
    if (kind := kinds.get(Path(words[script]).name)) is not None:
        rest = [str(ROOT / word) if word.startswith("config/") else word for word in words[script + 1 :]]
        flags = [word for word in rest if word.startswith("--")]
        settings = vars(cli.parse(kind, rest))
        assert all(str(settings[name]) == value for name, _, value in (f[2:].partition("=") for f in flags))
    for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", COMMANDS[command]):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def ends(verb: str, *flags: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(verb, flags)
    assert not stop.value.code


def test_train_and_sample_without_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python train.py` takes data/openwebtext and writes out/, `python sample.py` reads it."""
    monkeypatch.chdir(tmp_path)
    text = "Before we proceed any further, hear me speak.\n" * 30
    folder = Path("data") / "openwebtext"
    write_dataset(folder, text, Tokenizer.char(text), val_fraction=0.1, source="a test")
    sizes = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=2"]
    ends("train", *sizes, "--max_iters=2", "--eval_iters=2", "--device=cpu")
    assert Path("out", "ckpt.pt").exists()
    capsys.readouterr()
    short = ["--max_new_tokens=5", "--device=cpu"]
    ends("sample", *short)
    assert capsys.readouterr().out.count("-" * 15) == 10
    Path("prompt.txt").write_text("hear me", encoding="utf-8")
    ends("sample", *short, "--start=FILE:prompt.txt")
    assert capsys.readouterr().out.count("hear me") == 10
