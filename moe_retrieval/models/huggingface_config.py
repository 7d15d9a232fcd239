"""The configuration of our models in `transformers`."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from moe_retrieval.models.retriever import MODEL_TYPE, RetrieverSettings


class RetrieverConfig(PreTrainedConfig):
    model_type = MODEL_TYPE

    retriever: dict[str, Any] | None = None
    """`RetrieverSettings.to_dict()`"""

    @property
    def settings(self) -> RetrieverSettings:
        if self.retriever is None:
            raise ValueError("a RetrieverConfig needs `retriever`, the dict of a RetrieverSettings")
        return RetrieverSettings.from_dict(self.retriever)
