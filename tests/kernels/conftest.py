import pytest
import torch

from kernels import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` gives NaN: an output element that a backend leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)


def pytest_generate_tests(metafunc):
    """A test that takes `backend` runs on each one here; with `dtype` too, in each type it computes in.

    What takes long in Triton's interpreter is slow there: half precision, and tests that say so.
    """
    backends = [name for name in dispatch.available_backends() if dispatch.get(name).supports(DEVICE, torch.float32)]
    says_so = metafunc.definition.get_closest_marker("slow_in_the_interpreter")

    def marks(name, is_slow):
        return [pytest.mark.slow] if is_slow and name == "triton" and DEVICE.type == "cpu" else []

    if {"backend", "dtype"} <= set(metafunc.fixturenames):
        pairs = [
            (name, dtype)
            for name in backends
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
            if dispatch.get(name).supports(DEVICE, dtype)
        ]
        ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in pairs]
        values = [pytest.param(*pair, marks=marks(pair[0], says_so or pair[1] != torch.float32)) for pair in pairs]
        metafunc.parametrize("backend,dtype", values, ids=ids, indirect=["backend"])
    elif "backend" in metafunc.fixturenames:
        metafunc.parametrize(
            "backend", [pytest.param(name, marks=marks(name, says_so)) for name in backends], indirect=True
        )


@pytest.fixture
def backend(request):
    with dispatch.use_backend(request.param):
        yield request.param


@pytest.fixture
def device():
    return DEVICE
