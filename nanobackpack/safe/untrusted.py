"""Untrusted weights: looked at before a library opens them, and after. (Texts: texts.py.)

    load_untrusted("ckpt.pt")             a file of torch.save or safetensors: tensors and plain values
    read_index("x.index.json")            which files hold which tensors of a model in several
    check_parts(state, kinds, "ckpt.pt")  what was read from it: each part of its kind
    load_plain_pickle("meta.pkl", limit)  a pickle of plain values

A library that opens a file safely runs nothing, but may still take all memory or never end. So a pickle is
followed operation by operation before any is carried out, a container must be what torch.save writes, and
what was read is copied: tensors that their bytes cover, and plain values.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import shlex
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nanobackpack.errors import InputError, first_few, first_line, short_repr
from nanobackpack.safe.files import MEGABYTE, display_path, read_bytes, read_json

# Limits, far above what good files have: a run with GPT-2's 12 layers saves a state of 600 values, 5 in each
# other, which 11,000 operations make.
_MAX_OPERATIONS = 2_000_000
_MAX_VALUES = 200_000  # tensors may be of any size
_MAX_DEPTH = 20

# Of the operations of a pickle only these are let through. First those that push a plain value.
_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
}  # fmt: skip
# Those that fill a container with so many values from the stack (0: with all after the last mark).
_FILL = {"APPEND": 1, "APPENDS": 0, "SETITEM": 2, "SETITEMS": 0}
# Those that make a tuple of so many values from the stack (0: of all after the last mark).
_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": 0}
# Where tensors are allowed, these names may be looked up: what state dicts are made with.
_TORCH = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
)
# So are the kinds of storages, by how many bytes each of their numbers has.
_STORAGES = {
    f"torch {kind}Storage": n_bytes
    for n_bytes, kinds in {
        1: "Bool Byte Char Untyped", 2: "Half BFloat16 Short", 4: "Float Int", 8: "Double Long ComplexFloat",
        16: "ComplexDouble",
    }.items()
    for kind in kinds.split()
}  # fmt: skip
# Numbers this far from 0 are no keys: two that are one modulo 2^61 - 1 have the same hash, and a dict of many
# such keys takes time that grows with the square of their number.
_KEY_LIMIT = (1 << 61) - 1


@dataclass(frozen=True)
class _Made:
    """Stands for a value that is neither a plain one nor a tuple."""

    by: str


@dataclass(frozen=True)
class _Storage:
    """What a pickle tells of a storage: how many numbers it has, and of what kind."""

    n: int
    kind: str

    @property
    def n_bytes(self) -> int:
        return self.n * _STORAGES[self.kind]


_EMPTY: dict[str, Any] = {"EMPTY_DICT": _Made("dict"), "EMPTY_LIST": _Made("list"), "EMPTY_TUPLE": ()}
_A_DICT = _Made("a call of collections OrderedDict")
_A_TENSOR = _Made("a tensor")
_MAX_DIMENSIONS = 64  # as torch has it
_BEYOND = 0xFFFFFFFF  # in an archive: the number is beyond 32 bits, and stands elsewhere
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch before 1.6 began its files with
# Objects that users save beside tensors, and what they may run on such a file of theirs; we never do.
_DATA = (
    r" (numpy|omegaconf|argparse|collections|datetime|pathlib|_codecs|torch.(\w*\d|device)|__builtin__.set)"
)
_MAKE_PLAIN = """import sys, torch; plain = lambda v: v if torch.is_tensor(v) or v is None else str(v)
if isinstance(v, type) else v.tolist() if hasattr(v, "tolist") else plain(dict(v.items_ex(False))) if
hasattr(v, "items_ex") else {k: plain(x) for k, x in v.items()} if hasattr(v, "items") else
[plain(x) for x in v] if isinstance(v, (list, tuple, set)) else v if isinstance(v, (int, float, str)) else
str(v); torch.save(plain(torch.load(sys.argv[1], weights_only=False)), sys.argv[2])""".replace("\n", " ")
# What else lies in folders of models, by its name and its beginning.
_OTHERS = {
    rb"https://git-lfs": "a pointer of git-lfs: get the file with `git lfs pull`",
    rb"(?i)<html": "a web page: download the file again",
    rb"^adapter_": "an adapter (LoRA), not a model: merge it into its model and save that",
    rb"\.(gguf|h5|msgpack|onnx)\n": "for another program: get the model's safetensors",
    rb"\.json\n\s*{": "of a model's folder: name that",
}


# --- Reading ----------------------------------------------------------------------------------


def load_untrusted(path: Path) -> dict[str, Any]:
    """Read a file of torch.save or safetensors with a dict of tensors and plain values; refuse any other."""
    import safetensors.torch
    import torch

    if not path.is_file():  # opening a pipe would wait forever
        raise InputError(f"{path} is not a file")
    with open(path, "rb") as file:
        head = file.read(512)
    is_zip = head.startswith(b"PK\3\4")  # as since torch 1.6
    is_safetensors = head[8:9] == b"{"  # after the length of its header
    if not (is_zip or is_safetensors or head.startswith(b"\x80")):
        kind = _kind_of_file(path.name, head) or f"no file of weights: it begins {short_repr(head[:30])}"
        raise InputError(f"{path} is {kind if head else 'empty'}")
    try:
        if is_safetensors:
            return dict(safetensors.torch.load_file(path))
        # Look before anything is built; torch's own weights_only is a second check.
        (check_zip if is_zip else check_legacy)(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        content = copy_plain_values(loaded)
    except (pickle.UnpicklingError, InputError) as error:
        copy = shlex.join(["python", "-c", _MAKE_PLAIN, str(path), str(path.with_stem(path.stem + "_plain"))])
        advice = f"; if you trust its maker, copy it without (this runs what is in it): {copy}"
        raise InputError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged "
            f"({_first_sentence(error)}){advice if re.search(_DATA, str(error)) else ''}"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path} cannot be read as a checkpoint: {_first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, a checkpoint is a dict")
    return content


def read_index(path: Path) -> dict[str, list[str]]:
    """Read the index of weights in several files: each file, which lies beside it, and its tensors."""
    index, suffix = read_json(path), Path(path.name.removesuffix(".index.json")).suffix
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} has no weight_map, which says what file holds what tensor")
    files: dict[str, list[str]] = {}
    for tensor, name in weight_map.items():
        # No other characters: the name must not lead elsewhere, nor stand for several on a hub.
        if not re.fullmatch(rf"[\w.-]{{1,200}}\{suffix}", str(name)):
            raise InputError(f"{path} names {short_repr(name)}, which is no {suffix} file beside it")
        files.setdefault(name, []).append(tensor)
    return files


def found_in(folder: Path) -> str:
    """Tell what is in a folder where no model is found."""
    names = sorted(path.name for path in folder.iterdir())
    kinds = [f"; {name:.60} is {kind}" for name in names if (kind := _kind_of_file(name))]
    return f"it holds {first_few(names)} ({len(names)} in all)" + "".join(kinds[:1])


def _kind_of_file(name: str, head: bytes = b"") -> str:
    """Tell what a file is that has no weights for us; "" if that is unknown."""
    text = name.encode(errors="replace") + b"\n" + head
    return next((kind for pattern, kind in _OTHERS.items() if re.search(pattern, text)), "")


def check_parts(content: dict[str, Any], kinds: dict[str, Any], source: Path) -> None:
    """Refuse a file with a part missing, or not of its kind: a plain value, or a dict of these by name."""
    for name, kind in kinds.items():
        part = content.get(name)
        values = part.values() if isinstance(part, dict) else [part]
        named = not isinstance(part, dict) or all(isinstance(key, str) for key in part)
        if not isinstance(part, kind) or not named or not all(map(_is_plain, values)):
            raise InputError(f"{source}: its {name} is missing or damaged")


def _is_plain(value: object) -> bool:
    """Tell whether it is a text, None, or a number from 0 up that others can hold as well."""
    if isinstance(value, float):
        return value == value  # NaN is not
    return 0 <= value < 1 << 63 if isinstance(value, int) else value is None or isinstance(value, str)


def load_plain_pickle(path: Path, limit: int) -> Any:
    """Read a pickle of at most `limit` bytes that holds dicts, lists, texts and numbers, and nothing else."""
    try:
        data = read_bytes(path, limit)
        check_pickle(io.BytesIO(data))  # after this no class or function can be looked up
        return pickle.loads(data)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{display_path(path)} cannot be read safely: {first_line(error)}") from error


def _first_sentence(error: Exception) -> str:
    """Return what went wrong, without torch's advice to open the file carelessly."""
    return first_line(error).split(". ")[0]


# --- Pickles ----------------------------------------------------------------------------------


def check_pickle(file: BinaryIO, storages: dict[str, _Storage] | None = None) -> object:
    """Follow one pickle without building anything, and return the last number or text in it.

    An operation that is not known to be harmless raises: it could make the reader call or import something,
    take memory by a number it is given, or hash what takes forever to hash. Tensors are allowed where there
    is a dict for their `storages`: the name of each, and what the pickle tells of it. A tensor lies within
    its storage, and each of its numbers has bytes of its own: torch would make a storage longer, and a tensor
    of any size of a few bytes.
    """
    stack: list[Any] = []  # plain values and tuples as they are, _Made for all others
    marks: list[int] = []  # heights of the stack
    memo: dict[int, Any] = {}  # values that are used again
    last: object = None
    allow_tensors, told = storages is not None, {} if storages is None else storages

    def take(n: int) -> list[Any]:
        """Take the last n values off the stack, 0: those after the last mark."""
        start = len(stack) - n if n else marks.pop()
        if start < (marks[-1] if marks else 0):
            raise InputError("it takes values that are not there")
        taken = stack[start:]
        del stack[start:]
        return taken

    operation: pickletools.OpcodeInfo
    argument: Any
    position: Any
    for n, (operation, argument, position) in enumerate(pickletools.genops(file)):
        if n > _MAX_OPERATIONS:
            raise InputError("it is too long")
        name = operation.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name == "MARK":
            marks.append(len(stack))
        # Values, and what is used again.
        elif name in _PUSH:
            last = argument if argument is not None else last
            stack.append(_EMPTY.get(name, argument))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if name == "MEMOIZE" else argument
            if slot > position:  # Python's reader makes room for all slots below
                raise InputError("it uses its memo in no usual order")
            memo[slot] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        # Containers of them.
        elif name in _TUPLE:
            stack.append(tuple(take(_TUPLE[name])))
        elif name in _FILL:
            values = take(_FILL[name])
            if name.startswith("SETITEM") and not all(map(_is_key, values[::2])):
                raise InputError("it has a key that is neither a name nor a number of usual size")
        # Tensors: a function of torch is looked up, and called with a storage that torch finds by its name.
        elif allow_tensors and name == "GLOBAL" and (_TORCH.fullmatch(argument) or argument in _STORAGES):
            stack.append(_Made(argument))
        elif allow_tensors and name == "BINPERSID":
            key, storage = _storage(*take(1))
            if told.setdefault(key, storage) != storage:
                raise InputError("it gives a storage two sizes or kinds")
            stack.append(storage)
        elif allow_tensors and name == "REDUCE":
            stack.append(_called(*take(2)))
        elif allow_tensors and name == "BUILD" and stack[-2] == _A_DICT:
            take(1)
        else:
            what = f" {argument.replace(' ', '.')[:60]}" if name == "GLOBAL" else ""
            raise InputError(f"it does more than hold values ({name}{what})")
    return last


def _is_key(value: object) -> bool:
    """Tell whether a value may be a key: a text, or a whole number that has a hash of its own."""
    return type(value) is str or (type(value) is int and abs(value) < _KEY_LIMIT)


def _storage(told: object) -> tuple[str, _Storage]:
    """Return the name of a storage, and what it is, from what a pickle tells of it."""
    match told:
        # A sixth value is of the old format, and was for storages that are a part of another.
        case ("storage", _Made(by=kind), str(key), str(), int(n)) | (
            "storage", _Made(by=kind), str(key), str(), int(n), None,
        ) if kind in _STORAGES and n >= 0:  # fmt: skip
            return key, _Storage(n, kind)
    raise InputError("it tells of a storage in no usual way")


def _called(function: object, arguments: object) -> _Made:
    """Return what stands for the result of a call: an empty dict, a tensor, or one that is a parameter."""
    match function, arguments:
        case _Made(by="collections OrderedDict"), ():
            return _A_DICT
        case _Made(by="torch._utils _rebuild_parameter"), (_Made(by="a tensor"), *_):
            return _A_TENSOR
        case _Made(by="torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2"), (
            _Storage() as storage, offset, tuple(shape), tuple(strides), *_,
        ):  # fmt: skip
            _check_dense(storage.n, offset, shape, strides)
            return _A_TENSOR
    raise InputError("it makes a dict or a tensor in no usual way")


def _check_dense(n: int, offset: Any, shape: tuple[Any, ...], strides: tuple[Any, ...]) -> None:
    """Refuse a tensor that does not lie within n numbers, or that has one of them in two places."""
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise InputError("it holds a tensor with odd dimensions")
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise InputError("it holds a tensor of a size that is no number from 0 up")
    # From the innermost dimension out: a step must go beyond all numbers that the ones before it reach.
    reach = 1 if 0 not in shape else 0
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and reach:
            if stride < reach:
                raise InputError(f"it holds a tensor {short_repr(shape)} whose numbers share bytes")
            reach += stride * (size - 1)
    if offset + reach > n:
        raise InputError(f"it holds a tensor {short_repr(shape)} with too few numbers for its shape")


# --- Containers -------------------------------------------------------------------------------


def check_zip(path: Path) -> None:
    """Look through a file of torch.save: its parts, their checksums, its pickle, and the sizes in this."""
    with open(path, "rb") as file:
        parts = find_parts(file, path.stat().st_size)
        folder = next(iter(parts), b"").split(b"/")[0]  # where torch looks for them
        if folder + b"/data.pkl" not in parts:
            raise InputError("it is not a file of torch.save")
        storages: dict[str, _Storage] = {}
        start, n_bytes, _ = parts[folder + b"/data.pkl"]
        file.seek(start)
        check_pickle(io.BytesIO(file.read(n_bytes)), storages)
        for key, storage in storages.items():  # torch would take so many bytes, whatever is there
            _, held, _ = parts.get(folder + b"/data/" + key.encode(), (0, 0, 0))
            if storage.n_bytes != held:
                raise InputError(f"its storage {short_repr(key)} has {held:,} bytes, not {storage.n_bytes:,}")
        # Each part has its CRC-32 beside it, which torch does not look at.
        buffer = memoryview(bytearray(MEGABYTE))
        for name, (start, n_bytes, expected) in parts.items():
            file.seek(start)
            checksum = 0
            while n_bytes and (n := file.readinto(buffer[: min(n_bytes, MEGABYTE)])):
                checksum, n_bytes = zlib.crc32(buffer[:n], checksum), n_bytes - n
            if checksum != expected:
                raise InputError(f"its part {name.decode(errors='replace')} is damaged")


def find_parts(file: BinaryIO, size: int) -> dict[bytes, tuple[int, int, int]]:
    """Find the parts of a zip archive as torch.save writes it: where each begins, its bytes, its CRC-32.

    Of other archives two readers may make different things. So there is one end, right before it the list of
    all parts, and before that these, from the first byte on one after the other, none packed.
    """
    # The end, and before it two records that an archive of 4 GB needs; torch writes them always.
    file.seek(max(size - 98, 0))
    tail = file.read(98).rjust(98, b"\0")
    mark, *disks, n_here, n_parts, length, first, comment = struct.unpack("<4s4H2LH", tail[76:])
    if mark != b"PK\5\6" or comment:
        raise InputError("its end is missing, or is none of torch.save")
    end, meets = size - 22, disks == [0, 0] and n_here == n_parts
    if tail[56:60] == b"PK\6\7":
        short = [n_parts, length, first]  # a number that does not fit is there as the largest that does
        mark, more, _, _, *disks, n_here, n_parts, length, first = struct.unpack("<4sQ2H2L4Q", tail[:56])
        end = size - 98
        locator = struct.unpack("<LQL", tail[60:76])
        meets &= (mark, more, disks, n_here, locator) == (b"PK\6\6", 44, [0, 0], n_parts, (0, end, 1))
        meets &= short == [min(n_parts, 0xFFFF), min(length, _BEYOND), min(first, _BEYOND)]
    if not meets or first + length != end:
        raise InputError("its end does not meet the list of its parts")
    file.seek(first)
    listed, reached = io.BytesIO(file.read(length)), 0
    parts: dict[bytes, tuple[int, int, int]] = {}
    names: set[bytes] = set()
    for _ in range(n_parts):
        # What the list says of a part. Numbers beyond 32 bits come after its name.
        fields = struct.unpack("<4s4H4x3L3H8xL", listed.read(46))
        mark, _, _, flags, method, crc, packed, n_bytes, n_name, n_more, n_comment, offset = fields
        sizes = struct.pack("<3L", crc, packed, n_bytes)
        name, more, _ = listed.read(n_name), listed.read(n_more), listed.read(n_comment)
        if n_beyond := [packed, n_bytes, offset].count(_BEYOND):
            beyond = iter(struct.unpack_from(f"<2H{n_beyond}Q", more))
            if (next(beyond), next(beyond)) != (1, 8 * n_beyond):
                raise InputError("a part of it has a size in no usual place")
            n_bytes, packed, offset = (next(beyond) if n == _BEYOND else n for n in (n_bytes, packed, offset))
        # The part itself has its name once more before it, and after it 24 bytes at most.
        file.seek(offset)
        head = file.read(30 + n_name)
        kind = struct.pack("<2H", flags, method)
        again = mark, head[:4], head[6:10], head[26:28], head[30:]
        if again != (b"PK\1\2", b"PK\3\4", kind, n_name.to_bytes(2, "little"), name):
            raise InputError("a part of it is not where the list says, or has two names or kinds")
        # Its sizes too, or zeros if they come after it (flag 8). The flag 2,048 is for names in UTF-8.
        if flags & ~0x808 or head[14:26] not in (sizes, bytes(12) if flags & 8 else sizes):
            raise InputError("a part of it has two sizes, or is for a reader of another kind")
        if method or packed != n_bytes:
            raise InputError("a part of it is compressed, which torch.save never does")
        if min(name, default=0) < 32 or name.lower() in names:  # torch does not tell "a" from "A"
            raise InputError("a part of it has an odd name, or that of another")
        if not 0 <= offset - reached <= (24 if parts else 0):
            raise InputError("its parts overlap, or there is something between them")
        start = offset + len(head) + int.from_bytes(head[28:30], "little")
        parts[name], reached = (start, n_bytes, crc), start + n_bytes
        names.add(name.lower())
    if listed.read(1) or not 0 <= first - reached <= 24:
        raise InputError("its parts do not fill it")
    return parts


def check_legacy(path: Path) -> None:
    """Look through a file of torch before 1.6: five pickles in a row, then the numbers."""
    with open(path, "rb") as file:
        if check_pickle(file) != _LEGACY_MAGIC:
            raise InputError("it is not a file of torch.save")
        check_pickle(file)  # the version
        check_pickle(file)  # the system
        storages: dict[str, _Storage] = {}
        check_pickle(file, storages)  # what was saved
        start = file.tell()
        check_pickle(file)  # the names of its storages, in their order: plain values, so that it may be read
        file.seek(start)
        names = pickle.load(file)
        # Then the numbers of each, after how many they are. Of one that is not named torch would read none,
        # and its numbers would be what lay in memory before.
        are_texts = type(names) is list and all(type(name) is str for name in names)  # others may nest
        if not are_texts or sorted(names) != sorted(storages):
            raise InputError("its storages are not those that it names")
        for storage in map(storages.__getitem__, names):
            if int.from_bytes(file.read(8), "little") != storage.n:
                raise InputError("a storage of it is said to have another size than it has")
            file.seek(storage.n_bytes, io.SEEK_CUR)
        if file.tell() != path.stat().st_size:
            raise InputError("its storages are said to have other sizes than they have")


def copy_plain_values(value: object) -> Any:
    """Copy what torch.load read, so that all containers are dicts, lists and tuples, and none is there twice.

    Other objects are refused.
    """
    from torch import Tensor

    left = _MAX_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise InputError("it holds too many values, or nests too deeply")
        if isinstance(value, dict):  # dict's own methods: attributes of a subclass may come from the file
            return {k: copy(v, depth + 1) for k, v in dict.items(value)}
        if type(value) in (list, tuple):
            return type(value)(copy(v, depth + 1) for v in value)
        if isinstance(value, Tensor):
            return value.detach()
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise InputError(f"it holds a {type(value).__name__}: only tensors and plain values are read")

    return copy(value, 0)
