"""`expert_mlp` on random slots, unused and repeated ones included, against a loop over slots in fp64."""

import torch

import kernels
from tests.kernels.fuzz.types import draw_type
from tests.kernels.oracle import TOLERANCE, activation, relative_error

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu")
INTEGERS = (torch.int64, torch.int32, torch.int16)


def check(draw, backend):
    small = backend == "triton"
    tokens = draw.choice((0, 1, 3, 9) if small else (0, 1, 2, 7, 40, 200, 700))
    top_k, num_experts = draw.randint(1, 5), draw.choice((1, 2, 5, 8) if small else (1, 2, 5, 8, 65, 200))
    hidden, ffn = (draw.randint(1, 40 if small else 150) for _ in range(2))
    name, bias = draw.choice(ACTIVATIONS), draw.random() < 0.6
    dtype = draw_type(draw, backend)
    width = 2 * ffn if name in ("swiglu", "geglu") else ffn
    few = draw.random() < 0.3  # most slots go to two experts
    indices = torch.randint(-2, min(num_experts, 2) if few else num_experts + 1, (tokens, top_k)).clamp(min=-1)
    indices = indices.to(draw.choice(INTEGERS))
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, top_k) + 0.1
    up, down = torch.randn(num_experts, width, hidden) / hidden**0.5, torch.randn(num_experts, hidden, ffn) / ffn**0.5
    biases = [torch.randn(num_experts, n) if bias else None for n in (width, hidden)]
    given = [t if t is None else t.to(dtype).requires_grad_() for t in (x, weights, up, biases[0], down, biases[1])]
    wide = [t if t is None else t.detach().double().requires_grad_() for t in given]

    y = kernels.expert_mlp(given[0], indices, *given[1:], activation=name)
    expected = loop(wide, indices, name)
    grad_y = torch.randn(tokens, hidden)
    y.backward(grad_y.to(dtype))
    (expected * grad_y.to(dtype).double()).sum().backward()
    errors = [relative_error(y, expected)]
    for got, ref in zip(given, wide):
        if got is not None:
            grad = torch.zeros_like(ref) if ref.grad is None else ref.grad
            error = relative_error(got.grad, grad)
            if got is given[1] and grad.norm() > 0:  # <dy, out> may cancel: relative to what it usually is, at least
                error *= min(1.0, grad.norm().item() / (0.3 * (hidden * grad.numel()) ** 0.5))
            errors.append(error)
    case = dict(
        tokens=tokens, top_k=top_k, experts=num_experts, hidden=hidden, ffn=ffn, activation=name, bias=bias,
        dtype=dtype, few=few, integers=indices.dtype,
    )  # fmt: skip
    # in 16 bits: the gradient of a weight is a sum that cancels, and of a few tokens there are few of them
    limit = TOLERANCE[dtype] * (1 if dtype == torch.float32 else 3)
    assert all(error <= limit for error in errors), (case, errors)
    return case


def loop(wide, indices, name):
    x, weights, up, up_bias, down, down_bias = wide
    rows = []
    for t in range(len(x)):
        row = 0 * x[t]
        for slot, e in enumerate(indices[t].tolist()):
            if 0 <= e < len(up):
                pre = up[e] @ x[t] if up_bias is None else up[e] @ x[t] + up_bias[e]
                out = down[e] @ activation(name, pre)
                row = row + weights[t, slot] * (out if down_bias is None else out + down_bias[e])
        rows.append(row)
    return torch.stack(rows) if rows else x.sum() * torch.zeros_like(x) + 0 * weights.sum()
