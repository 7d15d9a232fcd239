"""Checks of what a caller passes. Each raises an error that names the argument, what came and what was expected."""

import torch
from torch import Tensor

from kernels import autocast
from kernels.activations import ACTIVATIONS, GATED, width_of
from kernels.records import ExpertWeights, LowRankExperts
from kernels.routing import ALL, ROUTERS

CHOICES = {
    "activation": (*ACTIVATIONS, *GATED),
    "router": ROUTERS,
    "gate": ("linear", "mlp"),
    "combine": ("residual", "normalized"),
}


def check_choices(**given: str) -> None:
    for argument, value in given.items():
        if value not in CHOICES[argument]:
            raise ValueError(f"{argument} must be one of {', '.join(CHOICES[argument])}; got {value!r}")


def check_positive(**given: int) -> None:
    for argument, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{argument} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")


def check_top_k(top_k: int | str, num_experts: int) -> int:
    """-> the number the ops use, `ALL` for "all"."""
    if top_k == "all":
        return ALL
    if not isinstance(top_k, int) or isinstance(top_k, bool):
        raise TypeError(f'top_k must be an int or "all", got {top_k!r}')
    if not 1 <= top_k <= num_experts:
        raise ValueError(f"top_k must be 1 to {num_experts} (the number of experts), got {top_k}")
    return top_k


def check_floating(argument: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{argument} must have a floating point type, got {tensor.dtype}")


def check_device(argument: str, tensor: Tensor, other: str, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{argument} is on {tensor.device} and {other} on {device}: they must be on one device")


def check_double(argument: str, tensor: Tensor, other: str, its: Tensor) -> None:
    """Types that meet are converted, which would cost fp64 its digits: autocast leaves it alone, too."""
    if tensor.dtype != its.dtype and torch.float64 in (tensor.dtype, its.dtype):
        raise TypeError(
            f"{argument} is {tensor.dtype} and {other} {its.dtype}: fp64 mixes with no other type, convert one"
        )


def check_shape(argument: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{argument} must have shape {expected}, got {tuple(tensor.shape)}")


def check_input(x: Tensor, hidden_size: int, weight: Tensor, its_name: str = "up_weight") -> Tensor:
    """x [..., H] -> [T, H], contiguous."""
    check_floating("x", x)
    check_device("x", x, f"{its_name} is", weight.device)
    if x.ndim == 0 or x.shape[-1] != hidden_size:
        raise ValueError(f"x must have shape [..., {hidden_size}], got {tuple(x.shape)}")
    if x.dtype != weight.dtype:
        check_double("x", x, "the experts are", weight)
        if not autocast.is_on(x.device.type):
            raise TypeError(f"x is {x.dtype} and the experts are {weight.dtype}: convert one, or use torch.autocast")
    return x.reshape(-1, hidden_size).contiguous()


def check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """A bool or int mask of x's leading shape -> bool [T]."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool or int tensor (true = keep), got {came}")
    if mask.shape != x.shape[:-1]:
        raise ValueError(f"mask must have x's leading shape {tuple(x.shape[:-1])}, got {tuple(mask.shape)}")
    check_device("mask", mask, "x is", x.device)
    return mask.reshape(-1).bool()


def check_slots(indices: Tensor, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """-> indices_TK (int32), weights_TK"""
    check_floating("weights", weights)
    check_device("weights", weights, "x is", x.device)
    if not isinstance(indices, Tensor) or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        came = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices must be an integer tensor, got {came}")
    check_device("indices", indices, "x is", x.device)
    if indices.ndim != x.ndim or indices.shape[:-1] != x.shape[:-1] or indices.shape[-1] < 1:
        expected = f"[{', '.join(map(str, x.shape[:-1]))}, K]"
        raise ValueError(f"indices must have shape {expected} with K >= 1, got {tuple(indices.shape)}")
    check_shape("weights", weights, tuple(indices.shape))
    top_k = indices.shape[-1]
    return as_int32(indices).reshape(-1, top_k).contiguous(), weights.reshape(-1, top_k).contiguous()


def as_int32(numbers: Tensor) -> Tensor:
    """What int32 cannot hold becomes its lowest or largest number, outside of any range still; a wrap might not be."""
    if numbers.dtype == torch.int32:
        return numbers
    return numbers.long().clamp(-(2**31), 2**31 - 1).int()


def check_starts(starts: Tensor, argument: str = "cu_seqlens") -> Tensor:
    """-> int32, contiguous. Whether they fit the rows, `longest_sequence` sees."""
    if not isinstance(starts, Tensor):
        raise TypeError(f"{argument} must be a tensor, got {type(starts).__name__}")
    if starts.ndim != 1 or starts.dtype not in (torch.int32, torch.int64) or not len(starts):
        raise ValueError(
            f"{argument} must be a 1-d int tensor of starts and the end, "
            f"got {starts.dtype} of shape {tuple(starts.shape)}"
        )
    return as_int32(starts).contiguous()


def longest_sequence(starts: Tensor, num_rows: int, argument: str = "cu_seqlens") -> int:
    """Of those that the starts mark; an error where they are not the rows from 0 to the last, laid end to end."""
    bounds = starts.tolist()
    if bounds[0] != 0 or bounds[-1] != num_rows:
        raise ValueError(f"{argument} must go from 0 to {num_rows}, got {bounds[0]} to {bounds[-1]}")
    longest, start = 0, 0
    for stop in bounds:
        if stop - start > longest:
            longest = stop - start
        elif stop < start:
            raise ValueError(f"{argument} must not decrease, got {stop} after {start}")
        start = stop
    return longest


def check_experts(experts: ExpertWeights, activation: str) -> None:
    """Shapes that fit each other, one type, one device."""
    up_weight, up_bias, down_weight, down_bias = experts
    check_floating("up_weight", up_weight)
    if up_weight.ndim != 3 or 0 in up_weight.shape:
        raise ValueError(
            f"up_weight must be [experts, ffn, hidden], each at least 1, got shape {tuple(up_weight.shape)}"
        )
    num_experts, width, hidden = up_weight.shape
    if activation in GATED and width % 2:
        raise ValueError(f"up_weight needs an even number of rows an expert for {activation}, got {width}")
    check_shape("down_weight", down_weight, (num_experts, hidden, width // width_of(1, activation)))
    biases = (("up_bias", up_bias, (num_experts, width)), ("down_bias", down_bias, (num_experts, hidden)))
    for argument, bias, expected in biases:
        if bias is not None:
            check_shape(argument, bias, expected)
    for argument, tensor in (("up_bias", up_bias), ("down_weight", down_weight), ("down_bias", down_bias)):
        if tensor is not None and (tensor.dtype != up_weight.dtype or tensor.device != up_weight.device):
            raise TypeError(
                f"{argument} must be {up_weight.dtype} on {up_weight.device} like up_weight, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def check_low_rank(deltas: LowRankExperts, base: LowRankExperts | None) -> None:
    """Factors that fit each other, of one type but under autocast, on one device."""
    for argument, experts in (("deltas", deltas), ("base", base)):
        if not isinstance(experts, LowRankExperts) and (experts is not None or argument == "deltas"):
            raise TypeError(f"{argument} must be kernels.LowRankExperts, got {type(experts).__name__}")
    enter = deltas.enter_PRH
    check_floating("deltas.enter_PRH", enter)
    if enter.ndim != 3 or 0 in enter.shape[1:]:
        raise ValueError(
            "deltas.enter_PRH must be [passages, rank, hidden], rank and hidden at least 1, "
            f"got shape {tuple(enter.shape)}"
        )
    num_passages, rank, hidden = enter.shape
    shapes = (rank, hidden), (hidden, rank), (rank, hidden), (rank, hidden)
    for argument, experts, stack in (("deltas", deltas, (num_passages,)), ("base", base, ())):
        for field, factor, shape in zip(LowRankExperts._fields, () if experts is None else experts, shapes):
            check_shape(f"{argument}.{field}", factor, (*stack, *shape))
            _check_kind(f"{argument}.{field}", factor, enter)


def _check_kind(argument: str, factor: Tensor, enter: Tensor) -> None:
    check_floating(argument, factor)
    check_device(argument, factor, "deltas.enter_PRH is", enter.device)
    if factor.dtype == enter.dtype:
        return
    check_double(argument, factor, "deltas.enter_PRH", enter)
    if not autocast.is_on(enter.device.type):
        raise TypeError(
            f"{argument} is {factor.dtype} and deltas.enter_PRH {enter.dtype}: convert one, or use torch.autocast"
        )
