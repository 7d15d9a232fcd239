import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from moe_retrieval.models.ascii import AsciiNormalizer
from moe_retrieval.models.tokenizer import load_tokenizer, train_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "A", "B", "ab", "##a", "##b", "##A", ".", "[", "]"]
PIECES = [chr(code) for code in range(128)] + ["a", "b", "AB", " ", "[SEP]", "[mask]", "[MASK]", "é", "\u200b"]


@pytest.fixture(scope="module", params=["uncased", "cased"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(f'{{"do_lower_case": {str(request.param == "uncased").lower()}}}')
    return load_tokenizer(folder)


def ids(tokenizer, text, max_length):
    """As the library alone has them."""
    backend = Backend.from_str(tokenizer.definition)
    backend.enable_truncation(max_length)
    return backend.encode(text).ids


@hypothesis.given(text=st.lists(st.sampled_from(PIECES), max_size=80).map("".join), max_length=st.integers(3, 9))
@hypothesis.settings(max_examples=300, deadline=None)
def test_the_same_ids(tokenizer, text, max_length):
    assert tokenizer.encode_batch([text, "a"], max_length) == [ids(tokenizer, x, max_length) for x in (text, "a")]


@pytest.mark.parametrize("gap", [" ", "\t\n", "\x00 ", "\x1f", " " * 40])
def test_long_texts(tokenizer, gap):
    mask_at_the_cut = "ab " * 42 + "a[MASK]" + gap.join("ab" * 300)
    words = gap.join(["ab", "a.", "[x]", "bB"] * 200)
    for text in (words, "ab" * 900, gap * 500, gap.join("ab" * 300) + "é", mask_at_the_cut):
        for max_length in (3, 8, 100):
            assert tokenizer.encode_batch([text], max_length) == [ids(tokenizer, text, max_length)]


def test_a_long_text_is_cut(tokenizer):
    normalizer = AsciiNormalizer.of(tokenizer.definition)
    assert normalizer.normalize("ab. " * 1000, 8) == " ".join(["ab."] * 8)
    assert normalizer.normalize("ab " * 1000 + "é [MASK]", 8) == " ".join(["ab"] * 8)
    assert normalizer.normalize("é" + "ab " * 1000, 8) is None
    assert normalizer.normalize("ab [MASK]", 8) is None


def test_others_are_left_alone():
    assert AsciiNormalizer.of(train_tokenizer(["a b"] * 20, 300, "bpe").definition) is None
    trained = train_tokenizer(["a b"] * 20, 300)
    assert AsciiNormalizer.of(trained.definition) is not None
    for token in ("abc", AddedToken("a b", normalized=False)):  # looked for in normalised text; more than a word
        backend = Backend.from_str(trained.definition)
        backend.add_tokens([token])
        assert AsciiNormalizer.of(backend.to_str()) is None
