"""Bad input raises an error that names the argument, what came and what was expected."""

import pytest
import torch

import kernels


def layer(**settings):
    return kernels.MoE(8, 16, **{"num_experts": 4, "top_k": 2, **settings})


E, F, H = 4, 6, 8
GOOD = dict(
    router_weight=torch.randn(E, H),
    up_weight=torch.randn(E, F, H),
    up_bias=torch.randn(E, F),
    down_weight=torch.randn(E, H, F),
    down_bias=torch.randn(E, H),
)
X = torch.randn(5, H)

BAD_LAYERS = [
    (dict(top_k=5), ValueError, "top_k must be 1 to 4.*got 5"),
    (dict(top_k=0), ValueError, "top_k must be 1 to 4.*got 0"),
    (dict(top_k=2.0), TypeError, 'top_k must be an int or "all", got 2.0'),
    (dict(top_k="every"), TypeError, "got 'every'"),
    (dict(num_experts=0), ValueError, "num_experts must be at least 1, got 0"),
    (dict(num_experts="8"), TypeError, "num_experts must be an int, got '8'"),
    (dict(activation="mish"), ValueError, "activation must be one of gelu.*got 'mish'"),
    (dict(router="hash"), ValueError, "router must be one of softmax.*got 'hash'"),
    (dict(gate="cnn"), ValueError, "gate must be one of linear, mlp; got 'cnn'"),
]


@pytest.mark.parametrize("settings,error,message", BAD_LAYERS)
def test_layer_settings(settings, error, message):
    with pytest.raises(error, match=message):
        layer(**settings)


def test_sbmoe_settings():
    with pytest.raises(ValueError, match="combine must be one of residual, normalized; got 'sum'"):
        kernels.SBMoE(8, combine="sum")
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got -2"):
        kernels.SBMoE(-2)


BAD_INPUTS = [
    ((torch.randn(5, 7),), ValueError, r"x must have shape \[..., 8\], got \(5, 7\)"),
    ((torch.tensor(1.0),), ValueError, r"x must have shape \[..., 8\], got \(\)"),
    (([1.0] * 8,), TypeError, "x must be a tensor, got list"),
    ((torch.ones(5, 8, dtype=torch.int64),), TypeError, "x must have a floating point type, got torch.int64"),
    ((torch.randn(5, 8, dtype=torch.float64),), TypeError, "x is torch.float64 and the experts are torch.float32"),
    ((torch.randn(5, 8, device="meta"),), ValueError, "x is on meta and up_weight is on cpu"),
    ((X, torch.ones(4)), TypeError, "mask must be a bool or int tensor .*got torch.float32"),
    ((X, torch.ones(4, dtype=torch.bool)), ValueError, r"mask must have x's leading shape \(5,\), got \(4,\)"),
    ((X, [True] * 5), TypeError, "mask must be a bool or int tensor .*got list"),
]


@pytest.mark.parametrize("arguments,error,message", BAD_INPUTS)
def test_layer_inputs(arguments, error, message):
    with pytest.raises(error, match=message):
        layer()(*arguments)


BAD_TENSORS = [
    (dict(router_weight=torch.randn(3, H)), ValueError, r"router_weight must have shape \(4, 8\), got \(3, 8\)"),
    (dict(router_weight=None), TypeError, "router_weight must be a tensor, got NoneType"),
    (dict(up_weight=torch.randn(E, F)), ValueError, r"\[experts, ffn, hidden\], each at least 1, got shape \(4, 6\)"),
    *(
        (
            dict(up_weight=torch.randn(shape)),
            ValueError,
            rf"up_weight must be .* each at least 1, got shape \({sizes}\)",
        )
        for shape, sizes in [((0, F, H), "0, 6, 8"), ((E, 0, H), "4, 0, 8"), ((E, F, 0), "4, 6, 0")]
    ),
    (dict(up_bias=torch.randn(F)), ValueError, r"up_bias must have shape \(4, 6\), got \(6,\)"),
    (dict(down_weight=torch.randn(E, F, H)), ValueError, r"down_weight must have shape \(4, 8, 6\), got \(4, 6, 8\)"),
    (dict(down_bias=torch.randn(E, H).double()), TypeError, "down_bias must be torch.float32 .* got torch.float64"),
]


@pytest.mark.parametrize("top_k", [2, "all"])
@pytest.mark.parametrize("changed,error,message", BAD_TENSORS)
def test_functional_tensors(changed, error, message, top_k):
    with pytest.raises(error, match=message):
        kernels.moe(X, **{**GOOD, **changed}, top_k=top_k)


def test_odd_rows_for_a_gated_activation():
    with pytest.raises(ValueError, match="even number of rows an expert for swiglu, got 5"):
        kernels.moe(
            X,
            GOOD["router_weight"],
            torch.randn(E, 5, H),
            None,
            torch.randn(E, H, 2),
            None,
            top_k=1,
            activation="swiglu",
        )


BAD_SLOTS = [
    (torch.zeros(5, 2), torch.ones(5, 2), TypeError, "indices must be an integer tensor, got torch.float32"),
    (torch.zeros(4, 2).long(), torch.ones(4, 2), ValueError, r"indices must have shape \[5, K\].*got \(4, 2\)"),
    (torch.zeros(5, 0).long(), torch.ones(5, 0), ValueError, r"K >= 1, got \(5, 0\)"),
    (torch.zeros(5, 2).long(), torch.ones(5, 3), ValueError, r"weights must have shape \(5, 2\), got \(5, 3\)"),
    (torch.zeros(5, 2).long(), torch.ones(5, 2).long(), TypeError, "weights must have a floating point type"),
]


@pytest.mark.parametrize("indices,weights,error,message", BAD_SLOTS)
def test_slots(indices, weights, error, message):
    experts = {name: tensor for name, tensor in GOOD.items() if name != "router_weight"}
    with pytest.raises(error, match=message):
        kernels.expert_mlp(X, indices, weights, **experts)


WIDE = torch.float64


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(
    "x,router,experts,message",
    [
        (WIDE, torch.float32, WIDE, "router.weight is torch.float32 and the experts are torch.float64"),
        (torch.float32, WIDE, torch.float32, "router.weight is torch.float64 and the experts are torch.float32"),
        (WIDE, WIDE, torch.float32, "x is torch.float64 and the experts are torch.float32"),
        (torch.float32, WIDE, WIDE, "x is torch.float32 and the experts are torch.float64"),
        (torch.bfloat16, WIDE, torch.bfloat16, "router.weight is torch.float64 and the experts are torch.bfloat16"),
    ],
)
def test_fp64_meets_no_other_type(x, router, experts, message, amp, backend):
    moe = layer()
    moe.router.to(router)
    moe.experts.to(experts)
    with torch.autocast("cpu", enabled=amp), pytest.raises(TypeError, match=message + ".*convert one"):
        moe(X.to(x))
    weights = {name: tensor.to(experts) for name, tensor in GOOD.items() if name != "router_weight"}
    with torch.autocast("cpu", enabled=amp), pytest.raises(TypeError, match=message.replace("router.", "router_")):
        kernels.moe(X.to(x), GOOD["router_weight"].to(router), **weights, top_k=2)


def test_totals():
    model = torch.nn.ModuleList([layer(), layer(num_experts=3)])
    x = torch.randn(5, 8)
    for each in model:
        each(x)
    good = [torch.zeros(10), torch.zeros(8)]
    bad = [
        (good[:1], ValueError, r"totals must be what router_totals\(model\) gives, .* each of 2 layers; got 1"),
        (good[0], TypeError, r"totals must be what router_totals\(model\) gives, .* each of 2 layers; got a Tensor"),
        (good[::-1], ValueError, r"totals\[0\] must have shape \(10,\), got \(8,\)"),
        ([good[0], None], TypeError, r"totals\[1\] must be a tensor, got NoneType"),
        ([good[0], good[1].to("meta")], ValueError, r"totals\[1\] is on meta and its layer is on cpu"),
    ]
    for totals, error, message in bad:
        with pytest.raises(error, match=message):
            kernels.aux_loss(model, totals=totals)
    assert [totals[-1].item() for totals in kernels.router_totals(model)] == [5, 5], "an error takes no sums"


def test_route_and_backends():
    with pytest.raises(ValueError, match=r"logits must be \[tokens, experts\], .* got shape \(4,\)"):
        kernels.route(torch.randn(4), 1)
    with pytest.raises(ValueError, match=r"at least one expert, got shape \(2, 0\)"):
        kernels.route(torch.randn(2, 0), "all")
    with pytest.raises(ValueError, match="top_k must be 1 to 4"):
        kernels.route(torch.randn(2, 4), 5)
    with (
        pytest.raises(ValueError, match="backend must be one of auto, triton, native, eager; got 'cuda'"),
        kernels.use_backend("cuda"),
    ):
        pass


q = torch.randn(6, 2, 4)
BAD_ATTENTION = [
    ((torch.randn(6, 8), q, q, torch.tensor([0, 6]), 6), {}, ValueError, r"q must be \[tokens, heads, head size\]"),
    ((q, q[:5], q, torch.tensor([0, 6]), 6), {}, ValueError, r"k must have shape \(6, 2, 4\), got \(5, 2, 4\)"),
    ((q, q, q.double(), torch.tensor([0, 6]), 6), {}, TypeError, "v must be torch.float32 .*got torch.float64"),
    ((q, q, q, torch.tensor([0.0, 6.0]), 6), {}, ValueError, "cu_seqlens must be a 1-d int tensor.*torch.float32"),
    (
        (q, q, q, torch.tensor([0, 6]), 6),
        dict(dropout=1.0),
        ValueError,
        "dropout must be at least 0 and below 1, got 1.0",
    ),
]


@pytest.mark.parametrize("arguments,settings,error,message", BAD_ATTENTION)
def test_attention(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        kernels.packed_attention(*arguments, **settings)
