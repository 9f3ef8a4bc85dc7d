"""A language whose truth is planted: whom a noun calls he, which words belong to a topic, which facts hold.

    language = Language()
    text = language.draw(random.Random(0))      # 'The baker said that she cooked the soup. Ships from ...'
    language.log_p(text)                        # exactly, in nats; -inf if the language has no such text
    replace(language, he={**language.he, "baker": 0.5})     # the same language without the baker's bias

A text is three sentences, each made from a template drawn at random. Its nouns, countries and templates are
independent of one another. One topic holds for the whole text, verbs and things are drawn from it, and it is
independent of all else. So the text's probability is a product of a few numbers, every change of behaviour
that we may want of a model is a language too, and a model's distance from that language can be measured.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field

from nanobackpack.text.corpus import Corpus, from_text, separated

TOKENIZER = "bpe:1024"  # more than enough to make each word one token
SENTENCES = 3  # in a text: at most 30 tokens
TEMPLATES = (
    "The {noun} said that {pronoun} {verb} the {thing}.",
    "When the {noun} came, {pronoun} {verb} the {thing}.",
    "The {noun} {verb} the {thing} and {pronoun} smiled.",
    "Yesterday the {noun} {verb} the {thing}.",
    "The capital of {country} is {city}.",
    "The king of {country} lives in {city}.",
    "Ships from {country} sail home to {city}.",
    "The flag of {country} is {colour}.",
)
# The first eight are to be called he as often as the last eight: what is chosen with some is tried on others.
NOUNS = (
    "baker", "doctor", "lawyer", "singer", "farmer", "nurse", "pilot", "tailor",
    "clerk", "dancer", "guard", "miller", "painter", "porter", "teacher", "writer",
)  # fmt: skip
P_HE = (0.05, 0.95, 0.1, 0.9, 0.2, 0.8, 0.35, 0.65) * 2
TOPICS = {  # four verbs and six things each
    "kitchen": "cooked tasted stirred served soup bread cake rice cheese sauce",
    "garden": "planted watered picked cut rose tree grass hedge flower bush",
    "sea": "sailed rowed steered anchored boat raft canoe yacht ferry dinghy",
    "school": "read wrote copied learned book poem letter lesson story essay",
}
CITIES = {
    "Arland": "Tolm", "Borduria": "Szohod", "Carpania": "Vesk", "Drovia": "Lund",
    "Elbonia": "Mudville", "Florin": "Guilder", "Grenda": "Pask", "Hyrkania": "Bolga",
    "Illyria": "Messa", "Jotunia": "Utgard", "Krakozia": "Danzer", "Lutha": "Lustad",
}  # fmt: skip
COLOURS = ("red", "green", "blue", "white")


@dataclass(frozen=True)
class Language:
    """Made with other numbers it is the counterfactual: the language that a perfect edit would lead to."""

    he: dict[str, float] = field(default_factory=lambda: dict(zip(NOUNS, P_HE, strict=True)))
    """P(he) after each noun."""
    topics: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TOPICS, 1 / len(TOPICS)))
    """The probability of each topic."""
    cities: dict[str, str] = field(default_factory=lambda: dict(CITIES))
    """The capital of each country."""

    def draw(self, dice: random.Random) -> str:
        """Write a text."""
        (topic,) = dice.choices(list(self.topics), list(self.topics.values()))
        sentences = []
        for _ in range(SENTENCES):
            noun, country = dice.choice(list(self.he)), dice.choice(list(self.cities))
            slots = {
                "noun": noun,
                "pronoun": "he" if dice.random() < self.he[noun] else "she",
                "verb": dice.choice(verbs(topic)),
                "thing": dice.choice(things(topic)),
                "country": country,
                "city": self.cities[country],
                "colour": colour_of(country),
            }
            sentences.append(dice.choice(TEMPLATES).format(**slots))
        return " ".join(sentences)

    def log_p(self, text: str) -> float:
        """Compute the logarithm of a text's probability."""
        sentences = parse(text)
        if sentences is None or len(sentences) != SENTENCES:
            return -math.inf
        # What each sentence adds whatever the topic is.
        p = 1.0
        for slots in sentences:
            p *= 1 / len(TEMPLATES)
            if noun := slots.get("noun"):
                p *= 1 / len(self.he)
                p *= {"he": self.he[noun], "she": 1 - self.he[noun], None: 1}[slots.get("pronoun")]
            if country := slots.get("country"):
                p *= 1 / len(self.cities)
                p *= slots.get("city", self.cities[country]) == self.cities[country]
                p *= slots.get("colour", colour_of(country)) == colour_of(country)
        # And what its verbs and things do, a mean over the topics.
        said = [slots for slots in sentences if "verb" in slots]
        p *= sum(
            weight * math.prod(_chance(slots, topic) for slots in said)
            for topic, weight in self.topics.items()
        )
        return math.log(p) if p else -math.inf


def draw(language: Language, n: int, seed: int, word: str = "") -> list[str]:
    """Draw n texts; with a word, such that hold it."""
    dice, texts = random.Random(seed), list[str]()
    while len(texts) < n:
        if word in (text := language.draw(dice)):
            texts.append(text)
    return texts


def corpus(n: int = 60_000, seed: int = 0) -> Corpus:
    """Draw n texts to learn from, each a document."""
    texts = "\n".join(draw(Language(), n, seed))
    return separated(from_text(texts, f"{n:,} texts of the planted language"), "\n")


def verbs(topic: str) -> list[str]:
    return TOPICS[topic].split()[:4]


def things(topic: str) -> list[str]:
    return TOPICS[topic].split()[4:]


def _chance(slots: dict[str, str], topic: str) -> float:
    """The probability of a sentence's verb and thing, if its text is about the topic."""
    belongs = slots["verb"] in verbs(topic) and slots["thing"] in things(topic)
    return belongs / (len(verbs(topic)) * len(things(topic)))


def colour_of(country: str) -> str:
    return COLOURS[list(CITIES).index(country) % len(COLOURS)]


_SLOTS = {
    "noun": NOUNS,
    "pronoun": ["he", "she"],
    "verb": [verb for topic in TOPICS for verb in verbs(topic)],
    "thing": [thing for topic in TOPICS for thing in things(topic)],
    "country": list(CITIES),
    "city": list(CITIES.values()),
    "colour": list(COLOURS),
}
_PATTERNS = [  # each template with a named group for each slot
    re.sub(r"{(\w+)}", lambda s: f"(?P<{s[1]}>{'|'.join(_SLOTS[s[1]])})", t.replace(".", r"\."))
    for t in TEMPLATES
]


def parse(text: str) -> list[dict[str, str]] | None:
    """Find the words in the slots of each sentence; None if one is of no template."""
    found = []
    for sentence in re.split(r"(?<=\.) ", text):
        matches = [match for pattern in _PATTERNS if (match := re.fullmatch(pattern, sentence))]
        if not matches:
            return None
        found.append(matches[0].groupdict())
    return found
