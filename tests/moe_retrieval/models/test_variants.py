"""What a variant is, and how it starts."""

import pytest
import torch

import kernels
from moe_retrieval.errors import InputError
from moe_retrieval.models.encoder import EncoderShape, pack
from moe_retrieval.models.hash_experts import choose_by_hash, sequence_keys
from moe_retrieval.models.loading import build_from_scratch, build_retriever
from moe_retrieval.models.retriever import new_settings
from moe_retrieval.models.usage import Usage
from moe_retrieval.models.variants import parse_layers
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.tiny import SHAPE, VARIANTS, embed, tiny_retriever, tiny_tokenizer, token_lists

SMALL = dict(vocab_size=400, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    make_bert(**SMALL).save_pretrained(folder)
    tiny_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"sb-moe-all"}))
def test_every_variant_starts_as_its_backbone(name, backbone):
    texts = token_lists(9)
    dense = embed(build_retriever("b", backbone), texts)
    options = VARIANTS[name] | (
        {"expert_changes": {"layers": "every-2"}} if "moe" in (VARIANTS[name].get("control_of"), name) else {}
    )
    start = embed(build_retriever("b", backbone, **options), texts)
    assert ((start - dense).norm() / dense.norm()).item() < 1e-5


@pytest.mark.parametrize("options", [{"variant": "moe"}, {"variant": "random", "control_of": "moe"}], ids=str)
def test_half_of_an_expert_may_be_its_own_from_the_start(options, backbone):
    copies, own = (build_retriever("b", backbone, **options, redraw=share) for share in (0.0, 0.5))
    for name, tensor in own.state_dict().items():
        if ".experts.up_weight" in name:
            same = (tensor == copies.state_dict()[name]).all(-1)
            assert same.sum(1).tolist() == [48] * 8
            assert len({tuple(each.tolist()) for each in same}) == 8
        elif "router" not in name and ".experts." not in name:
            assert tensor.equal(copies.state_dict()[name])


@pytest.mark.parametrize("family", ["sb-moe", "moe"])
def test_the_dense_control_has_as_many_parameters(family):
    routed = build_from_scratch(SHAPE, family)
    control = build_from_scratch(SHAPE, "dense-wide", family)
    dense = build_from_scratch(SHAPE)
    added = routed.count_parameters()[0] - dense.count_parameters()[0]
    assert abs(control.count_parameters()[0] - routed.count_parameters()[0]) <= 2 * SHAPE.hidden_size + 1
    assert added > 1000
    assert control.count_parameters()[0] == control.count_parameters()[1]


def test_active_parameters_are_those_of_the_chosen_experts():
    settings = dict(num_experts=4, top_k=1, layers=(0,))
    retriever = build_from_scratch(SHAPE, "moe", expert_changes=settings)
    one_expert = 2 * SHAPE.hidden_size * SHAPE.ffn_size + SHAPE.hidden_size + SHAPE.ffn_size
    total, active = retriever.count_parameters()
    assert total - active == 3 * one_expert


def test_random_routing_is_even_fixed_and_distinct():
    keys = torch.arange(5000)
    chosen = choose_by_hash(keys, num_experts=8, top_k=2, salt=3)
    shares = torch.bincount(chosen.flatten(), minlength=8) / chosen.numel()
    assert shares.min() > 0.115
    assert shares.max() < 0.135
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert not torch.equal(chosen, choose_by_hash(keys, 8, 2, salt=4))
    assert chosen[:3].tolist() == choose_by_hash(keys[:3], 8, 2, 3).tolist()
    # A saved model relies on the very numbers.
    assert choose_by_hash(torch.tensor([101, 2023]), 8, 2, 1).tolist() == [[2, 0], [0, 2]]


def test_a_sequence_key_knows_the_order_of_the_tokens_and_not_the_batch():
    def keys(*texts):
        ids, cu_seqlens, _ = pack(texts)
        positions = torch.cat([torch.arange(len(text)) for text in texts])
        return sequence_keys(ids, positions, cu_seqlens).tolist()

    assert keys([7, 8, 9], [9, 8, 7], [], [7, 8, 9])[::3] == keys([7, 8, 9]) * 2
    assert len(set(keys([7, 8, 9], [9, 8, 7], [8, 7, 9], [7, 8]))) == 4


def test_random_has_no_router():
    retriever = tiny_retriever("random")
    assert not kernels.losses.moe_layers(retriever)
    assert not [name for name, _ in retriever.named_parameters() if "router" in name]


def test_layers_are_parsed():
    assert parse_layers("all", 3) == (0, 1, 2)
    assert parse_layers("every-3", 6) == (2, 5)
    assert parse_layers("4,0", 6) == (0, 4)
    for bad in ("6", "-1", "a", "every-0", "every-", ""):
        with pytest.raises(InputError, match="layers must"):
            parse_layers(bad, 6)


def test_settings_that_make_no_sense_are_refused(backbone):
    shape = EncoderShape()
    with pytest.raises(InputError, match="control_of goes with variant dense-wide or random, got variant 'moe'"):
        new_settings(shape, "moe", "sb-moe")
    with pytest.raises(InputError, match="variant dense has no experts; it cannot take top_k"):
        new_settings(shape, "dense", expert_changes={"top_k": 2})
    with pytest.raises(InputError, match="variant must be one of dense, sb-moe"):
        new_settings(shape, "sparse")
    with pytest.raises(InputError, match=r"query_length must be 3 to 512 .* got 600"):
        new_settings(shape, "dense", usage=Usage(query_length=600))
    with pytest.raises(InputError, match="moe: top_k must be 1 to 8"):
        build_from_scratch(SHAPE, "moe", expert_changes={"top_k": 9})
    with pytest.raises(InputError, match="renormalize must be on"):
        build_retriever("b", backbone, "moe", expert_changes={"renormalize": False})
    with pytest.raises(InputError, match="expert_size must be the backbone's 96"):
        build_retriever("b", backbone, "moe", expert_changes={"expert_size": 32})
