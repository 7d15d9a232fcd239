"""The benchmark from nothing, in seconds: every run is there and measured, and the page has its table."""

import json

from bench.reports.page import END, begin
from bench.scratch import FILE, PAGE, PRETRAINED, RUNS, ScratchConfig, origin, run, table
from tests.moe_retrieval.rare_words import write_collection


def write_sentences(folder):
    """STS Benchmark and TREC-6, as they are published, of a few lines."""
    rows = [("abcd", "abcd", 5.0), ("abcd", "efgh", 0.0), ("bbbb aaaa", "bbbb", 3.0)]
    lines = [
        f"genre\tfile\tyear\t{row}\t{score}\t{first}\t{second}\n" for row, (first, second, score) in enumerate(rows)
    ]
    (folder / "stsb").mkdir()
    (folder / "stsb" / "sts-test.csv").write_text("".join(lines))
    (folder / "trec6").mkdir()
    for name in ("train_5500.label", "TREC_10.label"):
        (folder / "trec6" / name).write_text("HUM:ind who is abcd ?\nLOC:city where is efgh ?\n" * 6)


def test_it_runs_small_goes_on_and_shows_what_it_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_RETRIEVAL_DATA", raising=False)
    write_sentences(tmp_path)
    words = write_collection(tmp_path / "words")
    config = ScratchConfig(steps=3, reading=3, dataset=str(words), data_dir=str(tmp_path), tiny=True,
                           output_dir=str(tmp_path / "runs"))  # fmt: skip
    results = run(config)
    assert list(results["systems"]) == ["BM25", *RUNS, *PRETRAINED]
    for name, measures in results["systems"].items():
        assert 0 <= measures["NDCG@10"] <= 1
        assert ("Spearman" in measures) == ("F1" in measures) == ("active" in measures) == (name != "BM25")
    systems = results["systems"]
    assert systems["moe"]["parameters"] > systems["dense"]["parameters"] == systems["dense, triplet"]["parameters"]
    assert systems["moe"]["active"] < systems["moe"]["parameters"]
    shown = table(results)
    assert f"{systems['moe']['NDCG@10']:.3f}" in shown
    assert "TREC-6 accuracy" in shown
    about = {"device": "a machine", "versions": {"torch": "2"}, "time": "2026-01-02T03", "revision": "0" * 40}
    assert origin(results | {"machine": about}).startswith("3 steps of pre-training on `words`")
    again = run(config)
    assert {name: each["NDCG@10"] for name, each in again["systems"].items()} == {
        name: each["NDCG@10"] for name, each in systems.items()
    }


def test_the_page_shows_the_committed_figures():
    """Or none, where none is committed."""
    text = PAGE.read_text("utf-8")
    shown = text.partition(begin("bench.scratch"))[2].partition(END)[0].strip()
    assert end_is_there(text)
    if not FILE.is_file():
        assert "|" not in shown
        return
    results = json.loads(FILE.read_text("utf-8"))
    assert shown == f"{table(results)}\n\n{origin(results)}"


def end_is_there(text):
    return begin("bench.scratch") in text and END in text
