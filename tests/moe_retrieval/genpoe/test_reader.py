"""A reader's loss and its answers: against a model whose layer has experts one by one, on one question at a time."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.passage_experts import Injection
from moe_retrieval.genpoe.reader import Asked, ReaderSettings, scores
from moe_retrieval.genpoe.reader_files import load_reader, make_reader, open_reader, save_reader
from tests.moe_retrieval.genpoe.people import CPU, PASSAGES, QUESTIONS, TOWNS, reader_at, write_home
from tests.moe_retrieval.genpoe.twin import Twin
from tests.moe_retrieval.genpoe.yes_no import write_decoder

SCORED = [passage._replace(score=0.5 * row) for row, passage in enumerate(PASSAGES)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def home(request, tmp_path_factory):
    return write_home(tmp_path_factory.mktemp(request.param), request.param)


def questions(reader):
    """With one passage, with none, with three of which two are in the prompt too, and without scores."""
    taken = [(SCORED[:1], 0), ((), 0), (SCORED[1:4], 2), (PASSAGES[3:5], 0)]
    for row, (passages, in_prompt) in enumerate(taken):
        prompt, answer = reader.wording.answered(QUESTIONS[row], TOWNS[row], passages[:in_prompt])
        yield Asked(prompt, passages, answer)


def alone(reader, home, asked, length):
    """A model in fp64 with this question's experts one by one, for a text of so many tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "decoder").double().eval()
    if not asked.passages:
        return model
    deltas, base = reader.deltas(asked.passages)[1], reader.networks["1"].base
    weights = [passage.score or 0.0 for passage in asked.passages]
    count = len(weights)
    experts = Injection(deltas, base, torch.tensor(weights), torch.tensor([0, count]), count)
    live = torch.arange(length)[None] >= asked.prompt.start
    block = model.transformer.h[1] if hasattr(model, "transformer") else model.model.layers[1]
    block.mlp = Twin(block.mlp, experts, live)
    return model


def test_the_loss_is_the_cross_entropy_of_the_answers_tokens(home):
    reader = reader_at(home)
    asked = list(questions(reader))
    total = 0.0
    with torch.no_grad():
        for each in asked:
            ids = [*each.prompt.ids, *each.answer]
            logits = alone(reader, home, each, len(ids))(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(each.prompt.ids), len(ids))
            total -= sum(logits[place - 1, ids[place]].item() for place in places) / len(each.answer)
        assert reader.loss(asked).item() == pytest.approx(total, rel=1e-5)


def test_answers_are_the_most_likely_tokens_one_after_the_other(home):
    reader = reader_at(home)
    asked = list(questions(reader))
    expected = []
    for each in asked:
        ids = list(each.prompt.ids)
        for _ in range(8):
            with torch.no_grad():
                ids.append(int(alone(reader, home, each, len(ids))(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in reader.wording.stops:
                break
        text = reader.wording.tokenizer.decode(ids[len(each.prompt.ids) :], skip_special_tokens=True)
        expected.append(text.strip().partition("\n")[0].strip())
    assert reader.answer(asked, reader.experts([one for each in asked for one in each.passages]), 8) == expected
    assert len(set(expected)) > 2
    closed = [each._replace(passages=()) for each in asked]
    assert reader.answer(closed, {}, 8)[1] == expected[1]
    assert reader.answer(closed, {}, 8) != expected


def test_weights_are_those_of_the_scores_and_equal_where_one_lacks():
    assert scores(SCORED[:3]) == [0.0, 0.5, 1.0]
    assert scores([SCORED[2], PASSAGES[0]]) == [0.0, 0.0]


def test_a_saved_reader_is_the_same_and_has_nothing_of_the_language_model(home, tmp_path):
    reader = reader_at(home)
    save_reader(reader, tmp_path, str(home / "decoder"))
    again = load_reader(tmp_path, CPU, "fp32")
    assert (again.settings, again.fingerprint) == (reader.settings, reader.fingerprint)
    for one, other in zip(reader.experts(PASSAGES)[1], again.experts(PASSAGES)[1]):
        assert torch.equal(one, other)
    parts = ["read.weight", "read.bias", "write.weight", "enter", "up", "down", "leave", "mean", "deviation"]
    assert set(load_file(tmp_path / "experts.safetensors")) == {f"1.{part}" for part in parts}
    shutil.copytree(home / "decoder", tmp_path / "moved")
    assert load_reader(tmp_path, CPU, "fp32", str(tmp_path / "moved")).fingerprint == reader.fingerprint
    assert load_reader(tmp_path, CPU, "bf16").experts(PASSAGES)[1].up_PHR.dtype == torch.bfloat16
    with torch.no_grad():
        again.network(1).leave[0, 0] += 1
    assert again.fingerprint != reader.fingerprint


def test_experts_for_another_language_model_are_told(home, tmp_path):
    save_reader(reader_at(home), tmp_path, str(home / "decoder"))
    write_decoder(tmp_path / "other", "llama", ["other words"], noise=0.3)
    with pytest.raises(InputError, match=r"has experts for the language model .*decoder, and .*other is another one"):
        load_reader(tmp_path, CPU, "fp32", str(tmp_path / "other"))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rank": 5}, r"experts\.safetensors: does not fit experts\.json: "),
        ({"rank": "4"}, "experts: rank must be an int"),
        ({"layers": [7]}, "layer 7 does not exist: .* has the layers 0 to 1"),
        ({"layers": 1}, "experts: layers must be ints, got 1"),
        ({"colour": 1}, r"experts\.json: expected model, language, layers, rank, bottleneck, titles, passage_length"),
        ({"model": "/nowhere"}, "model: '/nowhere' is no directory"),
    ],
)
def test_damaged_settings_are_told(home, tmp_path, change, message):
    save_reader(reader_at(home), tmp_path, str(home / "decoder"))
    path = tmp_path / "experts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        load_reader(tmp_path, CPU, "fp32")
    assert "\n" not in str(caught.value)


def test_a_folder_without_experts_is_told_and_reads_without_them(home):
    with pytest.raises(InputError, match=r"decoder has no experts\.json: expected what python -m moe_retr"):
        open_reader(str(home / "decoder"), CPU, "fp32")
    reader = open_reader(str(home / "decoder"), CPU, "fp32", needs_experts=False)
    assert reader.settings.layers == ()
    asked = Asked(reader.wording.asked(QUESTIONS[0]))
    (text,) = reader.answer([asked], {}, 8)
    whole = reader_at(home)
    assert [text] == whole.answer([asked], {}, 8)


def test_a_prompt_that_the_language_model_cannot_read_is_told(home):
    reader = reader_at(home)
    prompt = reader.wording.asked(QUESTIONS[0], PASSAGES * 20)
    with pytest.raises(InputError, match=r"has \d+ tokens, and the language model reads 256: expected fewer or shor"):
        reader.answer([Asked(prompt)], {}, 8)


def test_a_model_that_reads_and_writes_is_taught_and_asked_too(tmp_path):
    """T5: the experts of its encoder run on the question, those of its decoder on the answer."""
    folder = write_decoder(tmp_path / "decoder", "llama", [each.text for each in PASSAGES])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "t5")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path / "t5")
    reader = make_reader(str(tmp_path / "t5"), ReaderSettings((1, 3), 4, 8, False, 64), CPU, "fp32")
    with torch.no_grad():
        for network in reader.networks.values():
            network.write.weight.zero_()  # and leave is: experts of nothing
    asked = list(questions(reader))
    total = 0.0
    for each in asked:
        labels = torch.tensor([each.answer])
        total += model(input_ids=torch.tensor([each.prompt.ids]), labels=labels).loss.item()
    assert reader.loss(asked).item() == pytest.approx(total, rel=1e-4)
    made = reader.experts([one for each in asked for one in each.passages])
    assert len(reader.answer(asked, made, 8)) == 4
    with torch.no_grad():
        reader.network(3).leave.normal_()
    assert reader.loss(asked).item() != pytest.approx(total, rel=1e-3)
