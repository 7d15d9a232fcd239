"""Generated experts timed: contenders, proved right, on the same inputs."""

from dataclasses import replace

from torch import Tensor

from bench.cases.generated import GeneratedCase, Inputs, prove, step
from bench.contenders.generated import CONTENDERS
from bench.harness.peaks import peak_of
from bench.harness.record import BASELINE, OURS
from bench.harness.suite import Suite
from bench.harness.target import Target

PREFILL = [Target(OURS, BASELINE, least=3.0)]


def each(case: GeneratedCase) -> list[GeneratedCase]:
    """Of a size: a prompt, its training, and decoding."""
    return [case, replace(case, backward=True), replace(case, tokens=1)]


def prepared(case: GeneratedCase, suite: Suite) -> tuple[GeneratedCase, Inputs, Tensor | None]:
    case = case.shrunk() if suite.smoke else case
    inputs, grad = case.inputs(suite.device)
    grad_y = grad if case.backward else None
    prove(CONTENDERS, inputs, grad_y)
    return case, inputs, grad_y


def measure(suite: Suite, case: GeneratedCase) -> None:
    sized, inputs, grad_y = prepared(case, suite)
    calls = {name: step(contender, inputs, grad_y) for name, contender in CONTENDERS.items()}
    about = dict(settings=case.settings(suite.device), work={"flops": sized.flops, "peak": peak_of(case.dtype)})
    suite.keep("generated", str(case), suite.time(calls), [] if case.decodes else PREFILL, **about)
