"""The one exception that commands turn into one line and exit status 2."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what, where and what was expected."""
