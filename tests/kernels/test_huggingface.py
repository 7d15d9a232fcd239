"""`moe_kernels` against transformers' own eager experts: models, every flag of the interface, compile and generate."""

import gc
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import kernels
from kernels import huggingface
from tests.kernels.oracle import relative_error

transformers = pytest.importorskip("transformers")
moe = pytest.importorskip("transformers.integrations.moe")

kernels.register_with_transformers()

TINY = dict(
    vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    num_experts_per_tok=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TINY, intermediate_size=20, num_local_experts=5, head_dim=12)
    )


def qwen3_moe():
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**TINY, intermediate_size=20, moe_intermediate_size=20, num_experts=5, head_dim=12)
    )


def olmoe():
    return transformers.OlmoeForCausalLM(
        transformers.OlmoeConfig(**TINY | {"num_key_value_heads": 2}, intermediate_size=20, num_experts=5)
    )


def randomised(module):
    """Unit-variance activations: the default init is too small to show anything."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return module.eval()


def logits_and_gradients(model, implementation, ids, mask):
    model.set_experts_implementation(implementation)
    model.zero_grad()
    logits = model(ids, attention_mask=mask).logits
    torch.manual_seed(2)
    logits.backward(torch.randn_like(logits))
    return [logits, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("build", [mixtral, qwen3_moe, olmoe])
def test_model_equals_eager(build, backend):
    model = randomised(build())
    ids, mask = torch.randint(3, 50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    ours, eager = (logits_and_gradients(model, name, ids, mask) for name in ("moe_kernels", "eager"))
    for got, expected in zip(ours, eager):
        assert relative_error(got, expected) < 1e-5
    assert all(
        huggingface._find_gate(layer, layer.act_fn).activation == "swiglu"
        for layer in model.modules()
        if hasattr(layer, "_apply_gate")
    )


def test_from_pretrained_and_generate(tmp_path):
    randomised(mixtral()).save_pretrained(tmp_path)
    ids = torch.randint(3, 50, (2, 4))
    settings = dict(max_new_tokens=6, do_sample=False)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moe_kernels")
    assert set(ours.get_experts_implementation().values()) == {"moe_kernels"}
    got = ours.generate(ids, **settings)
    eager = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
    assert got.equal(eager.generate(ids, **settings))
    assert got.shape == (2, 10)


@pytest.mark.parametrize("warm", [False, True])
def test_compiles_without_a_break(warm):
    """Before any eager call, too: the gate is then recognised while tracing."""
    model = randomised(qwen3_moe())
    model.set_experts_implementation("moe_kernels")
    ids = torch.randint(3, 50, (2, 6))
    if warm:
        model(ids)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(ids, use_cache=False).logits
    logits.square().sum().backward()
    got = [logits, *(parameter.grad.clone() for parameter in model.parameters())]
    model.zero_grad()
    expected = model(ids, use_cache=False).logits
    expected.square().sum().backward()
    for ours, reference in zip(got, [expected, *(parameter.grad for parameter in model.parameters())]):
        assert relative_error(ours, reference) < 1e-5


def test_autocast_computes_in_bf16():
    model = randomised(mixtral())
    ids, mask = torch.randint(3, 50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    expected = logits_and_gradients(model, "eager", ids, mask)[0]
    model.set_experts_implementation("moe_kernels")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = relative_error(model(ids, attention_mask=mask).logits, expected)
    assert 1e-5 < error < 0.1


# Every flag, on a synthetic class: its forward here is the plain loop that the interface's flags describe.


def experts_module(ffn=10, act="silu", gate=None, norm=None, **flags):
    """An experts module with these flags, H 12, E 5. `gate`: a method of its own; `norm`: its output's norm."""
    has_gate, has_bias = flags.get("has_gate", True), flags.get("has_bias", False)
    transposed = flags.get("is_transposed", False)
    hidden, num_experts = 12, 5
    width = 2 * ffn if has_gate else ffn

    class Experts(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.num_experts = num_experts
            self.act_fn = transformers.activations.ACT2FN[act]
            shapes = {"gate_up_proj" if has_gate else "up_proj": (width, hidden), "down_proj": (hidden, ffn)}
            for name, (rows, columns) in shapes.items():
                shape = (columns, rows) if transposed else (rows, columns)
                setattr(self, name, nn.Parameter(torch.randn(num_experts, *shape) * columns**-0.5))
                if has_bias:
                    setattr(self, f"{name}_bias", nn.Parameter(torch.randn(num_experts, rows)))
            if norm is not None:
                self.post_expert_norm = norm(hidden)

        def forward(self, hidden_states, top_k_index, top_k_weights):
            name = "gate_up_proj" if has_gate else "up_proj"
            rows = []
            for x, experts, weights in zip(hidden_states, top_k_index.tolist(), top_k_weights):
                y = torch.zeros_like(x)
                for expert, weight in zip(experts, weights):
                    if expert >= self.num_experts:
                        continue
                    up, down = getattr(self, name)[expert], self.down_proj[expert]
                    pre = x @ up if transposed else up @ x
                    pre = pre + getattr(self, f"{name}_bias")[expert] if has_bias else pre
                    h = self._apply_gate(pre[None])[0] if has_gate else self.act_fn(pre)
                    out = h @ down if transposed else down @ h
                    out = out + self.down_proj_bias[expert] if has_bias else out
                    y = y + weight * (out if norm is None else self.post_expert_norm(out))
                rows.append(y)
            return torch.stack(rows)

    if gate is not None:
        Experts._apply_gate = gate
    torch.manual_seed(3)
    config = transformers.PretrainedConfig()
    return moe.use_experts_implementation(**flags)(Experts)(config)


def interleaved_gate(self, pre):
    return self.act_fn(pre[..., ::2]) * pre[..., 1::2]


def clamped_gate(self, pre):
    gate, up = pre.chunk(2, -1)
    return F.silu(gate.clamp(max=9.0)) * up


def slots(tokens=7, sentinel=False):
    torch.manual_seed(4)
    x = torch.randn(tokens, 12)
    indices = torch.rand(tokens, 4).argsort(1)[:, :3]  # expert 4 gets no token
    weights = torch.rand(tokens, 3)
    if sentinel:
        indices[::2, 1] = indices[1, :] = 5
    return x, indices, weights


def outputs_and_gradients(module, implementation, x, indices, weights):
    module.config._experts_implementation = implementation
    module.zero_grad()
    x, weights = x.clone().requires_grad_(), weights.clone().requires_grad_()
    y = module(x, indices, weights)
    y.backward(torch.linspace(-1, 1, y.numel()).view_as(y))
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    return [y, x.grad, weights.grad, *grads]


FLAGS = {
    "plain": dict(),
    "gelu": dict(act="gelu"),
    "bias": dict(has_bias=True),
    "transposed": dict(is_transposed=True),
    "transposed and bias": dict(is_transposed=True, has_bias=True),
    "interleaved": dict(is_concatenated=False, has_bias=True, gate=interleaved_gate),
    "interleaved and transposed": dict(is_concatenated=False, is_transposed=True, gate=interleaved_gate),
    "no gate": dict(has_gate=False, has_bias=True, act="gelu_new"),
    "no gate, erf": dict(has_gate=False, act="gelu"),
    "no gate, relu": dict(has_gate=False, act="relu"),
    "norm": dict(has_post_expert_norm=True, norm=nn.LayerNorm),
    "norm and bias": dict(has_post_expert_norm=True, norm=nn.RMSNorm, has_bias=True),
}

if "has_post_expert_norm" not in inspect.signature(moe.use_experts_implementation).parameters:  # newer than our floor
    FLAGS = {name: flags for name, flags in FLAGS.items() if "norm" not in flags}


@pytest.mark.parametrize("sentinel", [False, True])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_flags(flags, sentinel, backend):
    module = experts_module(**flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = outputs_and_gradients(module, "moe_kernels", *slots(sentinel=sentinel))
    eager = outputs_and_gradients(module, "eager", *slots(sentinel=sentinel))
    for got, expected in zip(ours, eager):
        assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("outside", [-1, -3, 6, 2**32 + 1])
@pytest.mark.parametrize("name", ["plain", "interleaved", "interleaved and transposed", list(FLAGS)[-1]])
def test_an_index_outside_of_the_experts_is_none_of_them(name, outside):
    """As transformers' sentinel, the number of experts; with one token only the experts that it needs are copied."""
    module, (x, indices, weights) = experts_module(**FLAGS[name]), slots(tokens=1)
    indices[0, 1] = 5
    eager = outputs_and_gradients(module, "eager", x, indices, weights)
    indices[0, 1] = outside
    for got, expected in zip(outputs_and_gradients(module, "moe_kernels", x, indices, weights), eager):
        assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("name", ["plain", list(FLAGS)[-1]])
def test_few_tokens(name, tokens):
    module = experts_module(**FLAGS[name])
    x, indices, weights = slots(tokens)
    module.config._experts_implementation = "moe_kernels"
    y = module(x, indices, weights)
    assert y.shape == x.shape
    if tokens:
        module.config._experts_implementation = "eager"
        assert relative_error(y, module(x, indices, weights)) < 1e-5


OTHER_GATES = [
    dict(gate=clamped_gate),
    dict(gate=clamped_gate, ffn=8),  # rows of 16 bytes: grouped_mm takes these
    dict(act="gelu_new"),
    dict(has_gate=False, act="relu2"),
]


@pytest.mark.parametrize("flags", OTHER_GATES)
def test_a_gate_that_is_not_ours_runs_on_transformers_path_with_one_warning(flags):
    module = experts_module(**flags)
    with pytest.warns(UserWarning, match="has a gate that moe_kernels does not have"):
        ours = outputs_and_gradients(module, "moe_kernels", *slots())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        outputs_and_gradients(module, "moe_kernels", *slots())
        huggingface._gates.clear()  # as if it were the next layer of the same model
        outputs_and_gradients(module, "moe_kernels", *slots())
    for got, expected in zip(ours, outputs_and_gradients(module, "eager", *slots())):
        assert relative_error(got, expected) < 1e-5


def test_a_limit_that_never_acts_is_no_other_gate():
    def unlimited(self, pre):
        gate, up = pre.chunk(2, -1)
        return F.silu(gate.clamp(max=1e6)) * up

    module = experts_module(gate=unlimited)
    assert huggingface._recognise(module) == ("swiglu", False)


def test_transposed_weights_move_once_and_are_saved_as_before(tmp_path):
    module = experts_module(is_transposed=True).requires_grad_(False)
    module.config._experts_implementation = "moe_kernels"
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.inference_mode():
        module(*slots())
    places = [parameter.data_ptr() for parameter in module.parameters()]
    for parameter, name in zip(module.parameters(), before):
        assert parameter.equal(before[name])
        assert parameter.transpose(1, 2).is_contiguous()
    module(*slots())
    assert places == [parameter.data_ptr() for parameter in module.parameters()]
    torch.save(module.state_dict(), tmp_path / "state.pt")
    fresh = experts_module(is_transposed=True)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt"))
    fresh.config._experts_implementation = "eager"
    assert relative_error(module(*slots()), fresh(*slots())) < 1e-5


def test_transposed_weights_that_are_trained_do_not_move():
    module = experts_module(is_transposed=True)
    module.config._experts_implementation = "moe_kernels"
    optimizer = torch.optim.AdamW(module.parameters())
    places = [parameter.data_ptr() for parameter in module.parameters()]
    for _ in range(2):
        with torch.inference_mode():
            module(*slots())
        module(*slots()).sum().backward()
        assert all(parameter.grad.stride() == parameter.stride() for parameter in module.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert places == [parameter.data_ptr() for parameter in module.parameters()]
    assert all(parameter.is_contiguous() for parameter in module.parameters())


def steps(implementations, fused=True):
    """-> the parameters after one fused step with each implementation, and evaluations between"""
    module = experts_module(is_transposed=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused)
    for implementation in implementations:
        module.config._experts_implementation = implementation
        with torch.no_grad():
            module(*slots())
        y = module(*slots())
        with torch.no_grad():
            module(*slots())
        y.square().sum().backward()
        with torch.no_grad():
            module(*slots())
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("ours_first", [False, True])
def test_a_fused_optimizer_that_knows_transposed_weights(ours_first):
    names = ["eager"] * 3 + ["moe_kernels"] * 3
    for got, expected in zip(steps(names[::-1] if ours_first else names), steps(["eager"] * 6, fused=False)):
        assert relative_error(got, expected) < 1e-4


def test_a_fused_optimizer_whose_state_was_saved_before_the_weights_moved():
    """Frozen at first, then trained on: the optimizer's state comes from a checkpoint."""
    finished = []
    for implementation in ("eager", "moe_kernels"):
        module = experts_module(is_transposed=True)
        module.config._experts_implementation = "eager"
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
        module(*slots()).square().sum().backward()
        optimizer.step()
        state = optimizer.state_dict()
        module.requires_grad_(False)
        module.config._experts_implementation = implementation
        module(*slots())
        module.requires_grad_(True)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
        optimizer.load_state_dict(state)
        for _ in range(3):
            optimizer.zero_grad()
            module(*slots()).square().sum().backward()
            optimizer.step()
        finished.append([parameter.detach().clone() for parameter in module.parameters()])
    assert all(relative_error(got, expected) < 1e-4 for expected, got in zip(*finished))


COPIED = [name for name in FLAGS if "transposed" in name or "interleaved" in name]
"""Stacks that have to be copied where they may be trained."""


@pytest.mark.parametrize("chosen", [[0, 3, 2], [4, 5, 1], [5, 5, 5], [1, 1, 1]])
@pytest.mark.parametrize("flags", COPIED)
def test_one_token_copies_no_expert_that_it_does_not_need(flags, chosen, monkeypatch, backend):
    module, sizes = experts_module(**FLAGS[flags]), []
    expert_mlp = huggingface.expert_mlp

    def measured(x, indices, weights, up_weight, *args, **kwargs):
        sizes.append(len(up_weight))
        return expert_mlp(x, indices, weights, up_weight, *args, **kwargs)

    monkeypatch.setattr(huggingface, "expert_mlp", measured)
    x, indices, weights = slots(1)
    indices[:] = torch.tensor(chosen)
    computed = {index for index in chosen if index < 5}
    with torch.no_grad():
        module.config._experts_implementation = "moe_kernels"
        ours = module(x, indices, weights)
        module.config._experts_implementation = "eager"
        assert torch.allclose(ours, module(x, indices, weights), rtol=1e-5, atol=1e-5)
    if computed:
        ours, eager = (outputs_and_gradients(module, name, x, indices, weights) for name in ("moe_kernels", "eager"))
        assert all(torch.allclose(got, expected, rtol=1e-4, atol=1e-5) for got, expected in zip(ours, eager))
    assert set(sizes) == {max(1, len(computed))}


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gate_that_changes_after_the_first_call(compiled):
    module = experts_module()
    torch._dynamo.reset()
    call = torch.compile(module, fullgraph=True, backend="eager") if compiled else module
    activations = transformers.activations.ACT2FN
    for act in (activations["gelu"], F.silu, activations["gelu"], nn.GELU()):
        del module.act_fn
        module.act_fn = act
        module.config._experts_implementation = "moe_kernels"
        got = call(*slots())
        module.config._experts_implementation = "eager"
        assert relative_error(got, module(*slots())) < 1e-5


class Limited(nn.Module):
    def __init__(self):
        super().__init__()
        self.limit = 1e6

    def forward(self, x):
        return F.silu(x.clamp(max=self.limit))


@pytest.mark.filterwarnings("ignore:.*moe_kernels does not have")
def test_a_limit_that_changes_after_the_first_call():
    def limited(self, pre):
        gate, up = pre.chunk(2, -1)
        return self.act_fn(gate.clamp(max=self.swiglu_limit)) * up

    module = experts_module(gate=limited)
    module.swiglu_limit = 1e6
    module.act_fn = Limited()
    for owner, name in ((module, "swiglu_limit"), (module.act_fn, "limit")):
        for limit in (1e6, 0.1, 1e6):
            setattr(owner, name, limit)
            ours, eager = (outputs_and_gradients(module, name, *slots()) for name in ("moe_kernels", "eager"))
            assert all(relative_error(got, expected) < 1e-5 for got, expected in zip(ours, eager))
            assert huggingface._find_gate(module, module.act_fn).activation == ("swiglu" if limit == 1e6 else None)


def test_what_is_known_of_a_gate_ends_with_it():
    gc.collect()
    known = len(huggingface._gates)
    module = experts_module()
    before = dict(vars(module))
    module.config._experts_implementation = "moe_kernels"
    module(*slots())
    assert set(vars(module)) == set(before)
    assert len(huggingface._gates) == known + 1
    del module, before
    gc.collect()
    assert len(huggingface._gates) == known


def test_a_model_with_transposed_weights_saves_and_loads(tmp_path):
    config = transformers.AriaTextConfig(**TINY, intermediate_size=20, moe_num_experts=5, moe_topk=2)
    model = randomised(transformers.AriaTextForCausalLM(config))
    if not hasattr(model.model.layers[0].mlp.experts, "_apply_gate"):
        pytest.skip(f"Aria's experts do not follow the experts interface in transformers {transformers.__version__}")
    ids, mask = torch.randint(3, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    ours, eager = (logits_and_gradients(model, name, ids, mask) for name in ("moe_kernels", "eager"))
    for got, expected in zip(ours, eager):
        assert relative_error(got, expected) < 1e-5
    model.save_pretrained(tmp_path)
    again = transformers.AriaTextForCausalLM.from_pretrained(tmp_path, experts_implementation="moe_kernels")
    again.requires_grad_(False)
    assert all(again.state_dict()[name].equal(value) for name, value in model.state_dict().items())
    assert relative_error(again(ids, attention_mask=mask).logits, eager[0]) < 1e-5
    assert again.model.layers[0].mlp.experts.down_proj.transpose(1, 2).is_contiguous()


def test_transposed_weights_in_a_flat_buffer_stay_there():
    """As sharded training keeps them: what is written to the buffer must reach the experts."""
    module = experts_module(is_transposed=True)
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    pieces = flat.split([parameter.numel() for parameter in module.parameters()])
    for parameter, piece in zip(module.parameters(), pieces):
        parameter.data = piece.view_as(parameter)
    module.config._experts_implementation = "moe_kernels"
    before = module(*slots())
    flat.mul_(0.5)
    assert relative_error(module(*slots()), before) > 0.1
    ours = module(*slots())
    module.config._experts_implementation = "eager"
    assert relative_error(ours, module(*slots())) < 1e-5


def test_weights_in_another_type():
    module = experts_module().to(torch.bfloat16)
    x, indices, weights = slots()
    module.config._experts_implementation = "moe_kernels"
    y = module(x, indices, weights)
    assert y.dtype == torch.float32
    module.config._experts_implementation = "eager"
    assert relative_error(y, module.float()(x, indices, weights)) < 0.02
