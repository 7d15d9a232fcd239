"""Docstrings of a Python package, read from its source: nothing is imported.

Three places hold them: the docstrings of functions and classes; `add_docstr(torch.sort, "...")`, by which torch
documents its operators; `add_newdoc("numpy._core.multiarray", "array", "...")`, by which numpy does.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SKIPPED_FOLDERS = {"tests", "test", "testing", "site-packages", "dist-packages", "idlelib", "turtledemo", "lib2to3"}
SKIPPED_FILES = ("test_", "modular_")
"""modular_*: what transformers generates its modeling_* files from, word for word"""


class Docstring(NamedTuple):
    name: str
    """qualified, as one would import it: sklearn.cluster.KMeans.fit, not sklearn.cluster._kmeans.KMeans.fit"""
    summary: str
    """the first sentence, as one line"""
    rest: str


def of_package(root: Path, package: str) -> Iterator[Docstring]:
    """All that is public under this folder, in the order of the files' names."""
    files = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts) or path.name.startswith(SKIPPED_FILES):
            continue
        if package == "torch" and any(part.startswith("_") for part in parts[:-1]):
            continue  # the insides of its compiler; other packages re-export what lies in a private folder
        files[path] = ".".join(part for part in (package, *parts) if part and part != "__init__")
    names = PublicNames()
    for path, module in files.items():
        if path.stem in ("__init__", "api"):
            names.read(path.read_bytes(), module)
    for path, module in files.items():
        yield from of_source(path.read_bytes(), module, names)


class PublicNames:
    """Under which name a package shows what it defines: torch.nn.Linear for torch.nn.modules.linear.Linear.

    Follows the `from .x import y` and `from .x import *` of its __init__ files, and drops what is private then.
    """

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self.shown_whole: dict[str, str] = {}

    def read(self, source: bytes, package: str) -> None:
        tree = _parse(source)
        for node in ast.walk(tree) if tree else ():
            if not isinstance(node, ast.ImportFrom):
                continue
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for item in node.names:
                shown = item.asname or item.name
                if item.name == "*":
                    self._keep_shortest(self.shown_whole, module, package)
                elif not shown.startswith("_"):
                    self._keep_shortest(self.shown, f"{module}.{item.name}", f"{package}.{shown}")

    @staticmethod
    def _keep_shortest(names: dict[str, str], key: str, value: str) -> None:
        if key not in names or value.count(".") < names[key].count("."):
            names[key] = value

    def of(self, module: str, definition: str) -> str:
        """`definition` is Class.method, or a function's name."""
        top, dot, rest = definition.partition(".")
        for _ in range(8):  # a chain of re-exports is short; a circle of them would have no end
            shown = self.shown.get(f"{module}.{top}")
            if shown:
                module, _, top = shown.rpartition(".")
            elif module in self.shown_whole:
                module = self.shown_whole[module]
            else:
                break
        return ".".join(part for part in (module.split("._")[0].lstrip("_"), top + dot + rest) if part)


def _parse(source: bytes) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # templates and files of another Python
        return None


def of_source(source: bytes, module: str, names: PublicNames) -> Iterator[Docstring]:
    tree = _parse(source)
    if tree is None:
        return
    if b"add_docstr" in source or b"add_newdoc" in source:
        yield from _calls(tree, module, names)
    for definition, doc in _definitions(tree):
        yield from _split(names.of(module, definition), doc)


def _definitions(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, str]]:
    """-> (Class.method, its docstring)"""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If | ast.Try):
            yield from _definitions(node, scope)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            doc = ast.get_docstring(node)
            if doc:
                yield scope + node.name, doc
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{scope}{node.name}.")


def _calls(tree: ast.Module, module: str, names: PublicNames) -> Iterator[Docstring]:
    known: dict[str, Any] = {}
    for statement in tree.body:
        value = getattr(statement, "value", None)
        targets = getattr(statement, "targets", [])
        target = targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else None
        if not isinstance(value, ast.Call):
            continue
        function = ast.unparse(value.func).rpartition(".")[2].lstrip("_")
        if function in ("add_docstr", "add_docstr_all") and len(value.args) == 2:
            if target:
                name = names.of(module, target)
            elif function == "add_docstr_all":
                name = f"torch.Tensor.{_evaluate(value.args[0], known)}"
            else:
                name = ast.unparse(value.args[0])
            doc = _evaluate(value.args[1], known)
        elif function == "add_newdoc" and len(value.args) == 3:
            place, item, doc = (_evaluate(argument, known) for argument in value.args)
            if isinstance(doc, tuple) and len(doc) == 2:  # (method, its docstring)
                item, doc = f"{item}.{doc[0]}", doc[1]
            name = names.of(str(place), str(item))
        elif function == "array_method_doc" and len(value.args) == 3:
            method, arguments, doc = (_evaluate(argument, known) for argument in value.args)
            name, doc = f"numpy.ndarray.{method}", f"{method}({arguments})\n\n{doc}"
        else:
            known[target or ""] = _evaluate(value, known)
            continue
        if isinstance(doc, str) and "._" not in name:
            yield from _split(name, textwrap.dedent(doc).strip())


def _evaluate(node: ast.expr, known: dict[str, Any]) -> Any:
    """The value of the few expressions that torch and numpy build docstrings with; None for any other."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return known.get(name)
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item, known) for item in items)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = _evaluate(left, known), _evaluate(right, known)
            return "".join(parts) if all(isinstance(part, str) for part in parts) else None
        case ast.Call(func=ast.Name(id="parse_kwargs"), args=[text]):
            return _parse_kwargs(_evaluate(text, known))
        case ast.Call(func=ast.Name(id="merge_dicts"), args=arguments):
            dicts = [_evaluate(argument, known) for argument in arguments]
            return {key: value for given in dicts if isinstance(given, dict) for key, value in given.items()}
        case ast.Call(func=ast.Attribute(value=text, attr="format"), args=[], keywords=keywords):
            template, values = _evaluate(text, known), dict[str, Any]()
            for keyword in keywords:
                value = _evaluate(keyword.value, known)
                values.update(value if isinstance(value, dict) else {str(keyword.arg): value or keyword.arg})
            return _fill(template, values) if isinstance(template, str) else None
    return None


def _parse_kwargs(text: Any) -> dict[str, str] | None:
    """torch's notation: entries "name (type): description", continued by deeper lines -> name -> entry"""
    if not isinstance(text, str):
        return None
    entries = re.split(r"\n(?=\S)", textwrap.dedent(text).strip())
    return {entry.split(" ", 1)[0]: entry for entry in entries}


def _fill(template: str, values: dict[str, Any]) -> str:
    """str.format, but a name without a value stays as it is"""
    filled = re.sub(r"(?<!{){(\w+)}(?!})", lambda match: str(values.get(match[1], match[1])), template)
    return filled.replace("{{", "{").replace("}}", "}")


_ROLE = re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_SECTION = re.compile(
    r"\n(?=\s*(?:Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|Inputs?|Shape)\s*:)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)\s+(?=[A-Z])")
_PARAMETER = re.compile(r"\w+ \(.*\):")


def _split(name: str, doc: str) -> Iterator[Docstring]:
    """The summary and the rest, unless the docstring is too short to be both."""
    plain = _SECTION.sub("\n\n", _ROLE.sub(r"\1", doc).replace("`", ""), count=1)
    paragraphs = re.split(r"\n\s*\n", plain.strip())
    called = re.compile(rf"(?:\w+\.)*{re.escape(name.rpartition('.')[2])}\([^)]*\)(?:[ ]*->[^\n]*)?\s*(?:--)?\s*")
    signatures = []
    while paragraphs and (signature := called.match(paragraphs[0])):
        signatures.append(signature[0].strip())
        paragraphs[0] = paragraphs[0][signature.end() :]
        if not paragraphs[0]:
            paragraphs.pop(0)
    if not paragraphs:
        return
    summary, *more = _SENTENCE_END.split(" ".join(paragraphs[0].split()), maxsplit=1)
    rest = "\n\n".join([*signatures, *more, *paragraphs[1:]])
    if not summary[:1].isalnum() or _PARAMETER.match(summary):
        return
    if 2 <= len(summary.split()) <= 60 and len(rest.split()) >= 5:
        yield Docstring(name, summary, rest)
