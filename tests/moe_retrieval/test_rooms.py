"""Which room may import which: a later one of the list the earlier ones, `data` and `models` nothing but files."""

import ast
from pathlib import Path

import pytest

import moe_retrieval

PACKAGE = Path(moe_retrieval.__file__).parent
MAY_IMPORT = {
    "data": set(),
    "models": set(),
    "retrieval": {"data", "models"},
    "evaluation": {"data", "models", "retrieval"},
    "training": {"data", "models", "retrieval", "evaluation", "config"},
    "analysis": {"data", "models", "retrieval", "evaluation", "training", "config"},
    "reporting": {"data", "retrieval", "evaluation", "analysis", "config"},
    "genpoe": {"data", "models", "retrieval", "evaluation", "training", "cli", "pipes"},
}
"""The last has commands of its own."""

BY_ALL = {"bounds", "checksums", "copies", "dataset_names", "errors", "files", "locks", "progress"}


def imported(path):
    """The modules that a file imports anywhere in it, `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_folder_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_no_later_room_and_no_command(room):
    for path in (PACKAGE / room).rglob("*.py"):
        ours = {name.split(".")[1] for name in imported(path) if name.startswith("moe_retrieval.")}
        assert ours <= MAY_IMPORT[room] | BY_ALL | {room}, path


def test_no_test_imports_another():
    for path in Path(__file__).parent.rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("tests.") and ".test_" in name], path
