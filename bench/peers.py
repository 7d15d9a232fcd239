"""What people write or use today in place of our layers."""

import torch
from torch import Tensor, nn


class ExpertLoop(nn.Module):
    """A linear gate and a Python loop over separate experts: the baseline of the papers.

    Separate `nn.Linear`s, because indexing one stacked parameter in a loop copies a gradient of the whole stack.
    """

    def __init__(self, hidden_size: int, ffn_size: int, num_experts: int, top_k: int):
        super().__init__()
        self.gate, self.top_k = nn.Linear(hidden_size, num_experts, bias=False), top_k
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden_size, ffn_size), nn.GELU(), nn.Linear(ffn_size, hidden_size))
            for _ in range(num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == e)
            out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return out
