"""The command retrieve: the passages that a search by hand finds, in any shards; DPR's two encoders as transformers
has them."""

import json
import os

import numpy as np
import pytest
import torch
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import read_examples
from moe_retrieval.genpoe.passages import Passages
from moe_retrieval.genpoe.retrieve import main
from moe_retrieval.models.export import save
from moe_retrieval.progress import Meter
from moe_retrieval.retrieval.model import load
from tests.moe_retrieval.corpora import WORDS, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

COUNT = 50


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("retrieve")
    save(home / "run", tiny_retriever(), tiny_tokenizer(), "")
    rows = [f"p{i}\tno {i} {WORDS[i % 14]} {WORDS[(3 * i + 1) % 14]}\tT{i % 7}" for i in range(COUNT)]
    (home / "passages.tsv").write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    questions = [{"question": f"which {WORDS[i]} is it", "answers": [f"no {i}", "moss"]} for i in range(9)]
    (home / "questions.json").write_text(json.dumps(questions))
    return home


def retrieve(home, output, *flags, model="run"):
    arguments = [
        "--model",
        model if model == "bm25" else home / model,
        "--passages",
        home / "passages.tsv",
        "--questions",
        home / "questions.json",
    ]
    main([*map(str, arguments), "--output", str(output), "--precision", "fp32", "--top-k", "6", *map(str, flags)])
    return list(read_examples(output))


def check_found(found, scores_QN, names):
    """Against the whole matrix of scores; ties, which have no order by hand, must not decide."""
    for example, scores in zip(found, scores_QN):
        order = np.argsort(-scores)[:6]
        assert [passage.id for passage in example.ctxs] == [names[row] for row in order]
        assert [passage.score for passage in example.ctxs] == pytest.approx(scores[order].tolist(), abs=1e-5)


def test_finds_what_a_search_by_hand_finds(home, tmp_path, capsys):
    found = retrieve(home, tmp_path / "out.json")
    passages, model = Passages(home / "passages.tsv"), load(home / "run", "fp32")
    documents = [f"{title} {text}" for title, text in (passages.passage(row)[1:3] for row in range(COUNT))]
    scores = model.encode_query([each.question for each in found]) @ model.encode_document(documents).T
    check_found(found, scores, [passages.id(row) for row in range(COUNT)])
    for example in found:
        assert len(example.answers) == 2
        for passage in example.ctxs:
            padded = f" {passage.text} "
            assert passage.has_answer == any(f" {answer} " in padded for answer in example.answers)
    top = [any(passage.has_answer for passage in each.ctxs[:1]) for each in found]
    assert f"top-1      {sum(top) / len(top):.4f}\n" in capsys.readouterr().out


def test_shards_change_nothing_and_those_that_are_there_stay(home, tmp_path):
    """Seven passages a shard: the last has one. Of two that a kill took, one had begun."""
    whole = retrieve(home, tmp_path / "whole.json")
    folder = tmp_path / "e"
    assert retrieve(home, tmp_path / "a.json", "--shard-size", 7, "--embeddings", folder) == whole
    shards = sorted(folder.glob("*.npy"))
    assert [len(np.load(shard)) for shard in shards] == [7] * 7 + [1]
    for shard in shards:
        os.utime(shard, (1, 1))
    shards[2].unlink()
    shards[5].rename(shards[5].with_suffix(".part"))
    shards[5].with_suffix(".done").write_bytes(b"\0")
    assert retrieve(home, tmp_path / "b.json", "--shard-size", 7, "--embeddings", folder) == whole
    assert [place for place, shard in enumerate(shards) if shard.stat().st_mtime != 1] == [2, 5]


def test_embeddings_serve_other_questions(home, tmp_path, capsys):
    retrieve(home, tmp_path / "a.json", "--embeddings", tmp_path / "e")
    (shard,) = (tmp_path / "e").glob("*.npy")
    os.utime(shard, (1, 1))
    write_lines(tmp_path / "other.jsonl", [{"question": "which moss"}])
    (found,) = retrieve(home, tmp_path / "b.jsonl", "--embeddings", tmp_path / "e", "--questions",
                        tmp_path / "other.jsonl")  # fmt: skip
    assert shard.stat().st_mtime == 1
    assert [passage.has_answer for passage in found.ctxs] == [None] * 6
    assert capsys.readouterr().out.endswith(f"1 questions with their passages in {tmp_path / 'b.jsonl'}\n")


def test_every_long_part_says_how_far_it_is(home, tmp_path, monkeypatch):
    """Thousands of questions and millions of passages take hours on a CPU."""
    said, start = [], Meter.start
    monkeypatch.setattr(Meter, "start", lambda meter: (said.append(meter.label), start(meter))[1])
    retrieve(home, tmp_path / "a.json", "--shard-size", 30)
    shards = [f"{what} shard {number} of 2" for number in (1, 2) for what in ("passages,", "searching")]
    read = [f"reading {home / name}" for name in ("questions.json", "passages.tsv")]
    assert said == [*read, "questions", *shards, "looking for answers"]


def test_words_find_what_shares_them_and_nothing_is_embedded(home, tmp_path):
    """BM25 of a word that is in some passages: all alike, so that the shortest come first, and nothing else at all."""
    found = retrieve(home, tmp_path / "out.json", model="bm25")
    passages = Passages(home / "passages.tsv")
    for place, example in enumerate(found):
        sharing = {passages.id(row) for row in range(COUNT) if WORDS[place] in passages.text(row).split()}
        assert len(example.ctxs) == min(6, len(sharing))
        assert {each.id for each in example.ctxs} <= sharing
        scores = [each.score for each in example.ctxs]
        assert scores == sorted(scores, reverse=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.fixture(scope="module")
def dpr(home):
    """Random encoders as transformers saves DPR's."""
    torch.manual_seed(0)
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    config = transformers.DPRConfig(vocab_size=300, max_position_embeddings=40, **shape)
    towers = {"question": transformers.DPRQuestionEncoder(config), "context": transformers.DPRContextEncoder(config)}
    for name, tower in towers.items():
        with torch.no_grad():
            for parameter in tower.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        tower.eval().save_pretrained(home / name)
        tiny_tokenizer().save(home / name)
    return towers


def theirs(tower, tokenizer, *texts):
    ids = tokenizer(*texts, truncation="only_second" if len(texts) > 1 else True, max_length=40)["input_ids"]
    with torch.no_grad():
        return tower(torch.tensor([ids])).pooler_output[0].numpy()


def test_dprs_two_encoders_are_those_of_transformers(home, dpr, tmp_path):
    """A passage is title and text as two segments; long ones are cut. The vectors have any length."""
    passages = Passages(home / "passages.tsv")
    (tmp_path / "long.tsv").write_text(
        (home / "passages.tsv").read_text() + "long\t" + "moss and fern " * 40 + "\tA long one\n"
    )
    flags = ["--query-model", home / "question", "--passages", tmp_path / "long.tsv"]
    found = retrieve(home, tmp_path / "out.json", *flags, model="context")
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "context")
    passages = Passages(tmp_path / "long.tsv")
    every = [passages.passage(row) for row in range(len(passages))]
    documents = np.stack([theirs(dpr["context"], tokenizer, each.title, each.text) for each in every])
    questions = np.stack([theirs(dpr["question"], tokenizer, each.question) for each in found])
    assert np.ptp(np.linalg.norm(documents, axis=1)) > 0.1
    scores = questions @ documents.T
    for example, row in zip(found, scores):
        order = np.argsort(-row)[:6]
        assert [passage.id for passage in example.ctxs] == [every[place].id for place in order]
        assert [passage.score for passage in example.ctxs] == pytest.approx(row[order].tolist(), rel=1e-4)


def test_the_joint_of_title_and_text_can_be_given(home, dpr, tmp_path):
    flags = ["--query-model", home / "question", "--title-joint", " "]
    plain = retrieve(home, tmp_path / "a.json", *flags, model="context")
    assert plain != retrieve(home, tmp_path / "b.json", *flags[:2], model="context")


def test_embeddings_of_others_are_not_lost(home, dpr, tmp_path):
    retrieve(home, tmp_path / "a.json", "--embeddings", tmp_path / "e")
    before = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    with pytest.raises(InputError, match=r"holds embeddings of shard_size 1048576 \(now 7\): give another"):
        retrieve(home, tmp_path / "b.json", "--embeddings", tmp_path / "e", "--shard-size", 7)
    with pytest.raises(InputError, match=r"holds embeddings of model .*, joint ' ' \(now ' \[SEP\] '\): give another"):
        retrieve(home, tmp_path / "b.json", "--embeddings", tmp_path / "e", model="context")
    (tmp_path / "other.tsv").write_text("1\ta\tb\n")
    with pytest.raises(InputError, match=r"holds embeddings of passages "):
        retrieve(home, tmp_path / "b.json", "--embeddings", tmp_path / "e", "--passages", tmp_path / "other.tsv")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    assert not (tmp_path / "b.json").exists()


def test_what_cannot_be_searched_is_told_before(home, dpr, tmp_path):
    with pytest.raises(InputError, match="--query-model embeds into 48 dimensions and --model into 24: expected two"):
        retrieve(home, tmp_path / "a.json", "--query-model", home / "question")
    with pytest.raises(InputError, match=r"a\.txt: expected the name of a file"):
        retrieve(home, tmp_path / "a.txt")
    with pytest.raises(InputError, match="--top-k must be at least 1, got 0"):
        retrieve(home, tmp_path / "a.json", "--top-k", 0)
