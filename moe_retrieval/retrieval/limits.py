"""How much is encoded at a time unless one says otherwise: here, so that a command's help can say it without torch."""

MAX_TOKENS = 16384
"""Tokens a batch: enough for a CPU; a GPU that is not filled takes more"""
