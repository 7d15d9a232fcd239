"""LayerNorm(x + dropout(y)) in every type against its twin: `encoder/test_residual.py` holds both to fp64."""

import itertools

import pytest
import torch

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from kernels.dropout import Dropout
from kernels.gpu import backend, heuristics, launch
from tests.kernels.gpu.compare import DEVICE, DTYPES, TOLERANCE, agree, leaves, normal, same

EPS = 1e-6
WIDE = torch.float32
TYPES = [
    (x, y, weight)
    for x, y in itertools.product(DTYPES, repeat=2)
    for weight in dict.fromkeys((WIDE, x))  # a model under autocast, and one that was converted
]


def dropout_of(rate):
    return Dropout(rate, torch.randint(2**31, (), device=DEVICE) if rate else None)


def inputs(rows, hidden, types=(WIDE, WIDE, WIDE)):
    """x, y, weight, bias, of the types of the first three."""
    shapes = (rows, hidden), (rows, hidden), (hidden,), (hidden,)
    return [normal(*shape, dtype=dtype) for shape, dtype in zip(shapes, (*types, types[-1]))]


def both_ways(tensors, dropout, near):
    """Forward and backward against the twins -> the types of what came out."""
    x, y, weight, bias = tensors
    out, stats = agree("residual_norm", x, y, weight, bias, EPS, dropout, tolerance=near)
    grad = torch.randn_like(out)
    grads = agree("residual_norm_backward", grad, x, y, weight, bias, stats, dropout, tolerance=near)
    return out, stats, *grads


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_every_type(types, rate):
    """Each gradient in its own input's type; the result in the wider one."""
    x, y, weight = types
    found = both_ways(inputs(21, 40, types), dropout_of(rate), max(map(TOLERANCE.get, types)))
    assert [t.dtype for t in found] == [torch.promote_types(x, y), WIDE, x, y, weight, weight]


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("rows", [0, 1, 9, 67])
@pytest.mark.parametrize("hidden", [1, 5, 39, 312, 768])
def test_every_size(hidden, rows, rate):
    """One column leaves nothing but rounding, so that eps alone decides: its result is its bias."""
    both_ways(inputs(rows, hidden), dropout_of(rate), TOLERANCE[WIDE])


def test_leading_dimensions():
    x, y, weight, bias = inputs(24, 40)
    x, y = x.view(2, 3, 4, 40), y.view(2, 3, 4, 40)
    found = both_ways([x, y, weight, bias], dropout_of(0.2), TOLERANCE[WIDE])
    assert [t.shape for t in found[:4]] == [x.shape, (2, 3, 4, 2), x.shape, x.shape]


def test_a_mask_is_that_of_its_twin_bit_for_bit():
    """What is dropped has a gradient of exactly 0, and nothing else has."""
    x, y, weight, bias = inputs(700, 24)
    dropout = Dropout(0.4, torch.tensor(2**31 - 5, device=DEVICE))
    _, _, _, twin, *_ = both_ways([x, y, weight, bias], dropout, TOLERANCE[WIDE])
    out, stats = backend.residual_norm(x, y, weight, bias, EPS, dropout)
    _, ours, *_ = backend.residual_norm_backward(torch.randn_like(out), x, y, weight, bias, stats, dropout)
    assert torch.equal(ours == 0, twin == 0)
    assert 0.38 < (ours == 0).double().mean() < 0.42


def test_a_large_mean_cancels():
    """The spread of a row is that of its centred values: 1000 has an ulp of 6e-5."""
    x, y, weight, bias = inputs(9, 384)
    out, _ = backend.residual_norm(x + 1000, y, weight, bias, EPS, dropout_of(0.0))
    total = (x + 1000).double() + y.double()
    expected = torch.nn.functional.layer_norm(total, (384,), weight.double(), bias.double(), EPS)
    assert same(out.double(), expected, 2e-4)


@pytest.mark.parametrize("parts", [1, 3, 16, 17, 40])
def test_gradients_of_weight_and_bias_are_two_ordered_sums(parts, monkeypatch):
    """Parts by one launch, their sum by another, whether many or few: the same bits again."""
    hidden, names = 72, []
    step = heuristics.norm_tile(hidden).m
    monkeypatch.setattr(heuristics, "norm_span", lambda num_rows, step: step)
    tensors = inputs(parts * step - 1, hidden)
    both_ways(tensors, dropout_of(0.0), TOLERANCE[WIDE])
    out, stats = backend.residual_norm(*tensors, EPS, dropout_of(0.0))
    grad = torch.randn_like(out)
    with launch.watch(lambda one: names.append((one.kernel.fn.__name__, one.programs)) or True):
        runs = [leaves(backend.residual_norm_backward(grad, *tensors, stats, dropout_of(0.0))) for _ in range(2)]
    numbers = heuristics.sum_tile(parts).m
    sums = heuristics.cdiv(2 * hidden, numbers)
    assert names == [("_residual_norm_backward_kernel", parts), ("_sum_parts_kernel", sums)] * 2
    assert all(map(torch.equal, *runs))


def test_rows_that_no_kernel_has_registers_for(monkeypatch):
    monkeypatch.setattr(heuristics, "norm_fits", lambda hidden: False)
    with launch.watch(lambda one: pytest.fail(f"{one.kernel} is launched")):
        both_ways(inputs(5, 16), dropout_of(0.1), 1e-12)


def test_how_many_rows_a_program_goes_through():
    """Whole steps; few programs have no fewer than four of them, many are four for each multiprocessor."""
    for step in (1, 2, 16):
        for rows in (1, 100, 4096, 65536, 10**6 + 1):
            span = heuristics.norm_span(rows, step)
            assert span % step == 0
            assert span >= 4 * step
            assert heuristics.cdiv(rows, span) <= 4 * heuristics.NUM_SMS
    assert heuristics.cdiv(10**6, heuristics.norm_span(10**6, 2)) > 3.9 * heuristics.NUM_SMS
