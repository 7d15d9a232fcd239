"""An encoder that guesses hidden words: what pre-training adds to it, and drops at the end.

Suffixes: T tokens, M tokens that are to be guessed, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_retrieval.models.encoder import Encoder, pack
from moe_retrieval.training.masking import Masked


class MaskedModel(nn.Module):
    """BERT's head: a layer, a norm, and the embedding of tokens once more, to say how near each token is."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        shape = encoder.shape
        self.encoder = encoder
        self.transform = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, shape.norm_eps)
        self.bias = nn.Parameter(torch.zeros(shape.vocab_size))

    def forward(self, texts: Sequence[Masked]) -> Tensor:
        """The sum over texts of the mean cross-entropy of what is to be guessed in each."""
        logits_MV, expected_M = self.guess(texts)
        counts = [len(text.places) for text in texts]
        weight_M = torch.tensor([1 / count for count in counts for _ in range(count)], device=logits_MV.device)
        return (F.cross_entropy(logits_MV.float(), expected_M, reduction="none") * weight_M).sum()

    def guess(self, texts: Sequence[Masked]) -> tuple[Tensor, Tensor]:
        """-> a score for every token of the vocabulary at each place, and the token that stood there"""
        device = self.bias.device
        input_ids_T, cu_seqlens, max_len = pack([text.ids for text in texts], device)
        starts = accumulate((len(text.ids) for text in texts), initial=0)
        places_M = torch.tensor(
            [start + place for start, text in zip(starts, texts) for place in text.places], dtype=torch.long
        )
        expected_M = torch.tensor([token for text in texts for token in text.expected], dtype=torch.long)
        hidden_MH = self.encoder(input_ids_T, cu_seqlens, max_len)[places_M.to(device)]
        hidden_MH = self.norm(F.gelu(self.transform(hidden_MH)))
        return F.linear(hidden_MH, self.encoder.tokens.weight, self.bias), expected_M.to(device)
