"""What a language model reads: the text as it is written, and where in it the question begins."""

import pytest
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.examples import Passage
from moe_retrieval.genpoe.wording import Wording
from tests.moe_retrieval.genpoe.people import PASSAGES, QUESTIONS, write_home


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return transformers.AutoTokenizer.from_pretrained(write_home(tmp_path_factory.mktemp("words")) / "decoder")


def test_a_prompt_is_the_text_and_the_question_begins_behind_the_passages(tokenizer):
    wording = Wording(tokenizer, titles=False, passage_length=64)
    for passages in ((), PASSAGES[:1], PASSAGES[:3]):
        asked, answer = wording.answered(QUESTIONS[0], "in  Elgin", passages)
        head = "".join(f"{line}\n" for line in ("Knowledge:", *(each.text for each in passages))) if passages else ""
        assert tokenizer.decode(asked.ids[: asked.start]) == head
        assert tokenizer.decode(asked.ids[asked.start :]) == f"Question: {QUESTIONS[0]}\nAnswer:"
        assert tokenizer.decode(answer) == " in Elgin\n"  # the tokenizer has no end of a text
        assert wording.asked(QUESTIONS[0], passages) == asked


def test_special_tokens_frame_what_is_read(tokenizer):
    plain = Wording(tokenizer, titles=False, passage_length=64)
    framed = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]"
    )
    wording = Wording(framed, titles=False, passage_length=64)
    without, text = plain.answered(QUESTIONS[0], "Elgin", PASSAGES[:1])
    asked, answer = wording.answered(QUESTIONS[0], "Elgin", PASSAGES[:1])
    assert asked.ids == [framed.bos_token_id, *without.ids]
    assert asked.start == without.start + 1
    assert answer == [*text[:-1], framed.eos_token_id]
    assert set(wording.stops) == {framed.eos_token_id, text[-1]}
    encoder = Wording(framed, titles=False, passage_length=64, is_encoder_decoder=True)
    assert encoder.asked(QUESTIONS[0]).ids[-1] == framed.eos_token_id


def test_lines_of_a_passage_become_one_and_titles_stand_before(tokenizer):
    passage = Passage("7", "Ann  Lee", "lives\nin\tElgin. ")
    assert Wording(tokenizer, titles=False, passage_length=9).told(passage) == "lives in Elgin."
    assert Wording(tokenizer, titles=True, passage_length=9).told(passage) == "Ann Lee lives in Elgin."


def test_what_is_too_long_is_cut_and_counted_once(tokenizer):
    wording = Wording(tokenizer, titles=False, passage_length=3)
    whole = tokenizer(PASSAGES[0].text, add_special_tokens=False)["input_ids"]
    assert len(whole) > 3
    assert wording.passage(PASSAGES[0]) == wording.passage(PASSAGES[0]) == whole[:3]
    assert wording.passage(Passage("x", "", "")) == []
    assert wording.cut == {"0"}


def test_a_tokenizer_that_knows_no_places_is_told():
    with pytest.raises(InputError, match="tokenizer is not fast: it does not say where in a text a token is"):
        Wording(object(), titles=False, passage_length=3)
