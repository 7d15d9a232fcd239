"""The tiles that real sizes are given, which small tests never reach: each runs here, by name.

A size is made small, and keeps what a kernel's configuration depends on: the tile that the heuristics chose for the
real one, the number of experts, whether the tile divides the sizes, and in how many parts the gradients of gate weights
come. What `sweep` runs is the script: on tensors without memory it tells the configurations, on real ones it is held to
the eager twins.
"""

import functools
import itertools
import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from bench.gpu.script import on_real_tensors
from kernels.dropout import Dropout
from kernels.gpu import all_experts, attention, backend, grouped_backward, heuristics, sweep
from kernels.gpu.launch import watch
from kernels.records import Sequences
from kernels.routing import ALL
from tests.kernels.gpu.compare import DEVICE, DTYPES, EAGER, agree, leaves, normal, same

TOKENS, HIDDEN, EXPERTS = (1, 64, 512, 4096, 65536), (312, 384, 768, 1024), (1, 8, 64, 256)
LAYERS = {
    "top-2": (HIDDEN, EXPERTS, dict(top_k=2)),
    "top-2 gated": (HIDDEN, (8, 64), dict(top_k=2, activation="swiglu")),
    "top-1 mlp": (HIDDEN, (1, 8, 64), dict(top_k=1, activation="relu", mlp=True, renormalize=False)),
    "all": (HIDDEN, (1, 8), dict(top_k=ALL)),
    "all gated mlp": (HIDDEN, (8,), dict(top_k=ALL, activation="geglu", mlp=True, masked=True)),
}
"""Layers, and the sizes in which they are met."""
HEADS = (26, 32, 64)
"""Sizes of a head: 312 / 12, 384 / 12, and that of all larger encoders."""
LENGTHS = (32, 512)
"""Of a sequence."""
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 4e-2, torch.float32: 2e-5}
SLOW = pytest.mark.slow if backend.INTERPRETED else lambda test: test
CHOICES = [name for name in vars(heuristics) if name.endswith(("_tile", "_parts")) and name[0] != "_"]


def real(dtype):
    """Every size, as cases of `sweep`. An mlp gate is met in the pooled layer, whose experts are small."""
    types = dict(x=dtype, weight=dtype, router=dtype)
    for hidden_sizes, expert_counts, layer in LAYERS.values():
        for tokens, hidden, experts in itertools.product(TOKENS, hidden_sizes, expert_counts):
            top_k = min(layer["top_k"], experts)
            ffn = hidden // 2 if "mlp" in layer else 4 * hidden
            yield sweep.Case(tokens, experts, hidden=hidden, ffn=ffn, **types | layer | dict(top_k=top_k))


def has_many_experts(case):
    return case.experts > 8


def small(case):
    """Each tile takes its time: two rows of them for a lone expert, one for each expert that has a token else."""
    largest = 64 if case.weight == torch.float32 else 128
    tokens = largest + 2 if case.experts == 1 else 4 if has_many_experts(case) else 40
    hidden, ffn = (divided(size, largest) for size in (case.hidden, case.ffn))
    return case._replace(tokens=min(case.tokens, tokens), hidden=hidden, ffn=ffn)


def divided(size, tile):
    """The least size that tiles up to this one divide as they do the size itself; more than a tile, if not all do."""
    step = math.gcd(size, tile)
    return tile if step == tile else (tile // step + 1) * step


def configuration(launch):
    """As it is called here: the kernel, its blocks, what it takes for granted, and what it is given none of."""
    blocks = [f"{name.removeprefix('BLOCK_')}{value}" for name, value in launch.constants.items() if "BLOCK_" in name]
    flags = [name for name, value in launch.constants.items() if value is True]
    given = zip(launch.kernel.arg_names, launch.arguments)
    without = [f"-{name.removeprefix('p_')}" for name, argument in given if argument is None]
    return " ".join([launch.kernel.fn.__name__.strip("_"), *sorted(blocks), *sorted(flags), *without])


def launched(call, *arguments):
    """The configurations of what it would launch."""
    seen = set()
    with watch(lambda launch: bool(seen.add(configuration(launch)))):
        call(*arguments)
    return seen


@functools.cache
def configurations(case):
    """Of a case, whose tensors have no memory."""
    return launched(sweep._run_layer, case)


IN_PARTS = {"down_backward": grouped_backward, "all_down_backward": all_experts}
"""What has the gradients of gate weights as its third result, in parts: one for each tile of a width."""


class Choices:
    """What the heuristics choose for a case, call by call: they are made to choose it for another one."""

    def __init__(self, case):
        self.made, self.used, self.parts = [], 0, 0
        with self._instead(self._noting) as patch:
            for name, module in IN_PARTS.items():
                patch.setattr(module, name, self._noting_parts(getattr(module, name)))
            launched(sweep._run_layer, case)

    def _noting_parts(self, backward):
        def note(*arguments):
            results = backward(*arguments)
            self.parts = results[2].shape[1]
            return results

        return note

    def in_parts(self, results):
        """Of a backward of a small case: gradients in as many parts as for the real one."""
        *others, grad_weights_SP = results
        assert grad_weights_SP.shape[1] <= self.parts
        return *others, F.pad(grad_weights_SP, (0, self.parts - grad_weights_SP.shape[1]))

    def _noting(self, name, choose):
        def note(*arguments):
            before = len(self.made)
            value = choose(*arguments)
            self.made[before:] = [(name, value)]  # without those that it asked itself
            return value

        return note

    def _repeating(self, name, choose):
        def repeat(*_):
            noted, value = self.made[self.used]
            if noted != name == "scan_tile":  # a small plan is always scanned, a real one only where it is long
                return next(tile for other, tile in self.made if other == name)
            assert noted == name
            self.used += 1
            return value

        return repeat

    @contextmanager
    def _instead(self, make):
        with pytest.MonkeyPatch.context() as patch:
            for name in CHOICES:
                patch.setattr(heuristics, name, make(name, getattr(heuristics, name)))
            yield patch

    @contextmanager
    def repeated(self):
        with self._instead(self._repeating) as patch:
            if any(name == "scan_tile" for name, _ in self.made):
                patch.setattr(heuristics, "PLAN_SCAN_LIMIT", 0)
            for name, module in IN_PARTS.items():
                patch.setattr(module, name, partial(self._in_parts_of, getattr(module, name)))
            yield
        assert self.used == len(self.made)

    def _in_parts_of(self, backward, *arguments):
        return self.in_parts(backward(*arguments))

    def foreseen(self, call, *arguments):
        """The configurations of a call, whose choices are taken back."""
        before = self.used
        found = launched(call, *arguments)
        self.used = before
        return found


@functools.cache
def of_few_experts(dtype):
    return set().union(*(configurations(case) for case in real(dtype) if not has_many_experts(case)))


def tried(case, its_configurations):
    """Gradients of many experts' weights take minutes here: only where few experts' have another configuration."""
    if not has_many_experts(case):
        return its_configurations
    others = of_few_experts(case.x)
    return {name for name in its_configurations if not (name.startswith("weight_grad") and name in others)}


@functools.cache
def of_others(dtype):
    """What the types before this one have: each name is run in one type."""
    before = DTYPES[: DTYPES.index(dtype)]
    return set().union(*(configurations(case) for other in before for case in real(other)))


@functools.cache
def few_with_all(dtype):
    """Real sizes, few of them, that have every configuration between them that no type before has."""
    found = {case: tried(case, configurations(case)) for case in sorted(real(dtype), reverse=True)}
    left, chosen = set().union(*found.values()) - of_others(dtype), []
    while left:
        best = max(found, key=lambda case: len(found[case] & left))
        chosen.append(best)
        left -= found[best]
    return chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration_is_reached(dtype):
    wanted = set().union(*map(configurations, real(dtype)))
    assert len(wanted) > 300
    wanted -= of_others(dtype)
    for case in few_with_all(dtype):
        with Choices(case).repeated():
            wanted -= tried(case, launched(sweep._run_layer, small(case)))
    assert sorted(wanted) == []


def held_to_its_twin(case, choices, left, name):
    """The primitive, which returns what its twin does: an error does not go from one to the next. It runs if it has a
    configuration that is left to be run."""
    ours, twin = getattr(backend, name), getattr(EAGER, name)

    def run(*arguments):
        expected = twin(*arguments)
        found = choices.foreseen(ours, *arguments)
        new = tried(case, found) & left
        if name in IN_PARTS:
            expected = choices.in_parts(expected)
        if not new:
            launched(ours, *arguments)  # uses its choices up
            return expected
        left.difference_update(found)
        dtype = next(tensor.dtype for tensor in leaves(arguments) if torch.is_tensor(tensor) and tensor.ndim > 1)
        tolerance = TOLERANCE.get(dtype, 0)
        for number, (a, b) in enumerate(zip(leaves(ours(*arguments)), leaves(expected), strict=True)):
            what = f"{name}, result {number}, {sorted(new)}"
            if name in ("gate", "choose") and number == 3:
                a, b = a.sum(0), b.sum(0)  # which each side cuts into parts of its own
            elif name in IN_PARTS and number == 2:  # for one token this may be almost 0: parts that cancel out
                assert (a.sum(-1) - b.sum(-1)).norm() <= tolerance * a.abs().sum(-1).norm(), what
                continue
            own = TOLERANCE.get(a.dtype, 0) if torch.is_tensor(a) else 0
            assert same(a, b, max(tolerance, own)), what
        return expected

    return run


@SLOW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_configuration_computes_what_its_twin_does(dtype):
    left = set().union(*(tried(case, configurations(case)) for case in few_with_all(dtype))) - of_others(dtype)
    for case in few_with_all(dtype):
        choices = Choices(case)
        with choices.repeated(), on_real_tensors(DEVICE, partial(held_to_its_twin, case, choices, left)):
            sweep._run_layer(small(case))
    assert sorted(left) == []


@SLOW
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", HEADS)
def test_attention(size, length, rate, dtype, monkeypatch):
    """A head's size is real; of 12 heads two are left, of a long sequence a few tiles."""
    monkeypatch.setattr(attention, "_torchs_own", lambda: None)  # which a GPU would rather run
    rows = min(length, 40 if dtype == torch.float32 else 130)
    starts, seen = torch.tensor([0, rows], dtype=torch.int32, device=DEVICE), set()
    settings = Sequences(starts, rows), Dropout(rate, torch.randint(2**31, (), device=DEVICE))
    q, k, v, grad = (normal(rows, 2, size, dtype=dtype) for _ in range(4))
    with watch(lambda launch: seen.add(configuration(launch)) or True):
        out, lse = agree("attention", q, k, v, *settings, tolerance=TOLERANCE[dtype])
        agree("attention_backward", grad, q, k, v, out, lse, *settings, tolerance=TOLERANCE[dtype])
    assert seen == launched(sweep._run_attention, size, dtype, length, rate)
    assert len(seen) == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [1, 65536])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_residual_norm(hidden, tokens, rate, dtype, monkeypatch):
    """Whole rows, few of them, but as many parts of the gradients of weight and bias as take a real sum's tile."""
    monkeypatch.setattr(heuristics, "norm_span", lambda num_rows, step: step)
    rows, seen = min(tokens, 17 * heuristics.norm_tile(hidden).m + 1), set()
    x, weight, bias = normal(rows, hidden), normal(hidden), normal(hidden)
    y, dropout = normal(rows, hidden, dtype=dtype), Dropout(rate, torch.randint(2**31, (), device=DEVICE))
    with watch(lambda launch: seen.add(configuration(launch)) or True):
        out, stats = agree("residual_norm", x, y, weight, bias, 1e-12, dropout, tolerance=TOLERANCE[dtype])
        backward = (torch.randn_like(out), x, y, weight, bias, stats, dropout)
        agree("residual_norm_backward", *backward, tolerance=TOLERANCE[dtype])
    assert seen == launched(sweep._run_residual_norm, sweep.Norm(tokens, hidden, y=dtype), rate)
    assert len(seen) == 3
