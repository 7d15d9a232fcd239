"""How alike experts are, against what is computed expert by expert."""

import numpy as np
import pytest
import torch

import kernels
from moe_retrieval.analysis.redundancy import Sample, describe_redundancy
from moe_retrieval.training.watch import expert_likeness
from tests.moe_retrieval.by_hand import output_of


def cosine(a, b):
    return (a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = kernels.MoE(10, 16, num_experts=4, top_k=2)
    with torch.no_grad():
        for stack in layer.experts.parameters():
            stack[2] = stack[1]  # the same
        for name in ("down_weight", "down_bias"):
            stack = getattr(layer.experts, name)
            stack[3] = 0.0  # nothing
    return layer


def test_outputs_and_weights_of_every_pair(layer):
    x = torch.randn(30, 10)
    found = describe_redundancy("ffn", layer, x)
    with torch.no_grad():
        outputs = [output_of(layer, expert, x).numpy() for expert in range(4)]
    stacks = list(layer.experts.parameters())
    weights = [np.concatenate([stack[expert].detach().numpy().ravel() for stack in stacks]) for expert in range(4)]
    for a in range(4):
        for b in range(4):
            makes_something = 3 not in (a, b)
            expected = np.mean([cosine(*pair) for pair in zip(outputs[a], outputs[b])]) if makes_something else 0.0
            assert found["outputs"][a][b] == pytest.approx(expected, abs=1e-5)
            assert found["weights"][a][b] == pytest.approx(cosine(weights[a], weights[b]), abs=1e-6)
    assert found["outputs"][1][2] == pytest.approx(1, abs=1e-6)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    assert found["mean_output_cosine"] == pytest.approx(np.mean([found["outputs"][a][b] for a, b in pairs]))
    assert found["mean_weight_cosine"] == pytest.approx(np.mean([found["weights"][a][b] for a, b in pairs]))
    assert (found["layer"], found["inputs"]) == ("ffn", 30)


def test_where_all_experts_make_something_the_mean_is_what_training_watches():
    torch.manual_seed(1)
    layer, x = kernels.MoE(10, 16, num_experts=5, top_k=2), torch.randn(30, 10)
    found = describe_redundancy("ffn", layer, x)["mean_output_cosine"]
    assert found == pytest.approx(expert_likeness(layer, x), abs=1e-5)


def test_a_single_expert_is_like_no_other():
    found = describe_redundancy("ffn", kernels.MoE(10, 16, num_experts=1, top_k=1), torch.randn(3, 10))
    assert (found["mean_output_cosine"], found["mean_weight_cosine"]) == (None, None)


def test_a_sample_is_even_over_all_that_came():
    def drawn():
        sample = Sample(400)
        for start, stop in ((0, 10), (10, 300), (300, 301), (301, 4000)):
            sample.add(torch.arange(float(start), stop)[:, None])
        return sample.rows_SH[:, 0]

    rows = drawn()
    assert len(rows) == 400 == len(rows.unique())
    quarters = torch.histc(rows, 4, 0, 4000)
    assert (quarters - 100).abs().max() < 35  # four standard deviations
    assert torch.equal(rows, drawn())
    few = Sample(400)
    few.add(torch.ones(3, 2))
    assert few.rows_SH.shape == (3, 2)
