import numpy as np
import pytest
import pytrec_eval
import torch

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.training.preparation import make_pairs
from moe_retrieval.training.validation import Validator, ndcg, of_queries, split_off
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.steps import ALONE
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


def test_a_tenth_of_the_training_queries_is_held_out_where_there_is_no_dev_split(tmp_path):
    write_collection(tmp_path, documents=400, queries=350)
    (tmp_path / "qrels" / "dev.tsv").unlink()
    collection = data.load(str(tmp_path))
    pairs = make_pairs(FAST, collection, ALONE)
    split, queries, rows = split_off(collection, pairs)
    assert (split, len(queries), len(rows)) == ("train", 31, 310 - 31)
    assert not {pairs.pairs[row][0] for row in rows} & set(queries)


def test_embeddings_that_are_no_numbers_have_no_score(tmp_path):
    collection = data.load(str(write_collection(tmp_path)))
    retriever = tiny_retriever()
    validator = Validator(collection, "dev", list(collection.qrels("dev")), tiny_tokenizer(), retriever)
    assert 0 <= validator.score(retriever, ALONE, "fp32") <= 1
    with torch.no_grad():
        retriever.encoder.norm.weight[0] = float("nan")
    assert np.isnan(validator.score(retriever, ALONE, "fp32"))


def split(folder, **sizes):
    collection = data.load(str(write_collection(folder, **sizes)))
    return split_off(collection, make_pairs(FAST, collection, ALONE))


def test_a_dev_split_of_a_few_queries_chooses_nothing(tmp_path, caplog):
    """Then a tenth of the training queries is held out, if that is enough; else there is nothing to choose by."""
    name, queries, rows = split(tmp_path / "small", queries=90, test=20, dev=3)
    assert (name, queries, len(rows)) == ("train", [], 67)
    assert "the split dev of small has 3 queries with an answer, too few to choose a step by (20)" in caplog.text
    name, queries, rows = split(tmp_path / "large", documents=400, queries=350, test=20, dev=19)
    assert (name, len(queries), len(rows)) == ("train", 31, 311 - 31)
    name, queries, rows = split(tmp_path / "enough", queries=90, test=20, dev=20)
    assert (name, len(queries), len(rows)) == ("dev", 20, 50)


def test_fewer_queries_are_a_part_of_more(tmp_path):
    """Each with all of its pairs; those that are held out are none of them."""
    folder = write_collection(tmp_path / "many", documents=200, queries=120, dev=20, test=0)
    train = folder / "qrels" / "train.tsv"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([*lines, *(line.replace("\td", "\td1") for line in lines[1:50])]) + "\n")
    collection = data.load(str(folder))
    pairs = make_pairs(FAST, collection, ALONE)
    _, held_out, rows = split_off(collection, pairs)

    def queries(number):
        return [pairs.pairs[row][0] for row in of_queries(pairs, rows, number)]

    found = {number: queries(number) for number in (10, 40, 100)}
    assert [len(set(names)) for names in found.values()] == [10, 40, 100]
    assert set(found[10]) < set(found[40]) < set(found[100])
    assert not set(found[100]) & set(held_out)
    assert all(names.count(name) == len(collection.qrels("train")[name]) for names in found.values() for name in names)
    with pytest.raises(InputError, match="--train-queries 101: many has 100 queries to train on"):
        queries(101)


def test_queries_that_nothing_answers_are_none_to_choose_by(tmp_path):
    folder = write_collection(tmp_path / "judged", queries=90, test=20, dev=25)
    dev = folder / "qrels" / "dev.tsv"
    lines = dev.read_text().splitlines()
    unanswered = [line.removesuffix("1") + "0" for line in lines[1:4]]
    dev.write_text("\n".join([lines[0], *unanswered, *lines[4:]]) + "\n")
    collection = data.load(str(folder))
    _, queries, _ = split_off(collection, make_pairs(FAST, collection, ALONE))
    assert sorted(queries) == sorted(line.split()[0] for line in lines[4:])


def test_the_validation_measure_is_that_of_trec_eval():
    generator = torch.Generator().manual_seed(0)
    gains = torch.randint(0, 3, (9, 40), generator=generator).double() * (torch.rand(9, 40, generator=generator) < 0.2)
    gains[:, 0] = 1
    ranking = torch.stack([torch.randperm(40, generator=generator) for _ in range(9)])[:, :10]
    qrels = {f"q{i}": {f"d{j}": int(gain) for j, gain in enumerate(row)} for i, row in enumerate(gains.tolist())}
    run = {f"q{i}": {f"d{j}": 1.0 / (k + 1) for k, j in enumerate(row)} for i, row in enumerate(ranking.tolist())}
    per_query = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert ndcg(gains, ranking) == pytest.approx(np.mean([row["ndcg_cut_10"] for row in per_query.values()]), abs=1e-12)
