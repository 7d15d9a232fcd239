"""The losses against loops over queries, and the masks against sets."""

import math

import pytest
import torch

from moe_retrieval.errors import InputError
from moe_retrieval.training import optimizer as optimizers
from moe_retrieval.training.false_negatives import false_negatives
from moe_retrieval.training.losses import LOSSES, Objective
from moe_retrieval.training.step import Step
from moe_retrieval.training.targets import Targets, document_key
from tests.moe_retrieval.steps import ALONE, make_batch
from tests.moe_retrieval.tiny import tiny_retriever


def case(n=6, negatives=2, seed=0, dtype=torch.float64):
    """Few keys, so that every kind of coincidence happens."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(n, 5, generator=generator, dtype=dtype), dim=-1)
    documents = torch.nn.functional.normalize(
        torch.randn(1 + negatives, n, 5, generator=generator, dtype=dtype), dim=-1
    )
    keys = torch.randint(0, 12, (n, 1 + negatives), generator=generator)
    relevant = torch.cat([keys[:, :1], torch.randint(0, 12, (n, 2), generator=generator)], 1)
    return queries, documents, Targets(keys, relevant, [n])


def by_loops(name, queries, documents, targets, temperature=0.05, margin=0.5):
    n = len(queries)
    flat = [(documents[column, row], targets.keys_NC[row, column].item(), column, row)
            for column in range(len(documents)) for row in range(n)]  # fmt: skip
    total = 0.0
    for i in range(n):
        relevant = set(targets.relevant_NR[i].tolist())
        positive = queries[i] @ documents[0, i]
        own = [(d, key) for d, key, column, row in flat if row == i and column > 0]
        if name == "contrastive":
            terms = [(1 - positive) ** 2]
            for d, key in own:
                distance = 1 - queries[i] @ d
                terms.append(distance**2 if key in relevant else torch.relu(margin - distance) ** 2)
            total += sum(terms) / len(terms) / 2
        elif name == "triplet" and own:
            terms = [torch.relu(margin - positive + queries[i] @ d) for d, key in own if key not in relevant]
            total += sum(terms) / max(1, len(terms))
        else:
            others = [queries[i] @ d for d, key, column, row in flat if key not in relevant]
            if name == "triplet":
                total += torch.relu(margin - positive + max(others))
            else:
                scores = torch.stack([positive, *others]) / temperature
                total += scores.logsumexp(0) - scores[0]
    return total / n


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_equals_its_definition(name, negatives, seed):
    arguments = case(negatives=negatives, seed=seed)
    assert false_negatives(arguments[2], torch.arange(6)).any(), "the case masks nothing"
    queries = arguments[0].requires_grad_()
    loss = Objective(name)(*arguments)
    expected = by_loops(name, *arguments)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, queries)
    (reference,) = torch.autograd.grad(expected, queries)
    torch.testing.assert_close(grad, reference, rtol=1e-11, atol=1e-13)


def test_false_negatives_by_document_and_by_qrels():
    """Query 0 is answered by 10 and 11, query 1 by 11 (its positive) and query 2 by 10 too."""
    keys = torch.tensor([[10, 20], [11, 21], [10, 11]])
    relevant = torch.tensor([[10, 11], [11, 11], [10, 10]])
    masked = false_negatives(Targets(keys, relevant, [3]), torch.arange(3))
    # columns: the positives 10, 11, 10, then the negatives 20, 21, 11
    assert masked.int().tolist() == [[0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]


def test_the_loss_is_computed_wide_under_autocast():
    queries, documents, targets = case(dtype=torch.float32)
    expected = Objective(temperature=0.01)(queries, documents, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Objective(temperature=0.01)(queries, documents, targets), expected)


def test_a_rank_without_queries_has_a_loss_of_zero_with_a_gradient():
    queries = torch.zeros(0, 5, requires_grad=True)
    empty = Targets(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.long), [0])
    for name in ("contrastive", "infonce"):
        per_query = getattr(Objective(name), f"_{name}")(queries, torch.zeros(1, 0, 5), empty)
        per_query.sum().backward()
        assert queries.grad is not None


def test_keys_tell_documents_apart():
    assert len({document_key(str(number)) for number in range(10_000)}) == 10_000
    assert document_key("a") != document_key("A")


def test_errors_name_the_argument():
    for options, message in (
        (dict(name="ranking"), "loss must be one of infonce, triplet, contrastive; got 'ranking'"),
        (dict(temperature=0.0), "temperature must be above 0, got 0.0"),
        (dict(margin=-1.0), "margin must be above 0, got -1.0"),
    ):
        with pytest.raises(InputError, match=message):
            Objective(**options)


# The optimizer.


@pytest.mark.parametrize("variant", ["dense", "sb-moe", "moe", "dense-wide", "random-sb"])
def test_every_parameter_is_in_exactly_one_group(variant):
    retriever = tiny_retriever(variant)
    optimizer = optimizers.make_optimizer(retriever, 1e-5, 1e-3, 0.1)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in retriever.parameters())
    added = {id(p) for module in retriever.added_modules() for p in module.parameters()}
    assert bool(added) == (variant != "dense")
    for group in optimizer.param_groups:
        assert {id(p) in added for p in group["params"]} == {group["lr"] == 1e-3}
        for p in group["params"]:
            name = next(name for name, q in retriever.named_parameters() if q is p)
            assert (group["weight_decay"] == 0) == ("bias" in name or "norm" in name), name


def test_schedules():
    def rates(schedule, warmup=10):
        return [optimizers.lr_factor(step, 100, warmup, schedule) for step in range(100)]

    for schedule in optimizers.SCHEDULES:
        assert rates(schedule)[:10] == [(step + 1) / 10 for step in range(10)]
        assert all(0 < rate <= 1 for rate in rates(schedule))
    assert rates("constant")[10:] == [1.0] * 90
    assert rates("linear")[55] == 0.5
    assert rates("cosine")[55] == pytest.approx(0.5)
    assert rates("cosine")[32] == pytest.approx((1 + math.cos(math.pi * 22 / 90)) / 2)
    assert rates("linear", warmup=0)[0] == 1.0
    with pytest.raises(InputError, match="schedule must be one of linear, cosine, constant; got 'step'"):
        rates("step", warmup=0)


# fp16.


def test_an_overflow_in_fp16_changes_nothing_and_lowers_the_scale():
    retriever = tiny_retriever("sb-moe").train()
    optimizer = optimizers.make_optimizer(retriever, 1e-3, 1e-3, 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    step = Step(retriever, retriever, Objective(), optimizer, scaler, ALONE.device, "fp16", clip=1.0)
    start = {name: tensor.clone() for name, tensor in retriever.state_dict().items()}
    outcome = step([make_batch(ALONE, 0, 6, 1)])
    assert not outcome.gradient_norm.isfinite()
    assert all(torch.equal(tensor, start[name]) for name, tensor in retriever.state_dict().items())
    assert scaler.get_scale() == 2.0**39
    for number in range(40):
        outcome = step([make_batch(ALONE, number, 6, 1)])
    assert outcome.gradient_norm.isfinite()
    moved = [name for name, tensor in retriever.state_dict().items() if not torch.equal(tensor, start[name])]
    assert len(moved) == len(start)
    assert all(tensor.isfinite().all() for tensor in retriever.state_dict().values())


def test_a_gradient_that_is_not_finite_changes_nothing_in_fp32():
    retriever = tiny_retriever("dense").train()
    optimizer = optimizers.make_optimizer(retriever, 1e-3, 1e-3, 0.01)
    step = Step(retriever, retriever, Objective(), optimizer, torch.amp.GradScaler("cpu", enabled=False), ALONE.device)
    with torch.no_grad():
        retriever.encoder.norm.weight[0] = float("inf")
    start = {name: tensor.clone() for name, tensor in retriever.state_dict().items()}
    assert not step([make_batch(ALONE, 0, 6, 1)]).gradient_norm.isfinite()
    assert all(torch.equal(tensor, start[name]) for name, tensor in retriever.state_dict().items())
