"""Experts of the passages of a question: read from where they are kept, against made anew, over hidden size and rank.

    python -m bench.stored_experts [--seconds S] [--only TEXT] [--smoke]

writes bench/results/MACHINE-stored-experts.json, with the bytes that a passage costs. What is kept is read again and
again here, and so from memory: from a disk it comes no faster than the disk reads.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import transformers

from bench.harness import command
from bench.harness.suite import Suite
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.expert_store import ExpertStore, store_experts
from moe_retrieval.genpoe.reader import Reader, ReaderSettings
from moe_retrieval.models.tokenizer import train_tokenizer

SIZES = [(512, 64), (1024, 128), (2048, 256)]
"""Hidden size and rank"""

BOTTLENECK, PASSAGES, WORDS = 128, 5, 100
"""As in the paper; DPR's passages have a hundred words"""


def make_reader(folder: Path, hidden: int, rank: int, precision: str) -> Reader:
    """Of a language model of one block: no more of it makes experts."""
    passage = " ".join(f"word{place}" for place in range(WORDS))
    train_tokenizer([passage], 600, "bpe").save(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=600, n_embd=hidden, n_layer=1, n_head=1, n_inner=8, n_positions=8, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    settings = ReaderSettings((0,), rank, BOTTLENECK, titles=False, passage_length=256)
    return Reader(transformers.GPT2LMHeadModel(config), tokenizer, settings, torch.device("cpu"), precision)


def measure(suite: Suite, hidden: int, rank: int, precision: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        reader = make_reader(folder, 16 if suite.smoke else hidden, 4 if suite.smoke else rank, precision)
        text = " ".join(f"word{place}" for place in range(WORDS))
        passages = [Passage(str(row), "", f"{text} {row}") for row in range(PASSAGES)]
        size = store_experts(reader, passages, PASSAGES, folder)
        store = ExpertStore(folder, reader)
        made, loaded = reader.experts(passages), store.experts(passages)
        torch.testing.assert_close([*made[0]], [*loaded[0]], rtol=1e-2, atol=1e-2)
        calls = {"loaded": partial(store.experts, passages), "made": partial(reader.experts, passages)}
        figures = {"bytes_a_passage": size}
        suite.keep("stored experts", name, suite.time(calls), ours="loaded", figures=figures)


def cases(suite: Suite) -> dict[str, Callable[[str], None]]:
    return {
        f"{PASSAGES} passages, H={hidden} R={rank} {precision}": partial(measure, suite, hidden, rank, precision)
        for hidden, rank in SIZES
        for precision in ("fp32", "bf16")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    command.main("stored-experts", "bench.stored_experts:cases", __doc__, arguments)


if __name__ == "__main__":
    main()
