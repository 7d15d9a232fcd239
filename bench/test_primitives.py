"""The primitives of the backend, alone: against what the device was measured to do, and against their eager twins."""

from dataclasses import replace
from functools import partial

import torch

from bench.cases import op_boundary
from bench.cases.layer import BASE, WIDE
from bench.cases.primitives import NAMES, Primitive, arguments_of, assert_right, twins, work_of


def cases(mode, device):
    sizes = [BASE]
    if mode != "quick":
        sizes += [replace(BASE, dtype=torch.float32), WIDE, replace(BASE, tokens=64), replace(BASE, tokens=16384)]
    return [Primitive(name, size) for size in sizes for name in NAMES]


def test_primitive(case, suite):
    sized = replace(case, layer=case.layer.shrunk()) if suite.smoke else case
    layer = sized.layer.build(suite.device)
    x, grad_y = sized.layer.inputs(layer)
    with torch.no_grad():
        arguments = arguments_of(case.name, layer, x, grad_y)
        calls = {}
        for name, module in twins(suite.device, case.layer.dtype).items():
            calls[name] = partial(getattr(module, case.name), *arguments)
            results = calls[name]()
            assert_right(sized, name, results, arguments)
        work = work_of(sized, arguments, results)
        settings = case.layer.settings(suite.device)
        suite.keep("primitives", str(case), suite.time(calls), settings=settings, work=work)


def test_op_boundary(suite):
    suite.keep("primitives", "op boundary", suite.time(op_boundary.contenders(suite.device)), ours="")
