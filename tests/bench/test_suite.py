"""The benchmark as a command: its flags, its modes, its files; and that a wrong contender is not timed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import kernels
from bench import conftest, cpu_encoder, cpu_moe, generated, stored_experts
from bench.cases import correct
from bench.cases.layer import LayerCase
from bench.cases.memory import saved_bytes
from bench.contenders import loop
from bench.contenders.gate import gate_of
from bench.contenders.layers import contenders
from bench.harness import command, fresh, record, turns
from bench.harness.machine import ROOT
from bench.harness.record import BASELINE, OURS, RESULTS, Run
from bench.harness.target import Target

CPU = torch.device("cpu")


def pytest_on(*arguments):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env = inherited | {"OMP_NUM_THREADS": "1"}  # in a worker of xdist, pytest-benchmark would record nothing
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_measured_run(tmp_path):
    before = {path: path.stat().st_mtime for path in RESULTS.iterdir()}
    saved = tmp_path / "ours.json"
    done = pytest_on(
        "bench/test_layer.py", "--benchmark", "--benchmark-quick", "--benchmark-device", "cpu",
        "-k", "SBMoE-T1-", "--benchmark-output", tmp_path / "run.json", f"--benchmark-json={saved}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.load(tmp_path / "run.json")
    assert run.run["mode"] == "quick"
    assert run.run["partial"] is True
    assert run.run["revision"]
    assert {"torch", "python"} <= set(run.run["versions"])
    assert {"gemm_fp32", "gemm_bf16", "copy"} == set(run.peaks)
    (case,) = run.cases
    theirs = {"hf eager", "hf batched_mm", "hf grouped_mm", "dense", "dense onednn"}
    assert {OURS, BASELINE, f"{BASELINE} index_add_", "every expert"} | theirs == set(case.samples)
    assert "liger" in case.skipped
    assert len({len(rounds) for rounds in case.samples.values()}) == 1
    assert all(second > 0 for rounds in case.samples.values() for second in rounds)
    assert case.name in done.stdout
    (theirs,) = json.loads(saved.read_text())["benchmarks"]
    assert theirs["stats"]["median"] == pytest.approx(case.timings.median(OURS), rel=1e-3)
    assert {path: path.stat().st_mtime for path in RESULTS.iterdir()} == before, "a part replaces no whole run"


def test_a_run_is_whole_with_every_file_of_cases():
    """Doctests of other files are collected too, and take nothing away."""
    files = sorted((ROOT / "bench").glob("test_*.py"))

    def is_partial(paths):
        config = SimpleNamespace(suite=SimpleNamespace(partial=False))
        conftest.pytest_collection_modifyitems(config, [SimpleNamespace(path=path) for path in paths])
        return config.suite.partial

    assert not is_partial(files)
    assert not is_partial([*files, ROOT / "bench" / "harness" / "timing.py"])
    assert is_partial([*files[1:], ROOT / "bench" / "harness" / "timing.py"])


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--benchmark-quick"], "go with --benchmark"),
        (["--benchmark", "--benchmark-device", "abacus"], "'abacus' cannot be used"),
        (["--benchmark", "-n", "2"], "does not go with -n"),
    ],
)
def test_bad_flags(arguments, complaint):
    if "-n" in arguments:
        pytest.importorskip("xdist")
    done = pytest_on("bench/test_layer.py", "--collect-only", *arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert complaint in done.stderr


# The tables of targets.


@pytest.mark.parametrize(
    "main, arguments",
    [
        (cpu_moe.main, ["--only", "T=64 "]),
        (cpu_moe.main, ["--only", "experts:"]),
        (stored_experts.main, ["--only", "H=512"]),
        (generated.main, ["--only", "R=64"]),
        (cpu_encoder.main, ["--only", "one"]),
        pytest.param(cpu_encoder.main, ["--only", "experts in"], marks=pytest.mark.slow),
        pytest.param(cpu_encoder.main, ["--memory"], marks=pytest.mark.slow),  # processes of their own
    ],
)
def test_a_table_of_targets_runs_small(main, arguments):
    pytest.importorskip("sentence_transformers")
    if "native" not in kernels.available_backends():
        pytest.skip("the tables are of the native backend")
    before = {path: path.stat().st_mtime for path in RESULTS.iterdir()}
    main(["--smoke", *arguments])
    assert {path: path.stat().st_mtime for path in RESULTS.iterdir()} == before


def two_cases(suite):
    """What a table of targets is made of; `fresh` finds it by its name."""

    def keep(name):
        peer, chosen = 2.0 + suite.turn, dict(suite.chosen) or {"peer": f"batch {suite.turn}"}
        suite.keep("group", name, {OURS: [1.0], "peer": [peer]}, [Target(OURS, "peer", least=1.5)], chosen=chosen)

    return {"first": keep, "second": keep}


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """-> runs a table of targets with these flags, in this process, its results below `tmp_path`"""
    if "native" not in kernels.available_backends():
        pytest.skip("the tables are of the native backend")
    calls = []

    def call(function, *arguments):
        calls.append(arguments[1])
        if len(calls) == tables.stop_at:
            raise KeyboardInterrupt
        return json.loads(json.dumps(fresh.named(function)(*arguments)))

    def tables(part, *arguments):
        calls.clear()
        chosen = command.checked(command.parser(""), arguments)
        command.run(part, f"{__name__}:two_cases", chosen, backbone="tiny")
        return list(calls)

    tables.stop_at = None
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(turns, "PARTS", tmp_path / "parts")
    monkeypatch.setattr(command, "peaks", lambda *arguments: {"copy": 1e9})
    monkeypatch.setattr(
        command, "describe", lambda _: {"device": "A CPU", "versions": {}, "revision": "abc", "time": ""}
    )
    monkeypatch.setattr(fresh, "call", call)
    return tables


def test_a_case_of_a_table_is_of_several_processes(tables, tmp_path, capsys):
    assert tables("a", "--processes", "3") == ["first"] * 3 + ["second"] * 3
    (path,) = (tmp_path / "results").iterdir()
    found = Run.load(path)
    assert found.run["backbone"] == "tiny"
    assert found.cases[0].samples["peer"] == [2.0, 3.0, 4.0]
    assert found.cases[0].chosen == {"peer": "batch 0"}, "the first process finds out, for all"
    (verdict,) = found.cases[0].verdicts
    assert (verdict.figure, verdict.verdict) == (3.0, "met")
    assert "met: kernels: at least 1.5 times as fast as peer: 3" in capsys.readouterr().out


def test_a_part_leaves_the_files_of_the_others(tables, tmp_path):
    tables("a", "--processes", "1")
    before = {path: path.read_text() for path in (tmp_path / "results").iterdir()}
    tables("b", "--processes", "1")
    written = {path: path.read_text() for path in (tmp_path / "results").iterdir()}
    assert len(written) == 2
    assert before.items() <= written.items()


def test_a_table_that_was_stopped_goes_on(tables, tmp_path):
    tables.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        tables("a", "--processes", "3")
    assert not (tmp_path / "results").exists()
    tables.stop_at = None
    assert tables("a", "--processes", "3") == ["second"] * 3
    assert tables("a", "--processes", "3", "--only", "first") == ["first"] * 3
    (path,) = (tmp_path / "results").iterdir()
    assert [case.name for case in Run.load(path).cases] == ["first", "second"]


def test_a_case_that_there_is_not_is_told(tables):
    with pytest.raises(SystemExit, match="error: --only 'third' is in the name of none of: first, second"):
        tables("a", "--only", "third")


def test_a_table_of_no_process_is_refused(capsys):
    with pytest.raises(SystemExit):
        cpu_moe.main(["--processes", "0"])
    assert "error: --processes must be at least 1, got 0" in capsys.readouterr().err


# The proof before the timing.


def prepared(backward=True, **changes):
    torch.manual_seed(0)
    case = replace(LayerCase(dtype=torch.float32, backward=backward), **changes).shrunk()
    layer = case.build(CPU)
    return case, layer, *case.inputs(layer)


class Wrong(nn.Module):
    """A loop with one thing changed."""

    def __init__(self, layer, change):
        super().__init__()
        self.right, self.change = loop.loop(layer), change
        self.gate, self.experts = self.right.gate, self.right.experts

    def forward(self, x):
        weights, indices = self.gate(x)
        if self.change == "weight":
            weights = torch.full_like(weights, 0.5)
        if self.change == "gate without gradient":
            weights = weights.detach()
        if self.change == "expert":
            indices = indices.flip(-1)
        return self.right.mix(x, weights, indices)


@pytest.mark.parametrize("change", ["weight", "gate without gradient", "expert", None])
def test_a_wrong_contender_is_refused(change):
    case, layer, x, grad_y = prepared()
    wrong = {"wrong": Wrong(layer, change)}
    if change is None:
        correct.check(case, layer, wrong, x, grad_y)
        return
    with pytest.raises(AssertionError, match=r"wrong: (y|grad_x) is off by"):
        correct.check(case, layer, wrong, x, grad_y)


def test_a_wrong_peer_is_left_out_and_ours_is_not_forgiven():
    case, layer, x, grad_y = prepared()
    wrong = Wrong(layer, "weight")
    modules, refused = correct.prove(case, layer, {OURS: layer, "wrong": wrong}, x, grad_y, strict=False)
    assert list(modules) == [OURS]
    assert "y is off by" in refused["wrong"]
    broken = {OURS: layer, "broken": nn.Linear(3, 3)}
    assert "raises RuntimeError" in correct.prove(case, layer, broken, x, grad_y, strict=False)[1]["broken"]
    with pytest.raises(AssertionError, match="wrong"):
        correct.prove(case, layer, {OURS: layer, "wrong": wrong}, x, grad_y, strict=True)
    other = case.build(CPU)
    with pytest.raises(AssertionError, match=OURS):
        correct.prove(case, other, {OURS: Wrong(layer, None)}, x, grad_y, strict=False)


PARAMETERS = {
    "grad_up": lambda module: module.experts[0].up.weight,
    "grad_down": lambda module: module.experts[-1].down.weight,
    "grad_up_bias": lambda module: module.experts[1].up.bias,
    "grad_down_bias": lambda module: module.experts[2].down.bias,
    "grad_router": lambda module: module.gate.last.weight,
    "grad_router_bias": lambda module: module.gate.last.bias,
    "grad_hidden": lambda module: module.gate.hidden.weight,
    "grad_hidden_bias": lambda module: module.gate.hidden.bias,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_wrong_gradient_of_one_expert_or_of_the_router_is_refused(name):
    case, layer, x, grad_y = prepared(layer="SBMoE", activation="relu")
    wrong = loop.loop(layer)
    PARAMETERS[name](wrong).register_hook(lambda grad: grad * 1.1)
    with pytest.raises(AssertionError, match=f"wrong: {name} is off by 1.0e-01 in"):
        correct.check(case, layer, {"wrong": wrong}, x, grad_y)


@pytest.mark.parametrize("row", [0, 16, 32])
def test_one_wrong_row_is_refused(row):
    case, layer, x, grad_y = prepared(tokens=4096)

    class OneRowWrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.right = loop.loop(layer)

        def forward(self, x):
            y = self.right(x).clone()
            y[row] = 0
            return y

    with pytest.raises(AssertionError, match="wrong: y is off by"):
        correct.check(replace(case, backward=False), layer, {"wrong": OneRowWrong()}, x, grad_y)


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu"])
@pytest.mark.parametrize("layer", ["MoE", "SBMoE"])
@pytest.mark.parametrize("top_k", [1, 2, "all"])
def test_every_contender_is_right_on_every_kind_of_layer(layer, activation, top_k):
    case, built, x, grad_y = prepared(layer=layer, activation=activation, top_k=top_k, skewed=layer == "MoE")
    modules, _ = contenders(case, built)
    assert {OURS, BASELINE, f"{BASELINE} index_add_", "hf eager", "hf grouped_mm", "dense onednn"} <= set(modules)
    correct.check(case, built, modules, x, grad_y)


def test_skewed_routing_is_skewed():
    def largest_share(skewed):
        case, layer, x, _ = prepared(tokens=4096, skewed=skewed)
        case = replace(case, tokens=4096)
        x, _ = case.inputs(layer)
        counts = torch.bincount(gate_of(layer)(x)[1].flatten(), minlength=case.experts)
        return counts.max().item() / counts.sum().item()

    assert largest_share(skewed=False) < 0.3
    assert largest_share(skewed=True) > 0.35


# Memory.


def test_saved_bytes_leave_out_parameters_and_their_casts():
    linear = nn.Linear(32, 48, bias=False)
    x = torch.randn(7, 32, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear.parameters()) == x.nbytes
    with torch.autocast("cpu", torch.bfloat16):
        assert saved_bytes(lambda: linear(x), linear.parameters()) == x.nbytes // 2
    assert saved_bytes(lambda: linear(x), []) == x.nbytes + linear.weight.nbytes
