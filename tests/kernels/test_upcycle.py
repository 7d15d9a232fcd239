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
from tests.kernels.oracle import relative_error

transformers = pytest.importorskip("transformers")

BERT = dict(
    vocab_size=60, hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=40,
    max_position_embeddings=34, pad_token_id=1,
)  # fmt: skip
DISTIL = dict(vocab_size=60, dim=24, n_layers=4, n_heads=2, hidden_dim=40, max_position_embeddings=34)


def bert(**settings):
    return transformers.BertModel(transformers.BertConfig(**BERT | settings))


BART = dict(vocab_size=60, d_model=24, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=40,
            decoder_layers=1, decoder_attention_heads=2, max_position_embeddings=34, pad_token_id=1)  # fmt: skip


MODELS = {
    "bert": bert,
    "bert, eager attention": lambda: bert(attn_implementation="eager"),
    "bert, gelu_new": lambda: bert(hidden_act="gelu_new"),
    "bert, relu": lambda: bert(hidden_act="relu"),
    "bert, silu": lambda: bert(hidden_act="silu"),
    "bert, chunks": lambda: bert(chunk_size_feed_forward=5),
    "bert decoder": lambda: bert(is_decoder=True),
    "distilbert": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**BERT)),
    "xlm-r": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**BERT)),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**BERT)),
    "dpr": lambda: transformers.DPRQuestionEncoder(transformers.DPRConfig(**BERT)),
    "electra": lambda: transformers.ElectraModel(transformers.ElectraConfig(**BERT)),
    "deberta": lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**BERT)),
    "bart encoder": lambda: transformers.BartModel(transformers.BartConfig(**BART)).encoder,
}

IDS = torch.randint(3, 60, (3, 10), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([10, 4, 7])
MASK = (torch.arange(10) < LENGTHS[:, None]).long()


def randomised(model):
    """Unit-variance activations, biases that are not zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def hidden_states(model, mask=MASK, **kwargs):
    """Of the real tokens: the last hidden states, or what a model has instead (pooled, then)."""
    output = model(IDS, attention_mask=mask, **kwargs)
    if "last_hidden_state" in output:
        return output.last_hidden_state[MASK.bool()]
    return output[0]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_step_0_equals_the_dense_model(build):
    model = randomised(build())
    dense = hidden_states(model)
    assert kernels.upcycle(model, num_experts=5, top_k=2) is model
    assert sum(isinstance(module, kernels.MoE) for module in model.modules()) == 4
    assert relative_error(hidden_states(model), dense) < 1e-5


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


CALLS = {
    "keyword": lambda model: model(input_ids=IDS, attention_mask=MASK),
    "positional": lambda model: model(IDS, MASK),
    "bool": lambda model: model(IDS, MASK.bool()),
    "4-d bool": lambda model: model(IDS, MASK.bool()[:, None, None].expand(3, 1, 10, 10)),
    "4-d float": lambda model: model(IDS, torch.where(MASK.bool(), 0.0, -1e9)[:, None, None].expand(3, 1, 10, 10)),
    "embeddings": lambda model: model(attention_mask=MASK, inputs_embeds=model.embeddings.word_embeddings(IDS)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_way_to_pass_a_mask(call):
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    with kernels.record_routing(model) as log:
        call(model)
    assert all((routing.indices_TK.view(3, 10, 2) >= 0).all(-1).equal(MASK.bool()) for (routing,) in log.values())


def test_without_a_mask_everything_is_routed():
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    hidden_states(model)  # this call's mask must not stay
    with kernels.record_routing(model) as log:
        model(IDS)
        model(IDS, torch.ones_like(IDS))
    assert all(routing.counts_E.sum() == 60 for routings in log.values() for routing in routings)


def test_a_mask_that_changes_in_place():
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    mask = MASK.bool()[:, None, None].expand(3, 1, 10, 10).clone()
    model(IDS, mask)
    mask.copy_(MASK.flip(0).bool()[:, None, None])
    with kernels.record_routing(model) as log:
        model(IDS, mask)
    assert all(
        (routing.indices_TK.view(3, 10, 2) >= 0).all(-1).equal(MASK.flip(0).bool()) for (routing,) in log.values()
    )


def test_generation_with_a_cache_routes_each_new_token():
    model = transformers.BertLMHeadModel(transformers.BertConfig(**BERT, is_decoder=True))
    kernels.upcycle(randomised(model), num_experts=5, top_k=2)
    settings = dict(max_new_tokens=4, do_sample=False, attention_mask=MASK.flip(1), eos_token_id=None)
    with kernels.record_routing(model) as log:
        cached = model.generate(IDS, **settings)
    for routings in log.values():
        assert [int(routing.counts_E.sum()) for routing in routings] == [2 * LENGTHS.sum(), 6, 6, 6]
    assert cached.equal(model.generate(IDS, **settings, use_cache=False))


@pytest.mark.parametrize("two_batches", [False, True])
def test_checkpointing_recomputes_with_the_same_mask(two_batches):
    """A bi-encoder: two forwards with masks of their own, then one backward."""
    model = kernels.upcycle(randomised(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), num_experts=5,
                            top_k=2).train()  # fmt: skip
    grads = []
    for checkpoint in (False, True):
        if checkpoint:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        loss = hidden_states(model).square().sum()
        if two_batches:
            loss = loss + (model(IDS, MASK.flip(0)).last_hidden_state[MASK.flip(0).bool()] ** 3).sum()
        model.zero_grad()
        (loss + kernels.aux_loss(model)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(relative_error(b, a) < 1e-5 for a, b in zip(*grads))


def test_checkpointing_without_the_mask_raises():
    """Here only the model sees a mask: a recomputation would not know whether it is that of its own batch."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Encoder):
        def forward(self, x, attention_mask=None):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    model = kernels.upcycle(Checkpointed(), num_experts=2, top_k=1, ffn=("expand", "contract"))
    y = model(torch.randn(3, 10, 12), MASK)
    with pytest.raises(RuntimeError, match="checkpoint whole Transformer layers"):
        y.sum().backward()


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
        (dict(ffn=("mlp.up", "mlp.down")), "has no layer with the Linears 'mlp.up' and 'mlp.down'"),
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
    with pytest.raises(ValueError, match=r"no feed-forward block was found in Sequential: pass ffn="):
        kernels.upcycle(nn.Sequential(nn.Linear(4, 4)), num_experts=2, top_k=1)


class Block(nn.Module):
    """Somebody's own layer: no biases in the first Linear, the activation a plain function, no mask argument."""

    def __init__(self):
        super().__init__()
        self.expand, self.contract = nn.Linear(12, 20, bias=False), nn.Linear(20, 12)
        self.activation = F.relu

    def forward(self, x):
        return x + self.contract(self.activation(self.expand(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return x


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


def test_a_copy_has_its_own_mask():
    model = kernels.upcycle(randomised(bert()), num_experts=4, top_k=2)
    clone = copy.deepcopy(model)
    with kernels.record_routing(clone) as log:
        hidden_states(clone)
    assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())
    assert all(layer.kept_BL is None for layer in model.modules() if isinstance(layer, kernels.MoE))


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
