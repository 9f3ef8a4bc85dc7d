"""Hostile pickles and files of torch.save: they call out, never end, or are not what they say."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pickle
import struct
import tarfile
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

from . import PROOF, SIZES, beast, beasts, dataset, good, train

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


def deep(depth: int) -> bytes:
    """A list in a list in a list ..."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def legacy(folder: Path, meta: object) -> None:
    """A data set as nanoBackpackLM makes them; `meta` may be a pickle already."""
    for split_name in data.SPLITS:
        (folder / f"{split_name}.bin").write_bytes(bytes(200))
    (folder / "meta.pkl").write_bytes(meta if isinstance(meta, bytes) else pickle.dumps(meta))


CALLS = {
    "mkdir": (Calls(os.mkdir, PROOF), "calls os.mkdir"),
    "system": (Calls(os.system, f"mkdir {PROOF}"), "calls os.system"),
    "eval": (Calls(eval, f"__import__('os').mkdir({PROOF!r})"), "calls eval"),
    "exec": (Calls(exec, f"import os; os.mkdir({PROOF!r})"), "calls exec"),
    "open": (Calls(open, PROOF, "w"), "opens a file for writing"),
    "import": (Calls(__import__, "antigravity"), "imports a module, which may do anything"),
    "bytearray": (Calls(bytearray, 1 << 28), "asks for 256 MB by a type that torch allows"),
    "tensor": (Calls(torch.Tensor, 1 << 34), "asks for 64 GB by a type that torch allows"),
}
for name, (call, why) in CALLS.items():
    ways: dict[str, tuple[Callable[[Path, Calls], object], str, str]] = {
        "ckpt": (lambda d, c: save(d, good() | {"best_val_loss": c}), "when unpickled", "model resume"),
        "ckpt-old": (
            lambda d, c: save(d, good() | {"best_val_loss": c}, old=True), "in the old format", "model"),
        "ckpt-bare": (lambda d, c: (d / "ckpt.pt").write_bytes(pickle.dumps(c)), "as a bare pickle", "model"),
        "meta": (lambda d, c: legacy(d, {"vocab_size": 1, "itos": {0: c}}), "when unpickled", "meta data"),
    }  # fmt: skip
    for way, (write, how, loaders) in ways.items():
        beast(f"{way}-{name}", functools.partial(write, c=call), f"{why}, {how}", loaders)

PICKLES: dict[str, tuple[object, str]] = {
    "tuple-key": (keyed_by_tuples(), "a key that takes forever to hash"),
    "deep": (deep(100_000), "100,000 lists in each other"),
    "memo": (b"\x80\x02]r\0\0\0\x02.", "a memo of 2^25 places: 512 MB"),
    "frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].", "a frame of 2^40 bytes"),
    "text": (b"\x80\x02X\xff\xff\xff\x7fab.", "a text of 2^31 bytes"),
    "long": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "a number of 2^31 bytes"),
    "global": (b"cposix\nsystem\n(S'true'\ntR.", "calls posix.system, in the oldest protocol"),
    "extension": (b"\x80\x02\x82\x01.", "an extension code, which imports"),
    "object": (b"\x80\x02(ios\nmkdir\n.", "makes an instance"),
    "itos-keys": ({"vocab_size": 2, "itos": {0: "a", "1": "b"}}, "ids that are no numbers"),
    "itos-gap": ({"vocab_size": 2, "itos": {0: "a", 10**12: "b"}}, "an id of 10^12"),
    "itos-words": ({"vocab_size": 1, "itos": {0: "abc"}}, "words for characters"),
    "empty": (b"", "nothing"),
    "underflow": (b"\x80\x02aaa.", "takes from an empty stack"),
}
UNUSABLE: dict[str, tuple[object, str]] = {  # they can be read, and make no tokenizer
    "laughs": ({"vocab_size": laughs(list), "itos": {0: "a"}}, "lists of lists of lists, 2^60 when printed"),
    "itos-size": ({"vocab_size": 10**9, "itos": {0: "a"}}, "a vocabulary of 10^9 in one character"),
    "itos-surrogate": ({"vocab_size": 1, "itos": {0: "\ud800"}}, "half a character"),
}
for name, (meta, why) in (PICKLES | UNUSABLE).items():
    loaders = "data meta" if name in PICKLES else "data"
    beast(f"meta-{name}", lambda d, meta=meta: legacy(d, meta), why, loaders)


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
    sizes = SIZES | {"n_layer": 900, "n_embd": 64}
    model = checkpoint.build_model(ModelConfig(**sizes | {"n_layer": 2}))
    views = {}
    for name, t in model.state_dict().items():
        for i in range(899 if ".h.0." in name else 1):
            view = View(Storage(1 << 14), 0, tuple(t.shape), t.stride())
            views[name.replace(".h.0.", f".h.{i}.")] = view
    archive(d, good() | {"model_args": sizes, "model": views}, {"data/0": bytes(4 << 14)})


beast(
    "ckpt-laughs", lambda d: save(d, good() | {"format": laughs(list), "model_args": laughs(list)}),
    "lists of lists of lists, 2^60 when printed or compared", "model resume",
)  # fmt: skip
beast("ckpt-attributes", shadowed, "a dict whose method items is a number", "model resume", harmless=True)
beasts(
    {
        "ckpt-tuple-key": (lambda d: archive(d, keyed_by_tuples()), "a key that takes forever to hash"),
        "ckpt-pairs-key": (
            lambda d: archive(d, Calls(OrderedDict, [(laughs(tuple), 1)])),
            "a key that takes forever to hash, given to OrderedDict itself"),
        "ckpt-deep": (lambda d: archive(d, deep(100_000)), "100,000 lists in each other"),
        "tensor-shared": (shared, "one storage under 10,000 names, to be copied 10,000 times"),
    },
    "model",
)  # fmt: skip
VIEWS = {
    "huge": (View(Storage(4), 0, (10**9, 10**3), (10**3, 1)), "10^12 numbers in a storage of 4"),
    "expanded": (View(Storage(4), 0, (10**9, 10**3), (0, 0)), "10^12 numbers that are all the same one"),
    "offset": (View(Storage(4), 10**9, (4,), (1,)), "begins far behind its storage"),
    "before": (View(Storage(4), -4, (4,), (1,)), "begins before its storage"),
    "backwards": (View(Storage(4), 3, (4,), (-1,)), "a negative stride"),
    "negative": (View(Storage(4), 0, (-4,), (1,)), "a negative size"),
    "overflow": (View(Storage(4), 0, (2**62, 2**62), (1, 1)), "a size beyond 64 bits"),
    "storage": (View(Storage(10**11), 0, (10**11,), (1,)), "a storage of 400 GB in 16 bytes"),
    "storage-negative": (View(Storage(-4), 0, (4,), (1,)), "a storage of negative size"),
    "key": (View(Storage(4, "../../version"), 0, (4,), (1,)), "a storage that lies elsewhere"),
}


def viewed(d: Path, view: View) -> None:
    archive(d, good() | {"model": {"wte.weight": view}}, {"data/0": bytes(16)})


for name, (view, why) in VIEWS.items():
    beast(f"tensor-{name}", functools.partial(viewed, view=view), why, "model")


# --- Tensors and settings that are not what they say ------------------------------------------

CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "dtype-int": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8).long()}), "integers"),
    "dtype-complex": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8) * 1j}), "complex weights"),
    "sparse": (lambda c: c["model"].update({"wte.weight": torch.eye(8)[:4].to_sparse()}), "a sparse tensor"),
    "meta": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8, device="meta")}), "no numbers"),
    "expanded": (
        lambda c: c["model"].update({"wte.weight": torch.ones(1, 1).expand(4, 8)}), "one number 32 times"),
    "shape": (lambda c: c["model"].update({"wte.weight": torch.ones(8, 4)}), "a transposed embedding"),
    "nan": (lambda c: c["model"]["wte.weight"].fill_(float("nan")), "weights that are no numbers"),
    "key": (lambda c: c["model"].update({7: torch.ones(1)}), "a tensor named 7"),
    "model-list": (lambda c: c.update(model=[1, 2]), "a list of weights"),
    "model-text": (lambda c: c.update(model="weights"), "a text for weights"),
    "args-list": (lambda c: c.update(model_args=[1]), "a list of settings"),
    "args-unknown": (lambda c: c["model_args"].update(hook="print"), "a setting that does not exist"),
    "args-key": (lambda c: c.update(model_args={3: 4}), "a setting named 3"),
    "layers": (lambda c: c["model_args"].update(n_layer=10**12), "10^12 layers"),
    "vocabulary": (lambda c: c["model_args"].update(vocab_size=10**15), "a vocabulary of 10^15"),
    "table": (lambda c: c["model_args"].update(sense_table=True), "baked senses, but no table of them"),
    "table-large": (
        lambda c: c["model_args"].update(sense_table=True, vocab_size=1 << 40), "a table of 2^45 numbers"),
    "width": (lambda c: c["model_args"].update(n_embd=1 << 60), "a width of 2^60"),
    "beyond": (lambda c: c["model_args"].update(block_size=1 << 400), "a context of 2^400"),
    "negative": (lambda c: c["model_args"].update(n_embd=-8), "a negative width"),
    "zero": (lambda c: c["model_args"].update(n_head=0), "no heads, to divide by"),
    "nan-dropout": (lambda c: c["model_args"].update(dropout=float("nan")), "a dropout that is no number"),
    "tensor-arg": (lambda c: c["model_args"].update(n_head=torch.ones(3)), "a tensor for a number"),
    "list-arg": (lambda c: c["model_args"].update(vocab_size=[4]), "a list for a number"),
    "format": (lambda c: c.update(format=torch.ones(2, 2)), "a tensor for the format"),
    "tokenizer-tensor": (lambda c: c.update(tokenizer=torch.ones(3)), "a tensor for the tokenizer"),
    "tokenizer-other": (
        lambda c: c.update(tokenizer=Tokenizer.char("abcdefgh").to_json()), "ids beyond the embedding"),
    "tokenizer-deep": (lambda c: c.update(tokenizer="[" * 10**6), "a tokenizer nested 10^6 deep"),
}  # fmt: skip
NANO_TOO = ["layers", "vocabulary", "sparse", "tensor-arg", "list-arg"]
NANO_TOO += [name for name in CHANGES if "args" in name]


def changed(folder: Path, change: Callable[[State], object], old: bool = False) -> None:
    state = good(old)
    change(state)
    save(folder, state)


for name, (change, why) in CHANGES.items():
    beast(f"ckpt-{name}", functools.partial(changed, change=change), why, "model resume")
for name in NANO_TOO:
    change, why = CHANGES[name]
    make = functools.partial(changed, change=change, old=True)
    beast(f"nano-{name}", make, f"{why}, in nanoBackpackLM's layout", "model", name == "args-unknown")
beast(
    "nano-dataset", lambda d: changed(d, lambda c: c["config"].update(dataset=".."), old=True),
    "the tokenizer is to be found in ..", "model", harmless=True,
)  # fmt: skip


def first(c: State) -> State:
    """The optimizer's averages of the first parameter."""
    return c["optimizer"]["state"][0]


def group(c: State) -> State:
    return c["optimizer"]["param_groups"][0]


STATES: dict[str, tuple[Callable[[State], object], str]] = {
    "none": (lambda c: c.pop("optimizer"), "no optimizer"),
    "text": (lambda c: c.update(optimizer="adam"), "a text for an optimizer"),
    "groups": (lambda c: c["optimizer"].update(param_groups=[]), "an optimizer without groups"),
    "shape": (lambda c: first(c).update(exp_avg=torch.zeros(10**6)), "a mean of another shape"),
    "lacks": (lambda c: first(c).pop("exp_avg"), "a parameter without its mean"),
    "lacks-all": (lambda c: c["optimizer"]["state"].pop(0), "a parameter without any of its numbers"),
    "scalar": (lambda c: first(c).update(exp_avg=torch.zeros(())), "a mean that is one number"),
    "step-list": (lambda c: first(c).update(step=torch.zeros(3)), "three counts of steps"),
    "extra": (
        lambda c: c["optimizer"]["state"].update({10**6: {"exp_avg": torch.zeros(1)}}), "a parameter 10^6"),
    "order": (lambda c: group(c)["params"].reverse(), "parameters in another order"),
    "processes": (lambda c: c.update(world_size=2, config=[]), "settings of two processes, but no settings"),
    "step": (lambda c: c.update(iter_num=-1), "less than no steps"),
    "best": (lambda c: c.update(best_val_loss=torch.ones(3)), "three best losses"),
    "scaler": (lambda c: c.pop("scaler"), "no scaler"),
    "scaler-tensor": (lambda c: c["scaler"].update(scale=torch.ones(3)), "a tensor in the scaler"),
    "config-tensor": (lambda c: c["config"].update(seed=torch.ones(3)), "a tensor for the seed"),
    "config-optimizer": (lambda c: c["config"].update(optimizer=torch.ones(3)), "a tensor for a name"),
    "config-beyond": (lambda c: c["config"].update(batch_size=10**600), "batches of 10^600"),
    "world-tensor": (lambda c: c.update(world_size=torch.ones(3)), "a tensor of processes"),
    "state-tensor": (lambda c: c["optimizer"].update(state=torch.ones(3)), "a tensor for all averages"),
    "averages-tensor": (
        lambda c: c["optimizer"]["state"].update({0: torch.ones(3, 3)}),
        "a tensor for the averages of a parameter"),
    "params-tensor": (
        lambda c: group(c)["params"].__setitem__(0, torch.ones(3)), "a tensor for the number of a parameter"),
    "rate-tensor": (lambda c: group(c).update(lr=torch.ones(3)), "three learning rates"),
    "complex": (lambda c: first(c).update(exp_avg=first(c)["exp_avg"] * 1j), "a mean that is complex"),
    "no-mean": (lambda c: first(c).update(exp_avg=None), "None for a mean"),
    "step-before": (
        lambda c: [s.update(step=torch.tensor(-1.0)) for s in c["optimizer"]["state"].values()],
        "less than no steps of the optimizer, to divide by"),
    "step-nan": (
        lambda c: first(c).update(step=torch.tensor(float("nan"))), "a count of steps that is no number"),
    "data-keys": (lambda c: c.update(data={1: "x"}), "a file named 1"),
    "data-long": (lambda c: c.update(data={"train.bin": "y" * 100_000}), "a checksum of 100,000 letters"),
    "data-many": (
        lambda c: c.update(data={f"{i}.bin": "y" for i in range(10_000)}), "10,000 files that are not here"),
    "best-nan": (lambda c: c.update(best_val_loss=float("nan")), "a best loss that none is below"),
    "beyond": (lambda c: c.update(iter_num=10**600), "10^600 steps"),
    "run": (lambda c: c.update(run=torch.ones(3)), "a tensor for the name of the run"),
    "no-model": (lambda c: c.pop("model"), "no weights"),
    "nan-model": (lambda c: c["model"]["wte.weight"].fill_(float("nan")), "weights that are no numbers"),
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


for name, (change, why) in STATES.items():
    make = functools.partial(changed_run, change=change)
    beast(f"state-{name}", make, f"{why} in a run to go on with", "resume")


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


def compressed_pickle(d: Path) -> None:
    with zipfile.ZipFile(d / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as z, z.open("ckpt/data.pkl", "w") as part:
        part.write(b"\x80\x02]")
        for _ in range(1 << 4):
            part.write(b"N" * (1 << 24))


def entry(folder: Path, name: str, content: bytes = b"gotcha") -> None:
    """A good checkpoint with one more entry; "": of the name of its pickle."""
    save(folder, good())
    with zipfile.ZipFile(folder / "ckpt.pt", "a") as z:
        z.writestr(name or z.namelist()[0], content)


def comment(d: Path) -> None:
    save(d, good())
    with zipfile.ZipFile(d / "ckpt.pt", "a") as z:
        z.comment = b"PK\x05\x06" + bytes(18) + b"gotcha"


def unicode_name(d: Path) -> None:
    with zipfile.ZipFile(d / "ckpt.pt", "w") as z:
        for name, other, value in (("data.pkl", "x", Calls(bytearray, 1 << 30)), ("y", "data.pkl", {})):
            info = zipfile.ZipInfo(f"ckpt/{name}")
            field = struct.pack("<BL", 1, zlib.crc32(info.filename.encode())) + f"ckpt/{other}".encode()
            info.extra = struct.pack("<2H", 0x7075, len(field)) + field
            z.writestr(info, pickle.dumps(value, 2))


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


def old_tar(d: Path) -> None:
    with tarfile.open(d / "ckpt.pt", "w") as t:
        for name in ("storages", "tensors", "pickle", f"../{PROOF}"):
            info = tarfile.TarInfo(name)
            info.size = 8
            t.addfile(info, io.BytesIO(bytes(8)))


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


beasts(
    {
        "zip-bomb": (bomb, "256 MB of zeros in 250 KB"),
        "zip-compressed-pickle": (compressed_pickle, "a pickle of 256 MB in 250 KB"),
        "zip-dots": (lambda d: entry(d, f"../../{PROOF}"), "an entry ../../PROOF"),
        "zip-absolute": (lambda d: entry(d, f"/tmp/{PROOF}"), "an entry with an absolute name"),
        "zip-twice": (
            lambda d: entry(d, "", pickle.dumps(Calls(os.mkdir, PROOF), 2)),
            "two pickles of the same name: which one is read?"),
        "zip-unicode-name": (unicode_name, "an entry with another name in its Unicode field"),
        "zip-overlap": (overlap, "a thousand entries that lie in each other: 86 MB in 180 kB"),
        "zip-prefix": (lambda d: edited(d, lambda b: b + b), "another archive before the archive"),
        "zip-comment": (comment, "a second end of the archive in its comment"),
        "zip-script": (
            lambda d: archive(
                d, {"format": checkpoint.FORMAT},
                {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"}),
            "a TorchScript archive: a program"),
        "tar": (old_tar, "the oldest format, which torch would unpack"),
        "old-truncated": (
            lambda d: edited(d, lambda b: b[: len(b) * 3 // 4], old=True),
            "its end is missing, in the old format"),
        "flipped": (lambda d: edited(d, flip), "a bit in the middle of its pickle is flipped"),
        "old-storage": (
            lambda d: edited(d, large_storage, old=True), "a storage of 8 TB, in the old format"),
    },
    "model",
    harmless=("zip-dots", "zip-absolute"),
)  # fmt: skip
for name, content, why in (
    ("calls", pickle.dumps(Calls(bytearray, 1 << 30), 2), "asks for 1 GB"),
    ("tuple-key", keyed_by_tuples(), "takes forever to hash"),
):
    good_pickle = {"ckpt/data.pkl": pickle.dumps({}, 2), "ckpt/version": b"3\n"}
    case = {"ckpt/DATA.PKL": content} | good_pickle
    elsewhere = {"x/DATA.PKL": content, "x/version": b"3\n"} | good_pickle
    beasts(
        {
            f"zip-case-{name}": (
                lambda d, p=case: parts(d, p), f"a second pickle, which torch takes for the first: {why}"),
            f"zip-elsewhere-{name}": (
                lambda d, p=elsewhere: parts(d, p), f"pickles in two folders, torch takes the first: {why}"),
            f"old-keys-{name}": (
                lambda d, c=content: edited(
                    d, lambda b: other_keys(b, c), {"format": checkpoint.FORMAT}, old=True),
                f"a fifth pickle, the names of storages: {why}"),
        },
        "model",
    )  # fmt: skip
beasts(
    {
        "truncated": (lambda d: edited(d, lambda b: b[: len(b) // 2]), "its end is missing"),
        "ckpt-folder": (lambda d: (d / "ckpt.pt").mkdir(), "a folder for a checkpoint"),
        "ckpt-pipe": (
            lambda d: os.mkfifo(d / "ckpt.pt"), "a pipe for a checkpoint: reading it waits forever"),
        "ckpt-device": (
            lambda d: (d / "ckpt.pt").symlink_to("/dev/zero"), "a link to a device without end"),
        "ckpt-loop": (lambda d: (d / "ckpt.pt").symlink_to("ckpt.pt"), "a link to itself"),
    },
    "model resume",
)  # fmt: skip


def settings_pipe(d: Path) -> None:
    for name in ("ckpt.pt", "best.pt"):
        torch.save(good(), d / name)
    os.mkfifo(d / "config.json")


beast("run-pipe", settings_pipe, "a pipe for the settings of a run", "model", harmless=True)
