"""Text that others wrote, on a terminal: what would command the terminal is shown, not obeyed."""

import re

COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of writing."""


def harmless(text: str) -> str:
    r"""With escapes in the place of such characters; what was JSON on one line is the same JSON still.

    >>> harmless("a\x1b[31mb")
    'a\\u001b[31mb'
    """
    return COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
