"""Experts of passages, made once and kept in a folder: answering reads them there instead of making them.

generated.npy    [layers, 4, passages, rank * hidden] the factors of whole experts (what the hypernetwork made, and its
                 base), each as it is multiplied, in the type that they were computed in; bf16, which numpy does not
                 know, as the 16 bits that it is
generated.json   whose they are, and of which passages: id and checksum of the text
"""

import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import LowRankExperts
from moe_retrieval.data.records import StoredDocuments
from moe_retrieval.errors import InputError
from moe_retrieval.files import check_space, read_object, write_json
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.reader import Made, Reader
from moe_retrieval.models.precision import PRECISIONS
from moe_retrieval.progress import Meter

ARRAY, DESCRIPTION = "generated.npy", "generated.json"

TOGETHER = 16
"""Passages whose experts are made at a time"""

OTHERS = "holds other experts: give another folder, or remove it"

STORED = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}


def store_experts(reader: Reader, passages: Iterable[Passage], count: int, folder: Path) -> int:
    """Makes those that an earlier run has not left; -> bytes a passage."""
    shape = _shape(reader, count)
    kept = _kept(folder, reader, count)
    known = kept["passages"]
    size = int(np.prod(shape)) // count * np.dtype(STORED[reader.precision]).itemsize
    check_space(folder, size * (count - len(known)))
    mode: Any = "r+" if known else "w+"
    array = np.lib.format.open_memmap(folder / ARRAY, mode, STORED[reader.precision], shape)
    rest = iter(passages)
    if [_entry(reader, passage) for passage in islice(rest, len(known))] != known:
        raise InputError(f"{folder} {OTHERS}")
    with Meter("making experts", count, "passages", len(known)) as meter:
        while part := list(islice(rest, TOGETHER)):
            for layer, experts in enumerate(reader.experts(part).values()):
                for row, factor in enumerate(experts):
                    array[layer, row, len(known) : len(known) + len(part)] = _to_rows(factor)
            array.flush()
            known += [_entry(reader, passage) for passage in part]
            write_json(folder / DESCRIPTION, kept)
            meter.advance(len(part))
    return size


def store_documents(reader: Reader, documents: StoredDocuments, folder: Path) -> int:
    """Of all documents of an index; -> bytes a document."""
    folder.mkdir(exist_ok=True)
    records = (documents.record(row) for row in range(len(documents)))
    passages = (Passage(str(each["_id"]), each.get("title") or "", each["text"]) for each in records)
    return store_experts(reader, passages, len(documents), folder)


def _shape(reader: Reader, count: int) -> tuple[int, ...]:
    settings = reader.settings
    return len(settings.layers), 4, count, settings.rank * reader.model.config.hidden_size


def _kept(folder: Path, reader: Reader, count: int) -> dict[str, Any]:
    """What an earlier run left of the same experts; raises for those of others, which would be lost."""
    now = {"reader": reader.fingerprint, "precision": reader.precision, "count": count, "passages": []}
    if not (folder / DESCRIPTION).exists():
        return now
    before = read_object(folder / DESCRIPTION)
    if any(before.get(name) != now[name] for name in ("reader", "precision", "count")):
        raise InputError(f"{folder} {OTHERS}")
    return before


def _to_rows(factor: Tensor) -> np.ndarray:
    rows = factor.flatten(1).cpu()
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _entry(reader: Reader, passage: Passage) -> list[Any]:
    """Its id, and the checksum of what the hypernetwork reads of it."""
    return [passage.id, zlib.crc32(reader.wording.told(passage).encode())]


class ExpertStore:
    """The experts in a folder, for the reader that made them."""

    def __init__(self, folder: Path, reader: Reader):
        self.folder, self.reader = folder, reader
        about = read_object(folder / DESCRIPTION)
        if about.get("reader") != reader.fingerprint:
            raise InputError(
                f"{folder} has deltas of another model: its hypernetwork or its language model is not this"
            )
        if about.get("precision") != reader.precision:
            raise InputError(f"{folder} has experts in {about.get('precision')}, expected {reader.precision}")
        known, count = about["passages"], about["count"]
        if len(known) < count:
            said = f"{len(known)} of {count} passages"
            raise InputError(f"{folder} has experts of {said}: the command that made them was stopped, and goes on")
        self.rows = {entry[0]: (row, entry) for row, entry in enumerate(known)}
        try:
            self.array = np.load(folder / ARRAY, mmap_mode="r")
        except ValueError as error:
            raise InputError(f"{folder / ARRAY}: is damaged: {error}") from None

    def experts(self, passages: Sequence[Passage]) -> Made:
        """{} for no passage."""
        rows = [self._row(passage) for passage in passages]
        if not rows:
            return {}
        rank, made = self.reader.settings.rank, {}
        shapes = (rank, -1), (-1, rank), (rank, -1), (rank, -1)
        for place, layer in enumerate(self.reader.settings.layers):
            found = (self._read(place, factor, rows) for factor in range(4))
            made[layer] = LowRankExperts(*(each.unflatten(1, shape) for each, shape in zip(found, shapes)))
        return made

    def _row(self, passage: Passage) -> int:
        row, entry = self.rows.get(passage.id, (None, None))
        if row is None:
            raise InputError(f"{self.folder} has no expert of the passage {passage.id!r:.40}")
        if entry != _entry(self.reader, passage):
            raise InputError(f"{self.folder}: the passage {passage.id!r:.40} had another text when its expert was made")
        return row

    def _read(self, layer: int, factor: int, rows: list[int]) -> Tensor:
        found = torch.from_numpy(self.array[layer, factor][rows]).to(self.reader.device)
        return found.view(PRECISIONS[self.reader.precision]) if self.reader.precision == "bf16" else found
