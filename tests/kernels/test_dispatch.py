"""Which backend runs."""

import threading

import pytest
import torch

import kernels
from kernels import dispatch


def test_eager_is_always_there_and_last():
    assert kernels.available_backends()[-1] == "eager"


def test_only_auto_falls_back():
    """fp64 is for the eager backend alone."""
    layer = kernels.MoE(4, 4, num_experts=2, top_k=1).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = layer(x)
    for name in kernels.available_backends()[:-1]:
        with kernels.use_backend(name), pytest.raises(RuntimeError, match=f"'{name}' cannot run on cpu tensors"):
            layer(x)
    with kernels.use_backend("eager"), kernels.use_backend("auto"):
        assert torch.equal(layer(x), expected)


def test_the_interpreter_is_only_for_those_who_ask():
    assert dispatch.pick(torch.device("cpu"), torch.float32).name != "triton"


def test_use_backend_holds_in_every_thread_and_ends_with_its_block():
    seen = []

    def look():
        seen.append(dispatch.pick(torch.device("cpu"), torch.float32).name)

    with kernels.use_backend("eager"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == ["eager"]
    with pytest.raises(KeyError), kernels.use_backend("eager"):
        raise KeyError
    assert dispatch._requested == "auto"


def test_a_gpu_without_triton_is_told(monkeypatch):
    monkeypatch.setitem(dispatch._loaded, "triton", ImportError("no module of that name"))
    monkeypatch.setattr(dispatch, "_picked", {})
    dispatch._say_once.cache_clear()
    with pytest.warns(UserWarning, match="slower: no module of that name"):
        assert dispatch.pick(torch.device("cuda"), torch.float32).name == "eager"


@pytest.mark.parametrize("capability, expected", [((7, 5), "eager"), ((8, 0), "triton"), ((8, 9), "triton")])
def test_a_gpu_that_triton_does_not_know_is_told(monkeypatch, capability, expected, recwarn):
    backend = pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)
    monkeypatch.setattr(backend, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(dispatch, "_picked", {})
    backend._is_able.cache_clear()
    for dtype in (torch.float16, torch.float32):
        assert dispatch.pick(torch.device("cuda"), dtype).name == expected
    told = [str(warning.message) for warning in recwarn]
    no_triton = "no Triton on Tesla T4: it has compute capability 7.5, 8.0 is needed"
    assert told == ([no_triton] if expected == "eager" else [])
    backend._is_able.cache_clear()
