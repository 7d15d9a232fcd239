"""A backend written from CONTRIBUTING.md's "Add a backend" alone: two primitives of its own, the others reference's."""

import torch

from kernels import reference
from kernels.activations import activate
from kernels.contract import PRIMITIVES

globals().update({primitive: getattr(reference, primitive) for primitive in PRIMITIVES})

name = "toy"
calls = []


def supports(device, dtype):
    return device.type == "cpu" and dtype == torch.float32


def prefers_bf16(device):
    return False


def _expert_of_rows(plan):
    """For each row in plan order its expert; E for an unassigned one."""
    rows = torch.arange(len(plan.order_S))
    return torch.searchsorted(plan.offsets_O[1:].long(), rows, right=True)


def up(x_TH, plan, experts, top_k, activation, keep_pre):
    calls.append("up")
    weight_EUH, bias_EU = experts.up
    num_experts, width, _ = weight_EUH.shape
    expert_S = _expert_of_rows(plan)
    assigned = expert_S < num_experts
    pre_SU = x_TH.new_zeros(len(expert_S), width)
    chosen = expert_S[assigned]
    token = plan.order_S[assigned].long() // top_k
    pre_SU[assigned] = torch.einsum("suh,sh->su", weight_EUH[chosen], x_TH[token])
    if bias_EU is not None:
        pre_SU[assigned] += bias_EU[chosen]
    act_SF = activate(pre_SU, activation)
    act_SF[~assigned] = 0
    return act_SF, pre_SU if keep_pre else None


def down(act_SF, plan, weights_TK, experts, residual_TH, dtype):
    calls.append("down")
    weight_EHF, bias_EH = experts.down
    num_experts, hidden, _ = weight_EHF.shape
    expert_S = _expert_of_rows(plan)
    assigned = expert_S < num_experts
    chosen, slot = expert_S[assigned], plan.order_S[assigned].long()
    y_NH = torch.einsum("shf,sf->sh", weight_EHF[chosen], act_SF[assigned])
    if bias_EH is not None:
        y_NH = y_NH + bias_EH[chosen]
    y_NH = y_NH * weights_TK.flatten()[slot, None]
    if residual_TH is not None:
        y_NH = y_NH + residual_TH[slot]
    rows_SH = act_SF.new_zeros(len(expert_S), hidden, dtype=dtype)
    rows_SH[slot] = y_NH.to(dtype)
    return rows_SH
