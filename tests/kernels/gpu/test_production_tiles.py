"""The tiles that real sizes are given, which small tests never reach: those of top-2 routing run here, by name.

A size is made small, and keeps what a kernel's configuration depends on: the tile that the heuristics chose for the
real one, the number of experts, and whether the tile divides the sizes. What `sweep` runs is the script: on tensors
without memory it tells the configurations, on real ones it is held to the eager twins.
"""

import itertools
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from kernels import reference
from kernels.gpu import (
    backend,
    combine,
    gate,
    gate_backward,
    grouped,
    grouped_backward,
    heuristics,
    plan,
    sweep,
    weight_grad,
)
from kernels.gpu.launch import watch
from kernels.records import Rule
from tests.kernels.gpu.compare import DEVICE, DTYPES, leaves, same

TOKENS, HIDDEN, EXPERTS = (1, 64, 512, 4096, 65536), (312, 384, 768, 1024), (1, 8, 64, 256)
SMALL = {312: (104, 352), 384: (128, 384), 768: (128, 384), 1024: (128, 384)}
"""Of a hidden size and four times that: sizes that the same tiles divide."""
PARTS = (16, 32, 64, 128)
"""Tiles of a width, up to a power of two, each of which gives a part of the gradient of a gate's weight."""
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float32: 2e-5}
SLOW = pytest.mark.slow if backend.INTERPRETED else lambda test: test
TILES = [name for name in vars(heuristics) if name.endswith("_tile") and name[0] != "_"]
SCRIPT = {
    gate: ("gate", "choose"),
    plan: ("plan",),
    grouped: ("up", "down"),
    combine: ("combine",),
    grouped_backward: ("down_backward", "up_backward"),
    weight_grad: ("down_weight_grad", "up_weight_grad"),
    gate_backward: ("choose_backward", "gate_backward"),
}
"""What `sweep` calls, by module."""


def real(dtype):
    """Every size, as cases of `sweep`."""
    types = dict(x=dtype, weight=dtype, router=dtype)
    for tokens, hidden, experts in itertools.product(TOKENS, HIDDEN, EXPERTS):
        yield sweep.Case(tokens=tokens, experts=experts, top_k=min(2, experts), hidden=hidden, ffn=4 * hidden, **types)


def has_many_experts(case):
    return case.experts > 8


def small(case):
    """Each row of tiles takes its time, and there is one for each expert that has a token."""
    hidden, ffn = SMALL[case.hidden]
    return case._replace(tokens=min(case.tokens, 24 if has_many_experts(case) else 100), hidden=hidden, ffn=ffn)


def run(case):
    """What `sweep` runs, and gradients of gate weights in as many parts as a real width gives."""
    sweep._run_layer(case)
    rule = Rule(case.top_k, "softmax", True)
    logits_TE = sweep._empty(case.tokens, case.experts, dtype=torch.float32)
    routing, _ = gate.choose(logits_TE, None, None, rule)
    for parts in PARTS:
        grad_weights_SP = sweep._empty(case.tokens * case.top_k, parts, dtype=torch.float32)
        gate_backward.choose_backward(grad_weights_SP, None, routing, None, rule)


def configuration(launch):
    """As it is called here: the kernel, its blocks, and what it takes for granted."""
    blocks = [f"{name.removeprefix('BLOCK_')}{value}" for name, value in launch.constants.items() if "BLOCK_" in name]
    flags = [name for name, value in launch.constants.items() if value is True]
    return " ".join([launch.kernel.fn.__name__.strip("_"), *sorted(blocks), *sorted(flags)])


def configurations(case):
    """Of a case, whose tensors have no memory."""
    seen = set()
    with watch(lambda launch: bool(seen.add(configuration(launch)))):
        run(case)
    return seen


@contextmanager
def tiles_of(case):
    """The heuristics choose what they choose for this case, call by call, whatever they are asked."""
    chosen = {name: [] for name in TILES}

    def noting(name, choose):
        def choose_and_note(*arguments):
            chosen[name].append(choose(*arguments))
            return chosen[name][-1]

        return choose_and_note

    def repeating(tiles, choose):
        return lambda *arguments: next(tiles, None) or choose(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name in TILES:
            patch.setattr(heuristics, name, noting(name, getattr(heuristics, name)))
        configurations(case)
    with pytest.MonkeyPatch.context() as patch:
        for name in TILES:
            patch.setattr(heuristics, name, repeating(iter(chosen[name]), getattr(heuristics, name)))
        if chosen["scan_tile"]:
            patch.setattr(heuristics, "PLAN_SCAN_LIMIT", 0)
        yield


def tried(case, its_configurations):
    """Gradients of many experts' weights take minutes here, and have no configuration that few experts' have not."""
    if not has_many_experts(case):
        return its_configurations
    return {name for name in its_configurations if not name.startswith("weight_grad")}


def few_with_all(dtype):
    """Real sizes, few of them, that have every configuration between them."""
    found = {case: tried(case, configurations(case)) for case in sorted(real(dtype), reverse=True)}
    left, chosen = set().union(*found.values()), []
    while left:
        best = max(found, key=lambda case: len(found[case] & left))
        chosen.append(best)
        left -= found[best]
    return chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration_is_reached(dtype):
    wanted = set().union(*map(configurations, real(dtype)))
    assert len(wanted) > 100
    for case in few_with_all(dtype):
        with tiles_of(case):
            wanted -= tried(case, configurations(small(case)))
    assert sorted(wanted) == []


def real_tensor(*shape, dtype):
    if dtype == torch.bool:
        return torch.rand(shape, device=DEVICE) < 0.8
    return torch.randn(shape, device=DEVICE).to(dtype)


def held_to_its_twin(name):
    """The primitive, which returns what its twin does: an error does not go from one to the next."""
    ours, twin = getattr(backend, name), getattr(reference, name)

    def run(*arguments):
        expected = twin(*arguments)
        dtype = next(tensor.dtype for tensor in leaves(arguments) if torch.is_tensor(tensor) and tensor.ndim > 1)
        tolerance = TOLERANCE.get(dtype, 0)
        for number, (a, b) in enumerate(zip(leaves(ours(*arguments)), leaves(expected), strict=True)):
            if name in ("gate", "choose") and number == 3:
                a, b = a.sum(0), b.sum(0)  # which each side cuts into parts of its own
            elif name == "down_backward" and number == 2:
                a, b = a.sum(-1), b.sum(-1)
            assert same(a, b, tolerance), f"{name}, result {number}"
        return expected

    return run


@SLOW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_configuration_computes_what_its_twin_does(dtype):
    for case in few_with_all(dtype):
        with tiles_of(case), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "_empty", real_tensor)
            for module, names in SCRIPT.items():
                for name in names:
                    twin_alone = module is weight_grad and has_many_experts(case)
                    patch.setattr(module, name, getattr(reference, name) if twin_alone else held_to_its_twin(name))
            run(small(case))
