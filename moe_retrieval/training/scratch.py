"""An encoder from nothing: its shape by flags, and a tokenizer that is trained on the texts."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from moe_retrieval import checksums
from moe_retrieval.models.encoder import EncoderShape
from moe_retrieval.models.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from moe_retrieval.progress import Meter
from moe_retrieval.training.distributed import World, main_first
from moe_retrieval.training.resumption import RunConfig, checkpoints

CHECKSUMS = "checksums.json"
TOKENIZER = "tokenizer"
DRAFT = ".tokenizer.new"
TOKENIZER_TEXTS = 100_000
"""Documents that a tokenizer from scratch is trained on: more change little."""


class ScratchConfig(RunConfig, Protocol):
    """The flags that say what an encoder from nothing is like."""

    @property
    def hidden(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ff(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def max_positions(self) -> int: ...


def shape_of(config: ScratchConfig, tokenizer: Tokenizer) -> EncoderShape:
    return EncoderShape(
        vocab_size=tokenizer.vocab_size,
        hidden_size=config.hidden,
        num_layers=config.num_layers,
        num_heads=config.heads,
        ffn_size=config.ff,
        max_positions=config.max_positions,
    )


def make_tokenizer(config: ScratchConfig, texts: Sequence[str], world: World, resumed: Path | None) -> Tokenizer:
    """Trained on the texts by rank 0 when a run begins; `keep_tokenizer` puts it beside the checkpoints."""
    folder = checkpoints(config) / DRAFT
    if resumed is not None:
        kept = resumed.parent / TOKENIZER
        checksums.check_files(kept, checksums.read_sealed(kept / CHECKSUMS))
        return load_tokenizer(kept)
    with main_first(world):
        if world.is_main:
            chosen = np.random.default_rng(0).permutation(len(texts))[:TOKENIZER_TEXTS]
            with Meter("training a tokenizer"):
                trained = train_tokenizer(
                    (texts[int(row)] for row in sorted(chosen)), config.vocab_size, config.tokenizer
                )
            trained.save(folder)
            written = [path for path in folder.iterdir() if path.name != CHECKSUMS]
            checksums.write_sealed(folder / CHECKSUMS, {path.name: checksums.of_file(path) for path in written})
        return load_tokenizer(folder)


def keep_tokenizer(config: RunConfig, world: World) -> None:
    """In the place of an earlier run's, which that run's checkpoints needed as long as they were there."""
    draft = checkpoints(config) / DRAFT
    if world.is_main and draft.is_dir():
        final = checkpoints(config) / TOKENIZER
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)


def bring_tokenizer(config: RunConfig, resumed: Path, world: World) -> None:
    """From the run that this checkpoint is of, if it is another one."""
    here = checkpoints(config)
    if world.is_main and resumed.parent.resolve() != here.resolve():
        shutil.rmtree(here / DRAFT, ignore_errors=True)
        shutil.copytree(resumed.parent / TOKENIZER, here / DRAFT)
        keep_tokenizer(config, world)
