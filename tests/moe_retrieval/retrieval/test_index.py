"""The index: what it holds, its kinds, and with which model it may be searched."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.index import main
from moe_retrieval.locks import locked
from moe_retrieval.models.export import save
from moe_retrieval.retrieval import encode, hits
from moe_retrieval.retrieval.backends import BackendSettings, recall
from moe_retrieval.retrieval.encode import encode_texts
from moe_retrieval.retrieval.index import Index, build_index
from moe_retrieval.retrieval.model import load
from tests.moe_retrieval.corpora import StandIn, plants
from tests.moe_retrieval.ranks import run_ranks
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture
def documents(tmp_path):
    return data.load(plants(tmp_path / "plants", num_documents=600)).documents


def test_what_is_on_disk(documents, tmp_path):
    model = StandIn()
    info = build_index(model, documents, tmp_path / "index", model_path="stand-in")
    index = Index(tmp_path / "index")
    assert index.info == info
    assert info["documents"] == len(index.documents) == 600
    assert list(index.documents) == list(documents)
    names = {"index.faiss", "index.json", "documents.jsonl", "starts.npy"}
    assert {path.name for path in (tmp_path / "index").iterdir()} == names
    index.check(model)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_kinds(documents, tmp_path, kind):
    model = StandIn()
    info = build_index(model, documents, tmp_path, BackendSettings(kind), model_path="stand-in")
    vectors = model.encode_document(list(documents.texts))
    queries = model.encode_query([f"which plant has n{i}" for i in range(50)])
    scores, rows = Index(tmp_path).search(queries, 10)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), expected.tolist())])
    if kind == "exact":
        assert np.array_equal(rows, expected)
        assert "recall@10" not in info
    else:
        assert 0.5 < info["recall@10"] <= 1.0
        assert found > 0.5
    assert np.allclose(scores, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=1e-5)


def test_recall_counts_what_is_missed(documents, tmp_path):
    vectors = StandIn().encode_document(list(documents.texts))

    class Half:
        def search(self, sample, k):
            rows = np.argsort(-(sample @ vectors.T), axis=1)[:, :k]
            rows[:, k // 2 :] = -1
            return rows, rows

    assert recall(Half(), vectors) == 0.5
    probes = (BackendSettings("ivf", ivf_probes=number) for number in (1, 97))
    few, many = (build_index(StandIn(), documents, tmp_path, settings, model_path="x") for settings in probes)
    assert few["recall@10"] < many["recall@10"] == 1.0


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_few_documents_are_searched_exactly_whatever_was_asked_for(tmp_path, caplog, kind):
    documents = data.load(plants(tmp_path / "few", num_documents=5, num_queries=2)).documents
    info = build_index(StandIn(), documents, tmp_path / "index", BackendSettings(kind), model_path="stand-in")
    assert info["kind"] == "exact"
    assert f"5 documents are too few for {kind}: the index is exact" in caplog.text
    vectors = StandIn().encode_document(list(documents.texts))
    _, rows = Index(tmp_path / "index").search(vectors, 5)
    assert np.array_equal(rows, np.argsort(-(vectors @ vectors.T), axis=1))


def test_a_low_recall_is_said_with_what_raises_it(documents, tmp_path, caplog):
    info = build_index(StandIn(), documents, tmp_path, BackendSettings("ivf", ivf_probes=1), model_path="x")
    assert info["recall@10"] < 0.9
    said = f"ivf finds {100 * info['recall@10']:.0f}% of the nearest documents: raise --ivf-probes, or use --kind exact"
    assert said in caplog.text
    caplog.clear()
    build_index(StandIn(), documents, tmp_path, BackendSettings("ivf", ivf_probes=97), model_path="x")
    assert not caplog.records


def test_an_index_that_was_stopped_goes_on(documents, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "WINDOW", 100)
    model = StandIn()
    plain = model.embed_tokens

    def fragile(sequences):
        if len(model.batches) == 4:
            raise KeyboardInterrupt
        return plain(sequences)

    monkeypatch.setattr(model, "embed_tokens", fragile)
    with pytest.raises(KeyboardInterrupt):
        build_index(model, documents, tmp_path / "index", model_path="stand-in")
    with pytest.raises(InputError, match=r"no index \(no index.json\)"):
        Index(tmp_path / "index")
    second = StandIn()
    build_index(second, documents, tmp_path / "index", model_path="stand-in")
    assert len(second.batches) == 2
    assert len(Index(tmp_path / "index").documents) == 600


def test_embeddings_that_are_there_are_taken_and_removed(documents, tmp_path):
    stored = tmp_path / "elsewhere" / "rows.npy"
    first, second = StandIn(), StandIn()
    encode_texts(first, documents.texts, output=stored, fingerprint=documents.fingerprint)
    build_index(second, documents, tmp_path / "index", model_path="stand-in", embeddings=stored)
    assert first.batches
    assert second.batches == []
    assert not list(stored.parent.iterdir())
    names = {"index.faiss", "index.json", "documents.jsonl", "starts.npy"}
    assert {path.name for path in (tmp_path / "index").iterdir()} == names


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        save(folder / str(seed), tiny_retriever("sb-moe", seed), tiny_tokenizer(), "")
    return folder


def test_another_model_is_refused(documents, tmp_path, saved):
    main(["--model", str(saved / "0"), "--corpus", str(documents.path), "--output-dir", str(tmp_path / "index")])
    index = Index(tmp_path / "index")
    assert index.load_model().fingerprint == index.info["model_fingerprint"]
    with pytest.raises(InputError, match=r"was made with another model \(.*/0, [0-9a-f]{16}; this one is [0-9a-f]{16}"):
        index.load_model(str(saved / "1"))
    index.check(load(saved / "0", "fp32"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


def damage_of(name, folder):
    """What can become of a file -> how it is said."""
    whole = (folder / name).read_bytes()
    for place in random.Random(0).sample(range(len(whole) - 2), 20):
        yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    yield from (whole[:-2], whole[: len(whole) // 2], b"")


@pytest.mark.parametrize("name", ["index.faiss", "starts.npy", "index.json"])
def test_an_index_that_is_damaged_is_refused(name, documents, tmp_path):
    build_index(StandIn(), documents, tmp_path, model_path="stand-in")
    for content in damage_of(name, tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            Index(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"{name}(: No such file|\); python -m moe_retrieval.index builds one)"):
        Index(tmp_path)


def test_the_index_of_other_documents_is_refused(documents, tmp_path):
    build_index(StandIn(), documents, tmp_path / "a", model_path="stand-in")
    build_index(StandIn(), data.load(plants(tmp_path / "other")).documents, tmp_path / "b", model_path="stand-in")
    for name in ("index.faiss", "documents.jsonl", "starts.npy"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        shutil.copy(tmp_path / "b" / name, tmp_path / name / name)
        with pytest.raises(InputError, match=f"{name}: is damaged, or another's"):
            hits.search(Index(tmp_path / name), StandIn(), ["moss"], 600)


def test_a_document_that_is_damaged_is_noticed_when_it_is_found(documents, tmp_path):
    build_index(StandIn(), documents, tmp_path, model_path="stand-in")
    expected = hits.search(Index(tmp_path), StandIn(), ["moss"], 600)
    whole = (tmp_path / "documents.jsonl").read_bytes()
    for place in random.Random(0).sample(range(len(whole)), 20):
        flip(tmp_path / "documents.jsonl", place)
        with pytest.raises(InputError, match=r"documents.jsonl: is damaged, or another's") as caught:
            hits.search(Index(tmp_path), StandIn(), ["moss"], 600)
        assert "\n" not in str(caught.value)
        flip(tmp_path / "documents.jsonl", place)
    assert hits.search(Index(tmp_path), StandIn(), ["moss"], 600) == expected
    for part in (whole[:-5], whole[: len(whole) // 2], b""):
        (tmp_path / "documents.jsonl").write_bytes(part)
        with pytest.raises(InputError, match=r"documents.jsonl: is damaged, or another's"):
            hits.search(Index(tmp_path), StandIn(), ["moss"], 600)


def test_embeddings_of_a_stopped_run_that_are_damaged_are_made_anew(documents, tmp_path, monkeypatch):
    stored = tmp_path / "rows.npy"
    expected = encode_texts(StandIn(), documents.texts)
    for suffix, content in ((".json", b"{"), (".json", b"[" * 100_000), (".npy", b"short"), (".npy", b"")):
        encode_texts(StandIn(), documents.texts, output=stored)
        stored.with_suffix(suffix).write_bytes(content)
        assert np.array_equal(encode_texts(StandIn(), documents.texts, output=stored), expected)


def test_a_folder_that_another_process_fills_is_refused(documents, tmp_path, saved):
    arguments = ["--model", saved / "0", "--corpus", documents.path, "--output-dir", tmp_path / "index"]
    with locked(tmp_path / "index"), pytest.raises(InputError, match="index is in use by process"):
        main([*map(str, arguments)])
    main([*map(str, arguments)])


def test_the_model_is_used_as_it_was(documents, tmp_path, saved, capsys):
    arguments = ["--corpus", str(tmp_path / "plants"), "--output-dir", str(tmp_path / "index"), "--precision", "fp32"]
    main(["--model", str(saved / "0"), *arguments, "--doc-length", "9", "--query-prompt", "ask: ", "--kind", "hnsw"])
    printed = capsys.readouterr().out
    assert "600 documents" in printed
    assert "recall@10 against exact search: " in printed
    assert "search:  python -m moe_retrieval.search --index" in printed
    assert f"'{' '.join(documents[0][1].split()[:12])}'" in printed
    model = Index(tmp_path / "index").load_model()
    assert (model.usage.doc_length, model.usage.query_prompt, model.precision) == (9, "ask: ", "fp32")


def test_index_and_model_may_move_together(documents, tmp_path, saved):
    shutil.copytree(saved / "0", tmp_path / "run")
    build_index(load(tmp_path / "run"), documents, tmp_path / "run" / "index", model_path=str(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    index = Index(tmp_path / "moved" / "index")
    assert index.load_model().fingerprint == index.info["model_fingerprint"]
    shutil.move(tmp_path / "moved" / "index", tmp_path / "alone")
    with pytest.raises(InputError, match=r"--model names another place"):
        Index(tmp_path / "alone").load_model()
    Index(tmp_path / "alone").load_model(str(tmp_path / "moved"))


def index_on_a_rank(folder):
    encode.WINDOW = 100
    documents = data.load(f"{folder}/plants").documents
    return build_index(StandIn(), documents, f"{folder}/index", model_path="stand-in")


def test_ranks_build_one_index(documents, tmp_path):
    infos = run_ranks(2, index_on_a_rank, tmp_path)
    alone = build_index(StandIn(), documents, tmp_path / "alone", model_path="stand-in")
    for key in ("documents", "corpus_fingerprint", "model_fingerprint"):
        assert infos[0][key] == infos[1][key] == alone[key]
    queries = StandIn().encode_query(["moss fern", "n7"])
    for ours, theirs in zip(
        Index(tmp_path / "index").search(queries, 10), Index(tmp_path / "alone").search(queries, 10)
    ):
        assert np.array_equal(ours, theirs)


def test_bad_input(documents, tmp_path):
    with pytest.raises(InputError, match="kind must be one of exact, hnsw, ivf; got 'tree'"):
        BackendSettings("tree")
    for name in ("hnsw_links", "hnsw_effort", "ivf_lists", "ivf_probes"):
        with pytest.raises(InputError, match=f"{name} must be at least [12], got -1"):
            BackendSettings(**{name: -1})
    with pytest.raises(InputError, match="hnsw_links must be at most 512, got 100000000"):
        BackendSettings("hnsw", hnsw_links=100_000_000)
    with pytest.raises(InputError, match="max_tokens must be at least 1, got -1"):
        build_index(StandIn(), documents, tmp_path / "index", model_path="stand-in", max_tokens=-1)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"_id": "a"}))
    command = [sys.executable, "-m", "moe_retrieval.index", "--model", "minilm", "--corpus", tmp_path / "bad.jsonl"]
    done = subprocess.run([*command, "--output-dir", tmp_path / "index"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f'error: {tmp_path}/bad.jsonl:1: expected a "text" that is a string, got only _id\n'
