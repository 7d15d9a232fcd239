"""What compare and analyze write, as far as a page needs it, by hand."""

import json

from moe_retrieval.evaluation.page import EVERY

CUTS = (1, 3, 10, 100)


def measured(ndcg, spread=None):
    """Every measure; those that a test does not look at are 0.25."""
    known = dict.fromkeys(EVERY, 0.25)
    known |= {f"{name}@{cut}": 0.25 + cut / 1000 for name in ("NDCG", "Recall", "MRR", "MAP", "P") for cut in CUTS}
    known["NDCG@10"] = ndcg
    by_seed = [1.0] if spread is None else [1.0, 1.0]
    return {name: {"mean": mean, "spread": spread, "by_seed": [mean] * len(by_seed)} for name, mean in known.items()}


def system(ndcg, p=None, seeds=(0,), folders=(), costs=None, by_domain=None, spread=None):
    return {
        "seeds": list(seeds),
        "folders": list(folders),
        "measures": {"test": measured(ndcg, spread)},
        "by_domain": by_domain or {},
        "interval": [ndcg - 0.02, ndcg + 0.03],
        "p_against": p or {},
        "costs": costs or {},
    }


def comparison(systems, **more):
    return {
        "command": "python -m moe_retrieval.compare",
        "precision": "fp32",
        "collection": "gardens",
        "fingerprint": "0123456789abcdef",
        "documents": 48,
        "queries": {"test": 16},
        "domains": {},
        "systems": systems,
        **more,
    }


def analysis(**more):
    return {
        "run": {"variant": "sb-moe", "dataset": "gardens", "split": "test", "queries": 16, "documents": 48},
        "ndcg_at_10": 0.5,
        "layers": [],
        "load": [],
        "redundancy": [],
        "terms": [],
        "removal": {"note": None, "experts": []},
        "findings": [],
        "queries": {"query": [], "domain": []},
        "against": None,
        "gains": [],
        "losses": [],
        **more,
    }


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder
