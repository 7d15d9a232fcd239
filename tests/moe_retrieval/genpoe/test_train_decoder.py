"""A small decoder: the loss against one by hand, that it learns and leaves what transformers loads, what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.genpoe.decoder_training import encode, read_texts, total_loss
from moe_retrieval.genpoe.train_decoder import main
from moe_retrieval.models.tokenizer import train_tokenizer
from tests.moe_retrieval.corpora import write_lines

TOWNS = ["Elgin", "Kelso", "Oakham", "Jarrow"]
TEXTS = [f"Knowledge:\nAnn lives in {town}.\nQuestion: Where is Ann?\nAnswer: {town}" for town in TOWNS]
SMALL = ["--hidden-size", "32", "--layers", "2", "--heads", "2", "--vocab-size", "400", "--batch-size", "4"]


@pytest.fixture
def data(tmp_path):
    write_lines(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    return tmp_path / "texts.jsonl"


def train(data, output, *flags):
    main(["--data", str(data), "--output-dir", str(output), "--precision", "fp32", *SMALL, *map(str, flags)])
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns_to_answer_and_transformers_loads_it(data, tmp_path):
    losses = train(data, tmp_path / "d", "--max-steps", "150", "--lr", "1e-2")
    assert losses[-1] < 0.1 * losses[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "d")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    for text, town in zip(TEXTS, TOWNS):
        ids = tokenizer(text.removesuffix(f" {town}"), add_special_tokens=False, return_tensors="pt")["input_ids"]
        new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert tokenizer.decode(new).partition("\n")[0].strip() == town


def test_the_loss_is_that_of_each_text_by_itself(data, tmp_path):
    """The answer and the end of its line count 1, and what is before it as much as the flag says."""
    train_tokenizer(TEXTS, 400, "bpe").save(tmp_path)
    texts = [*read_texts(data), "Question: Where?\nAnswer: Kelso\n"]
    rows = encode(tmp_path, texts)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = 0.0
    for text, row in zip(texts, rows):
        assert tokenizer.decode(row.ids) == text
        assert tokenizer.decode(row.ids[: row.asked]).endswith("\nAnswer:")
        ids = torch.tensor(row.ids)
        each = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
        weights = torch.tensor([0.25 if place < row.asked else 1.0 for place in range(1, len(ids))])
        expected += (each * weights).sum() / weights.sum()
    assert total_loss(model, rows, 0.25).item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_it_cannot_learn_from_is_told(data, tmp_path):
    write_lines(tmp_path / "bad.jsonl", [{"text": TEXTS[0]}, {"text": "Question: Where?\nAnswer: "}])
    with pytest.raises(InputError, match=r'bad\.jsonl:2: expected a "text" that ends with "Answer:" and an answer'):
        train(tmp_path / "bad.jsonl", tmp_path / "d")
    with pytest.raises(InputError, match=r"--positions must be at least \d+, for a text has so many tokens, got 8"):
        train(data, tmp_path / "e", "--positions", "8")
    with pytest.raises(InputError, match="--hidden-size must be a multiple of twice --heads, 4, got 34"):
        train(data, tmp_path / "f", "--hidden-size", "34")
