"""The page's look at Chinese senses: its command and its snippet, word for word, on a tiny model."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from tokenizers import BertWordPieceTokenizer

from nanobackpack import Senses
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "python experiments/sense_vector.py --device=cpu --compile=False --out_dir=clue_small "
    "--tokenizer_name=chinese-character-bert --strict=False"
)
MAIN = """
    ex = SenseVectorExperiment()
    words = ['天', '武', '快', '冯']  # sky, military, fast, surname "Feng"
    for word in words:
        print(ex.sense_projection(word)[9])
"""


@pytest.fixture
def clue_small(tmp_path: Path) -> Path:
    """A folder to work in: the script with the page's main, and a Backpack of 16 senses in clue_small/.

    Its vocabulary has as many lines as the Chinese BERT's: special tokens, then characters.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    symbols = special + [chr(0x4E00 + i) for i in range(0x5200)]
    symbols += [f"##{c}" for c in symbols[5 : 5 + 21128 - len(symbols)]]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    assert len(vocabulary) == 21128
    tokenizer = Tokenizer.from_json(BertWordPieceTokenizer(vocabulary).to_str())
    model = tiny_model(vocab_size=21184, vocab_used=21128, n_sense_vector=16, n_layer=2)
    args = dataclasses.asdict(model.config)
    (tmp_path / "clue_small").mkdir()
    state = {"model": model.state_dict(), "model_args": args, "tokenizer": tokenizer.to_json()}
    checkpoint.save_checkpoint(tmp_path / "clue_small" / "ckpt.pt", state)

    script = (ROOT / "experiments" / "sense_vector.py").read_text(encoding="utf-8")
    script, n = re.subn(r"(def main\(\) -> None:).*?(?=\n\n\nif __name__)", r"\1" + MAIN, script, flags=re.S)
    assert n == 1
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "sense_vector.py").write_text(script, encoding="utf-8")
    return tmp_path


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    command = [sys.executable, *shlex.split(COMMAND)[1:]]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=120)


def test_the_page_s_command_prints_sense_9(clue_small: Path) -> None:
    result = run(clue_small)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [ast.literal_eval(line) for line in result.stdout.splitlines()]
    senses = Senses(checkpoint.load_model(clue_small / "clue_small"))
    for word, line in zip("天武快冯", lines, strict=True):
        assert len(line) == 5
        assert line == [token for token, _ in senses.sense_projection(word)[9]]
        best = (
            senses.model.sense_vectors([senses.tokenizer.encode(word)[0]])[0, 9] @ senses.model.wte.weight.T
        )
        assert line[0] == senses.tokenizer.token(int(best[:21128].argmax()))
