"""Random models of transformers, whose files ours are read from."""

import torch
import transformers


def make_bert(kind="bert", **changes):
    """A random model of transformers whose weights are far from their tame initial ones."""
    torch.manual_seed(0)
    classes = {
        "bert": transformers.BertModel,
        "roberta": transformers.RobertaModel,
        "distilbert": transformers.DistilBertModel,
    }
    configs = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "distilbert": transformers.DistilBertConfig,
    }
    options = dict(vocab_size=211, max_position_embeddings=40, attn_implementation="eager") | changes
    model = classes[kind](configs[kind](**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "bias" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "embeddings" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
    return model
