"""A reader: a frozen language model that answers a question, with experts of passages in some of its layers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import LowRankExperts
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.hypernetwork import HyperNetwork, mean_embedding
from moe_retrieval.genpoe.language_models import positions
from moe_retrieval.genpoe.passage_experts import Injection
from moe_retrieval.genpoe.replacement import replace_layer
from moe_retrieval.genpoe.wording import Prompt, Wording
from moe_retrieval.models.precision import PRECISIONS, autocast
from moe_retrieval.models.typed import check_types


@dataclass(frozen=True)
class ReaderSettings:
    """What experts are made with: with other settings, those of a hypernetwork mean nothing."""

    layers: tuple[int, ...]
    rank: int
    bottleneck: int
    titles: bool
    passage_length: int

    def __post_init__(self) -> None:
        check_types(self, "experts")


class Asked(NamedTuple):
    prompt: Prompt
    passages: Sequence[Passage] = ()
    """Those that become experts"""
    answer: Sequence[int] = ()
    """In training"""


Made = Mapping[int, LowRankExperts]
"""Layer -> experts of passages laid end to end"""


class Reader:
    def __init__(self, model: Any, tokenizer: Any, settings: ReaderSettings, device: torch.device, precision: str):
        """`model` and `tokenizer` are those of transformers; the model stays as it is, without dropout."""
        self.model = model.to(device).eval()
        self.settings, self.device, self.precision = settings, device, precision
        self.is_encoder_decoder = model.config.is_encoder_decoder
        self.wording = Wording(tokenizer, settings.titles, settings.passage_length, self.is_encoder_decoder)
        self.placed = {layer: replace_layer(model, layer) for layer in settings.layers}
        hidden = model.config.hidden_size
        networks = {str(layer): HyperNetwork(hidden, settings.rank, settings.bottleneck) for layer in settings.layers}
        self.networks = nn.ModuleDict(networks).to(device)
        pad = tokenizer.pad_token_id
        self.pad = self.wording.stops[0] if pad is None else pad
        self.room = positions(model)

    # Experts of passages.

    def embed(self, passages: Sequence[Passage]) -> Tensor:
        """-> [P, H] what the hypernetwork reads"""
        ids = [self.wording.passage(passage) for passage in passages]
        return mean_embedding(self.model.get_input_embeddings(), ids, self.device)

    def deltas(self, passages: Sequence[Passage]) -> Made:
        """With gradient; what tells these passages' experts apart."""
        embedding_PH = self.embed(passages)
        return {layer: self.networks[str(layer)](embedding_PH) for layer in self.placed}

    @torch.no_grad()
    def experts(self, passages: Sequence[Passage]) -> Made:
        """Whole ones, in the type that is computed in. {} for no passage."""
        if not passages:
            return {}
        with autocast(self.device, self.precision):
            made = self.deltas(passages)
        dtype = PRECISIONS[self.precision]
        whole = {layer: deltas.plus(self.network(layer).base).to(dtype) for layer, deltas in made.items()}
        return {layer: LowRankExperts(*(factor.contiguous() for factor in each)) for layer, each in whole.items()}

    def network(self, layer: int) -> HyperNetwork:
        found = self.networks[str(layer)]
        assert isinstance(found, HyperNetwork)
        return found

    def standardize(self, passages: Sequence[Passage]) -> None:
        """Embeddings by those of these passages, of which there should be many."""
        embedding_PH = self.embed(passages)
        for layer in self.placed:
            self.network(layer).standardize(embedding_PH)

    def _injections(
        self, asked: Sequence[Asked], made: Made, starts_B: Tensor, are_whole: bool
    ) -> dict[int, Injection]:
        """By layer."""
        counts = [len(each.passages) for each in asked]
        cu_passages = torch.tensor([0, *counts], device=self.device).cumsum(0, dtype=torch.int32)
        scores_P = torch.tensor([score for each in asked for score in scores(each.passages)], device=self.device)
        bases = {layer: None if are_whole else self.network(layer).base for layer in self.placed}
        return {
            layer: Injection(made[layer], bases[layer], scores_P, cu_passages, max(counts), starts_B)
            for layer in self.placed
        }

    # Reading.

    def loss(self, asked: Sequence[Asked]) -> Tensor:
        """The sum over questions of the mean cross-entropy of their answers' tokens.

        The experts stay where they are: with gradient checkpointing, the backward pass runs them again.
        """
        prompts, answers = [each.prompt for each in asked], [each.answer for each in asked]
        self._check_room(asked)
        made = self.deltas([passage for each in asked for passage in each.passages])
        ids_BL, mask_BL, starts_B = self._padded(prompts, [] if self.is_encoder_decoder else answers)
        for layer, injection in self._injections(asked, made, starts_B, are_whole=False).items():
            self.placed[layer].injection = injection
        logits_BAV, targets_BA = self._logits(ids_BL, mask_BL, answers)
        losses_BA = F.cross_entropy(logits_BAV.float().mT, targets_BA, reduction="none", ignore_index=NO_TARGET)
        return (losses_BA.sum(1) / (targets_BA != NO_TARGET).sum(1)).sum()

    def _logits(self, ids_BL: Tensor, mask_BL: Tensor, answers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """-> of each token of the answers, and the tokens; NO_TARGET where an answer is shorter."""
        longest = max(map(len, answers))
        if self.is_encoder_decoder:
            rows = [[*answer, *[NO_TARGET] * (longest - len(answer))] for answer in answers]
            targets_BA = torch.tensor(rows, device=self.device)
            return self.model(input_ids=ids_BL, attention_mask=mask_BL, labels=targets_BA).logits, targets_BA
        rows = [[*[NO_TARGET] * (longest - len(answer)), *answer] for answer in answers]
        places_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=places_BL, logits_to_keep=longest + 1,
            use_cache=False,
        ).logits  # fmt: skip
        return logits[:, :-1], torch.tensor(rows, device=self.device)

    @torch.inference_mode()
    def answer(self, asked: Sequence[Asked], made: Made, most: int) -> list[str]:
        """At most `most` tokens of each, one after the other the most likely ones; `made`: of all passages, whole."""
        self._check_room(asked, most)
        ids_BL, mask_BL, starts_B = self._padded([each.prompt for each in asked])
        with ExitStack() as inside:
            injections = self._injections(asked, made, starts_B, are_whole=True) if made else {}
            for layer, injection in injections.items():
                inside.enter_context(self.placed[layer].injected(injection))
            found = self.model.generate(
                input_ids=ids_BL, attention_mask=mask_BL, max_new_tokens=most, do_sample=False, num_beams=1,
                pad_token_id=self.pad, eos_token_id=self.wording.stops,
            )  # fmt: skip
        new = found[:, 1 if self.is_encoder_decoder else ids_BL.shape[1] :]
        texts = self.wording.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    def _padded(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> ids, mask, and where the experts start: padding is on the left, so that all end together."""
        rows = [[*prompt.ids, *answer] for prompt, answer in zip(prompts, answers or [()] * len(prompts))]
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids = torch.tensor([[self.pad] * pad + row for pad, row in zip(pads, rows)], device=self.device)
        pads_B = torch.tensor(pads, device=self.device)
        mask = (torch.arange(longest, device=self.device) >= pads_B[:, None]).long()
        return ids, mask, pads_B + torch.tensor([prompt.start for prompt in prompts], device=self.device)

    def _check_room(self, asked: Sequence[Asked], most: int = 0) -> None:
        for each in asked:
            needed = len(each.prompt.ids) + max(most, len(each.answer))
            if needed > self.room and not self.is_encoder_decoder:
                said = self.wording.tokenizer.decode(each.prompt.ids[-20:])
                raise InputError(
                    f"a prompt with its answer has {needed} tokens, and the language model reads {self.room}: expected "
                    f"fewer or shorter passages in the prompt of ...{said!r:.60}"
                )

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any expert that is made."""
        digest = blake2b(language_fingerprint(self.model).encode(), digest_size=8)
        for tensor in self.networks.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()


NO_TARGET = -100


def scores(passages: Sequence[Passage]) -> list[float]:
    """How much each counts, before the softmax: equally, where one of them has no score."""
    known = [passage.score for passage in passages if passage.score is not None]
    return known if len(known) == len(passages) else [0.0] * len(passages)


def language_fingerprint(model: Any) -> str:
    """16 hex digits that another language model has otherwise, in whatever type this one is: all of them have signs."""
    table = model.get_input_embeddings().weight.detach()
    signs = table[:256].signbit().cpu().numpy()
    return blake2b(f"{tuple(table.shape)}".encode() + signs.tobytes(), digest_size=8).hexdigest()
