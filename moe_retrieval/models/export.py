"""A model as a directory that we, AutoModel and SentenceTransformer load.

sentence-transformers takes only its own module classes from a directory, so `modules.json` names its stock Transformer,
which finds our model by its model type and takes `pooler_output`, the final embedding, as the sentence embedding.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors

from moe_retrieval.files import write, write_json
from moe_retrieval.models.retriever import MODEL_TYPE, Retriever, RetrieverSettings
from moe_retrieval.models.tokenizer import Tokenizer


def save(folder: Path, retriever: Retriever, tokenizer: Tokenizer, card: str) -> None:
    """Writes weights (fp32 safetensors), settings, tokenizer, card. Each file is replaced whole, the weights last."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    for name, content in _descriptions(retriever.settings).items():
        write_json(folder / name, content)
    write(folder / "README.md", card.encode())
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in retriever.state_dict().items()}
    write(folder / "model.safetensors", to_safetensors(state, {"format": "pt"}))


def _descriptions(settings: RetrieverSettings) -> dict[str, Any]:
    shape = settings.shape
    text = {"method": "forward", "method_output_name": "pooler_output"}
    return {
        "config.json": {
            "model_type": MODEL_TYPE,
            "architectures": ["RetrieverModel"],
            "dtype": "float32",
            "vocab_size": shape.vocab_size,
            "hidden_size": settings.embedding_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "max_position_embeddings": shape.max_positions,
            "retriever": settings.to_dict(),
        },
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}],
        "sentence_bert_config.json": {
            "max_seq_length": settings.usage.doc_length,
            "do_lower_case": False,
            "transformer_task": "feature-extraction",
            "modality_config": {"text": text},
            "module_output_name": "sentence_embedding",
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": settings.usage.query_prompt, "document": settings.usage.doc_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if settings.usage.normalize else "dot",
        },
    }
