"""Routing that learns nothing: experts chosen by a fixed hash, for the control `random`."""

import torch
from torch import Tensor, nn

import kernels
from kernels.layers import Experts
from moe_retrieval.errors import InputError


class HashExperts(nn.Module):
    """Experts chosen by a fixed hash of an integer key, each with weight 1 / top_k: routing that learns nothing.

    The key is a token's id inside the encoder and a hash of all token ids after the pooling, so that neither the batch
    nor the precision changes which experts run. `residual` adds the input, and the layer starts as the identity.
    """

    def __init__(
        self, hidden_size: int, expert_size: int, num_experts: int, top_k: int | str, activation: str, salt: int,
        residual: bool,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
            raise InputError(
                f"top_k must be 1 to {num_experts} (the number of experts) for variant random, got {top_k!r}"
            )
        self.num_experts, self.top_k, self.activation = num_experts, top_k, activation
        self.salt, self.residual = salt, residual
        self.experts = Experts(hidden_size, expert_size, num_experts, activation, bias=True)
        if residual:
            for name in ("down_weight", "down_bias"):
                nn.init.zeros_(getattr(self.experts, name))

    def choose(self, keys_T: Tensor) -> Tensor:
        """-> indices_TK"""
        return choose_by_hash(keys_T, self.num_experts, self.top_k, self.salt)

    def forward(self, x_TH: Tensor, keys_T: Tensor) -> Tensor:
        experts = self.experts
        indices_TK = self.choose(keys_T)
        weights_TK = torch.full_like(indices_TK, 1 / self.top_k, dtype=x_TH.dtype)
        y_TH = kernels.expert_mlp(
            x_TH, indices_TK, weights_TK, experts.up_weight, experts.up_bias, experts.down_weight, experts.down_bias,
            activation=self.activation,
        )  # fmt: skip
        return x_TH + y_TH if self.residual else y_TH


def choose_by_hash(keys_T: Tensor, num_experts: int, top_k: int, salt: int) -> Tensor:
    """-> indices_TK: for each key the experts whose hashes are highest. Saved models rely on these very numbers."""
    experts_E = torch.arange(num_experts, device=keys_T.device)
    scores_TE = scramble(scramble(keys_T + salt * 0x9E3779B9)[:, None] + experts_E * 0x85EBCA6B)
    return scores_TE.argsort(dim=-1, descending=True, stable=True)[:, :top_k]


def sequence_keys(input_ids_T: Tensor, positions_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """One key a sequence, made of its token ids and their order."""
    num_sequences = len(cu_seqlens) - 1
    owners_T = torch.arange(num_sequences, device=input_ids_T.device).repeat_interleave(
        cu_seqlens.diff(), output_size=len(input_ids_T)
    )
    hashed_T = scramble(scramble(input_ids_T) + positions_T * 0xC2B2AE35)
    return input_ids_T.new_zeros(num_sequences).index_add(0, owners_T, hashed_T)


def scramble(keys: Tensor) -> Tensor:
    """int64 -> a 32-bit hash, in int64."""
    keys = keys & 0xFFFFFFFF
    keys = (keys ^ (keys >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    keys = (keys ^ (keys >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return keys ^ (keys >> 16)
