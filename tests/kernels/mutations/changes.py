"""Small wrong changes, such as a hand makes: a sign, a bound off by one, a bias forgotten, an expert swapped, a tie.

Each is (file in kernels/, what stands there once, what a slip makes of it, what that means).
"""

from typing import NamedTuple


class Change(NamedTuple):
    file: str
    old: str
    new: str
    idea: str


SHARED = [
    Change(
        "functional.py",
        "live_TH if residual else None, tokens.x_TH.dtype)",
        "None, tokens.x_TH.dtype)",
        "every expert on every token has no residual",
    ),
    Change("functional.py", "grad_y_TH if residual else None)", "None)", "a residual has no gradient"),
    Change(
        "functional.py",
        "live_grad_TH = zero_masked(grad_y_TH, tokens.mask_T)",
        "live_grad_TH = grad_y_TH",
        "what masked tokens send back counts",
    ),
    Change(
        "functional.py",
        "[grad if needed else None for grad, needed in zip(grads.gate, needs_gate)]",
        "[None for _ in grads.gate]",
        "a gate has no gradient",
    ),
    Change(
        "losses.py", "layer.balance_coef * num_experts * (", "layer.balance_coef * (", "the balance loss lacks its E"
    ),
    Change(
        "losses.py", "(probs_E / tokens - mean).square()", "(probs_E / tokens - mean).abs()", "importance is no square"
    ),
    Change("losses.py", "counts_E.mean() - counts_E", "counts_E - counts_E.mean()", "a balance bias runs away"),
    Change("generated.py", "grad.sum(0) if needed", "grad[0] if needed", "base learns from the first passage alone"),
    Change("generated.py", "weights_NK * grad_NK.sum", "grad_NK.sum", "a softmax's gradient takes too much away"),
    Change(
        "generated.py",
        ".masked_fill_((passage_NK < 0)[:, :, None, None], 0)",
        "",
        "what a sample lacks is another's first passage",
    ),
    Change("generated.py", "passage_OK[sample_of_row_T]", "passage_OK[sample_T]", "rows are taken for tokens"),
    Change(
        "routing.py",
        "best_experts(ranking_TE.gather(1, by_ties_TE), top_k)",
        "best_experts(ranking_TE, top_k)",
        "what decides ties decides all",
    ),
]

EAGER = [
    Change(
        "reference.py",
        "squared_lse_T = logits_TE.logsumexp(-1).square()",
        "squared_lse_T = logits_TE.logsumexp(-1)",
        "the z-loss is no square",
    ),
    Change(
        "reference.py", "indices_TK = torch.where(mask_T[:, None], indices_TK, -1)", "pass", "masked tokens are routed"
    ),
    Change(
        "reference.py",
        "probs_TE = torch.where(mask_T[:, None], probs_TE, 0)",
        "pass",
        "masked tokens count in the losses",
    ),
    Change(
        "reference.py",
        "y_NH = wide(y_NH) * weights_S[slots, None]",
        "y_NH = wide(y_NH) * weights_S[rows, None]",
        "weights are read in plan order",
    ),
    Change(
        "reference.py",
        "grad_weights_N = grad_weights_N + wide(grad_NH) @ wide(bias_EH[expert])",
        "pass",
        "the gradient of a weight lacks a bias",
    ),
    Change(
        "reference.py",
        "grad_bias_EH[expert] = weights_S[slots] @ wide(grad_NH)",
        "grad_bias_EH[expert] = wide(grad_NH).sum(0)",
        "the gradient of a bias is not weighted",
    ),
    Change(
        "reference.py",
        "spread(weights_TK * (grad_TK - sum_T1))",
        "spread(weights_TK * grad_TK)",
        "a softmax's gradient is not centred",
    ),
    Change(
        "reference.py",
        "(grad_probs_PALL - delta_PAL[..., None])",
        "grad_probs_PALL",
        "attention's gradient is not centred",
    ),
    Change(
        "reference.py",
        "return (q_PALD @ k_PALD.mT * self.scale).masked_fill(~self.live_PL[:, None, None, :], lowest)",
        "return q_PALD @ k_PALD.mT * self.scale",
        "attention reads beyond a sequence",
    ),
    Change(
        "reference.py",
        "torch.where(hidden_TG > 0, grad_logits_TE",
        "torch.where(hidden_TG < 0, grad_logits_TE",
        "a gate's relu lets the wrong half back",
    ),
]

NATIVE = [
    Change("cpu/kernels/plan.h", "expert < 0 ||", "expert <= 0 ||", "expert 0 is no expert"),
    Change(
        "cpu/kernels/choose.h",
        "int32_t e = 0;\n    while (space.keys[e] != best) ++e;",
        "int32_t e = c.experts - 1;\n    while (space.keys[e] != best) --e;",
        "a tie goes to the higher index",
    ),
    Change("cpu/kernels/experts.h", "shift = splat(bias ? widen(bias[r]) : 0.0f);", "shift = {};", "down has no bias"),
    Change(
        "cpu/kernels/experts.h",
        "experts.up_weight + tile.expert * all * hidden;",
        "experts.up_weight + (fw.plan.experts - 1 - tile.expert) * all * hidden;",
        "experts are swapped",
    ),
    Change(
        "cpu/kernels/weight_grad.h",
        "w.scales ? w.scales[w.plan.order[first + i]] : 1.0f",
        "1.0f",
        "the gradient of a bias is not weighted",
    ),
    Change(
        "cpu/kernels/experts_backward.h",
        "if (part == 0 && experts.down_bias) dot +=",
        "if (false) dot +=",
        "the gradient of a weight lacks a bias",
    ),
    Change(
        "cpu/kernels/experts_backward.h",
        "if (n > LANES) store_any(u.grad_x,",
        "if (n > COLUMNS) store_any(u.grad_x,",
        "the last columns of a row are not written",
    ),
    Change(
        "cpu/kernels/combine.h",
        "int64_t k = 1; k < c.top_k;",
        "int64_t k = 1; k + 1 < c.top_k;",
        "a token lacks its last expert",
    ),
    Change(
        "cpu/kernels/choose_backward.h",
        "space.probs[e] * (grad_probs[e] - mean)",
        "space.probs[e] * grad_probs[e]",
        "the losses' gradient is not centred",
    ),
    Change(
        "cpu/kernels/residual_norm.h",
        "load(grads + h) - mean_grad -",
        "load(grads + h) -",
        "a norm's gradient keeps its mean",
    ),
    Change("cpu/kernels/embed.h", "(t - e.starts[sequence]) * size", "t * size", "positions run on through a batch"),
]

TRITON = [
    Change("gpu/combine.py", "for k in range(1, K):", "for k in range(1, K - 1):", "a token lacks its last expert"),
    Change(
        "gpu/plan.py",
        "tl.where(o_e == E, first - tl.sum(before, 0), before)",
        "before",
        "unassigned slots overwrite each other",
    ),
    Change(
        "gpu/grouped.py",
        "value += tl.load(p_bias + F,",
        "value += 0 * tl.load(p_bias + F,",
        "the value half of a gated expert has no bias",
    ),
    Change(
        "gpu/grouped.py",
        "acc *= tl.load(p_weights + slot)[:, None]",
        "acc *= tl.load(p_weights + o_plan)[:, None]",
        "weights are read in plan order",
    ),
    Change("gpu/grouped_backward.py", "if column == 0:", "if column == 1:", "the gradient of a weight lacks a bias"),
    Change(
        "gpu/weight_grad.py",
        "m_k = k + o_k < stop\n        plan,",
        "m_k = k + o_k <= stop\n        plan,",
        "an expert's last row counts twice",
    ),
    Change(
        "gpu/gate_backward.py",
        "grad_probs - tl.sum(probs * grad_probs, 1)[:, None]",
        "grad_probs",
        "the losses' gradient is not centred",
    ),
    Change(
        "gpu/gate_backward.py",
        "grad_logits *= tl.sigmoid(-logits)",
        "grad_logits *= tl.sigmoid(logits)",
        "a sigmoid's slope has the wrong sign",
    ),
    Change(
        "gpu/gate.py",
        "index = tl.min(tl.where(tied, o_e[None, :], BLOCK_E), 1)",
        "index = tl.max(tl.where(tied, o_e[None, :], -1), 1)",
        "a tie goes to the higher index",
    ),
    Change(
        "gpu/attention.py", "m_n = n + o_n < length", "m_n = n + o_n <= length", "attention reads beyond a sequence"
    ),
    Change(
        "gpu/all_experts.py",
        "acc += weight[:, None] * bias[None, :]",
        "acc += bias[None, :]",
        "every expert's bias counts in full",
    ),
]

AREAS = {"shared": SHARED, "eager": EAGER, "native": NATIVE, "triton": TRITON}

LAYERS = ["tests/kernels/test_layers.py", "tests/kernels/test_functional.py", "tests/kernels/test_losses.py"]
ENCODER = ["tests/kernels/encoder"]
TESTS = {
    "shared": [*LAYERS, "tests/kernels/test_generated_experts.py", "-k", "not triton"],
    "eager": [*LAYERS, *ENCODER, "-k", "not triton and not native"],
    "native": [*LAYERS, *ENCODER, "tests/kernels/cpu/test_kernels.py", "-k", "not triton and not eager"],
    "triton": ["tests/kernels/gpu", *LAYERS, *ENCODER, "-k", "not native and not eager and not test_inspect"],
}
"""What of the suite an area's changes are shown to: of the whole it would only take longer."""
