"""Training of a small decoder from nothing: it learns to find the answer in a passage that stands before a question.

What it is to read about is in the passage alone: of people whom it has not seen, it knows no more than the kind of
answer that is asked for.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from moe_retrieval.data.records import parse_object, read_lines, string_field
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.decoder_config import TrainDecoderConfig
from moe_retrieval.genpoe.prompts import NO, PROMPTS, YES
from moe_retrieval.models.tokenizer import train_tokenizer
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import World
from moe_retrieval.training.example_steps import Step, one_process, take_steps
from moe_retrieval.training.resumption import find_resumption, settle_precision

ANSWER = "\nAnswer:"

REPEATS = 100
"""Times that the tokenizer sees what a reranker is asked, whose words become tokens: the decoder may become one."""


class Row(NamedTuple):
    ids: list[int]
    asked: int
    """How many of them come before the answer"""


def train_decoder(config: TrainDecoderConfig) -> None:
    """Trains as the config says, and leaves model and tokenizer in its output directory."""
    with one_process(config, "a small decoder") as world:
        _train(settle_precision(config, world), world)


def _train(config: TrainDecoderConfig, world: World) -> None:
    resumed = find_resumption(config, world)
    texts = read_texts(config.data)
    asked = [*PROMPTS.values(), f"A: B: {YES} {NO}"]
    tokenizer = train_tokenizer([*texts, *asked * REPEATS], config.vocab_size, "bpe")
    folder = Path(config.output_dir)
    tokenizer.save(folder)
    rows = encode(folder, texts)
    longest = max(len(row.ids) for row in rows)
    if longest > config.positions:
        raise InputError(
            f"--positions must be at least {longest}, for a text has so many tokens, got {config.positions}"
        )
    rng.seed(config.seed, world.rank)
    model = make_decoder(config, tokenizer.vocab_size).to(world.device)
    step = Step(model, lambda chosen: total_loss(model, chosen, config.other_weight), config, world)
    take_steps(step, len(rows), lambda epoch, row: rows[row], resumed, f"{len(rows):,} texts")
    model.save_pretrained(folder)
    tqdm.write(f"the decoder is in {folder}")


def read_texts(path: str | os.PathLike) -> list[str]:
    """Each ends with an answer and the end of a line."""
    texts = []
    for number, _, line in read_lines(path):
        text = string_field(parse_object(line, f"{path}:{number}"), "text", f"{path}:{number}")
        if not text.rpartition(ANSWER)[2].strip() or ANSWER not in text:
            raise InputError(f'{path}:{number}: expected a "text" that ends with "Answer:" and an answer')
        texts.append(f"{text.rstrip()}\n")
    if not texts:
        raise InputError(f"{path}: holds no text")
    return texts


def encode(folder: Path, texts: Sequence[str]) -> list[Row]:
    """By the tokenizer as others load it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    starts = (text.rindex(ANSWER) + len(ANSWER) for text in texts)
    return [
        Row(ids, sum(end <= start for _, end in ends))
        for ids, ends, start in zip(found["input_ids"], found["offset_mapping"], starts)
    ]


def make_decoder(config: TrainDecoderConfig, vocab_size: int) -> Any:
    """With random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging as their_logging

    their_logging.disable_progress_bar()  # a command says itself how far it is
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=config.hidden_size, intermediate_size=8 * config.hidden_size // 3,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            max_position_embeddings=config.positions, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None,
            eos_token_id=None,
        )
    )  # fmt: skip


def total_loss(model: Any, rows: Sequence[Row], other_weight: float) -> Tensor:
    """The sum over texts of the mean cross-entropy of their tokens, of which an answer's count 1."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    weights = torch.zeros(len(rows), longest)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        weights[place, : row.asked] = other_weight
        weights[place, row.asked : len(row.ids)] = 1  # padding comes behind, where nothing looks
    ids, weights = ids.to(model.device), weights.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.float().mT, ids[:, 1:], reduction="none")
    return ((losses * weights[:, 1:]).sum(1) / weights[:, 1:].sum(1)).sum()
