"""What is compared: variants by name, their controls, and one setting over several values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_retrieval.bounds import flag
from moe_retrieval.config import OF_EXPERTS, SENSELESS, TrainConfig

NAMED: dict[str, dict[str, Any]] = {"sb-moe-all": {"variant": "sb-moe", "top_k": "all"}}
"""What has a name of its own in a comparison, besides the variants of training."""

OF_CONTROLS = {
    "dense-wide": ("num_experts", "expert_size", "layers", "gate", "noise", "activation"),
    "random": ("num_experts", "expert_size", "layers", "top_k", "activation", "drop_upcycling"),
}
"""The flags about experts that make a control another model, too: dense-wide has as many parameters as they give, those
of the gate included."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "num_experts": {"sb-moe": 6, "moe": 8},
    "top_k": {"sb-moe": 1, "moe": 2},
    "router": {"sb-moe": "softmax", "moe": "softmax"},
    "gate": {"sb-moe": "mlp", "moe": "linear"},
    "noise": {"sb-moe": True, "moe": False},
    "combine": {"sb-moe": "residual"},
    "renormalize": {"sb-moe": False, "moe": True},
    "aux_coef": {"sb-moe": 0.01, "moe": 0.01},
    "z_coef": {"sb-moe": 0.0, "moe": 0.0},
    "drop_upcycling": {"moe": 0.0},
}
"""What None is, by family, where that is the same for every backbone: the value of a sweep that is the default needs no
runs of its own."""

OPPONENTS = ("dense", "dense-wide")
"""A variant with experts that does not beat both owes nothing to them."""

Runs = dict[str, list[TrainConfig]]
"""Variant -> its runs, a seed each."""


@dataclass(frozen=True)
class Contest:
    runs: Runs
    setting: str | None = None
    """That of the sweep"""
    swept: Mapping[str, Mapping[Any, list[TrainConfig]]] = field(default_factory=dict)
    """Variant -> value of the setting -> its runs: those of `runs`, where they have that value anyway"""

    def every(self) -> list[TrainConfig]:
        """Each run once."""
        listed = [*self.runs.values(), *(alike for by_value in self.swept.values() for alike in by_value.values())]
        return list({run.output_dir: run for alike in listed for run in alike}.values())

    def opponents(self, family: str | None = None) -> dict[str, TrainConfig]:
        """What all are tested against, with its first run: dense, and dense-wide, of that family or of any."""
        firsts = {name: alike[0] for name, alike in self.runs.items() if alike[0].variant in OPPONENTS}
        theirs = {name: run for name, run in firsts.items() if family in (None, run.family) or run.variant == "dense"}
        return dict(sorted(theirs.items(), key=lambda item: OPPONENTS.index(item[1].variant)))

    @property
    def flag(self) -> str:
        """
        >>> Contest({}, "num_experts").flag
        'num-experts'
        """
        return flag(self.setting or "").removeprefix("--")

    @property
    def first(self) -> TrainConfig:
        return next(iter(self.runs.values()))[0]


@dataclass(frozen=True)
class Sweep:
    setting: str
    """A field of TrainConfig"""
    values: tuple[Any, ...]

    def is_for(self, name: str, run: TrainConfig) -> bool:
        """Whether the setting makes these runs others."""
        if self.setting == "expert_lr" and run.variant == "dense":
            return False
        if self.setting not in OF_EXPERTS:
            return True
        if self.setting in SENSELESS[run.family] or self.setting in NAMED.get(name, {}):
            return False
        return self.setting in OF_CONTROLS.get(run.variant, OF_EXPERTS)


def effective(run: TrainConfig, setting: str) -> Any:
    """The value that a run has where it was not given one, as far as that is known before there is a model."""
    value = getattr(run, setting)
    if value is not None:
        return value
    return run.peak_expert_lr if setting == "expert_lr" else DEFAULTS.get(setting, {}).get(run.family)
