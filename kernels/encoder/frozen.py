"""An encoder prepared once for inference, and then called: the path that serves.

    frozen = FrozenEncoder(EncoderParts(tokens, positions, norm, blocks, num_heads), pooled=layer, normalize=True)
    embeddings_PH = frozen.embed(input_ids_T, cu_seqlens)

Each thread takes a few sequences from token ids to hidden states or embeddings in one native pass, experts included,
without a return to Python. There is no autograd and no eager twin: where nothing can be frozen, modules run one by one,
as they do in training. Shape suffixes: see `routing.py`; P sequences, V words.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels import dispatch, validation
from kernels.activations import ACTIVATIONS
from kernels.layers import MoE, RoutedLayer, SBMoE
from kernels.routing import ALL
from kernels.sums import counts_now


class CannotFreeze(ValueError):
    """The encoder has a part that the native pass has not; its modules still run one by one."""


class FeedForwardParts(NamedTuple):
    """down(activation(up(x)))"""

    up: nn.Linear
    down: nn.Linear


class BlockParts(NamedTuple):
    """hidden = norm(x + out(attention(qkv(x)))), then ffn_norm(hidden + ffn(hidden))."""

    qkv: nn.Linear
    out: nn.Linear
    norm: nn.LayerNorm
    ffn: FeedForwardParts | MoE
    ffn_norm: nn.LayerNorm


class EncoderParts(NamedTuple):
    """norm(tokens(id) + positions(its place in its sequence)), then the blocks, at least one."""

    tokens: nn.Embedding
    positions: nn.Embedding
    norm: nn.LayerNorm
    blocks: Sequence[BlockParts]
    num_heads: int
    activation: str = "gelu"
    """Of the feed-forward parts; a layer of experts has its own."""


class FrozenEncoder:
    """An encoder as it is now, with products in `dtype`.

    `pooled` is what follows the mean over each sequence, an `SBMoE` with a residual; `normalize` gives embeddings a
    length of 1. Modules and parameters that are replaced afterwards are not noticed, parameters that change in place
    may be: freeze again. (`can_run` notices another rule of choice.) Raises `CannotFreeze` where the pass would not do
    what the modules do in inference.
    """

    def __init__(
        self,
        parts: EncoderParts,
        *,
        pooled: SBMoE | None = None,
        normalize: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self.parts, self.dtype, self.device = parts, dtype, parts.tokens.weight.device
        self._backend, self._normalize = dispatch.pick(self.device, dtype), normalize
        if self._backend.freeze is None:
            raise CannotFreeze(f"backend {self._backend.name!r} has no pass for an encoder")
        self._hidden = hidden = _check_sizes(parts)
        routed = [block.ffn for block in parts.blocks if isinstance(block.ffn, MoE)]
        layers: list[RoutedLayer] = [*routed, *([] if pooled is None else [pooled])]
        for layer in layers:
            _check_layer(layer, hidden)
        self._layers = [(layer, layer.rule()) for layer in layers]
        self._native = self._backend.freeze(
            _as(parts.tokens.weight, torch.float32),
            _as(parts.positions.weight, torch.float32),
            _norm(parts.norm),
            parts.num_heads,
            dtype,
        )
        for block in parts.blocks:
            attention = [*_linear(block.qkv, dtype), *_linear(block.out, dtype)]
            if isinstance(block.ffn, MoE):
                self._native.add_routed_block(
                    attention, _norm(block.norm), *self._layer(block.ffn), _norm(block.ffn_norm)
                )
            else:
                dense = [*_linear(block.ffn.up, dtype), *_linear(block.ffn.down, dtype)]
                self._native.add_dense_block(
                    attention, _norm(block.norm), dense, parts.activation, _norm(block.ffn_norm)
                )
        if pooled is not None:
            self._native.set_pooled(*self._layer(pooled))

    def _layer(self, layer: RoutedLayer) -> tuple[Any, ...]:
        """-> the gate in fp32, the experts in the type of the products, top_k, router, renormalize, activation"""
        gate = [_as(tensor, torch.float32) for tensor in layer.gate_weights()]
        experts = [_as(tensor, self.dtype) for tensor in layer.expert_weights()]
        return gate, experts, *layer.rule(), layer.activation

    @property
    def can_run(self) -> bool:
        """Whether a call would do now what the modules do: not under a compiler or where another backend is asked for,
        nor where routing is recorded, counted, or follows another rule than it did."""
        if torch.compiler.is_compiling() or dispatch.pick(self.device, self.dtype) is not self._backend:
            return False
        if not self._layers:
            return True
        return not counts_now() and all(layer.recorder is None and layer.rule() == rule for layer, rule in self._layers)

    def hidden_states(self, input_ids_T: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Token ids of sequences laid end to end -> hidden_TH in fp32."""
        return self._native.hidden_states(input_ids_T, self._check_ids(input_ids_T, cu_seqlens))

    def embed(self, input_ids_T: Tensor, cu_seqlens: Tensor) -> Tensor:
        """-> [P, H] in fp32: the mean over the hidden states of each sequence, zeros for one without tokens, and what
        follows it. Hidden states are never written as a tensor."""
        starts = self._check_ids(input_ids_T, cu_seqlens)
        return self._native.embed(input_ids_T, starts, self._normalize)

    def pool(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Hidden states -> [P, H]: what `embed` does after them, to the same bits."""
        validation.check_shape("hidden_TH", hidden_TH, (len(hidden_TH), self._hidden))
        return self._native.pool(hidden_TH, self._check_sequences(hidden_TH, cu_seqlens), self._normalize)

    def _check_ids(self, input_ids_T: Tensor, cu_seqlens: Tensor) -> Tensor:
        if input_ids_T.ndim != 1 or input_ids_T.dtype not in (torch.int64, torch.int32):
            came = f"{input_ids_T.dtype} of shape {tuple(input_ids_T.shape)}"
            raise ValueError(f"input_ids must be a 1-d int tensor, got {came}")
        return self._check_sequences(input_ids_T, cu_seqlens)

    def _check_sequences(self, rows_T: Tensor, cu_seqlens: Tensor) -> Tensor:
        """-> cu_seqlens as a backend takes it."""
        starts = validation.check_starts(cu_seqlens)
        longest, positions = validation.longest_sequence(starts, len(rows_T)), self.parts.positions.num_embeddings
        if longest > positions:
            raise ValueError(f"cu_seqlens has a sequence of {longest} tokens, there are {positions} positions")
        return starts


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What the pass reads; the parameter's own memory where it fits."""
    return None if tensor is None else tensor.detach().to(dtype).contiguous()


def _linear(module: nn.Linear, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    return _as(module.weight, dtype), _as(module.bias, dtype)


def _norm(module: nn.LayerNorm) -> tuple[Tensor | None, Tensor | None, float]:
    return _as(module.weight, torch.float32), _as(module.bias, torch.float32), module.eps


def _check_sizes(parts: EncoderParts) -> int:
    """-> the hidden size, which all parts agree about."""
    if not parts.blocks:
        raise ValueError("blocks must not be empty")
    if parts.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {parts.activation!r}")
    hidden = parts.tokens.embedding_dim
    validation.check_positive(**{"tokens.embedding_dim": hidden})
    if parts.num_heads < 1 or hidden % parts.num_heads:
        raise ValueError(f"num_heads must divide the hidden size {hidden}, got {parts.num_heads}")
    sizes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "tokens": (parts.tokens, (parts.tokens.num_embeddings, hidden)),
        "positions": (parts.positions, (parts.positions.num_embeddings, hidden)),
        "norm": (parts.norm, (hidden,)),
    }
    for index, block in enumerate(parts.blocks):
        own: dict[str, tuple[Any, tuple[int, ...]]] = {
            "qkv": (block.qkv, (3 * hidden, hidden)),
            "out": (block.out, (hidden, hidden)),
            "norm": (block.norm, (hidden,)),
            "ffn_norm": (block.ffn_norm, (hidden,)),
        }
        if not isinstance(block.ffn, MoE):
            width = block.ffn.up.out_features
            validation.check_positive(**{f"blocks[{index}].up.out_features": width})
            own |= {"up": (block.ffn.up, (width, hidden)), "down": (block.ffn.down, (hidden, width))}
        sizes |= {f"blocks[{index}].{name}": part for name, part in own.items()}
    for name, (module, shape) in sizes.items():
        validation.check_shape(f"{name}.weight", module.weight, shape)
        bias = getattr(module, "bias", None)
        if bias is not None:
            validation.check_shape(f"{name}.bias", bias, shape[:1])
        elif isinstance(module, nn.LayerNorm):
            raise CannotFreeze(f"{name} has no bias")
    return hidden


def _check_layer(layer: RoutedLayer, hidden: int) -> None:
    if layer.hidden_size != hidden:
        raise ValueError(f"a layer of experts must take {hidden} features like the encoder, got {layer.hidden_size}")
    if layer.training and layer.router.noise is not None:
        raise CannotFreeze("a layer of experts draws noise in training: call eval() first")
    if layer.rule().top_k == ALL:
        raise CannotFreeze('a layer of experts has top_k="all"')
    if isinstance(layer, SBMoE) and layer.combine != "residual":
        raise CannotFreeze(f"the pooled layer has combine={layer.combine!r}")
