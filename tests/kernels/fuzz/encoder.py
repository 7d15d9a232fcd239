"""A frozen encoder of random sizes, dense and routed, against its modules written out in fp64."""

import torch
from torch.nn import functional as F

from kernels import dispatch
from kernels.activations import ACTIVATIONS
from kernels.encoder.frozen import FrozenEncoder
from tests.kernels.encoder.test_frozen import encoder_parts, error, expected_hidden, packed

CLOSE = 1e-5
"""A difference of two experts' logits that rounding may turn round, and with it all that attends to the token."""


def margins(layer, x_TH):
    """How far the last expert that is chosen is from the first that is not, a token."""
    logits_TE = F.linear(x_TH, layer.router.weight, layer.router.bias).sort(descending=True).values
    return [] if layer.top_k == layer.num_experts else (-logits_TE.diff()[:, layer.top_k - 1]).tolist()


@torch.no_grad()
def check(draw, backend):
    if "freeze" not in dispatch.get(backend).fusions:
        return None
    heads, depth = draw.choice((1, 2, 3, 12)), draw.randint(1, 3)
    hidden, width = heads * draw.randint(1, 40), draw.randint(1, 150)
    lengths = [draw.choice((0, 1, 2, 5, 31, 64, 130)) for _ in range(draw.choice((0, 1, 1, 2, 7, 40)))]
    routed, dtype = draw.random() < 0.5, torch.float32
    moe = dict(
        num_experts=draw.randint(2, 9), top_k=draw.randint(1, 2), router=draw.choice(("softmax", "sigmoid")),
        activation=draw.choice(("gelu", "silu", "swiglu", "relu")), bias=draw.random() < 0.5,
    )  # fmt: skip
    if not routed:
        dtype = draw.choice((torch.float32, torch.bfloat16))
    parts = encoder_parts(
        hidden, width, depth, heads, dtype, routed=range(depth) if routed else (), moe=moe,
        activation=draw.choice(list(ACTIVATIONS)), bias=draw.random() < 0.5,
    )  # fmt: skip
    case = dict(hidden=hidden, width=width, depth=depth, heads=heads, lengths=lengths, dtype=dtype, moe=routed and moe)
    ids, cu_seqlens = packed(lengths) if lengths else (torch.zeros(0, dtype=torch.int64), torch.zeros(1).int())
    frozen = FrozenEncoder(parts, dtype=dtype)
    hidden_states, means = frozen.hidden_states(ids, cu_seqlens), frozen.embed(ids, cu_seqlens)
    assert means.shape == (len(lengths), hidden)
    if sum(lengths):
        found = []
        for block in parts.blocks if routed else ():
            block.ffn.register_forward_pre_hook(lambda layer, given: found.extend(margins(layer, *given)))
        expected = expected_hidden(ids, cu_seqlens, parts)
        if min(found, default=1.0) < CLOSE:
            return None
        limit = depth * (1e-5 if dtype == torch.float32 else 2e-2)
        assert error(hidden_states, torch.cat(expected)) < limit, case
        expected_means = torch.stack([part.mean(0) if len(part) else part.sum(0) for part in expected])
        assert error(means, expected_means) < limit, case
    return case
