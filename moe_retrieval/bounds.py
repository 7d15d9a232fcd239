"""Numbers with a least and a most: a function names its argument in the error, a command its flag."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from moe_retrieval.errors import InputError


def check_bounds(
    settings: Any, bounds: Mapping[str, tuple[int | None, int | None]], spelled: Callable[[str], str] = str
) -> None:
    """Raises for the first attribute that is out of its bounds, name -> (least, most); None is no bound, and in any."""
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        if value is not None and least is not None and value < least:
            raise InputError(f"{spelled(name)} must be at least {least}, got {value}")
        if value is not None and most is not None and value > most:
            raise InputError(f"{spelled(name)} must be at most {most}, got {value!s:.40}")


def check_flags(flags: Any, least: Mapping[str, int], most: Mapping[str, int], longest: int) -> None:
    """Of a command's numbers: each float is finite, each int is at most `most` of its name, or else `longest`."""
    bounds: dict[str, tuple[int | None, int | None]] = {}
    for name, value in vars(flags).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag(name)} must be a finite number, got {value}")
        if isinstance(value, int | float):
            bounds[name] = least.get(name), most.get(name, longest) if isinstance(value, int) else None
    check_bounds(flags, bounds, flag)


def flag(name: str) -> str:
    """
    >>> flag("max_tokens")
    '--max-tokens'
    """
    return f"--{name.replace('_', '-')}"
