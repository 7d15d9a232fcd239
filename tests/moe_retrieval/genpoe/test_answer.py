"""The command answer: every way to give a model passages, from made and from kept experts, and after a kill."""

import json

import pytest

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe import answer as command
from moe_retrieval.genpoe.answering import Answering
from moe_retrieval.genpoe.evaluate import main as evaluate
from moe_retrieval.genpoe.examples import Example, read_examples, write_examples
from moe_retrieval.genpoe.generate import main as generate
from moe_retrieval.genpoe.reader import Asked
from moe_retrieval.genpoe.reader_files import load_reader, save_reader
from tests.moe_retrieval.genpoe.people import CPU, PASSAGES, QUESTIONS, TOWNS, example, reader_at, write_home

EXAMPLES = [
    Example(QUESTIONS[0], (TOWNS[0],), ctxs=tuple(PASSAGES[:3])),
    Example(QUESTIONS[1], (TOWNS[1],)),
    *(example(row, 3) for row in (2, 3, 4)),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = write_home(tmp_path_factory.mktemp("answers"))
    (home / "run").mkdir()
    save_reader(reader_at(home, spread=2), home / "run", str(home / "decoder"))
    write_examples(home / "in.json", EXAMPLES)
    return home


def answer(home, output, *flags, model="run"):
    command.main(["--model", str(home / model), "--input", str(home / "in.json"), "--output", str(output),
                  "--precision", "fp32", "--max-new-tokens", "6", "--batch-size", "2", *map(str, flags)])  # fmt: skip
    return [each.prediction for each in read_examples(output)]


def one_by_one(home, passages, in_prompt):
    reader = load_reader(home / "run", CPU, "fp32")
    found = []
    for each in EXAMPLES:
        ranked = [*each.ctxs, *each.positives, *each.hard_negatives]
        asked = Asked(reader.wording.asked(each.question, ranked[:in_prompt]), ranked[:passages])
        found += reader.answer([asked], reader.experts(asked.passages), 6)
    return found


@pytest.mark.parametrize("passages, in_prompt", [(0, 0), (0, 2), (1, 0), (3, 0), (2, 1)])
def test_every_mode_is_a_batch_of_what_is_answered_alone(home, tmp_path, passages, in_prompt):
    found = answer(home, tmp_path / "out.json", "--passages", passages, "--in-prompt", in_prompt)
    assert found == one_by_one(home, passages, in_prompt)
    written = list(read_examples(tmp_path / "out.json"))
    assert [each._replace(prediction=None) for each in written] == EXAMPLES
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_the_modes_differ_and_a_language_model_alone_is_the_closed_book(home, tmp_path):
    found = {mode: answer(home, tmp_path / "out.jsonl", "--passages", mode[0], "--in-prompt", mode[1])
             for mode in ((0, 0), (0, 2), (1, 0), (3, 0))}  # fmt: skip
    assert len(set(map(tuple, found.values()))) == 4
    assert answer(home, tmp_path / "out.json", "--passages", 0, model="decoder") == found[0, 0]


def test_kept_experts_answer_as_made_ones(home, tmp_path, capsys):
    generate(["--model", str(home / "run"), "--input", str(home / "in.json"), "--output-dir", str(tmp_path / "e"),
              "--precision", "fp32"])  # fmt: skip
    made = answer(home, tmp_path / "a.json", "--passages", 2)
    assert "; 8 experts made in " in capsys.readouterr().out
    assert answer(home, tmp_path / "b.json", "--passages", 2, "--experts", tmp_path / "e") == made
    assert f"5 questions answered in {tmp_path}/b.json; 8 experts loaded in " in capsys.readouterr().out


def test_a_killed_run_goes_on_with_what_it_had(home, tmp_path, monkeypatch):
    whole = answer(home, tmp_path / "whole.json", "--passages", 2)
    asked, do = [], Answering.answer

    def killed(self, batch):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(batch))
        return do(self, batch)

    monkeypatch.setattr(Answering, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        answer(home, tmp_path / "out.json", "--passages", 2)
    journal = tmp_path / "out.json.part" / "answers.jsonl"
    assert len(journal.read_text().splitlines()) == 3
    with journal.open("a") as file:
        file.write('{"4": "ha')  # what a kill leaves
    asked.clear()
    with pytest.raises(InputError, match=r"out\.json\.part has answers of other flags or data: give those again, or"):
        answer(home, tmp_path / "out.json", "--passages", 3)
    assert answer(home, tmp_path / "out.json", "--passages", 2) == whole
    assert asked == [1]
    assert not journal.parent.exists()


def test_predictions_are_what_evaluate_reads(home, tmp_path, capsys):
    found = answer(home, tmp_path / "out.json", "--passages", 1)
    predicted = [each._replace(prediction=town, ctxs=()) for each, (town,) in
                 zip(read_examples(tmp_path / "out.json"), (each.answers for each in EXAMPLES))]  # fmt: skip
    write_examples(tmp_path / "right.json", predicted)
    capsys.readouterr()
    for name in ("out", "right"):
        lines = list(read_examples(tmp_path / f"{name}.json"))
        write_examples(tmp_path / f"{name}.json", (each._replace(ctxs=()) for each in lines))
        evaluate(["--predictions", str(tmp_path / f"{name}.json"), "--output-dir", str(tmp_path / name)])
    measured = [json.loads((tmp_path / name / "metrics.json").read_text())["EM"] for name in ("out", "right")]
    assert measured == [sum(text == town for text, town in zip(found, TOWNS)) / 5, 1.0]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--output", "o.txt"], r"o\.txt: expected the name of a file to write that ends in \.json or \.jsonl"),
        (["--input", "/nowhere.json"], r"/nowhere\.json: No such file"),
        (["--model", "/nowhere"], r"/nowhere has no experts\.json"),
        (["--experts", "/nowhere"], r"cannot read /nowhere/generated\.json: No such file"),
        (["--in-prompt", "3", "--max-new-tokens", "250"], r"has \d+ tokens, and the language model reads 256"),
    ],
)
def test_what_makes_no_sense_is_told(home, tmp_path, flags, message):
    with pytest.raises(InputError, match=message) as caught:
        answer(home, tmp_path / "out.json", *flags)
    assert "\n" not in str(caught.value)
