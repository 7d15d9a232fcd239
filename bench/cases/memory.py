"""What a call needs beyond its parameters: bytes kept for the backward, bytes allocated at the peak."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def saved_bytes(run: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes that a forward keeps for its backward, each storage once; parameters and their casts left out."""
    parameters = list(parameters)
    own = {p.untyped_storage().data_ptr() for p in parameters}
    casts = {shape for p in parameters for shape in _shapes_of_a_cast(p)}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and (tuple(tensor.shape), tensor.dtype) not in casts:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in saved.values())


def _shapes_of_a_cast(parameter: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """How autocast's copy of a parameter, of one expert's part of it, or its transpose looks."""
    halves = [dtype for dtype in (torch.bfloat16, torch.float16) if dtype != parameter.dtype]
    whole = [parameter.shape, parameter.shape[1:]] if parameter.ndim == 3 else [parameter.shape]
    shapes = {tuple(shape) for shape in whole} | {(*shape[:-2], *shape[:-3:-1]) for shape in whole if len(shape) > 1}
    return [(shape, dtype) for shape in shapes for dtype in halves]


def peak_allocated(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of a GPU's memory that a call takes at its peak, above what was there before."""
    run()  # libraries take their workspaces
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
