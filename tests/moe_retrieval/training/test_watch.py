"""What goes wrong with mixtures of experts is seen, and said once."""

import pytest
import torch

from moe_retrieval.errors import InputError
from moe_retrieval.models.encoder import pack
from moe_retrieval.training.history import History
from moe_retrieval.training.watch import FADING, Finding, GateWatch, LossWatch, expert_likeness
from tests.moe_retrieval.steps import ALONE
from tests.moe_retrieval.tiny import tiny_retriever, token_lists


def test_the_gate_is_watched():
    retriever = tiny_retriever("moe").train()
    watch = GateWatch(retriever)
    (name, layer), *_ = watch.layers.items()

    def look():
        with watch.looking(retriever):
            retriever(*pack(token_lists(40)))
        return list(watch.warnings())

    assert not look()
    assert len(watch.shares()[name]) == 4
    assert sum(watch.shares()[name]) == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        layer.router.weight.zero_()  # a tie goes to the lower index
    watch.counts.clear()
    (collapse,) = look()
    assert collapse.text.startswith(f"collapse: 2 of 4 experts of {name} take 100%")
    assert "--aux-coef" in collapse.text
    with torch.no_grad():
        for stack in layer.experts.parameters():
            stack[:] = stack[:1]
    assert [warning.text.split(":")[0] for warning in look()] == ["collapse", "redundancy"]
    assert [warning.text.split(":")[0] for warning in watch.warnings(experts_had_time=False)] == ["collapse"]
    with torch.no_grad():
        layer.experts.down_weight.zero_()
        layer.experts.down_bias.zero_()
    assert expert_likeness(layer, watch.inputs[name]) == 0


def test_the_newest_look_is_kept_beside_the_recent_ones():
    """A log keeps the newest alone: what it says must not depend on looks that were before a run was resumed."""
    retriever = tiny_retriever("moe").train()
    watch = GateWatch(retriever)
    (name, layer), *_ = watch.layers.items()

    def look():
        with watch.looking(retriever):
            retriever(*pack(token_lists(40)))
        return watch.newest[name]

    first = look()
    assert first[2] > 0
    layer.router.weight.data.zero_()  # a tie goes to the lower index
    assert look() == [0.5, 0.5, 0.0, 0.0]
    expected = [(FADING * before + now) / (FADING + 1) for before, now in zip(first, watch.newest[name])]
    assert watch.shares()[name] == pytest.approx(expected, abs=0.001)


def test_the_loss_is_watched():
    watch = LossWatch()
    assert all(watch.warning(step, 1 + 0.1 * (step % 3), 1.0) is None for step in range(20))
    assert "instability: step 20 has loss 5, usually it is 1." in watch.warning(20, 5.0, 1.0).text
    assert "was skipped" in watch.warning(21, float("nan"), 1.0).text
    assert watch.warning(22, 1.0, 1.0) is None
    for step in range(19):
        assert "was skipped" in watch.warning(step, 1.0, float("inf")).text
    with pytest.raises(InputError, match="20 steps in a row without a finite gradient"):
        watch.warning(20, 1.0, float("inf"))


def test_the_same_finding_is_said_once_whatever_its_words(tmp_path, capsys):
    history = History(tmp_path / "log.jsonl", 0, ALONE)
    for key, text in ((("collapse", "a"), "90%"), (("collapse", "a"), "95%"), (("collapse", "b"), "90%")):
        history.warn(Finding(key, text))
    history.close()
    assert capsys.readouterr().out.split("\n") == ["warning: 90%", "warning: 90%", ""]
