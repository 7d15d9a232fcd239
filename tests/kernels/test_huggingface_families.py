"""Every experts class of the installed transformers that follows the experts interface, on our experts and eager.

The classes are found by walking `transformers.models`; the table in `docs/huggingface.md` must say what is found. It
was made with the version in its title. Under another one, what the table lists is tested as far as it is there, and one
test names the families that are new or gone.
"""

import functools
import importlib
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch

import kernels
from kernels import huggingface
from tests.kernels.oracle import relative_error

transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.integrations.moe")
kernels.register_with_transformers()

DOCUMENT = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text()
MADE_WITH, TABLE = re.search(r"\n### The families of transformers ([0-9.]+)\n(.*?)\n## ", DOCUMENT, re.DOTALL).groups()
LISTED = re.findall(r"^\| (\w+) \| `(\w+)` \|", TABLE, re.MULTILINE)
"""(family, class)"""

HIDDEN, FFN, EXPERTS = 16, 24, 6

SMALL = dict(
    vocab_size=64, hidden_size=32, intermediate_size=FFN, moe_intermediate_size=FFN, num_hidden_layers=4, num_layers=4,
    num_attention_heads=4, num_key_value_heads=4, head_dim=8, num_local_experts=EXPERTS, num_experts=EXPERTS,
    n_routed_experts=EXPERTS, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
    eos_token_id=2, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
    v_head_dim=8, qk_head_dim=16, n_shared_experts=1, first_k_dense_replace=0, num_dense_layers=0,
    shared_expert_intermediate_size=FFN, num_nextn_predict_layers=0, dense_layers=0, expert_layer_period=1,
    expert_layer_offset=0, attn_layer_period=2, attn_layer_offset=1, layer_group_size=2, decoder_sparse_step=1,
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    hidden_size_per_layer_input=8, vocab_size_per_layer_input=64, mamba_d_state=8, mamba_n_heads=8, mamba_d_head=8,
)  # fmt: skip
"""Set where a family's config has such a number."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}

EXTRA = {
    "zaya": dict(num_experts_per_tok=1),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "granitemoehybrid": dict(layer_types=["mamba", "attention"] * 2),
    "deepseek_v4": dict(num_hidden_layers=2),
    "mimo_v2_flash": dict(num_hidden_layers=2, num_key_value_heads=2),
    "gemma4": dict(head_dim=16, enable_moe_block=True, top_k_experts=2),
    "deepseek_ocr2": dict(mlp_layer_types=["dense"] + ["sparse"] * 3),
    "diffusion_gemma": dict(head_dim=16, top_k_experts=2),
    "ernie4_5_vl_moe": dict(moe_intermediate_size=[FFN, 16], rope_parameters=ROPE | {"mrope_section": [1, 1, 2]}),
    "glm4v_moe": dict(rope_parameters=ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}),
    "glm5_next": dict(
        qk_rope_head_dim=0, head_dim=0, linear_head_dim=8, linear_num_heads=4, index_topk=16, index_head_dim=8,
        index_n_heads=2, index_kpool=4, mlp_layer_types=["dense"] + ["sparse"] * 3,
    ),
    "kimi_linear": dict(
        layer_types=["linear_attention", "full_attention"] * 2, linear_head_dim=8, linear_num_heads=4
    ),
    "mistral4": dict(
        rope_parameters=ROPE | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
    ),
    "qwen4_exp": dict(
        num_key_value_heads=2, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=16,
        indexer_compress_ratio=4, ple_layer_ids=[], hc_count=2, hc_lowrank=8,
    ),
}  # fmt: skip

LATER = {
    "aria", "bailing_hybrid", "beam", "dots3_note", "flint", "inkling2", "kolibri1", "mistral_large4", "muse_spark",
    "unlimited_ocr",
}  # fmt: skip
"""Families that the oldest version that we work with, 5.17, does not have yet."""

EXPERTS_ONLY = {"dots3_note"}
"""Families whose whole model does not come small by the settings above: their experts alone are compared."""


def defined_in(module, predicate):
    return [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__ and predicate(c)]


@functools.cache
def families():
    """family -> (its modeling module, its experts classes)"""
    found = {}
    for path in sorted(Path(transformers.models.__path__[0]).glob("*/modeling_*.py")):
        if "@use_experts_implementation" in path.read_text():
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            found[path.parent.name] = module, defined_in(module, lambda c: hasattr(c, "_apply_gate"))
    return found


FOUND = [(family, c) for family, (_, classes) in families().items() for c in classes]
EXPERTS_CLASSES = [(family, c) for family, c in FOUND if (family, c.__name__) in LISTED]


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


def new_and_gone(found, listed, installed):
    """-> what to say of families that the table does not have, and of those that it has; empty where it fits"""
    said = [f"new: {' '.join(pair)}" for pair in sorted(set(found) - set(listed))]
    since = LATER if version(installed) < version(MADE_WITH) else set()
    said += [f"gone: {' '.join(pair)}" for pair in sorted(set(listed) - set(found)) if pair[0] not in since]
    return said


def test_the_table_lists_every_family_and_no_other():
    said = new_and_gone([(family, c.__name__) for family, c in FOUND], LISTED, transformers.__version__)
    assert not said, "\n".join(
        [f"docs/huggingface.md lists the families of transformers {MADE_WITH}; {transformers.__version__} has", *said]
    )
    assert len(set(LISTED)) == len(LISTED)
    on_ours = len(re.findall(r"^\| \w+ \| `\w+` \| our kernels", TABLE, re.MULTILINE))
    assert f"{on_ours} of {len(LISTED)} experts classes run on our kernels" in " ".join(TABLE.split())


def test_what_is_new_or_gone_is_named():
    assert new_and_gone(LISTED, LISTED, MADE_WITH) == []
    without = [pair for pair in LISTED if pair[0] != "mixtral"]
    assert new_and_gone(without, LISTED, "5.17.0") == ["gone: mixtral MixtralExperts"]
    assert new_and_gone(LISTED, without, "99.0.0") == ["new: mixtral MixtralExperts"]
    early = [pair for pair in LISTED if pair[0] not in LATER]
    assert new_and_gone(early, LISTED, "5.17.0") == []
    assert len(new_and_gone(early, LISTED, MADE_WITH)) == len(LISTED) - len(early)


class Shrunk:
    """A config whose large numbers are small, whatever their names are."""

    def __init__(self, config):
        self.__dict__.update(_config=config, _experts_implementation="eager")

    def __getattr__(self, name):
        value = getattr(self._config, name)
        if isinstance(value, int | None) and not isinstance(value, bool):
            if "expert" in name and "size" not in name and "per_tok" not in name:
                return EXPERTS
            if value is None or value >= 32:
                return FFN if "intermediate" in name else HIDDEN
        return value


def tiny_experts(module, experts_class):
    """From the first config of the family that has what this class asks for."""
    configs = importlib.import_module(module.__name__.replace("modeling_", "configuration_"))
    extra = {"intermediate_size": FFN} if "intermediate_size" in inspect.signature(experts_class).parameters else {}
    for config_class in defined_in(configs, lambda c: issubclass(c, transformers.PretrainedConfig)):
        config = config_class()
        config.allow_global_per_layer_attribute_access = True
        try:
            experts = experts_class(Shrunk(config), **extra)
        except (AttributeError, TypeError):  # a vision config, say, has no experts
            continue
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5 if parameter.ndim == 3 else 1.0)
        return experts
    raise AssertionError(f"no config of {module.__name__} builds {experts_class.__name__}")


@functools.cache
def experts_error(family, experts_class):
    """-> the largest relative error of output and gradients, and the activation that runs (None: their own path)"""
    experts = tiny_experts(families()[family][0], experts_class)
    hidden, num_experts = experts.down_proj.shape[2 if experts.is_transposed else 1], len(experts.down_proj)
    torch.manual_seed(1)
    x, weights = torch.randn(13, hidden, requires_grad=True), torch.rand(13, 2, requires_grad=True)
    indices = torch.rand(13, num_experts - 1).argsort(1)[:, :2]  # the last expert gets no token
    results = []
    for implementation in ("eager", "moe_kernels"):
        experts.config.__dict__["_experts_implementation"] = implementation
        y = experts(x, indices, weights)
        grad_y = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad(y, [x, weights, *experts.parameters()], grad_y)])
    gate = huggingface._find_gate(experts, getattr(experts, "act_fn", None))
    return max(relative_error(got, expected) for expected, got in zip(*results)), gate.activation


@pytest.mark.filterwarnings("ignore:.*moe_kernels does not have")
@pytest.mark.parametrize("family,experts_class", EXPERTS_CLASSES, ids=lambda value: getattr(value, "__name__", value))
def test_experts_equal_eager(family, experts_class):
    error, _ = experts_error(family, experts_class)
    assert error < 1e-5


def tiny_model(family):
    """The family's smallest class with experts in it: a language model, else the bare text model."""
    module, _ = families()[family]
    classes = defined_in(module, lambda c: issubclass(c, transformers.PreTrainedModel) and c.config_class is not None)
    classes = [c for ending in ("ForCausalLM", "TextModel", "Model") for c in classes if c.__name__.endswith(ending)]
    for model_class in classes:
        extra = EXTRA.get(family, {})
        defaults = model_class.config_class()
        small = {k: v for k, v in SMALL.items() if k not in extra and isinstance(getattr(defaults, k, ""), int | None)}
        config = model_class.config_class(**small, **extra)
        with torch.device("meta"):
            model = model_class(config)
            if sum(p.numel() for p in model.parameters()) > 1e7 or not experts_of(model):
                continue
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**small, **extra)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        return model
    raise AssertionError(f"no small model of {family} with experts")


def experts_of(model):
    return [layer for layer in model.modules() if hasattr(layer, "_apply_gate")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted({family for family, _ in EXPERTS_CLASSES} - EXPERTS_ONLY))
def test_model_equals_eager(family, monkeypatch):
    model, ran = tiny_model(family), []
    find_gate = huggingface._find_gate
    monkeypatch.setattr(huggingface, "_find_gate", lambda *args: ran.append(args[0]) or find_gate(*args))
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (2, 8))
    results = []
    for implementation in ("eager", "moe_kernels"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        out = model(ids)[0]
        out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
        results.append([out, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 10
    assert max(relative_error(got, expected) for expected, got in zip(*results)) < 1e-4
    assert any(layer in ran for layer in experts_of(model))  # those of images have no token


def test_the_table_says_what_is_found():
    """Run this with what runs on what left out of the table to see its new lines."""
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family, experts_class in EXPERTS_CLASSES:
            _, activation = experts_error(family, experts_class)
            runs_on = f"our kernels, `{activation}`" if activation else "transformers' own path"
            whole = [] if family in EXPERTS_ONLY else experts_of(tiny_model(family))
            compared = "experts and model" if experts_class in map(type, whole) else "experts"
            lines.append(f"| {family} | `{experts_class.__name__}` | {runs_on} | {compared} |")
    missing = [line for line in lines if line not in TABLE.splitlines()]
    assert not missing, (
        f"docs/huggingface.md was made with transformers {MADE_WITH}; with {transformers.__version__} these lines "
        "should be in it:\n" + "\n".join(missing)
    )
