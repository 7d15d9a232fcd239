"""Rerankers: scores as a plain forward of one sequence gives them, in batches; the command that reorders passages."""

import json

import pytest
import torch
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, Passage, read_examples, write_examples
from moe_retrieval.genpoe.prompts import PROMPTS, shown
from moe_retrieval.genpoe.rerank import main
from moe_retrieval.genpoe.reranker import load_reranker
from tests.moe_retrieval.genpoe.yes_no import write_decoder

CPU = torch.device("cpu")


def near(scores):
    return pytest.approx(scores, rel=1e-4, abs=1e-5)


QUESTION = "Where does Ann live?"
TEXTS = ["Ann lives in Elgin.", "Elgin", "", "Bob keeps a horse, and a cat, and a long list of other animals. " * 2]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp(request.param), request.param, [QUESTION, *TEXTS], noise=0.2)


def by_hand(folder, question, text, prompt, sign):
    """The logits of the words that begin with this sign, after the whole text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    parts = (f"A: {question}", "\n", f"B: {text}", "\n", prompt)
    ids = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1, tokenizer.encode(sign, add_special_tokens=False)[0]].item()


@pytest.mark.parametrize("max_tokens", [1, 300, 10_000], ids=["alone", "a few", "together"])
def test_a_score_is_the_logit_of_yes_after_the_text_alone(folder, max_tokens):
    expected = [by_hand(folder, QUESTION, text, PROMPTS["passage"], "Yes") for text in TEXTS]
    found = load_reranker(str(folder), CPU).score(QUESTION, TEXTS, max_tokens)
    assert found == near(expected)
    assert len({round(score, 4) for score in found}) == len(TEXTS)


def test_against_no_and_for_titles(folder):
    reranker = load_reranker(str(folder), CPU, by="title", against_no=True)
    (found,) = reranker.score(QUESTION, ["Elgin"], 1000)
    yes, no = (by_hand(folder, QUESTION, "Elgin", PROMPTS["title"], word) for word in ("Yes", "No"))
    assert found == near(yes - no)
    assert reranker.score(QUESTION, [], 1000) == []


def test_the_start_of_a_text_has_its_own_token(folder, tmp_path):
    """Where the tokenizer has one that is not its padding."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "[CLS]"}))
    plain, begun = (load_reranker(str(place), CPU) for place in (folder, tmp_path))
    (without,), (with_start,) = plain.sequences("q", ["t"]), begun.sequences("q", ["t"])
    assert with_start == [begun.tokenizer.bos_token_id, *without]


def test_what_is_too_long_is_cut_and_the_prompt_never(folder):
    reranker = load_reranker(str(folder), CPU, max_length=120)
    texts = ["short", "long " * 200]
    for question in ("short", "a long question " * 100):
        for sequence in reranker.sequences(question, texts):
            assert len(sequence) <= 120
            assert sequence[-len(reranker.ending) :] == reranker.ending
    assert reranker.cut == 2
    assert len(reranker.sequences("q", texts)[1]) == 120
    assert load_reranker(str(folder), CPU, max_length=100_000).length == 256
    with pytest.raises(InputError, match=r"--max-length must be at least \d+, for the prompt has \d+ tokens; got 20"):
        load_reranker(str(folder), CPU, max_length=20)


EXAMPLES = [
    Example(QUESTION, ("Elgin",), tuple(Passage(str(i), f"T{i}", text, 9.0 - i) for i, text in enumerate(TEXTS))),
    Example("Who keeps a horse?", ("Bob",), (Passage("7", "T", TEXTS[3]),)),
    Example("No passages?", ("none",)),
]


def test_the_command_orders_passages_by_their_scores(folder, tmp_path, capsys):
    write_examples(tmp_path / "in.json", EXAMPLES)
    main(["--model", str(folder), "--input", str(tmp_path / "in.json"), "--output", str(tmp_path / "out.json"),
          "--precision", "fp32", "--top-k", "3"])  # fmt: skip
    found = list(read_examples(tmp_path / "out.json"))
    assert [(each.question, each.answers) for each in found] == [(each.question, each.answers) for each in EXAMPLES]
    reranker = load_reranker(str(folder), CPU)
    expected = dict(enumerate(reranker.score(QUESTION, [shown(each, "passage") for each in EXAMPLES[0].ctxs], 1000)))
    order = sorted(expected, key=expected.__getitem__, reverse=True)[:3]
    assert [int(passage.id) for passage in found[0].ctxs] == order
    assert [passage.score for passage in found[0].ctxs] == near([expected[row] for row in order])
    assert [passage.has_answer for passage in found[0].ctxs] == ["Elgin" in TEXTS[row] for row in order]
    assert found[2].ctxs == ()
    first = (order[0] in (0, 1)) + 1  # of the second question the only passage answers
    assert f"top-1      0.6667 before, {first / 3:.4f} after\n" in capsys.readouterr().out


def test_a_reranker_remembers_how_it_was_asked(folder, tmp_path):
    reranker = load_reranker(str(folder), CPU, by="title", against_no=True, max_length=200)
    reranker.save(tmp_path)
    again = load_reranker(str(tmp_path), CPU)
    assert again.settings == reranker.settings
    assert again.score(QUESTION, TEXTS, 1000) == near(reranker.score(QUESTION, TEXTS, 1000))
    other = load_reranker(str(tmp_path), CPU, by="passage", against_no=False)
    assert (other.settings.prompt, other.settings.against_no) == (PROMPTS["passage"], False)
    (tmp_path / "reranker.json").write_text(json.dumps({"by": "heart"}))
    with pytest.raises(InputError, match="by must be one of passage, title; got 'heart'"):
        load_reranker(str(tmp_path), CPU)
    (tmp_path / "reranker.json").write_text(json.dumps({"bye": "title"}))
    with pytest.raises(InputError, match=r"reranker\.json: expected by, prompt, against_no, max_length"):
        load_reranker(str(tmp_path), CPU)


def test_what_is_no_reranker_is_told(folder, tmp_path):
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match=r"t5: not a causal language model with its tokenizer: "):
        load_reranker(str(tmp_path / "t5"), CPU)
    (folder_without := tmp_path / "without").mkdir()
    for file in folder.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder_without / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        InputError, match=r"not a causal language model with its tokenizer: |has no token for Yes"
    ) as caught:
        load_reranker(str(folder_without), CPU)
    assert "\n" not in str(caught.value)


def test_a_model_of_nan_is_told(folder, tmp_path):
    reranker = load_reranker(str(folder), CPU)
    with torch.no_grad():
        next(reranker.model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the reranker's scores are not finite"):
        reranker.score(QUESTION, TEXTS, 1000)
