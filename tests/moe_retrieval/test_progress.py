"""What is said of long work: lines where there is no terminal, nothing of short work, and of rank 0 alone."""

import io
import re
import sys
import time
from contextlib import suppress

import pytest

from moe_retrieval import progress
from moe_retrieval.progress import Meter


def test_a_line_says_how_far_it_is_how_fast_and_how_long_it_will_be():
    meter = Meter("training", 100, "steps", done=20)
    assert meter.line(30) == "20 of 100 steps, 0:30 so far"
    for _ in range(10):
        meter.advance(loss="0.51")
    assert meter.line(20) == "30 of 100 steps, loss 0.51, 2.0 s each, 2:20 left"
    meter.advance(30)
    assert meter.line(10) == "60 of 100 steps, 4.0 a second, 0:10 left"
    assert Meter("BM25").line(90) == "1:30 so far"
    assert Meter("texts", 3_000_000, "texts").line(7322) == "0 of 3,000,000 texts, 2:02:02 so far"


def test_items_that_go_by_are_counted_when_they_are_done_with():
    meter = Meter("training", 3, "steps")
    assert [(item, meter.done) for item in meter.over("abc")] == [("a", 0), ("b", 1), ("c", 2)]
    assert meter.done == 3


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)


def test_lines_come_while_nothing_of_ours_is_called_and_end_with_the_work(impatient, capsys):
    with Meter("index", 3, "documents") as meter:
        time.sleep(0.1)
        meter.advance(2)
        time.sleep(0.1)
        meter.advance()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "index: 0 of 3 documents, 0:00 so far"
    assert any(re.fullmatch(r"index: 2 of 3 documents, [0-9.]+ a second, 0:00 left", line) for line in shown)
    assert re.fullmatch(r"index: 3 of 3 documents, in 0:00", shown[-1])
    time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_work_that_fails_is_not_said_to_be_done(impatient, capsys):
    with suppress(KeyError), Meter("index", 3, "documents"):
        time.sleep(0.05)
        raise KeyError
    assert "in 0:00" not in capsys.readouterr().err


def test_short_work_other_ranks_and_no_label_say_nothing(capsys, monkeypatch):
    with Meter("index", 3, "documents"):
        pass
    monkeypatch.setattr(progress, "EVERY", 0.01)
    with Meter(None, 3):
        time.sleep(0.05)
    monkeypatch.setenv("RANK", "1")
    with Meter("index", 3, "documents"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_where_standard_error_is_closed_nothing_is_said(impatient, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Meter("index", 3, "documents") as meter:
        time.sleep(0.05)
        meter.advance(3)
    monkeypatch.undo()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar_with_what_is_known_from_the_first_part_on(impatient, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Meter("training", 3, "steps") as meter:
        time.sleep(0.15)  # tqdm draws at most every tenth of a second
        meter.advance(loss="0.51")
        shown = sys.stderr.getvalue()
    assert "training:  33%" in shown
    assert "loss=0.51" in shown
    assert "steps/s" in shown or "s/steps" in shown
    assert "so far" not in shown
