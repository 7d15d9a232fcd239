"""Made-up facts about made-up people: questions that nobody can answer who has not the passage at hand.

A person has a few facts, each a relation and a word that stands for it: the town where she lives, the food that he
likes. A passage tells one person's facts; a question asks for one of them in other words than the passage. People come
in families, which share a name and never a value: a relative's passage looks right and has the answer of another. No
word is a value of two relations, so that a question says what kind of word answers it, and only the passage says which.

Splits have families of their own: neither the people nor their names are seen before.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from moe_retrieval.genpoe.examples import Example, Passage
from moe_retrieval.genpoe.facts_settings import FactsSettings
from moe_retrieval.genpoe.relations import RELATIONS
from moe_retrieval.genpoe.wording import prompt

ONSETS = ("b", "br", "c", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pr", "r", "s",
          "sh", "sk", "st", "t", "th", "tr", "v", "w", "z")  # fmt: skip
VOWELS = ("a", "ai", "e", "ea", "i", "o", "oa", "u")
CODAS = ("b", "ck", "d", "f", "g", "l", "ll", "m", "n", "nd", "p", "r", "rn", "s", "st", "t", "x")


SPLITS = ("decoder", "train", "dev", "test")

WITH_PASSAGE = 0.75
"""Share of a decoder's texts that have the passage before the question"""

SINGLE = tuple(onset for onset in ONSETS if len(onset) == 1)
SYLLABLES = (ONSETS, VOWELS, SINGLE, VOWELS, CODAS)
"""Of a name"""

MOST_STRANGERS = 64
"""Drawn for a question; those whose passage has the answer too are dropped."""


class Person(NamedTuple):
    name: str
    facts: dict[str, str]
    """Relation -> value"""
    passage: Passage


@dataclass(frozen=True)
class Facts:
    """All people of all splits; what is asked and told about them is a function of the settings alone."""

    settings: FactsSettings
    people: dict[str, list[list[Person]]]
    """Split -> its families"""

    def passages(self) -> Iterator[Passage]:
        """Of all splits, in the order of their ids."""
        for families in self.people.values():
            for family in families:
                yield from (person.passage for person in family)

    def examples(self, split: str) -> Iterator[Example]:
        """A question for each fact of each person, with the passage that answers it and passages that do not."""
        draw = random.Random(f"{self.settings.seed} questions {split}")
        families = self.people[split]
        for place, family in enumerate(families):
            for person in family:
                relatives = [other for other in family if other is not person]
                for relation, value in person.facts.items():
                    question = draw.choice(RELATIONS[relation].questions).format(who=person.name)
                    others = draw.sample(relatives, len(relatives)) + _strangers(draw, families, place, value)
                    wrong = tuple(other.passage for other in others[: self.settings.negatives])
                    yield Example(question, (value,), positives=(person.passage,), hard_negatives=wrong)

    def texts(self) -> Iterator[str]:
        """What a small decoder is trained on: to answer with a passage at hand, and to guess without one."""
        draw = random.Random(f"{self.settings.seed} texts")
        for example in self.examples("decoder"):
            (passage,), (answer,) = example.positives, example.answers
            known = [passage.text] if draw.random() < WITH_PASSAGE else []
            yield f"{prompt(example.question, known)} {answer}"


def _strangers(draw: random.Random, families: list[list[Person]], own: int, value: str) -> list[Person]:
    """People of other families, none of whom has this value."""
    size = len(families[0])  # of all but the last
    others = size * (len(families) - 1) + len(families[-1]) - len(families[own])
    found = []
    for number in draw.sample(range(others), min(MOST_STRANGERS, others)):
        family, member = divmod(number if number < size * own else number + len(families[own]), size)
        found.append(families[family][member])
    return [person for person in found if value not in person.facts.values()]


def make_facts(settings: FactsSettings) -> Facts:
    """The same settings make the same people."""
    draw = random.Random(f"{settings.seed} people")
    names, numbers = _names(draw), count(1)
    people: dict[str, list[list[Person]]] = {}
    for split in SPLITS:
        left = getattr(settings, f"{split}_people")
        families = people[split] = []
        while left:
            size = min(settings.family, left)
            families.append(_family(draw, size, settings.facts, names, numbers))
            left -= size
    return Facts(settings, people)


def _family(draw: random.Random, size: int, facts: int, names: Iterator[str], numbers: Iterator[int]) -> list[Person]:
    """All with the same relations, so that a question about one could be about another, and no value twice."""
    surname = next(names)
    relations = draw.sample(sorted(RELATIONS), facts)
    values = {relation: draw.sample(RELATIONS[relation].values, size) for relation in relations}
    people = []
    for member in range(size):
        name = f"{next(names)} {surname}"
        own = {relation: values[relation][member] for relation in relations}
        told = [draw.choice(RELATIONS[relation].statements).format(who=name, what=own[relation]) for relation in own]
        draw.shuffle(told)
        people.append(Person(name, own, Passage(str(next(numbers)), name, " ".join(told))))
    return people


def _names(draw: random.Random) -> Iterator[str]:
    """Words that could be English and mean nothing, none of them twice, and none a value."""
    seen = {value.lower() for relation in RELATIONS.values() for value in relation.values}
    while True:
        name = "".join(map(draw.choice, SYLLABLES))
        if name not in seen:
            seen.add(name)
            yield name.capitalize()
