"""DPR's formats of questions: what is read of them, what is refused with its place, and that writing loses nothing."""

import gzip
import json

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, Passage, answered, check_target, read_examples, write_examples

TRAINING = {
    "dataset": "nq_train_psgs_w100",
    "question": "big little lies season 2 how many episodes",
    "answers": ["seven"],
    "positive_ctxs": [
        {"title": "Big Little Lies", "text": "series", "score": 1000, "title_score": 1, "passage_id": "18768923"}
    ],
    "negative_ctxs": [{"title": "Cormac", "text": "took place", "score": 0, "passage_id": "11828866"}],
    "hard_negative_ctxs": [
        {"title": "Little People", "text": "final minutes", "score": 18.758354, "title_score": 0, "psg_id": 7459116}
    ],
}
RETRIEVED = {
    "question": "who got the first nobel prize",
    "answers": ["Wilhelm Conrad Röntgen"],
    "ctxs": [{"id": "628725", "title": "Nobel", "text": "Wilhelm", "score": "83.46", "has_answer": True}],
}


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_training_data_and_results_of_dpr_are_read(tmp_path):
    first, second = read_examples(write_json(tmp_path / "x.json", [TRAINING, RETRIEVED]))
    assert first == Example(
        TRAINING["question"],
        ("seven",),
        positives=(Passage("18768923", "Big Little Lies", "series", 1000.0),),
        hard_negatives=(Passage("7459116", "Little People", "final minutes", 18.758354),),
    )
    assert second.ctxs == (Passage("628725", "Nobel", "Wilhelm", 83.46, True),)


def test_questions_of_dpr_are_read(tmp_path):
    """With the quotes that Python's csv puts around a column with quotes in it."""
    lines = 'who sang it\t[\'A\', "O\'Hara"]\nwhat "is" it\t"[\'a ""b""\']"\n'
    expected = [Example("who sang it", ("A", "O'Hara")), Example('what "is" it', ('a "b"',))]
    (tmp_path / "nq.qa.csv").write_text(lines)
    (tmp_path / "nq.qa.csv.gz").write_bytes(gzip.compress(lines.encode()))
    assert list(read_examples(tmp_path / "nq.qa.csv")) == expected
    assert list(read_examples(tmp_path / "nq.qa.csv.gz")) == expected


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_what_is_written_is_read_again(tmp_path, name):
    passage = Passage("1", "Tïtle", 'text\twith "signs"\n', 0.1, False)
    examples = [
        Example("a", ("b", "c"), (passage, passage._replace(has_answer=None, score=None)), (passage,), (passage,), ""),
        Example("d"),
        Example("e", ("f",), prediction="g"),
    ]
    assert write_examples(tmp_path / name, iter(examples)) == 3
    assert list(read_examples(tmp_path / name)) == examples
    if name.endswith(".json"):
        first, *_ = json.loads((tmp_path / name).read_text("utf-8"))
        assert first["ctxs"][0] == passage._asdict()
        assert list(first["ctxs"][0]) == ["id", "title", "text", "score", "has_answer"]
        assert first["hard_negative_ctxs"][0]["passage_id"] == "1"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_stays_as_it_was_where_its_successor_fails(tmp_path):
    write_examples(tmp_path / "x.json", [Example("a")])

    def failing():
        yield Example("b")
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        write_examples(tmp_path / "x.json", failing())
    assert list(read_examples(tmp_path / "x.json")) == [Example("a")]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


BAD = {
    "no question": ({"answers": ["b"]}, 'entry 2: expected a "question" that is a string, got only answers'),
    "empty question": ({"question": " "}, "entry 2: the question is empty"),
    "no list of answers": ({"question": "a", "answers": "b"}, 'entry 2: expected "answers" that are a list of texts'),
    "no answers": ({"question": "a", "answers": []}, 'entry 2: expected "answers" with at least one that is not empty'),
    "empty answers": ({"question": "a", "answers": [" "]}, 'expected "answers" with at least one that is not empty'),
    "number": ({"question": "a", "answers": [1998]}, 'expected "answers" that are a list of texts, got [1998]'),
    "passages": ({"question": "a", "ctxs": {"1": 2}}, 'expected "ctxs" that is a list of objects'),
    "no text": ({"question": "a", "ctxs": [{"text": "b"}, {"title": "b"}]}, 'ctxs[1]: expected a "text"'),
    "score": ({"question": "a", "ctxs": [{"text": "b", "score": "nan"}]}, 'a "score" that is a finite number'),
    "has_answer": ({"question": "a", "ctxs": [{"text": "b", "has_answer": 1}]}, 'a "has_answer" that is true or false'),
}


@pytest.mark.parametrize("record, message", BAD.values(), ids=list(BAD))
def test_a_bad_example_is_refused_with_its_place(tmp_path, record, message):
    path = write_json(tmp_path / "x.json", [{"question": "fine"}, record])
    with pytest.raises(InputError) as caught:
        list(read_examples(path))
    assert str(caught.value).startswith(f"{path}:entry 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_LINES = {
    "one": "x.csv:2: expected question and answers between a tab, got 1 columns",
    "a\t['b'": "x.csv:2: expected answers like ['one', 'another'], got",
    "a\t[]": 'x.csv:2: expected "answers" with at least one',
    "a\t__import__('os')": "x.csv:2: expected answers like ['one', 'another'], got",
    " \t['b']": "x.csv:2: the question is empty",
    "a\t\"['b']": "x.csv:2: not columns between tabs (unexpected end of data)",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_of_questions_is_refused(tmp_path, line):
    (tmp_path / "x.csv").write_text(f"fine\t['b']\n{line}\n")
    with pytest.raises(InputError) as caught:
        list(read_examples(tmp_path / "x.csv"))
    assert BAD_LINES[line] in str(caught.value)


def test_files_without_what_is_needed_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match=r"x\.json: holds no question"):
        list(read_examples(tmp_path / "x.json"))
    with pytest.raises(InputError, match=r"x\.json: expected \"answers\" to every question; 'b' has none"):
        list(answered([Example("a", ("c",)), Example("b")], "x.json"))
    with pytest.raises(
        InputError, match=r"x\.txt: expected the name of a file to write that ends in \.json or \.jsonl"
    ):
        check_target(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"cannot write to .*x\.json"):
        check_target(tmp_path / "x.json" / "y.json")
    (tmp_path / "y.json").mkdir()
    with pytest.raises(InputError, match=r"cannot write to .*y\.json: it is a folder"):
        check_target(tmp_path / "y.json")
    with pytest.raises(InputError, match=r"cannot write to /proc: "):  # where root cannot either
        check_target("/proc/z.json")
