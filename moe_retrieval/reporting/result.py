"""What came out: which variant is better than which, in one sentence, in a picture, and in tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe_retrieval.config import CONTROLS
from moe_retrieval.evaluation.findings import FIT
from moe_retrieval.evaluation.page import EVERY, OF_FIT, SPREAD
from moe_retrieval.evaluation.table import HEADLINE, TESTED, shown_p
from moe_retrieval.reporting.costs import shown_cost
from moe_retrieval.reporting.part import Choice, Fold, Item, Lead, Part, Table, Text
from moe_retrieval.reporting.plots import Value, Values
from moe_retrieval.reporting.sources import Found, Sources

SURE = 0.05
"""The largest p that counts as more than chance"""

UNADJUSTED = """p is of a paired randomisation test over queries, the interval of a bootstrap over queries. No p is
adjusted for how many were compared."""

Systems = Mapping[str, Found]


def result(sources: Sources) -> Part:
    if sources.comparison is not None:
        return Part("Result", list(_of_comparison(sources)))
    if sources.metrics is not None:
        return Part("Result", list(_of_metrics(sources.metrics)))
    return Part("Result", [Table(_of_analyses(sources))])


def _of_comparison(sources: Sources) -> Iterator[Item]:
    assert sources.comparison is not None
    systems: Systems = sources.comparison["systems"]
    split, splits = sources.split, list(sources.comparison["queries"])
    first, *others = verdict(systems, split)
    yield Lead(first)
    yield from map(Text, others)
    yield Table(_headline(systems, split))
    yield Choice("", [_intervals(systems, split, sources.colors())])
    yield Text(f"{UNADJUSTED} {SPREAD}")
    yield Fold("All measures", [Table(_every_measure(systems, split))])
    if FIT in splits:
        told = f"{sources.comparison['queries'][FIT]} {OF_FIT}"
        yield Fold(f"Fit: the {FIT} split", [Text(told), Table(_every_measure(systems, FIT))])
    domains: Mapping[str, int] = sources.comparison["domains"]
    if domains:
        yield Fold("By domain", [Text(f"{TESTED} on the {split} split."), Table(_by_domain(systems, domains))])


def verdict(systems: Systems, split: str) -> list[str]:
    """Sentences, of what was trained and tested against dense and dense-wide: what beats both, or that nothing does;
    then each of them."""
    opponents = list(dict.fromkeys(name for system in systems.values() for name in system["p_against"]))
    trained = [name for name, system in systems.items() if system["seeds"] and name not in opponents]
    trained.sort(key=lambda name: name.split(" of ")[0] in CONTROLS)
    if not trained or not opponents:
        best = max(systems, key=lambda name: _mean(systems[name], split, TESTED))
        return [f"{best} has the highest {TESTED}: {_mean(systems[best], split, TESTED):.3f}."]
    beating = [name for name in trained if all(_is_better(systems, name, other, split) for other in opponents)]
    beaten = " and ".join(filter(None, [", ".join(opponents[:-1]), opponents[-1]]))
    if beating:
        first = f"Better than {beaten}, with p < {SURE}: {', '.join(beating)}."
    else:
        first = f"Nothing is better than {beaten} with p < {SURE}."
    return [first, *(_compared(systems, name, opponents, split) for name in trained)]


def _is_better(systems: Systems, name: str, other: str, split: str) -> bool:
    p = systems[name]["p_against"].get(other)
    return p is not None and p < SURE and _mean(systems[name], split, TESTED) > _mean(systems[other], split, TESTED)


def _compared(systems: Systems, name: str, opponents: Sequence[str], split: str) -> str:
    own = _mean(systems[name], split, TESTED)
    told = []
    for other in opponents:
        p = systems[name]["p_against"].get(other)
        sure = "too few queries differ to test" if p is None else f"p {shown_p(p)}"
        told.append(f"{own - _mean(systems[other], split, TESTED):+.4f} against {other} ({sure})")
    return f"{name}: {TESTED} {own:.3f}, {', '.join(told)}."


def _headline(systems: Systems, split: str) -> dict[str, list[str]]:
    rows = systems.values()
    columns = {"": list(systems)}
    for name in HEADLINE:
        columns[name] = [shown(system["measures"][split][name]) for system in rows]
        if name == TESTED:
            columns["95% interval"] = ["{:.3f}–{:.3f}".format(*system["interval"]) for system in rows]
    for other in dict.fromkeys(name for system in rows for name in system["p_against"]):
        columns[f"p against {other}"] = [shown_p(system["p_against"].get(other)) for system in rows]
    columns[f"{TESTED} by seed"] = [_by_seed(system["measures"][split][TESTED]) for system in rows]
    for cost in ("parameters", "active"):
        columns[cost] = [shown_cost(system, cost) for system in rows]
    return columns


def _by_seed(measured: Found) -> str:
    values = measured["by_seed"]
    return ", ".join(f"{value:.3f}" for value in values) if len(values) > 1 else ""


def _intervals(systems: Systems, split: str, colors: Mapping[str, int]) -> Values:
    values = [
        Value(name, _mean(system, split, TESTED), colors[name], (system["interval"][0], system["interval"][1]))
        for name, system in systems.items()
    ]
    return Values("result", f"{TESTED} with its 95% interval", TESTED, values, are_bars=False)


def _every_measure(systems: Systems, split: str) -> dict[str, list[str]]:
    columns = {"": list(systems)}
    for name in EVERY:
        columns[name] = [shown(system["measures"][split][name]) for system in systems.values()]
    return columns


def _by_domain(systems: Systems, domains: Mapping[str, int]) -> dict[str, list[str]]:
    columns = {"": list(domains), "queries": [f"{count:,}" for count in domains.values()]}
    for name, system in systems.items():
        columns[name] = [shown(system["by_domain"][domain][TESTED]) for domain in domains]
    return columns


def shown(measured: Mapping[str, Any]) -> str:
    """
    >>> shown({"mean": 0.5, "spread": 0.01}), shown({"mean": 0.5, "spread": None})
    ('0.500 ± 0.010', '0.500')
    """
    spread = measured["spread"]
    return f"{measured['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _mean(system: Found, split: str, measure: str) -> float:
    return system["measures"][split][measure]["mean"]


def _of_metrics(metrics: Found) -> Iterator[Item]:
    """Of a single model, perhaps on several collections."""
    each: Mapping[str, Found] = metrics["run"].get("datasets", {})
    rows = {**each, "mean" if each else str(metrics["run"].get("dataset", "the model")): metrics}
    names = [name for name in EVERY if name in metrics]
    lead = f"{TESTED} {metrics[TESTED]:.3f}" if TESTED in metrics else ""
    if lead:
        yield Lead(f"{lead} on {', '.join(each) or next(iter(rows))}.")
    yield Table({"": list(rows)} | {name: [f"{row[name]:.3f}" for row in rows.values()] for name in names})


def _of_analyses(sources: Sources) -> dict[str, list[str]]:
    found = [analysis.found for analysis in sources.analyses]
    against = [one.get("against") or {} for one in found]
    return {
        "": [analysis.label for analysis in sources.analyses],
        "variant": [str(one["run"].get("variant", "")) for one in found],
        TESTED: [f"{one['ndcg_at_10']:.3f}" for one in found],
        "of the other model": [f"{other['ndcg_at_10']:.3f}" if other else "" for other in against],
        "p": [shown_p(other["p"]) if other else "" for other in against],
    }
