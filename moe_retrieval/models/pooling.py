"""From the hidden states of a sequence to one embedding."""

import torch
from torch import Tensor

POOLINGS = ("mean", "cls", "max", "mean-max")


def pooled_size(hidden_size: int, pooling: str) -> int:
    """The width of what `pool` returns."""
    return 2 * hidden_size if pooling == "mean-max" else hidden_size


def pool(hidden_TH: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """hidden [tokens, H] of sequences laid end to end -> [sequences, H], or [sequences, 2H] for "mean-max".

    "mean" and "max" go over a sequence's tokens, "cls" takes its first. In fp32 (fp64 for fp64 inputs), and zeros
    for a sequence without tokens.

    >>> hidden = torch.tensor([[1.0, 5.0], [3.0, 1.0], [7.0, 7.0]])
    >>> pool(hidden, torch.tensor([0, 2, 3]), "mean")
    tensor([[2., 3.],
            [7., 7.]])
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}")
    hidden_TH = hidden_TH.to(torch.promote_types(hidden_TH.dtype, torch.float32))
    if not len(hidden_TH):
        empty = hidden_TH.sum(0, keepdim=True).expand(len(cu_seqlens) - 1, -1)
        return torch.cat([empty, empty], -1) if pooling == "mean-max" else empty
    lengths_P = cu_seqlens.diff().long()
    if pooling == "cls":
        first_PH = hidden_TH[cu_seqlens[:-1].long().clamp(max=len(hidden_TH) - 1)]
        return torch.where(lengths_P[:, None] > 0, first_PH, 0)
    parts = [_reduce(hidden_TH, lengths_P, kind) for kind in pooling.split("-")]
    return torch.cat(parts, -1)


def _reduce(hidden_TH: Tensor, lengths_P: Tensor, kind: str) -> Tensor:
    # unsafe: without a look at the lengths, for which a GPU would have to stop
    if kind == "mean":
        sums_PH = torch.segment_reduce(hidden_TH, "sum", lengths=lengths_P, initial=0, unsafe=True)
        return sums_PH / lengths_P.clamp(min=1)[:, None]
    # "max" starts from the lowest number, not from an `initial` that would win over negative values.
    max_PH = torch.segment_reduce(hidden_TH, "max", lengths=lengths_P, unsafe=True)
    return torch.where(lengths_P[:, None] > 0, max_PH, 0)
