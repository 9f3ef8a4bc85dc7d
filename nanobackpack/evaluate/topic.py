"""Topic control: texts from nothing under control.topic, and how much of the topic is in them (paper,
section 6.1 and D.1, Tables 10 and 12).

    bag      share of the generated tokens that are first tokens of the topic's words, and of the generated
             words that are such a word; of Chinese, written without spaces, each character counts as one
    success  share of texts to which a classifier gives the topic a probability above 1/2
    MAUVE    how near the texts of all topics are to real ones (Pillutla et al. 2021)

Letters: N texts, T their tokens, V vocabulary, K senses.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nanobackpack.analysis import control
from nanobackpack.analysis.results import Result, aligned
from nanobackpack.errors import InputError
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.model.backpack import BackpackLM, LanguageModel
from nanobackpack.model.edits import Edit
from nanobackpack.runtime import seed_of
from nanobackpack.text.tokenizer import Tokenizer, first_ids, needs_tokenizer


def bags(topic: str, words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Words by topic: of one of the paper's, of all of them ("all"), of "sentiment", or the words given.

    Raises: InputError for another topic.
    """
    topics = control_sets()["topics"]
    if topic == "sentiment":
        return {topic: control_sets()["sentiment"]["bag"]}
    if words:
        return {" ".join(words): list(words)}
    if topic == "all":
        return topics
    if topic not in topics:
        raise InputError(
            f"topic={topic!r} is unknown: take all, sentiment, {', '.join(topics)}, or name words with --bag"
        )
    return {topic: topics[topic]}


def _push(topic: str, strength: int) -> dict[str, Any]:
    """The arguments of control.topic that make a strength; "sentiment" has two, and deltas of its own."""
    if topic != "sentiment":
        return {"strength": strength}
    own = control_sets()["sentiment"]
    if strength not in range(len(own["deltas"])):
        raise InputError(
            f"strength={strength} is out of range: of sentiment it is 0 to {len(own['deltas']) - 1}"
        )
    return {"deltas": own["deltas"][strength], "f_scale": own["f_scale"]}


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """What a text from nothing begins with: the token that begins or ends documents, else a new line."""
    ids = tokenizer.prompt_ids("") or tokenizer.encode("\n")
    if not ids:
        raise InputError("this tokenizer has no token to begin a text with, not even a new line")
    return ids


@dataclass(frozen=True, kw_only=True)
class Topic(Result):
    """Texts under control, and what was measured of them, in percent."""

    words: list[str]
    texts: list[str]
    bag_tokens: float
    bag_words: float
    success: float | None
    """None without a classifier."""


@dataclass(frozen=True, kw_only=True)
class Topics(Result):
    """Texts on several topics; MAUVE of all of them, None if it was not measured."""

    topics: list[Topic]
    mauve: float | None = None

    def table(self) -> str:
        rows = {t.title: [t.bag_tokens, t.bag_words, t.success] for t in self.topics}
        if len(rows) > 1:
            columns = zip(*rows.values(), strict=True)
            rows["mean"] = [None if None in c else sum(c) / len(c) for c in columns]
        cells = [["", "bag tokens", "bag words", "success"]]
        cells += [[name, *("" if v is None else f"{v:.2f} %" for v in row)] for name, row in rows.items()]
        return f"# {self.title}\n{aligned(cells)}"


def controlled(
    model: LanguageModel,
    topics: dict[str, list[str]],
    strength: int,
    n: int,
    length: int = 100,
    seed: int = 0,
    classifier: str = "",
    batch_size: int = 32,
) -> Iterator[tuple[Topic, Edit]]:
    """For each topic n texts of `length` tokens, the start included, drawn from the model's own
    distribution under control of that strength; and the edit that controls. `classifier` is a folder.
    Each text has a seed of its own, so that `batch_size`, the texts drawn at a time, changes none.

    Raises: InputError for a GPT, without a tokenizer, for unknown words, n or length out of range.
    """
    if not isinstance(model, BackpackLM):
        raise InputError("topic control works on senses, and this model is a GPT: open a Backpack")
    tokenizer = needs_tokenizer(model.tokenizer)
    tokens = {topic: first_ids(tokenizer, words) for topic, words in topics.items()}
    start = torch.tensor([start_ids(tokenizer)], device=model.wte.weight.device)  # (1, 1)
    if n < 1 or length < 2:
        raise InputError(f"num_samples={n} must be 1 or more, length={length} 2 or more")
    pushes = {topic: _push(topic, strength) for topic in topics}
    judge = Classifier(classifier, topics) if classifier else None
    peaks = control.sense_peaks(model) if strength else None
    for topic, words in topics.items():
        edit = control.topic(model, tokens[topic], peaks=peaks, **pushes[topic])
        draws = [torch.Generator(start.device).manual_seed(seed_of(seed, i)) for i in range(n)]
        rows = []
        for i in tqdm(range(0, n, batch_size), topic, unit="batch", disable=None, leave=False):
            some = draws[i : i + batch_size]
            begin = start.expand(len(some), -1)  # (B, 1)
            rows.append(model.generate(begin, length - 1, generator=some, edits=edit)[:, 1:])
        ids = torch.cat(rows)  # (N, T - 1)
        texts = [tokenizer.decode(row) for row in ids.tolist()]
        bag = torch.isin(ids, ids.new_tensor(tokens[topic])).double().mean().item()
        result = Topic(
            title=topic,
            words=words,
            texts=texts,
            bag_tokens=100 * bag,
            bag_words=100 * _word_share(texts, words),
            success=None if judge is None else 100 * judge.success(texts, topic),
        )
        yield result, edit


def _word_share(texts: Sequence[str], words: Sequence[str]) -> float:
    found = [_units(text) for text in texts]
    wanted = {"".join(units): len(units) for word in words if (units := _units(word))}
    hits = sum("".join(text).count(word) * n for text in found for word, n in wanted.items())
    total = sum(map(len, found))
    return hits / total if total else 0.0


def _units(text: str) -> list[str]:
    """The words and single ideographs of a text, each between marks."""
    return [f"\0{unit}\1" for unit in re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())]


class Classifier:
    """A topic classifier such as cardiffnlp/tweet-topic-21-multi, from a local folder: labels such as
    film_tv_&_video, one sigmoid each.

    Raises: InputError without transformers or such a folder, or if it does not know one of the topics.
    """

    def __init__(self, folder: str, topics: Iterable[str] = ()) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"classifier={folder!r} is no folder with a classifier: it needs a config.json")
        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError:
            raise InputError("a classifier needs transformers: pip install transformers") from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as e:
            raise InputError(f"classifier={folder!r} cannot be read: {e}") from e
        labels = self._model.config.id2label
        self._labels = {re.sub(r"[^a-z]+", "_", label.lower()): int(i) for i, label in labels.items()}
        if unknown := [topic for topic in topics if topic not in self._labels]:
            raise InputError(
                f"the classifier has no topic {unknown[0]!r}: its own are {', '.join(self._labels)}"
            )

    def success(self, texts: Sequence[str], topic: str) -> float:
        """The share of texts whose probability of the topic is above 1/2, from 0 to 1."""
        hits = 0
        for i in range(0, len(texts), 32):
            batch = self._tokenizer(
                list(texts[i : i + 32]), padding=True, truncation=True, return_tensors="pt"
            )
            with torch.no_grad():
                hits += int((self._model(**batch).logits[:, self._labels[topic]] > 0).sum())
        return hits / len(texts)


def mauve_ready(features: str) -> bool:
    """Whether MAUVE can be measured with that model: asked before any text is drawn. Without the package
    mauve-text it cannot, and a warning says so.

    Raises: InputError for a model that mauve-text does not take or transformers does not find.
    """
    if importlib.util.find_spec("mauve") is None:
        warnings.warn("MAUVE is not measured: pip install 'nanobackpack[mauve]'", stacklevel=2)
        return False
    from transformers import AutoConfig

    if "gpt2" not in features and "bert" not in features:  # mauve-text goes by the name
        raise InputError(
            f"features={features!r} is nothing mauve-text takes: it wants gpt2 or bert in the name"
        )
    try:
        AutoConfig.from_pretrained(features, trust_remote_code=False)
    except (OSError, ValueError) as e:
        raise InputError(f"features={features!r} cannot be read: {str(e).splitlines()[0]}") from e
    return True


def mauve_score(topics: Sequence[Topic], reference: Sequence[str], features: str) -> float:
    """MAUVE of all texts against real ones, in the last hidden states of a GPT-2, by its name or its folder;
    the larger side is cut to the size of the smaller one. `mauve_ready` must hold.

    Let it be the last thing a process does: the k-means of mauve-text (faiss) has been seen to make later
    operators of torch crash.
    """
    import mauve

    texts = [text for topic in topics for text in topic.texts]
    n = min(len(texts), len(reference))
    order = torch.randperm(
        max(len(texts), len(reference)), generator=torch.Generator().manual_seed(0)
    ).tolist()
    p, q = ([side[i] for i in order if i < len(side)][:n] for side in (texts, reference))
    out = mauve.compute_mauve(
        p_text=p, q_text=q, featurize_model_name=features, max_text_length=256, verbose=False
    )
    return float(out.mauve)
