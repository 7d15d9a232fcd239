"""How large the experiment without a network is: a dataclass of flags, and named sizes."""

from dataclasses import dataclass
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import fixed

LEAST_OF = {
    "seeds": 1, "decoder_people": 1, "train_people": 1, "test_people": 1, "hidden_size": 1, "blocks": 1, "heads": 1,
    "layer": 0, "rank": 1, "bottleneck": 1, "decoder_steps": 1, "reranker_steps": 1, "expert_steps": 1,
}  # fmt: skip


@dataclass(kw_only=True)
class ExperimentConfig:
    """Made-up facts, a small decoder that learns to read, a reranker, a hypernetwork: then questions about people that
    none of them has seen, answered in every way. The same command again goes on where a run was stopped."""

    output_dir: str = "runs/genpoe"
    """Where all of it goes, a folder a seed; results.json has the measures."""
    seeds: int = 3
    """How often all of it is done, with other facts and other weights each time."""
    decoder_people: int = 2000
    """Whose facts the decoder learns to read."""
    train_people: int = 2000
    """Whose facts the hypernetwork learns from, and the reranker from as many of them as its steps take."""
    test_people: int = 100
    """Whose facts are asked for at the end, six questions each."""
    hidden_size: int = 128
    """Of the decoder."""
    blocks: int = 3
    """Of the decoder."""
    heads: int = 4
    """Of the decoder's attention."""
    layer: int = 1
    """The decoder's layer that gets experts, counted from 0."""
    rank: int = 32
    """Of an expert's four factors."""
    bottleneck: int = 256
    """Width of the hypernetwork between what it reads and what it writes."""
    decoder_steps: int = 2000
    """Of 32 texts."""
    reranker_steps: int = 600
    """Of 8 questions with 4 passages."""
    expert_steps: int = 1200
    """Of 64 questions."""
    expert_lr: float = 1e-3
    """Peak learning rate of the hypernetwork."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""

    def __post_init__(self) -> None:
        check_bounds(self, {name: (least, None) for name, least in LEAST_OF.items()}, flag)


PRESETS = fixed({
    "gpu": {
        "decoder_people": 20_000, "train_people": 50_000, "test_people": 500, "hidden_size": 512, "blocks": 8,
        "heads": 8, "layer": 3, "rank": 128,
        "bottleneck": 512, "decoder_steps": 10_000, "reranker_steps": 3000, "expert_steps": 20_000, "precision": "bf16",
    },
})  # fmt: skip
"""gpu: longer than two cores bear. It has not been run."""
