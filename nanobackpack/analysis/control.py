"""Steer a model and leave it as it is: make edits, put them in force, keep them in a file, bake them in.

    model(ids, edits=...)   model.generate(ids, 100, edits=...)   with applied(model, edits): ...

take one edit (edits.py has the kinds) or any sequence of them. What they do is the same with and without a
cache, and to the last bit nothing where they ask for nothing (factor 1, strength 0, an empty table).

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

from nanobackpack.errors import InputError, short_repr
from nanobackpack.model.backpack import GPT, BackpackLM, LanguageModel
from nanobackpack.model.edits import (
    KINDS,
    AmplifyInWord,
    Edit,
    EditLike,
    GPTNullspace,
    ReplaceSenses,
    ScaleSense,
    TopicControl,
    flatten_edits,
)
from nanobackpack.safe.files import display_path, parse_json, replacing
from nanobackpack.text.tokenizer import MARKS

__all__ = [
    "AmplifyInWord",
    "GPTNullspace",
    "ReplaceSenses",
    "ScaleSense",
    "TopicControl",
    "applied",
    "bake",
    "copy_senses",
    "knowledge_edit",
    "load",
    "nullspace",
    "save",
    "sense_peaks",
    "topic",
    "topic_scores",
]

# --- In force -----------------------------------------------------------------------------------


@contextmanager
def applied(model: LanguageModel, edits: EditLike) -> Iterator[None]:
    """Everything done with the model inside is done under the edits, after those already in force; the
    model is as before afterwards, however the block ends. A generation keeps the edits it started under.

    Raises: InputError if one does not fit the model.
    """
    edits = flatten_edits(edits)
    model.edits_in_force(edits)
    before = model.edits
    model.edits = (*before, *edits)
    try:
        yield
    finally:
        model.edits = before


@torch.no_grad()
def bake(model: LanguageModel, edits: EditLike = ()) -> BackpackLM:
    """A model of its own that does what `model` does under the edits, with its senses as a plain table.

    It runs no sense network; `checkpoint.save_model` and `load_model` keep it, V·K·D numbers large.
    Raises: InputError for a GPT, and for edits that depend on the text, which no table can hold.
    """
    edits = flatten_edits(edits)
    active = model.edits_in_force(edits)
    if not isinstance(model, BackpackLM):
        raise InputError("a GPT has no senses to bake into a table")
    if active.on_weights:
        names = ", ".join(type(edit).__name__ for edit in active.on_weights)
        raise InputError(
            f"{names} depends on the text and cannot be baked into a table: save it as an edit file"
        )
    with applied(model, edits):
        table = model.sense_vectors()  # (V, K, D)
    baked = BackpackLM(dataclasses.replace(model.config, sense_table=True)).to(table.device)
    state = {name: t for name, t in model.state_dict().items() if not name.startswith("senses.")}
    baked.load_state_dict(state | {"senses.table": table})
    baked.tokenizer = model.tokenizer
    return baked.train(model.training)


# --- In a file ----------------------------------------------------------------------------------

FORMAT = "nanobackpack edits 1"


def save(edits: EditLike, path: str | Path, model: LanguageModel | None = None) -> None:
    """Write edits as one safetensors file: their tensors, and the rest as JSON in its metadata:
    {"format": ..., "edits": [{"kind": "ScaleSense", "tokens": [4], "factor": 0.0, "sense": 2}, ...]},
    where "tensor" stands for the tensor called NUMBER.FIELD. With the model they are for, the file also
    tells its tokenizer, since token 4 of another is another token."""
    records: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for i, edit in enumerate(flatten_edits(edits)):
        fields = {f.name: getattr(edit, f.name) for f in dataclasses.fields(edit)}
        for name, value in fields.items():
            if isinstance(value, Tensor):
                tensors[f"{i}.{name}"], fields[name] = value.cpu().clone().contiguous(), "tensor"
        records.append({"kind": type(edit).__name__, **fields})
    of = _tokenizer_of(model)
    metadata = {"edits": json.dumps({"format": FORMAT, "edits": records} | ({"tokenizer": of} if of else {}))}
    with replacing(Path(path)) as file:
        file.write(to_safetensors(tensors, metadata))


def load(path: str | Path, model: LanguageModel | None = None) -> tuple[Edit, ...]:
    """The edits of a file, checked against `model` if it is given. Nothing in the file is executed.

    Raises: InputError with one line for a missing or damaged file, and for what is not an edit or unfit.
    """
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
        edits = tuple(_parse(i, record, tensors) for i, record in enumerate(records))
        if tensors:
            raise InputError(f"tensor {short_repr(next(iter(tensors)))} belongs to no edit")
        if model is not None:
            model.edits_in_force(edits)
            theirs, ours = content.get("tokenizer"), _tokenizer_of(model)
            if theirs and ours and theirs != ours:
                raise InputError("it is for a model with another tokenizer, whose ids mean other tokens")
    except (SafetensorError, OSError, ValueError) as e:
        raise InputError(f"{display_path(path)} cannot be used as a file of edits: {e}") from e
    return edits


def _tokenizer_of(model: LanguageModel | None) -> str | None:
    """Checksum of a model's tokenizer, None if it has none."""
    if model is None or model.tokenizer is None:
        return None
    return hashlib.sha256(model.tokenizer.to_json().encode()).hexdigest()


def _parse(i: int, record: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    """Edit number i as `save` wrote it; takes its tensors out of `tensors`."""
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


# --- Making them --------------------------------------------------------------------------------


@torch.no_grad()
def knowledge_edit(model: BackpackLM, token: int, remove: int, add: int) -> ReplaceSenses:
    """What the senses of a token say for `remove`, they say for `add` (paper, section 6.3):

    C'_l = C_l - c_l E_r + c_l (|E_r|² / |E_t|²) E_t  with  c_l = C_l · E_r / |E_r|²

    Raises: InputError for a GPT, and for ids outside the vocabulary.
    """
    _check(model, token, remove, add)
    r, t = model.wte.weight[remove].float(), model.wte.weight[add].float()  # (D)
    (senses,) = model.sense_vectors([token]).float()  # (K, D)
    share = (senses @ r / (r @ r))[:, None]  # (K, 1)
    senses = senses - share * r + share * ((r @ r) / (t @ t)) * t
    return ReplaceSenses((token,), senses[None].cpu())


def copy_senses(model: BackpackLM, token: int, source: int, which: Sequence[int]) -> ReplaceSenses:
    """Some senses of a token replaced by those of another token.

    Raises: InputError for a GPT, and for ids or senses that are not there.
    """
    _check(model, token, source)
    K = model.config.n_sense_vector
    if not all(0 <= sense < K for sense in which):
        raise InputError(f"which={list(which)}: this model has senses 0 to {K - 1}")
    own, other = model.sense_vectors([token, source]).float()  # (K, D)
    chosen = torch.zeros(len(own), 1, dtype=torch.bool, device=own.device)
    chosen[list(which)] = True
    return ReplaceSenses((token,), torch.where(chosen, other, own)[None].cpu())


def nullspace(
    model: GPT, tokens: Sequence[int], first: int, second: int, factor: float = 0.0
) -> GPTNullspace:
    """What tells two tokens apart, E_first - E_second, taken out of the input embeddings of others.

    Raises: InputError for ids outside the vocabulary.
    """
    _check(model, *tokens, first, second, kind="gpt2")
    E = model.wte.weight.detach().float().cpu()  # (V, D)
    return GPTNullspace(tuple(tokens), factor, E[first] - E[second])


def _check(model: LanguageModel, *ids: int, kind: str = "backpack-lm") -> None:
    """Raises: InputError for a model of the other kind, and for ids outside its vocabulary."""
    if model.config.model_name != kind:
        raise InputError(
            "a GPT has no senses to edit: open a Backpack"
            if kind == "backpack-lm"
            else "a Backpack is edited in its senses, the null space is for GPTs: open a GPT"
        )
    if bad := [i for i in ids if not 0 <= i < model.config.vocab_size]:
        raise InputError(f"token {bad[0]} is outside the vocabulary: 0 to {model.config.vocab_size - 1}")


# --- Topics -------------------------------------------------------------------------------------

# The factors of senses whose score is above the quantile .95, .80, .60, and below (paper, Table 11).
STRENGTHS = ((1.0, 1.0, 1.0, 1.0), (1.5, 1.5, 1.3, 1.0), (2.2, 2.2, 1.5, 1.0), (3.3, 3.3, 3.0, 1.0))
QUANTILES = (0.95, 0.80, 0.60)


@torch.no_grad()
def sense_peaks(model: BackpackLM, absolute: bool = False) -> Tensor:
    """max_v E_v · C(x)_l for all x and l, (V, K): minutes for a large vocabulary; all topics share it."""
    E = model.wte.weight.float()  # (V, D)
    ids = torch.arange(len(E), device=E.device)
    chunks = ids.split(max(1, (1 << 25) // (len(E) * model.config.n_sense_vector)))
    peaks = []
    for chunk in tqdm(chunks, "scores of senses", disable=None if len(chunks) > 20 else True, leave=False):
        logits = model.sense_vectors(chunk).float() @ E.T  # (N, K, V)
        peaks.append((logits.abs() if absolute else logits).amax(dim=2))  # (N, K)
    return torch.cat(peaks)  # (V, K)


@torch.no_grad()
def topic_scores(
    model: BackpackLM, bag: Sequence[int], *, absolute: bool = False, peaks: Tensor | None = None
) -> Tensor:
    """How much each sense speaks for a bag of tokens: Σ_bag E_v · C(x)_l / max_v E_v · C(x)_l, (V, K).

    Paper, eq. 17; `absolute` takes the largest absolute value, as its footnote 5 says. 0 for padding and for
    tokens that only mark a text's ends.
    Raises: InputError for a GPT, an empty bag, or ids outside the vocabulary.
    """
    _check(model, *bag)
    if not bag:
        raise InputError("the bag is empty: give one token or more")
    peaks = sense_peaks(model, absolute) if peaks is None else peaks
    toward = model.wte.weight[sorted(set(bag))].float().sum(dim=0)  # (D)
    scores = model.sense_vectors().float() @ toward / peaks  # (V, K)
    scores = scores.masked_fill(peaks == 0, 0)  # a sense that was removed says nothing
    scores[model.config.n_token :] = 0
    if model.tokenizer is not None:
        scores[[i for mark in MARKS if (i := model.tokenizer.id(mark)) is not None]] = 0
    return scores


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
    """Control towards the topic that a bag of tokens names, with a strength from 0 to 3, or deltas of your
    own for the four bins. f is max(delta) / f_scale in the code behind the paper's tables, and the
    inverse in its text (f_mode). `peaks`, if known, are `sense_peaks` of the model.

    Raises: InputError for a GPT, and for a strength, deltas, f_mode or bag out of range.
    """
    if f_mode not in ("code", "paper"):
        raise InputError(f"f_mode={f_mode!r} is out of range: it must be code or paper")
    if deltas is None:
        if strength not in range(len(STRENGTHS)):
            raise InputError(
                f"strength={strength} is out of range: it must be from 0 to {len(STRENGTHS) - 1}"
            )
        deltas = STRENGTHS[strength]
    if len(deltas) != len(QUANTILES) + 1 or max(deltas) <= 0:
        n = len(QUANTILES) + 1
        raise InputError(
            f"deltas={tuple(deltas)}: give {n}, of the highest scores first, one above 0 at least"
        )
    scores = topic_scores(model, bag, absolute=absolute, peaks=peaks).cpu()  # (V, K)
    edges = scores.flatten().quantile(scores.new_tensor(QUANTILES))  # (3)
    above = (scores[..., None] >= edges).sum(dim=2)  # (V, K): how many quantiles the score reaches
    delta = scores.new_tensor(deltas).flip(0)[above]  # (V, K)
    return TopicControl(delta, max(deltas) / f_scale if f_mode == "code" else f_scale / max(deltas))
