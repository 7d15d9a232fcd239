"""The fused parts of an encoder against the modules themselves, in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernels

pytestmark = pytest.mark.skipif(
    not kernels.can_fuse(torch.device("cpu"), torch.float32), reason="no backend here fuses on a CPU"
)

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def error(result, expected):
    return ((result.double() - expected).norm() / expected.norm()).item()


def norm(size):
    module = nn.LayerNorm(size, 1e-5)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


def linear(inputs, outputs, dtype, bias=True):
    module = nn.Linear(inputs, outputs, bias)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=inputs**-0.5 if parameter.ndim == 2 else 1.0)
    return module.to(dtype)


def parts(hidden, width, dtype, bias=True):
    torch.manual_seed(0)
    return dict(
        out=linear(hidden, hidden, dtype, bias),
        norm=norm(hidden),
        up=linear(hidden, width, dtype, bias),
        down=linear(width, hidden, dtype, bias),
        ffn_norm=norm(hidden),
        following=linear(hidden, 3 * hidden, dtype, bias),
    )


def expected_block(x, y, activation, out=None, norm=None, up=None, down=None, ffn_norm=None, following=None):
    out, norm, up, down, ffn_norm, following = (
        part and copy.deepcopy(part).double() for part in (out, norm, up, down, ffn_norm, following)
    )
    hidden = x.double()
    if norm:
        hidden = norm(hidden + (out(y.double()) if out else y.double()))
    if up:
        hidden = ffn_norm(hidden + down(ACTIVATIONS[activation](up(hidden))))
    return hidden, following and following(hidden)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "tokens, hidden, width",
    [(1, 16, 32), (5, 1, 1), (20, 384, 1536), (33, 50, 33), (129, 312, 1200), (300, 17, 115), (0, 16, 32)],
)
@torch.no_grad()
def test_a_block(tokens, hidden, width, dtype):
    modules = parts(hidden, width, dtype)
    x, y = torch.randn(tokens, hidden), torch.randn(tokens, hidden, dtype=dtype)
    result, following = kernels.fused_block(x, y, **modules, dtype=dtype)
    assert (result.dtype, following.dtype) == (torch.float32, dtype)
    assert (result.shape, following.shape) == ((tokens, hidden), (tokens, 3 * hidden))
    if tokens:
        first, second = expected_block(x, y, "gelu", **modules)
        assert error(result, first) < TOLERANCE[dtype]
        assert error(following, second) < TOLERANCE[dtype]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_activations_and_biases(activation, bias):
    modules = parts(24, 56, torch.float32, bias)
    x, y = torch.randn(40, 24), torch.randn(40, 24)
    result, following = kernels.fused_block(x, y, **modules, activation=activation)
    first, second = expected_block(x, y, activation, **modules)
    assert error(result, first) < 2e-6
    assert error(following, second) < 2e-6


@pytest.mark.parametrize(
    "names", [("following",), ("norm",), ("out", "norm"), ("norm", "following"), ("up", "down", "ffn_norm")]
)
@torch.no_grad()
def test_parts_can_be_left_out(names):
    modules = {name: part for name, part in parts(40, 72, torch.float32).items() if name in names}
    x, y = torch.randn(70, 40), torch.randn(70, 40) if "norm" in names else None
    result, following = kernels.fused_block(x, y, **modules)
    first, second = expected_block(x, y, "gelu", **modules)
    assert error(result, first) < 2e-6
    assert (following is None) == (second is None)
    if second is not None:
        assert error(following, second) < 2e-6


@pytest.mark.parametrize("eps, ffn_eps", [(1e-5, 1.0), (1.0, 1e-5)])
@torch.no_grad()
def test_each_norm_has_its_own_eps(eps, ffn_eps):
    modules = parts(24, 56, torch.float32)
    modules["norm"].eps, modules["ffn_norm"].eps = eps, ffn_eps
    x, y = torch.randn(40, 24), torch.randn(40, 24)
    for result, expected in zip(kernels.fused_block(x, y, **modules), expected_block(x, y, "gelu", **modules)):
        assert error(result, expected) < 2e-6


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_a_token_has_its_bits_alone_and_in_a_batch(dtype):
    """Tiles, threads and neighbours decide nothing."""
    modules = parts(48, 100, dtype)
    x, y = torch.randn(500, 48), torch.randn(500, 48, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernels.fused_block(x, y, **modules, dtype=dtype))
            for rows in (slice(0, 1), slice(7, 40), slice(100, 300)):
                results.append(kernels.fused_block(x[rows], y[rows], **modules, dtype=dtype))
                for part, whole in zip(results.pop(), results[0]):
                    assert torch.equal(part, whole[rows])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0]))
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_where_the_result_goes():
    modules = parts(16, 32, torch.float32)
    x, y, everything = torch.randn(3, 16), torch.randn(3, 16), torch.full((9, 16), 7.0)
    result, _ = kernels.fused_block(x, y, **modules, into=everything[3:6])
    assert torch.equal(everything[3:6], kernels.fused_block(x, y, **modules)[0])
    assert result.data_ptr() == everything[3:6].data_ptr()
    assert (everything[:3] == 7).all()
    assert (everything[6:] == 7).all()


@pytest.mark.parametrize("hidden", [1, 7, 16, 33, 384])
@torch.no_grad()
def test_embeddings_and_means(hidden):
    torch.manual_seed(0)
    tokens, positions, module = nn.Embedding(50, hidden), nn.Embedding(90, hidden), norm(hidden)
    lengths = torch.tensor([3, 0, 90, 1, 64, 0])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).int()
    ids = torch.randint(50, (int(lengths.sum()),))
    places = torch.cat([torch.arange(length) for length in lengths])
    result = kernels.fused_embedding(ids, cu_seqlens, tokens, positions, module)
    expected = copy.deepcopy(module).double()(tokens(ids).double() + positions(places).double())
    assert error(result, expected) < 1e-6
    means = kernels.fused_pooling(result, cu_seqlens)
    for mean, part in zip(means, result.double().split(lengths.tolist())):
        expected_mean = part.mean(0) if len(part) else torch.zeros(hidden, dtype=torch.float64)
        torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-6)


def dense_encoder(hidden, width, depth, heads, dtype):
    """Its blocks' widths differ."""
    torch.manual_seed(0)
    blocks = []
    for index in range(depth):
        modules = parts(hidden, width + index, dtype)
        modules["qkv"] = modules.pop("following")
        blocks.append(kernels.DenseBlock(**modules))
    return kernels.DenseEncoder(nn.Embedding(50, hidden), nn.Embedding(500, hidden), norm(hidden), blocks, heads)


def packed(lengths):
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
    return torch.randint(50, (sum(lengths),)), cu_seqlens


def expected_encoder(ids, cu_seqlens, encoder):
    """Hidden states of each sequence, in fp64, on torch's own attention."""
    results = []
    for sequence in ids.split(cu_seqlens.diff().tolist()):
        hidden = encoder.tokens(sequence).double() + encoder.positions(torch.arange(len(sequence))).double()
        hidden = copy.deepcopy(encoder.norm).double()(hidden)
        for block in encoder.blocks:
            block = kernels.DenseBlock(*(copy.deepcopy(part).double() for part in block))
            q, k, v = block.qkv(hidden).unflatten(1, (3, encoder.num_heads, -1)).permute(1, 2, 0, 3)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            hidden = block.norm(hidden + block.out(attended))
            hidden = block.ffn_norm(hidden + block.down(F.gelu(block.up(hidden))))
        results.append(hidden)
    return results


LENGTHS = [[1], [3, 0, 90, 1, 64, 0], [90] * 9 + [5, 31, 33] * 20, [500, 3, 449], [0], []]
"""The first two are one group, whose parts the threads share; the third is several; the fourth has more keys than
attention takes at a time; two have no token."""


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(
    "hidden, width, heads, depth", [(24, 40, 3, 2), (32, 128, 1, 3), (20, 33, 2, 1), (15, 17, 3, 2)]
)
@torch.no_grad()
def test_an_encoder(hidden, width, heads, depth, lengths, dtype):
    encoder, (ids, cu_seqlens) = dense_encoder(hidden, width, depth, heads, dtype), packed(lengths)
    result = kernels.fused_encoder(ids, cu_seqlens, encoder, dtype=dtype)
    assert (result.dtype, result.shape) == (torch.float32, (sum(lengths), hidden))
    if sum(lengths):
        expected = torch.cat(expected_encoder(ids, cu_seqlens, encoder))
        assert error(result, expected) < depth * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("has_block, normalize", [(False, False), (True, False), (True, True)])
@torch.no_grad()
def test_a_retriever(has_block, normalize, lengths, dtype):
    encoder, (ids, cu_seqlens) = dense_encoder(24, 40, 2, 3, dtype), packed(lengths)
    block = kernels.SBMoE(24, top_k=2).eval() if has_block else None
    if block:
        nn.init.normal_(block.experts.down_weight)
    result = kernels.fused_retriever(ids, cu_seqlens, encoder, block, normalize=normalize, dtype=dtype)
    hidden = kernels.fused_encoder(ids, cu_seqlens, encoder, dtype=dtype)
    assert torch.equal(result, kernels.fused_pooling(hidden, cu_seqlens, block, normalize=normalize))
    assert (result.dtype, result.shape) == (torch.float32, (len(lengths), 24))
    if sum(lengths) and not has_block:
        expected = [part.mean(0) if len(part) else part.sum(0) for part in expected_encoder(ids, cu_seqlens, encoder)]
        assert error(result, torch.stack(expected)) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_a_sequence_has_its_bits_alone_and_in_a_batch(dtype):
    """Groups, threads and neighbours decide nothing."""
    lengths = [90, 1, 30, 64] * 30
    encoder, (ids, cu_seqlens) = dense_encoder(32, 72, 2, 4, dtype), packed(lengths)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = kernels.fused_encoder(ids, cu_seqlens, encoder, dtype=dtype)
        embeddings = kernels.fused_retriever(ids, cu_seqlens, encoder, dtype=dtype)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for first, last in ((0, len(lengths)), (0, 1), (5, 6), (2, 9), (8, 60)):
                rows = slice(cu_seqlens[first], cu_seqlens[last])
                starts = cu_seqlens[first : last + 1] - cu_seqlens[first]
                assert torch.equal(kernels.fused_encoder(ids[rows], starts, encoder, dtype=dtype), whole[rows])
                part = kernels.fused_retriever(ids[rows], starts, encoder, dtype=dtype)
                assert torch.equal(part, embeddings[first:last])
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_an_encoder_that_does_not_fit():
    encoder = dense_encoder(8, 16, 2, 2, torch.float32)
    ids, cu_seqlens = packed([2])

    def run(**changes):
        kernels.fused_encoder(ids, cu_seqlens, encoder._replace(**changes))

    with pytest.raises(ValueError, match="blocks must not be empty"):
        run(blocks=[])
    with pytest.raises(ValueError, match="num_heads must divide the hidden size 8, got 3"):
        run(num_heads=3)
    with pytest.raises(ValueError, match="gated"):
        run(activation="geglu")
    with pytest.raises(RuntimeError, match=r"blocks\[1\]\.down\.weight must have shape \[8, 17\], got \[8, 16\]"):
        run(blocks=[encoder.blocks[0], encoder.blocks[1]._replace(down=encoder.blocks[0].down)])
    with kernels.use_backend("eager"), pytest.raises(RuntimeError, match="ask can_fuse"):
        run()
    with pytest.raises(ValueError, match="cu_seqlens must not decrease"):
        kernels.fused_encoder(ids, torch.tensor([0, 3, 2]), encoder)
    with pytest.raises(RuntimeError, match="x has 8 columns, the pooled layer takes 9"):
        kernels.fused_retriever(ids, cu_seqlens, encoder, kernels.SBMoE(9).eval())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sequences", [0, 1, 4, 5, 40, 600])
@pytest.mark.parametrize(
    "settings", [{}, dict(top_k=2, router="sigmoid"), dict(gate="linear", bias=False, activation="swiglu")]
)
@torch.no_grad()
def test_what_follows_an_encoder(settings, sequences, normalize):
    torch.manual_seed(0)
    block = kernels.SBMoE(33, **settings).eval()
    nn.init.normal_(block.experts.down_weight)
    cu_seqlens = torch.arange(sequences + 1, dtype=torch.int32) * 3
    x = torch.randn(3 * sequences, 33)
    result = kernels.fused_pooling(x, cu_seqlens, block, normalize=normalize)
    with kernels.use_backend("eager"):
        expected = copy.deepcopy(block).double()(x.double().view(sequences, 3, 33).mean(1))
    if normalize:
        expected = F.normalize(expected, dim=-1)
    assert (result.shape, result.dtype) == (expected.shape, torch.float32)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_more_than_a_pooling():
    """None, so that the caller runs the modules."""
    x, cu_seqlens, block = torch.randn(4, 8), torch.tensor([0, 4]), kernels.SBMoE(8).eval()
    encoder, (ids, starts) = dense_encoder(8, 16, 1, 2, torch.float32), packed([3])
    assert kernels.fused_pooling(x, cu_seqlens, block) is None  # with gradients the losses' sums are counted
    assert kernels.fused_retriever(ids, starts, encoder, block) is None
    with torch.no_grad():
        assert kernels.fused_pooling(x, cu_seqlens, block) is not None
        assert kernels.fused_retriever(ids, starts, encoder, block) is not None
        assert kernels.fused_pooling(x, cu_seqlens, kernels.SBMoE(8)) is None
        assert kernels.fused_pooling(x, cu_seqlens, kernels.SBMoE(8, combine="normalized").eval()) is None
        assert kernels.fused_pooling(x, cu_seqlens, kernels.SBMoE(8, top_k="all").eval()) is None
        with kernels.record_routing(block):
            assert kernels.fused_pooling(x, cu_seqlens, block) is None
        with kernels.collect_without_grad():
            assert kernels.fused_pooling(x, cu_seqlens, block) is None
        with torch.autocast("cpu", torch.float16):
            assert kernels.fused_pooling(x, cu_seqlens, block) is None


@torch.no_grad()
def test_a_pooling_that_does_not_fit():
    x = torch.randn(4, 8)
    for bounds in ([0, 5], [1, 4], [0, 3, 2, 4]):
        with pytest.raises(RuntimeError, match="cu_seqlens must go from 0 to 4 and not decrease"):
            kernels.fused_pooling(x, torch.tensor(bounds))
    with pytest.raises(RuntimeError, match="x has 8 columns, the pooled layer takes 9"):
        kernels.fused_pooling(x, torch.tensor([0, 4]), kernels.SBMoE(9).eval())
    modules = parts(8, 16, torch.float32) | dict(norm=nn.LayerNorm(8, bias=False))
    with pytest.raises(RuntimeError, match="a norm must have a bias"):
        kernels.fused_block(x, x, **modules)


@torch.no_grad()
def test_a_length_of_zero():
    result = kernels.fused_pooling(torch.zeros(2, 5), torch.tensor([0, 2]), normalize=True)
    assert torch.equal(result, torch.zeros(1, 5))


@torch.no_grad()
def test_what_does_not_fit():
    modules, x = parts(16, 32, torch.float32), torch.randn(3, 16)
    with pytest.raises(ValueError, match="y and norm go together"):
        kernels.fused_block(x, norm=modules["norm"])
    with pytest.raises(ValueError, match="up, down and ffn_norm go together"):
        kernels.fused_block(x, up=modules["up"])
    with pytest.raises(ValueError, match=r"following\.weight"):
        kernels.fused_block(torch.randn(3, 8), following=modules["following"])
    with pytest.raises(ValueError, match="gated"):
        kernels.fused_block(x, following=modules["following"], activation="swiglu")
    with pytest.raises(ValueError, match="into"):
        kernels.fused_block(x, x, **modules, into=torch.empty(2, 16))
    with kernels.use_backend("eager"), pytest.raises(RuntimeError, match="ask can_fuse"):
        kernels.fused_block(x, following=modules["following"])
    with pytest.raises(ValueError, match="5 tokens, there are 4 positions"):
        kernels.fused_embedding(
            torch.zeros(5, dtype=torch.long), torch.tensor([0, 5]), nn.Embedding(2, 4), nn.Embedding(4, 4), norm(4)
        )
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 2, got 0 to 1"):
        kernels.fused_embedding(
            torch.tensor([0, 1]), torch.tensor([0, 1]), nn.Embedding(2, 4), nn.Embedding(4, 4), norm(4)
        )
    with pytest.raises(RuntimeError, match="input_ids must be at least 0 and below 2"):
        kernels.fused_embedding(
            torch.tensor([2]), torch.tensor([0, 1]), nn.Embedding(2, 4), nn.Embedding(4, 4), norm(4)
        )
