"""Hostile ckpt.pt: tensors and settings that are not what they say, and containers full of tricks."""

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
from nanobackpack.text.tokenizer import Tokenizer
from nanobackpack.train import checkpoint

from .loaders import train
from .pickles import Calls, deep, keyed_by_tuples, laughs
from .registry import HARMLESS, PROOF, SIZES, beast, dataset, good

# --- A pickle in torch's container -------------------------------------------------------------


class Storage(NamedTuple):
    """What a pickle says of a storage, true or not."""

    numel: int
    key: str = "0"


class View(Calls):
    """What a pickle says of a tensor."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        if isinstance(value, Storage):
            return "storage", torch.FloatStorage, value.key, "cpu", value.numel
        return None


def archive(folder: Path, value: object, records: dict[str, bytes], **options: Any) -> None:
    """A ckpt.pt put together by hand; `value` may be a pickle already."""
    buffer = io.BytesIO()
    if isinstance(value, bytes):
        buffer.write(value)
    else:
        Pickler(buffer, 2).dump(value)
    with zipfile.ZipFile(folder / "ckpt.pt", "w", **options) as z:
        for name, content in {"data.pkl": buffer.getvalue(), "version": b"3\n", **records}.items():
            z.writestr("ckpt/" + name, content)


def parts(contents: dict[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        for name, content in {**contents, "ckpt/version": b"3\n"}.items():
            z.writestr(name, content)


@beast("ckpt-laughs", "lists of lists of lists, 2^60 when printed or compared", "model", "resume")
def _(d: Path) -> None:
    torch.save(good() | {"format": laughs(list), "model_args": laughs(list)}, d / "ckpt.pt")


@beast("ckpt-tuple-key", "a key that takes forever to hash", "model")
def _(d: Path) -> None:
    archive(d, keyed_by_tuples(), {})


@beast("ckpt-pairs-key", "a key that takes forever to hash, given to OrderedDict itself", "model")
def _(d: Path) -> None:
    archive(d, Calls(OrderedDict, [(laughs(tuple), 1)]), {})


@beast("ckpt-deep", "100,000 lists in each other", "model")
def _(d: Path) -> None:
    archive(d, deep(100_000), {})


class Shadowed(Calls):
    """An OrderedDict whose methods are hidden by attributes."""

    def __reduce__(self) -> Any:
        return OrderedDict, (), {"items": 3, "keys": 4, "values": 5}, None, iter(self.call[1])


@beast("ckpt-attributes", "a dict whose method items is a number", "model", "resume", HARMLESS)
def _(d: Path) -> None:
    state = good()
    torch.save(state | {"model": Shadowed(dict, *state["model"].items())}, d / "ckpt.pt")


# --- Tensors and settings that are not what they say ------------------------------------------

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
for name, (view, why) in VIEWS.items():
    beast(f"tensor-{name}", why, "model")(
        lambda d, view=view: archive(d, good() | {"model": {"wte.weight": view}}, {"data/0": bytes(16)})
    )


@beast("tensor-shared", "one storage under 10,000 names, to be copied 10,000 times", "model")
def _(d: Path) -> None:
    sizes = SIZES | {"n_layer": 900, "n_embd": 64}
    model = checkpoint.build_model(ModelConfig(**sizes | {"n_layer": 2}))

    def view(t: torch.Tensor) -> View:
        return View(Storage(1 << 14), 0, tuple(t.shape), t.stride())

    views = {}
    for name, t in model.state_dict().items():
        for i in range(899 if ".h.0." in name else 1):
            views[name.replace(".h.0.", f".h.{i}.")] = view(t)
    archive(d, good() | {"model_args": sizes, "model": views}, {"data/0": bytes(4 << 14)})


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "dtype-int": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8).long()}), "integers"),
    "dtype-complex": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8) * 1j}), "complex weights"),
    "sparse": (lambda c: c["model"].update({"wte.weight": torch.eye(8)[:4].to_sparse()}), "a sparse tensor"),
    "meta": (lambda c: c["model"].update({"wte.weight": torch.ones(4, 8, device="meta")}), "no numbers"),
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


def changed(folder: Path, change: Callable[[dict[str, Any]], object], old: bool = False) -> None:
    state = good(old)
    change(state)
    torch.save(state, folder / "ckpt.pt")


for name, (change, why) in CHANGES.items():
    beast(f"ckpt-{name}", why, "model", "resume")(lambda d, change=change: changed(d, change))
    if "args" in name or name in ("vocabulary", "layers", "list-arg", "sparse", "tensor-arg"):
        ignored = [HARMLESS] * (name == "args-unknown")
        beast(f"nano-{name}", f"{why}, in nanoBackpackLM's layout", "model", *ignored)(
            lambda d, change=change: changed(d, change, old=True)
        )


@beast("nano-dataset", "the tokenizer is to be found in ..", "model", HARMLESS)
def _(d: Path) -> None:
    changed(d, lambda c: c["config"].update(dataset=".."), old=True)


STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "none": (lambda c: c.pop("optimizer"), "no optimizer"),
    "text": (lambda c: c.update(optimizer="adam"), "a text for an optimizer"),
    "groups": (lambda c: c["optimizer"].update(param_groups=[]), "an optimizer without groups"),
    "shape": (
        lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(10**6)), "a mean of another shape"),
    "lacks": (lambda c: c["optimizer"]["state"][0].pop("exp_avg"), "a parameter without its mean"),
    "lacks-all": (lambda c: c["optimizer"]["state"].pop(0), "a parameter without any of its numbers"),
    "scalar": (
        lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(())), "a mean that is one number"),
    "step-list": (
        lambda c: c["optimizer"]["state"][0].update(step=torch.zeros(3)), "three counts of steps"),
    "extra": (
        lambda c: c["optimizer"]["state"].update({10**6: {"exp_avg": torch.zeros(1)}}), "a parameter 10^6"),
    "order": (
        lambda c: c["optimizer"]["param_groups"][0]["params"].reverse(), "parameters in another order"),
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
        lambda c: c["optimizer"]["param_groups"][0]["params"].__setitem__(0, torch.ones(3)),
        "a tensor for the number of a parameter"),
    "rate-tensor": (
        lambda c: c["optimizer"]["param_groups"][0].update(lr=torch.ones(3)), "three learning rates"),
    "complex": (
        lambda c: c["optimizer"]["state"][0].update(exp_avg=c["optimizer"]["state"][0]["exp_avg"] * 1j),
        "a mean that is complex"),
    "no-mean": (lambda c: c["optimizer"]["state"][0].update(exp_avg=None), "None for a mean"),
    "step-before": (
        lambda c: [s.update(step=torch.tensor(-1.0)) for s in c["optimizer"]["state"].values()],
        "less than no steps of the optimizer, to divide by"),
    "step-nan": (
        lambda c: c["optimizer"]["state"][0].update(step=torch.tensor(float("nan"))),
        "a count of steps that is no number"),
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


for name, (change, why) in STATES.items():

    @beast(f"state-{name}", f"{why} in a run to go on with", "resume")
    def _(d: Path, change: Callable[[dict[str, Any]], object] = change) -> None:
        state = torch.load(io.BytesIO(run_state()), weights_only=True)
        change(state)
        torch.save(state, d / "ckpt.pt")


# --- The container ----------------------------------------------------------------------------


@beast("zip-bomb", "256 MB of zeros in 250 KB", "model")
def _(d: Path) -> None:
    n = 1 << 26
    with zipfile.ZipFile(d / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as z:
        buffer = io.BytesIO()
        Pickler(buffer, 2).dump(good() | {"model": {"wte.weight": View(Storage(n), 0, (n,), (1,))}})
        z.writestr("ckpt/data.pkl", buffer.getvalue())
        z.writestr("ckpt/version", b"3\n")
        with z.open("ckpt/data/0", "w", force_zip64=True) as part:
            for _ in range(n // (1 << 22)):
                part.write(bytes(1 << 24))


@beast("zip-compressed-pickle", "a pickle of 256 MB in 250 KB", "model")
def _(d: Path) -> None:
    with zipfile.ZipFile(d / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as z, z.open("ckpt/data.pkl", "w") as part:
        part.write(b"\x80\x02]")
        for _ in range(1 << 4):
            part.write(b"N" * (1 << 24))


def entry(folder: Path, name: str) -> None:
    """A good checkpoint with one more entry."""
    torch.save(good(), folder / "ckpt.pt")
    with zipfile.ZipFile(folder / "ckpt.pt", "a") as z:
        z.writestr(name, "gotcha")


beast("zip-dots", "an entry ../../PROOF", "model", HARMLESS)(lambda d: entry(d, f"../../{PROOF}"))
beast("zip-absolute", "an entry with an absolute name", "model", HARMLESS)(
    lambda d: entry(d, f"/tmp/{PROOF}")
)


@beast("zip-twice", "two pickles of the same name: which one is read?", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt")
    with zipfile.ZipFile(d / "ckpt.pt", "a") as z:
        z.writestr(z.namelist()[0], pickle.dumps(Calls(os.mkdir, PROOF), 2))


SECOND = {"calls": (pickle.dumps(Calls(bytearray, 1 << 30), 2), "asks for 1 GB")}
SECOND["tuple-key"] = (keyed_by_tuples(), "takes forever to hash")
for name, (content, why) in SECOND.items():

    @beast(f"zip-case-{name}", f"a second pickle, DATA.PKL, which torch takes for the first: {why}", "model")
    def _(d: Path, content: bytes = content) -> None:
        parts({"ckpt/DATA.PKL": content, "ckpt/data.pkl": pickle.dumps({}, 2)}, d / "ckpt.pt")

    @beast(f"zip-elsewhere-{name}", f"pickles in two folders, torch takes the first part's: {why}", "model")
    def _(d: Path, content: bytes = content) -> None:
        parts(
            {"x/DATA.PKL": content, "x/version": b"3\n", "ckpt/data.pkl": pickle.dumps({}, 2)}, d / "ckpt.pt"
        )

    @beast(f"old-keys-{name}", f"a fifth pickle, the names of storages: {why}", "model")
    def _(d: Path, content: bytes = content) -> None:
        torch.save({"format": checkpoint.FORMAT}, d / "ckpt.pt", _use_new_zipfile_serialization=False)
        old = (d / "ckpt.pt").read_bytes()
        assert old.endswith(b"]q\x00.")  # no storages
        (d / "ckpt.pt").write_bytes(old[: old.rindex(b"\x80\x02")] + content)


@beast("zip-unicode-name", "an entry with another name in its Unicode field", "model")
def _(d: Path) -> None:
    with zipfile.ZipFile(d / "ckpt.pt", "w") as z:
        for name, other, value in (("data.pkl", "x", Calls(bytearray, 1 << 30)), ("y", "data.pkl", {})):
            info = zipfile.ZipInfo(f"ckpt/{name}")
            field = struct.pack("<BL", 1, zlib.crc32(info.filename.encode())) + f"ckpt/{other}".encode()
            info.extra = struct.pack("<2H", 0x7075, len(field)) + field
            z.writestr(info, pickle.dumps(value, 2))


@beast("zip-overlap", "a thousand entries that are the same bytes", "model")
def _(d: Path) -> None:
    archive(d, good() | {"model": {}}, {"data/0000": bytes(1 << 16)})
    whole = (d / "ckpt.pt").read_bytes()
    start, last = whole.index(b"PK\x01\x02"), whole.rindex(b"PK\x01\x02")  # the central directory
    entry = whole[last:-22]
    directory = whole[start:last] + b"".join(entry.replace(b"0000", b"%04d" % i) for i in range(1000))
    count = whole[start:-22].count(b"PK\x01\x02") - 1 + 1000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    (d / "ckpt.pt").write_bytes(whole[:start] + directory + end)


@beast("zip-prefix", "another archive before the archive", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt")
    whole = (d / "ckpt.pt").read_bytes()
    (d / "ckpt.pt").write_bytes(whole + whole)


@beast("zip-comment", "a second end of the archive in its comment", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt")
    with zipfile.ZipFile(d / "ckpt.pt", "a") as z:
        z.comment = b"PK\x05\x06" + bytes(18) + b"gotcha"


@beast("zip-script", "a TorchScript archive: a program", "model")
def _(d: Path) -> None:
    archive(
        d, {"format": checkpoint.FORMAT}, {"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"import os"}
    )


@beast("tar", "the oldest format, which torch would unpack", "model")
def _(d: Path) -> None:
    with tarfile.open(d / "ckpt.pt", "w") as t:
        for name in ("storages", "tensors", "pickle", f"../{PROOF}"):
            info = tarfile.TarInfo(name)
            info.size = 8
            t.addfile(info, io.BytesIO(bytes(8)))


@beast("truncated", "its end is missing", "model", "resume")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt")
    os.truncate(d / "ckpt.pt", (d / "ckpt.pt").stat().st_size // 2)


@beast("old-truncated", "its end is missing, in the format before torch 1.6", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt", _use_new_zipfile_serialization=False)
    os.truncate(d / "ckpt.pt", (d / "ckpt.pt").stat().st_size * 3 // 4)


@beast("flipped", "a bit in the middle of its pickle is flipped", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt")
    content = bytearray((d / "ckpt.pt").read_bytes())
    content[content.index(b"wte.weight") - 3] ^= 0x40
    (d / "ckpt.pt").write_bytes(content)


@beast("old-storage", "a storage of 8 TB, in the format before torch 1.6", "model")
def _(d: Path) -> None:
    torch.save(good(), d / "ckpt.pt", _use_new_zipfile_serialization=False)
    content = (d / "ckpt.pt").read_bytes()
    at = content.index(b"cpu") + 3
    at = content.index(b"K", at)  # the number of elements follows
    (d / "ckpt.pt").write_bytes(content[:at] + b"\x8a\x06" + bytes(5) + b"\x02" + content[at + 2 :])


@beast("ckpt-folder", "a folder for a checkpoint", "model", "resume")
def _(d: Path) -> None:
    (d / "ckpt.pt").mkdir()


@beast("ckpt-pipe", "a pipe for a checkpoint: reading it waits forever", "model", "resume")
def _(d: Path) -> None:
    os.mkfifo(d / "ckpt.pt")


@beast("ckpt-device", "a link to a device without end", "model", "resume")
def _(d: Path) -> None:
    (d / "ckpt.pt").symlink_to("/dev/zero")


@beast("ckpt-loop", "a link to itself", "model", "resume")
def _(d: Path) -> None:
    (d / "ckpt.pt").symlink_to("ckpt.pt")


@beast("run-pipe", "a pipe for the settings of a run", "model", HARMLESS)
def _(d: Path) -> None:
    for name in ("ckpt.pt", "best.pt"):
        torch.save(good(), d / name)
    os.mkfifo(d / "config.json")
