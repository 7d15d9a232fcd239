"""Ctrl-C is noted, whoever still reads what is said of it."""

import os
import signal

from moe_retrieval.training.interruption import Interruption


def test_ctrl_c_is_noted_where_nobody_reads_standard_error_any_more():
    """Of `2>&1 | tee log`, tee is the first to die of the same Ctrl-C."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
    assert interruption.wanted
