"""One case of a layer: its settings, its inputs, and the check against the oracle."""

from dataclasses import asdict, dataclass

import torch

import kernels
from tests.kernels.oracle import TOLERANCE, Oracle, relative_error

COEFFICIENTS = {"balance_coef": 0.3, "z_coef": 0.2, "importance_coef": 0.1}


@dataclass(frozen=True)
class Case:
    layer: str = "MoE"
    tokens: int = 13
    hidden: int = 12
    ffn: int = 10
    experts: int = 4
    top_k: int | str = 2
    activation: str = "gelu"
    router: str = "softmax"
    renormalize: bool = True
    gate: str = "linear"
    noise: bool = False
    bias: bool = True
    masked: bool = False
    crowded: bool = False
    seed: int = 0

    def __str__(self):
        changed = [f"{k}={v}" for k, v in asdict(self).items() if v != getattr(type(self)(), k)]
        return "-".join(changed) or "default"

    def build(self, device, dtype):
        """-> the layer, with unit-variance outputs from unit-variance inputs, in training mode"""
        torch.manual_seed(self.seed)
        settings = dict(
            num_experts=self.experts, top_k=self.top_k, activation=self.activation, router=self.router,
            renormalize=self.renormalize, gate=self.gate, noise=self.noise, bias=self.bias, **COEFFICIENTS,
        )  # fmt: skip
        layer = getattr(kernels, self.layer)(self.hidden, self.ffn, **settings)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                fan_in = parameter.shape[-1]
                parameter.normal_(std=0.3 if name.endswith("bias") else fan_in**-0.5)
            if self.crowded:  # every token prefers expert 0, and the last expert gets none unless all are taken
                layer.router.weight[-1] = layer.router.weight[0] - 5.0 * layer.router.weight[0].sign()
            if layer.router.balance_bias is not None:
                layer.router.balance_bias.normal_(std=0.2)
        return layer.to(device, dtype)

    def inputs(self, device, dtype):
        """-> x, grad_y, mask: what is masked is NaN"""
        x = torch.randn(self.tokens, self.hidden).to(device, dtype)
        grad_y = torch.randn(self.tokens, self.hidden).to(device, dtype)
        if not self.masked:
            return x, grad_y, None
        mask = torch.rand(self.tokens, device=device) < 0.6
        x[~mask] = grad_y[~mask] = float("nan")
        return x, grad_y, mask


def run(layer, x, grad_y, mask):
    """-> y, aux, the gradients by name, and the routing"""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    with kernels.record_routing(layer) as log:
        y = layer(x, mask)
    aux = kernels.aux_loss(layer)
    torch.autograd.backward([y, aux], [grad_y, torch.ones_like(aux)])
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return y, aux, {"x": x.grad, **grads}, log[""][0]


def check(case, device, dtype, slack=lambda size: 1):
    """Output, losses and every gradient against the oracle, in the type's tolerance; masked rows exactly zero.

    `slack` is what that is multiplied with for a gradient of so many numbers.
    """
    layer = case.build(device, dtype)
    x, grad_y, mask = case.inputs(device, dtype)
    torch.manual_seed(case.seed + 1)
    y, aux, grads, routing = run(layer, x, grad_y, mask)
    assert y.dtype == x.dtype
    assert y.shape == x.shape

    torch.manual_seed(case.seed + 1)
    wide = torch.float32
    normal = torch.randn(case.tokens, case.experts, dtype=wide, device=device).double().cpu() if case.noise else None
    p64 = {name: p.detach().double().cpu().requires_grad_() for name, p in layer.named_parameters()}
    bias = layer.router.balance_bias
    oracle = Oracle(
        p64, case.activation, case.router, case.renormalize, case.top_k,
        None if bias is None else bias.double().cpu(), residual=case.layer == "SBMoE",
    )  # fmt: skip
    x64 = x.double().cpu()
    mask_cpu = None if mask is None else mask.cpu()
    if mask_cpu is not None:
        x64 = torch.where(mask_cpu[:, None], x64, 0)
    x64.requires_grad_()
    y64, probs, squares = oracle(x64, mask_cpu, normal, routing.indices_TK.cpu())
    losses = oracle.losses(probs, squares)
    aux64 = sum(coefficient * loss for coefficient, loss in zip(COEFFICIENTS.values(), losses))
    grad64 = grad_y.double().cpu()
    if mask_cpu is not None:
        grad64 = torch.where(mask_cpu[:, None], grad64, 0)
    ((y64 * grad64).sum() + aux64 + 0 * sum(p.sum() for p in (x64, *p64.values()))).backward()

    limit = TOLERANCE[dtype]
    errors = {"y": relative_error(y, y64), "aux": relative_error(aux, aux64)}
    for name, ref in {"x": x64, **p64}.items():
        assert grads[name] is not None, f"no gradient for {name}"
        assert grads[name].dtype == dtype
        # all that reaches a router may be a loss that is nearly even
        error = gradient_error if name.startswith("router") else relative_error
        errors[name] = error(grads[name], ref.grad) / slack(ref.numel())
    assert all(error <= limit for error in errors.values()), {k: e for k, e in errors.items() if not e <= limit}
    assert routing.counts_E.tolist() == oracle.counts
    if mask is not None:
        for tensor in (y, grads["x"]):
            assert torch.equal(tensor[~mask], torch.zeros_like(tensor[~mask]))
    check_without_gradients(layer.eval(), x, mask, None if case.noise else y64)


def gradient_error(out, ref):
    """Relative to the gradient, but not to less than a tenth of what unit-variance inputs usually give: that of the
    z-loss is proportional to logits, and one that happens to be near 0 has lost its last digits in its own sum.
    """
    scale = ref.norm().item()
    return relative_error(out, ref) * (scale / max(scale, 0.1 * ref.numel() ** 0.5) if scale else 1.0)


def check_without_gradients(layer, x, mask, expected):
    """What a backend may do in its own way: the output, the routing that it was made with, and sums if they count."""
    with torch.no_grad(), kernels.record_routing(layer) as log, kernels.collect_without_grad():
        y = layer(x, mask)
    routing = log[""][0]
    if expected is not None:
        assert relative_error(y, expected) <= TOLERANCE[x.dtype]
    assert y.dtype == x.dtype
    if mask is not None:
        assert torch.equal(y[~mask], torch.zeros_like(y[~mask]))
    again = kernels.route(
        routing.logits_TE, layer.top_k, router=layer.router_kind, renormalize=layer.renormalize, mask=mask
    )
    if layer.router.balance_bias is None:
        assert relative_error(routing.weights_TK, again.weights_TK) < 1e-6
    assert kernels.router_totals(layer)[0][: layer.num_experts].tolist() == routing.counts_E.tolist()


GRID = [
    Case(),
    Case(tokens=0),
    Case(tokens=1),
    Case(tokens=1, top_k=1, experts=8),
    Case(tokens=0, top_k="all"),
    Case(tokens=1, layer="SBMoE", top_k=1, activation="relu", gate="mlp"),
    *(Case(top_k=k, router=r, renormalize=n) for k in (1, 3, "all") for r in ("softmax", "topk_softmax", "sigmoid")
      for n in (False, True)),
    *(Case(activation=a, top_k=k) for a in ("gelu_tanh", "relu", "silu", "swiglu", "geglu") for k in (1, 2, "all")),
    *(Case(gate="mlp", noise=n, layer=name, top_k=k) for n in (False, True) for name in ("MoE", "SBMoE")
      for k in (1, "all")),
    *(Case(bias=False, top_k=k, gate="mlp") for k in (1, 2, "all")),
    *(Case(masked=True, top_k=k, layer=name, noise=True, tokens=21) for k in (1, 2, "all")
      for name in ("MoE", "SBMoE")),
    Case(experts=1, top_k=1),
    Case(experts=5, top_k=5, crowded=True),
    Case(experts=9, top_k=2, crowded=True, tokens=40),
    Case(experts=64, top_k=2, tokens=9),
    Case(tokens=70, hidden=33, ffn=35, experts=3, top_k=2),
    Case(tokens=67, hidden=72, ffn=65, experts=2, top_k=1, activation="swiglu"),
    Case(hidden=1, ffn=1, experts=2, top_k=1),
    Case(tokens=130, hidden=16, ffn=17, experts=5, top_k=4, router="sigmoid"),
]  # fmt: skip
"""Every setting at least once, and the shapes where indexing goes wrong; needs nothing but PyTorch."""
