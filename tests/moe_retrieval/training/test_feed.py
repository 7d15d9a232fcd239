"""Batches are shared out, and every pair is seen."""

from dataclasses import replace

import torch

from moe_retrieval import data
from moe_retrieval.training.distributed import World
from moe_retrieval.training.feed import Feed
from moe_retrieval.training.preparation import make_pairs
from moe_retrieval.training.targets import document_key
from moe_retrieval.training.validation import split_off
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
        return Feed(
            pairs, rows, tokenizer, retriever.settings.usage, World(rank, size, torch.device("cpu")), 16, seed=3
        )

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
