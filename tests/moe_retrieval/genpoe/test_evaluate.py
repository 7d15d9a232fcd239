"""The command evaluate: measures of predictions and of passages, by hand; what does not fit together is refused."""

import json

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.accuracy import TopK, marked
from moe_retrieval.genpoe.evaluate import main
from moe_retrieval.genpoe.examples import Example, Passage, write_examples


def passages(*texts):
    return tuple(Passage(str(place), "", text) for place, text in enumerate(texts))


EXAMPLES = [
    Example("q1", ("Elgin",), passages("in Elgin", "b", "c", "d", "e"), prediction="the Elgin."),
    Example("q2", ("blue coat",), passages("a", "b", "c", "d", "a blue coat"), prediction="blue"),
    Example("q3", ("oboe", "lute"), passages("a", "lutes", "c", "d", "e"), prediction="harp"),
    Example("q4", ("rice",), passages("a", "b", "c", "d", "e"), prediction=""),
]


def measured(tmp_path, *arguments):
    main([*map(str, arguments), "--output-dir", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "run"}


def test_predictions_and_passages_are_measured(tmp_path, capsys):
    write_examples(tmp_path / "x.json", EXAMPLES)
    expected = {"EM": 1 / 4, "F1": (1 + 2 / 3) / 4, "top-1": 1 / 4, "top-5": 2 / 4}
    assert measured(tmp_path, "--predictions", tmp_path / "x.json") == pytest.approx(expected)
    assert capsys.readouterr().out.startswith(f"{tmp_path}/x.json: 4 questions\nEM         0.2500\n")


def test_what_is_not_there_is_not_measured(tmp_path):
    write_examples(tmp_path / "a.jsonl", [example._replace(ctxs=()) for example in EXAMPLES])
    assert set(measured(tmp_path, "--predictions", tmp_path / "a.jsonl")) == {"EM", "F1"}
    write_examples(tmp_path / "b.jsonl", [example._replace(prediction=None) for example in EXAMPLES])
    assert set(measured(tmp_path, "--predictions", tmp_path / "b.jsonl")) == {"top-1", "top-5"}


def test_answers_may_be_in_another_file(tmp_path):
    write_examples(tmp_path / "x.json", [example._replace(answers=(), ctxs=()) for example in EXAMPLES])
    write_examples(tmp_path / "gold.json", [Example(each.question, each.answers) for each in EXAMPLES[::-1]])
    found = measured(tmp_path, "--predictions", tmp_path / "x.json", "--questions", tmp_path / "gold.json")
    assert found == pytest.approx({"EM": 1 / 4, "F1": (1 + 2 / 3) / 4})


def test_passages_are_measured_by_the_answers_of_the_other_file(tmp_path):
    """And not by what they said of those before."""
    write_examples(tmp_path / "x.json", map(marked, EXAMPLES))
    gold = [each._replace(answers=("Elgin",) if each.question == "q1" else ("b",)) for each in EXAMPLES]
    write_examples(tmp_path / "gold.json", [Example(each.question, each.answers) for each in gold])
    found = measured(tmp_path, "--predictions", tmp_path / "x.json", "--questions", tmp_path / "gold.json")
    assert (found["top-1"], found["top-5"]) == (1 / 4, 3 / 4)  # q1 by its first passage, q2 and q4 by their second


def test_a_question_that_is_asked_twice_has_its_own_answers_each_time(tmp_path):
    asked = ("q", "other", "q")
    write_examples(tmp_path / "x.json", [Example(each, prediction=f"{place}") for place, each in enumerate(asked)])
    write_examples(tmp_path / "gold.json", [Example("other", ("1",)), Example("q", ("0",)), Example("q", ("2",))])
    arguments = ["--predictions", tmp_path / "x.json", "--questions", tmp_path / "gold.json"]
    assert measured(tmp_path, *arguments)["EM"] == 1
    write_examples(tmp_path / "gold.json", [Example("other", ("1",)), Example("q", ("0",))])
    with pytest.raises(InputError, match=r"x\.json: the question 'q' comes more often than in .*gold\.json"):
        measured(tmp_path, *arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda each: each._replace(answers=()), r'x\.json: expected "answers" to every question; \'q1\' has none'),
        (lambda each: each._replace(prediction=None, ctxs=()), 'expected a "prediction" or "ctxs" with each question'),
        (
            lambda each: each if each.question == "q1" else each._replace(prediction=None),
            'expected "prediction" with every question, found it with 1 of 4',
        ),
        (
            lambda each: each._replace(ctxs=()) if each.question == "q1" else each,
            'expected "ctxs" with every question, found it with 3 of 4',
        ),
    ],
)
def test_a_file_that_has_not_enough_is_refused(tmp_path, change, message):
    write_examples(tmp_path / "x.json", map(change, EXAMPLES))
    with pytest.raises(InputError, match=message):
        main(["--predictions", str(tmp_path / "x.json")])


def test_files_of_other_questions_are_refused(tmp_path):
    write_examples(tmp_path / "x.json", EXAMPLES[:3])
    write_examples(tmp_path / "gold.json", EXAMPLES)
    arguments = ["--predictions", str(tmp_path / "x.json"), "--questions", str(tmp_path / "gold.json")]
    with pytest.raises(InputError, match=r"x\.json: has 3 of 4 questions of .*gold\.json; 'q4' lacks"):
        main(arguments)
    write_examples(tmp_path / "gold.json", EXAMPLES[:2])
    with pytest.raises(InputError, match=r"x\.json: the question 'q3' is not in .*gold\.json"):
        main(arguments)


def test_what_a_passage_says_of_itself_is_kept_and_the_rest_looked_up():
    said = (Passage("1", "", "nothing", has_answer=True), Passage("2", "", "in Elgin"), Passage("3", "", "nothing"))
    assert [each.has_answer for each in marked(Example("q", ("elgin",), said)).ctxs] == [True, True, False]
    assert [each.has_answer for each in marked(Example("q", (), said)).ctxs] == [True, None, None]


def test_questions_without_answers_do_not_count():
    counter = TopK()
    assert list(counter.watch(map(marked, [EXAMPLES[0], EXAMPLES[1]._replace(answers=())])))
    assert (counter.questions, counter.shares()) == (1, {"top-1": 1.0, "top-5": 1.0})
    assert TopK().shares() == {}
