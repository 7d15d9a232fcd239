"""Fused mixture-of-experts layers for BERT-size models, on whatever machine is there.

    layer = kernels.MoE(384, 1536, num_experts=8, top_k=2)      # replaces a Transformer's feed-forward part
    pooled = kernels.SBMoE(384)                                 # follows the pooling of an encoder

Importing this package imports nothing else: torch comes with the first name that needs it.

The `kernels` package of Hugging Face has the same import name. Where both can be imported and ours comes first, a name
that ours does not have is looked up there (`_neighbour`), so that `transformers` finds what it is looking for. Where
both were installed into one folder and our __init__ was written last, it is looked up in their modules.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "MoE": "layers",
    "SBMoE": "layers",
    "moe": "functional",
    "route": "functional",
    "expert_mlp": "functional",
    "generated_experts": "generated",
    "LowRankExperts": "records",
    "Routing": "routing",
    "aux_loss": "losses",
    "router_totals": "losses",
    "collect_without_grad": "sums",
    "update_balance": "losses",
    "packed_attention": "encoder.attention",
    "record_routing": "record",
    "use_backend": "dispatch",
    "available_backends": "dispatch",
    "register_with_transformers": "huggingface",
    "upcycle": "upcycling",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from kernels.dispatch import available_backends as available_backends
    from kernels.dispatch import use_backend as use_backend
    from kernels.encoder.attention import packed_attention as packed_attention
    from kernels.functional import expert_mlp as expert_mlp
    from kernels.functional import moe as moe
    from kernels.functional import route as route
    from kernels.generated import generated_experts as generated_experts
    from kernels.huggingface import register_with_transformers as register_with_transformers
    from kernels.layers import MoE as MoE
    from kernels.layers import SBMoE as SBMoE
    from kernels.losses import aux_loss as aux_loss
    from kernels.losses import router_totals as router_totals
    from kernels.losses import update_balance as update_balance
    from kernels.record import record_routing as record_routing
    from kernels.records import LowRankExperts as LowRankExperts
    from kernels.routing import Routing as Routing
    from kernels.sums import collect_without_grad as collect_without_grad
    from kernels.upcycling import upcycle as upcycle


def _find_neighbour() -> str | None:
    """The folder of the other `kernels` package on sys.path, known by its `layer`: our own, if they share one."""
    from os.path import abspath, exists, join

    for entry in sys.path:
        folder = join(abspath(entry or "."), "kernels")
        has_layer = exists(join(folder, "layer")) or exists(join(folder, "layer.py"))
        if has_layer and exists(join(folder, "__init__.py")):
            return folder
    return None


def _is_ours(folder: str) -> bool:
    from os.path import samefile

    return samefile(folder, __path__[0])


_neighbour = _find_neighbour()
if _neighbour and not _is_ours(
    _neighbour
):  # its modules, none of which has the name of one of ours, import as kernels.X
    __path__.append(_neighbour)


def _load_neighbour(folder: str) -> dict[str, Any]:
    """Runs the other package's __init__ in a namespace of its own, once; its absolute imports arrive back here."""
    from os.path import join

    if "_neighbour_names" not in globals():
        names = globals()["_neighbour_names"] = {
            "__name__": "kernels",
            "__package__": "kernels",
            "__path__": [folder],
            "__file__": join(folder, "__init__.py"),
        }
        try:
            with open(names["__file__"], encoding="utf-8") as file:
                exec(compile(file.read(), names["__file__"], "exec"), names)
        except BaseException:  # half a package would answer that it has no such name
            del globals()["_neighbour_names"]
            raise
    return globals()["_neighbour_names"]


_THEIR_MODULES = ("layer", "load", "variants", "importer", "install", "deps", "hf_hub", "benchmark")
"""Where their names are, in the order in which they are looked for when there is no __init__ of theirs to ask."""


def _find_in_modules(name: str) -> dict[str, Any]:
    from importlib.util import find_spec

    for module in _THEIR_MODULES:
        if find_spec(f"kernels.{module}"):
            names = vars(import_module(f"kernels.{module}"))
            if name in names:
                return names
    return {}


def __getattr__(name: str) -> Any:
    from importlib.util import find_spec

    if name in _HOMES:
        value = getattr(import_module(f"kernels.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"kernels.{name}"):  # a module, which no neighbour needs to be asked for
        return import_module(f"kernels.{name}")
    if _neighbour and not name.startswith("_"):
        try:
            names = _find_in_modules(name) if _is_ours(_neighbour) else _load_neighbour(_neighbour)
        except ImportError as error:
            raise ImportError(
                f"kernels.{name} was looked for in Hugging Face's package of the same name, at {_neighbour}, "
                f"which cannot be imported: {error}"
            ) from error
        if name in names:
            return names[name]
    raise AttributeError(f"module 'kernels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
