"""Upcycled models against the dense ones: the same output at the start, padding that is not routed, a life after."""

import copy

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

import kernels
from kernels import upcycling
from kernels.layers import Experts
from tests.kernels.oracle import relative_error
from tests.kernels.upcycled_models import (
    BART,
    BERT,
    IDS,
    LED,
    MASK,
    MODELS,
    Block,
    Encoder,
    bert,
    hidden_states,
    randomised,
)

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_step_0_equals_the_dense_model(build):
    model = randomised(build())
    dense = hidden_states(model)
    assert kernels.upcycle(model, num_experts=5, top_k=2) is model
    assert sum(isinstance(module, kernels.MoE) for module in model.modules()) == 4
    assert relative_error(hidden_states(model), dense) < 1e-5


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_share_of_the_inner_units_is_drawn_like_those_that_it_takes_the_place_of(activation):
    torch.manual_seed(0)
    experts = Experts(64, 100, 3, activation, bias=True)
    with torch.no_grad():
        for parameter in experts.parameters():  # copies, with a mean and a deviation that nothing else has
            parameter.copy_((0.3 + 0.05 * torch.randn(parameter.shape[1:])).expand_as(parameter))
    before = copy.deepcopy(experts)
    upcycling.redraw_units(experts, 0.4)
    halves = experts.up_weight.shape[1] // 100
    up, old_up = (each.up_weight.view(3, halves, 100, 64) for each in (experts, before))
    changed = (up != old_up).all(-1)
    assert changed.equal((up != old_up).any(-1))
    assert changed.equal((experts.up_bias != before.up_bias).view(3, halves, 100))
    units = (experts.down_weight != before.down_weight).all(1)
    assert units.equal((experts.down_weight != before.down_weight).any(1))
    assert changed.equal(units[:, None].expand_as(changed))
    assert units.sum(1).tolist() == [40] * 3
    assert not units[0].equal(units[1])
    assert experts.down_bias.equal(before.down_bias)
    for drawn in (up[changed], experts.down_weight.transpose(1, 2)[units]):
        assert drawn.mean().item() == pytest.approx(0.3, abs=0.003)
        assert drawn.std().item() == pytest.approx(0.05, abs=0.003)


def test_a_model_whose_experts_differ_from_the_start_is_saved_and_loaded_as_it_is(tmp_path):
    model = randomised(bert())
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=5, top_k=2, redraw=0.5)
    assert relative_error(hidden_states(model), dense) > 1e-3
    model.save_pretrained(tmp_path)
    loaded = upcycling.from_pretrained(type(model), tmp_path).eval()
    assert hidden_states(loaded).equal(hidden_states(model.eval()))
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="redraw must be a share of the inner units, from 0 to 1; got"):
            kernels.upcycle(bert(), num_experts=5, top_k=2, redraw=share)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_padding_is_not_routed(build):
    model = kernels.upcycle(randomised(build()), num_experts=5, top_k=2)
    with kernels.record_routing(model) as log:
        hidden_states(model)
    assert len(log) == 4
    for routings in log.values():  # one, or one for each chunk of the sequence
        indices = torch.cat([routing.indices_TK.view(3, -1, 2) for routing in routings], 1)
        assert (indices >= 0).all(-1).equal(MASK.bool())


def test_layers_that_share_one_block():
    config = transformers.AlbertConfig(**BERT, embedding_size=24)
    model = randomised(transformers.AlbertModel(config))
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=5, top_k=2)
    with kernels.record_routing(model) as log:
        assert relative_error(hidden_states(model), dense) < 1e-5
    [routings] = log.values()
    assert [int(routing.counts_E.sum()) for routing in routings] == [42] * 4


def test_the_whole_model_in_a_pickle(tmp_path):
    model = kernels.upcycle(randomised(bert()), num_experts=3, top_k=2)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    with kernels.record_routing(again) as log:
        assert hidden_states(again).equal(hidden_states(model))
    assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())


def test_the_output_forgets_the_dense_weights():
    """The experts compute: nothing of the old pair is left in the way."""
    model = kernels.upcycle(randomised(bert()), num_experts=3, top_k=2, layers=[0])
    before = hidden_states(model)
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.experts.down_weight.zero_()
    assert relative_error(hidden_states(model), before) > 0.01
    assert not [name for name, _ in model.encoder.layer[0].named_parameters() if name.startswith("output.dense")]


def test_layers():
    def moe_at(layers, **kwargs):
        model = kernels.upcycle(bert(), num_experts=2, top_k=1, layers=layers, **kwargs)
        return [i for i, layer in enumerate(model.encoder.layer) if isinstance(layer.intermediate.dense, kernels.MoE)]

    assert moe_at(None) == [0, 1, 2, 3]
    assert moe_at("every-2") == [1, 3]
    assert moe_at("every-4") == [3]
    assert moe_at([2, 0]) == [0, 2]
    assert moe_at([-1]) == [3]
    assert moe_at(range(1, 3), ffn=("intermediate.dense", "output.dense")) == [1, 2]


def test_a_second_call_counts_the_layers_as_the_first_did():
    model = randomised(bert())
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=2, top_k=1, layers=[1])
    kernels.upcycle(model, num_experts=4, top_k=2, layers=[3])
    assert [layer.num_experts for layer in model.modules() if isinstance(layer, kernels.MoE)] == [2, 4]
    assert relative_error(hidden_states(model), dense) < 1e-5
    with pytest.raises(ValueError, match=r"encoder\.layer\.1 is upcycled already"):
        kernels.upcycle(model, num_experts=2, top_k=1, layers=[1])


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=2, router="softmax", renormalize=True),
        dict(top_k=2, router="topk_softmax", renormalize=False),
        dict(top_k=2, router="sigmoid", renormalize=True),
        dict(top_k="all", renormalize=False),
        dict(top_k=3, renormalize=False),
        dict(top_k=1),
        dict(top_k=2, gate="mlp", noise=True, balance_coef=0.1),
    ],
)
def test_weights_that_sum_to_1(settings):
    model = randomised(bert())
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=3, **settings)
    assert relative_error(hidden_states(model), dense) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=2, renormalize=False),
        dict(top_k=2, router="sigmoid", renormalize=False),
        dict(top_k="all", router="sigmoid", renormalize=False),
    ],
)
def test_weights_that_do_not_sum_to_1_raise(settings):
    with pytest.raises(ValueError, match=r"do not sum to 1 .*use renormalize=True"):
        kernels.upcycle(bert(), num_experts=3, **settings)


@pytest.mark.parametrize(
    "settings,message",
    [
        (dict(layers=[4]), "layers must be indices below 4"),
        (dict(layers=[0, -4]), "none twice"),
        (dict(layers=[]), "at least one"),
        (dict(layers="every-5"), "N from 1 to 4"),
        (dict(layers="even"), '"every-N"'),
        (dict(ffn=("mlp.up", "mlp.down")), "has no block with the Linears 'mlp.up' and 'mlp.down'"),
        (dict(ffn=("intermediate.dense", "attention.output.dense")), "the second Linear must undo the first"),
        (dict(activation="relu"), "activation='relu', but encoder.layer.0 has activation='gelu'"),
        (dict(bias=False), "bias=False, but"),
        (dict(num_experts=0), "num_experts must be at least 1"),
        (dict(top_k=3), "top_k must be 1 to 2"),
        (dict(router="hash"), "router must be one of"),
    ],
)
def test_what_cannot_be_done_is_said(settings, message):
    model = bert()
    with pytest.raises(ValueError, match=message):
        kernels.upcycle(model, **dict(num_experts=2, top_k=1) | settings)
    assert not any(isinstance(module, kernels.MoE) for module in model.modules())


def test_an_activation_that_experts_do_not_have_raises():
    with pytest.raises(ValueError, match="is none of gelu, gelu_tanh, relu, silu"):
        kernels.upcycle(bert(hidden_act="quick_gelu"), num_experts=2, top_k=1)


def test_a_model_without_known_names_raises():
    with pytest.raises(ValueError, match=r"no feed-forward part was found in Sequential: pass ffn="):
        kernels.upcycle(nn.Sequential(nn.Linear(4, 4)), num_experts=2, top_k=1)


def test_any_model_whose_linears_are_named():
    torch.manual_seed(0)
    model, x = Encoder(), torch.randn(3, 10, 12)
    dense = model(x)
    kernels.upcycle(model, num_experts=4, top_k=2, layers="every-2", ffn=("expand", "contract"))
    with kernels.record_routing(model) as log:
        assert relative_error(model(x, MASK)[MASK.bool()], dense[MASK.bool()]) < 1e-5
        model(x, attention_mask=MASK)
        model(x)
    assert list(log) == ["blocks.1.expand"]
    assert [int(routing.counts_E.sum()) for routing in log["blocks.1.expand"]] == [42, 42, 60]


def t5(**settings):
    config = dict(vocab_size=60, d_model=24, d_ff=40, d_kv=12, num_layers=4, num_heads=2, dropout_rate=0.0)
    return transformers.T5EncoderModel(transformers.T5Config(**config | settings))


LLAMA = dict(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)

NAMED = {
    "t5": (t5, ("wi", "wo")),
    "t5, from the block": (t5, ("layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo")),
    "xlm": (
        lambda: transformers.XLMModel(transformers.XLMConfig(vocab_size=60, emb_dim=24, n_layers=4, n_heads=2)),
        ("lin1", "lin2"),
    ),
    "squeezed, like phi": (
        lambda: transformers.PhiModel(transformers.PhiConfig(**LLAMA | {"num_hidden_layers": 4})),
        ("mlp.fc1", "mlp.fc2"),
    ),
}


@pytest.mark.parametrize("build,ffn", NAMED.values(), ids=NAMED)
def test_models_whose_linears_are_named(build, ffn):
    model = randomised(build())
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=3, top_k=2, ffn=ffn)
    with kernels.record_routing(model) as log:
        assert relative_error(hidden_states(model), dense) < 1e-5
    assert len(log) == 4
    assert model.train()(IDS, MASK)[0].isfinite().all()
    if "xlm" not in str(type(model)):
        assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())


class Normed(Block):
    def forward(self, x):
        return x + self.contract(F.layer_norm(self.activation(self.expand(x)), (20,)))


REFUSED = {
    "llama": (
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)),
        ("mlp.up_proj", "mlp.down_proj"),
        "more between 'mlp.up_proj' and 'mlp.down_proj' than the activation",
    ),
    "llama, the gate": (
        lambda: transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)),
        ("mlp.gate_proj", "mlp.down_proj"),
        "more between 'mlp.gate_proj' and 'mlp.down_proj' than the activation",
    ),
    "gated t5": (lambda: t5(feed_forward_proj="gated-gelu"), ("wi_0", "wo"), "more between 'wi_0' and 'wo' than"),
    "a norm": (Normed, ("expand", "contract"), "more between 'expand' and 'contract' than the activation"),
    "a norm, in a model": (
        lambda: transformers.Kosmos2ForConditionalGeneration._from_config(
            transformers.Kosmos2Config(
                text_config=dict(vocab_size=60, embed_dim=24, layers=1, ffn_dim=40, attention_heads=2),
                vision_config=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
                                   hidden_act="gelu"),
            )
        ).text_model,
        None,
        "more between 'ffn.fc1' and 'ffn.fc2' than the activation|more between 'fc1' and 'fc2' than the activation",
    ),
    "t5, dropout": (lambda: t5(dropout_rate=0.1), ("wi", "wo"), "drops activations .*dropout_rate=0"),
    "bart, dropout": (
        lambda: transformers.BartModel(transformers.BartConfig(**BART, activation_dropout=0.1)),
        None,
        "drops activations .*activation_dropout=0 for BART",
    ),
    "led, dropout": (
        lambda: transformers.LEDModel(transformers.LEDConfig(**LED, activation_dropout=0.1)),
        None,
        "drops activations .*activation_dropout=0 for BART",
    ),
    "inverted masks": (
        lambda: transformers.MptModel(
            transformers.MptConfig(vocab_size=60, d_model=32, n_heads=2, n_layers=2, max_seq_len=32)
        ),
        ("ffn.up_proj", "ffn.down_proj"),
        "the masks of MptBlock say what to leave out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("build,ffn,message", REFUSED.values(), ids=REFUSED)
def test_what_experts_cannot_reproduce_is_refused(build, ffn, message):
    model = build()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        kernels.upcycle(model, num_experts=3, top_k=2, ffn=ffn)
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("activation", [nn.SiLU(inplace=True), nn.ReLU(inplace=True), nn.GELU()])
def test_an_activation_in_place(activation):
    model, x = Encoder(), torch.randn(3, 10, 12)
    for block in model.blocks:
        block.__dict__.pop("activation")
        block.activation = activation
    dense = model(x)
    kernels.upcycle(model, num_experts=4, top_k=2, ffn=("expand", "contract"))
    assert relative_error(model(x), dense) < 1e-5


def test_a_trial_changes_nothing():
    model = transformers.BartModel(transformers.BartConfig(**BART, dropout=0.1)).train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for part in upcycling._parts(model, ("fc1", "fc2")):
        upcycling._check_between(part, ("fc1", "fc2"), F.gelu)
        assert part.block.training
        assert not part.up._forward_hooks
    assert torch.get_rng_state().equal(random)
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())


def test_an_error_in_one_layer_leaves_the_model_as_it_was():
    model = randomised(bert())
    dense = hidden_states(model)
    last = model.encoder.layer[3]
    gelu, last.intermediate.intermediate_act_fn = last.intermediate.intermediate_act_fn, nn.Tanh()
    before = {name: (id(module), len(module._forward_pre_hooks)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"the activation of encoder\.layer\.3"):
        kernels.upcycle(model, num_experts=2, top_k=1)
    last.intermediate.intermediate_act_fn = gelu
    after = {name: (id(module), len(module._forward_pre_hooks)) for name, module in model.named_modules()}
    assert {name for name in before if before[name] != after.get(name)} <= {
        "encoder.layer.3.intermediate.intermediate_act_fn"
    }
    assert hidden_states(model).equal(dense)
    assert not hasattr(model.config, upcycling.RECIPE)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(data=st.data())
def test_any_shape_starts_as_the_dense_layer(data):
    hidden, ffn = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 17))
    num_experts, tokens = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 6))
    choices = {
        "top_k": st.sampled_from([*range(1, num_experts + 1), "all"]),
        "router": st.sampled_from(["softmax", "topk_softmax", "sigmoid"]),
        "gate": st.sampled_from(["linear", "mlp"]),
    }
    torch.manual_seed(data.draw(st.integers(0, 99)))
    block = Block()
    block.expand = nn.Linear(hidden, ffn, bias=data.draw(st.booleans()))
    block.contract = nn.Linear(ffn, hidden, bias=data.draw(st.booleans()))
    block.activation = data.draw(st.sampled_from([F.gelu, F.relu, F.silu, nn.GELU(approximate="tanh")]))
    block.double()
    x = torch.randn(2, tokens, hidden, dtype=torch.float64)
    dense = block(x)
    drawn = {name: data.draw(strategy) for name, strategy in choices.items()}
    kernels.upcycle(block, num_experts=num_experts, ffn=("expand", "contract"), **drawn)
    with kernels.use_backend("eager"):
        torch.testing.assert_close(block(x), dense, rtol=1e-12, atol=1e-12)


def test_quantised_weights_are_refused():
    model = bert()
    linear = model.encoder.layer[0].intermediate.dense
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"encoder\.layer\.0 has torch\.int8 weights: upcycle before quantising"):
        kernels.upcycle(model, num_experts=2, top_k=1)


def test_a_half_precision_model_stays_one():
    model = kernels.upcycle(bert().to(torch.bfloat16), num_experts=2, top_k=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(IDS, MASK).last_hidden_state.isfinite().all()


# Afterwards: it trains, it is copied, saved, loaded and exported.


def trained(model):
    """Two steps, until the experts differ."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        loss = hidden_states(model).square().mean() + kernels.aux_loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_it_trains():
    model = kernels.upcycle(randomised(bert()), num_experts=4, top_k=2)
    trained(model)
    for layer in model.modules():
        if isinstance(layer, kernels.MoE):
            assert all(p.grad is not None and p.grad.norm() > 0 for p in layer.parameters())
            assert relative_error(layer.experts.up_weight[0], layer.experts.up_weight[1]) > 1e-4


def paddings(model):
    return [layer.padding for layer in model.modules() if isinstance(layer, kernels.MoE)]


def test_a_copy_has_its_own_mask():
    model = kernels.upcycle(randomised(bert()), num_experts=4, top_k=2)
    clone = copy.deepcopy(model)
    with kernels.record_routing(clone) as log:
        hidden_states(clone)
    assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())
    assert not set(map(id, paddings(model))) & set(map(id, paddings(clone)))


@pytest.mark.parametrize("model_class", ["BertModel", "AutoModel", "BertForMaskedLM"])
def test_save_and_load(model_class, tmp_path):
    concrete = getattr(transformers, model_class.replace("Auto", "Bert"))
    model = randomised(concrete(transformers.BertConfig(**BERT)))
    kernels.upcycle(model, num_experts=4, top_k=2, layers="every-2", router="topk_softmax")
    trained(model)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = upcycling.from_pretrained(getattr(transformers, model_class), tmp_path)
    assert type(again) is concrete
    assert model(IDS, MASK)[0].equal(again(IDS, MASK)[0])
    again.save_pretrained(tmp_path / "again")
    once_more = upcycling.from_pretrained(concrete, tmp_path / "again")
    assert model(IDS, MASK)[0].equal(once_more(IDS, MASK)[0])


VISION = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=16, patch_size=8,
    hidden_act="gelu",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["ViT", "DeiT", "Dinov2", "Beit", "Data2VecVision", "SiglipVision", "CLIPVision", "IJepa", "Yolos", "DPT"]
)
@pytest.mark.parametrize("auto", [False, True])
def test_save_and_load_of_images(name, auto, tmp_path):
    concrete, config = (getattr(transformers, name + kind) for kind in ("Model", "Config"))
    if auto and "Vision" in name and name != "Data2VecVision":
        pytest.skip("AutoModel knows the whole model only")
    settings = VISION | ({"image_size": [16, 16], "num_detection_tokens": 3} if name == "Yolos" else {})
    if name == "Dinov2":
        del settings["intermediate_size"]
    model = randomised(concrete(config(**settings)))
    kernels.upcycle(model, num_experts=4, top_k=2, layers=[1])
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path)
    again = upcycling.from_pretrained(transformers.AutoModel if auto else concrete, tmp_path)
    assert type(again) is concrete
    assert all(again.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert model(pixels)[0].equal(again(pixels)[0])
    layer = next(module for module in again.modules() if isinstance(module, kernels.MoE))
    again.train()(pixels)[0].sum().backward()
    assert layer.sums.settled_L.device.type == "cpu"


@pytest.mark.parametrize("model_class", ["AutoModel", "BertModel"])
def test_the_base_of_a_model_with_a_head(model_class, tmp_path):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    kernels.upcycle(randomised(model), num_experts=4, top_k=2, layers="every-2")
    trained(model).save_pretrained(tmp_path)
    again = upcycling.from_pretrained(getattr(transformers, model_class), tmp_path)
    assert type(again) is transformers.BertModel
    assert again(IDS, MASK).last_hidden_state.equal(model.bert(IDS, MASK).last_hidden_state)
    assert again.pooler.dense.weight.isfinite().all()
    again.save_pretrained(tmp_path / "again")
    once_more = upcycling.from_pretrained(transformers.AutoModel, tmp_path / "again")
    assert again(IDS, MASK).pooler_output.equal(once_more(IDS, MASK).pooler_output)


def test_a_half_precision_model_is_loaded_as_one(tmp_path):
    kernels.upcycle(bert().to(torch.bfloat16), num_experts=2, top_k=1).save_pretrained(tmp_path)
    again = upcycling.from_pretrained(transformers.BertModel, tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_the_balance_bias_of_a_half_precision_model_keeps_its_bits(half, tmp_path):
    model = kernels.upcycle(bert().to(half), num_experts=2, top_k=1, layers=[1], router="sigmoid")
    (bias,) = (module.router.balance_bias for module in model.modules() if isinstance(module, kernels.MoE))
    bias.copy_(torch.tensor([0.123456789, -0.5005]))
    model.save_pretrained(tmp_path)
    again = upcycling.from_pretrained(transformers.BertModel, tmp_path)
    (loaded,) = (module.router.balance_bias for module in again.modules() if isinstance(module, kernels.MoE))
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, bias)


def test_load_says_what_is_wrong(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was not saved after"):
        upcycling.from_pretrained(transformers.BertModel, tmp_path)
    kernels.upcycle(bert(), num_experts=4, top_k=2).save_pretrained(tmp_path / "moe")
    with pytest.raises(ValueError, match=r"does not fit BertForSequenceClassification: missing .*'classifier.weight'"):
        upcycling.from_pretrained(transformers.BertForSequenceClassification, tmp_path / "moe")


def test_exported_names():
    model = trained(kernels.upcycle(randomised(bert()), num_experts=4, top_k=2, layers=[1], gate="mlp"))
    state = upcycling.export_state_dict(model)
    layer = model.encoder.layer[1].intermediate.dense
    assert state["encoder.layer.1.experts.3.intermediate.dense.weight"].equal(layer.experts.up_weight[3])
    assert state["encoder.layer.1.experts.3.intermediate.dense.bias"].equal(layer.experts.up_bias[3])
    assert state["encoder.layer.1.experts.0.output.dense.weight"].equal(layer.experts.down_weight[0])
    assert state["encoder.layer.1.experts.0.output.dense.bias"].equal(layer.experts.down_bias[0])
    assert state["encoder.layer.1.router.weight"].equal(layer.router.weight)
    assert state["encoder.layer.1.router.hidden.bias"].equal(layer.router.hidden.bias)
    dense = set(bert().state_dict())
    gone = {f"encoder.layer.1.{name}" for pair in ("intermediate.dense", "output.dense")
            for name in (f"{pair}.weight", f"{pair}.bias")}  # fmt: skip
    assert dense - set(state) == gone
    assert {name.split(".experts.")[0] for name in set(state) - dense} >= {"encoder.layer.1"}
    assert all(name.startswith(("encoder.layer.1.experts.", "encoder.layer.1.router.")) for name in set(state) - dense)


@pytest.mark.parametrize("build", [MODELS["bert"], MODELS["distilbert"], MODELS["dpr"]])
def test_export_and_import(build):
    model = trained(kernels.upcycle(randomised(build()), num_experts=4, top_k=2))
    other = kernels.upcycle(build(), num_experts=4, top_k=2).eval()
    upcycling.import_state_dict(other, upcycling.export_state_dict(model))
    assert all(other.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert hidden_states(other).equal(hidden_states(model))
    with pytest.raises(KeyError, match=r"state lacks .*router\.weight"):
        upcycling.import_state_dict(other, model.state_dict())


def test_one_expert_fits_the_dense_model():
    """Each expert has the names and shapes of the block that it came from."""
    dense = randomised(bert())
    model = kernels.upcycle(copy.deepcopy(dense), num_experts=4, top_k=2)
    state = {
        name.replace("experts.2.", ""): value
        for name, value in upcycling.export_state_dict(model).items()
        if ".experts.2." in name or (".experts." not in name and ".router." not in name)
    }
    fresh = bert().eval()
    fresh.load_state_dict(state)
    assert hidden_states(fresh).equal(hidden_states(dense))


def test_compiles():
    model = kernels.upcycle(randomised(bert()), num_experts=4, top_k=2)
    expected = hidden_states(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert relative_error(hidden_states(compiled), expected) < 1e-5
