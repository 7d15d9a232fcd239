"""The README.md of a trained model."""

from collections.abc import Mapping

from moe_retrieval.models.retriever import Retriever


def model_card(
    retriever: Retriever, backbone: str, dataset: str, training: Mapping[str, object], table: str | None = None
) -> str:
    """What it is, how it is used, how it was trained, and, once measured, the table."""
    settings = retriever.settings
    usage = settings.usage
    total, active = retriever.count_parameters()
    kind = (
        settings.variant if settings.variant == settings.family else f"{settings.variant}, control of {settings.family}"
    )
    rows = "\n".join(f"| {name} | {value} |" for name, value in training.items())
    measured = f"\n## Measured\n\n{table}\n" if table else ""
    return f"""---
library_name: moe-retrieval
tags: [sentence-transformers, feature-extraction, mixture-of-experts]
pipeline_tag: sentence-similarity
---

# {kind} retriever from {backbone}

Embeds questions and documents into {settings.embedding_size} dimensions. {total:,} parameters, {active:,} of
them at work on a token.

```python
import moe_retrieval

model = moe_retrieval.load("path/of/this/directory")
model.encode_query(["a question"]) @ model.encode_document(["a document"]).T
```

After `import moe_retrieval`, `SentenceTransformer(path)` loads it too (and reads questions up to the length of
documents), as does `AutoModel.from_pretrained(path)`, whose `pooler_output` is the embedding.

| | questions | documents |
|---|---|---|
| tokens read | {usage.query_length} | {usage.doc_length} |
| prompt | {_quoted(usage.query_prompt)} | {_quoted(usage.doc_prompt)} |

Pooling: {usage.pooling}; {"scaled to length 1" if usage.normalize else "not normalised"}.
{measured}
## Training

On {dataset}.

| | |
|---|---|
{rows}
"""


def _quoted(prompt: str) -> str:
    return f"`{prompt}`" if prompt else "none"
