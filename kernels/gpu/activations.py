"""Twins of `activations.activate` and `activations.activate_backward`, on fp32 values in registers.

A gated activation applies its function to the gate half: `function` and `slope` then get its base, silu or gelu.
Comparisons are written so that NaN passes through.
"""

import triton
import triton.language as tl

from kernels.activations import GATED


def base(activation: str) -> str:
    """The function that is applied: the activation itself, or that of its gate half."""
    return GATED.get(activation, activation)


@triton.jit
def normal(x):
    """Density and distribution function of the standard normal distribution, at the price of one exp.

    Abramowitz and Stegun 7.1.26 for erfc (1.5e-7), on the side where nothing cancels: half the instructions of
    `tl.erf`, and the derivative needs the same exponential.
    """
    t = 1 / (1 + 0.2316418882 * tl.abs(x))
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    poly = ((((1.330274429 * t - 1.821255978) * t + 1.781477937) * t - 0.356563782) * t + 0.31938153) * t
    tail = density * poly
    return density, tl.where(x > 0, 1 - tail, tail)


@triton.jit
def function(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu":
        return x * normal(x)[1]
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh u) / 2 = sigmoid(2u); 1.596 = 2 sqrt(2 / pi)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, x)
    else:
        tl.static_assert(ACTIVATION == "silu")
        return x * tl.sigmoid(x)


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """The derivative of `function`."""
    if ACTIVATION == "gelu":
        density, below = normal(x)
        return below + x * density
    elif ACTIVATION == "gelu_tanh":
        x = tl.where(x > 12, 12.0, tl.where(x < -12, -12.0, x))  # s is 0 or 1 there, and the square stays finite
        s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        return s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    elif ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, 1.0)
    else:
        tl.static_assert(ACTIVATION == "silu")
        s = tl.sigmoid(x)
        return s * (1 + x * (1 - s))
