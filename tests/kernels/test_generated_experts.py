"""Generated experts against a loop over tokens and passages in fp64, and what their callers rely on."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck

import kernels
from bench.cases.memory import saved_bytes
from kernels import LowRankExperts, dispatch
from tests.kernels.generated import Case, check, make
from tests.kernels.oracle import TOLERANCE, relative_error

GRID = [
    Case(),
    Case(masked=True),
    Case(padded=True),
    Case(padded=True, masked=True, passages=(2, 2, 2)),
    Case(based=False),
    Case(based=False, passages=(2, 2, 2), masked=True),
    Case(passages=(1, 1, 1)),
    Case(passages=(2, 2, 2), most=5),
    Case(tokens=(1, 1, 1)),
    Case(tokens=(1,), passages=(1,)),
    Case(tokens=(4,), passages=(17,)),
    Case(tokens=(0, 4, 0)),
    Case(passages=(0, 3, 0)),
    Case(passages=(0, 0, 0)),
    Case(passages=(0, 0, 0), most=3),
    Case(tokens=(0, 0), passages=(2, 1)),
    Case(tokens=(), passages=()),
    Case(tokens=(), passages=(), padded=True),
    Case(hidden=1, rank=1),
    Case(tokens=(67, 1, 20), passages=(3, 0, 5), hidden=33, rank=7, masked=True),
    Case(tokens=(40, 9), passages=(2, 2), hidden=24, rank=16, padded=True),
]
"""Every way to say which tokens and passages there are, and the shapes where indexing goes wrong."""


@pytest.mark.parametrize("case", GRID, ids=str)
def test_against_a_loop(case, backend, dtype, device):
    check(case, device, dtype)


def test_gradcheck():
    given = make(Case(tokens=(2, 2), passages=(2, 1), hidden=4, rank=2, masked=True), "cpu", torch.float64)
    live = torch.tensor([n is not None for n in given.sample_T])
    scores = given.scores.detach().double().requires_grad_()

    def run(x, scores, *factors):
        deltas, base = LowRankExperts(*factors[:4]), LowRankExperts(*factors[4:])
        return kernels.generated_experts(x, deltas, scores, base, **given.how)

    x = torch.where(live[:, None], given.x, 0).detach().requires_grad_()
    assert gradcheck(run, (x, scores, *given.deltas, *given.base))


def test_one_token_a_sample_needs_no_dimension_for_it(backend, device):
    given = make(Case(tokens=(1, 1, 1)), device, torch.float32)
    starts = given.how.pop("cu_seqlens")
    alone = given.run()
    assert torch.equal(alone, given._replace(x=given.x[:, None]).run()[:, 0])
    assert torch.equal(alone, given._replace(how={**given.how, "cu_seqlens": starts}).run())


def test_what_is_added_once_need_not_be_added_again(backend, device):
    given = make(Case(), device, torch.float32)
    whole = given._replace(deltas=given.deltas.plus(given.base), base=None)
    assert torch.equal(whole.run(), given.run())
    assert given.deltas.plus(None) is given.deltas


@pytest.mark.slow_in_the_interpreter
def test_deltas_may_be_parts_of_one_output(backend, device):
    """As a hypernetwork makes them: rows of 4 R H numbers."""
    given = make(Case(), device, torch.float32)
    num_passages, rank, hidden = given.deltas.enter_PRH.shape
    made = torch.randn(num_passages, 4, rank, hidden, device=device)
    results = []
    for lay in (lambda t: t, torch.Tensor.contiguous):
        leaf = made.clone().requires_grad_()
        enter, up, down, leave = leaf.unbind(1)
        deltas = LowRankExperts(*map(lay, (enter, up.mT, down, leave)))
        for base in (given.base, None):
            y = given._replace(deltas=deltas, base=base).run()
            results.append([y, *torch.autograd.grad(y.sum(), leaf, retain_graph=True)])
    parts, dense = results[:2], results[2:]
    assert all(torch.equal(a, b) for part, one in zip(parts, dense) for a, b in zip(part, one))


def test_what_is_not_finite_stays_in_its_sample(backend, device):
    given = make(Case(), device, torch.float32)
    expected = torch.autograd.grad(given.run(), given.x, given.grad_y)[0]
    with torch.no_grad():
        for factor in given.deltas:
            factor[0] = float("nan")
    y = given.run()
    (grad_x,) = torch.autograd.grad(y, given.x, given.grad_y)
    own = torch.tensor([n == 0 for n in given.sample_T], device=device)
    for tensor in (y, grad_x):
        assert torch.equal(tensor.isnan().all(-1), own)
    assert torch.equal(grad_x[~own], expected[~own])


@pytest.mark.parametrize("needed", ["x", "scores", "leave_PRH", "base up_PHR"])
def test_what_needs_no_gradient_changes_none(needed, backend, device):
    given = make(Case(), device, torch.float32)
    (expected,) = torch.autograd.grad(given.run(), given.leaves[needed], given.grad_y)
    for name, leaf in given.leaves.items():
        leaf.requires_grad_(name == needed)
    (alone,) = torch.autograd.grad(given.run(), given.leaves[needed], given.grad_y)
    assert torch.equal(alone, expected)


def test_saved_for_backward(backend, device):
    """Two numbers of the rank for each slot: neither the sums of factors, nor rows of the hidden size."""
    given = make(Case(tokens=(20, 12), passages=(3, 3), hidden=64, rank=4), device, torch.float32)
    slots = 32 * 3
    numbers = 2 * slots * 4 + slots  # on both sides of the middle, and the weights
    indices = 32 + slots + 3 + 7 + 3  # the plans, and the passages' bounds
    assert 0 < saved_bytes(given.run, given.leaves.values()) <= 4 * (numbers + indices)


def half_of(backend, device):
    return torch.bfloat16 if dispatch.get(backend).supports(device, torch.bfloat16) else torch.float16


@pytest.mark.slow_in_the_interpreter
def test_autocast(backend, device):
    """The products in 16 bits, all that comes back in the type of what went in."""
    half = half_of(backend, device)
    given = make(Case(passages=(2, 2, 2)), device, half)
    y = given.run()
    expected = torch.autograd.grad(y, list(given.leaves.values()), given.grad_y)
    wide = {name: leaf.detach().float().requires_grad_() for name, leaf in given.leaves.items()}
    x, scores, *factors = wide.values()
    made = given._replace(x=x, scores=scores, deltas=LowRankExperts(*factors[:4]), base=LowRankExperts(*factors[4:]))
    with torch.autocast(device.type, half):
        mixed = made._replace(deltas=made.deltas.to(half)).run()
        wide_y = made.run()
    assert mixed.dtype == wide_y.dtype == torch.float32
    assert torch.equal(wide_y, y.float())
    assert torch.equal(mixed, y.float())
    grads = torch.autograd.grad(wide_y, list(wide.values()), given.grad_y.float())
    for grad, want in zip(grads, expected):
        assert grad.dtype == torch.float32
        assert relative_error(grad, want) <= TOLERANCE[half]


@pytest.mark.slow_in_the_interpreter
def test_compiles_to_one_graph_for_any_number_of_tokens(backend, device):
    given = make(Case(), device, torch.float32)
    starts, most = given.how["cu_passages"], given.how["max_passages"]

    def run(x, scores, *factors):
        deltas, base = LowRankExperts(*factors[:4]), LowRankExperts(*factors[4:])
        y = kernels.generated_experts(x * 2, deltas, scores, base, starts, most)
        return y.square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (2, 3, 17, 2):
        x = torch.randn(3, tokens, 12, device=device, requires_grad=True)
        leaves = [x, given.scores, *given.deltas, *given.base]
        expected, got = (torch.autograd.grad(function(*leaves), leaves) for function in (run, compiled))
        assert all(torch.equal(a, b) for a, b in zip(expected, got))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_shapes_without_numbers():
    given = make(Case(), "cpu", torch.float32)
    how = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in given.how.items()}
    x, scores, *factors = (leaf.detach().to("meta").requires_grad_() for leaf in given.leaves.values())
    y = kernels.generated_experts(x, LowRankExperts(*factors[:4]), scores, LowRankExperts(*factors[4:]), **how)
    grads = torch.autograd.grad(y.sum(), [x, scores, *factors])
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in given.leaves.values()]
    assert (y.shape, y.device.type) == (given.x.shape, "meta")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "changed,message",
    [
        (dict(cu_passages=[0, 2, 5]), r"x must be \[samples, ..., hidden\] with 2 samples.*got shape \(3, 5, 12\)"),
        (dict(cu_passages=[0, 2, 5, 5]), "cu_passages must go from 0 to 6, got 0 to 5"),
        (dict(cu_passages=[0, 7, 5, 6]), "cu_passages must not decrease, got 5 after 7"),
        (dict(cu_passages=[]), r"cu_passages must be a 1-d int tensor .*of shape \(0,\)"),
        (dict(max_passages=2), "cu_passages has a sample of 3 passages, max_passages is 2"),
        (dict(max_passages=-1), "max_passages must be at least 0, got -1"),
        (dict(cu_seqlens=[0, 5, 15]), r"with cu_seqlens, x must be \[tokens, hidden\], got shape \(3, 5, 12\)"),
        (dict(x=(15, 12), cu_seqlens=[0, 5, 15]), "cu_seqlens must be of 3 samples, as cu_passages is, got 2"),
        (dict(x=(15, 12), cu_seqlens=[0, 5, 5, 16]), "cu_seqlens must go from 0 to 15, got 0 to 16"),
        (dict(x=(15, 12)), r"with 3 samples.*or come with cu_seqlens; got shape \(15, 12\)"),
        (dict(x=(3, 5, 11)), r"x must have shape \[..., 12\], got \(3, 5, 11\)"),
        (dict(mask=(3, 4)), r"mask must have x's leading shape \(3, 5\), got \(3, 4\)"),
        (dict(scores=(5,)), r"scores must have shape \(6,\), got \(5,\)"),
        (dict(leave=(6, 12, 5)), r"deltas.leave_PRH must have shape \(6, 5, 12\), got \(6, 12, 5\)"),
        (dict(enter=(5, 12)), r"deltas.enter_PRH must be \[passages, rank, hidden\].*got shape \(5, 12\)"),
        (dict(enter=(6, 0, 12)), r"rank and hidden at least 1, got shape \(6, 0, 12\)"),
        (dict(base_up=(6, 12, 5)), r"base.up_PHR must have shape \(12, 5\), got \(6, 12, 5\)"),
    ],
    ids=str,
)
def test_what_does_not_fit(changed, message, requires_grad):
    given = make(Case(padded=True), "cpu", torch.float32)
    arguments = given._asdict() | given.how | {"mask": None}
    for name, value in changed.items():
        if name.startswith("cu_"):
            arguments[name] = torch.tensor(value, dtype=torch.int32)
        elif name == "mask":
            arguments[name] = torch.ones(value, dtype=torch.bool)
        elif name in ("x", "scores"):
            arguments[name] = torch.randn(value, requires_grad=requires_grad)
        elif name == "max_passages":
            arguments[name] = value
        else:
            whole, field = ("base", name.removeprefix("base_")) if name.startswith("base_") else ("deltas", name)
            field = next(each for each in LowRankExperts._fields if each.startswith(field))
            arguments[whole] = arguments[whole]._replace(**{field: torch.randn(value)})
    if not requires_grad:
        arguments = {name: without_gradient(value) for name, value in arguments.items()}
    del arguments["how"], arguments["grad_y"], arguments["sample_T"]
    with pytest.raises(ValueError, match=message):
        kernels.generated_experts(**arguments)


def without_gradient(value):
    if isinstance(value, LowRankExperts):
        return LowRankExperts(*(t.detach() for t in value))
    return value.detach() if isinstance(value, torch.Tensor) else value


def test_what_is_of_another_kind():
    given = make(Case(), "cpu", torch.float32)
    with pytest.raises(TypeError, match=r"deltas must be kernels.LowRankExperts, got tuple"):
        given._replace(deltas=tuple(given.deltas)).run()
    with pytest.raises(TypeError, match=r"base must be kernels.LowRankExperts, got Tensor"):
        given._replace(base=given.deltas[0]).run()
    with pytest.raises(
        TypeError, match=r"base.enter_PRH is torch.bfloat16 and deltas.enter_PRH torch.float32: convert"
    ):
        given._replace(base=given.base.to(torch.bfloat16)).run()
    with pytest.raises(TypeError, match=r"base.enter_PRH is torch.float64 and deltas.enter_PRH .*fp64 mixes with no"):
        given._replace(base=given.base.to(torch.float64)).run()
    with pytest.raises(TypeError, match=r"x is torch.bfloat16 and the experts are torch.float32"):
        given._replace(x=given.x.bfloat16()).run()
    with pytest.raises(TypeError, match=r"scores must have a floating point type, got torch.int64"):
        given._replace(scores=torch.ones(6, dtype=torch.int64)).run()
    with pytest.raises(TypeError, match=r"max_passages must be an int, got 2\.0"):
        given._replace(how={**given.how, "max_passages": 2.0}).run()
    with pytest.raises(ValueError, match="scores is on meta and x is on cpu"):
        given._replace(scores=given.scores.to("meta")).run()
