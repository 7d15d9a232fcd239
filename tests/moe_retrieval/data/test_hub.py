"""Data sets of the hub, which `datasets` brings; here from its own cache or a folder."""

import pytest

from moe_retrieval import data
from moe_retrieval.data import hub
from moe_retrieval.errors import InputError
from tests.moe_retrieval.corpora import write_lines

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def repository(monkeypatch):
    """What `datasets` is asked for, and what it answers."""

    def fill(**splits):
        rows = {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        asked = []

        def load_dataset(*arguments):
            asked.append(arguments)
            return datasets.DatasetDict(rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return fill


def judged(collection, split):
    of_document = dict(collection.documents)
    return {
        collection.all_queries[query]: {of_document[name]: score for name, score in answers.items()}
        for query, answers in collection.qrels(split).items()
    }


def test_columns_are_fields_by_their_names(repository):
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": f"n{i}", "id": i} for i in range(3)]
    asked = repository(train=rows, validation=rows[:1], test=rows[1:], other=rows)
    collection = data.load("hf:some/name:triplet")
    assert asked == [("some/name", "triplet")]
    assert collection.name == "some-name-triplet"
    assert judged(collection, "train") == {f"q{i}": {f"p{i}": 1} for i in range(3)}
    assert judged(collection, "dev") == {"q0": {"p0": 1}}
    assert len(collection.given_negatives) == 3
    assert collection.splits == ("dev", "test", "train")


def test_columns_are_mapped_by_a_flag(repository):
    asked = repository(train=[{"question": f"q{i}", "text": f"p{i}", "answer": "x"} for i in range(100)])
    collection = data.load("hf:some/name", columns="query=question, positive=text")
    assert asked == [("some/name", None)]
    assert set(collection.splits) == {"train", "dev", "test"}
    found = {query: answers for split in collection.splits for query, answers in judged(collection, split).items()}
    assert found == {f"q{i}": {f"p{i}": 1} for i in range(100)}


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        (
            [{"question": "q", "text": "p"}],
            None,
            "hf:some/name has the columns question, text: --columns query=COL",
        ),
        (
            [{"question": "q"}],
            "query=question,positive=text",
            "--columns: hf:some/name has no column 'text'; it has q",
        ),
        ([{"query": "q", "positive": 3}], None, 'hf:some/name train:0: expected "positive" to be text, got 3'),
        ([{"query": "q"}], "asked=query,positive=p", "--columns: expected fields and columns like query=question"),
        ([{"query": "q"}], "query", "--columns: expected fields and columns like query=question"),
    ],
)
def test_what_does_not_fit_is_named(rows, columns, message, repository):
    repository(train=rows)
    with pytest.raises(InputError, match=message):
        data.load("hf:some/name", columns=columns)


def test_splits_of_other_names_and_what_the_library_says_are_one_line(repository, monkeypatch):
    repository(everything=[{"query": "q", "positive": "p"}])
    with pytest.raises(InputError, match="hf:some/name has the splits everything; expected some of train, validation"):
        data.load("hf:some/name")

    def fail(*arguments):
        raise ConnectionError("Couldn't reach 'some/name' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^cannot get hf:some/name: Couldn't reach 'some/name' on the Hub$"):
        data.load("hf:some/name")
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="hf:some/name needs the package datasets: pip install datasets"):
        data.load("hf:some/name")


def test_the_library_itself_reads_a_folder(tmp_path):
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(5)]
    for split in ("train", "test"):
        write_lines(tmp_path / "some" / f"{split}.jsonl", rows)
    collection = data.load(f"hf:{tmp_path}/some")
    assert judged(collection, "test") == {f"q{i}": {f"p{i}": 1} for i in range(5)}
    assert "/" not in collection.name
