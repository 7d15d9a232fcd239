"""The two encoders of a dense retriever, one for questions and one for passages; often they are the same."""

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object
from moe_retrieval.models import backbones
from moe_retrieval.retrieval.embedder import Embedder

SEPARATED = " [SEP] "
"""DPR's context encoder reads a title and a text as two segments: [CLS] title [SEP] text [SEP], all of type 0."""


def check_towers(questions: Embedder, passages: Embedder) -> None:
    if questions.hidden_size != passages.hidden_size:
        raise InputError(
            f"--query-model embeds into {questions.hidden_size} dimensions and --model into {passages.hidden_size}: "
            "expected two encoders of one retriever"
        )


def joint_of(name: str) -> str:
    """What stands between the title and the text of a passage that this model embeds."""
    kind = read_object(backbones.find(name) / "config.json").get("model_type")
    return SEPARATED if kind == "dpr" else " "
