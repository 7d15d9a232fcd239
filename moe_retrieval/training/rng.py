"""The random state of a process: what dropout, the router's noise and nothing else of a run draw from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def seed(number: int, rank: int) -> None:
    """Every rank draws its own numbers."""
    torch.manual_seed(number * 10007 + rank)


def capture(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves the state outside as it was."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
