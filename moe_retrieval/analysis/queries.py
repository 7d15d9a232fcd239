"""What is known of each query, and of the queries of each domain: how well it is ranked, how sure the gates were."""

from typing import Any

import numpy as np

from moe_retrieval.analysis.confidence import describe_confidence
from moe_retrieval.analysis.domains import Domains
from moe_retrieval.analysis.observation import Observation
from moe_retrieval.evaluation.significance import p_of_difference


def describe_queries(
    names: list[str], seen: Observation, domains: Domains, ndcg_Q: np.ndarray, other_Q: np.ndarray | None
) -> dict[str, Any]:
    """`names` are the queries', in the order of the arrays; `other_Q` is another model's NDCG@10."""
    confidences = {
        layer: confidence_Q
        for layer, passed in seen.layers.items()
        if (confidence_Q := passed.confidence_N()) is not None
    }
    return {
        "confidence": [describe_confidence(layer, each_Q, ndcg_Q) for layer, each_Q in confidences.items()],
        "domains": _domains(domains, ndcg_Q, other_Q),
        "queries": {
            "query": names,
            "domain": [domains.names[number] for number in domains.queries_Q.tolist()],
            "ndcg_at_10": ndcg_Q.tolist(),
            "against": None if other_Q is None else other_Q.tolist(),
            "confidence": {layer: each_Q.tolist() for layer, each_Q in confidences.items()},
        },
        "against": None if other_Q is None else _against(ndcg_Q, other_Q),
        "gains": [],
        "losses": [],
    }


def _domains(domains: Domains, ndcg_Q: np.ndarray, other_Q: np.ndarray | None) -> list[dict[str, Any]]:
    if not domains.are_told_apart:
        return []
    rows = []
    for number, name in enumerate(domains.names):
        asked_Q = (domains.queries_Q == number).numpy()
        rows.append(
            {
                "domain": name,
                "documents": int((domains.documents_N == number).sum()),
                "queries": int(asked_Q.sum()),
                "ndcg_at_10": float(ndcg_Q[asked_Q].mean()) if asked_Q.any() else None,
                "against": float(other_Q[asked_Q].mean()) if other_Q is not None and asked_Q.any() else None,
            }
        )
    return rows


def _against(ndcg_Q: np.ndarray, other_Q: np.ndarray) -> dict[str, Any]:
    return {
        "ndcg_at_10": float(other_Q.mean()),
        "difference": float((ndcg_Q - other_Q).mean()),
        "p": p_of_difference(ndcg_Q, other_Q),
        "gained": int((ndcg_Q > other_Q).sum()),
        "lost": int((ndcg_Q < other_Q).sum()),
    }
