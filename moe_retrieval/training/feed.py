"""The data of each step: a function of the step, so that a run that stopped goes on with the very next batch."""

import numpy as np
import torch

from moe_retrieval.models.tokenizer import Tokenizer
from moe_retrieval.models.usage import Usage
from moe_retrieval.training.distributed import World
from moe_retrieval.training.order import BatchOrder
from moe_retrieval.training.pairs import Example, TrainingPairs
from moe_retrieval.training.step import Batch
from moe_retrieval.training.targets import Targets, document_key


class Feed:
    """Examples -> a rank's share of each batch, as token ids."""

    def __init__(
        self,
        pairs: TrainingPairs,
        rows: np.ndarray,
        tokenizer: Tokenizer,
        usage: Usage,
        world: World,
        batch_size: int,
        seed: int,
    ):
        """`rows` are the examples to train on."""
        self.pairs, self.rows, self.tokenizer, self.usage, self.world = pairs, rows, tokenizer, usage, world
        self.qrels = pairs.collection.qrels("train")
        self.order = BatchOrder(len(rows), batch_size, seed)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    @property
    def batches_an_epoch(self) -> int:
        return len(self.order)

    def batch(self, number: int) -> Batch:
        """Batch 0, 1, ...: those of epoch 0, then those of epoch 1."""
        epoch, place = divmod(number, len(self.order))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.order.batches(epoch)
        chosen = self.rows[self._batches[place]]
        examples = [self.pairs[int(row)] for row in chosen[self.world.rank :: self.world.size]]
        return Batch(self._queries(examples), self._documents(examples), self._targets(examples, len(chosen)))

    def _queries(self, examples: list[Example]) -> list[list[int]]:
        texts = [self.usage.query_prompt + example.query_text for example in examples]
        return self.tokenizer.encode_batch(texts, self.usage.query_length)

    def _documents(self, examples: list[Example]) -> list[list[int]]:
        texts = [example.positive_text for example in examples]
        for column in range(self.pairs.num_negatives):
            texts += [example.negative_texts[column] for example in examples]
        prompted = [self.usage.doc_prompt + text for text in texts]
        return self.tokenizer.encode_batch(prompted, self.usage.doc_length)

    def _targets(self, examples: list[Example], total: int) -> Targets:
        keys = [[document_key(name) for name in (e.positive_id, *e.negative_ids)] for e in examples]
        relevant = []
        for example in examples:
            judged = self.qrels.get(example.query_id, {})
            answers = {name for name, relevance in judged.items() if relevance > 0}
            if example.label:
                answers.add(example.positive_id)
            relevant.append(sorted(map(document_key, answers)) or [NO_DOCUMENT])
        width = max(map(len, relevant), default=1)
        filled = [row + row[-1:] * (width - len(row)) for row in relevant]
        columns = 1 + self.pairs.num_negatives
        return Targets(
            torch.tensor(keys, dtype=torch.long).view(-1, columns),
            torch.tensor(filled, dtype=torch.long).view(-1, width),
            self.world.share(total),
        )


NO_DOCUMENT = document_key("\0")
"""What answers a query that nothing answers."""
