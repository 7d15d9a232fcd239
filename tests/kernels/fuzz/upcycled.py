"""Upcycled models of transformers: at first the dense model's output, whatever way its mask is told; padding decides
nothing."""

import torch

import kernels
from tests.kernels.oracle import relative_error
from tests.kernels.upcycled_models import MODELS, randomised


@torch.no_grad()
def check(draw, backend):
    name = draw.choice(list(MODELS))
    length, rows = 5 * draw.randint(1, 6), draw.randint(1, 4)  # one model takes tokens by fives
    ids = torch.randint(3, 60, (rows, length))
    lengths = torch.tensor([length, *(draw.randint(1, length) for _ in range(rows - 1))])
    mask = torch.arange(length) < lengths[:, None]
    told = draw.choice((torch.int64, torch.bool, torch.float32))
    settings = dict(num_experts=draw.randint(1, 6), top_k=1)
    settings["top_k"] = draw.choice((draw.randint(1, settings["num_experts"]), "all"))
    case = dict(model=name, rows=rows, lengths=lengths.tolist(), told=told, **settings)
    model = randomised(MODELS[name]())
    dense = states(model, ids, mask, told)
    upcycled = kernels.upcycle(model, **settings)
    ours = states(upcycled, ids, mask, told)
    assert relative_error(ours, dense) < 2e-5, case
    other = torch.where(mask, ids, torch.randint(3, 60, ids.shape))
    assert relative_error(states(upcycled, other, mask, told), ours) < 2e-5, case
    return case


def states(model, ids, mask, told):
    output = model(ids, attention_mask=mask.to(told))
    return output.last_hidden_state[mask] if "last_hidden_state" in output else output[0]
