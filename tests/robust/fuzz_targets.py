"""What fuzzing feeds with random input: one function for each kind, used by test_fuzz.py and stress.py.

Each takes a random generator and makes one input of it. TARGETS tell whether it was taken (True) or refused
with the error it documents (False). A wrong result is an AssertionError; other exceptions are failures too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import tokenizers as hf
import torch

from nanobackpack import cli
from nanobackpack.commands.senses import SenseConfig
from nanobackpack.config import ModelConfig, SampleConfig, TrainConfig
from nanobackpack.errors import InputError
from nanobackpack.model.backpack import GPT, BackpackLM
from nanobackpack.model.generate import choose
from nanobackpack.safe.untrusted import load_plain_pickle
from nanobackpack.text.data import TokenData
from nanobackpack.text.meta import SPLITS, read_legacy_meta
from nanobackpack.text.prepare import write_dataset
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

SIZES: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "n_sense_vector": 2, "vocab_size": 7,
    "vocab_used": 5,
}  # fmt: skip
INTEGERS = [0, 1, -1, 2, 7, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**63, -(2**63), 10**40]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e-40, 1e-7, 1e40, 1e308, math.inf, -math.inf, math.nan]
TEXTS = [
    "", " ", "\n", "\0", "auto", "True", "False", "None", "nan", "1e400", "0x10", "--", "-1", "=", "é", "字",
]  # fmt: skip


def text(draw: Random, longest: int = 12) -> str:
    """Any Unicode text: characters of all planes, no halves of pairs."""
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(0, longest)))


def value(draw: Random, depth: int = 0) -> Any:
    """Any value that JSON or a config file could give."""
    kind = draw.randint(0, 7 if depth < 3 else 5)
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    if kind == 7:
        return {text(draw, 4): value(draw, depth + 1) for _ in range(draw.randint(0, 3))}
    simple = [
        draw.choice(INTEGERS), draw.randint(-9, 99), draw.choice(FLOATS), draw.choice(TEXTS), text(draw),
        draw.choice([None, True, False]),
    ]  # fmt: skip
    return simple[kind]


def changed(draw: Random, tree: Any) -> Any:
    """The same JSON with one value somewhere in it replaced, left out or added."""
    if isinstance(tree, dict) and tree and draw.random() < 0.9:
        key = draw.choice(list(tree))
        if draw.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        if draw.random() < 0.1:
            return tree | {text(draw, 4): value(draw)}
        return tree | {key: changed(draw, tree[key])}
    if isinstance(tree, list) and tree and draw.random() < 0.9:
        i = draw.randrange(len(tree))
        return [*tree[:i], changed(draw, tree[i]), *tree[i + 1 :]]
    return value(draw)


def damaged(draw: Random, content: bytes) -> bytes:
    """The same bytes with some of them flipped, cut, doubled, or put in."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at, n = draw.randint(0, len(data)), draw.choice([1, 2, 8, 100])
        kind = draw.randint(0, 4)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << draw.randint(0, 7) if kind else draw.randint(1, 255)
        elif kind == 2:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n]
        else:
            data[at:at] = draw.randbytes(n)
    return bytes(data)


def outcome(target: Callable[[Random], bool | None]) -> Callable[[Random], bool]:
    """Call a target; it may refuse its input with an InputError of one short line."""

    def call(draw: Random) -> bool:
        try:
            return target(draw) is not False
        except InputError as error:
            message = str(error)
        assert len(message.splitlines()) == 1
        assert len(message.partition("; if you trust its maker")[0]) < 600  # what follows is a command
        return False

    return call


@contextlib.contextmanager
def replaced(path: Path, new: bytes) -> Iterator[Path]:
    """For a while a file of the data set has this content."""
    good = path.read_bytes() if path.exists() else None
    path.write_bytes(new)
    try:
        yield path
    finally:
        path.write_bytes(good) if good is not None else path.unlink()


# --- Settings ---------------------------------------------------------------------------------


def settings(draw: Random) -> None:
    """Any arguments to a program: its settings, or one line."""
    kind = draw.choice([TrainConfig, SampleConfig, SenseConfig])
    fields = dataclasses.fields(kind)
    argv: list[str] = []
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        field, v = draw.choice(fields), value(draw, 3)
        shown = draw.choice(["True", "False", "auto", str(v)])
        word = draw.choice([f"--{field.name}={shown}"] * 5 + [f"--{field.name}", shown, "--" + text(draw, 5)])
        argv.append(word.replace("\0", ""))
    try:
        config = cli.parse(kind, argv)
    except SystemExit:
        assert {"-h", "--help"} & set(argv)
        return
    name, equals, shown = argv[-1].removeprefix("--").partition("=")
    if equals and isinstance(getattr(config, name, None), str):  # the last of that name holds
        assert getattr(config, name) == shown


def python_settings(draw: Random) -> None:
    """Any values for settings, as a config file or a checkpoint gives them: whole settings, or one line."""
    kind = draw.choice([TrainConfig, SampleConfig, SenseConfig, ModelConfig])
    names = draw.sample([f.name for f in dataclasses.fields(kind)], draw.randint(1, 3))
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    values = {name: draw.choice([value(draw), value(draw), defaults[name], 1]) for name in names}
    config = kind(**values)
    if isinstance(config, ModelConfig):
        assert 0 < config.n_token <= config.vocab_size
        assert config.n_embd % config.n_head == 0


# --- Tokenizers -------------------------------------------------------------------------------


@functools.cache
def byte_level() -> Tokenizer:
    """A BPE over bytes: it promises to encode any text."""
    inner = hf.Tokenizer(hf.models.BPE())
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["the cat sat on the mat, the cat"], trainer)
    return Tokenizer.from_json(inner.to_str())


def round_trip(draw: Random) -> bool:
    """Any text comes back from ids, by characters that it is made of and by bytes."""
    known, other = text(draw, 40) or "a", text(draw, 8)
    for tokenizer in (Tokenizer.char(known), byte_level()):
        ids = tokenizer.encode(known)
        assert tokenizer.decode(ids) == known
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert byte_level().decode(byte_level().encode(other)) == other
    tokenizer = Tokenizer.from_json(Tokenizer.char(known).to_json())
    try:
        assert tokenizer.decode(tokenizer.encode(other)) == other
    except InputError:
        assert set(other) - set(known)
        return False
    assert set(other) <= set(known)
    return True


def tokenizer_json(draw: Random) -> None:
    """A damaged tokenizer.json is refused, or encodes into ids that it has."""
    good = draw.choice([Tokenizer.char("abc\n"), byte_level()]).to_json()
    if draw.random() < 0.5:
        raw = json.dumps(changed(draw, json.loads(good)))
    else:
        raw = damaged(draw, good.encode()).decode(errors="replace")
    tokenizer = Tokenizer.from_json(raw)
    ids = tokenizer.encode("abc\ncab")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)


# --- Data sets --------------------------------------------------------------------------------


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """A data set to be damaged and repaired; it goes with the process."""
    place = tempfile.TemporaryDirectory()
    write_dataset(Path(place.name), "abcd" * 50, Tokenizer.char("abcd"), val_fraction=0.2, source="fuzz")
    return place


def data(draw: Random) -> bool:
    """A data set with a damaged file is refused, or has ids of its vocabulary only."""
    names = ["train.bin", "val.bin", "meta.json", "meta.json", "tokenizer.json"]
    path = Path(folder().name) / draw.choice(names)
    good = path.read_bytes()
    new = damaged(draw, good)
    if path.name == "meta.json" and draw.random() < 0.7:
        new = json.dumps(changed(draw, json.loads(good))).encode()
    try:
        with replaced(path, new):
            opened = TokenData(path.parent)
    except InputError:
        return False
    assert opened.meta is not None
    assert opened.vocab_size == 4
    for split in SPLITS:
        assert len(opened.splits[split]) == opened.meta.tokens[split]
        x, y = opened.batch(split, 3, 5, torch.Generator().manual_seed(0))
        assert x.shape == y.shape == (3, 5)
        assert max(int(x.max()), int(y.max())) < 4
    return True


def legacy_meta(draw: Random) -> None:
    """A damaged meta.pkl is refused, or names characters."""
    symbols = "abcdé字"
    meta = {"vocab_size": 6, "itos": dict(enumerate(symbols)), "stoi": {c: i for i, c in enumerate(symbols)}}
    new = damaged(draw, pickle.dumps(meta, draw.choice([2, 3, 4, 5])))
    with replaced(Path(folder().name) / "meta.pkl", new) as path:
        itos = read_legacy_meta(path)["itos"]
    assert sorted(itos) == list(range(len(itos)))
    assert all(isinstance(c, str) and len(c) == 1 for c in itos.values())


# --- Checkpoints ------------------------------------------------------------------------------


@functools.cache
def model(kind: str) -> BackpackLM | GPT:
    return checkpoint.build_model(ModelConfig(model_name=kind, **SIZES)).eval()


@functools.cache
def good_checkpoint(new: bool) -> bytes:
    """A checkpoint of ours, in torch's format of today or of before 1.6."""
    buffer = io.BytesIO()
    state = {
        "format": checkpoint.FORMAT, "model": model("backpack-lm").state_dict(), "model_args": SIZES,
        "tokenizer": Tokenizer.char("abcde").to_json(),
    }  # fmt: skip
    torch.save(state, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def checkpoints(draw: Random) -> None:
    """A damaged checkpoint is refused, or still is a model of finite numbers."""
    new = damaged(draw, good_checkpoint(draw.random() < 0.7))
    with replaced(Path(folder().name) / "ckpt.pt", new) as path:
        opened = checkpoint.model_from(checkpoint.read_checkpoint(path), path)
        opened.eval().generate(torch.zeros(1, 1, dtype=torch.int64), 2)
    assert all(p.isfinite().all() for p in opened.parameters())


def archive(draw: Random) -> None:
    """A checkpoint with another number in its list of parts, its ends or its sizes: the same, or refused."""
    good, n = bytearray(good_checkpoint(True)), draw.choice([1, 2, 4, 8])
    start = good.index(b"PK\1\2")  # where the list begins
    numbers = [0, 1, 0xFFFF, 0xFFFFFFFF, start, len(good), len(good) - 98, draw.getrandbits(8 * n)]
    at = draw.choice([draw.randrange(start, len(good) - 8), draw.randrange(len(good) - 98, len(good) - 8)])
    if draw.random() < 0.2:  # how many numbers a storage has
        at, n = good.index(b"K", good.index(b"cpu") + 3) + 1, 1
        at = draw.choice([at, good.index(b"K", good.index(b"h", at)) + 1])
    value = draw.choice(numbers) % 256**n
    good[at : at + n] = value.to_bytes(n, draw.choice(["little", "little", "big"]))  # type: ignore[arg-type]
    if draw.random() < 0.2:  # a second list and its end, before the ones that count or after them
        good[start:start] = good[start:]
    with replaced(Path(folder().name) / "ckpt.pt", bytes(good)) as path:
        opened = checkpoint.model_from(checkpoint.read_checkpoint(path), path).state_dict()
    assert all(torch.equal(opened[name], t) for name, t in model("backpack-lm").state_dict().items())


def keys(draw: Random) -> None:
    """Any numbers as keys: refused, or each with a hash of its own (but -1, which has that of -2)."""
    step = draw.choice([1, 7, 2**32, 2**61 - 1])
    few = dict.fromkeys(draw.randint(-200, 200) * step for _ in range(draw.randint(0, 100)))
    with replaced(Path(folder().name) / "meta.pkl", pickle.dumps(few, draw.choice([2, 4]))) as path:
        opened = load_plain_pickle(path, 1 << 20)
    assert opened == few
    assert len({hash(key) for key in opened}) >= len(opened) - 1


def long_words(draw: Random) -> None:
    """Tokenizers that look for words of any length: refused, or 4,000 characters take no second."""
    longest = draw.choice([1, 16, 100, 199, 200, 201, 500, 10**9])
    inner: dict[str, Any] = {"type": "WordPiece", "vocab": {"a": 0, "##a": 1}, "unk_token": "a"}
    inner |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": longest}
    if draw.random() < 0.5:
        vocabulary = [["a" * n, -1.0] for n in range(1, 1 + min(longest, 1000))]
        inner = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}
    pieces = {"type": "FixedLength", "length": draw.choice([1, 50, 200, 4000])}
    tokenizer = Tokenizer.from_json(json.dumps({"version": "1.0", "model": inner, "pre_tokenizer": pieces}))
    start_s = time.process_time()
    tokenizer.encode("a" * 3999 + "b")
    assert time.process_time() - start_s < 1


def model_args(draw: Random) -> None:
    """Any settings in a checkpoint are refused, or are those its tensors were made with."""
    args = changed(draw, SIZES)
    state = {"format": checkpoint.FORMAT, "model": model("backpack-lm").state_dict(), "model_args": args}
    assert checkpoint.model_from(state, Path("ckpt.pt")).wte.weight.shape == (7, 8)


# --- Sampling, and ids -------------------------------------------------------------------------


def sampler(draw: Random) -> bool:
    """Any temperature, top_k, top_p and logits: an id that these allow, or a ValueError."""
    seed = draw.getrandbits(32)
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * draw.choice([0, 1, 30, 1e30])
    for _ in range(draw.choice([0, 0, 1, 3])):
        odd = draw.choice([-math.inf, -math.inf, math.inf, math.nan, 0])
        logits[draw.randrange(3), draw.randrange(7)] = odd
    temperature = draw.choice([draw.choice(FLOATS), 0, draw.random(), 3 * draw.random()])
    top_k = draw.choice([None, draw.choice(INTEGERS), draw.randint(1, 7)])
    top_p = draw.choice([None, draw.choice(FLOATS), draw.random()])
    try:
        ids = choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(seed))
    except ValueError:
        highest = logits.max(dim=1).values
        good = 0 <= temperature < math.inf and (top_k is None or top_k >= 1)
        assert not (good and (top_p is None or 0 < top_p <= 1) and highest.isfinite().all())
        return False
    assert ids.shape == (3,)
    for row, i in zip(logits, ids.tolist(), strict=True):
        assert row[i] > -math.inf
        likelier = row > row[i]
        assert top_k is None or likelier.sum() < min(top_k, 7)
        if temperature == 0:
            assert not likelier.any()
        elif top_p is not None and 1e-30 < temperature < 100:  # beyond, all are as likely
            p = ((row - row.max()) / temperature).softmax(0)
            if top_k is not None and top_k < 7:  # what top_k leaves
                p = p * (row >= row.topk(top_k).values[-1])
                p = p / p.sum()
            assert p[likelier].sum() < top_p + 1e-5
    return True


def generation(draw: Random) -> bool:
    """Any prompt and length: that many real tokens more, or a ValueError."""
    m = model(draw.choice(["backpack-lm", "gpt2"]))
    shape = draw.choice([(1, 1), (2, 3), (1, 6), (2, 20), (1, 0), (0, 1), (3,), (1, 1, 1)])
    ids = torch.tensor([draw.choice([0, 4, 6, draw.randint(-2, 9)]) for _ in range(math.prod(shape))])
    ids = ids.reshape(shape).to(draw.choice([torch.int64] * 9 + [torch.int32, torch.float32]))
    n = draw.choice([0, 1, 2, 9, -1, -(10**9)])
    try:
        out = m.generate(ids, n, draw.choice([0.0, 0.5, 1.0]), draw.choice([None, 1, 3]))
    except ValueError:
        inside = ids.dtype == torch.int64 and ids.dim() == 2 and ids.numel() and n >= 0
        assert not (inside and ((ids >= 0) & (ids < 7)).all())
        return False
    assert torch.equal(out[:, : ids.size(1)], ids)
    assert out.shape == (ids.size(0), ids.size(1) + n)
    assert (out[:, ids.size(1) :] < SIZES["vocab_used"]).all()
    return True


def targets(draw: Random) -> bool:
    """Targets outside of the vocabulary are a ValueError, others a loss, -1 left out."""
    m = model(draw.choice(["backpack-lm", "gpt2"]))
    x = torch.tensor([[draw.randrange(7) for _ in range(4)] for _ in range(2)])  # (B, T)
    y = torch.tensor([[draw.choice([-1, 0, 6, draw.randint(-3, 9)]) for _ in range(4)] for _ in range(2)])
    inside = bool(((y >= -1) & (y < 7)).all())
    try:
        with torch.no_grad():
            loss = m(x, y, loss_only=draw.random() < 0.5).loss
    except ValueError:
        assert not inside
        return False
    assert inside
    assert loss is not None
    assert bool(loss.isfinite()) == bool((y >= 0).any())
    return True


TARGETS: dict[str, Callable[[Random], bool]] = {
    f.__name__.replace("_", " "): outcome(f)
    for f in (
        settings, python_settings, round_trip, tokenizer_json, data, legacy_meta, checkpoints, archive, keys,
        long_words, model_args, sampler, generation, targets,
    )
}  # fmt: skip
