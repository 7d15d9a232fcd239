"""Settings that come from files: each value must be of the type that its field declares."""

import math
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from moe_retrieval.errors import InputError

MOST = 2**31 - 1
"""What an int of a setting or a flag can be: no run counts further, and beyond it sizes and torch's own counters
overflow before any of them is compared with anything."""

NAMES = {
    int: f"an int of at most {MOST}",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
    NoneType: "none",
}


def check_types(settings: Any, owner: str) -> None:
    """Raises for the first field of a dataclass that has another type, or a number that is none."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if not any(_is(value, kind) for kind in kinds):
            expected = " or ".join(NAMES.get(kind, "ints") for kind in kinds)
            raise InputError(f"{owner}: {name} must be {expected}, got {value!r:.60}")


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return type(value) is tuple and all(_is(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= MOST and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) <= MOST
    return isinstance(value, kind)
