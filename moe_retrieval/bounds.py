"""Numbers with a least and a most: a function names its argument in the error, a command its flag."""

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


def flag(name: str) -> str:
    """
    >>> flag("max_tokens")
    '--max-tokens'
    """
    return f"--{name.replace('_', '-')}"
