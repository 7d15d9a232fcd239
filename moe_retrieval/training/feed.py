"""The data of each step: a function of the step, so that a run that stopped goes on with the very next batch."""

from collections.abc import Sequence

import numpy as np
import torch

from moe_retrieval.models.tokenizer import Tokenizer
from moe_retrieval.models.usage import Usage
from moe_retrieval.training.distributed import World
from moe_retrieval.training.mixture import Mixture, Part
from moe_retrieval.training.order import BatchOrder
from moe_retrieval.training.pairs import Example
from moe_retrieval.training.step import Batch
from moe_retrieval.training.targets import Targets, document_key


class Feed:
    """Examples -> a rank's share of each batch, as token ids."""

    def __init__(
        self, parts: Sequence[Part], tokenizer: Tokenizer, usage: Usage, world: World, batch_size: int, seed: int
    ):
        """`parts` are data sets, all with as many negatives a query; a batch mixes them."""
        self.parts, self.tokenizer, self.usage, self.world = parts, tokenizer, usage, world
        self.num_negatives = parts[0].pairs.num_negatives
        self.mixture = Mixture(parts, seed)
        self.qrels = [part.pairs.collection.qrels("train") for part in parts]
        self.order = BatchOrder(len(self.mixture), batch_size, seed)
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    @property
    def batches_an_epoch(self) -> int:
        return len(self.order)

    def batch(self, number: int) -> Batch:
        """Batch 0, 1, ...: those of epoch 0, then those of epoch 1."""
        epoch, place = divmod(number, len(self.order))
        if epoch != self._epoch:
            drawn = self.mixture.of_epoch(epoch)
            self._epoch, self._batches = epoch, [drawn[batch] for batch in self.order.batches(epoch)]
        chosen = self._batches[place]
        own = [self.mixture.example(int(example)) for example in chosen[self.world.rank :: self.world.size]]
        examples = [example for _, example in own]
        return Batch(self._queries(examples), self._documents(examples), self._targets(own, len(chosen)))

    def _queries(self, examples: list[Example]) -> list[list[int]]:
        texts = [self.usage.query_prompt + example.query_text for example in examples]
        return self.tokenizer.encode_batch(texts, self.usage.query_length)

    def _documents(self, examples: list[Example]) -> list[list[int]]:
        texts = [example.positive_text for example in examples]
        for column in range(self.num_negatives):
            texts += [example.negative_texts[column] for example in examples]
        prompted = [self.usage.doc_prompt + text for text in texts]
        return self.tokenizer.encode_batch(prompted, self.usage.doc_length)

    def _targets(self, own: list[tuple[int, Example]], total: int) -> Targets:
        """`own`: examples, each with the place of its part."""
        keys = [[document_key(name, part) for name in (e.positive_id, *e.negative_ids)] for part, e in own]
        relevant = []
        for part, example in own:
            judged = self.qrels[part].get(example.query_id, {})
            answers = {name for name, relevance in judged.items() if relevance > 0}
            if example.label:
                answers.add(example.positive_id)
            relevant.append(sorted(document_key(name, part) for name in answers) or [NO_DOCUMENT])
        width = max(map(len, relevant), default=1)
        filled = [row + row[-1:] * (width - len(row)) for row in relevant]
        columns = 1 + self.num_negatives
        return Targets(
            torch.tensor(keys, dtype=torch.long).view(-1, columns),
            torch.tensor(filled, dtype=torch.long).view(-1, width),
            self.world.share(total),
        )


NO_DOCUMENT = document_key("\0")
"""What answers a query that nothing answers."""
