"""DistilBERT is a BERT without token types, whose files have other names."""

from typing import Any

CONFIG = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}
"""BERT's name in config.json -> DistilBERT's."""

TENSORS = {
    "transformer.layer.": "encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
}
"""A part of a tensor's name -> BERT's."""


def as_bert_config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {ours: config[theirs] for ours, theirs in CONFIG.items() if theirs in config}


def as_bert_name(name: str) -> str:
    """
    >>> as_bert_name("distilbert.transformer.layer.3.sa_layer_norm.bias")
    'distilbert.encoder.layer.3.attention.output.LayerNorm.bias'
    """
    for theirs, ours in TENSORS.items():
        name = name.replace(theirs, ours)
    return name
