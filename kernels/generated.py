"""Generated experts: a hypernetwork makes an expert of each retrieved passage, and a sample's tokens run through those
of its passages, weighed by the softmax of their scores.

An expert has four factors of low rank, y = relu(x enterᵀ upᵀ) downᵀ leave: what the hypernetwork made of the passage
(`deltas`), plus what all experts share (`base`). No matrix of H x H is made of them. A layer's primitives do the rest:

- Between `enter` and `leave`, a passage is an expert as a layer has them, of hidden size R and width H: `up`, relu,
  `down`. It runs on slots: slot (token, k) is in the k-th passage of the token's sample.
- The `enter` of a sample's passages, one below the other, are one matrix of K * R rows, and so are their `leave`. Here
  the sample is the expert, the only one of each of its tokens: x is multiplied once and not once a passage, and one
  product sums what the passages make of a token, where rows of slots would be written and then combined.

Suffixes besides those of `routing.py`:

    N  samples                             P  passages of all samples, laid end to end
    K  most passages of a sample           R  rank
    D  what a token has between `enter` and `leave`: K * R

Worked example: passages 0 and 1 are those of sample 0, passage 2 is that of sample 2, and sample 1 has none. There are
five tokens, of which the second is masked.

>>> import torch
>>> from kernels import reference
>>> passage_OK = list_passages(Passages(torch.tensor([0, 2, 2, 3], dtype=torch.int32), max_passages=2))
>>> passage_OK                                       # -1 is no passage, and the last row is of no sample
tensor([[ 0,  1],
        [-1, -1],
        [ 2, -1],
        [-1, -1]], dtype=torch.int32)
>>> sample_T = torch.tensor([0, 3, 0, 1, 2], dtype=torch.int32)                      # 3 is no sample
>>> scores_P = torch.tensor([3.0, 1.0, 7.0]).log()
>>> by_sample, by_passage, weights_TK = assign(reference, sample_T, passage_OK, scores_P)
>>> by_sample.order_S                                # tokens by sample: the order of rows from here on
tensor([0, 2, 3, 4, 1], dtype=torch.int32)
>>> by_sample.offsets_O                              # sample 0 has rows 0-1, sample 1 row 2, sample 2 row 3
tensor([0, 2, 3, 4], dtype=torch.int32)
>>> by_passage.order_S                               # slots by passage: slot s is of row s // K
tensor([0, 2, 1, 3, 6, 4, 5, 7, 8, 9], dtype=torch.int32)
>>> by_passage.offsets_O
tensor([0, 2, 4, 5], dtype=torch.int32)
>>> weights_TK                                       # 3 / (3 + 1) and 1 / (3 + 1)
tensor([[0.7500, 0.2500],
        [0.7500, 0.2500],
        [0.0000, 0.0000],
        [1.0000, 0.0000],
        [0.0000, 0.0000]])

Saved for the backward: x, what is behind `enter` and before `leave` (R numbers a slot each), the weights and the plans.
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import ops, validation
from kernels.contract import Backend
from kernels.functional import Given, compute_dtype, planned_backward, records_gradient
from kernels.records import ExpertWeights, LowRankExperts, Passages, flatten, pack
from kernels.reference import wide_dtype
from kernels.routing import Plan, with_one_unused

# Which experts run on which tokens.


class Assignment(NamedTuple):
    by_sample: Plan
    """Tokens. Those that are masked come last."""
    by_passage: Plan
    """Slots. Those of no passage come last."""
    weights_TK: Tensor
    """fp32 (fp64 for fp64 inputs). How much each slot's expert counts; 0 for a slot of no passage."""


def assign(backend: Backend, sample_T: Tensor, passage_OK: Tensor, scores_P: Tensor) -> Assignment:
    by_sample = backend.plan(sample_T[:, None], len(passage_OK) - 1)
    sample_of_row_T = sample_T[by_sample.order_S]
    by_passage = backend.plan(passage_OK[sample_of_row_T], len(scores_P))
    return Assignment(by_sample, by_passage, _weigh(scores_P, passage_OK)[sample_of_row_T])


def _find_samples(cu_seqlens: Tensor, mask_T: Tensor | None, num_tokens: int) -> Tensor:
    """-> sample_T, N for a token of none."""
    token_T = torch.arange(num_tokens, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    sample_T = torch.searchsorted(cu_seqlens[1:], token_T, right=True, out_int32=True)
    return sample_T if mask_T is None else torch.where(mask_T, sample_T, len(cu_seqlens) - 1)


def list_passages(passages: Passages) -> Tensor:
    """-> passage_OK, those of each sample"""
    start_O, most = passages
    stop_O = torch.cat([start_O[1:], start_O[-1:]])
    passage_OK = start_O[:, None] + torch.arange(most, dtype=start_O.dtype, device=start_O.device)
    return torch.where(passage_OK < stop_O[:, None], passage_OK, -1)


def _weigh(scores_P: Tensor, passage_OK: Tensor) -> Tensor:
    """-> weights_OK: the softmax over the passages of each sample."""
    is_none_OK = passage_OK < 0
    scores_OK = scores_P[passage_OK.clamp(min=0)].masked_fill(is_none_OK, -math.inf)
    return scores_OK.softmax(-1).masked_fill(is_none_OK, 0)


def _weigh_backward(grad_weights_NK: Tensor, scores_P: Tensor, passage_OK: Tensor) -> Tensor:
    """-> grad_scores_P"""
    weights_NK = _weigh(scores_P, passage_OK)[:-1]
    grad_NK = weights_NK * grad_weights_NK
    return _unstack(grad_NK - weights_NK * grad_NK.sum(-1, keepdim=True), passage_OK, len(scores_P))


# The experts as they are multiplied.


class _Factors(NamedTuple):
    enter_NDH: Tensor
    middle: ExpertWeights
    leave_NDH: Tensor


def _sum_factors(backend: Backend, deltas: LowRankExperts, base: LowRankExperts | None, passage_OK: Tensor) -> _Factors:
    """Of base + delta, and not apart: x (base + delta)ᵀ costs less than x baseᵀ + x deltaᵀ for all but a few tokens.

    To add is to read and to write 4 R H numbers a passage: 16 R H bytes in bf16, 32 R H in fp32. Products with base
    would be 6.4 R H operations more for each token (of five passages, which have the one with `enter` in common).
    An H200 does 184 of them in bf16 in the time of a byte, and a CPU about 10 in fp32, so that the sum is the cheaper
    way from 460 and from 50 tokens a sample on. For one token at a time, the caller adds once: `base=None`.
    """
    enter_PRH, up_PHR, down_PRH, leave_PRH = (
        own.contiguous() if shared is None else backend.add(own, shared)
        for own, shared in zip(deltas, base or _NO_FACTORS)
    )
    middle = ExpertWeights(up_PHR, None, down_PRH, None)
    return _Factors(_stack(enter_PRH, passage_OK), middle, _stack(leave_PRH, passage_OK))


def _are_even(num_passages: int, passage_OK: Tensor) -> bool:
    """Whether every sample has as many passages as any: those of a sample then lie as they are needed."""
    return num_passages == (len(passage_OK) - 1) * passage_OK.shape[1]


def _stack(factor_PRH: Tensor, passage_OK: Tensor) -> Tensor:
    """-> [N, D, H], with zeros where a sample has no more passages"""
    passage_NK, hidden = passage_OK[:-1], factor_PRH.shape[2]
    if not _are_even(len(factor_PRH), passage_OK):
        factor_PRH = factor_PRH[passage_NK.clamp(min=0)].masked_fill_((passage_NK < 0)[:, :, None, None], 0)
    return factor_PRH.view(len(passage_NK), -1, hidden)


def _unstack(values_NK: Tensor, passage_OK: Tensor, num_passages: int) -> Tensor:
    """[N, K, ...] -> [P, ...]"""
    if _are_even(num_passages, passage_OK):
        return values_NK.flatten(0, 1)
    passage_S = with_one_unused(passage_OK[:-1].flatten(), num_passages).long()
    rows = values_NK.new_zeros(num_passages + 1, *values_NK.shape[2:])  # the last is for what is no passage's
    return rows.index_copy_(0, passage_S, values_NK.flatten(0, 1))[:-1]


# The three products of a matrix that a sample's tokens share. Each of `enter` and `leave` is met by all of them.


def _inwards(backend: Backend, rows_TH: Tensor, by_sample: Plan, weight_NDH: Tensor) -> Tensor:
    """-> rows_TD by sample: what `up` would activate, but there is nothing to activate yet."""
    _, rows_TD = backend.up(rows_TH, by_sample, _as_experts(weight_NDH), 1, "relu", True)
    return rows_TD


def _outwards(backend: Backend, rows_TD: Tensor, by_sample: Plan, weight_NDH: Tensor) -> Tensor:
    """-> rows_TH in the order of tokens, zeros for those of no sample"""
    return backend.up_backward(rows_TD, by_sample, _as_experts(weight_NDH))


def _gradient(
    backend: Backend, rows_TH: Tensor, rows_TD: Tensor, by_sample: Plan, passage_OK: Tensor, num_passages: int
) -> Tensor:
    """-> grad_weight_PRH"""
    grad_NDH, _ = backend.up_weight_grad(rows_TH, rows_TD, by_sample, 1, False)
    grad_NKRH = grad_NDH.view(*passage_OK[:-1].shape, -1, rows_TH.shape[1])
    return _unstack(grad_NKRH, passage_OK, num_passages)


def _as_experts(weight_NDH: Tensor) -> ExpertWeights:
    """For primitives that read the first matrix of experts alone."""
    return ExpertWeights(weight_NDH, None, weight_NDH, None)


# The bodies of the ops.

DELTAS = tuple(f"deltas_{field}" for field in LowRankExperts._fields)
"""They may be parts of one output of a hypernetwork: what adds to them makes them dense."""


class GeneratedOutput(NamedTuple):
    y_TH: Tensor
    inner_TD: Tensor
    """Behind `enter`, by sample."""
    outer_TD: Tensor
    """Before `leave`, by sample, times the weights."""
    by_sample: Plan
    by_passage: Plan
    weights_TK: Tensor


def _zero_output(x_TH, mask_T, cu_seqlens, passages, scores_P, deltas, base):
    """The shapes; and the values, where there is no token or no passage."""
    cu_passages, most = passages
    num_tokens, (num_passages, rank, _) = x_TH.shape[0], deltas.enter_PRH.shape
    return GeneratedOutput(
        x_TH.new_zeros(x_TH.shape),
        deltas.enter_PRH.new_zeros(num_tokens, most * rank),
        deltas.enter_PRH.new_zeros(num_tokens, most * rank),
        Plan(cu_passages.new_zeros(num_tokens), cu_passages.new_zeros(cu_passages.shape)),
        Plan(cu_passages.new_zeros(num_tokens * most), cu_passages.new_zeros(num_passages + 1)),
        scores_P.new_zeros(num_tokens, most),
    )


@ops.define(fake=_zero_output, compute="deltas_enter_PRH", strided=DELTAS)
def generated_forward(
    backend: Backend,
    x_TH: Tensor,
    mask_T: Tensor | None,
    cu_seqlens: Tensor,
    passages: Passages,
    scores_P: Tensor,
    deltas: LowRankExperts,
    base: LowRankExperts | None,
) -> GeneratedOutput:
    _check_bounds(cu_seqlens, len(x_TH), passages, len(scores_P))
    if len(x_TH) == 0 or len(scores_P) == 0:
        return _zero_output(x_TH, mask_T, cu_seqlens, passages, scores_P, deltas, base)
    sample_T, passage_OK = _find_samples(cu_seqlens, mask_T, len(x_TH)), list_passages(passages)
    by_sample, by_passage, weights_TK = assign(backend, sample_T, passage_OK, scores_P)
    enter_NDH, middle, leave_NDH = _sum_factors(backend, deltas, base, passage_OK)
    inner_TD = _inwards(backend, x_TH, by_sample, enter_NDH)
    inner_SR, weights_S1 = inner_TD.view(-1, deltas.enter_PRH.shape[1]), weights_TK.view(-1, 1)
    outer_SR, _ = backend.up_and_down(inner_SR, by_passage, weights_S1, middle, None, "relu", False, inner_TD.dtype)
    outer_TD = outer_SR.view_as(inner_TD)
    y_TH = _outwards(backend, outer_TD, by_sample, leave_NDH).to(x_TH.dtype)
    return GeneratedOutput(y_TH, inner_TD, outer_TD, by_sample, by_passage, weights_TK)


def _check_bounds(cu_seqlens: Tensor, num_tokens: int, passages: Passages, num_passages: int) -> None:
    """Here, where a compiler does not look. On a GPU, looking would wait for it."""
    cu_passages, most = passages
    if most < 0:
        raise ValueError(f"max_passages must be at least 0, got {most}")
    if cu_passages.device.type == "cpu":
        validation.longest_sequence(cu_seqlens, num_tokens)
        longest = validation.longest_sequence(cu_passages, num_passages, "cu_passages")
        if longest > most:
            raise ValueError(f"cu_passages has a sample of {longest} passages, max_passages is {most}")


class GeneratedGrads(NamedTuple):
    x_TH: Tensor | None
    scores_P: Tensor
    deltas: LowRankExperts | None


_NO_FACTORS = LowRankExperts._make([None] * 4)


def _zero_grads(grad_y_TH, x_TH, passages, scores_P, deltas, *rest):
    """As `_zero_output`."""
    *_, need_x, need_experts = rest
    return GeneratedGrads(
        x_TH.new_zeros(x_TH.shape) if need_x else None,
        scores_P.new_zeros(scores_P.shape),
        LowRankExperts._make(t.new_zeros(t.shape) for t in deltas) if need_experts else _NO_FACTORS,
    )


@ops.define(fake=_zero_grads, compute="deltas_enter_PRH", strided=DELTAS)
def generated_backward(
    backend: Backend,
    grad_y_TH: Tensor,
    x_TH: Tensor,
    passages: Passages,
    scores_P: Tensor,
    deltas: LowRankExperts,
    base: LowRankExperts | None,
    inner_TD: Tensor,
    outer_TD: Tensor,
    by_sample: Plan,
    by_passage: Plan,
    weights_TK: Tensor,
    need_x: bool,
    need_experts: bool,
) -> GeneratedGrads:
    """`deltas` of the result are the gradients of sums: what `base` shares in them is for the caller to add up."""
    if len(x_TH) == 0 or len(scores_P) == 0:
        return _zero_grads(grad_y_TH, x_TH, passages, scores_P, deltas, need_x, need_experts)
    passage_OK, (num_passages, rank, _) = list_passages(passages), deltas.enter_PRH.shape
    enter_NDH, middle, leave_NDH = _sum_factors(backend, deltas, base, passage_OK)
    grad_outer_SR = _inwards(backend, grad_y_TH, by_sample, leave_NDH).view(-1, rank)
    inner_SR, weights_S1 = inner_TD.view(-1, rank), weights_TK.view(-1, 1)
    _, pre_SH = backend.up(inner_SR, by_passage, middle, 1, "relu", True)
    given = Given(grad_outer_SR, inner_SR, weights_S1, pre_SH)
    grad_inner_SR, grad_weights_SP, grads = planned_backward(
        backend, given, by_passage, middle, "relu", True, need_experts
    )
    grad_inner_TD = cast(Tensor, grad_inner_SR).view_as(inner_TD)
    grad_weights_NK = _sum_rows(backend, grad_weights_SP.sum(-1).view_as(weights_TK), by_sample)
    grad_x_TH, grad_factors = None, _NO_FACTORS
    if need_x:
        grad_x_TH = _outwards(backend, grad_inner_TD, by_sample, enter_NDH).to(x_TH.dtype)
    if need_experts:
        grad_enter_PRH = _gradient(backend, x_TH, grad_inner_TD, by_sample, passage_OK, num_passages)
        grad_leave_PRH = _gradient(backend, grad_y_TH, outer_TD, by_sample, passage_OK, num_passages)
        grad_factors = LowRankExperts(grad_enter_PRH, grads.up_weight_EUH, grads.down_weight_EHF, grad_leave_PRH)
    return GeneratedGrads(grad_x_TH, _weigh_backward(grad_weights_NK, scores_P, passage_OK), grad_factors)


def _sum_rows(backend: Backend, values_TK: Tensor, by_sample: Plan) -> Tensor:
    """-> [N, K], in the same order each time: the sum of a sample's rows is what a bias would get."""
    ones_T1 = values_TK.new_ones(len(values_TK), 1)
    return backend.up_weight_grad(ones_T1, values_TK, by_sample, 1, True)[1]


_KINDS = (Tensor, Tensor, Tensor, Passages, Tensor, LowRankExperts, LowRankExperts)


class _Generated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *flat):
        x_TH, _, _, passages, scores_P, deltas, base = pack(flat, *_KINDS)
        y_TH, *inside = generated_forward(*pack(flat, *_KINDS))
        ctx.save_for_backward(x_TH, passages.cu_passages, scores_P, *deltas, *base, *flatten(inside))
        ctx.max_passages = passages.max_passages
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y_TH):
        kinds = (Tensor, Tensor, Tensor, LowRankExperts, LowRankExperts, Tensor, Tensor, Plan, Plan, Tensor)
        x_TH, cu_passages, *saved = pack(ctx.saved_tensors, *kinds)
        need_x, *_, need_deltas, need_base = pack(ctx.needs_input_grad, *_KINDS)
        passages, need_experts = Passages(cu_passages, ctx.max_passages), any(need_deltas) or any(need_base)
        grads = generated_backward(grad_y_TH, x_TH, passages, *saved, need_x, need_experts)
        grad_base = [grad.sum(0) if needed else None for grad, needed in zip(grads.deltas, need_base)]
        return grads.x_TH, None, None, None, None, grads.scores_P, *grads.deltas, *grad_base


def generated_experts(
    x: Tensor,
    deltas: LowRankExperts,
    scores: Tensor,
    base: LowRankExperts | None,
    cu_passages: Tensor,
    max_passages: int,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """An expert of each passage on the tokens of its sample: y = sum over a sample's passages of softmax(scores) times
    expert(x); x [samples, ..., H] -> y like x, 0 for the tokens of a sample without passages.

    Sample i has the passages cu_passages[i] : cu_passages[i + 1] (int32, from 0 to P), no more than max_passages;
    scores is [P]. An expert is relu(x enterᵀ upᵀ) downᵀ leave. `deltas` has enter_PRH, down_PRH and leave_PRH, each
    [P, R, H], and up_PHR [P, H, R]; `base`, which is added to each of them, has the same without P. (Where the method
    is written x -> U1 -> V1 -> ReLU -> U2 -> V2, they are U1, U2, the transpose of V2, and V1.) With base=None the
    deltas are whole experts: for one token after another, add once, with `deltas.plus(base)`.

    Where `mask`, of x's leading shape, is false, a token takes part in nothing and y is 0. With `cu_seqlens`, x is
    [tokens, H]: the tokens of sample i are the rows cu_seqlens[i] : cu_seqlens[i + 1]. On a GPU, which a check would
    wait for, it is not checked that these bounds fit the rows.
    """
    validation.check_low_rank(deltas, base)
    num_passages, _, hidden = deltas.enter_PRH.shape
    x_TH = validation.check_input(x, hidden, deltas.enter_PRH, "deltas.enter_PRH")
    mask_T = validation.check_mask(mask, x)
    validation.check_floating("scores", scores)
    validation.check_shape("scores", scores, (num_passages,))
    validation.check_device("scores", scores, "x is", x.device)
    passages = _check_passages(cu_passages, max_passages, x.device)
    starts = _token_starts(x, passages.cu_passages.shape[0] - 1, cu_seqlens)
    base = _NO_FACTORS if base is None else base
    dtype = compute_dtype(deltas.enter_PRH)
    scores_P = scores.to(wide_dtype(dtype))
    arguments = (x_TH, mask_T, starts, passages, scores_P, deltas.to(dtype), base.to(dtype))
    if records_gradient(x, scores, *deltas, *base):
        y_TH = _Generated.apply(*flatten(arguments))
    else:
        y_TH = generated_forward(*arguments).y_TH
    return y_TH.view(x.shape)


def _check_passages(cu_passages: Tensor, max_passages: int, device: torch.device) -> Passages:
    starts = validation.check_starts(cu_passages, "cu_passages")
    validation.check_device("cu_passages", starts, "x is", device)
    if not isinstance(max_passages, int | torch.SymInt):
        raise TypeError(f"max_passages must be an int, got {max_passages!r}")
    return Passages(starts, max_passages)


def _token_starts(x: Tensor, num_samples: int, cu_seqlens: Tensor | None) -> Tensor:
    """Those that are given; else as many tokens for each sample as x has in its first dimension."""
    if cu_seqlens is None:
        if x.ndim < 2 or x.shape[0] != num_samples:
            raise ValueError(
                f"x must be [samples, ..., hidden] with {num_samples} samples, as cu_passages has, or come with "
                f"cu_seqlens; got shape {tuple(x.shape)}"
            )
        sample_O = torch.arange(num_samples + 1, dtype=torch.int32, device=x.device)
        return sample_O * x.shape[1:-1].numel()
    if x.ndim != 2:
        raise ValueError(f"with cu_seqlens, x must be [tokens, hidden], got shape {tuple(x.shape)}")
    starts = validation.check_starts(cu_seqlens)
    validation.check_device("cu_seqlens", starts, "x is", x.device)
    if starts.shape[0] != num_samples + 1:
        raise ValueError(f"cu_seqlens must be of {num_samples} samples, as cu_passages is, got {starts.shape[0] - 1}")
    return starts
