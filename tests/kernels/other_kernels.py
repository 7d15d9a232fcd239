"""Hugging Face's package `kernels` without what it does: the modules, the names and the order of imports of 0.17.2.

test_name.py holds this to the real one where pip can get it.
"""

import ast
from pathlib import Path

VERSION = "0.17.2"

HOMES = {
    "_rust": ["Metadata"],
    "_windows": ["_add_additional_dll_paths"],
    "benchmark": ["Benchmark"],
    "deps": ["get_kernel_dep"],
    "hf_hub": ["RepoInfo"],
    "importer": ["LoadedKernel", "get_loaded_kernels"],
    "install": ["install_kernel"],
    "layer": [],
    "load": ["get_kernel", "get_local_kernel", "get_locked_kernel", "has_kernel", "load_kernel"],
    "variants": ["VariantAccepted", "VariantRejected", "get_kernel_variants"],
}
"""Modules that the package imports, in its order, and what it takes from them."""

LAYER_HOMES = {
    "device": ["CUDAProperties", "Device", "ROCMProperties"],
    "func": ["FuncRepository", "LocalFuncRepository", "LockedFuncRepository", "use_kernel_func_from_hub"],
    "kernelize": ["kernelize", "register_kernel_mapping", "use_kernel_mapping"],
    "layer": [
        "KernelizeFallback", "LayerRepository", "LocalLayerRepository", "LockedLayerRepository",
        "replace_kernel_forward_from_hub", "use_kernel_forward_from_hub", "use_kernelized_func",
    ],
    "mode": ["Mode"],
}  # fmt: skip
"""The same of its package `layer`, all of whose names it has itself."""

LAYER_NAMES = sorted(name for names in LAYER_HOMES.values() for name in names)

OTHERS = [
    "_system", "_versions", "archs", "backends", "benchmarks/__init__", "cli/__init__", "compat", "locking",
    "python_deps", "resolver", "status", "validate", "verify", "layer/_interval_tree", "layer/globals", "layer/repos",
]  # fmt: skip

PUBLIC = sorted({name for names in HOMES.values() for name in names if name[0] != "_"} | {*LAYER_NAMES, "__version__"})

SPECIAL = {
    "Mode": "class Mode:\n    INFERENCE = TRAINING = TORCH_COMPILE = FALLBACK = 0\n",
    "get_kernel": "def get_kernel(*arguments, **options):\n    raise OSError('offline')\n",
    "_add_additional_dll_paths": "def _add_additional_dll_paths():\n    pass\n",
}


def _define(name: str) -> str:
    """A class takes any arguments, a function is a decorator that takes any and changes nothing."""
    if name[0].isupper():
        plain = f"class {name}:\n    def __init__(self, *arguments, **options):\n        pass\n"
    else:
        plain = f"def {name}(*arguments, **options):\n    return lambda decorated: decorated\n"
    return SPECIAL.get(name, plain)


def _import(package: str, homes: dict[str, list[str]]) -> str:
    return "".join(f"from {package}{home} import {', '.join(names)}\n" for home, names in homes.items())


def write(folder: Path, version: str) -> Path:
    """-> the folder, with the package and its metadata in it, as they lie in a site-packages"""
    files = {f"kernels/{name}.py": "" for name in OTHERS}
    files |= {f"kernels/{home}.py": "\n".join(map(_define, names)) for home, names in HOMES.items() if names}
    files |= {f"kernels/layer/{home}.py": "\n".join(map(_define, names)) for home, names in LAYER_HOMES.items()}
    files["kernels/layer/__init__.py"] = _import(".", LAYER_HOMES) + f"\n__all__ = {LAYER_NAMES}\n"
    files["kernels/__init__.py"] = (
        "import importlib.metadata\n\n__version__ = importlib.metadata.version('kernels')\n\n"
        + _import("kernels.", HOMES | {"layer": LAYER_NAMES})
        + f"\n_add_additional_dll_paths()\n\n__all__ = {PUBLIC}\n"
    )
    metadata = f"kernels-{version}.dist-info"
    files[f"{metadata}/METADATA"] = f"Metadata-Version: 2.4\nName: kernels\nVersion: {version}\n"
    files[f"{metadata}/RECORD"] = "\n".join(f"{name},," for name in [*files, f"{metadata}/RECORD"])
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def modules(folder: Path) -> set[str]:
    """Of the package in this folder, and of its package `layer`, whatever they are written in."""
    paths = [*(folder / "kernels").iterdir(), *(folder / "kernels" / "layer").iterdir()]
    found = [path for path in paths if path.suffix in (".py", ".so") or (path / "__init__.py").is_file()]
    return {str((path.parent / path.name.split(".")[0]).relative_to(folder)) for path in found}


def names(folder: Path) -> dict[str, list[str]]:
    """`__all__` of the package and of `layer`, and from where each of both takes what, in order."""
    said = {}
    for name in ("kernels", "kernels/layer"):
        tree = ast.parse((folder / name / "__init__.py").read_text())
        imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        said[f"imports of {name}"] = [
            f"{node.level} {node.module} {sorted(a.name for a in node.names)}" for node in imports
        ]
        (listed,) = (
            node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
        said[f"all of {name}"] = sorted(ast.literal_eval(listed))
    return said
