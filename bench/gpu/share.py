"""A plugin of pytest: of the tests that were collected, those of one process of several.

SHARE=3/12 python -m pytest -p bench.gpu.share ...
"""

import os
import zlib


def pytest_collection_modifyitems(config, items):
    own, shares = map(int, os.environ["SHARE"].split("/"))
    mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % shares == own]
    kept = set(map(id, mine))
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = mine
