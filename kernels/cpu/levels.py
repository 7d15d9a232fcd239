"""Which instruction set runs here. The best one is a fact, not a feature bit: a table says so, by CPU and by type.

Nothing is timed when a process starts, which would change bits from one run to the next. `python -m bench.levels` makes
the measurement that a line of the table rests on.
"""

import ctypes
import functools
import platform
from pathlib import Path
from typing import NamedTuple


class Level(NamedTuple):
    compiler: str
    """Flags of the compiler."""
    probe: str
    """An instruction that compiler and assembler must know."""
    flags: frozenset[str]
    """What /proc/cpuinfo must name."""


_AVX512 = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mprefer-vector-width=512"
_AVX512_FLAGS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
_PAIRS = f"{_AVX512} -mavx512bf16"
_PAIRS_FLAGS = _AVX512_FLAGS | {"avx512_bf16"}

LEVELS = {
    "amx_bf16": Level(
        f"{_PAIRS} -mamx-tile -mamx-bf16", "tdpbf16ps %tmm0, %tmm1, %tmm2", _PAIRS_FLAGS | {"amx_tile", "amx_bf16"}
    ),
    "avx512_bf16": Level(_PAIRS, "vdpbf16ps %zmm0, %zmm1, %zmm2", _PAIRS_FLAGS),
    "avx512": Level(_AVX512, "vaddps %zmm0, %zmm1, %zmm2", _AVX512_FLAGS),
    "avx2": Level("-mavx2 -mfma -mf16c", "vaddps %ymm0, %ymm1, %ymm2", frozenset({"avx2", "fma"})),
    "portable": Level("", "", frozenset()),
}
"""Instruction sets; each contains those that follow it. The last runs everywhere."""

EMULATIONS = {"amx_emulated": Level(f"{_PAIRS} -DEMULATED_TILES -O1", LEVELS["avx512_bf16"].probe, _PAIRS_FLAGS)}
"""For tests alone: picked by name, and compiled then, with few optimisations, which take time."""


MULTIPLIES_BF16 = ("amx_bf16", "avx512_bf16")
"""Those that have products of bf16; the others widen it, and gain nothing by it but the bytes."""


class Choice(NamedTuple):
    """The level of the products of each type."""

    bf16: str
    fp32: str

    def __str__(self):
        return self.bf16 if self.bf16 == self.fp32 else f"{self.bf16} (fp32: {self.fp32})"


class Fact(NamedTuple):
    """Of the CPUs that it names (None: any), the levels that may run, the best one first."""

    vendor: str | None
    family: int | None
    models: tuple[int, ...] | None
    bf16: tuple[str, ...]
    fp32: tuple[str, ...]
    source: str


_PAIRED = ("avx512_bf16", "avx512", "avx2", "portable")
_WIDENED = ("avx512", "avx2", "portable")
# `amx_bf16` is in no line until a machine has measured it: it is proved by its emulation alone, and runs where
# $MOE_KERNELS_CPU_LEVEL names it.

TABLE = (
    Fact(
        "AuthenticAMD", 26, None, _PAIRED, _PAIRED,
        "Zen 5, two cores, a layer: 897 GF/s by pairs of bf16, 463 in fp32 (docs/cpu.md)",
    ),
    Fact(
        "AuthenticAMD", 25, (*range(16, 32), *range(96, 128), *range(160, 176)), _PAIRED, _PAIRED,
        "Zen 4, one core, the microkernel: 222 GF/s by pairs of bf16, 112 in fp32 by either AVX-512, 95 by AVX2 "
        "(bench/results/amd-epyc-zen-4-2-cores-levels.json)",
    ),
    Fact(
        "GenuineIntel", None, None, _WIDENED, _WIDENED,
        "a Xeon with AMX, two cores: 180 GF/s by pairs of bf16, 260 in fp32, so bf16 is widened; a trial of products "
        "on tiles was faster than both, the figures of the level amx_bf16 are open, and PyTorch's tiles beat the rest: "
        "`auto` leaves experts in bf16 to it there (`backend.is_beaten`)",
    ),
    Fact(None, None, None, _WIDENED, _WIDENED, "nothing is known: products of pairs may be slow"),
)  # fmt: skip
"""The first line that fits counts."""


def first_processor(info: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What the system says of it, by name; nothing where there is no such file."""
    try:
        lines = info.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


class Machine(NamedTuple):
    vendor: str
    family: int
    model: int
    flags: frozenset[str]

    @classmethod
    def of(cls, about: dict[str, str]) -> "Machine":
        """By what `first_processor` found."""
        family, model = (int(about.get(key, -1)) for key in ("cpu family", "model"))
        return cls(about.get("vendor_id", ""), family, model, frozenset(about.get("flags", "").split()))

    @classmethod
    def read(cls, info: Path = Path("/proc/cpuinfo")) -> "Machine":
        """This one; without a file that says what it is, nothing is known of it."""
        return cls.of(first_processor(info))


@functools.cache
def tiles_are_allowed() -> bool:
    """Whether the system gives this process tile registers, for which it has to be asked.

    They are 8 KB more to be kept for a thread; a system may refuse.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    try:
        return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0
    except (OSError, AttributeError):
        return False


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU has products of bf16, which what is not ours (oneDNN) uses wherever they are."""
    return any(LEVELS[name].flags <= Machine.read().flags for name in MULTIPLIES_BF16)


@functools.cache
def pytorch_has_tiles() -> bool:
    """Whether PyTorch multiplies bf16 on tile registers: oneDNN takes them wherever the system gives them."""
    return LEVELS["amx_bf16"].flags <= Machine.read().flags and tiles_are_allowed()


def runnable(machine: Machine) -> list[str]:
    """What the machine has, best first, and what it can emulate, last."""
    return [name for name, level in (LEVELS | EMULATIONS).items() if level.flags <= machine.flags]


def best(machine: Machine, among: list[str]) -> Choice:
    """The table's choice among these levels."""
    fact = next(
        fact
        for fact in TABLE
        if fact.vendor in (None, machine.vendor)
        and fact.family in (None, machine.family)
        and (fact.models is None or machine.model in fact.models)
    )
    return Choice(*(next(level for level in levels if level in among) for levels in (fact.bf16, fact.fp32)))
