"""One layer used by several threads at once, with different inputs: each gets what it gets alone."""

from concurrent.futures import ThreadPoolExecutor

import torch

from tests.kernels.fuzz.layers import draw_case
from tests.kernels.fuzz.types import draw_type

THREADS = 4


def check(draw, backend):
    if backend == "triton" and not torch.cuda.is_available():
        return None  # its interpreter is for one thread
    case, dtype = draw_case(draw, backend), draw_type(draw, backend)
    layer = case.build(torch.device("cpu"), dtype).eval()
    inputs = [case.inputs(torch.device("cpu"), dtype) for _ in range(2 * THREADS)]

    def run(given):
        x, grad_y, mask = given
        x = x.detach().requires_grad_()
        y = layer(x, mask)
        wanted = [x, *(p for name, p in layer.named_parameters() if "noise" not in name)]
        return [y, *torch.autograd.grad(y, wanted, grad_y, allow_unused=True)]

    alone = [run(given) for given in inputs]
    counts = layer.sums.take_counts()
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, inputs))
    assert torch.equal(layer.sums.take_counts(), counts), (case, dtype)
    for ours, expected in zip(together, alone):
        for got, want in zip(ours, expected):
            assert (got is None) == (want is None)
            assert got is None or torch.equal(got.nan_to_num(), want.nan_to_num()), (case, dtype)
    return case, dtype
