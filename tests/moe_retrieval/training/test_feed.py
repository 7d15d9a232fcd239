"""Batches are shared out, and every pair is seen."""

from dataclasses import replace

import numpy as np
import torch

from moe_retrieval import data
from moe_retrieval.training.distributed import World
from moe_retrieval.training.false_negatives import false_negatives
from moe_retrieval.training.feed import Feed
from moe_retrieval.training.mixture import Part
from moe_retrieval.training.preparation import make_pairs
from moe_retrieval.training.targets import document_key
from moe_retrieval.training.validation import split_off
from tests.moe_retrieval.corpora import write_beir
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.steps import ALONE
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


def test_ranks_share_each_batch_and_see_every_pair_once(tmp_path):
    collection = data.load(str(write_collection(tmp_path)))
    pairs = make_pairs(replace(FAST, negatives="bm25", num_negatives=2), collection, ALONE)
    retriever, tokenizer = tiny_retriever(), tiny_tokenizer()
    split, queries, rows = split_off(collection, pairs)
    assert (split, len(queries), len(rows)) == ("dev", 20, 50)

    def feed(rank, size):
        world = World(rank, size, torch.device("cpu"))
        return Feed([Part(pairs, rows)], tokenizer, retriever.settings.usage, world, 16, seed=3)

    whole = feed(0, 1)
    for number in range(2 * whole.batches_an_epoch):
        batch = whole.batch(number)
        shares = [feed(rank, 3).batch(number) for rank in range(3)]
        assert [len(share.queries) for share in shares] == shares[0].targets.counts
        for rank, share in enumerate(shares):
            assert share.queries == batch.queries[rank::3]
            assert torch.equal(share.targets.keys_NC, batch.targets.keys_NC[rank::3])
            n = len(batch.queries)
            columns = [batch.documents[column * n : (column + 1) * n][rank::3] for column in range(3)]
            assert share.documents == [tokens for column in columns for tokens in column]
    seen = [
        key for number in range(whole.batches_an_epoch) for key in whole.batch(number).targets.keys_NC[:, 0].tolist()
    ]
    assert sorted(seen) == sorted(document_key(f"d{number}") for number in range(50))
    assert whole.batch(1).queries == feed(0, 1).batch(1).queries != whole.batch(0).queries


def test_a_document_is_of_its_data_set_whatever_its_id(tmp_path):
    """Two sets whose ids are the same and whose texts are not: in a mixed batch, no answer in one spares another."""
    tokenizer, usage = tiny_tokenizer(), tiny_retriever().settings.usage
    folders = [tmp_path / "a", tmp_path / "b"]
    ids = [f"d{number}" for number in range(4)]
    parts, of_text = [], {}
    for folder in folders:
        texts = {name: f"{folder.name}{row} {name}" for row, name in enumerate(ids)}
        judged = {f"q{row}": {name: 1, ids[row - 1]: 1} for row, name in enumerate(ids)}
        queries = {query: f"{folder.name} {query}" for query in judged}
        collection = data.load(str(write_beir(folder, texts, queries, {"train": judged})))
        pairs = make_pairs(FAST, collection, ALONE)
        parts.append(Part(pairs, np.arange(len(pairs))))
        for query_id, _, _ in pairs.pairs:
            key = tuple(tokenizer.encode_batch([usage.query_prompt + queries[query_id]], usage.query_length)[0])
            of_text.setdefault(key, set()).update(texts[name] for name in judged[query_id])
    feed = Feed(parts, tokenizer, usage, ALONE, 16, seed=0)
    batch = feed.batch(0)
    spared = false_negatives(batch.targets, torch.arange(16))
    documents = {
        tuple(tokenizer.encode_batch([usage.doc_prompt + text], usage.doc_length)[0]): text
        for answers in of_text.values() for text in answers
    }  # fmt: skip
    sets = [documents[tuple(tokens)][0] for tokens in batch.documents]
    assert set(sets) == {"a", "b"}
    expected = [
        [
            place != row and documents[tuple(tokens)] in of_text[tuple(query)]
            for place, tokens in enumerate(batch.documents)
        ]
        for row, query in enumerate(batch.queries)
    ]
    assert spared.tolist() == expected
