"""Random cases against oracles that share no code with `kernels`, until the time is over or one fails.

    python -m tests.kernels.fuzz [--backend native] [--minutes 30] [--seed 0] [--only layers] [--case 1234]

A case is its number: `--only SUBJECT --case N` runs it again, alone. A library compiled with AddressSanitizer:

    MOE_KERNELS_CXXFLAGS="-fsanitize=address -g1" MOE_KERNELS_CACHE=/tmp/asan ASAN_OPTIONS=detect_leaks=0 \\
        LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \\
        python -m tests.kernels.fuzz

(Both, because torch throws exceptions before anything else has brought the second.)
"""

import argparse
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable

import torch
from tqdm import tqdm

import kernels
import tests.conftest  # noqa: F401  before Triton is imported: its interpreter, where there is no GPU
from tests.kernels.fuzz import attention, encoder, experts, layers, residual, threads, upcycled

SUBJECTS: dict[str, Callable[[random.Random, str], object]] = {
    "layers": layers.check,
    "experts": experts.check,
    "attention": attention.check,
    "residual": residual.check,
    "encoder": encoder.check,
    "upcycled": upcycled.check,
    "threads": threads.check,
}
"""Each draws a case, checks it and returns what describes it, `None` where the backend has no such thing."""


def run(subject: str, number: int, backend: str) -> object:
    torch.manual_seed(number)
    with kernels.use_backend(backend):
        return SUBJECTS[subject](random.Random(f"{subject} {number}"), backend)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="native", choices=kernels.available_backends())
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="cases are numbered from a million times this")
    parser.add_argument("--only", choices=SUBJECTS, help="one subject")
    parser.add_argument("--case", type=int, help="one case, of one subject")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    chosen = parser.parse_args()
    if chosen.case is not None and not chosen.only:
        parser.error("--case N needs --only SUBJECT")
    torch.set_num_threads(chosen.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)  # what is not written is NaN
    if chosen.case is not None:
        print(run(chosen.only, chosen.case, chosen.backend))
        return
    done = fuzz([chosen.only] if chosen.only else list(SUBJECTS), chosen.backend, chosen.seed, chosen.minutes)
    print(f"{chosen.backend}: {done.total()} cases held ({', '.join(f'{n} {name}' for name, n in done.items())})")


def fuzz(subjects: list[str], backend: str, seed: int, minutes: float) -> Counter[str]:
    """-> how many cases of each subject held, which are all that were run"""
    done: Counter[str] = Counter()
    deadline = time.monotonic() + 60 * minutes
    with tqdm(desc=backend, unit=" cases", disable=None) as bar:
        for number in itertools.count(1_000_000 * seed):
            for subject in subjects:
                if time.monotonic() > deadline:
                    return done
                try:
                    done[subject] += run(subject, number, backend) is not None
                except BaseException:
                    print(f"\n{backend}: --only {subject} --case {number} fails after {done.total()} that held")
                    raise
                bar.update()
    raise AssertionError("numbers have no end")


if __name__ == "__main__":
    main()
