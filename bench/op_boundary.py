"""What one call costs before any arithmetic: a body called directly, behind an op, and inside an autograd Function.

    python -m bench.op_boundary          writes bench/results/op_boundary.json

The body does nothing, and takes as many arguments as `moe_forward`: what is left is the boundary.
"""

import json
import platform
import timeit
from pathlib import Path

import torch

from kernels import dispatch, ops

RESULTS = Path(__file__).parent / "results" / "op_boundary.json"
TENSORS = 12


def nothing(*tensors):
    return tensors[0].new_empty(0)


@ops.define(
    f"boundary({', '.join(f'Tensor x{i}' for i in range(TENSORS))}, int k, str activation, bool keep) -> Tensor",
    fake=lambda *arguments: nothing(*arguments),
    compute="x0",
)
def boundary(backend, *arguments):
    return nothing(*arguments)


class Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments[:TENSORS])
        return boundary(*arguments)

    @staticmethod
    def backward(ctx, grad):
        return (None,) * (TENSORS + 3)


def microseconds(call, number=20_000, repeats=9):
    """The fastest of several means: the cost without what else the machine does."""
    return min(timeit.repeat(call, number=number, repeat=repeats)) / number * 1e6


def main():
    x = torch.randn(1, 4)
    arguments = (*[x] * TENSORS, 2, "gelu", True)
    leaves = (*[x.clone().requires_grad_() for _ in range(TENSORS)], 2, "gelu", True)
    with dispatch.use_backend("eager"):
        with torch.no_grad():
            body = microseconds(lambda: nothing(*arguments))
            behind_op = microseconds(lambda: boundary(*arguments))
        function = microseconds(lambda: Boundary.apply(*leaves))
    result = {
        "body_us": round(body, 2),
        "op_us": round(behind_op - body, 2),
        "op_and_autograd_function_us": round(function - body, 2),
        "run": {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
