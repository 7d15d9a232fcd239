"""The one exception that commands turn into one line and exit status 2, and what stands in such lines."""

from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what, where and what was expected."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is otherwise now than in what is there already: "" where nothing is.

    >>> changes({"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.1})
    'seed 0 (now 1)'
    """
    changed = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {_shown(before.get(name))} (now {_shown(now[name])})" for name in changed)


def _shown(value: Any) -> str:
    """In quotes where one would not see it."""
    text = str(value)
    return text if text and text == text.strip() else repr(value)
