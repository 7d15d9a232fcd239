"""Copies between the host and a GPU for which neither waits: from and to memory that is pinned, so that a GPU reads and
writes it by itself, in the order of its other work."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor there. From memory that is not pinned, a GPU would copy when all its work is done, and the host would
    wait for that."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetched:
    """A tensor on its way to the host, which asks for it later."""

    def __init__(self, tensor: Tensor):
        self.tensor, self.arrival = tensor, None
        if tensor.is_cuda:
            self.tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self.tensor.copy_(tensor, non_blocking=True)
            self.arrival = torch.cuda.Event()
            self.arrival.record()

    def get(self) -> Tensor:
        if self.arrival is not None:
            self.arrival.synchronize()
        return self.tensor
