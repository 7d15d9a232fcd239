"""residual_norm against LayerNorm(x + y) written out in fp64, and its dropout against the output it leaves behind."""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import dispatch, reference
from kernels.dropout import Dropout
from kernels.encoder import residual, residual_norm
from tests.kernels.oracle import TOLERANCE, relative_error

EPS = 1e-6
WITH_A_PASS = [name for name in dispatch.available_backends() if "residual_norm" in dispatch.get(name).fusions]


class OnePass(NamedTuple):
    """A backend that does not leave it to PyTorch, and where it runs here."""

    backend: Any
    device: torch.device


@pytest.fixture(params=WITH_A_PASS)
def one_pass(request):
    backend, devices = dispatch.get(request.param), map(torch.device, ("cpu", "cuda"))
    with dispatch.use_backend(request.param):
        yield OnePass(backend, next(device for device in devices if backend.supports(device, torch.float32)))


def narrow(backend, device):
    """A 16-bit type that it computes in there: Triton's interpreter has one."""
    return next(dtype for dtype in (torch.bfloat16, torch.float16) if backend.supports(device, dtype))


def inputs(rows, hidden, device, *dtypes):
    """x, y, weight, bias, the last two of the types that are left, or fp32."""
    torch.manual_seed(0)
    shapes = (rows, hidden), (rows, hidden), (hidden,), (hidden,)
    types = itertools.chain(dtypes, itertools.repeat(torch.float32))
    return [torch.randn(shape).to(device, dtype).requires_grad_() for shape, dtype in zip(shapes, types)]


def written_out(x, y, weight, bias, factor=1.0):
    total = x + y * factor
    centred = total - total.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + bias


def check(tensors, tolerance, factor=1.0, dropout=0.0, lead=None):
    """Output and the four gradients, `lead` being the leading shape."""
    x, y, weight, bias = tensors
    shape = x.shape if lead is None else (*lead, x.shape[-1])
    out = residual_norm(x.reshape(shape), y.reshape(shape), weight, bias, EPS, dropout=dropout).view(x.shape)
    grad = torch.randn(x.shape).to(out)
    got = torch.autograd.grad(out, tensors, grad)
    wide = [t.detach().double().cpu().requires_grad_() for t in tensors]
    expected = written_out(*wide, factor)
    refs = torch.autograd.grad(expected, wide, grad.double().cpu())
    assert out.dtype == torch.promote_types(x.dtype, y.dtype)
    assert [t.dtype for t in got] == [t.dtype for t in tensors]
    for name, a, b in zip(("out", "x", "y", "weight", "bias"), (out, *got), (expected, *refs)):
        if b.norm() > 1e-5 * b.numel() ** 0.5:
            assert relative_error(a, b) < tolerance, name
        else:  # of one column, nothing is left but rounding
            assert a.norm() <= 1e-2 * b.numel() ** 0.5, name


@pytest.mark.parametrize("is_narrow", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 300])
@pytest.mark.parametrize("hidden", [1, 7, 33, 312, 384, 1024])
def test_against_fp64(rows, hidden, is_narrow, one_pass):
    dtype = narrow(*one_pass) if is_narrow else torch.float32
    check(inputs(rows, hidden, one_pass.device, *[dtype] * 4), TOLERANCE[dtype])


@pytest.mark.parametrize("are_narrow", [(False, True), (True, False), (True, True)], ids=str)
def test_types_of_their_own(are_narrow, one_pass):
    dtype = narrow(*one_pass)
    types = [dtype if is_narrow else torch.float32 for is_narrow in are_narrow]
    check(inputs(70, 40, one_pass.device, *types), TOLERANCE[dtype])


def test_leading_dimensions_and_gaps(one_pass):
    x, y, weight, bias = inputs(24, 80, one_pass.device)
    check([x[:, 7:40], y.view(48, 40)[::2, :33], weight[::2][:33], bias[1:34]], 1e-5, lead=(2, 3, 4))
    check([x[:, 7:40], y[:, ::2][:, :33], weight[:33], bias[:33]], 1e-5)
    check([x[0], y[0], weight, bias], 1e-5)


def test_a_large_mean_cancels(one_pass):
    """The spread of a row is that of its centred values, however far away they lie."""
    x, y, weight, bias = inputs(9, 384, one_pass.device)
    check([x + 1000, y, weight, bias], 2e-4)  # 1000 has an ulp of 6e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_elsewhere_it_is_pytorch(dropout, backend, dtype, device):
    """Bit for bit, dropout included; and so is fp64 everywhere."""
    if backend in WITH_A_PASS:
        dtype = torch.float64
    results = []
    with dispatch.use_backend("auto" if dtype == torch.float64 else backend):
        for function in (
            lambda *t: residual_norm(*t, EPS, dropout=dropout),
            lambda x, y, *t: F.layer_norm(x + F.dropout(y, dropout), x.shape[-1:], *t, EPS),
        ):
            tensors = inputs(30, 33, device, *[dtype] * 4)
            torch.manual_seed(2)
            out = function(*tensors)
            results.append([out, *torch.autograd.grad(out, tensors, torch.ones_like(out))])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def mask_in(out, x, y, weight, bias, rate):
    """Which elements of y are in the output, solved from it: 1 or 0, from the third column on.

    A row's mean and deviation are two unknowns: in its first two columns y is 0, so that x alone is there.
    """
    normal = (out - bias) / weight
    deviation = (x[:, :1] - x[:, 1:2]) / (normal[:, :1] - normal[:, 1:2])
    mean = x[:, :1] - normal[:, :1] * deviation
    return ((normal * deviation + mean - x) / y * (1 - rate))[:, 2:]


def dropped_inputs(device, rows=700, hidden=90):
    x, y, weight, bias = (t.detach() for t in inputs(rows, hidden, device))
    y = torch.where(y < 0, y - 1, y + 1)  # far from 0, so that a quotient by it is exact
    y[:, :2], x[:, 0], x[:, 1] = 0, -2, 2
    weight = weight.abs() + 0.5
    return x, y, weight, bias


def test_dropout_is_one_mask_in_both_directions(backend, device):
    rate = 0.25
    x, y, weight, bias = (t.requires_grad_() for t in dropped_inputs(device))
    torch.manual_seed(3)
    out = residual_norm(x, y, weight, bias, EPS, dropout=rate)
    grad_x, grad_y = torch.autograd.grad(out, (x, y), torch.randn_like(out), retain_graph=True)
    mask = mask_in(*(t.detach().double() for t in (out, x, y, weight, bias)), rate)
    keep = mask > 0.5
    assert (mask - keep.double()).abs().max() < 1e-3, "an element is there or not"
    factor = grad_y[:, 2:] / grad_x[:, 2:]
    assert torch.equal(factor != 0, keep)
    assert relative_error(factor, keep / (1 - rate)) < 1e-6
    assert abs(keep.double().mean().item() - (1 - rate)) < 0.01
    for neighbours in (keep[1:] & keep[:-1], keep[:, 1:] & keep[:, :-1]):
        assert abs(neighbours.double().mean().item() - (1 - rate) ** 2) < 0.015, "neighbours are not independent"
    torch.manual_seed(3)
    check([x, y, weight, bias], 1e-5, factor=(grad_y != 0).double().cpu() / (1 - rate), dropout=rate)


def test_dropout_keeps_the_mean(backend, device):
    """Over many draws, what is added to x is y: weight and bias are chosen to leave the sum itself in the output."""
    rate, draws = 0.4, 400
    x, y, _, _ = dropped_inputs(device, rows=1, hidden=60)
    x, y = x.expand(draws, -1), y.expand(draws, -1)
    one, zero = torch.ones(60, device=device), torch.zeros(60, device=device)
    out = residual_norm(x, y, one, zero, EPS, dropout=rate)
    mask = mask_in(*(t.double() for t in (out, x, y, one, zero)), rate)
    added = mask / (1 - rate)
    assert abs(added.mean().item() - 1) < 0.03
    assert (added.mean(0) - 1).abs().max() < 0.2


def test_dropout_draws_anew_and_repeats_with_the_seed(backend, device):
    tensors = inputs(9, 40, device)

    def run():
        return residual_norm(*tensors, EPS, dropout=0.5)

    torch.manual_seed(1)
    first, second = run(), run()
    torch.manual_seed(1)
    assert torch.equal(run(), first)
    assert not torch.equal(second, first)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(70, 33), (2, 5, 33), (33,), (0, 33)], ids=str)
def test_a_pass_is_its_definition(shape, rate, one_pass):
    """Against what an op does with a backend that has no pass."""
    backend, device = one_pass
    x, y, weight, bias = (t.detach() for t in inputs(70, 33, device, torch.float32, narrow(*one_pass)))
    x, y = (t.flatten()[: math.prod(shape)].view(shape) for t in (x, y))
    dropout = Dropout(rate, torch.tensor(2**31 - 5, device=device))
    out, stats = backend.residual_norm(x, y, weight, bias, EPS, dropout)
    expected, expected_stats = reference.plain_residual_norm(x, y, weight, bias, EPS, dropout)
    assert relative_error(out, expected) < 1e-6
    assert relative_error(stats, expected_stats) < 1e-6
    grad = torch.randn_like(out)
    got = backend.residual_norm_backward(grad, x, y, weight, bias, stats, dropout)
    refs = reference.plain_residual_norm_backward(grad, x, y, weight, bias, expected_stats, dropout)
    for a, b in zip(got, refs):
        assert a.dtype == b.dtype
        assert relative_error(a, b) < (1e-6 if a.dtype == torch.float32 else 1e-3)


def test_recorded_on_one_backend_and_finished_on_another(one_pass):
    tensors = inputs(40, 33, one_pass.device)
    torch.manual_seed(4)
    out = residual_norm(*tensors, EPS, dropout=0.2)
    grad = torch.randn_like(out)
    own = torch.autograd.grad(out, tensors, grad, retain_graph=True)
    with kernels.use_backend("eager"):
        other = torch.autograd.grad(out, tensors, grad)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(other, own))


@pytest.mark.parametrize("x_is_narrow", [False, True])
def test_as_pytorch_under_autocast(x_is_narrow, backend, device):
    half = narrow(dispatch.get(backend), device)
    x, y, weight, bias = inputs(20, 33, device, half if x_is_narrow else torch.float32, half)
    with torch.autocast(device.type, half):
        got = residual_norm(x, y, weight, bias, EPS)
        expected = F.layer_norm(x + y, (33,), weight, bias, EPS)
        got.sum().backward()
    if device.type == "cpu" or backend not in WITH_A_PASS:  # on a GPU, autocast makes norms fp32 whatever comes
        assert got.dtype == expected.dtype
    assert relative_error(got, expected) < TOLERANCE[half]
    assert x.grad.dtype == x.dtype
    assert y.grad.dtype == half


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled(dropout, backend, device):
    """Where a backend has the pass, the same bits; elsewhere a CPU runs the definition, with another mask, and for a
    GPU a compiler has PyTorch's functions."""
    half = narrow(dispatch.get(backend), device)
    y_dtype = half if half == torch.bfloat16 else torch.float32
    tensors = inputs(50, 33, device, torch.float32, y_dtype)

    def run(x, y, weight, bias):
        return residual_norm(x * 2, y, weight, bias, EPS, dropout=dropout)

    results = []
    torch._dynamo.reset()
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        out = function(*tensors)
        results.append((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))))
    if backend in WITH_A_PASS and device.type == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(*results))
    elif dropout == 0.0:
        assert all(relative_error(b, a) < TOLERANCE[torch.bfloat16] for a, b in zip(*results))
    else:
        assert all(result.isfinite().all() for result in results[1])


@pytest.mark.parametrize("rate,seed", [(0.0, 0), (0.3, 7)])
def test_opcheck(rate, seed, backend, device):
    half = narrow(dispatch.get(backend), device)
    x, y, weight, bias = (t.detach() for t in inputs(5, 33, device, torch.float32, half))
    dropout = Dropout(rate, torch.tensor(seed, device=device))
    torch.library.opcheck(residual.residual_norm_forward.overload, (x, y, weight, bias, EPS, *dropout))
    out, stats = residual.residual_norm_forward(x, y, weight, bias, EPS, dropout)
    torch.library.opcheck(residual.residual_norm_backward.overload, (out, x, y, weight, bias, stats, *dropout))


def test_without_gradients_nothing_is_recorded(backend, device):
    tensors = inputs(5, 33, device)
    with torch.no_grad():
        assert residual_norm(*tensors, EPS).grad_fn is None
    assert residual_norm(*(t.detach() for t in tensors), EPS).grad_fn is None


def test_checkpointing_draws_the_same_mask(backend, device):
    tensors = inputs(30, 33, device)

    def run(*tensors):
        return residual_norm(*tensors, EPS, dropout=0.4).square().sum()

    torch.manual_seed(0)
    plain = torch.autograd.grad(run(*tensors), tensors)
    torch.manual_seed(0)
    loss = torch.utils.checkpoint.checkpoint(run, *tensors, use_reentrant=False)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(loss, tensors), plain))


X, H = torch.randn(3, 8), torch.randn(8)
BAD = [
    ((X.long(), X, H, H), {}, TypeError, "x must have a floating point type, got torch.int64"),
    ((H[0], H[0], H, H), {}, ValueError, r"x must be \[..., hidden size\], got shape \(\)"),
    ((X, X[:2], H, H), {}, ValueError, r"y must have shape \(3, 8\), got \(2, 8\)"),
    ((X, X, H[:7], H), {}, ValueError, r"weight must have shape \(8,\), got \(7,\)"),
    ((X, X, H, None), {}, TypeError, "bias must be a tensor, got NoneType"),
    ((X, X, H, H), {"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1, got 1.0"),
]


@pytest.mark.parametrize("arguments,settings,error,message", BAD)
def test_bad_arguments(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        residual_norm(*arguments, EPS, **settings)
