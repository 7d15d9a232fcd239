"""Made-up facts about made-up people: questions that nobody can answer who has not the passage at hand.

A person has a few facts, each a relation and a word that stands for it: the town where she lives, the food that he
likes. Passages tell one person's facts, each a part of them; a question asks for one in other words than the passage.
People come in families, which share a name and never a value: a relative's passage looks right and has the answer of
another. No word is a value of two relations, so that a question says what kind of word answers it, and only the passage
says which.

Splits have families of their own: neither the people nor their names are seen before. The words that answer are the
same in all splits; which of them a person has is not.
"""

import random
from collections.abc import Iterator, Sequence
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
    passages: tuple[Passage, ...]
    told: dict[str, Passage]
    """Relation -> the passage that tells it"""


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
                yield from (passage for person in family for passage in person.passages)

    def examples(self, split: str) -> Iterator[Example]:
        """A question for each fact of each person, with the passage that answers it and passages that do not: what else
        is told of the same person, then of relatives, then of strangers."""
        draw = random.Random(f"{self.settings.seed} questions {split}")
        families = self.people[split]
        for place, family in enumerate(families):
            for person in family:
                relatives = [passage for other in family if other is not person for passage in other.passages]
                for relation, value in person.facts.items():
                    question = draw.choice(RELATIONS[relation].questions).format(who=person.name)
                    right = person.told[relation]
                    others = [passage for passage in person.passages if passage is not right]
                    others += draw.sample(relatives, len(relatives))
                    strangers = _strangers(draw, families, place, value)
                    others += [draw.choice(stranger.passages) for stranger in strangers]
                    wrong = tuple(others[: self.settings.negatives])
                    yield Example(question, (value,), positives=(right,), hard_negatives=wrong)

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
            families.append(_family(draw, size, settings, names, numbers))
            left -= size
    return Facts(settings, people)


def _family(
    draw: random.Random, size: int, settings: FactsSettings, names: Iterator[str], numbers: Iterator[int]
) -> list[Person]:
    """All with the same relations, so that a question about one could be about another, and no value twice."""
    surname = next(names)
    relations = draw.sample(sorted(RELATIONS), settings.facts)
    values = {relation: draw.sample(RELATIONS[relation].values, size) for relation in relations}
    people = []
    for member in range(size):
        name = f"{next(names)} {surname}"
        own = {relation: values[relation][member] for relation in relations}
        told: dict[str, Passage] = {}
        for part in _parts(draw, relations, settings.passages):
            passage = Passage(str(next(numbers)), name, _telling(draw, name, {each: own[each] for each in part}))
            told |= dict.fromkeys(part, passage)
        people.append(Person(name, own, tuple(dict.fromkeys(told.values())), told))
    return people


def _parts(draw: random.Random, relations: Sequence[str], parts: int) -> list[list[str]]:
    """In any order, dealt out."""
    mixed = draw.sample(relations, len(relations))
    return [mixed[part::parts] for part in range(parts)]


def _telling(draw: random.Random, name: str, facts: dict[str, str]) -> str:
    """The whole name comes once, and then the given name alone."""
    given = name.split()[0]
    who = [name, *[given] * (len(facts) - 1)]
    told = (
        draw.choice(RELATIONS[relation].statements).format(who=each, what=facts[relation])
        for each, relation in zip(who, facts)
    )
    return " ".join(told)


def _names(draw: random.Random) -> Iterator[str]:
    """Words that could be English and mean nothing, none of them twice, and none a value."""
    seen = {value.lower() for relation in RELATIONS.values() for value in relation.values}
    while True:
        name = "".join(map(draw.choice, SYLLABLES))
        if name not in seen:
            seen.add(name)
            yield name.capitalize()
