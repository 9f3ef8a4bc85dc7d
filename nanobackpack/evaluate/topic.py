"""Write texts on a topic: senses that predict its words count more, until the text itself predicts them.

    nanobackpack topic --topic sports --strength 2 --num_samples 20
    nanobackpack topic --bag king crown --strength 3 --save crown.safetensors
    nanobackpack topic --topic all --num_samples=500 --evaluate --classifier=FOLDER

A text begins as documents do and is drawn from the model's own distribution (Backpack paper, section 6.1 and
D.1, Tables 10 and 12). Of each of a topic's words the first token counts. `--save` keeps the edit for
`nanobackpack sample --edits=FILE`. The table has, in percent:

    bag      share of the generated tokens that are first tokens of the topic's words, and of the generated
             words that are such a word; of Chinese, written without spaces, each character counts as one.
             As the paper counts (--bag_rule=paper), "Film" is not "film", and punctuation marks and what
             begins a text are words too; --bag_rule=plain reads about 1.2 times higher
    success  share of texts to which a classifier gives the topic a probability above 1/2
    MAUVE    how near the texts of all topics are to real ones (Pillutla et al. 2021)

The controls have texts drawn with the same random numbers at strength 0, and what control does to untrained
models. What it costs is measured on held-out text with words of the topic, and without (evaluate/cost.py).

Letters: B texts drawn together, N texts, T their tokens.
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanobackpack.analysis import results
from nanobackpack.config import AnalysisConfig, at_least
from nanobackpack.errors import InputError, first_line
from nanobackpack.evaluate import controls
from nanobackpack.evaluate.controls import Figure, mean_of
from nanobackpack.evaluate.cost import Cost, CostConfig, cost, held_out
from nanobackpack.evaluate.scoring import control_sets
from nanobackpack.safe.files import read_text
from nanobackpack.text.words import first_ids, needs_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from nanobackpack.model.backpack import LanguageModel
    from nanobackpack.model.edits import Edit


@dataclass(frozen=True, kw_only=True)
class TopicConfig(AnalysisConfig, controls.ControlsConfig, CostConfig):
    """Texts under topic control, and how much of the topic is in them."""

    topic: str = "sports"
    """One of the paper's 17 topics, or all."""
    bag: tuple[str, ...] = ()
    """Words of a topic of your own, in place of --topic."""
    strength: Literal[0, 1, 2, 3] = 2
    """From 0, none, to 3."""
    num_samples: int = 20
    """Texts of each topic."""
    length: int = 100
    """Tokens of a text, its start included."""
    bag_rule: Literal["paper", "plain"] = "paper"
    """How words of the topic are counted: as in Table 12, or in any case and without punctuation."""
    batch_size: int = 32
    """Texts drawn at a time."""
    evaluate: bool = False
    """Only measure, do not print the texts."""
    classifier: str = ""
    """Folder of a topic classifier (tweet-topic-21-multi): measures success."""
    reference: str = ""
    """File of real texts, one a line: measures MAUVE."""
    features: str = "gpt2-large"
    """Model in whose hidden states MAUVE compares texts: a GPT-2's name or folder."""
    save: str = ""
    """Write the edit, with --topic=all the last one, to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "num_samples", 1)
        at_least(self, "length", 2)


@dataclass(frozen=True, kw_only=True)
class Topic(results.Result):
    """Texts on one topic, and what was measured of them, in percent."""

    words: list[str]
    texts: list[str]
    bag_tokens: float
    bag_words: float
    success: float | None
    """None without a classifier."""
    figures: dict[str, Figure] = field(default_factory=dict, repr=False)
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class Topics(controls.Evaluation):
    """Texts on several topics; MAUVE of all of them, None if it was not measured."""

    topics: list[Topic]
    mauve: float | None = None

    def table(self) -> str:
        rows = {t.title: [t.bag_tokens, t.bag_words, t.success] for t in self.topics}
        if len(rows) > 1:
            columns = zip(*rows.values(), strict=True)
            rows["mean"] = [None if None in c else sum(c) / len(c) for c in columns]
        cells = [[name, *("" if v is None else f"{v:.2f} %" for v in row)] for name, row in rows.items()]
        costs = [found.cost.table() for found in self.topics if found.cost]
        head = ["", "bag tokens", "bag words", "success"]
        return "\n".join([results.table(self.title, head, cells), *costs])

    def records(self) -> list[dict[str, Any]]:
        return [asdict(topic) for topic in self.topics]


def main(settings: TopicConfig) -> None:
    topics = bags(settings.topic, settings.bag)
    real = read_text(Path(settings.reference)).splitlines() if settings.reference else []
    compare = bool(real) and mauve_ready(settings.features)

    def write_texts(model: LanguageModel) -> Topics:
        from nanobackpack.analysis import control

        found = []
        for result, edit in topic(model, topics, settings):
            words = [[i] for i in first_ids(needs_tokenizer(model.tokenizer), result.words)]
            paid = cost(model, edit, held_out(model, settings, words), f"topic {result.title}")
            found.append(replace(result, cost=paid))
            if not settings.evaluate:
                print(*result.texts, "", sep="\n" + "-" * 15 + "\n")
            if settings.save:
                control.save(edit, settings.save, model)
        return joined(found)

    def joined(found: list[Topic]) -> Topics:
        figures = {name: figure for one in found for name, figure in one.figures.items()}
        return Topics(title=f"strength {settings.strength}", topics=found, figures=figures)

    def again(model: LanguageModel) -> Topics:
        return joined([result for result, _ in topic(model, topics, replace(settings, controls=False))])

    found = controls.report(settings, write_texts, again)
    # MAUVE comes when all else is printed and written: its libraries have been seen to crash.
    if compare:
        found = replace(found, mauve=mauve_score(found.topics, real, settings.features))
        print(f"  MAUVE {found.mauve:.3f}")
        results.write_json(settings.json, found)


def bags(name: str, words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Give the words by topic: of one of the paper's, of all of them ("all"), of "sentiment", or the words
    given."""
    sets = control_sets()
    if name == "sentiment":
        return {name: sets["sentiment"]["bag"]}
    if words:
        return {" ".join(words): list(words)}
    if name == "all":
        return sets["topics"]
    if name not in sets["topics"]:
        known = ", ".join(sets["topics"])
        raise InputError(f"topic={name!r} is unknown: take all, sentiment, {known}, or name words with --bag")
    return {name: sets["topics"][name]}


def topic(
    model: LanguageModel, topics: dict[str, list[str]], settings: TopicConfig
) -> Iterator[tuple[Topic, Edit]]:
    """Write for each topic, given by its words, texts under control; yield them and the edit that controls.

    Each text has a seed of its own, so that `batch_size`, the texts drawn at a time, changes none.
    """
    import torch
    from tqdm import tqdm

    from nanobackpack.analysis import control
    from nanobackpack.analysis.prompts import usual_start
    from nanobackpack.model.backpack import BackpackLM
    from nanobackpack.runtime import seed_of

    if not isinstance(model, BackpackLM):
        raise InputError("topic control works on senses, and this model is a GPT: open a Backpack")
    # All that can be wrong is looked at before the first text is drawn.
    n, length, batch_size = settings.num_samples, settings.length, settings.batch_size
    tokenizer, device = needs_tokenizer(model.tokenizer), model.wte.weight.device
    tokens = {name: first_ids(tokenizer, words) for name, words in topics.items()}
    start = torch.tensor([usual_start(model)], device=device)  # (1, 1)
    pushes = {name: _push(name, settings.strength) for name in topics}
    judge = Classifier(settings.classifier, topics) if settings.classifier else None

    def drawn(edit: Edit | None, name: str) -> Tensor:
        draws = [torch.Generator(device).manual_seed(seed_of(settings.seed, i)) for i in range(n)]
        rows = []
        for i in tqdm(range(0, n, batch_size), name, unit="batch", disable=None, leave=False):
            some = draws[i : i + batch_size]
            begin = start.expand(len(some), -1)  # (B, 1)
            rows.append(model.generate(begin, length - 1, generator=some, edits=edit or ())[:, 1:])
        return torch.cat(rows)  # (N, T - 1)

    def shares(ids: Tensor, name: str) -> dict[str, Figure]:
        bag = torch.isin(ids, ids.new_tensor(tokens[name])).double().mean(dim=1).cpu()  # (N)
        words = [word_share(tokenizer.decode(row), topics[name], settings.bag_rule) for row in ids.tolist()]
        share, size = zip(*words, strict=True)
        in_words = mean_of([100 * x for x in share], sizes=size)
        return {f"{name}, bag tokens": mean_of(100 * bag), f"{name}, bag words": in_words}

    # The same random numbers without control, once for all topics.
    plain = drawn(None, "without control") if settings.controls and settings.strength else None
    peaks = control.sense_peaks(model) if settings.strength else None
    for name, words in topics.items():
        edit = control.topic(model, tokens[name], peaks=peaks, **pushes[name])
        ids = drawn(edit, name)  # (N, T - 1)
        texts = [tokenizer.decode(row) for row in ids.tolist()]
        figures = shares(ids, name)
        if plain is not None:
            without = shares(plain, name)
            figures |= {f"{what} − without control": figures[what] - without[what] for what in without}
        result = Topic(
            title=name,
            words=words,
            texts=texts,
            bag_tokens=figures[f"{name}, bag tokens"].value,
            bag_words=figures[f"{name}, bag words"].value,
            success=None if judge is None else 100 * judge.success(texts, name),
            figures=figures,
        )
        yield result, edit


def _push(name: str, strength: int) -> dict[str, Any]:
    """Give the arguments of control.topic for a strength; "sentiment" has deltas of its own."""
    if name != "sentiment":
        return {"strength": strength}
    own = control_sets()["sentiment"]
    if strength not in range(len(own["deltas"])):
        last = len(own["deltas"]) - 1
        raise InputError(f"strength={strength} is out of range: of sentiment it is 0 to {last}")
    return {"deltas": own["deltas"][strength], "f_scale": own["f_scale"]}


# --- What is measured of the texts --------------------------------------------------------------


def word_share(text: str, words: Sequence[str], rule: Literal["paper", "plain"]) -> tuple[float, int]:
    """Compute how much of a text is words of a topic, from 0 to 1, and how many words it has.

    The paper's script splits words by stanza, which takes "don't" for two words; here it is three.
    """
    found = _units(text, rule)
    wanted = {"".join(units): len(units) for word in words if (units := _units(word, rule))}
    hits = sum("".join(found).count(word) * n for word, n in wanted.items())
    total = max(1, len(found) + (rule == "paper"))  # with the mark that begins a text
    return hits / total, total


def _units(text: str, rule: str) -> list[str]:
    """Find the words and single ideographs of a text; marks around each keep "film" from matching "filmy"."""
    words = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+" + (r"|[^\w\s]" if rule == "paper" else "")
    return [f"\0{unit}\1" for unit in re.findall(words, text if rule == "paper" else text.lower())]


class Classifier:
    """A topic classifier such as cardiffnlp/tweet-topic-21-multi, from a local folder: labels such as
    film_tv_&_video, one sigmoid each."""

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
        except (OSError, ValueError) as error:
            raise InputError(f"classifier={folder!r} cannot be read: {error}") from error
        # Its labels as the papers write their topics: film_tv_&_video becomes film_tv_video.
        labels = self._model.config.id2label
        self._labels = {re.sub(r"[^a-z]+", "_", label.lower()): int(i) for i, label in labels.items()}
        if unknown := [name for name in topics if name not in self._labels]:
            known = ", ".join(self._labels)
            raise InputError(f"the classifier has no topic {unknown[0]!r}: its own are {known}")

    def success(self, texts: Sequence[str], name: str) -> float:
        """Compute the share of texts whose probability of the topic is above 1/2, from 0 to 1."""
        import torch

        hits, size = 0, {"padding": True, "truncation": True, "return_tensors": "pt"}
        for i in range(0, len(texts), 32):
            batch = self._tokenizer(list(texts[i : i + 32]), **size)
            with torch.no_grad():
                hits += int((self._model(**batch).logits[:, self._labels[name]] > 0).sum())
        return hits / len(texts)


def mauve_ready(features: str) -> bool:
    """Check, before any text is drawn, whether MAUVE can be measured with that model. Without the package
    mauve-text it cannot, and a warning says so."""
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
    except (OSError, ValueError) as error:
        raise InputError(f"features={features!r} cannot be read: {first_line(error)}") from error
    return True


def mauve_score(topics: Sequence[Topic], reference: Sequence[str], features: str) -> float:
    """Compute MAUVE of all texts against real ones, in the last hidden states of a GPT-2, by its name or its
    folder. `mauve_ready` must hold.

    Let it be the last thing a process does: the k-means of mauve-text (faiss) has been seen to make later
    operators of torch crash.
    """
    import mauve
    import torch

    # The larger side is shuffled and cut to the size of the smaller one.
    texts = [text for topic in topics for text in topic.texts]
    n, most = sorted((len(texts), len(reference)))
    order = torch.randperm(most, generator=torch.Generator().manual_seed(0)).tolist()
    p, q = ([side[i] for i in order if i < len(side)][:n] for side in (texts, reference))
    out = mauve.compute_mauve(
        p_text=p, q_text=q, featurize_model_name=features, max_text_length=256, verbose=False
    )
    return float(out.mauve)
