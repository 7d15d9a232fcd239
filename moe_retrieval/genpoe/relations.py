"""What synthetic people are known for: the words that answer, how a passage tells it, how a question asks for it."""

from typing import NamedTuple


class Relation(NamedTuple):
    values: list[str]
    statements: tuple[str, ...]
    """Of {who} and {what}"""
    questions: tuple[str, ...]
    """In other words than the statements"""


def _relation(values: str, statements: tuple[str, ...], questions: tuple[str, ...]) -> Relation:
    return Relation(values.split(), statements, questions)


RELATIONS = {
    "town": _relation(
        "Ashford Brenton Carlow Dunmore Elgin Farnham Galway Hexham Ilkley Jarrow Kelso Ludlow Melrose Newport Oakham "
        "Penrith",
        ("{who} lives in {what}.", "The home of {who} is in {what}.", "{who} has a house in {what}."),
        ("Where is {who} resident?", "Which town does {who} come back to?", "What is the address of {who}?"),
    ),
    "job": _relation(
        "baker carpenter dentist engineer farmer gardener janitor lawyer mason nurse painter sailor tailor teacher "
        "weaver writer",
        ("{who} works as a {what}.", "By trade {who} is a {what}.", "{who} earns money as a {what}."),
        ("What does {who} do for a living?", "What is the profession of {who}?", "Which job does {who} have?"),
    ),
    "instrument": _relation(
        "accordion banjo bassoon cello clarinet cornet drum fiddle flute guitar harp lute oboe piano trumpet viola",
        ("{who} plays the {what}.", "In the evening {who} takes the {what}.", "{who} has mastered the {what}."),
        ("Which instrument is that of {who}?", "What does {who} make music on?", "On what is {who} a musician?"),
    ),
    "food": _relation(
        "apples beans bread carrots cheese cherries honey lentils mushrooms olives onions pancakes plums rice soup "
        "walnuts",
        ("{who} loves to eat {what}.", "Nothing tastes better to {who} than {what}.", "{who} is fond of {what}."),
        ("What is the favourite food of {who}?", "What would {who} order?", "Which dish pleases {who} most?"),
    ),
    "animal": _relation(
        "camel canary cat donkey duck ferret goat goose hamster horse lizard parrot pigeon pony rabbit tortoise",
        ("{who} keeps a {what}.", "A {what} belongs to {who}.", "{who} looks after a {what}."),
        ("Which animal does {who} own?", "What pet is that of {who}?", "What kind of creature does {who} feed?"),
    ),
    "colour": _relation(
        "amber black blue brown crimson gold green grey indigo orange pink purple red silver white yellow",
        ("{who} always wears {what}.", "The coat of {who} is {what}.", "{who} dresses in {what}."),
        ("What colour are the clothes of {who}?", "Which colour does {who} put on?", "How is {who} clad?"),
    ),
    "sport": _relation(
        "archery boxing cricket curling cycling diving fencing golf hockey judo polo rowing rugby skating tennis "
        "wrestling",
        ("{who} trains for {what}.", "At weekends {who} goes in for {what}.", "{who} has won a medal in {what}."),
        ("Which sport does {who} practise?", "In what does {who} compete?", "What is the athletic hobby of {who}?"),
    ),
    "month": _relation(
        "January February March April May June July August September October November December",
        ("{who} was born in {what}.", "The birthday of {who} is in {what}.", "{who} turns a year older in {what}."),
        ("Which month brings {who} presents?", "When does {who} celebrate?", "In what month do we greet {who}?"),
    ),
}
"""No word is a value of two of them, or stands in a statement or a question."""
