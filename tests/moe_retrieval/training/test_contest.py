"""One setting over several values: which runs it makes, and which it does not need to."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from moe_retrieval.cli import parse
from moe_retrieval.compare import CompareConfig, read_sweep
from moe_retrieval.config import SENSELESS
from moe_retrieval.models.variants import default_experts, make_pooled_layer, replace_ffn
from moe_retrieval.training.contest import DEFAULTS, OF_CONTROLS, effective
from tests.moe_retrieval.tiny import SHAPE


def swept(**options):
    """Variant -> value -> the folder of its first run"""
    contest = CompareConfig(output_dir="out", **options).contest()
    folders = {
        name: {value: alike[0].output_dir for value, alike in found.items()} for name, found in contest.swept.items()
    }
    return {
        name: {value: path.removeprefix("out/") for value, path in found.items()} for name, found in folders.items()
    }


def test_what_has_the_setting_is_swept_and_what_has_a_value_anyway_is_not_trained_twice():
    assert swept(variants="dense,dense-wide,sb-moe,sb-moe-all", sweep="num-experts=2,6") == {
        "dense-wide": {2: "dense-wide-num-experts-2-seed0", 6: "dense-wide-seed0"},
        "sb-moe": {2: "sb-moe-num-experts-2-seed0", 6: "sb-moe-seed0"},
        "sb-moe-all": {2: "sb-moe-all-num-experts-2-seed0", 6: "sb-moe-all-seed0"},
    }
    assert swept(variants="dense,moe", sweep="--num_experts=4, 8")["moe"] == {
        4: "moe-num-experts-4-seed0",
        8: "moe-seed0",
    }
    assert swept(variants="sb-moe", num_experts=4, sweep="num-experts=4,6")["sb-moe"] == {
        4: "sb-moe-seed0",
        6: "sb-moe-num-experts-6-seed0",
    }


def test_how_copies_start_is_for_what_is_copied():
    variants = "dense,dense-wide,random,sb-moe,moe"
    assert swept(variants=variants, sweep="drop-upcycling=0,0.5") == {
        "random of moe": {0.0: "random-of-moe-seed0", 0.5: "random-of-moe-drop-upcycling-0.5-seed0"},
        "moe": {0.0: "moe-seed0", 0.5: "moe-drop-upcycling-0.5-seed0"},
    }
    runs = CompareConfig(variants=variants, drop_upcycling=0.5).contest().runs
    started = {name: run.drop_upcycling for name, (run,) in runs.items() if run.family != "moe"}
    assert started == {"dense": None, "dense-wide of sb-moe": None, "random of sb-moe": None, "sb-moe": None}


def test_a_swept_run_differs_in_the_setting_alone():
    contest = CompareConfig(variants="dense,sb-moe", seeds=2, sweep="lr=1e-5,5e-5").contest()
    base, other = contest.runs["dense"], contest.swept["dense"][1e-5]
    differing = {name for a, b in zip(base, other) for name in vars(a) if vars(a)[name] != vars(b)[name]}
    assert differing == {"lr", "output_dir"}
    assert [run.seed for run in other] == [0, 1]
    assert contest.swept["dense"][5e-5] == base
    assert len(contest.every()) == len({run.output_dir for run in contest.every()}) == 8


@pytest.mark.parametrize(
    "setting, variants",
    [
        ("lr=1e-6,1e-5", {"dense", "dense-wide", "random", "sb-moe", "sb-moe-all"}),
        ("num-experts=2,4", {"dense-wide", "random", "sb-moe", "sb-moe-all"}),
        ("gate=linear,mlp", {"dense-wide", "sb-moe", "sb-moe-all"}),  # as many parameters as with it
        ("router=softmax,sigmoid", {"sb-moe", "sb-moe-all"}),  # a control has no router
        ("top-k=1,2,all", {"random", "sb-moe"}),  # a dense layer has no choice, and sb-moe-all has made it
        ("expert-lr=1e-5,1e-4", {"dense-wide", "random", "sb-moe", "sb-moe-all"}),
        ("aux-coef=0,0.1", {"sb-moe", "sb-moe-all"}),
    ],
)
def test_a_variant_that_the_setting_does_not_change_is_not_trained_again(setting, variants):
    assert set(swept(variants="dense,dense-wide,random,sb-moe,sb-moe-all", sweep=setting)) == variants


def test_each_value_has_a_folder_of_its_own_whatever_is_in_it():
    values = ["passage:", "passage;", "passage/", "../up"]
    (found,) = swept(variants="dense", sweep=f"doc-prompt={','.join(values)}").values()
    assert len(set(found.values())) == len(found) == 4
    assert all(path.count("/") == 0 for path in found.values())


def test_values_have_the_types_of_their_flags():
    assert read_sweep("top-k=1,all").values == (1, "all")
    assert read_sweep("noise=True,False").values == (True, False)
    assert read_sweep("layers=all,every-2").values == ("all", "every-2")


@pytest.mark.parametrize("arguments", [["--sweep", "num-experts=2,4"], ["--sweep=num-experts=2,4"]])
def test_a_sweep_is_a_flag(arguments):
    assert parse(CompareConfig, arguments, "compare").sweep == "num-experts=2,4"


@pytest.mark.parametrize("family", ["sb-moe", "moe"])
def test_the_defaults_are_those_of_the_models(family):
    experts = vars(default_experts(family, SHAPE))
    experts |= {"aux_coef": experts["balance_coef"], "drop_upcycling": 0.0}
    theirs = {name: defaults[family] for name, defaults in DEFAULTS.items() if family in defaults}
    assert theirs == {name: experts[name] for name in theirs}
    assert set(DEFAULTS) - set(theirs) == set(SENSELESS[family]) - {"layers"}


def other_values(family):
    """Field of ExpertSettings -> a value that is not the default"""
    return {
        "num_experts": 3, "top_k": 3, "layers": (0,), "expert_size": 7, "router": "sigmoid",
        "gate": "linear" if family == "sb-moe" else "mlp", "noise": family == "moe", "combine": "normalized",
        "renormalize": family == "sb-moe", "activation": "swiglu", "balance_coef": 0.5, "z_coef": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("control", OF_CONTROLS)
@pytest.mark.parametrize("family", ["sb-moe", "moe"])
def test_a_control_is_swept_by_what_makes_it_another_model(control, family):
    """By its parameters, and for what it computes of them."""

    def made(**changes):
        torch.manual_seed(0)
        settings = replace(default_experts(family, SHAPE), **changes)
        if family == "sb-moe":
            module = make_pooled_layer(control, family, settings, 24)
        else:
            module = nn.Module()
            for layer in settings.layers:
                block = nn.Module()
                replace_ffn(block, layer, control, settings, SHAPE)
                module.add_module(str(layer), block)
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        return shapes, getattr(module, "top_k", None), getattr(getattr(module, "ffn", module), "activation", None)

    changed = {name for name, value in other_values(family).items() if made(**{name: value}) != made()}
    assert {"aux_coef" if name == "balance_coef" else name for name in changed} <= set(OF_CONTROLS[control])
    if family == "sb-moe":
        assert changed == set(OF_CONTROLS[control]) - set(SENSELESS[family])


def test_the_rate_of_the_experts_that_is_not_given_is_ten_times_the_other():
    assert effective(CompareConfig(lr=2e-5), "expert_lr") == pytest.approx(2e-4)


def test_the_opponents_of_a_sweep_are_of_the_same_kind_of_experts():
    contest = CompareConfig(variants="dense-wide,dense,sb-moe,moe").contest()
    assert list(contest.opponents()) == ["dense", "dense-wide of sb-moe", "dense-wide of moe"]
    assert list(contest.opponents("moe")) == ["dense", "dense-wide of moe"]
