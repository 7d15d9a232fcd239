"""Who does the work: the share of each expert, by layer, side and domain."""

import math
from typing import Any

from torch import Tensor

from moe_retrieval.analysis.domains import Domains


def describe_load(layer: str, side: str, share_DE: Tensor, count_D: Tensor, domains: Domains) -> list[dict[str, Any]]:
    """A row for all texts of a side, domain None, and one for each domain that has some, where they are told apart.

    `share_DE` is how many tokens (or texts) of a domain each expert had: one that went to two counts half for each.
    """
    rows = [_row(layer, side, None, share_DE.sum(0), int(count_D.sum()))]
    if domains.are_told_apart:
        for number, name in enumerate(domains.names):
            if count_D[number]:
                rows.append(_row(layer, side, name, share_DE[number], int(count_D[number])))
    return rows


def _row(layer: str, side: str, domain: str | None, had_E: Tensor, count: int) -> dict[str, Any]:
    shares = (had_E / had_E.sum()).tolist() if count else [0.0] * len(had_E)
    entropy = entropy_of(shares)
    return {
        "layer": layer,
        "side": side,
        "domain": domain,
        "count": count,
        "share": shares,
        "entropy": entropy,
        "effective_experts": math.exp(entropy) if count else 0.0,
    }


def entropy_of(shares: list[float]) -> float:
    """In nats; exp of it is the number of experts that would share alike with as much of it.

    >>> round(math.exp(entropy_of([0.5, 0.5, 0.0])), 3)
    2.0
    """
    return max(0.0, -sum(share * math.log(share) for share in shares if share > 0))
