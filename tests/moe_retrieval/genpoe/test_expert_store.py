"""Experts that are kept: the same as those that are made, found by passage, and refused where they are of others."""

import json

import numpy as np
import pytest
import torch

from moe_retrieval import index
from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, write_examples
from moe_retrieval.genpoe.expert_store import ExpertStore, store_experts
from moe_retrieval.genpoe.generate import main as generate
from moe_retrieval.genpoe.reader import Reader, ReaderSettings
from moe_retrieval.genpoe.reader_files import load_reader, save_reader
from moe_retrieval.models.export import save
from tests.moe_retrieval.corpora import write_lines
from tests.moe_retrieval.genpoe.people import CPU, PASSAGES, QUESTIONS, TOWNS, reader_at, write_home
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

SETTINGS = ReaderSettings((0, 1), rank=4, bottleneck=8, titles=False, passage_length=64)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = write_home(tmp_path_factory.mktemp("store"))
    (home / "run").mkdir()
    save_reader(reader_at(home, SETTINGS), home / "run", str(home / "decoder"))
    return home


def reader_of(home, precision="fp32"):
    return load_reader(home / "run", CPU, precision)


@pytest.mark.parametrize("precision, size", [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_what_is_kept_is_what_is_made(home, tmp_path, precision, size):
    reader = reader_of(home, precision)
    assert store_experts(reader, PASSAGES, len(PASSAGES), tmp_path) == 2 * 4 * 4 * 32 * size
    assert (tmp_path / "generated.npy").stat().st_size == pytest.approx(6 * 2 * 4 * 4 * 32 * size, abs=200)
    wanted = [PASSAGES[4], PASSAGES[1], PASSAGES[4]]
    made, loaded = reader.experts(wanted), ExpertStore(tmp_path, reader).experts(wanted)
    assert made.keys() == loaded.keys() == {0, 1}
    for layer in made:
        for one, other in zip(made[layer], loaded[layer]):
            torch.testing.assert_close(one, other, rtol=1e-5 if size == 4 else 1e-2, atol=1e-6 if size == 4 else 1e-2)
            assert one.dtype == other.dtype
            assert other.is_contiguous()
    assert ExpertStore(tmp_path, reader).experts([]) == {}


def test_a_run_that_was_stopped_goes_on(home, tmp_path, monkeypatch):
    monkeypatch.setattr("moe_retrieval.genpoe.expert_store.TOGETHER", 2)
    reader = reader_of(home)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    store_experts(reader, PASSAGES, 6, tmp_path / "a")
    make, batches = Reader.experts, []

    def counted(self, passages):
        batches.append([passage.id for passage in passages])
        if len(batches) == 3:
            raise KeyboardInterrupt
        return make(self, passages)

    monkeypatch.setattr(Reader, "experts", counted)
    with pytest.raises(KeyboardInterrupt):
        store_experts(reader, PASSAGES, 6, tmp_path / "b")
    with pytest.raises(InputError, match="has experts of 4 of 6 passages: the command that made them was stopped"):
        ExpertStore(tmp_path / "b", reader)
    store_experts(reader, PASSAGES, 6, tmp_path / "b")
    assert batches == [["0", "1"], ["2", "3"], ["4", "5"], ["4", "5"]]
    for file in ("generated.npy", "generated.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_experts_of_others_are_refused(home, tmp_path):
    reader = reader_of(home)
    store_experts(reader, PASSAGES[:3], 3, tmp_path)
    store = ExpertStore(tmp_path, reader)
    with pytest.raises(InputError, match="has no expert of the passage '5'"):
        store.experts([PASSAGES[0], PASSAGES[5]])
    with pytest.raises(InputError, match="the passage '0' had another text when its expert was made"):
        store.experts([PASSAGES[0]._replace(text="Ann has moved.")])
    with pytest.raises(InputError, match="has experts in fp32, expected bf16"):
        ExpertStore(tmp_path, reader_of(home, "bf16"))
    with pytest.raises(InputError, match="holds other experts: give another folder, or remove it"):
        store_experts(reader, PASSAGES[1:4], 3, tmp_path)
    with torch.no_grad():
        reader.network(0).up[0, 0] += 1
    with pytest.raises(InputError, match="has deltas of another model"):
        ExpertStore(tmp_path, reader)
    with pytest.raises(InputError, match="holds other experts: give another folder, or remove it"):
        store_experts(reader, PASSAGES[:3], 3, tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*generated\.json"):
        ExpertStore(tmp_path / "nowhere", reader)


def test_a_damaged_file_of_experts_is_told(home, tmp_path):
    reader = reader_of(home)
    store_experts(reader, PASSAGES, 6, tmp_path)
    path = tmp_path / "generated.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"generated\.npy: is damaged: ") as caught:
        ExpertStore(tmp_path, reader)
    assert "\n" not in str(caught.value)


def test_the_command_keeps_the_experts_of_the_best_passages_once_each(home, tmp_path, capsys):
    examples = [Example(QUESTIONS[row], (TOWNS[row],), ctxs=tuple(PASSAGES[row : row + 3])) for row in range(3)]
    write_examples(tmp_path / "q.json", examples)
    flags = ["--model", str(home / "run"), "--input", str(tmp_path / "q.json"), "--output-dir", str(tmp_path / "e")]
    generate([*flags, "--passages", "2", "--precision", "fp32"])
    assert capsys.readouterr().out.startswith(f"experts of 4 passages in {tmp_path}/e, 4,096 bytes each")
    about = json.loads((tmp_path / "e" / "generated.json").read_text())
    assert [name for name, _ in about["passages"]] == ["0", "1", "2", "3"]
    write_examples(tmp_path / "q.json", [examples[0]._replace(ctxs=(PASSAGES[0]._replace(id=""),))])
    with pytest.raises(InputError, match="expected passages with an id, by which their experts are found"):
        generate([*flags[:-1], str(tmp_path / "f")])


def test_an_index_has_them_beside_it(home, tmp_path, capsys):
    save(tmp_path / "retriever", tiny_retriever(), tiny_tokenizer(), "")
    lines = [{"_id": each.id, "title": each.title, "text": each.text} for each in PASSAGES]
    write_lines(tmp_path / "corpus.jsonl", lines)
    index.main(["--model", str(tmp_path / "retriever"), "--corpus", str(tmp_path / "corpus.jsonl"), "--output-dir",
                str(tmp_path / "index"), "--experts", str(home / "run"), "--precision", "fp32"])  # fmt: skip
    assert f"an expert of each in {tmp_path}/index/experts, 4,096 bytes each\n" in capsys.readouterr().out
    reader = reader_of(home)
    made, loaded = reader.experts(PASSAGES), ExpertStore(tmp_path / "index" / "experts", reader).experts(PASSAGES)
    assert np.allclose(made[1].leave_PRH, loaded[1].leave_PRH, atol=1e-6)
    with pytest.raises(InputError, match=r"corpus\.jsonl has no experts\.json: expected what python -m"):
        index.main(["--model", str(tmp_path / "retriever"), "--corpus", str(tmp_path / "corpus.jsonl"),
                    "--output-dir", str(tmp_path / "other"), "--experts", str(tmp_path / "corpus.jsonl")])  # fmt: skip
    assert not (tmp_path / "other" / "index.json").exists()
