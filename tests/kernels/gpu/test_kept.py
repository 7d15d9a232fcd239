"""A launch that goes straight to a kept kernel goes to the one that Triton itself would take."""

import pytest

pytest.importorskip("triton")

from tests.kernels.gpu.uninterpreted import run

PROOF = """
import importlib, pkgutil, sys
import torch
from triton.runtime import JITFunction
from bench import launches as benchmark
from bench.harness import no_gpu
took = []
no_gpu.start(took)
import kernels.gpu
from kernels.gpu import launch, plan, sweep
from kernels.gpu.heuristics import Tile

def check(one, arguments):
    tile = Tile(1, 1, 1, one.num_warps, one.num_stages, one.max_registers)
    for _ in range(2):
        launch.launch(one.kernel, 3, *arguments, tile=tile, **one.constants)
    launch._start_anew(one.kernel, 3, arguments, one.constants, tile)
    first, kept, tritons = took[-3:]
    assert kept[0] is tritons[0] is first[0], (one, arguments)
    assert all(map(lambda a, b: a is b or a == b, kept[1], tritons[1])), (one, arguments)

def like(argument, size=17, offset=0):
    if isinstance(argument, torch.Tensor):
        return torch.empty(64, dtype=argument.dtype)[offset:]
    return size if isinstance(argument, int) else argument

seen = sweep.launches(quick=True)
indices = torch.empty(2**20, 1, dtype=torch.int32, device="meta")
with launch.watch(lambda one: bool(seen.append(one))):
    plan.plan(indices, 64)  # so many that its counts are scanned
tried = {}
for one in seen:
    check(one, list(map(like, one.arguments)))
    tried[one.kernel] = one
for one in tried.values():
    for size, offset in [(1, 0), (16, 0), (2**40, 0), (1, 1), (16, 1)]:
        check(one, [like(argument, size, offset) for argument in one.arguments])
    for place, argument in enumerate(one.arguments):  # another than the others
        arguments = list(map(like, one.arguments))
        arguments[place] = like(argument, 2**40, 1)
        check(one, arguments)
modules = [importlib.import_module(found.name) for found in pkgutil.iter_modules(kernels.gpu.__path__, "kernels.gpu.")]
every = {each for module in modules for name, each in vars(module).items() if name.endswith("_kernel")}
assert set(tried) == {each for each in every if isinstance(each, JITFunction)}
assert len(took) > 1000
sys.argv = ["launches", "--seconds", "0.01"]
launch._kept.clear()
benchmark.main()
"""


def test_it_is_the_one_that_triton_takes():
    """Of every kernel, whatever the sizes and wherever tensors begin, first and later: Triton's choice is the oracle.

    In the same process, since to start one takes most of the time: the benchmark of launches.
    """
    result = run("-c", PROOF)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [int(row[-5]) for row in rows] == [5, 4, 13, 12, 1, 3]
