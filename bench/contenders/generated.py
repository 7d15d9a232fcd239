"""Generated experts: ours, the method as it is written, and as batched products."""

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench.cases.generated import Contender, Inputs
from bench.harness.record import BASELINE, OURS


def ours(inputs: Inputs) -> Tensor:
    return kernels.generated_experts(*inputs)


def loop(inputs: Inputs) -> Tensor:
    """Over samples and passages. Not over stacked factors, each index of which would copy a gradient of all of them."""
    x_NTH, deltas, scores_P, base, _, most = inputs
    factors = zip(*(factor.unbind() for factor in deltas))
    outputs = []
    for x_TH, scores_K in zip(x_NTH.unbind(), scores_P.view(-1, most).unbind()):
        y_TH = torch.zeros_like(x_TH)
        for weight in scores_K.softmax(-1).to(x_TH.dtype).unbind():
            own = next(factors)
            enter, up, down, leave = own if base is None else (part + shared for part, shared in zip(own, base))
            act_TH = F.relu(F.linear(F.linear(x_TH, enter), up))
            y_TH = y_TH + weight * (F.linear(act_TH, down) @ leave)
        outputs.append(y_TH)
    return torch.stack(outputs)


def batched(inputs: Inputs) -> Tensor:
    """As many passages for each sample, and no token masked, are two batches: of samples, and of passages."""
    x_NTH, deltas, scores_P, base, _, most = inputs
    enter_PRH, up_PHR, down_PRH, leave_PRH = deltas.plus(base)
    samples, tokens, hidden = x_NTH.shape
    rank = enter_PRH.shape[1]
    inner_NTD = torch.bmm(x_NTH, enter_PRH.view(samples, -1, hidden).mT)
    inner_PTR = inner_NTD.view(samples, tokens, most, rank).transpose(1, 2).reshape(-1, tokens, rank)
    outer_PTR = torch.bmm(F.relu(torch.bmm(inner_PTR, up_PHR.mT)), down_PRH.mT)
    weights_P = scores_P.view(samples, most).softmax(-1).flatten()
    outer_PTR = outer_PTR * weights_P.to(outer_PTR.dtype)[:, None, None]
    outer_NTD = outer_PTR.view(samples, most, tokens, rank).transpose(1, 2).reshape(samples, tokens, -1)
    return torch.bmm(outer_NTD, leave_PRH.view(samples, -1, hidden))


CONTENDERS: dict[str, Contender] = {OURS: ours, BASELINE: loop, "bmm": batched}
