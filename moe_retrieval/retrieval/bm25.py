"""BM25 (bm25s, Lucene's formula): the baseline in every table, and a source of hard negatives."""

from collections.abc import Iterable, Sequence

import numpy as np


class BM25:
    """Words in lower case, without English stop words and plural endings."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        import bm25s

        self.size = len(texts)
        self.index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self.index.index(_words(texts, return_ids=True), show_progress=False)

    def search(self, queries: Iterable[str], k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """-> for each query scores and rows, the best first: at most k, and only of documents that share a word."""
        return [self._search(words, min(k, self.size)) for words in _words(list(queries), return_ids=False)]

    def _search(self, words: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = self.index.get_tokens_ids(words)
        if not ids:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        scores = self.index.get_scores_from_ids(ids)
        rows = np.argpartition(-scores, k - 1)[:k]
        rows = rows[scores[rows] > 0]
        rows = rows[np.lexsort((-rows, -scores[rows]))]
        return scores[rows], rows


def _words(texts: Sequence[str], return_ids: bool):
    import bm25s

    return bm25s.tokenize(
        texts, stopwords="en", stemmer=_singular, return_ids=return_ids, show_progress=False, allow_empty=False
    )


def _singular(words: list[str]) -> list[str]:
    """Harman's S stemmer."""
    return [_without_s(word) for word in words]


def _without_s(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word if word[-4] in "ae" else word[:-3] + "y"
    if word.endswith("es"):
        return word if word[-3] in "aeo" else word[:-1]
    return word if word[-2] in "us" else word[:-1]
