"""Do embeddings agree with people on how alike two sentences are?"""

from collections.abc import Sequence

import numpy as np

from moe_retrieval.data.sentences import Pair
from moe_retrieval.errors import InputError
from moe_retrieval.retrieval.embedder import Embedder
from moe_retrieval.retrieval.encode import encode_texts


def evaluate_similarity(model: Embedder, pairs: Sequence[Pair], progress: bool = False) -> dict[str, float]:
    """Pearson's and Spearman's correlation of cosine and score. Sentences get no prompt."""
    from scipy import stats

    scores = np.array([pair.score for pair in pairs])
    if len(pairs) < 2 or np.ptp(scores) == 0:
        raise InputError(f"similarity needs pairs with different scores, got {len(pairs)} with {len(set(scores))}")
    label = "sentences" if progress else None
    sides = [pair.first for pair in pairs], [pair.second for pair in pairs]
    first_NH, second_NH = (encode_texts(model, side, "text", progress=label).astype(np.float64) for side in sides)
    norms = np.linalg.norm(first_NH, axis=1) * np.linalg.norm(second_NH, axis=1)
    cosine = (first_NH * second_NH).sum(1) / np.maximum(norms, 1e-12)
    return {
        "Pearson": float(stats.pearsonr(cosine, scores).statistic),
        "Spearman": float(stats.spearmanr(cosine, scores).statistic),
    }
