"""A BERT gets experts and learns to classify. Here it is tiny, random and reads made-up text.

python examples/upcycle_bert.py
"""

import torch
from transformers import BertConfig, BertForSequenceClassification

import kernels

torch.manual_seed(0)
config = BertConfig(
    vocab_size=100, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, num_labels=2
)  # yours: BertForSequenceClassification.from_pretrained("bert-base-uncased")
model = BertForSequenceClassification(config)

ids = torch.randint(5, 100, (64, 20))
mask = torch.arange(20) < torch.randint(5, 21, (64, 1))
labels = (ids[:, 1] < 50).long()  # the second token decides

model.eval()
before = model(ids, attention_mask=mask).logits
kernels.upcycle(model, num_experts=4, top_k=2, layers="every-2")  # the output starts as it was
change = (model(ids, attention_mask=mask).logits - before).abs().max().item()
print(f"logits changed by {change:.0e}")

model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(40):
    loss = model(ids, attention_mask=mask, labels=labels).loss + kernels.aux_loss(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

model.eval()
accuracy = (model(ids, attention_mask=mask).logits.argmax(-1) == labels).float().mean().item()
print(f"training accuracy {accuracy:.2f}")
