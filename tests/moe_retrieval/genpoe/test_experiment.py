"""The experiment: what it asks, that it runs from nothing to a table, and that it does nothing twice."""

import json

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import read_examples
from moe_retrieval.genpoe.experiment import main
from moe_retrieval.genpoe.experiment_asked import MOST, WAYS, asked, with_one_right
from moe_retrieval.genpoe.experiment_results import table
from moe_retrieval.genpoe.facts_settings import FactsSettings
from moe_retrieval.genpoe.has_answer import has_answer
from moe_retrieval.genpoe.synthetic import make_facts

TINY = {
    "seeds": 1, "decoder_people": 8, "train_people": 8, "test_people": 4, "hidden_size": 16, "blocks": 2,
    "heads": 2, "rank": 2, "bottleneck": 4,
    "decoder_steps": 2, "reranker_steps": 2, "expert_steps": 2,
}  # fmt: skip


def flags(folder, **changes):
    settings = TINY | {"output_dir": folder} | changes
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_of_the_passages_that_are_asked_with_one_is_right_and_the_others_are_what_they_are_called():
    facts = make_facts(FactsSettings(test_people=12, decoder_people=1, train_people=1, dev_people=1, negatives=9))
    examples = list(facts.examples("test"))
    scored = []
    for example in with_one_right(examples):
        assert len(example.ctxs) == MOST
        ranked = [passage._replace(score=-float(place)) for place, passage in enumerate(example.ctxs[::-1])]
        scored.append(example._replace(ctxs=tuple(ranked)))
    for example, files in zip(examples, asked(examples, scored)):
        (right,) = example.positives
        assert {each.question for each in files.values()} == {example.question}
        assert [each.id for each in files["right"].ctxs] == [right.id]
        (same,), (relative,) = files["same"].ctxs, files["relative"].ctxs
        assert (same.title, same.id != right.id) == (right.title, True)
        assert (relative.title.split()[1], relative.title != right.title) == (right.title.split()[1], True)
        ranked = files["weighed"].ctxs
        assert ranked[0].id == right.id
        assert [has_answer(each.text, example.answers) for each in ranked] == [True] + [False] * (MOST - 1)
        assert [each.score for each in ranked[1:]] == sorted((each.score for each in ranked[1:]), reverse=True)
        assert [each.id for each in files["alike"].ctxs] == [each.id for each in ranked]
        assert {each.score for each in files["alike"].ctxs} == {None}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    main(flags(folder))
    return folder


def test_it_runs_from_nothing_to_a_table(home):
    results = json.loads((home / "results.json").read_text())
    (measured,) = results["seeds"].values()
    assert measured["questions"] == 6 * 4
    assert list(measured["answers"]) == [way.name for way in WAYS]
    for way in WAYS:
        assert set(measured["answers"][way.name]) == {"EM", "F1"}
    assert measured["retrieval"].keys() == {"BM25", "reranker"}
    told = table(results)
    assert all(f"| {way.name} " in told for way in WAYS)
    assert "Each seed asks 24 questions." in told


def test_what_is_done_is_not_done_again_and_what_lacks_is(home):
    seed = home / "seed-0"
    (seed / "answers" / "closed-book.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in seed.rglob("*") if path.is_file() and path.suffix != ".lock"}
    main(flags(home))
    changed = {str(path.relative_to(seed)) for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed <= {"seconds.json"}
    assert len(list(read_examples(seed / "answers" / "closed-book.json"))) == 6 * 4


def test_other_settings_need_another_folder(home):
    with pytest.raises(InputError, match=r"holds an experiment with rank 2 \(now 3\): give another --output-dir"):
        main(flags(home, rank=3))


def test_a_size_that_makes_no_sense_is_told(tmp_path):
    with pytest.raises(InputError, match="--rank must be at least 1, got 0"):
        main(flags(tmp_path, rank=0))
