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
from typing import Any, NamedTuple

import torch

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
    "deep": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", "100,000 lists in each other"),
    "memo": (b"\x80\x02]r\0\0\0\x02.", "a memo of 2^25 places: 512 MB"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].", "a frame of 2^40 bytes"),
    "text": (b"\x80\x02X\xff\xff\xff\x7fab.", "a text of 2^31 bytes"),
    "extension": (b"\x80\x02\x82\x01.", "an extension code, which imports"),
    "itos-gap": ({"vocab_size": 2, "itos": {0: "a", 10**12: "b"}}, "an id of 10^12"),
    "itos-words": ({"vocab_size": 1, "itos": {0: "abc"}}, "words for characters"),
    "underflow": (b"\x80\x02aaa.", "takes from an empty stack"),
    "laughs": ({"vocab_size": laughs(list), "itos": {0: "a"}}, "lists of lists of lists, 2^60 when printed"),
    "itos-surrogate": ({"vocab_size": 1, "itos": {0: "\ud800"}}, "half a character"),
}
beasts("meta-", legacy, PICKLES, "data")


# --- A pickle in torch's container ------------------------------------------------------------


class Storage(NamedTuple):
    """What a pickle says of a storage, true or not."""

    numel: int
    key: str = "0"


class View(Calls):
    """What a pickle says of a tensor."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


class Shadowed(Calls):
    """An OrderedDict whose methods are hidden by attributes."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"items": 3, "keys": 4, "values": 5}, None, iter(self.call[1])


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return "storage", torch.FloatStorage, value.key, "cpu", value.numel
        return None


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def parts(folder: Path, contents: dict[str, bytes]) -> None:
    """A ckpt.pt of these parts."""
    with zipfile.ZipFile(folder / "ckpt.pt", "w") as z:
        for name, content in contents.items():
            z.writestr(name, content)


def archive(folder: Path, value: object, records: dict[str, bytes] | None = None) -> None:
    """A ckpt.pt put together by hand; `value` may be a pickle already."""
    content = {"data.pkl": value if isinstance(value, bytes) else pickled(value), "version": b"3\n"}
    parts(folder, {f"ckpt/{name}": part for name, part in (content | (records or {})).items()})


def shadowed(d: Path) -> None:
    state = good()
    save(d, state | {"model": Shadowed(dict, *state["model"].items())})


def shared(d: Path) -> None:
    sizes = SIZES | {"n_layer": 250, "n_embd": 128}
    state = checkpoint.build_model(ModelConfig(**sizes | {"n_layer": 2})).state_dict()
    for name in [name for name in state if ".h.0." in name]:
        state |= {name.replace(".h.0.", f".h.{i}."): state[name] for i in range(249)}
    save(d, good() | {"model_args": sizes, "model": state})


def viewed(d: Path, view: View) -> None:
    archive(d, good() | {"model": {"wte.weight": view}}, {"data/0": bytes(16)})


VIEWS: Table = {
    "huge": (View(Storage(4), 0, (10**9, 10**3), (10**3, 1)), "10^12 numbers in a storage of 4"),
    "expanded": (View(Storage(4), 0, (10**9, 10**3), (0, 0)), "10^12 numbers that are all the same one"),
    "negative": (View(Storage(4), 0, (-4,), (1,)), "a negative size"),
    "storage": (View(Storage(10**11), 0, (10**11,), (1,)), "a storage of 400 GB in 16 bytes"),
    "key": (View(Storage(4, "../../version"), 0, (4,), (1,)), "a storage that lies elsewhere"),
}
beasts("tensor-", viewed, VIEWS, "model")
beast("tensor-shared", shared, "one storage under 249 names, to be copied 249 times", "model")
beast("ckpt-attributes", shadowed, "a dict whose method items is a number", "model", harmless=True)
beast(
    "ckpt-pairs-key", lambda d: archive(d, Calls(OrderedDict, [(laughs(tuple), 1)])),
    "a key that takes forever to hash, given to OrderedDict itself", "model",
)  # fmt: skip


# --- Tensors and settings that are not what they say ------------------------------------------

ARGS: Table = {  # of models of both layouts
    "args-list": (lambda c: c.update(model_args=[1]), "a list of settings"),
    "args-unknown": (lambda c: c["model_args"].update(hook="print"), "a setting that does not exist"),
    "args-key": (lambda c: c.update(model_args={3: 4}), "a setting named 3"),
}
CHANGES: Table = {
    "integers": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8).long()}), "integers"),
    "sparse": (lambda c: c["model"].update({"wte.weight": torch.eye(8)[:4].to_sparse()}), "a sparse tensor"),
    "expanded": (
        lambda c: c["model"].update({"wte.weight": torch.ones(1, 1).expand(4, 8)}), "one number 32 times"),
    "nan": (lambda c: c["model"]["wte.weight"].fill_(float("nan")), "weights that are no numbers"),
    "key": (lambda c: c["model"].update({7: torch.ones(1)}), "a tensor named 7"),
    "model-list": (lambda c: c.update(model=[1, 2]), "a list of weights"),
    "layers": (lambda c: c["model_args"].update(n_layer=10**12), "10^12 layers"),
    "beyond": (lambda c: c["model_args"].update(block_size=1 << 400), "a context of 2^400"),
    "table": (lambda c: c["model_args"].update(sense_table=True), "baked senses, but no table of them"),
    "zero": (lambda c: c["model_args"].update(n_head=0), "no heads, to divide by"),
    "tensor-arg": (lambda c: c["model_args"].update(n_head=torch.ones(3)), "a tensor for a number"),
    "laughs": (
        lambda c: c.update(format=laughs(list), model_args=laughs(list)),
        "lists of lists of lists, 2^60 when printed or compared"),
    "tokenizer-tensor": (lambda c: c.update(tokenizer=torch.ones(3)), "a tensor for the tokenizer"),
    "tokenizer-other": (
        lambda c: c.update(tokenizer=Tokenizer.char("abcdefgh").to_json()), "ids beyond the embedding"),
}  # fmt: skip


def changed(folder: Path, change: Callable[[State], object], old: bool = False) -> None:
    state = good(old)
    change(state)
    save(folder, state)


beasts("ckpt-", changed, ARGS | CHANGES, "model")
beasts("nano-", functools.partial(changed, old=True), ARGS, "model", harmless=("args-unknown",))
beast(
    "nano-dataset", lambda d: changed(d, lambda c: c["config"].update(dataset=".."), old=True),
    "the tokenizer is to be found in ..", "model", harmless=True,
)  # fmt: skip


def first(c: State) -> State:
    """The optimizer's averages of the first parameter."""
    return c["optimizer"]["state"][0]


def group(c: State) -> State:
    return c["optimizer"]["param_groups"][0]


STATES: Table = {
    "none": (lambda c: c.pop("optimizer"), "no optimizer"),
    "groups": (lambda c: c["optimizer"].update(param_groups=[]), "an optimizer without groups"),
    "shape": (lambda c: first(c).update(exp_avg=torch.zeros(10**6)), "a mean of another shape"),
    "complex": (lambda c: first(c).update(exp_avg=first(c)["exp_avg"] * 1j), "a mean that is complex"),
    "scalar": (lambda c: first(c).update(exp_avg=torch.zeros(())), "a mean that is one number"),
    "lacks": (lambda c: first(c).pop("exp_avg"), "a parameter without its mean"),
    "extra": (
        lambda c: c["optimizer"]["state"].update({10**6: {"exp_avg": torch.zeros(1)}}), "a parameter 10^6"),
    "order": (lambda c: group(c)["params"].reverse(), "parameters in another order"),
    "state-tensor": (lambda c: c["optimizer"].update(state=torch.ones(3)), "a tensor for all averages"),
    "averages-tensor": (
        lambda c: c["optimizer"]["state"].update({0: torch.ones(3, 3)}),
        "a tensor for the averages of a parameter"),
    "params-tensor": (
        lambda c: group(c)["params"].__setitem__(0, torch.ones(3)), "a tensor for the number of a parameter"),
    "rate-tensor": (lambda c: group(c).update(lr=torch.ones(3)), "three learning rates"),
    "step-before": (
        lambda c: [s.update(step=torch.tensor(-1.0)) for s in c["optimizer"]["state"].values()],
        "less than no steps of the optimizer, to divide by"),
    "step-nan": (
        lambda c: first(c).update(step=torch.tensor(float("nan"))), "a count of steps that is no number"),
    "step": (lambda c: c.update(iter_num=-1), "less than no steps"),
    "best-nan": (lambda c: c.update(best_val_loss=float("nan")), "a best loss that none is below"),
    "scaler-tensor": (lambda c: c["scaler"].update(scale=torch.ones(3)), "a tensor in the scaler"),
    "config-beyond": (lambda c: c["config"].update(batch_size=10**600), "batches of 10^600"),
    "world-tensor": (lambda c: c.update(world_size=torch.ones(3)), "a tensor of processes"),
    "data-keys": (lambda c: c.update(data={1: "x"}), "a file named 1"),
    "data-many": (
        lambda c: c.update(data={f"{i}.bin": "y" for i in range(10_000)}), "10,000 files that are not here"),
    "run": (lambda c: c.update(run=torch.ones(3)), "a tensor for the name of the run"),
}  # fmt: skip


@functools.cache
def run_state() -> bytes:
    """The checkpoint of a run of one step, with which nothing is wrong."""
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        dataset(Path(place))
        train(Path(place), Path(place))
        return (Path(place) / "ckpt.pt").read_bytes()


def changed_run(folder: Path, change: Callable[[State], object]) -> None:
    state = torch.load(io.BytesIO(run_state()), weights_only=True)
    change(state)
    save(folder, state)


beasts("state-", changed_run, STATES, "resume")


# --- The container ----------------------------------------------------------------------------


def bomb(d: Path) -> None:
    n = 1 << 26
    with zipfile.ZipFile(d / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as z:
        view = View(Storage(n), 0, (n,), (1,))
        z.writestr("ckpt/data.pkl", pickled(good() | {"model": {"wte.weight": view}}))
        z.writestr("ckpt/version", b"3\n")
        with z.open("ckpt/data/0", "w", force_zip64=True) as part:
            for _ in range(n // (1 << 22)):
                part.write(bytes(1 << 24))


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
    with zipfile.ZipFile(d / "ckpt.pt") as z:  # written anew, torch's has a longer end
        contents = {name: z.read(name) for name in z.namelist()}
    parts(d, contents)
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


def edited(folder: Path, edit: Callable[[bytes], bytes], value: object = None, old: bool = False) -> None:
    """A good checkpoint whose bytes are changed."""
    save(folder, good() if value is None else value, old)
    (folder / "ckpt.pt").write_bytes(edit((folder / "ckpt.pt").read_bytes()))


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
    "zip-comment": (comment, "a second end of the archive in its comment"),
    "zip-script": (
        lambda d: archive(
            d, {"format": checkpoint.FORMAT},
            {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"}),
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
