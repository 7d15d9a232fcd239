"""Our models for `transformers`: registered under their own model type, loaded by AutoModel.

`transformers` takes seconds to import, and most of our commands do not need it. So `moe_retrieval` only watches for
it: `register_when_imported` registers at once what is imported already, and the rest when its module comes.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Registers our model type with `AutoConfig` and `AutoModel`, without importing them."""
    waiting = [name for name in (CONFIGS, MODELS) if not _register_if_imported(name)]
    if waiting and not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register_if_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None or getattr(spec, "_initializing", False):
        return False
    _register(name)
    return True


def _register(name: str) -> None:
    if name == CONFIGS:
        from transformers.models.auto.configuration_auto import AutoConfig

        from moe_retrieval.models.huggingface_config import RetrieverConfig

        AutoConfig.register(RetrieverConfig.model_type, RetrieverConfig, exist_ok=True)
    else:
        from transformers.models.auto.modeling_auto import AutoModel

        from moe_retrieval.models.huggingface_model import RetrieverConfig, RetrieverModel

        AutoModel.register(RetrieverConfig, RetrieverModel, exist_ok=True)


class _Watcher(MetaPathFinder):
    """Lets the other finders find the two modules, and registers after their own code has run."""

    def __init__(self) -> None:
        self.busy = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in (CONFIGS, MODELS) or self.busy:
            return None
        self.busy = True
        try:
            from importlib.util import find_spec

            spec = find_spec(name)
        finally:
            self.busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, name)
        return spec


class _Registering(Loader):
    def __init__(self, loader: Loader, name: str):
        self.loader, self.name = loader, name

    def create_module(self, spec: ModuleSpec) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self.loader.exec_module(module)
        _register(self.name)

    def __getattr__(self, attribute: str) -> Any:  # inspect and pkgutil ask loaders for sources
        return getattr(self.loader, attribute)
