"""Without a GPU, Triton's kernels run in its interpreter, which must be chosen before Triton is imported."""

import os

import pytest
import torch

from tests import leftovers

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_suite():
    value = leftovers.mark()
    yield
    found = leftovers.outliving(value)
    assert not found, "tests left processes behind:\n" + "\n".join(f"{pid}: {name}" for pid, name in found.items())
