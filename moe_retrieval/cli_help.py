"""The help of a command: what a flag is where it is not given, in words, and not that it is None."""

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

UNSET = re.compile(r"(?:^|[;.]\s+)None\s+is\s+(?P<default>.*?)\.?$", re.DOTALL)
"""How the docstring of a field ends that says what None stands for"""


def with_plain_defaults(kind: type) -> type:
    """A dataclass with the same flags, whose optional ones say "default: the backbone's" and not {None}|STR."""
    docs, hints = _field_docs(kind), get_type_hints(kind, include_extras=True)
    changed = {}
    for field in fields(kind):
        if field.default in (None, ()):
            found = UNSET.search(docs[field.name])
            default = " ".join(found["default"].split()) if found else "none"
            words = docs[field.name][: found.start()] if found else docs[field.name]
            shown = tyro.conf.arg(
                metavar=metavar(hints[field.name]) if field.default is None else "[WORD ...]",
                help=" ".join(words.split()).removesuffix(".") + ".",
                help_behavior_hint=f"(default: {default})",
            )
            changed[field.name] = Annotated[hints[field.name], shown]
    return dataclass(type(kind.__name__, (kind,), {"__annotations__": changed, "__doc__": kind.__doc__}))


def metavar(hint: Any) -> str:
    """
    >>> metavar(int | Literal["all"] | None), metavar(bool | None)
    ('INT|{all}', '{True,False}')
    """
    names = []
    for part in get_args(hint) or (hint,):
        if get_origin(part) is Literal:
            names.append("{" + ",".join(map(str, get_args(part))) + "}")
        elif part is bool:
            names.append("{True,False}")
        elif part is not NoneType:
            names.append(part.__name__.upper())
    return "|".join(names)


def _field_docs(kind: type) -> dict[str, str]:
    """Field -> the string that follows it in the source, its own or that of a base; "" where none does."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for before, node in zip([None, *body.body], body.body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                docs[node.target.id] = ""
            elif isinstance(before, ast.AnnAssign) and isinstance(node, ast.Expr):
                assert isinstance(before.target, ast.Name)
                assert isinstance(node.value, ast.Constant)
                docs[before.target.id] = str(node.value.value)
    return docs
