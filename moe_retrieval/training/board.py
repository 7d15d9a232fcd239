"""TensorBoard's curves of a run, in its directory; nothing where TensorBoard is not installed."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    def __init__(self, folder: Path, step: int):
        """`step` is where the run begins: what an earlier session drew of later ones is no longer shown."""
        kind = _writer()
        self.writer = kind and kind(str(folder), purge_step=step + 1 if step else 0)

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _writer() -> Any:
    """torch's, which needs TensorBoard, and not too old a one."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter
