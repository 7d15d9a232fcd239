"""What keeps the house in order: short argument lists, one contract, rooms that know only what lies below them."""

import ast
import re
from pathlib import Path

import pytest

from kernels import contract

ROOT = Path(__file__).parent.parent
SOURCES = [path for package in ("kernels", "moe_retrieval") for path in sorted((ROOT / package).rglob("*.py"))]
MOST = 8

PROMISED = {"kernels/functional.py": {"moe", "expert_mlp"}, "kernels/layers.py": {"MoE.__init__", "SBMoE.__init__"}}
"""Signatures that are promised to callers as they are."""


def functions(tree):
    """(name within the file, node) of every function."""

    def walk(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield prefix + child.name, child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    return walk(tree, "")


def is_boundary(node):
    """The body of an op, whose schema is its signature, or a kernel of a GPU."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(re.match(r"ops\.define|triton\.jit", decorator) for decorator in decorators)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_has_many_parameters(path):
    promised = PROMISED.get(str(path.relative_to(ROOT)), set())
    for name, node in functions(ast.parse(path.read_text())):
        arguments = node.args
        count = len([a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg != "self"])
        assert count <= MOST or name in promised or is_boundary(node), f"{name} has {count} parameters"


def test_what_a_backend_can_do_is_asked_in_one_file():
    """Elsewhere a backend is an object whose contract is settled: nothing looks for a function of it by name."""
    names = "|".join((*contract.PRIMITIVES, *contract.FUSIONS))
    asking = re.compile(rf"""(hasattr|getattr)\((backend|module|[^()"]*\([^()]*\)), "({names}|supports)\"""")
    assert asking.search('getattr(dispatch.pick(device, dtype), "layer", None)')
    assert not [path for path in SOURCES if asking.search(path.read_text())]
