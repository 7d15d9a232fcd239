"""Tokens a second, in training."""

from collections.abc import Sequence

from moe_retrieval.models.packed import PackedTokens
from moe_retrieval.training.gradcache import Tokens
from moe_retrieval.training.step import Batch

FADING = 0.9
"""What a step still counts at the next one."""


class Pace:
    """Of the newest steps more than of those before."""

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0

    def after(self, batches: Sequence[Batch], seconds: float) -> float:
        """After a step that took these batches."""
        sides = [side for batch in batches for side in (batch.queries, batch.documents)]
        self.tokens = FADING * self.tokens + sum(map(_count, sides))
        self.seconds = FADING * self.seconds + seconds
        return self.tokens / self.seconds


def _count(side: Tokens) -> int:
    return side.num_tokens if isinstance(side, PackedTokens) else sum(map(len, side))
