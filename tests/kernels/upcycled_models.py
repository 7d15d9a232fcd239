"""Tiny dense models of transformers to upcycle, and one padded batch for them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

transformers = pytest.importorskip("transformers")

BERT = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=40,
    max_position_embeddings=34, pad_token_id=1,
)  # fmt: skip
DISTIL = dict(vocab_size=60, dim=24, n_layers=4, n_heads=2, hidden_dim=40, max_position_embeddings=34)


def bert(**settings):
    return transformers.BertModel(transformers.BertConfig(**BERT | settings))


BART = dict(vocab_size=60, d_model=24, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=40,
            decoder_layers=1, decoder_attention_heads=2, max_position_embeddings=34, pad_token_id=1)  # fmt: skip


LED = dict(
    vocab_size=60, d_model=24, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=40,
    decoder_attention_heads=2, decoder_ffn_dim=40, max_encoder_position_embeddings=34, attention_window=4,
    pad_token_id=1,
)  # fmt: skip

MODELS = {
    "bert": bert,
    "bert, eager attention": lambda: bert(attn_implementation="eager"),
    "bert, gelu_new": lambda: bert(hidden_act="gelu_new"),
    "bert, relu": lambda: bert(hidden_act="relu"),
    "bert, silu": lambda: bert(hidden_act="silu"),
    "bert, chunks": lambda: bert(chunk_size_feed_forward=5),
    "bert decoder": lambda: bert(is_decoder=True),
    "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**BERT)),
    "xlm-r": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**BERT)),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**BERT)),
    "dpr": lambda: transformers.DPRQuestionEncoder(transformers.DPRConfig(**BERT)),
    "electra": lambda: transformers.ElectraModel(transformers.ElectraConfig(**BERT)),
    "deberta": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**BERT)),
    "bart encoder": lambda: transformers.BartModel(transformers.BartConfig(**BART)).encoder,
}

IDS = torch.randint(3, 60, (3, 10), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([10, 4, 7])
MASK = (torch.arange(10) < LENGTHS[:, None]).long()


def randomised(model):
    """Unit-variance activations, biases that are not zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def hidden_states(model, mask=MASK, **kwargs):
    """Of the real tokens: the last hidden states, or what a model has instead (pooled, then)."""
    output = model(IDS, attention_mask=mask, **kwargs)
    if "last_hidden_state" in output:
        return output.last_hidden_state[MASK.bool()]
    return output[0]


class Block(nn.Module):
    """Somebody's own layer: no biases in the first Linear, the activation a plain function, no mask argument."""

    def __init__(self):
        super().__init__()
        self.expand, self.contract = nn.Linear(12, 20, bias=False), nn.Linear(20, 12)
        self.activation = F.relu

    def forward(self, x):
        return x + self.contract(self.activation(self.expand(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return x
