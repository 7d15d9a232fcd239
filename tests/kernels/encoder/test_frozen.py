"""A frozen encoder against its modules written out in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernels
from kernels import dispatch
from kernels.activations import ACTIVATIONS
from kernels.encoder.frozen import BlockParts, CannotFreeze, EncoderParts, FeedForwardParts, FrozenEncoder

pytestmark = pytest.mark.skipif(
    "freeze" not in dispatch.pick(torch.device("cpu"), torch.float32).fusions, reason="no backend here freezes"
)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def error(result, expected):
    return ((result.double() - expected).norm() / expected.norm()).item()


def norm(size, eps=1e-5):
    module = nn.LayerNorm(size, eps)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


def linear(inputs, outputs, dtype, bias=True):
    module = nn.Linear(inputs, outputs, bias)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=inputs**-0.5 if parameter.ndim == 2 else 1.0)
    return module.to(dtype)


def experts_of(layer, dtype):
    """Weights of unit variance; the router keeps fp32."""
    for name, parameter in layer.experts.named_parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if name.endswith("weight") else 1.0)
    layer.experts.to(dtype)
    return layer.eval()


ROUTED = dict(num_experts=4, top_k=2)
"""What the MoE of a block is, where a test says no more."""


def encoder_parts(hidden, width, depth, heads, dtype, *, routed=(), moe=None, activation="gelu", bias=True):
    """Widths differ between blocks, and an eps between the two norms of one."""
    torch.manual_seed(0)
    blocks = []
    for index in range(depth):
        ffn = FeedForwardParts(linear(hidden, width + index, dtype, bias), linear(width + index, hidden, dtype, bias))
        if index in routed:
            ffn = experts_of(kernels.MoE(hidden, width + index, **{**ROUTED, **(moe or {})}), dtype)
        qkv, out = linear(hidden, 3 * hidden, dtype, bias), linear(hidden, hidden, dtype, bias)
        blocks.append(BlockParts(qkv, out, norm(hidden, 1e-5), ffn, norm(hidden, 0.5)))
    embeddings = nn.Embedding(50, hidden), nn.Embedding(500, hidden)
    return EncoderParts(*embeddings, norm(hidden, 1e-3), blocks, heads, activation)


def packed(lengths):
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return torch.randint(50, (sum(lengths),)), cu_seqlens


def wide(module):
    return copy.deepcopy(module).double()


def expected_hidden(ids, cu_seqlens, parts):
    """Hidden states of each sequence, in fp64, on torch's own attention."""
    results = []
    for sequence in ids.split(cu_seqlens.diff().tolist()):
        hidden = parts.tokens(sequence).double() + parts.positions(torch.arange(len(sequence))).double()
        hidden = wide(parts.norm)(hidden)
        for block in parts.blocks:
            q, k, v = wide(block.qkv)(hidden).unflatten(1, (3, parts.num_heads, -1)).permute(1, 2, 0, 3)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            hidden = wide(block.norm)(hidden + wide(block.out)(attended))
            if isinstance(block.ffn, kernels.MoE):
                with kernels.use_backend("eager"):
                    fed = wide(block.ffn)(hidden)
            else:
                fed = wide(block.ffn.down)(ACTIVATIONS[parts.activation][0](wide(block.ffn.up)(hidden)))
            hidden = wide(block.ffn_norm)(hidden + fed)
        results.append(hidden)
    return results


LENGTHS = [[1], [3, 0, 90, 1, 64, 0], [90] * 9 + [5, 31, 33] * 20, [500, 3, 449], [0], []]
"""The first two are one group, whose parts the threads share; the third is several; the fourth has more keys than
attention takes at a time; two have no token."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "hidden, width, heads, depth", [(24, 40, 3, 2), (32, 128, 1, 3), (20, 33, 2, 1), (15, 17, 3, 2), (1, 1, 1, 1)]
)
@torch.no_grad()
def test_dense(hidden, width, heads, depth, lengths, dtype):
    parts, (ids, cu_seqlens) = encoder_parts(hidden, width, depth, heads, dtype), packed(lengths)
    frozen = FrozenEncoder(parts, dtype=dtype)
    result, means = frozen.hidden_states(ids, cu_seqlens), frozen.embed(ids, cu_seqlens)
    assert (result.dtype, result.shape) == (torch.float32, (sum(lengths), hidden))
    assert (means.dtype, means.shape) == (torch.float32, (len(lengths), hidden))
    if sum(lengths):
        expected = expected_hidden(ids, cu_seqlens, parts)
        assert error(result, torch.cat(expected)) < depth * TOLERANCE[dtype]
        expected_means = [part.mean(0) if len(part) else part.sum(0) for part in expected]
        assert error(means, torch.stack(expected_means)) < depth * TOLERANCE[dtype]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_activations_and_no_bias(activation, bias):
    parts = encoder_parts(50, 33, 2, 5, torch.float32, activation=activation, bias=bias)
    ids, cu_seqlens = packed([33, 7, 129])
    expected = torch.cat(expected_hidden(ids, cu_seqlens, parts))
    assert error(FrozenEncoder(parts).hidden_states(ids, cu_seqlens), expected) < 4e-6


@pytest.mark.parametrize("tokens, hidden, width", [(20, 384, 1536), (129, 312, 1200)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_the_sizes_of_models(tokens, hidden, width, dtype):
    parts, (ids, cu_seqlens) = encoder_parts(hidden, width, 1, 12, dtype), packed([tokens])
    expected = torch.cat(expected_hidden(ids, cu_seqlens, parts))
    assert error(FrozenEncoder(parts, dtype=dtype).hidden_states(ids, cu_seqlens), expected) < TOLERANCE[dtype]


SETTINGS = [
    dict(top_k=1, renormalize=False),
    dict(top_k=2),
    dict(top_k=4, router="sigmoid"),
    dict(top_k=2, gate="mlp", noise=True, activation="swiglu", bias=False),
]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_experts_in_blocks(settings, lengths):
    """In fp32: what a router chooses for hidden states that were rounded otherwise may differ."""
    parts = encoder_parts(24, 40, 3, 2, torch.float32, routed=(1, 2), moe=settings)
    for block in parts.blocks[1:]:
        if block.ffn.router.balance_bias is not None:
            nn.init.normal_(block.ffn.router.balance_bias)
    ids, cu_seqlens = packed(lengths)
    result = FrozenEncoder(parts).hidden_states(ids, cu_seqlens)
    assert result.shape == (sum(lengths), 24)
    if sum(lengths):
        assert error(result, torch.cat(expected_hidden(ids, cu_seqlens, parts))) < 6e-6


@torch.no_grad()
def test_experts_in_blocks_in_bf16():
    """Every expert is chosen: no choice can flip."""
    parts = encoder_parts(24, 40, 2, 2, torch.bfloat16, routed=(0, 1), moe=dict(num_experts=2, top_k=2))
    ids, cu_seqlens = packed([90, 7, 300])
    result = FrozenEncoder(parts, dtype=torch.bfloat16).hidden_states(ids, cu_seqlens)
    assert error(result, torch.cat(expected_hidden(ids, cu_seqlens, parts))) < 2e-2


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_experts_give_the_same_bits_for_any_number_of_threads(dtype):
    """In one group and in several. (Neighbours do decide: a handful of tokens at an expert has kernels of its own.)"""
    frozen = FrozenEncoder(encoder_parts(32, 72, 2, 4, dtype, routed=(0, 1)), dtype=dtype)
    before = torch.get_num_threads()
    try:
        for lengths in ([7], [90, 1, 30, 64] * 3, [90, 1, 30, 64] * 30):
            ids, cu_seqlens = packed(lengths)
            torch.set_num_threads(1)
            whole, embeddings = frozen.hidden_states(ids, cu_seqlens), frozen.embed(ids, cu_seqlens)
            for threads in (2, 3, 7):
                torch.set_num_threads(threads)
                assert torch.equal(frozen.hidden_states(ids, cu_seqlens), whole)
                assert torch.equal(frozen.embed(ids, cu_seqlens), embeddings)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_a_sequence_has_its_bits_alone_and_in_a_batch(dtype):
    """Groups, threads and neighbours decide nothing."""
    lengths = [90, 1, 30, 64] * 30
    frozen = FrozenEncoder(encoder_parts(32, 72, 2, 4, dtype), dtype=dtype)
    ids, cu_seqlens = packed(lengths)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, embeddings = frozen.hidden_states(ids, cu_seqlens), frozen.embed(ids, cu_seqlens)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for first, last in ((0, len(lengths)), (0, 1), (5, 6), (2, 9), (8, 60)):
                rows = slice(cu_seqlens[first], cu_seqlens[last])
                starts = cu_seqlens[first : last + 1] - cu_seqlens[first]
                assert torch.equal(frozen.hidden_states(ids[rows], starts), whole[rows])
                assert torch.equal(frozen.embed(ids[rows], starts), embeddings[first:last])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sequences", [0, 1, 4, 5, 40, 600])
@pytest.mark.parametrize(
    "settings", [{}, dict(top_k=2, router="sigmoid"), dict(gate="linear", bias=False, activation="swiglu")], ids=str
)
@torch.no_grad()
def test_the_pooled_layer(settings, sequences, normalize):
    parts = encoder_parts(33, 20, 1, 3, torch.float32)
    pooled = kernels.SBMoE(33, **settings).eval()
    nn.init.normal_(pooled.experts.down_weight)
    ids, cu_seqlens = packed([3] * sequences)
    result = FrozenEncoder(parts, pooled=pooled, normalize=normalize).embed(ids, cu_seqlens)
    assert (result.shape, result.dtype) == ((sequences, 33), torch.float32)
    if sequences:
        means = torch.stack([part.mean(0) for part in expected_hidden(ids, cu_seqlens, parts)])
        with kernels.use_backend("eager"):
            expected = wide(pooled)(means)
        if normalize:
            expected = F.normalize(expected, dim=-1)
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_an_embedding_of_length_zero_stays_zero():
    parts, (ids, cu_seqlens) = encoder_parts(8, 16, 1, 2, torch.float32), packed([0, 2])
    result = FrozenEncoder(parts, normalize=True).embed(ids, cu_seqlens)
    assert torch.equal(result[0], torch.zeros(8))
    torch.testing.assert_close(result[1].norm(), torch.tensor(1.0))


@torch.no_grad()
def test_what_cannot_be_frozen_says_why():
    parts = encoder_parts(8, 16, 1, 2, torch.float32)
    with kernels.use_backend("eager"), pytest.raises(CannotFreeze, match="'eager' has no pass"):
        FrozenEncoder(parts)
    with pytest.raises(CannotFreeze, match="draws noise in training"):
        FrozenEncoder(parts, pooled=kernels.SBMoE(8))
    with pytest.raises(CannotFreeze, match="combine='normalized'"):
        FrozenEncoder(parts, pooled=kernels.SBMoE(8, combine="normalized").eval())
    with pytest.raises(CannotFreeze, match='top_k="all"'):
        FrozenEncoder(parts, pooled=kernels.SBMoE(8, top_k="all").eval())
    with pytest.raises(CannotFreeze, match="norm has no bias"):
        FrozenEncoder(parts._replace(norm=nn.LayerNorm(8, bias=False)))
    with pytest.raises(CannotFreeze, match="eager"):
        FrozenEncoder(parts, dtype=torch.float16)


def test_where_the_modules_must_run():
    """Routing that is recorded or counted, or another backend: the pass would do something else."""
    parts = encoder_parts(8, 16, 1, 2, torch.float32)
    pooled = kernels.SBMoE(8).eval()
    frozen, dense = FrozenEncoder(parts, pooled=pooled), FrozenEncoder(parts)
    assert not frozen.can_run  # with gradients the losses' sums are counted
    assert dense.can_run
    with torch.no_grad():
        assert frozen.can_run
        with kernels.record_routing(pooled):
            assert not frozen.can_run
        with kernels.collect_without_grad():
            assert not frozen.can_run
        with kernels.use_backend("eager"):
            assert not frozen.can_run
            assert not dense.can_run
        assert frozen.can_run


@torch.no_grad()
def test_what_is_replaced_afterwards_is_not_noticed():
    """As the docstring says: freeze again."""
    parts, (ids, cu_seqlens) = encoder_parts(8, 16, 1, 2, torch.float32), packed([5])
    frozen = FrozenEncoder(parts)
    before = frozen.embed(ids, cu_seqlens)
    parts.blocks[0].qkv.weight = nn.Parameter(torch.zeros(24, 8))
    parts.blocks[0] = parts.blocks[0]._replace(ffn_norm=norm(8))
    assert torch.equal(frozen.embed(ids, cu_seqlens), before)
    assert not torch.equal(FrozenEncoder(parts).embed(ids, cu_seqlens), before)


def test_parameters_that_are_not_contiguous():
    parts, (ids, cu_seqlens) = encoder_parts(8, 16, 2, 2, torch.float32, routed=(1,)), packed([5, 9])
    with torch.no_grad():
        before = FrozenEncoder(parts).embed(ids, cu_seqlens)
        for module in (parts.blocks[0].qkv, parts.blocks[0].ffn.up):
            module.weight.data = module.weight.data.mT.contiguous().mT
        experts = parts.blocks[1].ffn.experts
        experts.up_weight.data = experts.up_weight.data.mT.contiguous().mT
        assert torch.equal(FrozenEncoder(parts).embed(ids, cu_seqlens), before)


def test_parts_that_do_not_fit():
    parts = encoder_parts(8, 16, 2, 2, torch.float32)
    first, second = parts.blocks

    def fails(match, **changes):
        with pytest.raises(ValueError, match=match):
            FrozenEncoder(parts._replace(**changes))

    fails("blocks must not be empty", blocks=[])
    fails("num_heads must divide the hidden size 8, got 3", num_heads=3)
    fails("num_heads must divide the hidden size 8, got 0", num_heads=0)
    fails("activation must be one of .*; got 'geglu'", activation="geglu")
    fails(r"positions\.weight must have shape \(500, 8\), got \(500, 9\)", positions=nn.Embedding(500, 9))
    fails(r"norm\.weight must have shape \(8,\), got \(9,\)", norm=norm(9))
    fails(r"tokens\.weight must have shape \(50, 8\), got \(50, 9\)", tokens=resized(parts.tokens, "weight", 50, 9))
    fails(r"tokens\.weight must have shape \(50, 8\), got \(49, 8\)", tokens=resized(parts.tokens, "weight", 49, 8))
    fails(r"norm\.bias must have shape \(8,\), got \(7,\)", norm=resized(parts.norm, "bias", 7))
    fails(r"tokens\.embedding_dim must be at least 1, got 0", tokens=nn.Embedding(50, 0), num_heads=1)
    wrong = second._replace(ffn=FeedForwardParts(nn.Linear(8, 0), nn.Linear(0, 8)))
    fails(r"blocks\[1\]\.up\.out_features must be at least 1, got 0", blocks=[first, wrong])
    wrong = second._replace(qkv=resized(second.qkv, "bias", 8))
    fails(r"blocks\[1\]\.qkv\.bias must have shape \(24,\), got \(8,\)", blocks=[first, wrong])
    wrong = second._replace(ffn=FeedForwardParts(second.ffn.up, first.ffn.down))
    fails(r"blocks\[1\]\.down\.weight must have shape \(8, 17\), got \(8, 16\)", blocks=[first, wrong])
    wrong = second._replace(ffn=kernels.MoE(9, 16, **ROUTED).eval())
    fails("a layer of experts must take 8 features like the encoder, got 9", blocks=[first, wrong])
    with pytest.raises(ValueError, match="must take 8 features like the encoder, got 9"):
        FrozenEncoder(parts, pooled=kernels.SBMoE(9).eval())


def resized(module, name, *shape):
    """A copy with a parameter of another shape, as a pruned vocabulary leaves it."""
    module = copy.deepcopy(module)
    setattr(module, name, nn.Parameter(torch.randn(shape)))
    return module


@torch.no_grad()
def test_tokens_that_do_not_fit():
    parts, (ids, cu_seqlens) = encoder_parts(8, 16, 1, 2, torch.float32), packed([2])
    for frozen in (FrozenEncoder(parts), FrozenEncoder(parts, pooled=kernels.SBMoE(8).eval())):
        for run in (frozen.hidden_states, frozen.embed):
            with pytest.raises(ValueError, match="cu_seqlens must not decrease"):
                run(ids, torch.tensor([0, 3, 2]))
            with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 2, got 0 to 1"):
                run(ids, torch.tensor([0, 1]))
            with pytest.raises(ValueError, match="cu_seqlens must be a 1-d int tensor"):
                run(ids, torch.tensor([], dtype=torch.int32))
            with pytest.raises(ValueError, match="501 tokens, there are 500 positions"):
                run(torch.zeros(501, dtype=torch.long), torch.tensor([0, 501]))
            for wrong in (50, -1):
                with pytest.raises(RuntimeError, match="input_ids must be at least 0 and below 50"):
                    run(torch.tensor([0, wrong]), cu_seqlens)


@torch.no_grad()
def test_embeddings_that_are_not_contiguous_and_hidden_states_of_another_size():
    parts, (ids, cu_seqlens) = encoder_parts(8, 16, 1, 2, torch.float32), packed([5, 9])
    before = FrozenEncoder(parts).embed(ids, cu_seqlens)
    for module in (parts.tokens, parts.positions):
        module.weight.data = module.weight.data.mT.contiguous().mT
    frozen = FrozenEncoder(parts, pooled=kernels.SBMoE(8).eval())
    assert torch.equal(FrozenEncoder(parts).embed(ids, cu_seqlens), before)
    with pytest.raises(ValueError, match=r"hidden_TH must have shape \(14, 8\), got \(14, 6\)"):
        frozen.pool(torch.randn(14, 6), cu_seqlens)
    for wrong in (ids[None], ids.float()):
        with pytest.raises(ValueError, match="input_ids must be a 1-d int tensor"):
            frozen.embed(wrong, cu_seqlens)


@torch.no_grad()
def test_a_rule_that_changed_sends_the_call_to_the_modules():
    pooled = kernels.SBMoE(8, top_k=1).eval()
    frozen = FrozenEncoder(encoder_parts(8, 16, 1, 2, torch.float32), pooled=pooled)
    assert frozen.can_run
    pooled.top_k = 3
    assert not frozen.can_run
