"""Every op of ours that PyTorch knows is held to `opcheck`, on every backend; one without a sample is a failure."""

import re
from pathlib import Path

import pytest
import torch

import kernels
from kernels import dispatch
from kernels.records import flatten
from tests.kernels.op_samples import op_samples


def registered(namespace):
    return {
        name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith(namespace + "::")
    }


@pytest.mark.slow_in_the_interpreter
def test_opcheck(backend, device):
    seen = set()
    for op, arguments in op_samples(device):
        torch.library.opcheck(op.overload, tuple(flatten(arguments)))
        seen.add(op.overload.name())
    assert seen == registered("moe_retrieval") - {"moe_retrieval::boundary"}  # of bench, where that was imported
    sources = "".join(path.read_text() for path in Path(kernels.__file__).parent.rglob("*.py"))
    assert len(seen) == len(re.findall(r"^@ops\.define\(", sources, re.MULTILINE)), "ops that nothing has imported"


def test_native_ops_change_nothing_and_return_nothing_that_they_got(device, monkeypatch):
    """Compilers do not see these: they run within ours. Their arguments are what those pass on."""
    if "native" not in kernels.available_backends():
        pytest.skip("the native backend is not available here")
    from kernels.cpu import backend as native

    samples = {"empty": [([2, 3],)], "levels": [()], "choose_level": [tuple(native.choice)]}

    def recorded(name, op):
        def call(*arguments):
            samples.setdefault(name, []).append(arguments)
            return op(*arguments)

        return call

    names = {name.partition("::")[2] for name in registered("moe_retrieval_cpu")}
    for name in names - samples.keys():
        monkeypatch.setattr(native, f"_{name}", recorded(name, getattr(native, f"_{name}")))
    with dispatch.use_backend("native"):
        for op, arguments in op_samples(device):
            op(*arguments)
        with torch.no_grad():
            kernels.MoE(5, 6, num_experts=4, top_k=2)(torch.randn(7, 5))
    for x, order, offsets, weights, *experts, residual, activation, keep, dtype in samples["up_and_down"]:
        act, _ = native._up(x, order, offsets, *experts[:2], weights.shape[1], activation, keep)
        native._down(act, order, offsets, weights, *experts[2:], residual, dtype)
    assert samples.keys() == names
    for name, calls in samples.items():
        for arguments in calls:
            op = getattr(torch.ops.moe_retrieval_cpu, name).default
            torch.library.opcheck(op, arguments, test_utils="test_schema")
