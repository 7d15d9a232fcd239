"""A reranker: a causal language model that is asked whether a passage answers a question, and its logit of Yes."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object, write_json
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.language_models import load_causal, positions
from moe_retrieval.genpoe.prompts import KINDS, NO, PROMPTS, YES
from moe_retrieval.models import backbones
from moe_retrieval.models.typed import check_types

log = logging.getLogger("moe_retrieval")

SETTINGS = "reranker.json"
"""Beside the weights of a reranker that was trained here: how it was asked."""


@dataclass(frozen=True)
class RerankerSettings:
    """How a reranker is asked; otherwise than it was trained, it scores wrong."""

    by: str = "passage"
    prompt: str = PROMPTS["passage"]
    against_no: bool = False
    """A score is the logit of Yes less that of No."""
    max_length: int = 512
    """Tokens of question, passage and prompt together."""

    def __post_init__(self) -> None:
        check_types(self, "reranker")
        if self.by not in KINDS:
            raise InputError(f"reranker: by must be one of {', '.join(KINDS)}; got {self.by!r:.40}")


class Reranker:
    def __init__(self, model: Any, tokenizer: Any, settings: RerankerSettings, device: torch.device):
        """`model` and `tokenizer` are those of transformers."""
        self.model, self.tokenizer, self.settings, self.device = model.to(device), tokenizer, settings, device
        self.yes, self.no = self._first_token(YES), self._first_token(NO)
        if self.yes == self.no:
            raise InputError("the reranker's tokenizer has one token for Yes and No: it cannot tell them apart")
        start = tokenizer.bos_token_id
        self.start = [start] if start is not None and start != tokenizer.pad_token_id else []
        self.line_end = self._ids("\n")
        self.ending = [*self.line_end, *self._ids(settings.prompt)]
        most = positions(model)
        self.length = min(settings.max_length, most)
        self.cut = self.cut_questions = 0
        """How many times so far a passage, and a question, was not read to its end"""
        self.fixed = len(self.start) + len(self.line_end) + len(self.ending)
        """Tokens around question and passage"""
        if self.length < 2 * self.fixed:
            what = "--max-length" if settings.max_length <= most else "what the reranker reads at most"
            raise InputError(
                f"{what} must be at least {2 * self.fixed} tokens, for the prompt has {self.fixed}; got {self.length}"
            )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _first_token(self, word: str) -> int:
        ids = self._ids(word)
        if not ids:
            raise InputError(f"the reranker's tokenizer has no token for {word}")
        return ids[0]

    def sequences(self, question: str, texts: Sequence[str]) -> list[list[int]]:
        """What the model reads, for each of the texts. A long question is cut to half of the room, and a text to the
        rest of it."""
        asked, most = self._ids(f"A: {question}"), (self.length - self.fixed) // 2
        self.cut_questions += len(asked) > most
        head = [*self.start, *asked[:most], *self.line_end]
        room = self.length - len(head) - len(self.ending)
        bodies = self.tokenizer([f"B: {text}" for text in texts], add_special_tokens=False)["input_ids"]
        self.cut += sum(len(body) > room for body in bodies)
        return [[*head, *body[:room], *self.ending] for body in bodies]

    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """-> scores [N] in fp32, with gradient where there is one."""
        last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=self.device)
        ids = torch.zeros(len(sequences), int(last.max()) + 1, dtype=torch.long, device=self.device)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        mask = (torch.arange(ids.shape[1], device=self.device) <= last[:, None]).long()  # padding comes behind
        kept, places = last.unique(return_inverse=True)  # logits of a few places, not of every token
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=kept, use_cache=False).logits
        found = logits[torch.arange(len(sequences), device=self.device), places].float()
        return found[:, self.yes] - found[:, self.no] if self.settings.against_no else found[:, self.yes]

    def score(self, question: str, texts: Sequence[str], max_tokens: int) -> list[float]:
        """`max_tokens` are computed at a time, padding included."""
        if not texts:
            return []
        sequences = self.sequences(question, texts)
        scores = torch.empty(len(sequences))
        with torch.inference_mode():
            for rows in _batches([len(sequence) for sequence in sequences], max_tokens):
                scores[rows] = self.logits([sequences[row] for row in rows]).cpu()
        if not scores.isfinite().all():
            raise InputError("the reranker's scores are not finite: its weights or its --precision overflow")
        return scores.tolist()

    def say_what_was_cut(self) -> None:
        for what, count in (("passage", self.cut), ("question", self.cut_questions)):
            if count:
                log.warning("%d times a %s was longer than --max-length leaves room for", count, what)

    def save(self, folder: Path) -> None:
        """What `load_reranker` loads. LoRA's matrices become part of the weights."""
        merge = getattr(self.model, "merge_and_unload", None)
        model = merge() if merge is not None else self.model
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / SETTINGS, asdict(self.settings))


def ranked(passages: Sequence[Passage], scores: Sequence[float]) -> tuple[Passage, ...]:
    """The same passages with these scores, the best first; equal ones stay in their order."""
    order = sorted(range(len(passages)), key=lambda row: -scores[row])
    return tuple(passages[row]._replace(score=scores[row]) for row in order)


def _batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, so that a batch padded to its longest has at most `max_tokens`, or one row."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and lengths[row] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def read_settings(folder: Path, **changes: Any) -> RerankerSettings:
    """How the reranker in this folder was trained to be asked; None changes nothing."""
    saved = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    given = {name: value for name, value in changes.items() if value is not None}
    by = given.get("by", saved.get("by"))
    if by in PROMPTS and by != saved.get("by"):
        saved["prompt"] = PROMPTS[by]
    try:
        return RerankerSettings(**{**saved, **given})
    except TypeError:
        raise InputError(f"{folder / SETTINGS}: expected {', '.join(vars(RerankerSettings()))}") from None


def load_reranker(name: str, device: torch.device, dtype: torch.dtype = torch.float32, **changes: Any) -> Reranker:
    """A directory that training left, or any causal language model of transformers: a directory, or a repository.

    `changes` are fields of `RerankerSettings`.
    """
    folder = backbones.find(name)
    settings = read_settings(folder, **changes)
    model, tokenizer = load_causal(folder, dtype)
    return Reranker(model.eval(), tokenizer, settings, device)
