"""Encoding: order, batches, files, resuming, ranks."""

import contextlib
import json
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest
import torch

from moe_retrieval.errors import InputError
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval import encode
from moe_retrieval.retrieval.encode import count_stored, encode_texts, token_batches
from moe_retrieval.retrieval.model import Model
from tests.moe_retrieval.corpora import StandIn
from tests.moe_retrieval.ranks import run_ranks
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(encode, "WINDOW", 7)
    monkeypatch.setattr(encode, "TOKENIZED_TOGETHER", 3)


def some_texts(count: int) -> list[str]:
    return [" ".join(f"w{(i * 31 + j) % 97}" for j in range(i * 13 % 29)) for i in range(count)]


def one_by_one(model, texts, kind):
    usage = model.usage
    prompt = {"text": "", "query": usage.query_prompt, "document": usage.doc_prompt}[kind]
    length = usage.query_length if kind == "query" else usage.doc_length
    rows = [model.embed_tokens(model.tokenizer.encode_batch([prompt + text], length)) for text in texts]
    return torch.cat(rows).numpy() if rows else np.zeros((0, model.hidden_size), np.float32)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 50])
@pytest.mark.parametrize("kind", encode.KINDS)
def test_rows_are_in_the_order_of_the_texts(count, kind, tmp_path):
    model = StandIn()
    model.usage = model.usage.changed(query_prompt="query: ", doc_prompt="passage: ", query_length=5)
    texts = some_texts(count)
    expected = one_by_one(model, texts, kind)
    in_memory = encode_texts(model, texts, kind, max_tokens=50)
    on_disk = encode_texts(model, texts, kind, max_tokens=50, output=tmp_path / "rows.npy")
    assert in_memory.dtype == on_disk.dtype == np.float32
    assert in_memory.shape == (count, model.hidden_size)
    assert np.allclose(in_memory, expected, atol=1e-6)
    assert np.array_equal(in_memory, on_disk)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_the_batches_alone_are_those_that_are_encoded(count):
    model, texts = StandIn(), some_texts(count)
    encode_texts(model, texts, max_tokens=50)
    batches = list(token_batches(model, texts, max_tokens=50))
    assert [[len(sequence) for sequence in sequences] for _, sequences in batches] == model.batches
    found = {row: sequence for rows, sequences in batches for row, sequence in zip(rows, sequences)}
    assert found == dict(enumerate(model.encode_batch(texts, model.usage.doc_length)))


def test_an_embedding_that_is_no_number_is_refused(tmp_path):
    model = StandIn()
    model.table[:] = float("nan")
    for output in (None, tmp_path / "rows.npy"):
        with pytest.raises(InputError, match="the model's embeddings are not finite"):
            encode_texts(model, some_texts(20), output=output)
    assert not (tmp_path / "rows.npy").exists()


@pytest.mark.parametrize("kind, length, what", [("query", 5, "queries"), ("document", 9, "documents")])
def test_how_many_texts_were_cut_is_said(kind, length, what, caplog):
    model = StandIn()
    model.usage = model.usage.changed(query_length=5, doc_length=9)
    texts = some_texts(50)
    encode_texts(model, [text for text in texts if len(text.split()) < length], kind)
    assert not caplog.text
    encode_texts(model, texts, kind)
    cut = sum(len(text.split()) + 1 > length for text in texts)
    assert caplog.messages == [f"{cut} of 50 {what} are longer than {length} tokens; the rest of them was not read"]


def test_batches_keep_the_budget_and_are_sorted():
    model = StandIn()
    encode_texts(model, [*some_texts(30), "w " * 60], max_tokens=40)
    assert all(sum(batch) <= 40 or len(batch) == 1 for batch in model.batches)
    assert all(batch == sorted(batch, reverse=True) for batch in model.batches)
    assert len(model.batches) < 31
    assert max(sum(batch) for batch in model.batches) == 61


def test_a_disk_that_is_full_marks_no_window_as_done(tmp_path):
    """A write that is cut short says so by its count alone."""
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np;"
        "from moe_retrieval.retrieval.store import File;"
        "store = File(Path(sys.argv[1]), (100, 100), 50, {}); store.begin();"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000));"
        "store.write(0, np.ones((50, 100), np.float32)); print(store.has(0));"
        "store.write(50, np.ones((50, 100), np.float32))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rows.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "True\n"
    assert "OSError" in done.stderr
    assert (tmp_path / "rows.done").read_bytes() == b"\1\0"


class Killed(BaseException):
    pass


class Fragile(StandIn):
    """Dies after so many batches, as a killed process would: nothing cleans up."""

    def __init__(self, lives: int):
        super().__init__()
        self.lives = lives

    def embed_tokens(self, sequences):
        if len(self.batches) == self.lives:
            raise Killed
        return super().embed_tokens(sequences)


@pytest.mark.parametrize("lives", [0, 1, 3, 6])
def test_a_run_that_was_stopped_goes_on(tmp_path, lives):
    texts, output = some_texts(50), tmp_path / "rows.npy"
    with pytest.raises(Killed):
        encode_texts(Fragile(lives), texts, output=output)
    assert not output.exists()
    second = StandIn()
    resumed = encode_texts(second, texts, output=output)
    assert len(second.batches) == 8 - lives
    assert np.array_equal(resumed, encode_texts(StandIn(), texts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "rows.npy"]
    third = StandIn()
    assert np.array_equal(encode_texts(third, texts, output=output), resumed)
    assert third.batches == []


class Counts(Meter):
    """Keeps what it could have shown: how many of how many, at the beginning and after each part."""

    shown: ClassVar[list] = []

    def start(self):
        self.shown.append((self.done, self.total))
        return super().start()

    def advance(self, count=1, **facts):
        super().advance(count, **facts)
        self.shown.append((self.done, self.total))


def test_a_resumed_run_counts_from_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(Counts, "shown", [])
    monkeypatch.setattr(encode, "Meter", Counts)
    with contextlib.suppress(Killed):
        encode_texts(Fragile(3), some_texts(50), output=tmp_path / "rows.npy")
    assert Counts.shown == [(0, 50), (7, 50), (14, 50), (21, 50)]
    Counts.shown.clear()
    encode_texts(StandIn(), some_texts(50), output=tmp_path / "rows.npy")
    assert Counts.shown == [(21, 50), (28, 50), (35, 50), (42, 50), (49, 50), (50, 50)]
    Counts.shown.clear()
    encode_texts(StandIn(), some_texts(50), output=tmp_path / "rows.npy")
    assert Counts.shown == [(50, 50)]


def test_what_lies_in_a_file_is_counted_where_it_is_of_the_same_state(tmp_path):
    output, texts = tmp_path / "rows.npy", some_texts(50)

    def count(model=None, **changed):
        options = {"output": output, "fingerprint": "one"} | changed
        return count_stored(model or StandIn(), texts, **options)

    assert count() == 0
    with contextlib.suppress(Killed):
        encode_texts(Fragile(3), texts, output=output, fingerprint="one")
    assert (count(), count(fingerprint="another"), count(max_tokens=50)) == (21, 0, 0)
    encode_texts(StandIn(), texts, output=output, fingerprint="one")
    assert (count(), count(StandIn(seed=1))) == (50, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "rows.npy"]


def test_a_window_is_kept_before_the_next_one_fails(tmp_path):
    with pytest.raises(TypeError, match=r"texts\[7\] must be a string, got NoneType"):
        encode_texts(StandIn(), ["w"] * 7 + [None], output=tmp_path / "rows.npy", fingerprint="these")
    assert (tmp_path / "rows.done").read_bytes() == b"\1\0"


def encode_slowly(output: str) -> None:
    encode.WINDOW = 7
    model = StandIn()
    plain = model.embed_tokens
    model.embed_tokens = lambda sequences: time.sleep(0.05) or plain(sequences)
    encode_texts(model, some_texts(700), output=output)


def test_a_run_that_was_killed_goes_on(tmp_path):
    program = f"from {__name__} import encode_slowly; encode_slowly({str(tmp_path / 'rows.npy')!r})"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        done = tmp_path / "rows.done"
        while not (done.exists() and done.read_bytes().count(1) >= 3):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "rows.npy").exists()
    model = StandIn()
    resumed = encode_texts(model, some_texts(700), output=tmp_path / "rows.npy")
    assert 50 < len(model.batches) <= 97
    assert np.array_equal(resumed, encode_texts(StandIn(), some_texts(700)))


CHANGES = {
    "model": lambda model, options: setattr(model, "fingerprint", "another"),
    "prompt": lambda model, options: setattr(model, "usage", model.usage.changed(doc_prompt="w5 ")),
    "length": lambda model, options: setattr(model, "usage", model.usage.changed(doc_length=9)),
    "precision": lambda model, options: setattr(model, "precision", "bf16"),
    "texts": lambda model, options: options.update(fingerprint="another"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lives", [3, 100])
def test_what_another_run_left_is_not_taken(tmp_path, change, lives):
    output, options = tmp_path / "rows.npy", {"fingerprint": "one"}
    with contextlib.suppress(Killed):
        encode_texts(Fragile(lives), some_texts(50), output=output, **options)
    model = StandIn()
    CHANGES[change](model, options)
    encode_texts(model, some_texts(50), output=output, **options)
    assert len(model.batches) == 8
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == 50


def test_texts_without_a_fingerprint_are_told_apart(tmp_path):
    output = tmp_path / "rows.npy"
    encode_texts(StandIn(), ["w1 w2", "w3"], output=output)
    changed = encode_texts(StandIn(), ["w1", "w2 w3"], output=output)
    assert np.array_equal(changed, encode_texts(StandIn(), ["w1", "w2 w3"]))


def encode_on_a_rank(folder):
    encode.WINDOW, encode.Meter, Counts.shown = 7, Counts, []
    model = Model(tiny_retriever("moe"), tiny_tokenizer(), "fp32", torch.device("cpu"))
    calls, plain = [], model.embed_tokens
    model.embed_tokens = lambda sequences: calls.append(1) or plain(sequences)
    texts = some_texts(60)
    in_memory = encode_texts(model, texts, shard=True)
    calls_in_memory, shown = len(calls), list(Counts.shown)
    on_disk = encode_texts(model, texts, shard=True, output=f"{folder}/rows.npy")
    assert np.array_equal(in_memory, on_disk)
    return in_memory, calls_in_memory, shown


def test_ranks_share_the_work_and_give_the_same_bits(tmp_path, monkeypatch):
    """Three seconds: processes that import torch. The first one, which alone speaks, counts for all."""
    monkeypatch.setattr(encode, "Meter", Counts)  # which the rank that is this process would leave
    monkeypatch.setattr(Counts, "shown", [])
    ((alone, calls, _),) = run_ranks(1, encode_on_a_rank, tmp_path / "1")
    results = run_ranks(3, encode_on_a_rank, tmp_path / "3")
    assert all(np.array_equal(result, alone) for result, _, _ in results)
    assert calls == 9
    assert [calls for _, calls, _ in results] == [3, 3, 3]
    assert results[0][2] == [(0, 60), (20, 60), (40, 60), (60, 60)]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of text, query, document; got 'passage'"):
        encode_texts(StandIn(), [], "passage")
    with pytest.raises(TypeError, match=r"texts\[8\] must be a string, got NoneType"):
        encode_texts(StandIn(), ["w"] * 8 + [None])
    with pytest.raises(ValueError, match=r"output must end in .npy"):
        encode_texts(StandIn(), [], output=tmp_path / "rows")
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        encode_texts(StandIn(), [], max_tokens=0)


class OnGPU(StandIn):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


@pytest.mark.parametrize("count", [0, 1, 5, 6, 50])
@pytest.mark.parametrize("ahead", [1, 4])
def test_a_gpu_has_larger_windows_and_batches_that_wait_for_it(count, ahead, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "GPU_WINDOW", 5)
    monkeypatch.setattr(encode, "GPU_TOKENIZED_TOGETHER", 2)
    monkeypatch.setattr(encode, "GPU_BATCHES_AHEAD", ahead)
    model, texts = OnGPU(), some_texts(count)
    expected = one_by_one(StandIn(), texts, "text")
    in_memory = encode_texts(model, texts, "text", max_tokens=40)
    on_disk = encode_texts(model, texts, "text", max_tokens=40, output=tmp_path / "rows.npy")
    assert np.allclose(in_memory, expected, atol=1e-6)
    assert np.array_equal(in_memory, on_disk)
    assert count_stored(model, texts, "text", max_tokens=40, output=tmp_path / "rows.npy") == count
    batches = [[len(sequence) for sequence in each] for _, each in token_batches(model, texts, "text", max_tokens=40)]
    assert model.batches == 2 * batches


def test_a_gpu_computes_a_window_while_the_one_before_comes(monkeypatch):
    """What is asked for last is the newest; and all of it is there in the end."""
    monkeypatch.setattr(encode, "GPU_WINDOW", 5)
    events = []

    class Fetched:
        def __init__(self, tensor):
            self.tensor = tensor
            events.append("computed")

        def get(self):
            events.append("asked")
            return self.tensor

    monkeypatch.setattr(encode, "Fetched", Fetched)
    encode_texts(StandIn(), some_texts(14), "text")
    assert events == ["computed", "asked", "computed", "asked"]
    events.clear()
    encode_texts(OnGPU(), some_texts(14), "text")
    assert events == ["computed", "computed", "asked", "computed", "asked", "asked"]


@pytest.mark.parametrize("lives", [0, 1, 3, 6])
def test_a_run_on_a_gpu_that_was_stopped_goes_on(tmp_path, lives, monkeypatch):
    """What was not written yet is computed again: a window at most."""
    monkeypatch.setattr(encode, "GPU_WINDOW", 7)
    monkeypatch.setattr(Fragile, "device", OnGPU.device)
    texts, output = some_texts(50), tmp_path / "rows.npy"
    with pytest.raises(Killed):
        encode_texts(Fragile(lives), texts, output=output)
    second = OnGPU()
    resumed = encode_texts(second, texts, output=output)
    assert len(second.batches) == 8 - max(0, lives - 1)
    assert np.array_equal(resumed, encode_texts(OnGPU(), texts))
