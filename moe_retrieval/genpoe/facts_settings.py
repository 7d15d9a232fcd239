"""How many synthetic facts there are, and of whom."""

from dataclasses import dataclass

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.relations import RELATIONS

LARGEST_FAMILY = min(len(relation.values) for relation in RELATIONS.values())
"""No two of a family have the same value."""

MOST_NAMES = 500_000
"""Of people and families, no two of whom share one: there are few more that can be made"""


@dataclass
class FactsSettings:
    decoder_people: int = 2000
    """People whose facts a decoder learns to read."""
    train_people: int = 2000
    """People of the questions for training."""
    dev_people: int = 200
    """People of the questions for validation."""
    test_people: int = 200
    """People of the questions for the measures at the end."""
    facts: int = 6
    """Facts of a person, each with a question; 8 at most."""
    passages: int = 3
    """Passages in which they are told: what says that one is about the right person does not say that it answers."""
    family: int = 4
    """People who share a family name, and whose passages are taken for one another's; 12 at most."""
    negatives: int = 8
    """Passages without the answer with each question, those of relatives first."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        counted = ("decoder_people", "train_people", "dev_people", "test_people")
        people = dict.fromkeys(counted, (1, MOST_NAMES))
        others = {"facts": (1, len(RELATIONS)), "family": (1, LARGEST_FAMILY), "negatives": (0, 1000)}
        others["passages"] = (1, self.facts)
        check_bounds(self, people | others | {"seed": (0, 2**32 - 1)}, flag)
        families = [-(-getattr(self, name) // self.family) for name in counted]
        names = sum(getattr(self, name) for name in counted) + sum(families)
        if names > MOST_NAMES:
            raise InputError(
                f"{', '.join(map(flag, counted))}: people and families of {self.family} need {names} names, "
                f"expected {MOST_NAMES} at most"
            )
