"""Write texts on a topic: senses that speak for its words count more, until the text speaks for them.

    python experiments/topic_control.py --topic sports --strength 2 --num_samples 20
    python experiments/topic_control.py --bag king crown --strength 3 --save crown.safetensors
    python experiments/topic_control.py --topic all --num_samples=500 --evaluate --classifier=FOLDER

A text begins as documents do and is drawn from the model's own distribution (Backpack paper, section 6.1).
Of each of a topic's words the first token counts. `--save` keeps the edit for `sample.py --edits=FILE`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nanobackpack import cli
from nanobackpack.analysis import control
from nanobackpack.analysis.results import write_json
from nanobackpack.config import ReadConfig, at_least
from nanobackpack.evaluate import topic
from nanobackpack.safe import files
from nanobackpack.safe.files import read_text
from nanobackpack.train.checkpoint import open_model


@dataclass(frozen=True, kw_only=True)
class TopicConfig(ReadConfig):
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


def main(settings: TopicConfig) -> None:
    at_least(settings, "batch_size", 1)
    for path in (settings.json, settings.save):
        files.check_writable(path)
    bags, found, s = topic.bags(settings.topic, settings.bag), [], settings
    real = read_text(Path(s.reference)).splitlines() if s.reference else []
    compare = bool(real) and topic.mauve_ready(s.features)
    model, sizes = open_model(s), (s.num_samples, s.length)
    texts = topic.controlled(model, bags, s.strength, *sizes, s.seed, s.classifier, s.batch_size)
    for result, edit in texts:
        found.append(result)
        if not s.evaluate:
            print(*result.texts, "", sep="\n" + "-" * 15 + "\n")
        if s.save:
            control.save(edit, s.save, model)
    topics = topic.Topics(title=f"strength {s.strength}", topics=found)
    print(topics.table(), flush=True)
    write_json(s.json, topics)
    if compare:
        topics = replace(topics, mauve=topic.mauve_score(found, real, s.features))
        print(f"  MAUVE {topics.mauve:.3f}")
        write_json(s.json, topics)


if __name__ == "__main__":
    cli.run(main, TopicConfig)
