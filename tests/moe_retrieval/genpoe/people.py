"""A few people, where they live, and readers of it: what tests of experts ask."""

import torch

from moe_retrieval.genpoe.examples import Example, Passage, write_examples
from moe_retrieval.genpoe.reader import Reader, ReaderSettings
from moe_retrieval.genpoe.reader_files import make_reader
from moe_retrieval.genpoe.wording import prompt
from tests.moe_retrieval.genpoe.yes_no import write_decoder

NAMES = ["Ann", "Bob", "Cid", "Dot", "Eve", "Fay"]
TOWNS = ["Elgin", "Kelso", "Oakham", "Jarrow", "Ludlow", "Hexham"]
PASSAGES = [Passage(str(row), name, f"{name} lives in {town}.") for row, (name, town) in enumerate(zip(NAMES, TOWNS))]
QUESTIONS = [f"Where is {name} at home?" for name in NAMES]

CPU = torch.device("cpu")
SETTINGS = ReaderSettings((1,), rank=4, bottleneck=8, titles=False, passage_length=64)


def example(row, passages=1):
    """With its own passage first, and those of others after it."""
    others = tuple(PASSAGES[(row + step) % len(PASSAGES)] for step in range(1, passages))
    return Example(QUESTIONS[row], (TOWNS[row],), positives=(PASSAGES[row],), hard_negatives=others)


def write_home(home, kind="llama"):
    """-> home, with a decoder that says much and knows nothing, and questions."""
    write_examples(home / "train.json", [example(row, 3) for row in range(len(NAMES))])
    texts = [*(passage.text for passage in PASSAGES), *(f"{prompt(question)} {TOWNS[0]}" for question in QUESTIONS)]
    write_decoder(home / "decoder", kind, texts, noise=0.2)
    return home


def reader_at(home, settings=SETTINGS, spread=0.5) -> Reader:
    """Its experts differ much, as if they had learned."""
    torch.manual_seed(3)
    reader = make_reader(str(home / "decoder"), settings, CPU, "fp32")
    reader.standardize(PASSAGES)
    with torch.no_grad():
        for parameter in reader.networks.parameters():
            parameter += spread * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    return reader
