"""Colours that people who see few of them can tell apart, on white as on black; marks differ too."""

from moe_retrieval.evaluation.figure import COLORS

GREY = "#8a8f98"
"""Of what was not trained, and of what is no system"""

CLASSES = (*COLORS[:-1], "#999933")
"""Okabe and Ito's, and in the place of their black, which would be lost on a dark page, Tol's olive"""

MARKS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("triangle-down", "v"), ("x", "X"))
"""The same mark by the names of either library"""

AMOUNTS = ("Cividis", "cividis")
"""Colours of numbers that grow, by either library's name"""

SIGNED = ("RdBu", "RdBu_r")
"""Blue below zero, red above"""


def color(place: int) -> str:
    """Below zero, grey."""
    return GREY if place < 0 else CLASSES[place % len(CLASSES)]


def mark(place: int) -> tuple[str, str]:
    """There are as few as one less than colours: both together repeat themselves late."""
    return MARKS[place % len(MARKS)]
