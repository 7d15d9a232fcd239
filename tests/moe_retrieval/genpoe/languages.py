"""Tiny language models of transformers with random weights, of every family whose layers can be replaced."""

import torch
import transformers

VOCAB = 50
SHARED = dict(vocab_size=VOCAB, pad_token_id=0, eos_token_id=1, bos_token_id=None)
ROTARY = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    head_dim=8, max_position_embeddings=64, **SHARED,
)  # fmt: skip
T5 = dict(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0, **SHARED)

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**ROTARY),
    "qwen2": lambda: transformers.Qwen2Config(**ROTARY),
    "qwen3": lambda: transformers.Qwen3Config(**ROTARY),
    "gpt2": lambda: transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=64, **SHARED),
    "t5": lambda: transformers.T5Config(feed_forward_proj="relu", **T5),
    "t5-gated": lambda: transformers.T5Config(feed_forward_proj="gated-gelu", **T5),
}
DECODERS = ("llama", "qwen2", "qwen3", "gpt2")


def language(kind, dtype=torch.float32):
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    of_kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = of_kind.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model
