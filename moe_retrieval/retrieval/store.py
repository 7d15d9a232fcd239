"""Where embeddings go as they are computed, a window at a time: to memory, or to a file that can be resumed."""

import errno
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json, write_json


class Memory:
    """`shape` is that of all embeddings, over `world` ranks."""

    def __init__(self, shape: tuple[int, int], device: torch.device, world: int):
        self.embeddings = np.zeros(shape, dtype=np.float32)
        self.device, self.world = device, world

    def count_kept(self) -> int:
        return 0

    def begin(self) -> None:
        pass

    def has(self, start: int) -> bool:
        return False

    def write(self, start: int, embeddings: np.ndarray) -> None:
        self.embeddings[start : start + len(embeddings)] = embeddings

    def finish(self) -> np.ndarray:
        if self.world > 1:  # a sum in which all but one rank have zeros
            shared = torch.from_numpy(self.embeddings).to(self.device if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(shared)
            self.embeddings = shared.cpu().numpy()
        return self.embeddings


class File:
    """`begin`, then `write` each window that it has not, then `finish`.

    X.npy, which is X.part as long as it is not whole, with a byte a window in X.done and its `state` in X.json.

    Rows are written with write(), not through a memory map: they would count as this process's memory.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int], window: int, state: dict[str, Any], rank: int = 0, world: int = 1
    ):
        if path.suffix != ".npy":
            raise ValueError(f"output must end in .npy, got {path}")
        self.path, self.shape, self.window, self.rank, self.world = path, shape, window, rank, world
        self.state = state | {"rows": shape[0], "window": window}
        self.part, self.done, self.json = (path.with_suffix(suffix) for suffix in (".part", ".done", ".json"))
        self.row_bytes = 4 * shape[1]

    def count_kept(self) -> int:
        """Rows that an earlier run made of the same state."""
        if not self._begun():
            return 0
        rows = self.shape[0]
        if self.path.exists():
            return rows
        marks = self.done.read_bytes()
        return sum(min(self.window, rows - place * self.window) for place, mark in enumerate(marks) if mark == 1)

    def begin(self) -> None:
        if self.rank == 0:
            self._prepare()
        self.barrier()
        self.whole = self.path.exists()
        if not self.whole:
            self.header = len(_header(self.shape))
            self.data, self.marks = (open(file, "r+b", buffering=0) for file in (self.part, self.done))  # noqa: SIM115

    def _prepare(self) -> None:
        """Leaves what an earlier run made of the same state; else begins anew."""
        if self._begun():
            return
        for file in (self.json, self.path, self.part, self.done):
            file.unlink(missing_ok=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self.shape[0]
        if rows:
            np.lib.format.open_memmap(self.part, "w+", np.float32, self.shape)
        else:  # nothing can be mapped
            with open(self.part, "wb") as empty:
                np.save(empty, np.zeros(self.shape, np.float32))
        self.done.write_bytes(bytes(self._windows()))
        write_json(self.json, self.state)

    def _begun(self) -> bool:
        """Whether there are rows of the same state, or room for all of them."""
        rows = self.path if self.path.exists() else self.part
        header = _header(self.shape)
        try:
            with open(rows, "rb") as file:
                whole = len(header) + self.shape[0] * self.row_bytes
                fits = file.read(len(header)) == header and rows.stat().st_size == whole
            marked = rows == self.path or self.done.stat().st_size == self._windows()
            return fits and marked and read_json(self.json) == self.state
        except (OSError, InputError):
            return False

    def _windows(self) -> int:
        return -(-self.shape[0] // self.window)

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def has(self, start: int) -> bool:
        if self.whole:
            return True
        self.marks.seek(start // self.window)
        return self.marks.read(1) == b"\1"

    def write(self, start: int, embeddings: np.ndarray) -> None:
        self.data.seek(self.header + start * self.row_bytes)
        rows = embeddings.tobytes()
        if self.data.write(rows) < len(rows):  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.part))
        os.fsync(self.data.fileno())
        self.marks.seek(start // self.window)
        self.marks.write(b"\1")

    def finish(self) -> np.ndarray:
        if not self.whole:
            self.data.close()
            self.marks.close()
        self.barrier()
        if self.rank == 0 and not self.whole:
            self.part.replace(self.path)
            self.done.unlink()
        self.barrier()
        return np.load(self.path, mmap_mode="r" if self.shape[0] else None)


def _header(shape: tuple[int, int]) -> bytes:
    """What a file of these rows begins with."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()
