"""How the Triton primitives are held against their eager twins."""

from itertools import starmap

import torch

from kernels import dispatch
from kernels.gpu import backend

DEVICE = torch.device("cpu" if backend.INTERPRETED else "cuda")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
DTYPES = [dtype for dtype in TOLERANCE if backend.supports(DEVICE, dtype)]
EAGER = dispatch.get("eager")
"""The twins: primitives, and what a fusion falls back to."""


def normal(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(DEVICE, dtype)


def agree(name, *arguments, tolerance, reduce=None):
    """Runs a primitive or a fusion on both sides, compares every output, and returns the eager one's."""
    ours, twins = getattr(backend, name)(*arguments), getattr(EAGER, name)(*arguments)
    pairs = list(zip(leaves(ours), leaves(twins)))
    if reduce is not None:  # sums that each side cuts into parts of its own
        ours_part, twins_part = pairs[reduce]
        pairs[reduce] = ours_part.sum(-1), twins_part.sum(-1)
    assert all(starmap(lambda a, b: same(a, b, tolerance), pairs)), name
    return twins


def leaves(result):
    """The tensors of a result, of its records too."""
    return [leaf for part in result for leaf in leaves(part)] if isinstance(result, tuple) else [result]


def same(ours, twin, tolerance):
    if ours is None or twin is None:
        return ours is twin
    assert (ours.shape, ours.dtype) == (twin.shape, twin.dtype)
    if not ours.is_floating_point():
        return torch.equal(ours, twin)
    ours, twin = ours.double(), twin.double()
    return bool((ours - twin).norm() <= tolerance * twin.norm())
