"""The power with which a cost grows."""

import math
from collections.abc import Mapping


def exponent(costs: Mapping[float, float]) -> float:
    """The slope of log(cost) over log(size), by least squares: 1 is proportional, 0 does not grow.

    >>> round(exponent({100: 1.0, 200: 2.0, 400: 4.0}), 3)
    1.0
    """
    if len(costs) < 2:
        raise ValueError(f"costs must have at least 2 sizes, got {sorted(costs)}")
    points = [(math.log(size), math.log(cost)) for size, cost in costs.items()]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
