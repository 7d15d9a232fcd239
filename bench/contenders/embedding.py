"""What an embedding is in every comparison: a normalised mean over 256 tokens of a document or 64 of a query."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.cases.correct import relative_error

Embed = Callable[[Sequence[str], bool], np.ndarray]
"""Of texts, and whether they are queries."""

Search = Callable[[Sequence[str]], list[list[int]]]
"""Texts to the rows of the nearest documents."""

DOC_LENGTH, QUERY_LENGTH = 256, 64
BATCH, ATTENTION = 32, "sdpa"
BATCHES, ATTENTIONS = (4, 16, 32, 64), ("sdpa", "eager")
"""What libraries are tried with: the best way differs from one machine to another."""
TRIED = 64
"""Texts that a way is tried on."""
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "int8": 1.5e-1, "int8+bf16": 1.5e-1}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NEAREST = 10


def sorted_batches(
    tokenizer: Any, texts: Sequence[str], is_query: bool, batch: int, tensors: str
) -> Iterator[tuple[list[int], Any]]:
    """Texts of like length together, the longest first: their places, and what a tokenizer of transformers makes of
    them, padded, as `tensors` ("pt" or "np")."""
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    padding = dict(padding=True, truncation=True, max_length=QUERY_LENGTH if is_query else DOC_LENGTH)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        yield chosen, tokenizer([texts[place] for place in chosen], **padding, return_tensors=tensors)


def embed_sorted(tokenizer: Any, batch: int, tensors: str, embed_padded: Callable[[Any], np.ndarray]) -> Embed:
    """By what embeds a padded batch, [N, H]."""

    def embed(texts: Sequence[str], is_query: bool) -> np.ndarray:
        places: list[int] = []
        parts = []
        for chosen, padded in sorted_batches(tokenizer, texts, is_query, batch, tensors):
            places += chosen
            parts.append(embed_padded(padded))
        return np.concatenate(parts)[np.argsort(places)]

    return embed


def mean_embedding(model: Callable[..., Any], input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    hidden_NLH = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    keep_NL1 = attention_mask[:, :, None].to(hidden_NLH.dtype)
    return F.normalize((hidden_NLH * keep_NL1).sum(1) / keep_NL1.sum(1), dim=-1)


def at_its_best(
    make: Callable[..., Embed],
    texts: Sequence[str],
    is_query: bool,
    attentions: Sequence[str] = ATTENTIONS,
    known: str = "",
) -> tuple[Embed, str]:
    """-> the fastest `make(batch=..., attention=...)` on some of these texts, and which it is. Queries come alone.

    `known` is what an earlier process found, which need not be found again.
    """
    asked = list(texts[:TRIED])
    ways = _ways(len(asked), is_query, attentions)
    best = known if known in ways else min(ways, key=lambda way: _seconds(make(**ways[way]), asked, is_query))
    return make(**ways[best]), best


def _ways(count: int, is_query: bool, attentions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By name."""
    batches = [BATCH] if is_query else [batch for batch in BATCHES if batch <= count] or BATCHES[:1]
    ways: dict[str, dict[str, Any]] = {}
    for batch in batches:
        for how in [{"attention": attention} for attention in attentions] or [{}]:
            name = ", ".join(["alone" if is_query else f"batch {batch}", *how.values()])
            ways[name] = {"batch": batch, **how}
    return ways


def _seconds(embed: Embed, texts: Sequence[str], is_query: bool) -> float:
    embed(texts[:2], is_query)
    start = time.perf_counter()
    for part in [[text] for text in texts] if is_query else [texts]:
        embed(part, is_query)
    return time.perf_counter() - start


def check(found: dict[str, Embed], texts: Sequence[str], is_query: bool, truth: Embed, precision: str = "bf16") -> None:
    """Raises AssertionError where a contender embeds these texts otherwise than `truth`, a model in fp32.

    Its own name says its precision; `precision` is that of the others.
    """
    expected = torch.from_numpy(truth(texts, is_query))
    for name, embed in found.items():
        error = relative_error(torch.from_numpy(embed(texts, is_query)), expected)
        tolerance = TOLERANCE.get(name.split()[-1], TOLERANCE[precision])
        assert error <= tolerance, f"{name}: embeddings are off by {error:.1e}"
