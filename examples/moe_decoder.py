"""A mixture-of-experts decoder of transformers on our experts: the same text, from the same weights.

python examples/moe_decoder.py
"""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import kernels

kernels.register_with_transformers()

torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, eos_token_id=None,
)  # fmt: skip
model = MixtralForCausalLM(config).eval()  # yours: from_pretrained(..., experts_implementation="moe_kernels")
prompt = torch.tensor([[1, 17, 42, 99]])

texts, logits = {}, {}
for implementation in ("eager", "moe_kernels"):
    model.set_experts_implementation(implementation)
    texts[implementation] = model.generate(prompt, max_new_tokens=12, do_sample=False)
    logits[implementation] = model(texts[implementation]).logits

difference = (logits["moe_kernels"] - logits["eager"]).norm() / logits["eager"].norm()
print("generated:", texts["moe_kernels"][0].tolist())
print(f"same text: {texts['moe_kernels'].equal(texts['eager'])}, logits differ by {difference.item():.0e}")

loss = model(prompt, labels=prompt).loss  # training works as well
loss.backward()
print(f"loss {loss.item():.2f}, gradient of the experts {model.model.layers[0].mlp.experts.down_proj.grad.norm():.2f}")
