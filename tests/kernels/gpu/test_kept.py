"""A launch that goes straight to a kept kernel goes to the one that Triton itself would take."""

import pytest

pytest.importorskip("triton")

from tests.kernels.gpu.uninterpreted import run

PROOF = """
import torch
from bench.harness import no_gpu
took = []
no_gpu.start(took)
from kernels.gpu import launch, sweep
from kernels.gpu.heuristics import Tile

def same(argument, sizes, offset):
    if isinstance(argument, torch.Tensor):
        return torch.empty(64, dtype=argument.dtype)[offset:]
    return sizes if isinstance(argument, int) else argument

kernels = set()
for one in sweep.launches(quick=True):
    tile = Tile(1, 1, 1, one.num_warps, one.num_stages, one.max_registers)
    kernels.add(one.kernel)
    for sizes, offset in [(1, 0), (16, 0), (17, 0), (2**40, 0), (17, 1), (16, 1)]:
        arguments = [same(argument, sizes, offset) for argument in one.arguments]
        for _ in range(2):
            launch.launch(one.kernel, 3, *arguments, tile=tile, **one.constants)
        launch._start_anew(one.kernel, 3, arguments, one.constants, tile)
        first, kept, tritons = took[-3:]
        assert kept[0] is tritons[0] is first[0], (one, sizes, offset)
        assert all(map(lambda a, b: a is b or a == b, kept[1], tritons[1])), one
assert len(kernels) > 15
assert len(launch._kept) > 3 * len(kernels)
print(len(took))
"""


def test_it_is_the_one_that_triton_takes():
    """Whatever the sizes and wherever tensors begin, first and later: Triton's choice is the oracle."""
    result = run("-c", PROOF)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout) > 1000


def test_the_benchmark_of_launches():
    result = run("-m", "bench.launches", "--seconds", "0.01")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [int(row[-5]) for row in rows] == [5, 4, 13, 12]
