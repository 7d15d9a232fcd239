"""nomic-embed-text-v2-moe: an encoder whose odd blocks have mixtures of experts, on our kernels.

    model = kernels.huggingface.load_nomic_moe("nomic-embed-text-v2-moe")        # a directory, as downloaded
    embeddings = model.embed(input_ids, attention_mask)                          # texts start with "search_query: " or
                                                                                 # "search_document: "

Post-norm, rotary attention, biases everywhere but inside the experts, whose outputs share one. Weights are not
renormalised: a token's two experts count as much as a softmax over all of them says. Modules have the checkpoint's
names; only the experts' stacks are in our layout. Padding is cut out first and costs nothing.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import validation
from kernels.encoder.attention import packed_attention
from kernels.layers import MoE

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class NomicConfig:
    """What `config.json` says, by the names that it uses."""

    vocab_size: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    num_experts: int
    moe_top_k: int
    moe_every_n_layers: int = 2
    type_vocab_size: int = 1
    layer_norm_epsilon: float = 1e-5
    rotary_emb_base: float = 10000.0
    activation_function: str = "gelu"
    qkv_proj_bias: bool = True
    mlp_fc1_bias: bool = True
    mlp_fc2_bias: bool = True

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> "NomicConfig":
        for name, only in _FIXED.items():
            if entries.get(name, only) not in (only, None):
                raise ValueError(f"config: {name} must be {only}, got {entries[name]!r}")
        missing = [name for name in ("num_experts", "moe_top_k", "n_embd", "n_inner") if not entries.get(name)]
        if missing:
            raise ValueError(f"config: {', '.join(missing)} must be set: this is not a nomic model with experts")
        if entries.get("activation_function", "gelu") not in ACTIVATIONS:
            raise ValueError(
                f"config: activation_function must be one of {', '.join(ACTIVATIONS)}; "
                f"got {entries['activation_function']!r}"
            )
        return cls(**{name: entries[name] for name in cls.__dataclass_fields__ if name in entries})


_FIXED = {
    "prenorm": False,
    "causal": False,
    "parallel_block": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "rotary_emb_scale_base": None,
    "moe_normalize_expert_weights": False,
    "expert_choice_router": False,
    "num_shared_experts": 0,
    "ffn_div": 1,
}
"""Settings of the family that this model does not use."""


class NomicMoE(nn.Module):
    """The encoder, and its embedding of a text."""

    def __init__(self, config: NomicConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_size, config.n_embd)})
        if config.type_vocab_size:
            self.embeddings["token_type_embeddings"] = nn.Embedding(config.type_vocab_size, config.n_embd)
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.encoder = _Layers(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids [B, L], attention_mask [B, L] (true = keep) -> hidden states [B, L, H], zero where no token is."""
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [texts, tokens], got shape {tuple(input_ids.shape)}")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        validation.check_shape("attention_mask", attention_mask, tuple(input_ids.shape))
        kept_BL = attention_mask != 0
        cu_seqlens = F.pad(kept_BL.sum(1).cumsum(0), (1, 0)).int()
        position_T = kept_BL.nonzero()[:, 1]

        ids_T = input_ids[kept_BL]
        x_TH = self.embeddings["word_embeddings"](ids_T)
        if "token_type_embeddings" in self.embeddings:
            x_TH = x_TH + self.embeddings["token_type_embeddings"](torch.zeros_like(ids_T))
        x_TH = self.emb_ln(x_TH)
        rotation = _rotation(position_T, self.config)
        for layer in self.encoder.layers:
            x_TH = layer(x_TH, rotation, cu_seqlens, input_ids.shape[1])
        return x_TH.new_zeros(*input_ids.shape, x_TH.shape[1]).masked_scatter(kept_BL[..., None], x_TH)

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The mean of a text's hidden states, normalised: [B, H]. A text without tokens gives 0."""
        hidden_BLH = self(input_ids, attention_mask)
        return F.normalize(hidden_BLH.sum(1), dim=-1)  # a mean's length is lost here anyway


class _Layers(nn.Module):
    def __init__(self, config: NomicConfig):
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, index) for index in range(config.n_layer)])


class _Layer(nn.Module):
    def __init__(self, config: NomicConfig, index: int):
        super().__init__()
        hidden, bias = config.n_embd, config.qkv_proj_bias
        self.num_heads = config.n_head
        self.attn = nn.ModuleDict(
            {"Wqkv": nn.Linear(hidden, 3 * hidden, bias=bias), "out_proj": nn.Linear(hidden, hidden, bias=bias)}
        )
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, eps=config.layer_norm_epsilon) for _ in range(2))
        has_experts = index % config.moe_every_n_layers == 1 % config.moe_every_n_layers
        self.mlp: nn.Module = _SharedBiasMoE(config) if has_experts else _Dense(config)

    def forward(self, x_TH: Tensor, rotation: tuple[Tensor, Tensor], cu_seqlens: Tensor, max_len: int) -> Tensor:
        q_TAD, k_TAD, v_TAD = self.attn["Wqkv"](x_TH).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q_TAD, k_TAD = _rotate(q_TAD, rotation), _rotate(k_TAD, rotation)
        mixed_TH = packed_attention(q_TAD, k_TAD, v_TAD, cu_seqlens, max_len).reshape(x_TH.shape)
        x_TH = self.norm1(x_TH + self.attn["out_proj"](mixed_TH))
        return self.norm2(x_TH + self.mlp(x_TH))


class _Dense(nn.Module):
    def __init__(self, config: NomicConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.n_inner, bias=config.mlp_fc1_bias)
        self.fc2 = nn.Linear(config.n_inner, config.n_embd, bias=config.mlp_fc2_bias)
        self.approximate = "tanh" if ACTIVATIONS[config.activation_function] == "gelu_tanh" else "none"

    def forward(self, x_TH: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_TH), approximate=self.approximate))


class _SharedBiasMoE(MoE):
    """The bias is the layer's, not an expert's: no router weight multiplies it."""

    def __init__(self, config: NomicConfig):
        super().__init__(
            config.n_embd, config.n_inner, num_experts=config.num_experts, top_k=config.moe_top_k, renormalize=False,
            activation=ACTIVATIONS[config.activation_function], bias=False,
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(config.n_embd))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x, mask) + self.bias


def _rotation(position_T: Tensor, config: NomicConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's angles, [T, 1, D / 2] in fp32."""
    half = config.n_embd // config.n_head // 2
    exponent = torch.arange(half, device=position_T.device, dtype=torch.float32) / half
    angle = position_T[:, None, None] * config.rotary_emb_base**-exponent
    return angle.cos(), angle.sin()


def _rotate(x_TAD: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Dimension d turns with dimension d + D / 2."""
    cos, sin = (value.to(x_TAD.dtype) for value in rotation)
    first, second = x_TAD.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def load_nomic_moe(directory: str | Path, *, dtype: torch.dtype = torch.float32) -> NomicMoE:
    """A downloaded checkpoint (`config.json`, `model*.safetensors`) -> the model, in evaluation mode."""
    from safetensors.torch import load_file

    directory = Path(directory)
    config = NomicConfig.from_json(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{directory} has no model.safetensors")
    with torch.device("meta"):
        model = NomicMoE(config)
    state: dict[str, Tensor] = {}
    for file in files:
        state.update(load_file(file))
    model.load_state_dict(from_checkpoint(state, config), assign=True)
    return model.to(dtype).eval()


def from_checkpoint(state: dict[str, Tensor], config: NomicConfig) -> dict[str, Tensor]:
    """The checkpoint's tensors under our names: its stacks are [E * F, H], both of them."""
    ours = {}
    for name, tensor in state.items():
        if name.endswith("mlp.experts.mlp.w1"):
            name = name.replace("experts.mlp.w1", "experts.up_weight")
            tensor = tensor.view(config.num_experts, config.n_inner, config.n_embd)
        elif name.endswith("mlp.experts.mlp.w2"):
            name = name.replace("experts.mlp.w2", "experts.down_weight")
            tensor = tensor.view(config.num_experts, config.n_inner, config.n_embd).transpose(1, 2).contiguous()
        elif name.endswith("mlp.experts.bias"):
            name = name.replace("experts.bias", "bias")
        elif name.endswith("mlp.router.layer.weight"):
            name = name.replace("router.layer.weight", "router.weight")
        ours[name] = tensor
    return ours
