"""Tokenizers that exist already: of data sets, runs and checkpoints, in files of others, and on the hub.

tokenizer = load_tokenizer("gpt2")             a short name, or a name on the hub
tokenizer = load_tokenizer("data/mine")        a file or folder that holds one, of any of these kinds
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nanobackpack.errors import InputError
from nanobackpack.safe.download import fetch_hub
from nanobackpack.safe.files import display_path, parse_json, plain_name
from nanobackpack.safe.untrusted import load_untrusted
from nanobackpack.text.meta import read_tokenizer
from nanobackpack.text.tokenizer import (
    SPECIAL,
    Tokenizer,
    byte_level,
    is_made,
    read_file,
    report_library_errors,
)

# Short names: (name on the hub, kind, vocabulary), so that a stored copy is recognised without a network.
NAMES = {
    "gpt2": ("gpt2", "bpe", 50257),
    "chinese-character-bert": ("uer/gpt2-chinese-cluecorpussmall", "wordpiece", 21128),
    "xlm-250k": ("xlm-roberta-base", "unigram", 250002),
}
BPE_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
LAYOUTS = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe, or vocab.txt"
# What may stand beside a vocabulary and its merges: settings, and more tokens.
BESIDE = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
CHECKPOINTS = ("ckpt.pt", "best.pt")
# Files that are not read: how each begins, what it is, and what makes a tokenizer.json of it.
_CONVERT = "with transformers, sentencepiece, protobuf and tiktoken installed, `python -c 'from transformers"
FOREIGN = {
    rb"\n.\n.{1,99}?\x15": f"a SentencePiece model: {_CONVERT} import AutoTokenizer as A; "
    """A.from_pretrained("FOLDER").save_pretrained("FOLDER")'` converts that of a model's folder""",
    rb"[A-Za-z0-9+/]{2}== [0-9]+\s": "of tiktoken, and does not say where to cut text into words: for gpt2 "
    f"take --tokenizer=gpt2; for cl100k and Llama 3, {_CONVERT}.convert_slow_tokenizer import "
    """TikTokenConverter as C; C("FILE").converted().save("tokenizer.json")'` converts it""",
    rb"GGUF": "a model in GGUF: take the tokenizer.json of the model that it was made from",
}


def load_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer that `name` names: a file or folder of any kind, a name in NAMES, or on the hub."""
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        if is_made(name):
            raise InputError(f"tokenizer={name!r} is made from a text: give a tokenizer.json that holds it")
        hub_name = NAMES[name][0] if name in NAMES else name
        wanted = ["*token*.json", "vocab.txt", *BPE_FILES, *BPE_FILES.values(), "*.model"]
        instead = f"for tokenizer={name!r} give char, bpe:N, or a file or folder with {LAYOUTS}"
        path = fetch_hub(hub_name, wanted, instead)
    if tokenizer := tokenizer_in(path):
        return tokenizer
    # It may be the folder of a run or of old data. Other kinds are refused by name.
    for pattern in (*CHECKPOINTS, "meta.pkl", "*.model", "*.tiktoken"):
        for file in sorted(path.glob(pattern)):
            return _from_file(file)
    raise InputError(f"{display_path(path)} holds no tokenizer: it needs {LAYOUTS}")


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """Open the tokenizer that the folder of a model holds, in any layout; None if there is none."""
    for name in ("tokenizer.json", *BPE_FILES, "vocab.txt"):
        if (folder / name).exists() and (folder / BPE_FILES.get(name, name)).exists():
            return _from_file(folder / name)
    return None


def tokenizer_of(checkpoint: dict[str, Any], source: Path) -> Tokenizer | None:
    """Return the tokenizer that a checkpoint holds, None if it has none."""
    # nanoBackpackLM's names the data set it was trained on, which may still be here.
    if "format" not in checkpoint:
        config = checkpoint.get("config")
        name = config.get("dataset") if isinstance(config, dict) else None
        return read_tokenizer(Path("data") / str(name)) if plain_name(name) else None  # never elsewhere
    text, made_as = checkpoint.get("tokenizer"), checkpoint.get("tokenizer_made_as") or ""
    if not isinstance(text, str | None) or not isinstance(made_as, str):
        raise InputError(f"{source}: its tokenizer is damaged")
    return Tokenizer.from_json(text, f"the tokenizer in {source}", made_as) if text else None


def tokenizer_to_use(name: str, stored: Tokenizer | None, source: str) -> Tokenizer | None:
    """Return the tokenizer to use with data or a model of `source`, which brings `stored` along, if any.

    "auto" asks for the stored one, any other `name` for one that must agree with it.
    """
    if name == "auto":
        return stored
    if stored is None:
        return load_tokenizer(name)
    # One that was made from a text agrees by its kind, a short name by its size: no network is needed.
    if name == "char":
        agrees = stored.kind == "char"
    elif name.startswith("bpe:"):
        agrees = stored.kind == "bpe" and name in (stored.made_as, f"bpe:{stored.vocab_size}")
    elif name in NAMES and not Path(name).exists():
        agrees = (stored.kind, stored.vocab_size) == NAMES[name][1:]
    else:
        wanted = load_tokenizer(name)
        agrees = stored.kind == wanted.kind and not stored.difference(wanted)
    if not agrees:
        raise InputError(
            f"tokenizer_name={name!r} is not the tokenizer of {source}, which is of the kind {stored.kind} "
            f"with {stored.vocab_size:,} ids: leave it out"
        )
    return stored


def _from_file(path: Path) -> Tokenizer:
    """Read one file of any layout; of a pair, either."""
    for vocabulary, merges in BPE_FILES.items():
        if path.name in (vocabulary, merges):
            return _from_merges(path.with_name(vocabulary), path.with_name(merges))
    with open(path, "rb") as file:
        start = file.read(200)
    for pattern, kind in FOREIGN.items():
        if re.match(pattern, start, re.DOTALL):
            raise InputError(f"{display_path(path)} cannot be read here, for it is {kind}")
    found: Tokenizer | None
    if path.name in ("meta.json", "meta.pkl"):
        found = read_tokenizer(path.parent)
    elif start.startswith((b"PK\3\4", b"\x80")):  # a file of torch.save
        found = tokenizer_of(load_untrusted(path), path)
    else:
        found = Tokenizer.load(path) if path.suffix == ".json" else _from_word_pieces(path)
    if found is None:
        raise InputError(f"{display_path(path)} holds no tokenizer: give a file or folder with {LAYOUTS}")
    return found


def _from_merges(vocabulary: Path, merges: Path) -> Tokenizer:
    """Read GPT-2's byte-level BPE: {token: id}, and one merge of two tokens a line."""
    lines = [line for line in read_file(merges).split("\n") if line and not line.startswith("#version")]
    ids = parse_json(read_file(vocabulary), display_path(vocabulary))
    with report_library_errors(f"{display_path(vocabulary)} and {merges.name} are no tokenizer"):
        pairs = [(first, second) for first, second in (line.split() for line in lines)]
        for first, second in pairs:
            if not ids.keys() >= {first, second, first + second}:  # the library would panic
                raise ValueError(f"'{first} {second}' makes no token")
        return _with_added(byte_level(models.BPE(ids, pairs)), ids, vocabulary)


def _from_word_pieces(path: Path) -> Tokenizer:
    """Read BERT's vocabulary, one token a line; a tokenizer_config.json beside it says how to clean text."""
    tokens = read_file(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in ids]:
        raise InputError(f"{display_path(path)} is no BERT vocabulary: it has no line {missing[0]}")
    settings = _read_object(path.with_name("tokenizer_config.json"))
    inner = hf.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    with report_library_errors(f"{display_path(path)} and the files beside it are no tokenizer"):
        inner.normalizer = normalizers.BertNormalizer(
            lowercase=bool(settings.get("do_lower_case", True)),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        )
        return _with_added(inner, ids, path)


def _with_added(inner: hf.Tokenizer, ids: dict[str, int], path: Path) -> Tokenizer:
    """Add the tokens that files beside a vocabulary name; texts never have those that are special."""
    config, added_ids, roles = (_read_object(path.with_name(name)) for name in BESIDE)
    # Which are special? Those of well-known names, and those that have a role here: {"eos_token": "<end>"}.
    special = {*SPECIAL}
    for role, value in [*config.items(), *roles.items()]:
        if role.endswith(("_token", "_special_tokens")):
            values = value if isinstance(value, list) else [value]
            special |= {str(v.get("content") if isinstance(v, dict) else v) for v in values}
    # Collect {token: (its id, how it is found in a text)}, and add them in the order of their ids.
    added: dict[str, tuple[Any, dict[str, Any]]] = {t: (i, {}) for t, i in ids.items() if t in special}
    added |= {token: (i, {}) for token, i in added_ids.items()}
    for i, options in config.get("added_tokens_decoder", {}).items():
        added[options.pop("content")] = (int(i), options)
    for token, (_, options) in sorted(added.items(), key=lambda item: item[1][0]):
        inner.add_tokens([hf.AddedToken(token, **{"special": token in special} | options)])
    tokenizer = Tokenizer(inner)
    tokenizer.check_numbers(display_path(path), {token: i for token, (i, _) in added.items()})
    return tokenizer


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of names and values, {} if it is not there."""
    values = parse_json(read_file(path), display_path(path)) if path.exists() else {}
    if not isinstance(values, dict):
        raise InputError(f"{display_path(path)} is not a JSON object")
    return values
