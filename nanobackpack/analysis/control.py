"""Steer a model: make edits, put them in force, keep them in a file, or bake them into a new model.

Steering leaves the weights as they are. An edit (model/edits.py has the kinds) is handed to one call, or put
in force for a while and then taken away:

    >>> edit = nb.control.ScaleSense(tokens=(464,), factor=0.0, sense=10)     # token 464 loses its sense 10
    >>> edit = nb.control.scale(model, "nurse", 0.0, sense=10)                # a word, of several tokens too
    >>> model.generate(ids, 100, edits=edit)
    >>> with nb.control.applied(model, edit):                                 # analysis and evaluation too
    ...     nb.Senses(model).next_tokens("The")
    >>> nb.control.save(edit, "calm.safetensors", model)                      # for sample --edits=FILE
    >>> nb.control.load("calm.safetensors", model)
    (ScaleSense(tokens=(464,), factor=0.0, sense=10),)

Baking makes a new model that behaves so for good: the edited senses of all tokens become one plain table, in
place of the network that computes them. It needs no edit file and cannot be undone. Only edits of the senses
can be baked: one that looks at the text, such as towards a topic, fits in no table.

Wherever edits are taken, one edit or any sequence of them will do. With and without a cache they do the same;
an edit that asks for nothing (factor 1, strength 0, an empty table) changes nothing, to the last bit.
Letters: T positions, D width, K senses, V vocabulary, N tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from tqdm import tqdm

from nanobackpack.errors import InputError, short_repr, whole_numbers
from nanobackpack.model.backpack import GPT, BackpackLM, LanguageModel, check_model
from nanobackpack.model.edits import (
    BLOCKS,
    KINDS,
    AmplifyInWord,
    Edit,
    EditLike,
    GPTNullspace,
    ReplaceSenses,
    ScaleSense,
    ScaleWord,
    ShiftSenses,
    TopicControl,
    flatten_edits,
)
from nanobackpack.safe.files import display_path, parse_json, writing
from nanobackpack.text.tokenizer import MARKS, TextOrIds
from nanobackpack.text.words import needs_tokenizer

__all__ = ["AmplifyInWord", "GPTNullspace", "ReplaceSenses", "ScaleSense", "ScaleWord", "ShiftSenses",
           "TopicControl", "applied", "bake", "copy_senses", "knowledge_edit", "load", "nullspace", "save",
           "scale", "sense_peaks", "topic", "topic_scores"]  # fmt: skip

# --- Steering and baking ------------------------------------------------------------------------


@contextmanager
def applied(model: LanguageModel, edits: EditLike) -> Iterator[None]:
    """Put edits in force inside a `with`, after those already in force, however the block ends.

    They hold in this thread, or async task and those it starts, and nowhere else. A generation keeps the
    edits it started under.
    """
    check_model(model)
    edits = flatten_edits(edits)
    model.edits_in_force(edits)  # refuses those that do not fit
    block = object()
    model.blocks[block] = edits
    BLOCKS.set(BLOCKS.get() | {block})
    try:
        yield
    finally:
        # Not back to what BLOCKS was: blocks may end in another order, or in another thread, than they began.
        del model.blocks[block]
        BLOCKS.set(BLOCKS.get() - {block})


@torch.no_grad()
def bake(model: LanguageModel, edits: EditLike = ()) -> BackpackLM:
    """Make a new model that does what `model` does under the edits, with its senses as a table (V, K, D).

    It runs no sense network; `save_model` and `load_model` keep it, V·K·D numbers large.
    """
    check_model(model)
    edits = flatten_edits(edits)
    active = model.edits_in_force(edits)
    if not isinstance(model, BackpackLM):
        raise InputError("a GPT has no senses to bake into a table")
    if active.on_alpha:
        names = ", ".join(type(edit).__name__ for edit in active.on_alpha)
        raise InputError(
            f"{names} depends on the text and cannot be baked into a table: save it as an edit file (or bake "
            "what control.scale makes of a word with everywhere=True)"
        )
    with applied(model, edits):
        table = model.sense_vectors()  # (V, K, D)
    # The same model but for the table, which takes the place of all weights of the sense network.
    baked = BackpackLM(dataclasses.replace(model.config, sense_table=True)).to(table.device)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("senses.")}
    baked.load_state_dict(state | {"senses.table": table})
    baked.tokenizer, baked.token_counts = model.tokenizer, model.token_counts
    return baked.train(model.training)


# --- Making edits -------------------------------------------------------------------------------


def scale(
    model: LanguageModel,
    word: TextOrIds | None,
    factor: float | tuple[float, ...],
    sense: int | None = None,
    *,
    everywhere: bool = False,
) -> list[Edit]:
    """Multiply one sense of a word, or all, by a factor: 0 removes, 1 changes nothing. Without a word (None)
    that of every token.

    A word of several tokens is edited where all of it stands, inside a longer word too, such as "the" in
    "other" where tokens are characters. With `everywhere` each of its tokens is, wherever it stands.
    """
    if word is None:
        return [ScaleSense("all", factor, sense)]
    tokenizer = needs_tokenizer(model.tokenizer)
    ids = tuple(tokenizer.word_ids(word))
    if everywhere or len(ids) == 1:
        return [ScaleSense(ids, factor, sense)]
    # As it stands inside a text, and if that is different as a text begins with it.
    forms = [ids, tuple(tokenizer.encode(word))] if isinstance(word, str) else [ids]
    return [ScaleWord(form, factor, sense) for form in dict.fromkeys(forms)]


@torch.no_grad()
def knowledge_edit(model: BackpackLM, token: int, remove: int, add: int) -> ReplaceSenses:
    """Make the senses of a token promote `add` as much as they promoted `remove` (paper, section 6.3):

    C'_l = C_l - c_l E_r + c_l (|E_r|² / |E_t|²) E_t  with  c_l = C_l · E_r / |E_r|²
    """
    token, remove, add = _check(model, token, remove, add)
    r, t = model.wte.weight[remove].float(), model.wte.weight[add].float()  # (D)
    (senses,) = model.sense_vectors([token]).float()  # (K, D)
    share = (senses @ r / (r @ r))[:, None]  # (K, 1)
    senses = senses - share * r + share * ((r @ r) / (t @ t)) * t
    return ReplaceSenses((token,), senses[None].cpu())


def copy_senses(model: BackpackLM, token: int, source: int, which: Sequence[int]) -> ReplaceSenses:
    """Replace some senses of a token by those of another token."""
    token, source = _check(model, token, source)
    K = model.config.n_sense_vector
    if not all(0 <= sense < K for sense in which):
        raise InputError(f"which={list(which)}: this model has senses 0 to {K - 1}")
    senses, others = model.sense_vectors([token, source]).float().clone()  # (K, D) each
    senses[list(which)] = others[list(which)]
    return ReplaceSenses((token,), senses[None].cpu())


def nullspace(
    model: GPT, tokens: Sequence[int], first: int, second: int, factor: float = 0.0
) -> GPTNullspace:
    """Take what tells two tokens apart, E_first - E_second, out of the embeddings a GPT reads of `tokens`."""
    *ids, first, second = _check(model, *tokens, first, second, kind="gpt2")
    E = model.wte.weight.detach().float().cpu()  # (V, D)
    return GPTNullspace(tuple(ids), factor, E[first] - E[second])


def _check(model: LanguageModel, *ids: int, kind: str = "backpack-lm") -> list[int]:
    """Refuse a model of the other kind, and ids outside its vocabulary; return the ids."""
    check_model(model)
    if model.config.model_name != kind:
        raise InputError(
            "a GPT has no senses to edit: open a Backpack"
            if kind == "backpack-lm"
            else "a Backpack is edited in its senses, the null space is for GPTs: open a GPT"
        )
    numbers = whole_numbers("tokens", "numbers", ids)
    if bad := [i for i in numbers if not 0 <= i < model.config.vocab_size]:
        raise InputError(f"token {bad[0]} is outside the vocabulary: 0 to {model.config.vocab_size - 1}")
    return numbers


# --- Topics -------------------------------------------------------------------------------------

# The factors of senses whose score is above the quantile .95, .80, .60, and below (paper, Table 11).
STRENGTHS = ((1.0, 1.0, 1.0, 1.0), (1.5, 1.5, 1.3, 1.0), (2.2, 2.2, 1.5, 1.0), (3.3, 3.3, 3.0, 1.0))
QUANTILES = (0.95, 0.80, 0.60)


def topic(
    model: BackpackLM,
    bag: Sequence[int],
    strength: int = 2,
    *,
    deltas: Sequence[float] | None = None,
    f_mode: Literal["code", "paper"] = "code",
    f_scale: float = 7.5,
    absolute: bool = False,
    peaks: Tensor | None = None,
) -> TopicControl:
    """Steer towards the topic that a bag of tokens names, with a strength from 0 to 3.

    `deltas` are factors of your own for the four bins of senses, in place of a strength. f is max(delta) /
    f_scale in the code behind the paper's tables, and the inverse in its text (f_mode). `peaks`, if known,
    are `sense_peaks` of the model.
    """
    if f_mode not in ("code", "paper"):
        raise InputError(f"f_mode={f_mode!r} must be code or paper")
    if deltas is None and strength not in range(len(STRENGTHS)):
        raise InputError(f"strength={strength} is out of range: it must be from 0 to {len(STRENGTHS) - 1}")
    if not f_scale > 0:
        raise InputError(f"f_scale={f_scale} is out of range: it must be above 0")
    deltas = tuple(STRENGTHS[strength] if deltas is None else deltas)
    if len(deltas) != (bins := len(QUANTILES) + 1) or max(deltas) <= 0:
        raise InputError(f"deltas={deltas}: give {bins}, of the highest scores first, one above 0 at least")
    # Sort all senses of all tokens into four bins by their score, and give each bin its factor.
    scores = topic_scores(model, bag, absolute=absolute, peaks=peaks).cpu()  # (V, K)
    edges = scores.flatten().quantile(scores.new_tensor(QUANTILES))  # (3)
    above = (scores[..., None] >= edges).sum(dim=2)  # (V, K): how many quantiles the score reaches
    delta = scores.new_tensor(deltas).flip(0)[above]  # (V, K)
    return TopicControl(delta, max(deltas) / f_scale if f_mode == "code" else f_scale / max(deltas))


@torch.no_grad()
def topic_scores(
    model: BackpackLM, bag: Sequence[int], *, absolute: bool = False, peaks: Tensor | None = None
) -> Tensor:
    """Score how much each sense promotes a bag of tokens: Σ_bag E_v · C(x)_l / max_v E_v · C(x)_l, (V, K).

    Paper, eq. 17; `absolute` takes the largest absolute value, as its footnote 5 says.
    """
    bag = _check(model, *bag)
    if not bag:
        raise InputError("the bag is empty: give one token or more")
    peaks = sense_peaks(model, absolute) if peaks is None else peaks
    toward = model.wte.weight[sorted(set(bag))].float().sum(dim=0)  # (D)
    scores = model.sense_vectors().float() @ toward / peaks  # (V, K)
    # A sense that was removed (0 / 0), padding, and tokens that only mark a text's ends promote nothing.
    scores = scores.masked_fill(peaks == 0, 0)
    scores[model.config.n_token :] = 0
    if model.tokenizer is not None:
        scores[[i for mark in MARKS if (i := model.tokenizer.id(mark)) is not None]] = 0
    return scores


@torch.no_grad()
def sense_peaks(model: BackpackLM, absolute: bool = False) -> Tensor:
    """Compute max_v E_v · C(x)_l, (V, K): minutes for a large vocabulary, but the same for all topics."""
    E = model.wte.weight.float()  # (V, D)
    ids = torch.arange(len(E), device=E.device)
    chunks = ids.split(max(1, (1 << 25) // (len(E) * model.config.n_sense_vector)))  # 128 MB of scores each
    peaks = []
    for chunk in tqdm(chunks, "scores of senses", disable=None if len(chunks) > 20 else True, leave=False):
        logits = model.sense_vectors(chunk).float() @ E.T  # (N, K, V)
        peaks.append((logits.abs() if absolute else logits).amax(dim=2))  # (N, K)
    return torch.cat(peaks)  # (V, K)


# --- Edit files ---------------------------------------------------------------------------------

FORMAT = "nanobackpack edits 1"


def save(edits: EditLike, path: str | Path, model: LanguageModel | None = None) -> None:
    """Write edits as one safetensors file: their tensors, and all else as JSON in its metadata,

    {"format": ..., "edits": [{"kind": "ScaleSense", "tokens": [4], "factor": 0.0, "sense": 2}, ...]}

    where "tensor" stands for the tensor NUMBER.FIELD. With the model they are for, the file also has a
    checksum of its tokenizer, since token 4 of another is another token.
    """
    records: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, edit in enumerate(flatten_edits(edits)):
        fields = {f.name: getattr(edit, f.name) for f in dataclasses.fields(edit)}
        for name, value in fields.items():
            if isinstance(value, Tensor):
                # A copy: safetensors refuses tensors that share memory.
                tensors[f"{i}.{name}"], fields[name] = value.cpu().clone().contiguous(), "tensor"
        records.append({"kind": type(edit).__name__, **fields})
    content = {"format": FORMAT, "edits": records}
    if checksum := _tokenizer_checksum(model):
        content["tokenizer"] = checksum
    with writing(path) as file:
        file.write(to_safetensors(tensors, {"edits": json.dumps(content)}))


def load(path: str | Path, model: LanguageModel | None = None) -> tuple[Edit, ...]:
    """Read an edit file, and check that it fits `model` if that is given. Nothing in the file is executed."""
    if not Path(path).is_file():
        raise InputError(f"no file of edits {display_path(path)}: nanobackpack.control.save writes one")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = (file.metadata() or {}).get("edits", "")
        content = parse_json(text, "its metadata")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"its format is not {FORMAT!r}")
        records = content.get("edits")
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise InputError("its edits are not a list of objects")
        edits = tuple(_read_edit(i, record, tensors) for i, record in enumerate(records))
        if tensors:  # each edit takes its own out
            raise InputError(f"tensor {short_repr(next(iter(tensors)))} belongs to no edit")
        if model is not None:
            model.edits_in_force(edits)
            theirs, ours = content.get("tokenizer"), _tokenizer_checksum(model)
            if theirs and ours and theirs != ours:
                raise InputError("it is for a model with another tokenizer, whose ids mean other tokens")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{display_path(path)} cannot be used as a file of edits: {error}") from error
    return edits


def _read_edit(i: int, record: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """Make edit number i from what `save` wrote of it, taking its tensors out of `tensors`."""
    kind = next((k for k in KINDS if k.__name__ == record.get("kind")), None)
    if kind is None:
        raise InputError(f"edit {i} is of the unknown kind {short_repr(record.get('kind'))}")
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items() if name != "kind"}
    # Files of earlier commits say whether an AmplifyInWord acts on the last row alone: it never did.
    if kind is AmplifyInWord and fields.pop("last_row", False) is not False:
        raise InputError(f"edit {i} is for the last row alone (last_row): make it again with AmplifyInWord")
    if fields.keys() != (known := {f.name for f in dataclasses.fields(kind)}):
        got = short_repr(sorted(fields))
        raise InputError(f"edit {i} has fields {got}, but a {kind.__name__} has {sorted(known)}")
    for name, value in fields.items():
        if value == "tensor":
            fields[name] = tensors.pop(f"{i}.{name}", None)
    return kind(**fields)


def _tokenizer_checksum(model: LanguageModel | None) -> str:
    tokenizer = model.tokenizer if model else None
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest() if tokenizer else ""
