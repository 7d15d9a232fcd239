"""What a comparison found: every measure of every system, and which differences are more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from moe_retrieval.bounds import flag
from moe_retrieval.data.collection import Collection
from moe_retrieval.evaluation.domains import domains_of
from moe_retrieval.evaluation.significance import confidence_interval
from moe_retrieval.evaluation.systems import System, spread
from moe_retrieval.evaluation.table import TESTED

FIT = "train"
"""The split that says how well models fit what they were trained on, and not how good they are."""

COSTS = (
    "parameters", "active", "steps", "training_seconds", "peak_bytes", "documents_per_second", "query_ms",
)  # fmt: skip


class Row(NamedTuple):
    """A system, and p of its difference to others, by name; None where too few queries differ."""

    system: System
    p: Mapping[str, float | None]


@dataclass(frozen=True)
class Findings:
    collection: Collection
    """Of whose train split as many queries are there as were asked"""
    splits: Sequence[str]
    """The one that counts, and perhaps `FIT`"""
    rows: Mapping[str, Row]
    setting: str | None = None
    """What was swept"""
    swept: Mapping[str, Mapping[Any, Row]] = field(default_factory=dict)
    """Variant -> value of the setting -> what became of it"""

    @property
    def split(self) -> str:
        return self.splits[0]

    @property
    def swept_flag(self) -> str:
        return flag(self.setting or "").removeprefix("--")

    def domains(self) -> dict[str, np.ndarray]:
        return domains_of(self.collection, self.split)

    def as_json(self) -> dict[str, Any]:
        """Everything; what the tables show, and the measures that they do not."""
        domains = self.domains()
        found: dict[str, Any] = {
            "collection": self.collection.name,
            "fingerprint": self.collection.fingerprint,
            "documents": len(self.collection.documents),
            "queries": {split: len(self.collection.qrels(split)) for split in self.splits},
            "domains": {name: len(places) for name, places in domains.items()},
            "systems": {name: self._system(row, domains) for name, row in self.rows.items()},
        }
        if self.swept:
            points = {
                name: [{"value": value} | self._system(row, domains) for value, row in by_value.items()]
                for name, by_value in self.swept.items()
            }
            found["sweep"] = {"setting": self.setting, "systems": points}
        return found

    def _system(self, row: Row, domains: Mapping[str, np.ndarray]) -> dict[str, Any]:
        system = row.system
        return {
            "seeds": list(system.seeds),
            "folders": list(system.folders),
            "measures": {split: _every_measure(system, split) for split in self.splits},
            "by_domain": {
                name: {TESTED: _over_seeds(system.by_seed_at(self.split, TESTED, places))}
                for name, places in domains.items()
            },
            "interval": list(confidence_interval(system.mean(self.split).per_query[TESTED])),
            "p_against": dict(row.p),
            "costs": {name: cost for name in COSTS if (cost := system.cost(name)) is not None},
        }


def _every_measure(system: System, split: str) -> dict[str, dict[str, Any]]:
    return {name: _over_seeds(system.by_seed(split, name)) for name in system.measured[0].measures[split].means}


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "spread": spread(values), "by_seed": list(values)}
