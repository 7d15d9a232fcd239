"""`packed_attention` on random lengths and layouts, against PyTorch's attention on each sequence in fp64; bounds that
are wrong are refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import kernels
from tests.kernels.cases import gradient_error
from tests.kernels.fuzz.types import draw_type
from tests.kernels.oracle import TOLERANCE


def check(draw, backend):
    small = backend == "triton"
    lengths = [draw.choice((0, 1, 2, 5, 17, 33) + (() if small else (64, 130, 257))) for _ in range(draw.randint(0, 6))]
    heads, size = draw.choice((1, 2, 3, 12)), draw.randint(1, 70)
    dtype, gaps = draw_type(draw, backend), draw.random() < 0.5
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    whole = torch.randn(sum(lengths), 3, heads, size).to(dtype)
    three = [t if gaps else t.contiguous() for t in whole.unbind(1)]
    three = [t.detach().requires_grad_() for t in three]
    case = dict(lengths=lengths, heads=heads, size=size, dtype=dtype, gaps=gaps)
    longest = max([*lengths, 1]) + draw.choice((0, 0, 5))

    out = kernels.packed_attention(*three, bounds, longest)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    wide = [t.detach().double().requires_grad_() for t in three]
    parts = [sum(wide)[:0]]
    for start, stop in itertools.pairwise(bounds.tolist()):
        q, k, v = (t[start:stop].transpose(0, 1)[None] for t in wide)
        parts.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    expected = torch.cat(parts)
    expected.backward(grad.double())
    for got, ref in [(out, expected), *((a.grad, b.grad) for a, b in zip(three, wide))]:
        # in 16 bits: the gradients of q and k are sums that cancel, and of a few tokens there are few of them
        limit = TOLERANCE[dtype] * (1 if dtype == torch.float32 else 3)
        assert gradient_error(got, ref) <= limit, (case, gradient_error(got, ref))
    check_refusal(draw, three, bounds, longest)
    return case


def check_refusal(draw, three, bounds, longest):
    """One bound moved: refused, unless what comes out are other sequences."""
    if len(bounds) == 1:
        return
    wrong = bounds.clone()
    wrong[draw.randrange(len(wrong))] += draw.choice((-1, 1, 4000, 2**30, -(2**31)))
    lengths = wrong.long().diff()
    if wrong[0] == 0 and wrong[-1] == bounds[-1] and lengths.min() >= 0 and lengths.max() <= longest:
        return
    with pytest.raises(ValueError, match=r"cu_seqlens|max_len"):
        kernels.packed_attention(*three, wrong, longest)
