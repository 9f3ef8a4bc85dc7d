"""Hostile pickles and files of torch.save: they call out, never end, or are not what they say."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanobackpack.config import ModelConfig
from nanobackpack.text import data
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

from . import PROOF, SIZES, Table, beast, beasts, call, dataset, good, train

State = dict[str, Any]


def save(folder: Path, value: object, old: bool = False) -> None:
    """A ckpt.pt as torch writes it, today or before 1.6."""
    torch.save(value, folder / "ckpt.pt", _use_new_zipfile_serialization=not old)


# --- Pickles that call out, or never end ------------------------------------------------------


class Calls:
    """Unpickled by the ordinary unpickler, this calls a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Shadowed(Calls):
    """An OrderedDict whose methods are hidden by attributes."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"items": 3, "keys": 4, "values": 5}, None, iter(self.call[1])


class View(Calls):
    """What a pickle says of a tensor: a part of the numbers of another one."""

    def __init__(self, t: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        numbers = t._typed_storage()
        super().__init__(torch._utils._rebuild_tensor_v2, numbers, offset, size, stride, False, OrderedDict())


DOUBLINGS = 60


def laughs(kind: type) -> object:
    """Two of two of two of ... : small in memory, endless for whoever walks through."""
    value: Any = kind()
    for _ in range(DOUBLINGS):
        value = kind([value, value])
    return value


def keyed_by_tuples() -> bytes:
    """A dict whose key is a tuple of two of two of ... : hashing it takes 2^60 steps."""
    return b"\x80\x02]q\x00)q\x01a" + b"h\x01h\x01\x86q\x01a" * DOUBLINGS + b"}h\x01K\x01sa."


def equal_hashes(n: int = 50_000) -> bytes:
    """A dict of so many numbers that all have the hash 0: each is compared with all before it."""
    keys = (b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"K\x01" for k in range(1, n + 1))
    return b"\x80\x02}(" + b"".join(keys) + b"u."


def legacy(folder: Path, meta: object) -> None:
    """A data set as nanoBackpackLM makes them; `meta` may be a pickle already."""
    for split_name in data.SPLITS:
        (folder / f"{split_name}.bin").write_bytes(bytes(200))
    (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))


def saved(folder: Path, call: Calls, old: bool = False) -> None:
    """A checkpoint with a call in it."""
    save(folder, good() | {"best_val_loss": call}, old)


MKDIR = Calls(os.mkdir, PROOF)
CALLS: Table = {
    "mkdir": (MKDIR, "calls os.mkdir"),
    "system": (Calls(os.system, f"mkdir {PROOF}"), "calls os.system"),
    "open": (Calls(open, PROOF, "w"), "opens a file for writing"),
    "bytearray": (Calls(bytearray, 1 << 28), "asks for 256 MB by a type that torch allows"),
    "tensor": (Calls(torch.Tensor, 1 << 34), "asks for 64 GB by a type that torch allows"),
}
beasts("ckpt-", saved, CALLS, "model")
beasts("ckpt-old-", functools.partial(saved, old=True), CALLS, "model")
beast("ckpt-bare", lambda d: (d / "ckpt.pt").write_bytes(pickle.dumps(MKDIR)), "a bare pickle", "model")

PICKLES: Table = {
    "mkdir": ({"vocab_size": 1, "itos": {0: MKDIR}}, "calls os.mkdir"),
    "tuple-key": (keyed_by_tuples(), "a key that takes forever to hash"),
    "equal-hashes": (equal_hashes(), "50,000 keys of one hash"),
    "deep": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "100,000 lists in each other"),
    "memo": (b"\x80\x02]r\0\0\0\x02.", "a memo of 2^25 places: 512 MB"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].", "a frame of 2^40 bytes"),
    "text": (b"\x80\x02X\xff\xff\xff\x7fab.", "a text of 2^31 bytes"),
    "extension": (b"\x80\x02\x82\x01.", "an extension code, which imports"),
    "itos-gap": ({"vocab_size": 2, "itos": {0: "a", 10**12: "b"}}, "an id of 10^12"),
    "itos-words": ({"vocab_size": 1, "itos": {0: "abc"}}, "words for characters"),
    "underflow": (b"\x80\x02aaa.", "takes from an empty stack"),
    "laughs": ({"vocab_size": laughs(list), "itos": {0: "a", 1: "b"}}, "2^60 lists when printed"),
    "itos-surrogate": ({"vocab_size": 1, "itos": {0: "\ud800"}}, "half a character"),
}
beasts("meta-", legacy, PICKLES, "data")


# --- Tensors and settings that are not what they say ------------------------------------------

Change = Callable[[State], object]


def put(*place: Any, **values: Any) -> Change:
    """Give entries of a part of the checkpoint other values."""

    def change(state: State) -> None:
        for key in place:
            state = state[key]
        state.update(values)

    return change


def embedding(t: Tensor) -> Change:
    return put("model", **{"wte.weight": t})


ARGS: Table = {  # of models of both layouts
    "args-list": (put(model_args=[1]), "a list of settings"),
    "args-unknown": (put("model_args", hook="print"), "a setting that does not exist"),
    "args-key": (put(model_args={3: 4}), "a setting named 3"),
}
CHANGES: Table = {
    "integers": (embedding(torch.ones(4, 8).long()), "integers"),
    "sparse": (embedding(torch.eye(8)[:4].to_sparse()), "a sparse tensor"),
    "expanded": (embedding(torch.ones(1, 1).expand(4, 8)), "one number 32 times"),
    "endless": (embedding(torch.ones(1, 1).expand(10**9, 10**3)), "one number 10^12 times"),
    "view": (embedding(View(torch.ones(4), 0, (10**9, 10**3), (10**3, 1))), "10^12 numbers in 16 bytes"),
    "view-rows": (embedding(View(torch.ones(32), 0, (4, 8), (0, 1))), "four rows that are the same bytes"),
    "view-shifted": (embedding(View(torch.ones(32), 0, (4, 8), (1, 1))), "rows that begin one number apart"),
    "view-negative": (embedding(View(torch.ones(4), 0, (-4,), (1,))), "a negative size"),
    "nan": (embedding(torch.full((4, 8), torch.nan)), "weights that are no numbers"),
    "key": (lambda c: c["model"].update({7: torch.ones(1)}), "a tensor named 7"),
    "attributes": (
        lambda c: c.update(model=Shadowed(dict, *c["model"].items())), "a dict whose items() is a number"),
    "pairs-key": (
        put(model=Calls(OrderedDict, [(laughs(tuple), 1)])),
        "a key that takes forever to hash, given to OrderedDict itself"),
    "model-list": (put(model=[1, 2]), "a list of weights"),
    "layers": (put("model_args", n_layer=10**12), "10^12 layers"),
    "beyond": (put("model_args", block_size=1 << 400), "a context of 2^400"),
    "table": (put("model_args", sense_table=True), "baked senses, but no table of them"),
    "zero": (put("model_args", n_head=0), "no heads, to divide by"),
    "tensor-arg": (put("model_args", n_head=torch.ones(3)), "a tensor for a number"),
    "laughs": (
        put(format=laughs(list), model_args=laughs(list)),
        "lists of lists of lists, 2^60 when printed or compared"),
    "tokenizer-tensor": (put(tokenizer=torch.ones(3)), "a tensor for the tokenizer"),
    "tokenizer-other": (put(tokenizer=Tokenizer.char("abcdefgh").to_json()), "ids beyond the embedding"),
}  # fmt: skip


def changed(folder: Path, change: Change, old: bool = False) -> None:
    state = good(old)
    change(state)
    save(folder, state)


beasts("ckpt-", changed, ARGS | CHANGES, "model", harmless=("attributes",))
beasts("nano-", functools.partial(changed, old=True), ARGS, "model", harmless=("args-unknown",))
beast(
    "nano-dataset", lambda d: changed(d, put("config", dataset=".."), old=True),
    "the tokenizer is to be found in ..", "model", harmless=True,
)  # fmt: skip


beast(
    "nano-dataset-half", lambda d: changed(d, put("config", dataset="\ud800"), old=True),
    "the tokenizer is to be found in half a character", "model", harmless=True,
)  # fmt: skip


def shared(d: Path) -> None:
    sizes = SIZES | {"n_layer": 250, "n_embd": 128}
    state = checkpoint.build_model(ModelConfig(**sizes | {"n_layer": 2})).state_dict()
    for name in [name for name in state if ".h.0." in name]:
        state |= {name.replace(".h.0.", f".h.{i}."): state[name] for i in range(249)}
    save(d, good() | {"model_args": sizes, "model": state})


beast("tensor-shared", shared, "one storage under 249 names, to be copied 249 times", "model")

AVERAGES = ("optimizer", "state", 0)  # of the first parameter
STATES: Table = {
    "none": (lambda c: c.pop("optimizer"), "no optimizer"),
    "text": (put(optimizer="adam"), "a text for an optimizer"),
    "groups": (put("optimizer", param_groups=[]), "an optimizer without groups"),
    "order": (lambda c: c["optimizer"]["param_groups"][0]["params"].reverse(), "another order of parameters"),
    "rate": (put("optimizer", "param_groups", 0, lr=torch.ones(3)), "three learning rates"),
    "state-tensor": (put("optimizer", state=torch.ones(3)), "a tensor for all averages"),
    "extra": (lambda c: c["optimizer"]["state"].update({10**6: {}}), "a parameter 10^6"),
    "averages-tensor": (
        lambda c: c["optimizer"]["state"].update({0: torch.ones(3, 3)}), "a tensor for one's averages"),
    "lacks": (lambda c: c["optimizer"]["state"][0].pop("exp_avg"), "a parameter without its mean"),
    "no-mean": (put(*AVERAGES, exp_avg=None), "None for a mean"),
    "scalar": (put(*AVERAGES, exp_avg=torch.zeros(())), "a mean that is one number"),
    "shape": (put(*AVERAGES, exp_avg=torch.zeros(10**6)), "a mean of another shape"),
    "beyond-float32": (
        lambda c: put(*AVERAGES, exp_avg=c["optimizer"]["state"][0]["exp_avg"].double() + 1e300)(c),
        "a mean of 10^300"),
    "steps": (put(*AVERAGES, step=torch.zeros(3)), "three counts of steps"),
    "complex": (
        lambda c: put(*AVERAGES, exp_avg=c["optimizer"]["state"][0]["exp_avg"] * 1j)(c), "a complex mean"),
    "step-before": (put(*AVERAGES, step=torch.tensor(-1.0)), "less than no steps, to divide by"),
    "step-nan": (put(*AVERAGES, step=torch.tensor(torch.nan)), "a count of steps that is no number"),
    "step": (put(iter_num=-1), "less than no steps"),
    "best-nan": (put(best_val_loss=float("nan")), "a best loss that none is below"),
    "scaler-tensor": (put("scaler", scale=torch.ones(3)), "a tensor in the scaler"),
    "config-beyond": (put("config", batch_size=10**600), "batches of 10^600"),
    "world-tensor": (put(world_size=torch.ones(3)), "a tensor of processes"),
    "data-keys": (put(data={1: "x"}), "a file named 1"),
    "data-many": (put(data={f"{i}.bin": "y" for i in range(10_000)}), "10,000 files that are not here"),
    "run": (put(run=torch.ones(3)), "a tensor for the name of the run"),
}  # fmt: skip


@functools.cache
def run_state() -> bytes:
    """The checkpoint of a run of one step, with which nothing is wrong."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        dataset(Path(place))
        train(Path(place), Path(place))
        return (Path(place) / "ckpt.pt").read_bytes()


def changed_run(folder: Path, change: Change) -> None:
    state = torch.load(io.BytesIO(run_state()), weights_only=True)
    change(state)
    save(folder, state)


beasts("state-", changed_run, STATES, "resume")


# --- The container ----------------------------------------------------------------------------


def parts(folder: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A ckpt.pt of these parts."""
    with zipfile.ZipFile(folder / "ckpt.pt", "w", compression) as z:
        for name, content in contents.items():
            z.writestr(name, content)


def again(d: Path, compression: int = zipfile.ZIP_STORED) -> None:
    """Write a ckpt.pt anew with Python, which leaves out what torch puts at the end of the file."""
    with zipfile.ZipFile(d / "ckpt.pt") as z:
        contents = {name: z.read(name) for name in z.namelist()}
    parts(d, contents, compression)


def bomb(d: Path) -> None:
    save(d, good() | {"model": {"wte.weight": torch.zeros(1 << 26)}})
    again(d, zipfile.ZIP_DEFLATED)


def entry(folder: Path, name: str, content: bytes = b"gotcha") -> None:
    """A good checkpoint with one more entry; "": of the name of its pickle."""
    save(folder, good())
    with zipfile.ZipFile(folder / "ckpt.pt", "a") as z:
        z.writestr(name or z.namelist()[0], content)


def comment(d: Path) -> None:
    save(d, good())
    with zipfile.ZipFile(d / "ckpt.pt", "a") as z:
        z.comment = b"PK\x05\x06" + bytes(18) + b"gotcha"


def overlap(d: Path) -> None:
    save(d, good())
    again(d)
    whole = (d / "ckpt.pt").read_bytes()
    start = whole.index(b"PK\x01\x02")  # the central directory
    nested, entries = bytes(1 << 16), []
    for i in range(1000):  # each part is all that follows, headers included
        name, n = b"ckpt/more%d" % i, len(nested)
        about = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, zlib.crc32(nested), n, n, len(name), 0)
        nested = b"PK\x03\x04" + about + name + nested
        entries.append((about, name, len(nested)))
    directory = whole[start:-22]
    for about, name, n in entries:
        where = struct.pack("<3H2L", 0, 0, 0, 0, start + len(nested) - n)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + about + where + name
    count, place = directory.count(b"PK\x01\x02"), start + len(nested)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), place, 0)
    (d / "ckpt.pt").write_bytes(whole[:start] + nested + directory + end)


def two_ends(d: Path) -> None:
    """What stands right before the end tells of one model, and where the end points to of another."""
    kept = []
    for _ in range(2):
        save(d, good())  # other weights each time
        whole = (d / "ckpt.pt").read_bytes()
        *_, n, place = struct.unpack("<4sQ2H2L4Q", whole[-98:-42])
        kept.append((whole[:place], bytearray(whole[place : place + n]), bytearray(whole[-98:-42])))
    (first, list_1, end_1), (second, list_2, end_2) = kept
    at = 0
    while at < len(list_2):  # the parts of the second come after those of the first
        n, more, _ = struct.unpack_from("<3H", list_2, at + 28)
        offset = int.from_bytes(list_2[at + 42 : at + 46], "little") + len(first)
        list_2[at + 42 : at + 46] = struct.pack("<L", offset)
        at += 46 + n + more
    parts_of_both = first + second
    end_2[48:] = struct.pack("<Q", len(parts_of_both))
    start = len(parts_of_both) + len(list_2) + len(end_2)
    end_1[48:] = struct.pack("<Q", start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(parts_of_both) + len(list_2), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 7, 7, len(list_1), start, 0)
    (d / "ckpt.pt").write_bytes(parts_of_both + list_2 + end_2 + list_1 + end_1 + locator + end)


def claiming(d: Path) -> None:
    """Each storage of a model has 4 bytes, and is said to go on over all that follow it."""
    sizes = SIZES | {"n_layer": 12, "n_embd": 64}
    save(
        d, good() | {"model_args": sizes, "model": checkpoint.build_model(ModelConfig(**sizes)).state_dict()}
    )
    with zipfile.ZipFile(d / "ckpt.pt") as z:
        contents = {name: z.read(name) for name in z.namelist()}
    longest = max(len(content) for name, content in contents.items() if "/data/" in name)
    short = {name: bytes(4) if "/data/" in name else content for name, content in contents.items()}
    parts(d, short | {"ckpt/rest": bytes(longest)})


def unlisted(d: Path) -> None:
    """In the old format: storages that the list of those that follow does not have."""
    sizes = SIZES | {"n_layer": 12, "n_embd": 512}
    state = checkpoint.build_model(ModelConfig(**sizes)).state_dict()
    save(d, good() | {"model_args": sizes, "model": state}, old=True)
    content = (d / "ckpt.pt").read_bytes()
    (d / "ckpt.pt").write_bytes(content[: content.rindex(b"\x80\x02]q\0(")] + pickle.dumps([], 2))


def grown(d: Path) -> None:
    """In the old format: all tensors of a large model in one number, which no list of storages has."""
    sizes, n = SIZES | {"n_layer": 12, "n_embd": 512}, 0
    with torch.device("meta"):
        state: State = checkpoint.build_model(ModelConfig(**sizes)).state_dict()
    number = torch.zeros(1)
    for name, t in state.items():
        state[name], n = View(number, n, tuple(t.shape), t.stride()), n + t.numel()
    save(d, good() | {"model_args": sizes, "model": state}, old=True)
    content = (d / "ckpt.pt").read_bytes()
    names = content.rindex(b"\x80\x02]q\0")
    (d / "ckpt.pt").write_bytes(content[:names] + pickle.dumps([], 2) + content[-12:])


def edited(folder: Path, edit: Callable[[bytes], bytes], value: object = None, old: bool = False) -> None:
    """A good checkpoint whose bytes are changed."""
    save(folder, good() if value is None else value, old)
    (folder / "ckpt.pt").write_bytes(edit((folder / "ckpt.pt").read_bytes()))


def replaced(content: bytes, at: int, new: bytes) -> bytes:
    """These bytes instead of as many: from the end of an archive, or from where its second part begins."""
    at += len(content) if at < 0 else content.index(b"PK\3\4", 1)
    return content[:at] + new + content[at + len(new) :]


def flip(content: bytes) -> bytes:
    at = content.index(b"wte.weight") - 3
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


def large_storage(content: bytes) -> bytes:
    at = content.index(b"K", content.index(b"cpu") + 3)  # the number of elements follows
    return content[:at] + b"\x8a\x06" + bytes(5) + b"\x02" + content[at + 2 :]


def other_keys(content: bytes, keys: bytes) -> bytes:
    assert content.endswith(b"]q\x00.")  # no storages
    return content[: content.rindex(b"\x80\x02")] + keys


CALL = pickle.dumps(Calls(bytearray, 1 << 30), 2)
GOOD_PARTS = {"ckpt/data.pkl": pickle.dumps({}, 2), "ckpt/version": b"3\n"}
CONTAINERS: Table = {
    "zip-bomb": (bomb, "256 MB of zeros in 250 KB"),
    "zip-dots": (lambda d: entry(d, f"../../{PROOF}"), "an entry ../../PROOF"),
    "zip-twice": (
        lambda d: entry(d, "", pickle.dumps(MKDIR, 2)), "two pickles of the same name: which one is read?"),
    "zip-two-names": (
        lambda d: edited(d, lambda b: b.replace(b"/serialization_id", b"/serialization_i\0")),
        "an entry whose name ends for some readers at a zero in it"),
    "zip-overlap": (overlap, "a thousand entries that lie in each other: 86 MB in 180 kB"),
    "zip-prefix": (lambda d: edited(d, lambda b: b + b), "another archive before the archive"),
    "zip-two-ends": (two_ends, "two ends of the archive: which one counts?"),
    "zip-short-end": (
        lambda d: edited(d, lambda b: replaced(b, -14, struct.pack("<2H2L", 1, 1, 46, 0))),
        "an end that tells older readers of another list"),
    "zip-other-size": (
        lambda d: edited(d, lambda b: replaced(b, 18, b"\xff" * 8)), "a part that gives itself another size"),
    "zip-encrypted": (
        lambda d: edited(d, lambda b: replaced(b, 6, b"\x09")), "a part that says that it is encrypted"),
    "zip-keys": (
        lambda d: parts(d, GOOD_PARTS | {"ckpt/data.pkl": equal_hashes()}), "50,000 keys of one hash"),
    "storage-claims": (claiming, "a model of 600,000 numbers, in the bytes of one layer"),
    "old-unlisted": (unlisted, "a model of 150 MB in 20 kB, in the old format"),
    "old-one-number": (grown, "a model of 150 MB in one number, in the old format"),
    "zip-comment": (comment, "a second end of the archive in its comment"),
    "zip-script": (
        lambda d: parts(
            d, GOOD_PARTS | {"ckpt/constants.pkl": b"\x80\x02).", "ckpt/code/__torch__.py": b"import os"}),
        "a TorchScript archive: a program"),
    "zip-case": (
        lambda d: parts(d, {"ckpt/DATA.PKL": CALL} | GOOD_PARTS), "a pickle that torch takes for the other"),
    "zip-elsewhere": (
        lambda d: parts(d, {"x/DATA.PKL": CALL, "x/version": b"3\n"} | GOOD_PARTS),
        "pickles in two folders: torch takes the first"),
    "old-keys": (
        lambda d: edited(d, lambda b: other_keys(b, CALL), {"format": checkpoint.FORMAT}, old=True),
        "a fifth pickle, the names of storages, asks for 1 GB"),
    "old-storage": (
        lambda d: edited(d, large_storage, old=True), "a storage of 8 TB, in the old format"),
    "truncated": (lambda d: edited(d, lambda b: b[: len(b) // 2]), "its end is missing"),
    "flipped": (lambda d: edited(d, flip), "a bit in the middle of its pickle is flipped"),
}  # fmt: skip
ALWAYS: Table = {  # however the folder is used
    "ckpt-format": (lambda d: save(d, good() | {"format": torch.ones(2, 2)}), "a tensor for the format"),
    "ckpt-pipe": (lambda d: os.mkfifo(d / "ckpt.pt"), "a pipe for a checkpoint: reading it waits forever"),
    "ckpt-device": (lambda d: (d / "ckpt.pt").symlink_to("/dev/zero"), "a link to a device without end"),
}
beasts("", call, CONTAINERS, "model", harmless=("zip-dots",))
beasts("", call, ALWAYS, "model resume")


def settings_pipe(d: Path) -> None:
    for name in ("ckpt.pt", "best.pt"):
        torch.save(good(), d / name)
    os.mkfifo(d / "config.json")


beast("run-pipe", settings_pipe, "a pipe for the settings of a run", "model", harmless=True)
