"""Named settings: those of papers, by their text and their code, and those of a model from nothing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_retrieval.config import CONTROLS
from moe_retrieval.training.contest import DEFAULTS, NAMED


@dataclass(frozen=True)
class Preset:
    """Flags of training, some of which go with others: experts with a variant that has some."""

    variant: str
    settings: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    """By variant."""
    by_model: dict[str, dict[str, Any]] = field(default_factory=dict)
    """A pattern in --model -> what is otherwise for it."""

    def flags(self, given: Mapping[str, str]) -> dict[str, Any]:
        """For `train`; `given` are the flags that stand beside it, and win."""
        variant = given.get("variant", self.variant)
        flags: dict[str, Any] = {"variant": variant}
        if variant in CONTROLS and "control_of" not in given:
            flags["control_of"] = self.variant
        family = given.get("control_of", self.variant) if variant in CONTROLS else variant
        return flags | self._of_model(given) | self.experts.get(family, {})

    def flags_of_comparison(self, given: Mapping[str, str]) -> dict[str, Any]:
        """For `compare`: the paper's variant beside dense and its own controls.

        A flag about experts is for all variants with experts: beside another kind of them than the paper's, those that
        say what the paper's are anyway are left out, as they would make others of the other.
        """
        flags = {"variants": given.get("variants", ",".join(("dense", *CONTROLS, self.variant)))}
        names = [name.strip() for name in flags["variants"].split(",")]
        families = {NAMED.get(name, {"variant": name})["variant"] for name in names} - {"dense", *CONTROLS}
        if not families and set(names) & set(CONTROLS):
            flags["control_of"] = given.get("control_of", self.variant)
            families = {flags["control_of"]}
        experts = self.experts.get(self.variant, {}) if self.variant in families else {}
        if len(families) > 1:
            experts = {name: value for name, value in experts.items() if not self._is_default(name, value)}
        return flags | self._of_model(given) | experts

    def _is_default(self, name: str, value: Any) -> bool:
        return bool(DEFAULTS.get(name, {}).get(self.variant) == value)

    def _of_model(self, given: Mapping[str, str]) -> dict[str, Any]:
        flags = dict(self.settings)
        for pattern, changed in self.by_model.items():
            if re.search(pattern, given.get("model", flags["model"]), re.IGNORECASE):
                flags |= changed
        return flags


FROM_SCRATCH: dict[str, Any] = {
    "hidden": 256, "num_layers": 6, "heads": 8, "ff": 1024, "vocab_size": 10_000, "dropout": 0.1, "lr": 1e-3,
    "schedule": "cosine", "epochs": 20,
}  # fmt: skip
"""Of a small encoder that begins with random weights: its shape, and how long it learns."""

PRESETS = {
    "sb-moe-paper": Preset(
        "sb-moe",
        {
            "model": "tinybert", "epochs": 20, "batch_size": 64, "lr": 1e-6, "expert_lr": 1e-4, "schedule": "constant",
            "warmup": 0.0, "clip": 0.0, "weight_decay": 0.01, "dropout": 0.1, "precision": "fp32", "loss": "infonce",
            "temperature": 1.0, "negatives": "in-batch", "pooling": "mean", "normalize": False, "query_length": 256,
            "doc_length": 256, "keep": "last", "eval_every": "1e", "save_every": "1e",
        },
        {"sb-moe": {"num_experts": 6, "top_k": 1, "combine": "normalized", "noise": True, "aux_coef": 0.0}},
        {"tiny": {"epochs": 30}, "contriever": {"temperature": 0.05}},
    ),
    "ucsd": Preset(
        "moe",
        {
            "model": "tinybert", "epochs": 20, "lr": 5e-5, "expert_lr": 5e-5, "negatives": "bm25", "num_negatives": 1,
            "pooling": "cls", "precision": "fp16",
        },
        {"moe": {"num_experts": 8, "top_k": 2}},
    ),
    "from-scratch": Preset(
        "moe",
        {"model": "scratch", **FROM_SCRATCH, "expert_lr": FROM_SCRATCH["lr"]},
        {"moe": {"num_experts": 8, "top_k": 2}},
    ),
}  # fmt: skip
"""arXiv 2412.11864, with what its code has and its text has not (dropout of the backbones, no clipping, the last epoch
is kept), and the UCSD report on SciFact; --variant dense is the paper's own baseline: it trains at the same rates. And
a model from nothing, whose experts are as new as the rest and learn at its rate."""
