"""The network: an encoder, a pooling, perhaps a layer of experts, a normalisation."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.layers import Experts, RoutedLayer, moe_layers
from moe_retrieval.errors import InputError
from moe_retrieval.models import variants
from moe_retrieval.models.encoder import Encoder, EncoderShape, FeedForward, positions_in_sequences
from moe_retrieval.models.hash_experts import HashExperts, sequence_keys
from moe_retrieval.models.pooling import pool, pooled_size
from moe_retrieval.models.serving import Serving, freeze
from moe_retrieval.models.undrawn import Undrawn, sizes_alone
from moe_retrieval.models.usage import Usage
from moe_retrieval.models.variants import ExpertSettings

MODEL_TYPE = "moe_retrieval"
"""What `config.json` calls a model of ours."""


@dataclass(frozen=True)
class RetrieverSettings:
    """Everything about a retriever but its weights and its tokenizer. Saved in `config.json`."""

    shape: EncoderShape
    variant: str = "dense"
    family: str = "dense"
    """The variant itself, or for a control the one that it controls: where the added parameters sit."""
    experts: ExpertSettings | None = None
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, variants.VARIANTS)
        if self.variant != "dense" and (self.family not in variants.ROUTED or self.experts is None):
            families = ", ".join(variants.ROUTED)
            raise InputError(f"control_of must be one of {families} for variant {self.variant}, got {self.family!r}")
        self.usage.check_lengths(self.shape.max_positions)

    @property
    def embedding_size(self) -> int:
        return pooled_size(self.shape.hidden_size, self.usage.pooling)

    def to_dict(self) -> dict[str, Any]:
        """As it is saved: the fields of the usage stand beside the others."""
        values = asdict(self)
        usage = values.pop("usage")
        return values | usage

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RetrieverSettings":
        values = dict(values)
        values["shape"] = EncoderShape(**values["shape"])
        if values.get("experts"):
            layers = tuple(values["experts"]["layers"])
            values["experts"] = ExpertSettings(**{**values["experts"], "layers": layers})
        usage = {each.name: values.pop(each.name) for each in fields(Usage) if each.name in values}
        unknown = set(values) - {each.name for each in fields(cls) if each.name != "usage"}
        if unknown:
            raise InputError(f"config.json: unknown settings {', '.join(sorted(unknown))}; a newer version wrote them")
        return cls(**values, usage=Usage(**usage))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


class Retriever(nn.Module):
    """Token ids of sequences laid end to end -> their embeddings."""

    def __init__(self, settings: RetrieverSettings, dropout: float = 0.0):
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings.shape, dropout)
        self.block: nn.Module | None = None  # the pooled layer, under the name that it has in saved weights
        self._serving: Serving | None = None
        if settings.experts is not None:
            try:
                self._add_experts(settings.experts)
            except (TypeError, ValueError) as error:  # the layers' own messages name the argument
                raise InputError(f"{settings.variant}: {error}") from error

    def _add_experts(self, experts: ExpertSettings) -> None:
        settings = self.settings
        self.block = variants.make_pooled_layer(settings.variant, settings.family, experts, settings.embedding_size)
        if settings.family == "moe":
            for index in experts.layers:
                if not 0 <= index < len(self.encoder.blocks):
                    raise ValueError(f"layers must name some of {len(self.encoder.blocks)} blocks, got {index}")
                variants.replace_ffn(self.encoder.blocks[index], index, settings.variant, experts, settings.shape)

    def start_from(self, dense_state: dict[str, Tensor]) -> None:
        """Takes the weights of a dense encoder; experts in it start as the feed-forward part that they replace."""
        with sizes_alone():
            dense = Encoder(self.settings.shape)
        dense.load_state_dict(dense_state, assign=True)
        own = self.encoder.state_dict()
        self.encoder.load_state_dict(
            {name: dense_state[name] if name in dense_state and ".ffn." not in name else own[name] for name in own}
        )
        for block, theirs in zip(self.encoder.blocks, dense.blocks):
            assert isinstance(theirs.ffn, FeedForward)
            variants.upcycle(block.ffn, theirs.ffn)

    def forward(self, input_ids_T: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
        """-> embeddings [sequences, embedding size], fp32 (fp64 if the weights are)."""
        serving = self.serving()
        if serving is None or not serving.pools:
            hidden_TH = self.hidden_states(input_ids_T, cu_seqlens, max_len, serving)
            return self.embed(hidden_TH, input_ids_T, cu_seqlens, serving)
        x_PH = serving.encoder.embed(input_ids_T, cu_seqlens)
        return x_PH if serving.ends else self.finish(x_PH, self._keys(input_ids_T, cu_seqlens))

    def hidden_states(
        self, input_ids_T: Tensor, cu_seqlens: Tensor, max_len: int, serving: Serving | None = None
    ) -> Tensor:
        if serving is not None:
            return serving.encoder.hidden_states(input_ids_T, cu_seqlens)
        return self.encoder(input_ids_T, cu_seqlens, max_len)

    def embed(
        self, hidden_TH: Tensor, input_ids_T: Tensor, cu_seqlens: Tensor, serving: Serving | None = None
    ) -> Tensor:
        """The encoder's hidden states -> embeddings."""
        if serving is None or not serving.pools:
            x_PH = pool(hidden_TH, cu_seqlens, self.settings.usage.pooling)
            return self.finish(x_PH, self._keys(input_ids_T, cu_seqlens))
        x_PH = serving.encoder.pool(hidden_TH, cu_seqlens)
        return x_PH if serving.ends else self.finish(x_PH, self._keys(input_ids_T, cu_seqlens))

    def finish(self, x_PH: Tensor, keys_P: Tensor | None = None) -> Tensor:
        """What follows the pooling; `keys_P` is what a routing by hash after it goes by."""
        usage, pooled_layer = self.settings.usage, self.block
        if isinstance(pooled_layer, HashExperts):
            x_PH = pooled_layer(x_PH, keys_P)
        elif pooled_layer is not None:
            x_PH = pooled_layer(x_PH)
        return F.normalize(x_PH, dim=-1) if usage.normalize else x_PH

    def _keys(self, input_ids_T: Tensor, cu_seqlens: Tensor) -> Tensor | None:
        if not isinstance(self.block, HashExperts):
            return None
        return sequence_keys(input_ids_T, positions_in_sequences(cu_seqlens, len(input_ids_T)), cu_seqlens)

    def freeze(self, dtype: torch.dtype, to_the_end: bool = True) -> None:
        """Makes the encoder one native pass with products in `dtype`, where there is one: the path that serves.

        Where it does not go `to_the_end`, the pooled layer stays a module that hooks see. Weights that change
        afterwards are not noticed. Training, moving or loading the retriever ends it.
        """
        self._serving = freeze(self, dtype, to_the_end)

    def thaw(self) -> None:
        self._serving = None

    def serving(self) -> Serving | None:
        """What a call can use now: nothing where gradients would be lost."""
        serving = self._serving
        if serving is None or not serving.encoder.can_run or (torch.is_grad_enabled() and self._learns()):
            return None
        return serving

    def _learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def train(self, mode: bool = True) -> "Retriever":
        if mode:
            self.thaw()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self.thaw()
        return super()._apply(fn, recurse)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        self.thaw()
        return super().load_state_dict(*arguments, **options)

    def added_modules(self) -> list[nn.Module]:
        """What the variant added to the backbone: the parameters that `--expert-lr` is for."""
        added = [] if self.block is None else [self.block]
        if self.settings.family == "moe" and self.settings.experts is not None:
            added += [self.encoder.get_submodule(f"blocks.{index}.ffn") for index in self.settings.experts.layers]
        return added

    def train_added_alone(self) -> None:
        """From here on, gradients are of what the variant added."""
        self.requires_grad_(False)
        for module in self.added_modules():
            module.requires_grad_(True)

    def count_parameters(self) -> tuple[int, int]:
        """-> all, and those that work on one token: of the experts, only the chosen."""
        total = sum(parameter.numel() for parameter in self.parameters())
        unchosen = 0
        for layer in self.expert_layers().values():
            if layer.top_k != "all":
                expert = sum(parameter.numel() for parameter in layer.experts.parameters()) // layer.num_experts
                unchosen += (layer.num_experts - int(layer.top_k)) * expert
        return total, total - unchosen

    def expert_layers(self) -> dict[str, RoutedLayer | HashExperts]:
        """By name, from the first block on: whatever has experts, chosen by a router or by a hash."""
        return {name: module for name, module in self.named_modules() if isinstance(module, RoutedLayer | HashExperts)}


def without_weights(settings: RetrieverSettings, dropout: float = 0.0) -> Retriever:
    """A retriever whose weights are whatever the memory held, for who loads them all."""
    with Undrawn():
        return Retriever(settings, dropout)


def prepare_for_inference(retriever: Retriever, dtype: torch.dtype) -> Retriever:
    """Converts once the weights that autocast would convert at each call, so that both give the same numbers."""
    retriever.eval().requires_grad_(False)
    routers = {id(m) for layer in moe_layers(retriever).values() for m in layer.router.modules()}
    if dtype != torch.float32:
        for module in retriever.modules():
            if isinstance(module, nn.Linear | Experts) and id(module) not in routers:
                module.to(dtype)
    retriever.freeze(dtype)
    return retriever


def new_settings(
    shape: EncoderShape,
    variant: str,
    control_of: str | None = None,
    expert_changes: dict[str, Any] | None = None,
    usage: Usage | None = None,
) -> RetrieverSettings:
    """The settings of a variant; `expert_changes` are fields of ExpertSettings that differ from its defaults."""
    _check_choice("variant", variant, variants.VARIANTS)
    is_control = variant in ("dense-wide", "random")
    if control_of is not None and not is_control:
        raise InputError(f"control_of goes with variant dense-wide or random, got variant {variant!r}")
    family = (control_of or "sb-moe") if is_control else variant
    _check_choice("control_of", family, (*variants.ROUTED, "dense"))
    changes = expert_changes or {}
    if family == "dense":
        if changes:
            raise InputError(f"variant dense has no experts; it cannot take {', '.join(sorted(changes))}")
        return RetrieverSettings(shape, variant, family, None, usage or Usage())
    if family == "sb-moe" and "layers" in changes:
        raise InputError("layers is for variant moe: sb-moe is one layer after the pooling")
    if family == "moe" and "combine" in changes:
        raise InputError("combine is for variant sb-moe")
    if isinstance(changes.get("layers"), str):
        changes = {**changes, "layers": variants.parse_layers(changes["layers"], shape.num_layers)}
    experts = replace(variants.default_experts(family, shape), **changes)
    return RetrieverSettings(shape, variant, family, experts, usage or Usage())
