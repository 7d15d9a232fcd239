"""Which tokens of a text are to be guessed, and what is read in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_retrieval.errors import InputError
from moe_retrieval.models.tokenizer import Tokenizer

HIDDEN, OTHER = 0.8, 0.1
"""Of the tokens that are to be guessed: the share that is hidden, and the share in whose place another token is read.
The rest is read as it is: in use nothing is hidden, and each token has to be understood from its neighbours, too."""


class Masked(NamedTuple):
    ids: list[int]
    """What is read."""
    places: list[int]
    """Of the tokens that are to be guessed, in their order."""
    expected: list[int]
    """What stood there."""


@dataclass(frozen=True)
class Masking:
    """Of one tokenizer. What frames a text is never to be guessed, nor the mask itself."""

    share: float
    mask: int
    vocab_size: int
    frame: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float) -> "Masking":
        mask = tokenizer.token_id("[MASK]", "<mask>")
        if mask is None:
            raise InputError("the tokenizer has no [MASK], and nothing can be hidden: expected a model that has one")
        (frame,) = tokenizer.encode_batch([""], max_length=512)
        return cls(share, mask, tokenizer.vocab_size, frozenset((*frame, mask)))

    def __call__(self, ids: Sequence[int], draw: np.random.Generator) -> Masked:
        """One token at least is to be guessed, unless there is none but the frame.

        1. Choose the tokens to guess.
        2. Of each, decide what is read: the mask, any token of the vocabulary, or the token itself.
        """
        free = np.flatnonzero([token not in self.frame for token in ids])
        count = min(len(free), max(1, round(self.share * len(free))))
        places = np.sort(draw.permutation(free)[:count])
        fate = draw.random(count)
        read = np.array(ids)
        expected = read[places]
        other = draw.integers(self.vocab_size, size=count)
        read[places] = np.where(fate < HIDDEN, self.mask, np.where(fate < HIDDEN + OTHER, other, expected))
        return Masked(read.tolist(), places.tolist(), expected.tolist())
