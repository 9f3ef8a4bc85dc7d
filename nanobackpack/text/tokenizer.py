"""Text <-> token ids: one class over the `tokenizers` library, stored as one self-contained JSON file.

    tokenizer = make_tokenizer("bpe:8192", texts)  made from texts: char, or byte-level BPE of N tokens
    tokenizer = load_tokenizer("gpt2")             made by others: a short name, a hub name, a file or folder
    ids = tokenizer.encode("To be")
    word_ids(tokenizer, "sky")                     the ids of a word as it stands inside a text: " sky"

Text becomes content ids only: what looks like a special token in a text is ordinary text. Whoever needs a
special token asks for it by its role: `bos_id` begins a document, `eos_id` ends it.
The last part of the file finds words: which ids a word has, and where it stands in a prompt.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from nanobackpack.errors import InputError, first_line
from nanobackpack.safe.download import fetch_hub
from nanobackpack.safe.files import MEGABYTE, display_path, parse_json, read_bytes, replacing
from nanobackpack.safe.run import start_aside
from nanobackpack.safe.untrusted import check_tokenizer

TextOrIds = str | Sequence[int]
"""A text, or its ids."""
Bos = bool | Literal["auto"]
"""Whether prompts begin with the token that begins a document; "auto": if the tokenizer has one, as
`Tokenizer.prompt_ids` and so `nanobackpack sample` does."""

END_OF_TEXT = "<|endoftext|>"
# What the special tokens are called in BERT, XLM-R, GPT-2 and their kin, by their role.
BOS = ("[CLS]", "<s>", "<|begin_of_text|>", "<bos>")
EOS = ("[SEP]", "</s>", END_OF_TEXT, "<|end_of_text|>", "<eos>")
UNKNOWN = ("[UNK]", "<unk>")
MARKS = (*BOS, *EOS, "[PAD]", "<pad>")  # these stand around texts, never in them
SPECIAL = (*MARKS, *UNKNOWN, "[MASK]", "<mask>")

# Short names: (name on the hub, kind, vocabulary), so that a stored copy is recognised without a network.
NAMES = {
    "gpt2": ("gpt2", "bpe", 50257),
    "chinese-character-bert": ("uer/gpt2-chinese-cluecorpussmall", "wordpiece", 21128),
    "xlm-250k": ("xlm-roberta-base", "unigram", 250002),
}
BPE_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
LAYOUTS = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe, or vocab.txt"
_MAX_BYTES = 100 * MEGABYTE  # of a tokenizer's file; the largest known have a third of that
_PATIENCE_S = 5.0  # that a library may work on a text, and a second more for each
_CHARS_A_SECOND = 100_000  # characters, which slow tokenizers encode ten times over
_RUN_CHARS = 1024  # the longest word that BPE is trained on
_LONG_RUN = re.compile(rf"(?:\A|\b)(?:\w{{{_RUN_CHARS + 1},}}|\W{{{_RUN_CHARS + 1},}})")
_IDEOGRAPH = "[\u2e80-\u9fff\uf900-\ufaff\ufe30-\uffef\U00020000-\U0003ffff]"  # and their punctuation
_CHINESE_SPACE = re.compile(f"(?<={_IDEOGRAPH}) | (?={_IDEOGRAPH})")


class Tokenizer:
    """Turns text into content ids (never special tokens) and back.

    >>> tokenizer = Tokenizer.char("banana")
    >>> tokenizer.encode("nab"), tokenizer.decode([1, 0, 2])
    ([2, 0, 1], 'ban')
    """

    def __init__(self, inner: hf.Tokenizer) -> None:
        # A foreign tokenizer.json may ask for things that would change our texts or make ids random.
        inner.no_truncation()
        inner.no_padding()
        if isinstance(inner.model, models.BPE):
            inner.model.dropout = None
        inner.encode_special_tokens = True  # that is: as ordinary text
        self._inner = inner
        self._has_pattern = False  # made by a stranger, which may never end on a text
        self._ids: dict[str, int] = inner.get_vocab()
        self._symbols: dict[int, str] = {i: symbol for symbol, i in self._ids.items()}
        self.kind = _kind(inner)
        """char, or the type of the library's model: bpe, wordpiece, unigram, wordlevel."""
        special = {t.content: i for i, t in inner.get_added_tokens_decoder().items() if t.special}
        self.bos_id: int | None = next((special[name] for name in BOS if name in special), None)
        """Begins each document: [CLS], <s>; None if documents begin with their text."""
        self.eos_id: int | None = next((special[name] for name in EOS if name in special), None)
        """Ends each document, and separates its parts: [SEP], </s>, <|endoftext|>; None if nothing does."""

        # Characters are looked up in a table, far faster than the library does it: the id of each code point,
        # -1 where there is none. One more entry, -1 too, stands for all code points above the table.
        self._table = np.empty(0, np.int32)
        if self.kind == "char":
            self._table = np.full(max(map(ord, self._ids)) + 2, -1, np.int32)
            self._table[[ord(symbol) for symbol in self._ids]] = list(self._ids.values())

    @classmethod
    def char(cls, text: str) -> Tokenizer:
        """Make a symbol of each different character of `text`, numbered in code point order."""
        return cls.from_symbols(sorted(set(text)))

    @classmethod
    def from_symbols(cls, symbols: Sequence[str]) -> Tokenizer:
        """Make a character tokenizer that gives symbols[i], a single character, the id i."""
        for symbol in symbols:
            if len(symbol) != 1 or "\ud800" <= symbol <= "\udfff":
                raise InputError(f"{symbol!r} cannot be a symbol: it is not one Unicode character")
        if not symbols or len(set(symbols)) < len(symbols):
            raise InputError("a character tokenizer needs one or more characters, all different")
        vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
        inner = hf.Tokenizer(models.WordLevel(vocabulary, unk_token=""))
        inner.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        return cls(inner)

    @classmethod
    def from_json(cls, text: str, source: str = "the tokenizer") -> Tokenizer:
        """Make what `to_json` describes, from untrusted text too; errors name `source`."""
        check_tokenizer(text, source)
        with _report_library_errors(f"{source} is not a tokenizer.json"):
            tokenizer = cls(hf.Tokenizer.from_str(text))
            tokenizer._has_pattern = '"Regex"' in text
            tokenizer._check_numbers(source)
            # Encode something: that fails if there is no token for what the tokenizer does not know.
            if tokenizer.kind != "char":
                tokenizer._encode(["Can it encode? 能"])
        return tokenizer

    def to_json(self) -> str:
        """Write all of the tokenizer as one JSON text."""
        return self._inner.to_str()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.json."""
        return cls.from_json(_read(Path(path)), display_path(path))

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, whole or not at all."""
        with replacing(Path(path)) as file:
            file.write(self.to_json().encode())

    def difference(self, other: Tokenizer) -> str:
        """Name the first id that does not mean the same token in both; "" if all do."""
        for i in range(max(self.vocab_size, other.vocab_size)) if self._ids != other._ids else ():
            if (a := self._symbols.get(i)) != (b := other._symbols.get(i)):
                return f"id {i} is {a!r} in one and {b!r} in the other"
        return ""

    @property
    def vocab_size(self) -> int:
        """Number of ids, from 0 to the highest one; no padding."""
        return max(self._symbols, default=-1) + 1

    @property
    def padded_size(self) -> int:
        """Embedding rows of a model: at least one is padding, as in nanoBackpackLM; none for characters.

        That is the next multiple of 64 above vocab_size: 50257 becomes 50304, 64 becomes 128.
        """
        n = self.vocab_size
        return n if self.kind == "char" else (n // 64 + 1) * 64

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. A char tokenizer refuses a character that it does not know."""
        if self.kind == "char":
            return self._look_up(text).tolist()
        if self._has_pattern:
            return self.encode_batch([text])[0].tolist()  # which has a time limit
        with _report_library_errors("this tokenizer cannot encode the text", [text]):
            return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode many texts at once, by all threads of the library: an array (N,) for each."""
        if self.kind == "char":
            return [self._look_up(text) for text in texts]
        with _report_library_errors("this tokenizer cannot encode the text", texts):
            encodings = self._encode(texts)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def _encode(self, texts: Sequence[str]) -> list[hf.Encoding]:
        work = start_aside(lambda: self._inner.encode_batch_fast(texts, add_special_tokens=False))
        return work(_PATIENCE_S + sum(map(len, texts)) / _CHARS_A_SECOND)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt: as a document begins, without eos_id at its end.

        An empty text, or one of which no ids are left, starts a new document; [] if no token does that.
        """
        ids = self.encode(text)
        if self.bos_id is not None:
            return [self.bos_id, *ids]
        return ids or ([] if self.eos_id is None else [self.eos_id])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, which must be in the vocabulary."""
        ids = [int(i) for i in ids]
        symbols = [self._symbol(i) for i in ids]
        if self.kind == "char":
            return "".join(symbols)
        text = self._text(ids)
        # BERT's decoder puts a space between any two tokens; Chinese has none.
        return _CHINESE_SPACE.sub("", text) if self.kind == "wordpiece" else text

    def decode_after(self, before: Sequence[int], ids: Iterable[int]) -> str:
        """Return what `ids` add to the text of `before`: the space between two words too, unlike `decode`."""
        last = [i for i in before[-1:] if i not in (self.bos_id, self.eos_id)]
        return self.decode([*last, *ids])[len(self.decode(last)) :]

    def token(self, index: int) -> str:
        """Show one id, which must be in the vocabulary, as tables do."""
        symbol = self._symbol(index)
        if not isinstance(self._inner.decoder, decoders.ByteLevel):
            return symbol
        text = self._text([index])
        return symbol if "\ufffd" in text else text  # a part of a character has no text of its own

    def id(self, token: str) -> int | None:
        """Return the id of a token, None if there is no such token."""
        return self._ids.get(token)

    def _text(self, ids: list[int]) -> str:
        with _report_library_errors("this tokenizer cannot decode the ids"):
            if not self._has_pattern:
                return self._inner.decode(ids, skip_special_tokens=False)
            work = start_aside(lambda: self._inner.decode_batch([ids], skip_special_tokens=False))
            return work(_PATIENCE_S + len(ids) / _CHARS_A_SECOND)[0]

    def _symbol(self, index: int) -> str:
        if index not in self._symbols:
            last = self.vocab_size - 1
            raise InputError(f"id {index} is not in the vocabulary: ids go from 0 to {last}")
        return self._symbols[index]

    def _look_up(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")  # (N,) code points
        ids = self._table[np.minimum(points, len(self._table) - 1)]  # (N,)
        if len(ids) and ids.min() < 0:
            at = int(ids.argmin())
            raise InputError(
                f"unknown character {text[at]!r} (U+{ord(text[at]):04X}) at position {at}: this tokenizer "
                f"knows only the {len(self._ids)} different characters of the text it was made from"
            )
        return ids

    def _check_numbers(self, source: str) -> None:
        """Refuse ids that two tokens share, or so high that a model would need far more rows than tokens."""
        n = len(self._ids)
        if self.vocab_size > 2 * n + 1000 or len(self._symbols) < n:
            raise InputError(f"{source} does not number its tokens: they must have the ids 0, 1, 2, ...")


def _kind(inner: hf.Tokenizer) -> str:
    """Tell the kind of a tokenizer; what `from_symbols` makes is recognised by what it does."""
    kind = type(inner.model).__name__.lower()
    if kind != "wordlevel" or inner.normalizer is not None or inner.pre_tokenizer is None:
        return kind
    single = all(len(symbol) == 1 for symbol in inner.get_vocab())
    return "char" if single and len(inner.pre_tokenizer.pre_tokenize_str("ab \n")) == 4 else kind


@contextmanager
def _report_library_errors(problem: str, texts: Iterable[str] = ()) -> Iterator[None]:
    """Turn what the tokenizers library raises, bare Exceptions and panics of Rust, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # a panic is no Exception
        # Often it is half a character, such as a byte of the command line that could not be decoded.
        for at, c in enumerate("".join(texts)):
            if "\ud800" <= c <= "\udfff":
                problem = f"unknown character {c!r} (U+{ord(c):04X}) at position {at}"
                raise InputError(f"{problem}: it is not Unicode text") from None
        reason = first_line(error)
        if isinstance(error, TimeoutError) or "retry-limit" in reason:
            reason = "a pattern in it tries possibilities without end: take another tokenizer"
        raise InputError(f"{problem} ({reason})") from None


# --- Tokenizers made here ----------------------------------------------------------------------


def is_made(name: str) -> bool:
    """Tell whether a tokenizer of that name is made from texts: char and bpe:N, if N is possible."""
    if name.startswith("bpe:"):
        number, least = name.removeprefix("bpe:"), len(pre_tokenizers.ByteLevel.alphabet()) + 1
        if not (re.fullmatch("[0-9]{1,8}", number) and least <= int(number) <= 1 << 24):
            raise InputError(f"tokenizer={name!r}: N of bpe:N must be a number from {least} up, as bpe:8192")
        return True
    return name == "char"


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """Make char or bpe:N from texts.

    bpe:N is byte-level BPE with at most N ids: <|endoftext|>, the 256 bytes, and the most frequent merges.
    Where a text has no spaces, its runs of letters are cut to learn these, but never when it is encoded.
    """
    if not is_made(name):
        raise ValueError(f"{name} is not made from texts")
    if name == "char":
        symbols: set[str] = set()
        for text in texts:
            symbols.update(text)
        return Tokenizer.from_symbols(sorted(symbols))
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=int(name.removeprefix("bpe:")),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    start_aside(lambda: inner.train_from_iterator(_without_long_runs(texts), trainer))()
    return Tokenizer(inner)


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """Cut the runs of letters, or of anything else, that training would take hours for: each of its merges
    goes through every word that has it."""
    n_cut = 0
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            n_cut += 1
            for at in range(run.start() + _RUN_CHARS, run.end(), _RUN_CHARS):
                yield text[start:at]
                start = at
        yield text[start:]
    if n_cut:
        warnings.warn(
            f"runs of more than {_RUN_CHARS:,} letters without a space ({n_cut:,} of them) were cut to make "
            "the tokenizer, and for that alone: the text is encoded as it is",
            stacklevel=2,
        )


def _byte_level(model: models.BPE) -> hf.Tokenizer:
    inner = hf.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


# --- Tokenizers made by others -----------------------------------------------------------------


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
    lines = [line for line in _read(merges).split("\n") if line and not line.startswith("#version")]
    ids = parse_json(_read(vocabulary), display_path(vocabulary))
    with _report_library_errors(f"{display_path(vocabulary)} and {merges.name} are no tokenizer"):
        pairs = [(first, second) for first, second in (line.split() for line in lines)]
        for first, second in pairs:
            if not ids.keys() >= {first, second, first + second}:  # the library would panic
                raise ValueError(f"'{first} {second}' makes no token")
        return _with_specials(_byte_level(models.BPE(ids, pairs)), ids, display_path(vocabulary))


def _from_word_pieces(path: Path) -> Tokenizer:
    """Read BERT's vocabulary, one token a line; a tokenizer_config.json beside it says how to clean text."""
    tokens = _read(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in ids]:
        raise InputError(f"{display_path(path)} is no BERT vocabulary: it has no line {missing[0]}")
    config, settings = path.with_name("tokenizer_config.json"), {}
    if config.exists():
        settings = parse_json(_read(config), display_path(config))
        if not isinstance(settings, dict):
            raise InputError(f"{display_path(config)} is not a JSON object")
    inner = hf.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    with _report_library_errors(f"{display_path(path)} and {config.name} are no tokenizer"):
        inner.normalizer = normalizers.BertNormalizer(
            lowercase=bool(settings.get("do_lower_case", True)),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        )
        return _with_specials(inner, ids, display_path(path))


def _with_specials(inner: hf.Tokenizer, ids: dict[str, int], source: str) -> Tokenizer:
    inner.add_special_tokens([token for token in SPECIAL if token in ids])
    tokenizer = Tokenizer(inner)
    tokenizer._check_numbers(source)
    return tokenizer


def _read(path: Path) -> str:
    try:
        return read_bytes(path, _MAX_BYTES).decode()
    except OSError as error:
        raise InputError(f"cannot read {display_path(path)} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{display_path(path)} is not UTF-8") from None


# --- Words: their ids, and where they stand ----------------------------------------------------


def needs_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer of a model; refuse a model that came without one."""
    if tokenizer is None:
        raise InputError(
            "this model came without a tokenizer, so words cannot be looked up: a model folder needs its "
            "tokenizer.json, a nanoBackpackLM checkpoint its data/DATASET here"
        )
    return tokenizer


def text_ids(tokenizer: Tokenizer, text: TextOrIds) -> list[int]:
    """Return the ids of a text as it stands; one that is given as ids is checked."""
    if isinstance(text, str):
        return tokenizer.encode(text)
    ids = [int(i) for i in text]
    for i in ids:
        tokenizer.token(i)  # raises for an id that does not exist
    return ids


def bos_ids(tokenizer: Tokenizer, wanted: Bos = True) -> list[int]:
    """Return what prompts begin with: the id that begins a document if it is wanted, or nothing."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if wanted == "auto":
        return [] if bos is None else [bos]
    if not wanted:
        return []
    first = eos if bos is None else bos  # GPT-2 has one token between documents: it ends and begins them
    if first is None:
        raise InputError("bos=True: this tokenizer has no token that begins a document, take bos=False")
    return [first]


def word_ids(tokenizer: Tokenizer, word: TextOrIds) -> list[int]:
    """Return the ids of a word as it stands inside a text.

    That is " word" for tokenizers that join the space to the word, as GPT-2's does and the papers' tests ask
    for. A word that begins with a space or is given as ids is taken as it is.
    """
    if not isinstance(word, str) or tokenizer.kind == "char" or word[:1].isspace():
        ids = text_ids(tokenizer, word)
    else:
        ids = tokenizer.encode(" " + word) if word else []
        while ids and not tokenizer.decode(ids[:1]).strip():  # here the space is a token of its own: drop it
            ids = ids[1:]
    if not ids:
        raise InputError("an empty word has no senses: give at least one character")
    if isinstance(word, str) and unknown_id(tokenizer) in ids:
        raise InputError(f"unknown word {word!r}: this tokenizer has no tokens for all of it")
    return ids


def token_id(tokenizer: Tokenizer, word: TextOrIds | int) -> int:
    """Return the id of a word that must be one token."""
    ids = word_ids(tokenizer, [word] if isinstance(word, int) else word)
    if len(ids) > 1:
        parts = ", ".join(repr(tokenizer.token(i)) for i in ids)
        raise InputError(
            f"{word!r} is {len(ids)} tokens here ({parts}), but one is needed: give a word of one token"
        )
    return ids[0]


def first_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Return the first token of each word, which stands for it where the papers take one token a word.

    A warning names those of several tokens: the first may be a poor piece, such as " di" of " diaries".
    """
    found = []
    for word in words:
        ids = word_ids(tokenizer, word)
        found.append(ids[0])
        if len(ids) > 1:
            first = tokenizer.token(ids[0])
            warnings.warn(f"{word!r} is {len(ids)} tokens: its first, {first!r}, stands for it", stacklevel=2)
    return found


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for what a tokenizer cannot spell, None if it has none."""
    found = (tokenizer.id(name) for name in UNKNOWN)
    return next((i for i in found if i is not None), None)


def find_word(tokenizer: Tokenizer, ids: Sequence[int], word: TextOrIds) -> list[slice]:
    """Find a word among ids: each occurrence as a span of positions, with or without a space."""
    forms = [word_ids(tokenizer, word)]
    if isinstance(word, str) and (bare := tokenizer.encode(word)) not in forms:
        forms.append(bare)
    found = {
        (start, start + len(form))
        for form in forms
        for start in range(len(ids) - len(form) + 1)
        if list(ids[start : start + len(form)]) == form
    }
    return [slice(*span) for span in sorted(found)]
