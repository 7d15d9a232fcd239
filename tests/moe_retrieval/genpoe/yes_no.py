"""Tiny causal language models with random weights, and a tokenizer that has Yes and No."""

import torch
import transformers

from moe_retrieval.genpoe.prompts import PROMPTS
from moe_retrieval.models.tokenizer import train_tokenizer

SIZES = {
    "gpt2": lambda vocab: transformers.GPT2Config(
        vocab_size=vocab, n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    ),
    "llama": lambda vocab: transformers.LlamaConfig(
        vocab_size=vocab, max_position_embeddings=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    ),
}  # fmt: skip


def write_decoder(folder, kind="gpt2", texts=(), noise=0.0):
    """-> the folder of a random model, whose tokenizer knows the prompts and these texts; `noise` makes it say much."""
    tokenizer = train_tokenizer([*PROMPTS.values(), "Yes No", "A: B: Yes", *texts] * 3, 600, "bpe")
    tokenizer.save(folder)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(SIZES[kind](tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder
