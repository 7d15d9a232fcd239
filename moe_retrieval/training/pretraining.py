"""Pre-training of an encoder, before it is a retriever: it learns a corpus by guessing what is hidden of its texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from moe_retrieval import data
from moe_retrieval.config import SCRATCH
from moe_retrieval.data.chained import Chained
from moe_retrieval.dataset_names import split_names
from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones, export
from moe_retrieval.models.card import model_card
from moe_retrieval.models.loading import build_from_scratch, build_retriever, check_vocabulary, is_run, read_settings
from moe_retrieval.models.precision import autocast
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.models.tokenizer import Tokenizer, load_tokenizer
from moe_retrieval.training import rng
from moe_retrieval.training.distributed import World, in_parallel, main_first, running_world, sole_use
from moe_retrieval.training.example_steps import Step, take_steps
from moe_retrieval.training.masked_model import MaskedModel
from moe_retrieval.training.masking import Masked, Masking
from moe_retrieval.training.pretrain_config import PretrainConfig
from moe_retrieval.training.resumption import check_same_data, discard_checkpoints, find_resumption, settle_precision
from moe_retrieval.training.scratch import bring_tokenizer, keep_tokenizer, make_tokenizer, shape_of

HELD_OUT = 0.05
MOST_HELD_OUT = 500
"""Texts that are never trained on: what the encoder guesses of these is how well it reads."""


class Guessed(NamedTuple):
    loss: float
    share: float
    """Of the hidden tokens, those that were guessed right at first."""


def pretrain(config: PretrainConfig) -> Guessed | None:
    """Trains as the config says, and leaves the encoder in its output directory; -> what it guesses of the texts
    that are held out, if there are enough to hold some out (20)."""
    with running_world() as world, sole_use(config.output_dir, world):
        return _pretrain(settle_precision(config, world), world)


def _pretrain(config: PretrainConfig, world: World) -> Guessed | None:
    resumed = find_resumption(config, world)
    with main_first(world):  # it may download or extract what the others then find
        corpora = {each.name: data.load_documents(each.name, config.data_dir) for each in split_names(config.corpus)}
        read = {name: documents.fingerprint for name, documents in corpora.items()}
        if resumed is not None:
            check_same_data(resumed, read)
    texts = Chained([documents.texts for documents in corpora.values()])
    rng.seed(config.seed, rank=0)  # every rank makes the same new weights
    retriever, tokenizer = _begin(config, texts, world, resumed)
    model = MaskedModel(retriever.encoder).to(world.device).train()
    model.encoder.gradient_checkpointing = config.gradient_checkpointing
    masking = Masking.of(tokenizer, config.mask_share)
    trained_on, held_out = split_off(len(texts), config.seed)

    def draw(row: int, *place: int) -> Masked:
        (ids,) = tokenizer.encode_batch([texts[row]], config.length)
        return masking(ids, np.random.default_rng([config.seed, *place, row]))

    if resumed is None:
        if config.resume == "never":
            discard_checkpoints(config, world)
        keep_tokenizer(config, world)
    elif config.model == SCRATCH:
        bring_tokenizer(config, resumed, world)
    rng.seed(config.seed, world.rank)
    objective = in_parallel(model, world, lambda parallel: parallel([]))
    step = Step(model, objective, config, world)
    title = f"{len(trained_on):,} texts of {config.corpus}, {config.model}, {tokenizer.vocab_size:,} tokens known"
    take_steps(step, len(trained_on), lambda epoch, row: draw(int(trained_on[row]), epoch), resumed, title, read)
    guessed = measure(model, [draw(int(row)) for row in held_out], config, world)
    if world.is_main:
        _save(config, retriever, tokenizer, guessed)
        if guessed is not None:
            others = f"{len(held_out):,} texts that were held out (loss {guessed.loss:.3f})"
            tqdm.write(f"guesses {guessed.share:.1%} of the hidden tokens of {others}")
        train = f"python -m moe_retrieval.train --model {config.output_dir}"
        tqdm.write(f"the encoder is in {config.output_dir}; a retriever begins as it: {train}")
    return guessed


def _begin(
    config: PretrainConfig, texts: Sequence[str], world: World, resumed: Path | None
) -> tuple[Retriever, Tokenizer]:
    if config.model == SCRATCH:
        tokenizer = make_tokenizer(config, texts, world, resumed)
        return build_from_scratch(shape_of(config, tokenizer), dropout=config.dropout), tokenizer
    folder = backbones.find(config.model)
    if is_run(folder) and (variant := read_settings(folder).variant) != "dense":
        raise InputError(f"--model {config.model} is a run of variant {variant}: expected a dense one")
    retriever, tokenizer = build_retriever(config.model, folder, dropout=config.dropout), load_tokenizer(folder)
    check_vocabulary(tokenizer, retriever, folder)
    longest = retriever.settings.shape.max_positions
    if config.length > longest:
        raise InputError(f"--length must be at most {longest}, the positions of {config.model}, got {config.length}")
    return retriever, tokenizer


def split_off(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """-> the rows of the texts to train on, and of those that are held out"""
    rows = np.random.default_rng([seed, count]).permutation(count)
    held_out = min(MOST_HELD_OUT, int(HELD_OUT * count))
    return np.sort(rows[held_out:]), np.sort(rows[:held_out])


def measure(model: MaskedModel, texts: Sequence[Masked], config: PretrainConfig, world: World) -> Guessed | None:
    """Every token counts as much."""
    losses, right, count = 0.0, 0, 0
    model.eval()
    with torch.no_grad(), autocast(world.device, config.precision):
        for start in range(0, len(texts), config.batch_size):
            logits_MV, expected_M = model.guess(texts[start : start + config.batch_size])
            losses += F.cross_entropy(logits_MV.float(), expected_M, reduction="sum").item()
            right += int((logits_MV.argmax(1) == expected_M).sum())
            count += len(expected_M)
    return Guessed(losses / count, right / count) if count else None


def _save(config: PretrainConfig, retriever: Retriever, tokenizer: Tokenizer, guessed: Guessed | None) -> None:
    facts = {name.replace("_", " "): getattr(config, name) for name in ("batch_size", "lr", "precision", "seed")}
    facts |= {"objective": f"guess {config.mask_share:.0%} of the tokens", "tokens read": config.length}
    if guessed is not None:
        facts |= {"held-out loss": round(guessed.loss, 4), "guessed right": round(guessed.share, 4)}
    card = model_card(retriever, config.model, config.corpus, facts)
    export.save(Path(config.output_dir), retriever, tokenizer, card)
