"""A process's time among others: it joins their group, and leaves so that it cannot hang."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

# torch.distributed.nn, which DDP imports, keeps for good the group it finds then. Imported here, it finds none: else
# the group's threads would outlive it, and could abort the process while the interpreter ends.
import torch.distributed.nn  # noqa: F401
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def joined(backend: str, **group: Any) -> Iterator[None]:
    """In a group of processes, as `init_process_group` takes it. What was parallel inside is of no use afterwards."""
    dist.init_process_group(backend, **group)
    try:
        yield
    finally:
        _leave()


def _leave() -> None:
    """The group's own Python object must be the last to hold it.

    It lets go of the interpreter's lock before it waits for the group's threads, of which one may need that lock to
    free a tensor. A reducer of DDP holds the group too and does not let go: were it the last, both could wait for good.
    So reducers end first, whatever still holds their modules: a caller's variable, the traceback of an error.
    """
    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel):
            for name in ("logger", "reducer", "process_group"):  # the logger holds the reducer
                vars(found).pop(name, None)
    dist.destroy_process_group()
