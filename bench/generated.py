"""Generated experts on the native CPU backend against their target: the loop over samples and passages as it is
written, and batched products.

    python -m bench.generated [--processes N] [--seconds S] [--only TEXT] [--smoke]

writes bench/results/MACHINE-generated.json. Eight samples of five passages: prompts of 256 tokens, and one token of
each. Every contender is proven right in fp64 before it is timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from bench.cases import timed_generated
from bench.cases.generated import BASE, SIZES, GeneratedCase
from bench.harness import command
from bench.harness.suite import Suite

IN_FP32 = SIZES[:2]
"""The larger ones differ from these as they do in bf16."""


def cases(suite: Suite) -> dict[str, Callable[[str], None]]:
    found: list[GeneratedCase] = []
    for dtype, sizes in ((torch.bfloat16, SIZES), (torch.float32, IN_FP32)):
        for hidden, rank in sizes:
            found += timed_generated.each(replace(BASE, hidden=hidden, rank=rank, dtype=dtype))
    return {str(case): partial(measure, suite, case) for case in found}


def measure(suite: Suite, case: GeneratedCase, name: str) -> None:
    timed_generated.measure(suite, case)


def main(arguments: Sequence[str] | None = None) -> None:
    command.main("generated", "bench.generated:cases", __doc__, arguments)


if __name__ == "__main__":
    main()
