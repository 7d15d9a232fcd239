"""What is hidden of a text, and how well that is guessed: against transformers' own, and by counting."""

import numpy as np
import pytest
import torch
import transformers

from moe_retrieval.errors import InputError
from moe_retrieval.models.encoder import Encoder
from moe_retrieval.models.tokenizer import Tokenizer, train_tokenizer
from moe_retrieval.training.masked_model import MaskedModel
from moe_retrieval.training.masking import Masked, Masking
from tests.moe_retrieval.tiny import SHAPE, tiny_tokenizer, token_lists

FIRST, LAST, MASK = 1, 2, 3
MASKING = Masking(0.25, MASK, 400, frozenset((FIRST, LAST, MASK)))


def masked(length, seed, masking=MASKING):
    ids = [FIRST, *range(10, 8 + length), LAST]
    return ids, masking(ids, np.random.default_rng(seed))


def test_what_is_guessed_is_the_share_and_stood_there():
    for seed in range(20):
        ids, text = masked(42, seed)
        assert len(text.places) == 10
        assert text.places == sorted(set(text.places))
        assert text.expected == [ids[place] for place in text.places]
        assert not {0, 41} & set(text.places)
        changed = [place for place in range(42) if text.ids[place] != ids[place]]
        assert set(changed) <= set(text.places)


def test_eight_of_ten_are_hidden_one_is_another_one_stays():
    kinds = {"hidden": 0, "other": 0, "same": 0}
    for seed in range(400):
        ids, text = masked(42, seed)
        for place in text.places:
            kind = "hidden" if text.ids[place] == MASK else "same" if text.ids[place] == ids[place] else "other"
            kinds[kind] += 1
    total = sum(kinds.values())
    assert kinds["hidden"] / total == pytest.approx(0.8, abs=0.03)
    assert kinds["other"] / total == pytest.approx(0.1, abs=0.02)


def test_the_smallest_texts():
    """One token of a text is guessed however small the share is; of none, none."""
    assert len(masked(3, 0, Masking(0.01, MASK, 400, MASKING.frame))[1].places) == 1
    assert MASKING([FIRST, LAST], np.random.default_rng(0)) == Masked([FIRST, LAST], [], [])
    assert MASKING([FIRST, MASK, LAST], np.random.default_rng(0)).places == []


def test_the_same_draw_hides_the_same():
    assert masked(30, [0, 1])[1] == masked(30, [0, 1])[1]
    assert masked(30, [0, 1])[1] != masked(30, [0, 2])[1]


def test_a_tokenizer_tells_its_mask_and_frame():
    tokenizer = tiny_tokenizer()
    found = Masking.of(tokenizer, 0.15)
    assert {tokenizer.token(token) for token in found.frame} == {"[CLS]", "[SEP]", "[MASK]"}
    assert (tokenizer.token(found.mask), found.vocab_size) == ("[MASK]", tokenizer.vocab_size)
    without = Tokenizer(train_tokenizer(["a b c"] * 3, 300).definition.replace("[MASK]", "[HIDE]"))
    with pytest.raises(InputError, match=r"the tokenizer has no \[MASK\]"):
        Masking.of(without, 0.15)


def same_as_bert(shape):
    """transformers' masked BERT, and ours with its weights."""
    config = transformers.BertConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, intermediate_size=shape.ffn_size,
        max_position_embeddings=shape.max_positions, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    bert = transformers.BertForMaskedLM(config).double().eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours = MaskedModel(Encoder(shape)).double().eval()
    theirs, head = dict(bert.bert.named_parameters()), bert.cls.predictions
    state = {
        "tokens.weight": theirs["embeddings.word_embeddings.weight"],
        "positions.weight": theirs["embeddings.position_embeddings.weight"]
        + theirs["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": theirs["embeddings.LayerNorm.weight"],
        "norm.bias": theirs["embeddings.LayerNorm.bias"],
    }
    for i in range(shape.num_layers):
        layer = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            state[f"blocks.{i}.qkv.{kind}"] = torch.cat(
                [theirs[f"{layer}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            for name, other in (
                ("out", "attention.output.dense"), ("attention_norm", "attention.output.LayerNorm"),
                ("ffn.up", "intermediate.dense"), ("ffn.down", "output.dense"), ("ffn_norm", "output.LayerNorm"),
            ):  # fmt: skip
                state[f"blocks.{i}.{name}.{kind}"] = theirs[f"{layer}{other}.{kind}"]
    ours.encoder.load_state_dict(state)
    ours.transform.load_state_dict(head.transform.dense.state_dict())
    ours.norm.load_state_dict(head.transform.LayerNorm.state_dict())
    with torch.no_grad():
        ours.bias.copy_(head.bias)
    return bert, ours


def texts_to_guess():
    drawn = np.random.default_rng(5)
    return [MASKING([FIRST, *ids, LAST], drawn) for ids in token_lists(6, 20, seed=3)]


def test_the_loss_and_its_gradient_are_those_of_transformers():
    """Text by text, each with the mean over its own hidden tokens."""
    bert, ours = same_as_bert(SHAPE)
    expected = 0.0
    for text in texts_to_guess():
        labels = torch.full((1, len(text.ids)), -100)
        labels[0, text.places] = torch.tensor(text.expected)
        expected += bert(input_ids=torch.tensor([text.ids]), labels=labels).loss
    expected.backward()
    loss = ours(texts_to_guess())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # cross-entropy is in fp32
    for found, theirs in (
        (ours.encoder.tokens.weight, bert.bert.embeddings.word_embeddings.weight),
        (ours.encoder.blocks[0].ffn.up.weight, bert.bert.encoder.layer[0].intermediate.dense.weight),
        (ours.transform.weight, bert.cls.predictions.transform.dense.weight),
        (ours.bias, bert.cls.predictions.bias),
    ):
        torch.testing.assert_close(found.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_no_text_is_a_zero_in_which_every_parameter_has_a_part():
    model = MaskedModel(Encoder(SHAPE))
    loss = model([])
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
