"""Experts of passages, made once and kept in a folder: answering reads them there instead of making them.

generated.npy    [passages, layers, 4, rank, hidden] whole experts (what the hypernetwork made, and its base), in the
                 type that they were computed in; bf16, which numpy does not know, as the 16 bits that it is
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

STORED = {"bf16": np.uint16, "fp16": np.float16, "fp32": np.float32}


def store_experts(reader: Reader, passages: Iterable[Passage], count: int, folder: Path) -> int:
    """Makes those that an earlier run has not left; -> bytes a passage."""
    shape = _shape(reader, count)
    kept = _kept(folder, reader, count)
    known = kept["passages"]
    size = int(np.prod(shape[1:])) * np.dtype(STORED[reader.precision]).itemsize
    check_space(folder, size * (count - len(known)))
    mode: Any = "r+" if known else "w+"
    array = np.lib.format.open_memmap(folder / ARRAY, mode, STORED[reader.precision], shape)
    rest = islice(passages, len(known), None)
    with Meter("making experts", count, "passages", len(known)) as meter:
        while part := list(islice(rest, TOGETHER)):
            array[len(known) : len(known) + len(part)] = _to_array(reader.experts(part))
            array.flush()
            known += [[passage.id, checksum(reader, passage)] for passage in part]
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
    return count, len(settings.layers), 4, settings.rank, reader.model.config.hidden_size


def _kept(folder: Path, reader: Reader, count: int) -> dict[str, Any]:
    """What an earlier run left of the same experts; raises for those of others, which would be lost."""
    now = {"reader": reader.fingerprint, "precision": reader.precision, "count": count, "passages": []}
    if not (folder / DESCRIPTION).exists():
        return now
    before = read_object(folder / DESCRIPTION)
    if any(before.get(name) != now[name] for name in ("reader", "precision", "count")):
        raise InputError(f"{folder} holds other experts: give another folder, or remove it")
    return before


def _to_array(made: Made) -> np.ndarray:
    rows = [torch.stack([enter, up.mT, down, leave], 1) for enter, up, down, leave in made.values()]
    stacked = torch.stack(rows, 1).cpu()
    return (stacked.view(torch.uint16) if stacked.dtype == torch.bfloat16 else stacked).numpy()


def checksum(reader: Reader, passage: Passage) -> int:
    """Of what the hypernetwork reads."""
    return zlib.crc32(reader.wording.told(passage).encode())


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
        if len(about["passages"]) < about["count"]:
            said = f"{len(about['passages'])} of {about['count']} passages"
            raise InputError(f"{folder} has experts of {said}: the command that made them was stopped, and goes on")
        self.rows = {name: (row, found) for row, (name, found) in enumerate(about["passages"])}
        self.array = np.load(folder / ARRAY, mmap_mode="r")

    def experts(self, passages: Sequence[Passage]) -> Made:
        """{} for no passage."""
        rows = [self._row(passage) for passage in passages]
        made: dict[int, LowRankExperts] = {}
        if not rows:
            return made
        stacked = self._to_tensor(self.array[rows])
        for place, layer in enumerate(self.reader.settings.layers):
            enter, up, down, leave = (factor.contiguous() for factor in stacked[:, place].unbind(1))
            made[layer] = LowRankExperts(enter, up.mT.contiguous(), down, leave)
        return made

    def _row(self, passage: Passage) -> int:
        row, found = self.rows.get(passage.id, (None, None))
        if row is None:
            raise InputError(f"{self.folder} has no expert of the passage {passage.id!r:.40}")
        if found != checksum(self.reader, passage):
            raise InputError(f"{self.folder}: the passage {passage.id!r:.40} had another text when its expert was made")
        return row

    def _to_tensor(self, rows: np.ndarray) -> Tensor:
        found = torch.from_numpy(rows).to(self.reader.device)
        return found.view(PRECISIONS[self.reader.precision]) if self.reader.precision == "bf16" else found
