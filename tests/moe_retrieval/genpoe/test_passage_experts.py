"""Experts of passages inside transformers' models: against a loop in fp64, with a cache, and as if not there."""

import copy

import pytest
import torch
from torch import nn

from kernels import LowRankExperts
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.hypernetwork import HyperNetwork, mean_embedding
from moe_retrieval.genpoe.passage_experts import Injection, PassageExperts
from moe_retrieval.genpoe.replacement import replace_layer
from tests.moe_retrieval.genpoe.languages import CONFIGS, DECODERS, VOCAB, language
from tests.moe_retrieval.genpoe.twin import Twin

COUNTS = (2, 0, 3)
"""Passages of the samples"""


def random_experts(counts, dtype=torch.float32, hidden=16, rank=4, starts=None):
    draw = torch.Generator().manual_seed(1)

    def numbers(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    total = sum(counts)
    shapes = (rank, hidden), (hidden, rank), (rank, hidden), (rank, hidden)
    deltas, base = (LowRankExperts(*(numbers(*stack, *shape) for shape in shapes)) for stack in ((total,), ()))
    cu_passages = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
    return Injection(deltas, base, numbers(total), cu_passages, max(counts), starts)


def feed_forward_owner(model, layer):
    """-> the module and the attribute, written down for each family"""
    if hasattr(model, "transformer"):
        return model.transformer.h[layer], "mlp"
    if hasattr(model, "encoder"):
        return (model.encoder.block[layer] if layer < 2 else model.decoder.block[layer - 2]).layer[-1], "DenseReluDense"
    return model.model.layers[layer], "mlp"


def prompts(lengths, side):
    torch.manual_seed(2)
    ids = torch.randint(2, VOCAB, (len(lengths), max(lengths)))
    place = torch.arange(max(lengths))
    mask = torch.stack([place >= max(lengths) - n if side == "left" else place < n for n in lengths])
    return ids.where(mask, 0), mask.long()


def logits(model, ids, mask, **more):
    if model.config.is_encoder_decoder:
        more["decoder_input_ids"] = torch.arange(2, 6).repeat(len(ids), 1)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **more).logits


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("kind", CONFIGS)
def test_without_passages_a_model_is_what_it_was_to_the_bit(kind, layer):
    model = language(kind)
    ids, mask = prompts((7, 4, 5), "right")
    expected = logits(model, ids, mask)
    experts = replace_layer(model, layer)
    assert torch.equal(logits(model, ids, mask), expected)
    with experts.injected(random_experts((0, 0, 0))):
        assert torch.equal(logits(model, ids, mask), expected)
    with experts.injected(random_experts(COUNTS)):
        found = logits(model, ids, mask)
        torch.testing.assert_close(found[1], expected[1])
        assert (found[0] - expected[0]).abs().max() > 0.01
    assert torch.equal(logits(model, ids, mask), expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_against_a_loop_over_tokens_in_fp64(kind, side):
    """The experts run on tokens that are real and not before the start; of T5, in the encoder."""
    ids, mask = prompts((7, 4, 5), side)
    starts = torch.tensor([4, 4, 2])
    injection = random_experts(COUNTS, torch.float64, starts=starts)
    model = language(kind, torch.float64)
    twin = copy.deepcopy(model)
    owner, name = feed_forward_owner(twin, 1)
    live = mask.bool() & (torch.arange(7) >= starts[:, None])
    setattr(owner, name, Twin(getattr(owner, name), injection, live))
    expected = logits(twin, ids, mask)
    with replace_layer(model, 1).injected(injection):
        found = logits(model, ids, mask)
    real = mask.bool() if not model.config.is_encoder_decoder else torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind, layer", [*((kind, 1) for kind in DECODERS), ("t5", 1), ("t5", 3)])
def test_generating_with_a_cache_is_computing_everything_again(kind, layer):
    """Of prompts of several lengths and with several numbers of passages, none included."""
    model = language(kind, torch.float64)
    ids, mask = prompts((7, 4, 5), "left")
    starts = torch.tensor([3, 3, 2])
    experts = replace_layer(model, layer)
    how = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with experts.injected(random_experts(COUNTS, torch.float64, starts=starts)):
        cached, plain = (
            model.generate(input_ids=ids, attention_mask=mask, use_cache=use, **how) for use in (True, False)
        )
    with torch.no_grad():
        untouched = model.generate(input_ids=ids, attention_mask=mask, **how)
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(cached.logits[-1][1], untouched.logits[-1][1], rtol=1e-9, atol=1e-9)
    assert (cached.logits[-1][0] - untouched.logits[-1][0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", DECODERS)
def test_a_text_in_a_batch_is_what_it_is_alone(kind):
    """Padding on the left shifts its tokens, and neither positions nor experts."""
    model = language(kind, torch.float64)
    experts = replace_layer(model, 1)
    ids, mask = prompts((7, 4), "left")
    both = random_experts((1, 2), torch.float64, starts=torch.tensor([2, 5]))
    how = dict(max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with experts.injected(both):
        together = model.generate(input_ids=ids, attention_mask=mask, **how)
    own = LowRankExperts(*(factor[1:] for factor in both.deltas))
    alone = Injection(own, both.base, both.scores_P[1:], torch.tensor([0, 2], dtype=torch.int32), 2, torch.tensor([2]))
    with experts.injected(alone):
        single = model.generate(input_ids=ids[1:, 3:], attention_mask=mask[1:, 3:], **how)
    torch.testing.assert_close(together.logits[0][1:], single.logits[0], rtol=1e-9, atol=1e-9)
    assert single.sequences[0].tolist() == together.sequences[1, 3 : 3 + single.sequences.shape[1]].tolist()


def test_everything_of_the_model_is_frozen_and_every_parameter_learns():
    """From the first step on: an expert starts near zero and not where gradients end."""
    model = language("llama")
    experts = replace_layer(model, 1)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.manual_seed(0)
    network = HyperNetwork(16, 4, 8)
    embeddings = mean_embedding(model.get_input_embeddings(), [[3, 4, 5], [6, 7], [8]], torch.device("cpu"))
    network.standardize(embeddings)
    made = network(embeddings)
    ids, mask = prompts((5, 4), "right")
    before = logits(model, ids, mask)
    starts = torch.tensor([0, 2, 3], dtype=torch.int32)
    with experts.injected(Injection(made, network.base, torch.zeros(3), starts, 2)):
        after = model(input_ids=ids, attention_mask=mask).logits
    change = (after - before).abs().max().item()
    assert 0 < change < 0.1 * before.abs().max().item()
    after.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert (made.leave_PRH[0] - made.leave_PRH[1]).abs().max() > 0.1 * made.leave_PRH.abs().max()  # distinct
    for delta, base in zip(made[:3], network.base[:3]):
        assert delta.std() < 0.1 * base.std()


def test_a_hypernetwork_is_what_is_written():
    torch.manual_seed(0)
    network = HyperNetwork(6, 3, 5).double()
    embedding = torch.randn(4, 6, dtype=torch.float64)
    standard = (embedding - embedding.mean(0)) / (embedding - embedding.mean(0)).square().mean(0).sqrt()
    for read in (embedding, standard):
        hidden = (read @ network.read.weight.T + network.read.bias).clamp(min=0)
        flat = hidden @ network.write.weight.T
        enter, up, down, leave = network(embedding)
        torch.testing.assert_close(enter.flatten(1), flat[:, :18])
        torch.testing.assert_close(up.mT.flatten(1), flat[:, 18:36])
        torch.testing.assert_close(down.flatten(1), flat[:, 36:54])
        torch.testing.assert_close(leave.flatten(1), flat[:, 54:])
        network.standardize(embedding)


def test_a_passage_is_the_mean_of_its_input_embeddings():
    table = nn.Embedding(9, 4).to(torch.bfloat16)
    sequences = [[3, 3, 5], [], [8]]
    found = mean_embedding(table, sequences, torch.device("cpu"))
    expected = [[table.weight[token].float() for token in sequence] for sequence in sequences]
    torch.testing.assert_close(found[0], sum(expected[0]) / 3)
    assert torch.equal(found[1], torch.zeros(4))
    assert torch.equal(found[2], expected[2][0])


def test_several_layers_have_experts_of_their_own():
    model = language("llama")
    ids, mask = prompts((5, 4, 3), "right")
    first, last = replace_layer(model, 0), replace_layer(model, 2)
    injection = random_experts(COUNTS)
    with first.injected(injection):
        one = logits(model, ids, mask)
        with last.injected(injection):
            two = logits(model, ids, mask)
        assert torch.equal(logits(model, ids, mask), one)
    assert (two - one)[0].abs().max() > 0.01


def test_experts_follow_the_type_of_the_model():
    model = language("llama", torch.bfloat16)
    ids, mask = prompts((5, 4, 3), "right")
    with replace_layer(model, 1).injected(random_experts(COUNTS)):
        found = logits(model, ids, mask)
    assert found.dtype == torch.bfloat16
    wide = language("llama", torch.float32)
    with replace_layer(wide, 1).injected(random_experts(COUNTS)):
        expected = logits(wide, ids, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = logits(wide, ids, mask)
    scale = expected[mask.bool()].abs().max()
    for close in (found, mixed):
        assert (close.float() - expected)[mask.bool()].abs().max() < 0.1 * scale


def test_what_is_no_place_for_experts_is_told():
    model = language("llama")
    with pytest.raises(InputError, match="layer 3 does not exist: LlamaForCausalLM has the layers 0 to 2"):
        replace_layer(model, 3)
    with pytest.raises(InputError, match="layer -1 does not exist"):
        replace_layer(model, -1)
    replace_layer(model, 1)
    with pytest.raises(InputError, match="layer 1 has passage experts already"):
        replace_layer(model, 1)
    model.model.layers[2].mlp = nn.Linear(16, 16)
    with pytest.raises(InputError, match="layer 2 of LlamaForCausalLM has a feed-forward part of unknown kind, among "):
        replace_layer(model, 2)
    with pytest.raises(InputError, match="Linear has no list of blocks that is known: layers, h, block"):
        replace_layer(nn.Linear(2, 2), 0)
    with pytest.raises(InputError, match="rank must be at least 1, got 0"):
        HyperNetwork(16, 0, 4)


def test_experts_that_do_not_fit_are_told():
    model = language("llama")
    ids, mask = prompts((5, 4, 3), "right")
    experts = replace_layer(model, 1)
    with experts.injected(random_experts((1, 2))), pytest.raises(InputError, match="of 2 samples, and the batch has 3"):
        logits(model, ids, mask)
    with (
        experts.injected(random_experts(COUNTS, hidden=8)),
        pytest.raises(InputError, match="of another model: their hidden size is 8, and that of the layer is 16"),
    ):
        logits(model, ids, mask)
    with experts.injected(random_experts(COUNTS)), pytest.raises(InputError, match=r"attention mask of \[samples, tok"):
        logits(model, ids, mask[:, None, None, :].bool())


def test_any_feed_forward_part_may_be_wrapped():
    ffn = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)).double()
    experts = PassageExperts(ffn)
    x = torch.randn(3, 2, 16, dtype=torch.float64)
    injection = random_experts(COUNTS, torch.float64)
    with experts.injected(injection):
        torch.testing.assert_close(experts(x), Twin(ffn, injection, torch.ones(3, 2))(x))
    assert torch.equal(experts(x), ffn(x))
