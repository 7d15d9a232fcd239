"""Dense retrieval with mixtures of experts: training, evaluation, search.

    model = moe_retrieval.load("minilm")                        # or a run, a Hugging Face directory, a hub repository
    model.encode_query("stable sort"), model.encode_document(texts)
    moe_retrieval.search("runs/main", ["stable sort"])          # an index, or a run that has one

Importing this package imports neither torch nor transformers: both come with the first name that needs them. Where
`transformers` is used, its AutoModel loads our models from this import on.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from moe_retrieval.models.huggingface import register_when_imported


def _check_kernels() -> None:
    """Two distributions own the name `kernels`; in one site-packages the one installed last wins."""
    try:
        kernels = import_module("kernels")
    except ImportError as error:
        raise ImportError(f"moe_retrieval needs its package kernels ({error}): pip install moe-retrieval") from error
    if "MoE" not in getattr(kernels, "__all__", ()):
        raise ImportError(
            f"the package kernels at {getattr(kernels, '__file__', None)} is not the one of moe-retrieval: "
            "pip uninstall kernels, then pip install --force-reinstall --no-deps moe-retrieval; "
            "or, with a source checkout, put it first: PYTHONPATH=CHECKOUT"
        )


_check_kernels()
register_when_imported()

_HOMES = {
    "load": "retrieval.model",
    "Model": "retrieval.model",
    "Index": "retrieval.index",
    "InputError": "errors",
}
_COMMANDS = ("train", "evaluate", "search")

__all__ = sorted((*_HOMES, *_COMMANDS))

if TYPE_CHECKING:
    from moe_retrieval.errors import InputError as InputError
    from moe_retrieval.retrieval.index import Index as Index
    from moe_retrieval.retrieval.model import Model as Model
    from moe_retrieval.retrieval.model import load as load


class _Command(ModuleType):
    """A submodule that can be called by the function of its name: moe_retrieval.train(config)."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **options)


class _Package(ModuleType):
    """Importing a submodule sets it as an attribute here, from wherever: the place to make commands callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _COMMANDS and type(value) is ModuleType:
            value.__class__ = _Command
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return import_module(f"moe_retrieval.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"moe_retrieval.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'moe_retrieval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
