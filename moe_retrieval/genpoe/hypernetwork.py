"""A hypernetwork: what a passage is about -> what tells its expert from those of other passages.

Where it starts decides whether it learns. An expert is four factors one after the other, and a factor of zeros keeps
gradients from the three others: with two such factors nothing would ever move. So all experts share factors (`base`)
that pass on what they get, but for the last, which is zero; and every passage adds to all four a little of its own.
The term that is injected then starts near zero, it is another for each passage, and every parameter has a gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import LowRankExperts
from moe_retrieval.bounds import check_bounds

SPREAD = 0.01
"""How large, at the start, what a passage adds to a factor is against a factor that passes on what it gets."""

LEAST = 1e-4
"""Deviation of an embedding, beside its size, below which there is nothing to tell apart by"""


class HyperNetwork(nn.Module):
    """hidden_size -> bottleneck -> relu -> 4 * rank * hidden_size, and the base that all experts share."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, hidden_size: int, rank: int, bottleneck: int):
        super().__init__()
        self.hidden_size, self.rank, self.bottleneck = hidden_size, rank, bottleneck
        check_bounds(self, dict.fromkeys(("hidden_size", "rank", "bottleneck"), (1, None)))
        self.read = nn.Linear(hidden_size, bottleneck)
        self.write = nn.Linear(bottleneck, 4 * rank * hidden_size, bias=False)  # base is its bias
        self.enter = nn.Parameter(torch.empty(rank, hidden_size))
        self.up = nn.Parameter(torch.empty(hidden_size, rank))
        self.down = nn.Parameter(torch.empty(rank, hidden_size))
        self.leave = nn.Parameter(torch.empty(rank, hidden_size))
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("deviation", torch.ones(hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.read.weight, nonlinearity="relu")
        self.read.bias.zero_()
        nn.init.normal_(self.enter, std=self.hidden_size**-0.5)
        nn.init.kaiming_normal_(self.up, nonlinearity="relu")
        nn.init.normal_(self.down, std=self.hidden_size**-0.5)
        self.leave.zero_()
        sizes = [self.hidden_size**-0.5, (2 / self.rank) ** 0.5, self.hidden_size**-0.5, self.rank**-0.5]
        for rows, size in zip(self.write.weight.view(4, -1, self.bottleneck), sizes):
            nn.init.normal_(rows, std=SPREAD * size * self.bottleneck**-0.5)

    @torch.no_grad()
    def standardize(self, embedding_PH: Tensor) -> None:
        """From here on, embeddings are told apart by how they differ from these, which are those of many passages.

        What passages have in common is most of their mean embeddings, and all of it is small numbers: read as they are,
        they would all look alike to the bottleneck, and it would learn slowly.
        """
        wide = embedding_PH.double()
        least = max(LEAST, LEAST * wide.square().mean().sqrt().item())
        self.mean.copy_(wide.mean(0))
        self.deviation.copy_(wide.std(0, correction=0).clamp(min=least))

    @property
    def base(self) -> LowRankExperts:
        return LowRankExperts(self.enter, self.up, self.down, self.leave)

    def forward(self, embedding_PH: Tensor) -> LowRankExperts:
        """What is added to the base, of each passage's mean embedding."""
        made = self.write(F.relu(self.read((embedding_PH - self.mean) / self.deviation)))
        enter, up, down, leave = made.view(-1, 4, self.rank, self.hidden_size).unbind(1)
        return LowRankExperts(enter, up.mT, down, leave)


def mean_embedding(table: nn.Module, sequences: list[list[int]], device: torch.device) -> Tensor:
    """-> [passages, H] in fp32 or wider: of the token ids of each passage, by the language model's input embedding.

    A passage without a token is at 0.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    ids = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long, device=device)
    owner = torch.arange(len(sequences), device=device).repeat_interleave(lengths)
    embeddings = table(ids)
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    sums = wide.new_zeros(len(sequences), wide.shape[-1]).index_add_(0, owner, wide)
    return sums / lengths.clamp(min=1)[:, None]
