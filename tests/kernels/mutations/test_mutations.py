"""The script itself is hours to run; that it can be is seen here."""

from pathlib import Path

import pytest

import kernels
from tests.kernels.mutations import __main__ as mutations
from tests.kernels.mutations.changes import AREAS, EAGER

CHANGES = [change for changes in AREAS.values() for change in changes]


def test_no_change_is_made_twice():
    assert len(CHANGES) == len(set(CHANGES)) >= 40


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.file}: {change.idea}")
def test_what_is_changed_stands_there_once(change):
    assert (Path(kernels.__file__).parent / change.file).read_text().count(change.old) == 1


@pytest.mark.slow
def test_a_change_is_noticed_and_taken_back(tmp_path):
    copy = mutations.copy_of_the_checkout(tmp_path)
    failed, _ = mutations.show(copy, "eager", EAGER[0])
    assert failed is not None
    assert (copy / "kernels" / EAGER[0].file).read_bytes() == (mutations.ROOT / "kernels" / EAGER[0].file).read_bytes()
