"""plotly.js, which draws the plots of a page, from the package that brings it."""

from functools import cache

INSTALL = "pip install 'moe-retrieval[report]'"


@cache
def plotly_js() -> str | None:
    """All of it as text; None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return get_plotlyjs()
