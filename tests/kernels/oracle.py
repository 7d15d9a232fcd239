"""What every backend is held to: a mixture of experts in fp64, one token and one expert at a time.

It shares no code with `kernels`. Its gradients come from autograd.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


def relative_error(out, ref):
    """‖out - ref‖ / ‖ref‖ in fp64; absolute where the reference is zero."""
    out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
    assert out.shape == ref.shape
    scale = ref.norm().item()
    return (out - ref).norm().item() / (scale or 1.0)


def activation(name, pre):
    if name in ("swiglu", "geglu"):
        half = pre.shape[-1] // 2
        return activation("silu" if name == "swiglu" else "gelu", pre[:half]) * pre[half:]
    return {
        "gelu": lambda: pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2))),
        "gelu_tanh": lambda: pre * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3))),
        "relu": lambda: pre * (pre > 0),
        "silu": lambda: pre / (1 + torch.exp(-pre)),
    }[name]()


@dataclass
class Oracle:
    """`parameters` by their names in the layer, in fp64, requiring grad."""

    parameters: dict[str, torch.Tensor]
    activation: str
    router: str
    renormalize: bool
    top_k: int | str
    selection_bias: torch.Tensor | None = None
    residual: bool = False
    counts: list[int] = field(default_factory=list)

    def logits(self, x, normal=None):
        p = self.parameters
        features = x
        if "router.hidden.weight" in p:
            pre = p["router.hidden.weight"] @ x + p["router.hidden.bias"]
            features = pre * (pre > 0)
        logits = p["router.weight"] @ features
        if "router.bias" in p:
            logits = logits + p["router.bias"]
        if normal is not None:
            spread = p["router.noise.weight"] @ x + p["router.noise.bias"]
            logits = logits + normal * torch.log1p(torch.exp(spread))
        return logits

    def scores(self, logits):
        """What the choice is made by, and what the weights are made of."""
        if self.router == "sigmoid":
            scores = 1 / (1 + torch.exp(-logits))
            return scores if self.selection_bias is None else scores + self.selection_bias, scores
        exps = torch.exp(logits - logits.max().detach())
        return logits, exps / exps.sum()

    def weights(self, scores, chosen):
        weights = scores[chosen]
        if self.router == "topk_softmax" or (self.renormalize and len(chosen)):
            weights = weights / weights.sum()
        return weights

    def expert(self, e, x):
        p = self.parameters
        pre = p["experts.up_weight"][e] @ x
        if "experts.up_bias" in p:
            pre = pre + p["experts.up_bias"][e]
        out = p["experts.down_weight"][e] @ activation(self.activation, pre)
        return out + p["experts.down_bias"][e] if "experts.down_bias" in p else out

    def __call__(self, x, mask, normal, indices):
        """x [T, H] fp64 -> y [T, H], sum of balance, squared-lse and CV² losses' ingredients.

        The experts are those in `indices`, after a check that they are a right choice up to rounding of the logits:
        two experts closer than that may be taken in any order.
        """
        num_experts = len(self.parameters["router.weight"])
        rows, probs, squares = [], [], []
        self.counts = [0] * num_experts
        for t in range(len(x)):
            if mask is not None and not mask[t]:
                rows.append(torch.zeros(x.shape[1], dtype=torch.float64))
                continue
            logits = self.logits(x[t], None if normal is None else normal[t])
            ranking, scores = self.scores(logits)
            chosen = list(range(num_experts)) if self.top_k == "all" else indices[t].tolist()
            self._check_choice(ranking, chosen)
            mix = sum(w * self.expert(e, x[t]) for w, e in zip(self.weights(scores, chosen), chosen))
            rows.append(x[t] + mix if self.residual else mix)
            probs.append(scores / scores.sum())
            squares.append(torch.log(torch.exp(logits).sum()) ** 2)
            for e in chosen:
                self.counts[e] += 1
        y = torch.stack(rows) if rows else x.sum() * torch.zeros_like(x)
        return y, probs, squares

    def _check_choice(self, ranking, chosen):
        ranking = ranking.tolist()
        assert sorted(set(chosen)) == sorted(chosen), "an expert chosen twice"
        assert all(0 <= e < len(ranking) for e in chosen)
        if self.top_k == "all":
            return
        values = [ranking[e] for e in chosen]
        slack = 1e-5 * max(1.0, *(abs(value) for value in ranking))
        assert all(a >= b - slack for a, b in pairwise(values)), "not best first"
        best_left = max((ranking[e] for e in range(len(ranking)) if e not in chosen), default=-math.inf)
        assert values[-1] >= best_left - slack, "a better expert was left out"

    def losses(self, probs, squares):
        """Balance, z and importance losses without their coefficients."""
        num_experts, tokens = len(self.counts), max(len(probs), 1)
        mean = sum(probs, torch.zeros(num_experts, dtype=torch.float64)) / tokens
        share = torch.tensor(self.counts, dtype=torch.float64) / max(sum(self.counts), 1)
        balance = num_experts * (share * mean).sum()
        z = sum(squares, torch.zeros((), dtype=torch.float64)) / tokens
        importance = ((mean - mean.mean()) ** 2).mean() / mean.mean() ** 2 if probs else mean.sum()
        return balance, z, importance
