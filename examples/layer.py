"""The layer in a Transformer block of your own: experts instead of the feed-forward part.

python examples/layer.py
"""

import torch
from torch import nn

import kernels


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.experts = kernels.MoE(hidden, 4 * hidden, num_experts=8, top_k=2)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x, mask):
        x = self.norm1(x + self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0])
        return self.norm2(x + self.experts(x, mask))  # padding is not routed


torch.manual_seed(0)
block, target = Block(64, 4), nn.Linear(64, 64)
optimizer = torch.optim.AdamW(block.parameters(), lr=3e-3)
mask = torch.arange(32) < torch.randint(8, 33, (16, 1))
for step in range(30):
    x = torch.randn(16, 32, 64)
    loss = (block(x, mask) - target(x).detach())[mask].square().mean()
    optimizer.zero_grad()
    (loss + kernels.aux_loss(block)).backward()  # keeps the experts in use
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step:2}  loss {loss.item():.3f}")
with kernels.record_routing(block) as log:
    block(x, mask)
print("tokens of each expert:", log["experts"][0].counts_E.tolist())
print(f"loss {loss.item():.3f} on {', '.join(kernels.available_backends())}")
