"""Rerankers: scores as a plain forward of one sequence gives them, in batches; the command that reorders passages."""

import json

import pytest
import torch
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Example, Passage, read_examples, write_examples
from moe_retrieval.genpoe.prompts import PROMPTS, shown
from moe_retrieval.genpoe.rerank import main
from moe_retrieval.genpoe.reranker import Reranker, load_reranker
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


def test_what_is_too_long_is_cut_and_said_and_the_prompt_never(folder, caplog):
    reranker = load_reranker(str(folder), CPU, max_length=120)
    texts = ["short", "long " * 200]
    for question in ("short", "a long question " * 100):
        for sequence in reranker.sequences(question, texts):
            assert len(sequence) <= 120
            assert sequence[-len(reranker.ending) :] == reranker.ending
    assert (reranker.cut, reranker.cut_questions) == (2, 1)
    reranker.say_what_was_cut()
    assert "2 times a passage was longer than --max-length leaves room for" in caplog.text
    assert "1 times a question was longer than --max-length leaves room for" in caplog.text
    assert len(reranker.sequences("q", texts)[1]) == 120
    assert load_reranker(str(folder), CPU, max_length=100_000).length == 256
    with pytest.raises(InputError, match=r"--max-length must be at least \d+ tokens, for the prompt has \d+; got 20"):
        load_reranker(str(folder), CPU, max_length=20)
    reranker.model.config.max_position_embeddings = 20
    with pytest.raises(InputError, match=r"what the reranker reads at most must be at least \d+ tokens, .*; got 20"):
        Reranker(reranker.model, reranker.tokenizer, reranker.settings, CPU)


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


def rerank(folder, home, *flags):
    main(["--model", str(folder), "--input", str(home / "in.json"), "--output", str(home / "out.json"),
          "--precision", "fp32", *flags])  # fmt: skip
    return (home / "out.json").read_text()


def stopped_after(count, monkeypatch):
    """-> what is scored; after so many questions a Ctrl-C comes."""
    scored, score = [], Reranker.score

    def counted(reranker, question, texts, max_tokens):
        if len(scored) == count:
            raise KeyboardInterrupt
        scored.append(question)
        return score(reranker, question, texts, max_tokens)

    monkeypatch.setattr(Reranker, "score", counted)
    return scored


@pytest.fixture
def stopped(folder, tmp_path, monkeypatch):
    """Where a run was stopped after the second question; -> what the whole run wrote, before."""
    write_examples(tmp_path / "in.json", EXAMPLES)
    whole = rerank(folder, tmp_path)
    (tmp_path / "out.json").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        stopped_after(2, patch)
        rerank(folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"in.json", "out.json.scores"}
    return whole


@pytest.mark.parametrize("damage", [b"", b"[1, 2", b"\xff\n", b"{}\n"])
def test_a_run_that_was_stopped_goes_on_with_the_scores_it_had(folder, tmp_path, monkeypatch, stopped, damage):
    """Of a line that a kill cut off, nothing is taken."""
    with open(tmp_path / "out.json.scores", "ab") as file:
        file.write(damage)
    scored = stopped_after(99, monkeypatch)
    assert rerank(folder, tmp_path) == stopped
    assert scored == [EXAMPLES[2].question]
    assert {path.name for path in tmp_path.iterdir()} == {"in.json", "out.json"}


def test_scores_of_other_passages_are_not_taken(folder, tmp_path, monkeypatch, stopped, caplog):
    changed = EXAMPLES[1]._replace(ctxs=(EXAMPLES[1].ctxs[0]._replace(text="another"),))
    write_examples(tmp_path / "in.json", [EXAMPLES[0], changed, EXAMPLES[2]])
    scored = stopped_after(99, monkeypatch)
    rerank(folder, tmp_path)
    assert scored == [each.question for each in EXAMPLES[1:]]
    assert "out.json.scores: has scores of other questions or passages, which are scored anew" in caplog.text


def test_scores_of_another_run_are_not_lost(folder, tmp_path, stopped):
    kept = (tmp_path / "out.json.scores").read_bytes()
    with pytest.raises(InputError, match=r"has what a run with another against_no scored: the flags of that run go on"):
        rerank(folder, tmp_path, "--against-no", "True")
    assert (tmp_path / "out.json.scores").read_bytes() == kept
    (tmp_path / "out.json.scores").write_bytes(kept.splitlines(keepends=True)[0])  # nothing is lost
    assert rerank(folder, tmp_path, "--against-no", "True") != stopped
    (tmp_path / "out.json.scores").write_text("[]\n[]\n")
    with pytest.raises(InputError, match=r"out\.json\.scores is no file of scores: remove it"):
        rerank(folder, tmp_path)


def test_without_answers_it_says_what_it_did(folder, tmp_path, capsys):
    write_examples(tmp_path / "in.json", [each._replace(answers=()) for each in EXAMPLES])
    rerank(folder, tmp_path)
    assert capsys.readouterr().out == f"3 questions, their passages in order, in {tmp_path / 'out.json'}\n"


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


def test_a_tokenizer_that_needs_a_package_is_one_line(folder, monkeypatch):
    def lacking(*arguments, **options):
        raise ImportError("\nLlamaTokenizer requires the SentencePiece library but it was not found.\nInstall it")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lacking)
    with pytest.raises(InputError, match=r"with its tokenizer: LlamaTokenizer requires the SentencePiece .* found\.$"):
        load_reranker(str(folder), CPU)


def test_a_model_of_nan_is_told(folder, tmp_path):
    reranker = load_reranker(str(folder), CPU)
    with torch.no_grad():
        next(reranker.model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="the reranker's scores are not finite"):
        reranker.score(QUESTION, TEXTS, 1000)
