"""`residual_norm` of random sizes and types against LayerNorm(x + y) in fp64."""

import torch
import torch.nn.functional as F

from kernels import dispatch
from kernels.encoder import residual_norm
from tests.kernels.fuzz.types import draw_type
from tests.kernels.oracle import TOLERANCE, relative_error


def check(draw, backend):
    rows, hidden = draw.choice((0, 1, 3, 65, 300)), draw.choice((1, 2, 15, 16, 17, 33, 100, 384))
    types, eps = [draw_type(draw, backend) for _ in range(2)], draw.choice((1e-12, 1e-5, 1.0))
    x, y = (torch.randn(rows, hidden).to(dtype).requires_grad_() for dtype in types)
    weight, bias = (torch.randn(hidden, requires_grad=True) for _ in range(2))
    given = [x, y, weight, bias]
    wide = [t.detach().double().requires_grad_() for t in given]
    out = residual_norm(*given, eps)
    expected = F.layer_norm(wide[0] + wide[1], (hidden,), *wide[2:], eps)
    grad = torch.randn(out.shape).to(out.dtype)
    out.backward(grad)
    expected.backward(grad.double())
    limit = max(TOLERANCE[dtype] for dtype in (*types, out.dtype))
    if "residual_norm" not in dispatch.get(backend).fusions:  # PyTorch rounds the sum to 16 bits before the norm
        limit *= 5
    case = dict(rows=rows, hidden=hidden, types=types, eps=eps)
    if hidden > 2:  # of one or two numbers, what is left after the mean is rounding
        for got, ref in [(out, expected), *((a.grad, b.grad) for a, b in zip(given, wide))]:
            assert relative_error(got, ref) <= limit, (case, relative_error(got, ref))
    return case
