"""Tokenizers that exist already: files in the layouts of others, and names on the hub.

tokenizer = load_tokenizer("gpt2")             a short name, or a name on the hub
tokenizer = load_tokenizer("data/mine")        a file or folder that holds one
"""

from __future__ import annotations

from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from nanobackpack.errors import InputError
from nanobackpack.safe.download import fetch_hub
from nanobackpack.safe.files import display_path, parse_json
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


def load_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer that `name` names: a local file or folder, a name in NAMES, or one on the hub."""
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        if is_made(name):
            raise InputError(f"tokenizer={name!r} is made from a text: give a tokenizer.json that holds it")
        hub_name = NAMES[name][0] if name in NAMES else name
        wanted = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", *BPE_FILES, *BPE_FILES.values()]
        instead = f"for tokenizer={name!r} give char, bpe:N, or a file or folder with {LAYOUTS}"
        path = fetch_hub(hub_name, wanted, instead)
    if tokenizer := tokenizer_in(path):
        return tokenizer
    raise InputError(f"{display_path(path)} holds no tokenizer: it needs {LAYOUTS}")


def tokenizer_in(folder: Path) -> Tokenizer | None:
    """Open the tokenizer that a folder holds, in any layout; None if there is none."""
    for name in ("tokenizer.json", *BPE_FILES, "vocab.txt"):
        if (folder / name).exists() and (folder / BPE_FILES.get(name, name)).exists():
            return _from_file(folder / name)
    return None


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
        agrees = (stored.kind, f"bpe:{stored.vocab_size}") == ("bpe", name)
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
    return Tokenizer.load(path) if path.suffix == ".json" else _from_word_pieces(path)


def _from_merges(vocabulary: Path, merges: Path) -> Tokenizer:
    """Read GPT-2's byte-level BPE: {token: id}, and one merge of two tokens a line."""
    lines = [line for line in read_file(merges).split("\n") if line and not line.startswith("#version")]
    ids = parse_json(read_file(vocabulary), display_path(vocabulary))
    with report_library_errors(f"{display_path(vocabulary)} and {merges.name} are no tokenizer"):
        pairs = [(first, second) for first, second in (line.split() for line in lines)]
        for first, second in pairs:
            if not ids.keys() >= {first, second, first + second}:  # the library would panic
                raise ValueError(f"'{first} {second}' makes no token")
        return _with_specials(byte_level(models.BPE(ids, pairs)), ids, display_path(vocabulary))


def _from_word_pieces(path: Path) -> Tokenizer:
    """Read BERT's vocabulary, one token a line; a tokenizer_config.json beside it says how to clean text."""
    tokens = read_file(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in ids]:
        raise InputError(f"{display_path(path)} is no BERT vocabulary: it has no line {missing[0]}")
    config, settings = path.with_name("tokenizer_config.json"), {}
    if config.exists():
        settings = parse_json(read_file(config), display_path(config))
        if not isinstance(settings, dict):
            raise InputError(f"{display_path(config)} is not a JSON object")
    inner = hf.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    with report_library_errors(f"{display_path(path)} and {config.name} are no tokenizer"):
        inner.normalizer = normalizers.BertNormalizer(
            lowercase=bool(settings.get("do_lower_case", True)),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        )
        return _with_specials(inner, ids, display_path(path))


def _with_specials(inner: hf.Tokenizer, ids: dict[str, int], source: str) -> Tokenizer:
    inner.add_special_tokens([token for token in SPECIAL if token in ids])
    tokenizer = Tokenizer(inner)
    tokenizer.check_numbers(source)
    return tokenizer
