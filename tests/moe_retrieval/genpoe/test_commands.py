"""The data's way through the commands, from made-up facts to measured passages."""

import json

import pytest

from moe_retrieval.genpoe import (
    answer,
    evaluate,
    facts,
    generate,
    prepare,
    rerank,
    retrieve,
    train,
    train_reranker,
)
from moe_retrieval.genpoe.examples import read_examples
from moe_retrieval.models.export import save
from tests.moe_retrieval.genpoe.yes_no import write_decoder
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


def run(command, **flags):
    command.main([f"--{name.replace('_', '-')}={value}" for name, value in flags.items()])


def test_each_command_reads_what_the_one_before_wrote(tmp_path, capsys):
    data = tmp_path / "facts"
    run(facts, output_dir=data, decoder_people=4, train_people=12, dev_people=4, test_people=4)
    save(tmp_path / "retriever", tiny_retriever(), tiny_tokenizer(), "")
    texts = [json.loads(line)["text"] for line in (data / "texts.jsonl").read_text().splitlines()]
    write_decoder(tmp_path / "decoder", "llama", texts)
    for split in ("train", "test"):
        run(retrieve, model=tmp_path / "retriever", passages=data / "passages.tsv", questions=data / f"{split}.json",
            output=tmp_path / f"{split}.json", embeddings=tmp_path / "embeddings", top_k=20)  # fmt: skip
    run(prepare, input=tmp_path / "train.json", output=tmp_path / "groups.jsonl")
    run(train_reranker, model=tmp_path / "decoder", data=tmp_path / "groups.jsonl", output_dir=tmp_path / "reranker",
        max_steps=2, batch_size=2, group_size=2, precision="fp32")  # fmt: skip
    run(rerank, model=tmp_path / "reranker", input=tmp_path / "test.json", output=tmp_path / "reranked.json")
    before, after = (list(read_examples(tmp_path / f"{name}.json")) for name in ("test", "reranked"))
    assert [sorted(each.id for each in example.ctxs) for example in before] == [
        sorted(each.id for each in example.ctxs) for example in after
    ]
    run(train, model=tmp_path / "decoder", data=tmp_path / "train.json", output_dir=tmp_path / "experts", max_steps=2,
        batch_size=2, passages=2, rank=4, bottleneck=8, precision="fp32")  # fmt: skip
    reading = dict(model=tmp_path / "experts", input=tmp_path / "reranked.json", passages=2, precision="fp32")
    run(generate, output_dir=tmp_path / "generated", **reading)
    run(answer, output=tmp_path / "answers.json", experts=tmp_path / "generated", max_new_tokens=3, **reading)
    capsys.readouterr()
    run(evaluate, predictions=tmp_path / "answers.json", output_dir=tmp_path / "measured")
    measured = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    expected = sum(any(each.has_answer for each in example.ctxs[:5]) for example in after) / len(after)
    assert measured["top-5"] == pytest.approx(expected)
    assert 0 <= measured["EM"] <= measured["F1"] <= 1
    assert capsys.readouterr().out.startswith(f"{tmp_path}/answers.json: 24 questions\n")
