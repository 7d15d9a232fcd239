"""What a layer costs in launches: Triton's, seen by hook, and ATen's, seen by the profiler."""

import contextlib
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("kernels.gpu.backend", exc_type=ImportError)

from triton.runtime.errors import OutOfResources

import kernels
from kernels.encoder import residual_norm
from kernels.gpu import attention, heuristics, launch
from tests.kernels.gpu.compare import DEVICE

FREE = {
    "empty", "new_empty", "empty_like", "empty_strided", "view", "reshape", "_reshape_alias", "as_strided", "detach",
    "unsqueeze", "select", "slice", "t", "transpose", "expand", "alias", "contiguous", "to", "result_type",
    "promote_types",
}  # fmt: skip
"""Operators that only make or describe a tensor."""


def launches(run):
    """Kernel names and operators. The kernels do not run: what they would cost is all that is asked."""
    seen = []
    before, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        False,
    )
    try:
        with (
            launch.watch(lambda one: bool(seen.append(one.kernel.fn.__name__))),
            profile(activities=[ProfilerActivity.CPU]) as log,
        ):
            run()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
    operators = [event.name.removeprefix("aten::") for event in log.events() if event.name.startswith("aten::")]
    return seen, [name for name in operators if name not in FREE]


LAYERS = {
    "moe": (lambda: kernels.MoE(8, 12, num_experts=4, top_k=2), 6),
    "moe mlp": (lambda: kernels.MoE(8, 12, num_experts=4, top_k=2, gate="mlp", activation="swiglu"), 6),
    "sbmoe": (lambda: kernels.SBMoE(8, num_experts=4), 4),
    "sbmoe all": (lambda: kernels.SBMoE(8, num_experts=4, top_k="all"), 4),
}


@pytest.mark.parametrize("num_tokens", [1, 64, 40_000])
@pytest.mark.parametrize("name", LAYERS)
def test_an_inference(name, num_tokens):
    make, limit = LAYERS[name]
    layer, x = make().to(DEVICE).eval(), torch.randn(num_tokens, 8, device=DEVICE)
    mask = torch.ones(num_tokens, dtype=torch.bool, device=DEVICE) if layer.top_k != "all" else None
    with kernels.use_backend("triton"), torch.no_grad():
        ours, aten = launches(lambda: layer(x, mask))
    assert aten == []
    assert 3 <= len(ours) <= limit


@pytest.mark.parametrize("name", LAYERS)
def test_a_backward(name):
    make, _ = LAYERS[name]
    layer, x = make().to(DEVICE).eval(), torch.randn(40, 8, device=DEVICE, requires_grad=True)
    with kernels.use_backend("triton"):
        y = layer(x)
        grad = torch.ones_like(y)
        ours, aten = launches(lambda: y.backward(grad))
    assert aten == []
    assert 7 <= len(ours) <= 8


@pytest.mark.parametrize("rate,drawn", [(0.0, set()), (0.1, {"randint", "random_"})])
def test_the_end_of_half_a_block(rate, drawn):
    """One launch forward, two backward; a dropout has a seed, which PyTorch draws."""
    x, y = (torch.randn(40, 24, device=DEVICE, requires_grad=True) for _ in range(2))
    norm = torch.nn.LayerNorm(24, device=DEVICE)

    def run():
        return residual_norm(x, y, norm.weight, norm.bias, norm.eps, dropout=rate)

    with kernels.use_backend("triton"):
        ours, aten = launches(run)
        assert ours == ["_residual_norm_kernel"]
        assert set(aten) == drawn
        out = run()
        grad = torch.ones_like(out)
        ours, aten = launches(lambda: out.backward(grad))
    assert ours == ["_residual_norm_backward_kernel", "_sum_parts_kernel"]
    assert aten == []


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_for_no_token(name):
    make, _ = LAYERS[name]
    layer, x = make().to(DEVICE), torch.randn(0, 8, device=DEVICE, requires_grad=True)
    with kernels.use_backend("triton"):
        assert launches(lambda: layer(x).sum().backward())[0] == []


def launches_of_generated_experts(num_tokens, num_passages):
    """Of the forward and of the backward. They run: ours read a plan."""
    shapes = (2, 8), (8, 2), (2, 8), (2, 8)
    deltas = [torch.randn(3 * num_passages, *shape, device=DEVICE, requires_grad=True) for shape in shapes]
    x = torch.randn(3, num_tokens, 8, device=DEVICE, requires_grad=True)
    scores = torch.randn(3 * num_passages, device=DEVICE)
    starts = torch.arange(4, dtype=torch.int32, device=DEVICE) * num_passages
    seen = []
    with kernels.use_backend("triton"), launch.watch(lambda one: not seen.append(one.kernel.fn.__name__)):
        y = kernels.generated_experts(x, kernels.LowRankExperts(*deltas), scores, None, starts, num_passages)
        forward = seen.copy()
        y.sum().backward()
    return forward, seen[len(forward) :]


@pytest.mark.parametrize("num_passages", [1, 5])
def test_generated_experts(num_passages):
    """One token a sample, as in decoding: as many launches for five passages as for one."""
    forward, backward = launches_of_generated_experts(1, num_passages)
    plans, products = ["_count_kernel", "_plan_kernel"] * 2, ["_up_kernel", "_up_kernel", "_down_kernel"]
    assert forward == [*plans, *products, "_up_backward_kernel"]
    assert len(backward) == 10


def test_generated_experts_of_long_prompts(monkeypatch):
    """Where their plans are scanned, and each of the five sums over tokens is cut into parts."""
    monkeypatch.setattr(heuristics, "PLAN_SCAN_LIMIT", 0)
    monkeypatch.setattr(heuristics, "WEIGHT_GRAD_SPAN", 4)
    forward, backward = launches_of_generated_experts(8, 1)
    assert (len(forward), forward.count("_scan_kernel")) == (10, 2)
    assert (len(backward), backward.count("_sum_parts_kernel")) == (15, 5)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("name", LAYERS)
def test_a_cuda_graph(name):
    make, _ = LAYERS[name]
    layer, x = make().to(DEVICE).eval(), torch.randn(64, 8, device=DEVICE)
    with kernels.use_backend("triton"), torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(y, layer(x))


def somewhere():
    """What a stand-in for a kernel is kept under."""


class On(torch.Tensor):
    """A tensor that says that it is on a GPU: a second one is nowhere that this runs."""


class Kernel:
    """A stand-in for Triton's: `run` is what a launch by Triton itself calls, and returns what was compiled."""

    fn, arg_names = staticmethod(somewhere), ("p_x", "n", "BLOCK_M", "EVEN")

    def __init__(self, run):
        self.run = run

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.run(grid, *arguments, **constants)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(launch, "_kept", {})
    monkeypatch.setattr(launch, "_fewer_stages", {})
    launch._say_once.cache_clear()


@pytest.mark.parametrize("index", [0, 1])
def test_the_device_of_the_tensors_whatever_the_current_one_is(monkeypatch, index):
    current, ran = [0], []

    @contextlib.contextmanager
    def device(other):
        before, current[0] = current[0], other
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(On, "device", torch.device("cuda", index), raising=False)
    kernel = Kernel(lambda grid, *arguments, **constants: ran.append((grid, current[0])))
    launch.launch(kernel, 5, torch.empty(3).as_subclass(On), 3, tile=heuristics.sum_tile(1), BLOCK_M=1, EVEN=True)
    assert ran == [((5,), index)]
    assert current == [0]


class Compiled:
    """A stand-in for what Triton compiled."""

    def __init__(self):
        self.ran = []

    def __getitem__(self, grid):
        return lambda *arguments: self.ran.append((grid, *arguments))


def test_what_has_run_goes_straight_to_the_compiled_kernel(monkeypatch):
    """Triton, which looks at every argument again, is asked once for whatever it compiles once."""
    made = []
    kernel = Kernel(lambda *_, **__: made.append(Compiled()) or made[-1])
    tile, x = heuristics.Tile(128, 128, 64), torch.empty(64)
    settings = dict(tile=tile, BLOCK_M=128, EVEN=True)
    launch.launch(kernel, 5, x, 3, **settings)
    other = torch.empty(64)
    launch.launch(kernel, 7, other, 2**31 - 1, **settings)
    launch.launch(kernel, 7, x, 1, tile=tile, EVEN=True, BLOCK_M=128)
    assert len(made) == 1
    assert made[0].ran == [((7, 1, 1), other, 2**31 - 1, 128, True), ((7, 1, 1), x, 1, 128, True)]
    for arguments, changed in [
        ((x.double(), 3), {}),
        ((x[1:], 3), {}),  # begins where 16 does not divide
        ((x, 2**31), {}),  # is of 64 bits
        ((x, None), {}),
        ((x, 3), dict(BLOCK_M=64)),
        ((x, 3), dict(EVEN=False)),
        ((x, 3), dict(tile=tile._replace(num_warps=8))),
        ((x, 3), dict(tile=tile._replace(max_registers=255))),
    ]:
        before = len(made)
        for _ in range(3):
            launch.launch(kernel, 5, *arguments, **settings | changed)
        assert len(made) == before + 1, (arguments, changed)
        assert len(made[-1].ran) == 2


def test_amds_compiler_is_always_asked(monkeypatch):
    """It compiles anew for a tensor of more than 2 GB, too."""
    made = []
    kernel = Kernel(lambda *_, **__: made.append(Compiled()) or made[-1])
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for _ in range(2):
        launch.launch(kernel, 5, torch.empty(64), 3, tile=heuristics.sum_tile(1), BLOCK_M=1, EVEN=True)
    assert len(made) == 2


class Small(Kernel):
    """On a GPU whose shared memory holds `room` stages of it."""

    def __init__(self, room, name="shared memory"):
        self.room, self.name, self.tried = room, name, []
        self.fn = lambda: self  # kept under

    def run(self, grid, *arguments, num_stages, **constants):
        self.tried.append(num_stages)
        if num_stages > self.room:
            raise OutOfResources(num_stages * 48 * 1024, 99 * 1024, self.name)


def test_too_little_shared_memory_takes_fewer_stages_and_is_said_once(caplog):
    tile, x = heuristics.Tile(128, 128, 64, num_stages=4), torch.empty(3)
    small, other = Small(room=2), Small(room=2)
    for kernel in (small, small, other):
        launch.launch(kernel, 5, x, 3, tile=tile, BLOCK_M=128, EVEN=True)
    assert small.tried == [4, 3, 2, 2]  # the second launch knows
    assert other.tried == [4, 3, 2]
    launch.launch(small, 5, x.double(), 3, tile=tile, BLOCK_M=128, EVEN=True)
    launch.launch(small, 5, x, 3, tile=tile, BLOCK_M=64, EVEN=True)
    assert small.tried[4:] == [4, 3, 2, 4, 3, 2]  # another type, another block
    assert [record.message for record in caplog.records] == [
        "this GPU has 99 KB of shared memory a program: kernels run with fewer stages, and slower"
    ]


def test_what_was_compiled_with_fewer_stages_is_kept():
    tried, compiled = [], Compiled()

    def run(grid, *arguments, num_stages, **constants):
        tried.append(num_stages)
        if num_stages > 2:
            raise OutOfResources(num_stages * 48 * 1024, 99 * 1024, "shared memory")
        return compiled

    kernel, tile, x = Kernel(run), heuristics.Tile(128, 128, 64, num_stages=3), torch.empty(3)
    for _ in range(2):
        launch.launch(kernel, 5, x, 3, tile=tile, BLOCK_M=128, EVEN=True)
    assert tried == [3, 2]
    assert len(compiled.ran) == 1


@pytest.mark.parametrize("kernel", [Small(room=0), Small(room=2, name="tensor memory")])
def test_what_fewer_stages_cannot_mend_is_raised(kernel):
    tile = heuristics.Tile(128, 128, 64, num_stages=3)
    with pytest.raises(OutOfResources):
        launch.launch(kernel, 5, torch.empty(3), 3, tile=tile, BLOCK_M=1, EVEN=True)


def test_attention_of_a_torch_that_has_renamed_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert attention._torchs_own() is None
