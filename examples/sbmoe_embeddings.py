"""A layer of experts on top of finished sentence embeddings, trained to find the document that answers a query.

python examples/sbmoe_embeddings.py
"""

import torch
import torch.nn.functional as F

import kernels

# Yours: SentenceTransformer("all-MiniLM-L6-v2").encode(texts). Here: six topics, each with its own large directions
# that say nothing about the answer: work for experts.
torch.manual_seed(0)
topic = torch.randint(6, (2000,))
meaning = 3 * torch.randn(6, 48)[topic] + torch.randn(2000, 48)
directions = torch.linalg.qr(torch.randn(6, 48, 8)).Q[topic]
noise = 2 * torch.einsum("nij,snj->sni", directions, torch.randn(2, 2000, 8))
queries, documents = F.normalize(meaning + noise, dim=-1)


def recall(layer):
    scores = layer(queries[1800:]) @ F.normalize(layer(documents[1800:]), dim=-1).T
    return (scores.argmax(-1) == torch.arange(200)).float().mean().item()


layer = kernels.SBMoE(48, num_experts=6, top_k=1)  # starts as the identity
print(f"recall@1 before: {recall(layer.eval()):.2f}")
optimizer = torch.optim.AdamW(layer.train().parameters(), lr=3e-3)
for _ in range(300):
    rows = torch.randperm(1800)[:256]
    q, d = (F.normalize(layer(x[rows]), dim=-1) for x in (queries, documents))
    loss = F.cross_entropy(q @ d.T / 0.05, torch.arange(256)) + kernels.aux_loss(layer)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"recall@1 after:  {recall(layer.eval()):.2f}")
