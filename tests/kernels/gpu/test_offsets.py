"""Triton's kernels multiply in 64 bits what grows with tokens or with all experts' weights.

Triton computes in 32 bits unless it is told otherwise, and a product that does not fit wraps without a word. So the
interpreter is asked what it multiplies in 32 bits, in sizes at which whatever must have 64 is larger than one expert's
matrix, whose places may have 32.
"""

import sys

import pytest
import torch

import kernels
from kernels.encoder import residual_norm
from tests.kernels.cases import Case

tl = pytest.importorskip("triton.language")
interpreter = pytest.importorskip("triton.runtime.interpreter")

if torch.cuda.is_available():
    pytest.skip("what is compiled multiplies unseen", allow_module_level=True)

pytestmark = pytest.mark.slow

TOKENS, HIDDEN, FFN, EXPERTS = 150, 128, 128, 3

MATRIX = HIDDEN * FFN
"""One expert's: places in it have 32 bits. T·H, S·F and E·F·H are larger. T·E and S, in 32 bits too, are not."""

CASES = [
    Case(top_k=2, router="sigmoid", masked=True),
    Case(layer="SBMoE", top_k=1, gate="mlp"),
    Case(layer="SBMoE", top_k="all", gate="mlp", bias=False),
]


@pytest.fixture
def products(monkeypatch):
    """(line of a kernel) -> the largest product of 32-bit integers there"""
    found = {}
    multiply = interpreter.interpreter_builder.create_mul

    def watched(lhs, rhs):
        product = multiply(lhs, rhs)
        if product.dtype.scalar == tl.int32:
            exact = abs(lhs.data.astype("int64") * rhs.data.astype("int64")).max(initial=0)
            place = where()
            found[place] = max(found.get(place, 0), int(exact))
        return product

    monkeypatch.setattr(interpreter.interpreter_builder, "create_mul", watched)
    return found


def where():
    """The line of a kernel."""
    frame = sys._getframe(2)
    while frame and "kernels/gpu" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_name}:{frame.f_lineno}" if frame else "elsewhere"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers(case, products):
    case = Case(**vars(case) | dict(tokens=TOKENS, hidden=HIDDEN, ffn=FFN, experts=EXPERTS))
    layer = case.build("cpu", torch.float32)
    x, grad_y, mask = case.inputs("cpu", torch.float32)
    x.requires_grad_()
    with kernels.use_backend("triton"):
        y = layer(x, mask)
        torch.autograd.backward([y, kernels.aux_loss(layer)], [grad_y, torch.ones(())])
    assert products
    wide = {place: size for place, size in products.items() if size > MATRIX}
    assert not wide, f"products in 32 bits that grow with tokens or experts: {wide}"


def test_attention(products):
    """Places of a token's head: T·A·D is larger than MATRIX here, and L·D of one head is not."""
    lengths = torch.tensor([0, 40, 100, 60])
    q, k, v = torch.randn(3, 200, 4, 32, requires_grad=True).unbind()
    with kernels.use_backend("triton"):
        out = kernels.packed_attention(q, k, v, lengths.cumsum(0).int(), 100, dropout=0.1)
        out.sum().backward()
    assert products
    wide = {place: size for place, size in products.items() if size > MATRIX}
    assert not wide, f"products in 32 bits that grow with tokens: {wide}"


def test_residual_norm(products):
    """Places in T·H, and in the parts of the gradients of weight and bias."""
    x, y = torch.randn(2, TOKENS, HIDDEN, requires_grad=True).unbind()
    weight, bias = torch.ones(HIDDEN, requires_grad=True), torch.zeros(HIDDEN, requires_grad=True)
    with kernels.use_backend("triton"):
        out = residual_norm(x, y, weight, bias, 1e-12, dropout=0.1)
        out.sum().backward()
    assert products
    wide = {place: size for place, size in products.items() if size > MATRIX}
    assert not wide, f"products in 32 bits that grow with tokens: {wide}"
