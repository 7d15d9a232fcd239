"""The nomic MoE encoder against a plain forward over random weights in the checkpoint's own layout."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import kernels
from kernels.nomic import NomicConfig, NomicMoE, load_nomic_moe
from tests.kernels.oracle import relative_error

CONFIG = dict(
    model_type="nomic_bert", vocab_size=50, n_embd=24, n_layer=4, n_head=3, n_inner=20, num_experts=8, moe_top_k=2,
    moe_every_n_layers=2, type_vocab_size=1, layer_norm_epsilon=1e-5, rotary_emb_base=10000, rotary_emb_fraction=1.0,
    rotary_emb_interleaved=False, activation_function="gelu", qkv_proj_bias=True, mlp_fc1_bias=True, mlp_fc2_bias=True,
    prenorm=False, moe_normalize_expert_weights=False, expert_choice_router=False, pad_token_id=1,
)  # fmt: skip

IDS = torch.randint(2, 50, (3, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = [9, 1, 5]
MASK = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()


def checkpoint():
    """Random weights, unit-variance activations, under the names of the published checkpoint."""
    hidden, ffn, num_experts = CONFIG["n_embd"], CONFIG["n_inner"], CONFIG["num_experts"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
        "emb_ln.weight": (hidden,),
        "emb_ln.bias": (hidden,),
    }
    for index in range(CONFIG["n_layer"]):
        layer = f"encoder.layers.{index}"
        shapes |= {f"{layer}.attn.Wqkv.weight": (3 * hidden, hidden), f"{layer}.attn.Wqkv.bias": (3 * hidden,)}
        shapes |= {f"{layer}.attn.out_proj.weight": (hidden, hidden), f"{layer}.attn.out_proj.bias": (hidden,)}
        shapes |= {f"{layer}.norm{n}.{kind}": (hidden,) for n in (1, 2) for kind in ("weight", "bias")}
        if index % 2:
            shapes |= {
                f"{layer}.mlp.router.layer.weight": (num_experts, hidden),
                f"{layer}.mlp.experts.bias": (hidden,),
            }
            shapes |= {f"{layer}.mlp.experts.mlp.w{n}": (num_experts * ffn, hidden) for n in (1, 2)}
        else:
            shapes |= {f"{layer}.mlp.fc1.weight": (ffn, hidden), f"{layer}.mlp.fc1.bias": (ffn,)}
            shapes |= {f"{layer}.mlp.fc2.weight": (hidden, ffn), f"{layer}.mlp.fc2.bias": (hidden,)}
    torch.manual_seed(1)
    return {
        name: torch.randn(shape) * (1.0 if len(shape) == 1 or "embeddings" in name else hidden**-0.5)
        for name, shape in shapes.items()
    }


def plain_forward(weights, ids):
    """One text, fp64, one token and one expert at a time where it matters: [tokens, hidden]."""
    w = {name: value.double() for name, value in weights.items()}
    hidden, heads, ffn = CONFIG["n_embd"], CONFIG["n_head"], CONFIG["n_inner"]
    size = hidden // heads

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def rotate(x):  # [tokens, size] as complex numbers: dimension d and d + size / 2 are the two parts of one
        frequency = torch.tensor([CONFIG["rotary_emb_base"] ** (-2 * d / size) for d in range(size // 2)]).double()
        angle = torch.arange(len(x)).double()[:, None] * frequency
        turned = torch.complex(x[:, : size // 2], x[:, size // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "emb_ln")
    for index in range(CONFIG["n_layer"]):
        layer = f"encoder.layers.{index}"
        q, k, v = linear(x, f"{layer}.attn.Wqkv").split(hidden, -1)
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = rotate(q[:, part]) @ rotate(k[:, part]).T / math.sqrt(size)
            mixed.append(scores.softmax(-1) @ v[:, part])
        x = norm(x + linear(torch.cat(mixed, -1), f"{layer}.attn.out_proj"), f"{layer}.norm1")
        if index % 2:
            probabilities = (x @ w[f"{layer}.mlp.router.layer.weight"].T).softmax(-1)
            rows = []
            for token, shares in zip(x, probabilities):
                y = w[f"{layer}.mlp.experts.bias"]
                for expert in shares.argsort(descending=True)[: CONFIG["moe_top_k"]].tolist():
                    rows_of = slice(expert * ffn, (expert + 1) * ffn)
                    up, down = (w[f"{layer}.mlp.experts.mlp.w{n}"][rows_of] for n in (1, 2))
                    y = y + shares[expert] * (gelu(up @ token) @ down)
                rows.append(y)
            y = torch.stack(rows)
        else:
            y = linear(gelu(linear(x, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        x = norm(x + y, f"{layer}.norm2")
    return x


@pytest.fixture
def directory(tmp_path):
    save_file(checkpoint(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_output_and_gradients(directory, backend):
    model = kernels.huggingface.load_nomic_moe(directory)
    weights = {name: value.requires_grad_() for name, value in checkpoint().items()}
    hidden = model(IDS, MASK)
    expected = [plain_forward(weights, ids[:length]) for ids, length in zip(IDS, LENGTHS)]
    for got, want, length in zip(hidden, expected, LENGTHS):
        assert relative_error(got[:length], want) < 1e-5
        assert not got[length:].any()
    torch.manual_seed(2)
    grad = torch.randn(hidden.shape)
    hidden.backward(grad)
    torch.autograd.backward(expected, [g[:n].double() for g, n in zip(grad, LENGTHS)])
    grads = dict(model.named_parameters())
    for index in range(CONFIG["n_layer"]):
        layer = f"encoder.layers.{index}"
        assert relative_error(grads[f"{layer}.attn.Wqkv.weight"].grad, weights[f"{layer}.attn.Wqkv.weight"].grad) < 1e-5
        if index % 2:
            theirs = [weights[f"{layer}.mlp.{n}"].grad for n in ("router.layer.weight", "experts.bias")]
            theirs += [weights[f"{layer}.mlp.experts.mlp.w{n}"].grad.view(8, 20, 24) for n in (1, 2)]
            ours = [grads[f"{layer}.mlp.{n}"].grad for n in ("router.weight", "bias", "experts.up_weight")]
            ours.append(grads[f"{layer}.mlp.experts.down_weight"].grad.transpose(1, 2))
            assert all(relative_error(a, b) < 1e-5 for a, b in zip(ours, theirs))


def test_embedding(directory):
    model = load_nomic_moe(directory)
    expected = torch.stack([plain_forward(checkpoint(), ids[:n]).mean(0) for ids, n in zip(IDS, LENGTHS)])
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert relative_error(model.embed(IDS, MASK), expected) < 1e-5
    left = torch.stack([ids.roll(9 - n) for ids, n in zip(IDS, LENGTHS)])
    assert relative_error(model.embed(left, MASK.flip(1)), expected) < 1e-5
    empty = model.embed(IDS, torch.zeros_like(MASK))
    assert empty.equal(torch.zeros(3, 24))
    assert relative_error(model.embed(IDS[:, :5]), model.embed(IDS, torch.arange(9).expand(3, 9) < 5)) < 1e-6


def test_padding_is_not_routed(directory):
    model = load_nomic_moe(directory)
    with kernels.record_routing(model) as log:
        model(IDS, MASK)
    assert list(log) == ["encoder.layers.1.mlp", "encoder.layers.3.mlp"]
    for (routing,) in log.values():
        assert routing.counts_E.sum() == 2 * sum(LENGTHS)
        assert (routing.weights_TK.sum(1) < 0.999).any()  # not renormalised


def test_it_trains_and_loads_in_half_precision(directory):
    model = load_nomic_moe(directory).train()
    (model.embed(IDS, MASK).sum() + kernels.aux_loss(model)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    half = load_nomic_moe(directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert relative_error(half.embed(IDS, MASK), model.embed(IDS, MASK)) < 0.05


def test_without_biases_and_token_types(tmp_path):
    config = CONFIG | dict(qkv_proj_bias=False, mlp_fc1_bias=False, mlp_fc2_bias=False, type_vocab_size=0)
    gone = ("Wqkv.bias", "out_proj.bias", "fc1.bias", "fc2.bias", "token_type_embeddings.weight")
    weights = {name: torch.zeros_like(value) if name.endswith(gone) else value for name, value in checkpoint().items()}
    save_file(
        {name: value for name, value in weights.items() if not name.endswith(gone)}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert relative_error(load_nomic_moe(tmp_path)(IDS[:1])[0], plain_forward(weights, IDS[0])) < 1e-5


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(prenorm=True), "prenorm must be False, got True"),
        (dict(rotary_emb_fraction=0.5), "rotary_emb_fraction must be 1.0, got 0.5"),
        (dict(rotary_scaling_factor=2.0), "rotary_scaling_factor must be None, got 2.0"),
        (dict(moe_normalize_expert_weights=True), "moe_normalize_expert_weights must be False"),
        (dict(num_experts=0), "num_experts must be set: this is not a nomic model with experts"),
        (dict(activation_function="swiglu"), "activation_function must be one of gelu"),
    ],
)
def test_another_member_of_the_family_is_refused(directory, change, message):
    (directory / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ValueError, match=message):
        load_nomic_moe(directory)


def test_bad_input(directory):
    model = load_nomic_moe(directory)
    with pytest.raises(ValueError, match=r"input_ids must be \[texts, tokens\], got shape \(9,\)"):
        model(IDS[0])
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(3, 9\), got \(3, 8\)"):
        model(IDS, MASK[:, :8])
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_nomic_moe(directory)


def test_the_published_shape():
    """H 768, F 3072, 12 layers, 8 experts: counted without memory. The model card says 475 million parameters."""
    config = NomicConfig(vocab_size=250048, n_embd=768, n_layer=12, n_head=12, n_inner=3072, num_experts=8, moe_top_k=2)
    with torch.device("meta"):
        model = NomicMoE(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 475_292_928
    assert [i for i, layer in enumerate(model.encoder.layers) if isinstance(layer.mlp, kernels.MoE)] == [
        1,
        3,
        5,
        7,
        9,
        11,
    ]
