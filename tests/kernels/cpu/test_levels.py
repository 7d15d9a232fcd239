"""Which level runs: what the table says of a machine, what the system allows, what was asked for."""

import platform
import re
import shutil

import pytest
import torch

import kernels
from kernels import dispatch
from kernels.cpu import build, levels
from kernels.cpu.levels import EMULATIONS, LEVELS, TABLE, Choice, Machine, best, runnable
from tests.kernels.cases import Case, run

AVX2 = LEVELS["avx2"].flags
AVX512 = AVX2 | LEVELS["avx512"].flags
PAIRS = AVX512 | LEVELS["avx512_bf16"].flags
TILES = PAIRS | LEVELS["amx_bf16"].flags


def chosen(*machine):
    machine = Machine(*machine)
    return best(machine, runnable(machine))


@pytest.mark.parametrize("model", [143, 207, 173])  # Sapphire, Emerald, Granite Rapids
def test_tiles_run_where_they_are_asked_for(monkeypatch, caplog, model):
    machine = Machine("GenuineIntel", 6, model, TILES)
    monkeypatch.setattr(build, "_compiles", lambda level: True)
    assert best(machine, runnable(machine)).bf16 == "avx512", "no machine has measured them"
    monkeypatch.setenv("MOE_KERNELS_CPU_LEVEL", "amx_bf16")
    for allowed, level in ((True, "amx_bf16"), (False, "avx512")):
        monkeypatch.setattr(build, "tiles_are_allowed", lambda allowed=allowed: allowed)
        assert build.wanted(machine, runnable(machine)) == (level, level)
    assert [record.message for record in caplog.records] == [
        "the system refuses tile registers (AMX): running without them"
    ]


@pytest.mark.parametrize(
    "vendor, family, model, flags, expected",
    [
        ("GenuineIntel", 6, 143, PAIRS, "avx512"),  # a virtual machine without AMX
        ("GenuineIntel", 6, 106, AVX512, "avx512"),
        ("GenuineIntel", 6, 151, AVX2, "avx2"),
        ("AuthenticAMD", 26, 2, PAIRS, "avx512_bf16"),
        ("AuthenticAMD", 25, 17, PAIRS, "avx512_bf16"),
        ("AuthenticAMD", 25, 1, AVX2, "avx2"),
        ("Another", 7, 1, PAIRS, "avx512"),
        ("", -1, -1, frozenset(), "portable"),
    ],
)
def test_the_best_level_is_a_fact(vendor, family, model, flags, expected):
    choice = chosen(vendor, family, model, flags)
    assert choice == Choice(expected, expected)
    assert str(choice) == expected


def test_every_line_of_the_table_can_choose_and_says_why():
    for fact in TABLE:
        assert fact.source
        for order in (fact.bf16, fact.fp32):
            assert set(order) <= set(LEVELS), "an emulation is for tests alone"
            assert order[-1] == "portable"
    assert TABLE[-1][:3] == (None, None, None)


@pytest.fixture
def tiles(native, monkeypatch):
    """A machine whose system gives tile registers, as the backend sees it; "auto" has picked nothing yet."""
    from kernels.cpu import backend

    monkeypatch.setattr(backend, "pytorch_has_tiles", lambda: True)
    monkeypatch.setattr(dispatch, "_picked", {})
    monkeypatch.setattr(backend, "_was_named", False)
    return backend


def picked(dtype=torch.bfloat16, rows=4096):
    return dispatch.pick(torch.device("cpu"), dtype, rows).name


def test_auto_leaves_experts_in_bf16_to_pytorch_where_that_alone_has_tiles(tiles, monkeypatch):
    monkeypatch.setattr(tiles, "choice", Choice("avx512", "avx512"))
    with kernels.use_backend("auto"):
        assert (picked(), picked(torch.float32)) == ("eager", "native")
        assert (picked(rows=512), picked(rows=511), picked(rows=0)) == ("eager", "native", "native")
    with kernels.use_backend("native"):
        assert picked() == "native", "who asks for it gets it"


def test_layers_tell_how_many_tokens_they_have(tiles, monkeypatch):
    """Forward and backward, and without gradients: what runs is what PyTorch's backend gives, to the bit."""
    monkeypatch.setattr(tiles, "choice", Choice("avx512", "avx512"))
    torch.manual_seed(0)
    layer = kernels.MoE(32, 64, num_experts=4, top_k=2).bfloat16()
    x = torch.randn(600, 32, dtype=torch.bfloat16)

    def results():
        layer.zero_grad()
        layer(x).float().square().mean().backward()
        with torch.no_grad():
            return [layer(x), *(parameter.grad.clone() for parameter in layer.parameters())]

    found = {}
    for backend in ("auto", "eager", "native"):
        with kernels.use_backend(backend):
            found[backend] = results()
    assert all(map(torch.equal, found["auto"], found["eager"]))
    assert not all(map(torch.equal, found["native"], found["eager"])), "their bits differ, or this shows nothing"


@pytest.mark.parametrize("asked, level", [("", "amx_bf16"), ("avx512", "avx512")])
def test_auto_picks_tiles_of_our_own_and_a_level_that_is_named(tiles, monkeypatch, asked, level):
    monkeypatch.setattr(tiles, "_was_named", bool(asked))
    monkeypatch.setattr(tiles, "choice", Choice(level, "avx512"))
    with kernels.use_backend("auto"):
        assert picked() == "native"


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("flags", [TILES, PAIRS])
def test_pytorch_has_tiles_where_machine_and_system_do(monkeypatch, flags, allowed):
    monkeypatch.setattr(Machine, "read", lambda: Machine("GenuineIntel", 6, 143, flags))
    monkeypatch.setattr(levels, "tiles_are_allowed", lambda: allowed)
    assert levels.pytorch_has_tiles.__wrapped__() is (allowed and flags is TILES)


def test_reading_a_machine(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nflags\t\t: fpu avx2 fma\n\nvendor_id\t: x\n"
    )
    assert Machine.read(info) == ("GenuineIntel", 6, 143, {"fpu", "avx2", "fma"})
    assert Machine.read(tmp_path / "missing") == ("", -1, -1, frozenset())


def test_asking_for_a_level(monkeypatch):
    machine = Machine("GenuineIntel", 6, 143, PAIRS)
    for level in ("avx512_bf16", "avx512", "portable", "amx_emulated"):
        monkeypatch.setenv("MOE_KERNELS_CPU_LEVEL", level)
        assert build.wanted(machine, runnable(machine)) == (level, level)
    monkeypatch.setenv("MOE_KERNELS_CPU_LEVEL", "")
    assert build.wanted(machine, runnable(machine)) == ("avx512", "avx512")


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch):
    machine = Machine("GenuineIntel", 6, 151, AVX2)
    for level in ("avx512", "amx_bf16", "amx_emulated"):
        monkeypatch.setenv("MOE_KERNELS_CPU_LEVEL", level)
        with pytest.raises(ImportError, match=f"'{level}', but this machine has 'avx2' at best"):
            build.wanted(machine, runnable(machine))
    monkeypatch.setenv("MOE_KERNELS_CPU_LEVEL", "sse9")
    names = re.escape(", ".join([*LEVELS, *EMULATIONS]))
    with pytest.raises(ImportError, match=f"must be one of {names}; got 'sse9'"):
        build.wanted(machine, runnable(machine))


@pytest.mark.parametrize("change", [{"compiler": "-mno-such-instructions"}, {"probe": "no_such_instruction"}])
def test_a_level_that_the_compiler_does_not_know_is_left_out(monkeypatch, caplog, change):
    if shutil.which("g++") is None or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs a compiler for x86")
    monkeypatch.setitem(LEVELS, "avx512", LEVELS["avx512"]._replace(**change))
    assert "avx512" not in build.supported_levels()
    assert f"{build.compiler()} leaves out avx512: " in caplog.text


def test_a_level_for_each_type(native):
    ops = torch.ops.moe_retrieval_cpu
    if not {"avx512_bf16", "avx2"} <= set(ops.levels()):
        pytest.skip("not both in this library, or not on this machine")

    def output(dtype, *chosen):
        case = Case(tokens=70, hidden=33, ffn=35, experts=3)
        ops.choose_level(*chosen)
        try:
            with kernels.use_backend("native"):
                layer, (x, grad_y, mask) = case.build("cpu", dtype), case.inputs("cpu", dtype)
                return run(layer, x, grad_y, mask)[2]["x"]
        finally:
            ops.choose_level(*native.choice)

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    found = {}
    for chosen in (("avx512_bf16", "avx2"), ("avx512_bf16", "avx512_bf16"), ("avx2", "avx2")):
        torch.random.set_rng_state(state)
        found[chosen] = output(torch.bfloat16, *chosen), output(torch.float32, *chosen)
    mixed, pairs, plain = found.values()
    assert torch.equal(mixed[0], pairs[0])
    assert torch.equal(mixed[1], plain[1])
    assert not torch.equal(pairs[1], plain[1]), "the test's premise: levels have bits of their own"
