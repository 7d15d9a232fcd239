"""Copies to and from a GPU, seen on stand-ins: which memory they take, and who waits when."""

import torch

from moe_retrieval import copies


def test_a_cpu_has_the_tensor_itself():
    tensor = torch.arange(3)
    assert copies.to_device(tensor, "cpu") is tensor
    fetched = copies.Fetched(tensor)
    assert fetched.get() is tensor


def test_what_goes_to_a_gpu_is_pinned_and_nobody_waits(monkeypatch):
    calls = []

    def pin(tensor):
        calls.append("pin")
        return tensor.clone()

    def to(tensor, *arguments, **options):
        calls.append((arguments, options))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    device = torch.device("cuda", 1)
    copies.to_device(torch.arange(3), device)
    assert calls == ["pin", ((device,), {"non_blocking": True})]


class OnGPU(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True


def test_what_comes_from_a_gpu_is_waited_for_when_it_is_asked_for(monkeypatch):
    calls = []

    class Event:
        def record(self):
            calls.append("recorded")

        def synchronize(self):
            calls.append("waited")

    empty_like = torch.empty_like

    def pinned(tensor, device, pin_memory):
        assert (device, pin_memory) == ("cpu", True)
        return empty_like(tensor.as_subclass(torch.Tensor))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty_like", pinned)
    fetched = copies.Fetched(torch.arange(3).as_subclass(OnGPU))
    assert calls == ["recorded"]
    assert fetched.get().tolist() == [0, 1, 2]
    assert calls == ["recorded", "waited"]
