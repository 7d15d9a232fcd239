"""record_routing logs what the layers decided."""

import torch

import kernels


def test_log_by_name_and_forward():
    model = torch.nn.ModuleDict({"a": kernels.MoE(4, 4, num_experts=3, top_k=2), "b": kernels.SBMoE(4, top_k="all")})
    x, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with kernels.record_routing(model) as log:
        model["a"](x, mask)
        model["a"](x)
        model["b"](x, mask)
        with kernels.record_routing(model["a"]) as inner:
            model["a"](x)
    model["a"](x)
    assert {name: len(routings) for name, routings in log.items()} == {"a": 2, "b": 1}
    assert len(inner[""]) == 1
    first = log["a"][0]
    assert first.indices_TK.shape == first.weights_TK.shape == (10, 2)
    assert (first.indices_TK[3:5] == -1).all()
    assert first.counts_E.sum() == 16
    assert log["b"][0].indices_TK[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert log["b"][0].counts_E.tolist() == [8] * 6
