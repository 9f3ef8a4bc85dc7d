"""Files from strangers: looked at before a library opens them, and after.

    load_untrusted("ckpt.pt")             a file of torch.save: tensors and plain values
    load_plain_pickle("meta.pkl", limit)  a pickle of plain values
    check_tokenizer(text, "its name")     a tokenizer.json, before the tokenizers library reads it

A library that opens a file safely runs nothing, but may still take all memory or never end. So a pickle is
followed operation by operation before any is carried out, a container must be what torch.save writes, and
what was read is copied: tensors that their bytes cover, and plain values.
"""

from __future__ import annotations

import base64
import io
import pickle
import pickletools
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nanobackpack.errors import InputError, first_line
from nanobackpack.safe.files import display_path, parse_json, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

# --- The doors --------------------------------------------------------------------------------


def load_untrusted(path: Path) -> dict[str, Any]:
    """Read a file of torch.save that holds a dict of tensors and plain values; anything else is refused."""
    import torch

    if not path.is_file():  # opening a pipe would wait forever
        raise InputError(f"{path} is not a file")
    try:
        # Look before anything is built: at the pickle's operations, then at the checksum of each part, which
        # torch does not compare. Its own weights_only is a second wall. Only files of today can be mapped.
        mmap = check_archive(path)
        if mmap:
            _check_sums(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        content = copy_plain_values(loaded)
    except (pickle.UnpicklingError, InputError) as error:
        raise InputError(
            f"{path} is refused: it holds more than tensors and plain values, or is damaged "
            f"({_first_sentence(error)})"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path} cannot be read as a checkpoint: {_first_sentence(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, a checkpoint is a dict")
    return content


def load_plain_pickle(path: Path, limit: int) -> Any:
    """Read a pickle of at most `limit` bytes that holds dicts, lists, texts and numbers, and nothing else."""
    try:
        data = read_bytes(path, limit)
        check_pickle(io.BytesIO(data))  # after this no class or function can be looked up
        return pickle.loads(data)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{display_path(path)} cannot be read safely: {first_line(error)}") from error


def _first_sentence(error: Exception) -> str:
    """What went wrong, without torch's advice to open the file carelessly."""
    return first_line(error).split(". ")[0]


def _check_sums(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f"its part {damaged} is damaged")


# --- Pickles ----------------------------------------------------------------------------------

# What plain values are pickled with, in protocols 2 to 5.
_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINUNICODE", "SHORT_BINSTRING", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
}  # fmt: skip
_FILL = {"APPEND": 1, "APPENDS": 0, "SETITEM": 2, "SETITEMS": 0}  # values taken; 0: those after a mark
_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": 0}
# What tensors and state dicts are made with besides.
_TORCH = re.compile(
    r"collections OrderedDict|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch [A-Z]\w*Storage"
)
_MAX_OPERATIONS = 2_000_000  # of a pickle
_MAX_VALUES = 200_000  # in a checkpoint; its tensors may be of any size
_MAX_DEPTH = 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch before 1.6 began its files with


def check_pickle(file: BinaryIO, torch_too: bool = False) -> object:
    """Follow one pickle without building anything: values, and with torch_too storages and tensors.

    What is left out could make the reader call or import something, set its memory from a number, or
    hash a tuple of tuples of tuples, which takes forever. Returns the last number or text in it.
    Raises: InputError for anything left out; other exceptions if it is malformed.
    """
    stack: list[str] = []  # of each value its kind: leaf, tuple, or what made it
    marks: list[int] = []  # heights of the stack
    memo: dict[int, str] = {}
    last: object = None

    def take(n: int) -> list[str]:
        """The last n values of the stack, 0: those after the last mark."""
        start = len(stack) - n if n else marks.pop()
        if start < (marks[-1] if marks else 0):
            raise InputError("it takes values that are not there")
        taken = stack[start:]
        del stack[start:]
        return taken

    op: pickletools.OpcodeInfo
    arg: Any
    position: Any
    for n, (op, arg, position) in enumerate(pickletools.genops(file)):
        if n > _MAX_OPERATIONS:
            raise InputError("it is too long")
        name = op.name
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(memo) if name == "MEMOIZE" else arg
            if slot > position:  # Python's reader makes room for all slots below
                raise InputError("it uses its memo in no usual order")
            memo[slot] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in _PUSH:
            last = arg if arg is not None else last
            stack.append(name if name.startswith("EMPTY") else "leaf")
        elif name in _TUPLE:
            take(_TUPLE[name])
            stack.append("tuple")
        elif name in _FILL:
            values = take(_FILL[name])
            if name.startswith("SETITEM") and set(values[::2]) - {"leaf"}:
                raise InputError("it has a key that is neither a name nor a number")
        elif torch_too and name == "GLOBAL" and _TORCH.fullmatch(arg):
            stack.append(arg)
        elif torch_too and name == "BINPERSID":
            take(1)
            stack.append("storage")
        elif torch_too and name == "REDUCE":
            function, args = take(2)
            if function == "collections OrderedDict" and args != "EMPTY_TUPLE":
                raise InputError("it fills a dict in no usual way")
            stack.append(f"made by {function}")
        elif torch_too and name == "BUILD" and stack[-2] == "made by collections OrderedDict":
            take(1)
        else:
            what = f" {arg.replace(' ', '.')[:60]}" if name == "GLOBAL" else ""
            raise InputError(f"it does more than hold values ({name}{what})")
    return last


def check_archive(path: Path) -> bool:
    """Look through a file of torch.save. Returns whether it is a zip archive, as since torch 1.6.

    Raises: InputError if it holds more than tensors and plain values, or a part is compressed, comes
    twice, has two names or overlaps another; other exceptions if it is malformed.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            if check_pickle(file) != _LEGACY_MAGIC:
                raise InputError("it is not a file of torch.save")
            for _ in range(2):  # protocol version and system
                check_pickle(file)
            check_pickle(file, torch_too=True)
            check_pickle(file)  # names of storages
            return False
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        names = {part.filename.lower() for part in parts}  # torch does not tell "a" from "A"
        # So that all of it fits in the file's size, and no two readers can see different things in it.
        if len(names) < len(parts) or archive.comment or min(p.header_offset for p in parts) != 0:
            raise InputError("its parts are not in the order of torch.save")
        if any(p.compress_type != zipfile.ZIP_STORED or p.file_size != p.compress_size for p in parts):
            raise InputError("a part of it is compressed, which torch.save never does")
        if any(p.filename != p.orig_filename for p in parts):  # a zero in it, or another name in a field
            raise InputError("a part of it has two names")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise InputError("its parts overlap")
        main = parts[0].filename.split("/")[0] + "/data.pkl"  # where torch looks for it
        if main not in archive.namelist():
            raise InputError("it is not a file of torch.save")
        with archive.open(main) as pickled:
            check_pickle(pickled, torch_too=True)  # type: ignore[arg-type]
    return True


def copy_plain_values(value: object) -> Any:
    """A copy of what torch.load read, in which all containers are dicts, lists and tuples, none twice.

    Raises: InputError for other objects, too many or too deep, and tensors that are no dense ones.
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
            return _dense(value)
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise InputError(f"it holds a {type(value).__name__}: only tensors and plain values are read")

    return copy(value, 0)


def _dense(t: Tensor) -> Tensor:
    """The tensor, if each of its numbers has bytes of its own on the CPU."""
    import torch

    if t.layout != torch.strided or t.device.type != "cpu" or t.is_quantized:
        raise InputError("it holds a tensor that is not a plain one")
    if t.numel() * t.element_size() > t.untyped_storage().nbytes():  # a view such as expand makes
        raise InputError(f"it holds a tensor {tuple(t.shape)} with too few numbers for its shape")
    return t.detach()


# What a tokenizer does in turn to a text, and to ids; what the lists in their parts are called; and how many
# characters a part can make of one. Those not named make one, or stop growing, as NFKD does.
_SIDES = (("normalizer", "pre_tokenizer"), ("post_processor",), ("decoder",))
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
_GROWTH = {"BertNormalizer": 3, "ByteLevel": 4, "Metaspace": 2, "BPEDecoder": 2, "CTC": 2}
_MAX_GROWTH = 1000  # GPT-2's is 4; that of the longest chains of real ones is below 200
_MAX_PARTS = 200


def check_tokenizer(text: str, source: str) -> None:
    """Look through a tokenizer.json.

    Raises: InputError if it is not JSON, has a normalizer whose table is longer than its file, or parts that
    are very many or could together make a text a thousand times longer.
    """
    whole = parse_json(text, source)
    for side in _SIDES if isinstance(whole, dict) else ():
        growth, parts = 1, [whole.get(name) for name in side]
        for n, part in enumerate(parts):
            if not isinstance(part, dict):
                continue  # null, or what the library refuses
            growth *= _growth(part, source)
            parts += (inner for name in _LISTS if isinstance(part.get(name), list) for inner in part[name])
            if growth > _MAX_GROWTH or n > _MAX_PARTS:
                raise InputError(
                    f"{source}: its {' and '.join(side)} could make a text {_MAX_GROWTH:,} times longer, "
                    f"or have more than {_MAX_PARTS} parts"
                )


def _growth(part: dict[str, Any], source: str) -> int:
    """How many characters a part of a tokenizer can make of one, the parts in it aside."""
    kind = part.get("type")
    if not isinstance(kind, str):  # the library would guess
        raise InputError(f"{source} has a part without a type")
    if isinstance(table := part.get("precompiled_charsmap"), str):
        try:
            data = base64.b64decode(table)
        except ValueError:
            data = b""
        if len(data) < 4 or (size := int.from_bytes(data[:4], "little")) > len(data) - 4:
            raise InputError(f"{source} has a precompiled_charsmap that is damaged")
        return max(map(_length, data[4 + size :].decode(errors="replace").split("\0")))
    if kind == "Replace":
        pattern, new = part.get("pattern"), _length(part.get("content"))
        text = isinstance(pattern, dict) and pattern.get("String")
        return max(1, new) if text else 1 + new  # a pattern may match what is between two characters
    if kind == "TemplateProcessing":
        return max(1, str(part.get("single")).count("'Sequence'"))  # of the text, one after the other
    return _GROWTH.get(kind, 1) + _length(part.get("prepend", ""))


def _length(text: object) -> int:
    """The length of a text when other parts have decomposed it as far as can be: \ufdfa has 18."""
    return len(unicodedata.normalize("NFKD", str(text)[: _MAX_GROWTH + 1]))
