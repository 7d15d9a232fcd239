"""Variants, their start, and the way to disk and back, through the real AutoModel and SentenceTransformer."""

import json
import subprocess
import sys

import pytest
import torch

import kernels
import moe_retrieval
from moe_retrieval import backbones, export
from moe_retrieval.card import model_card
from moe_retrieval.encoder import EncoderShape, pack
from moe_retrieval.errors import InputError
from moe_retrieval.experts import choose_by_hash, parse_layers, sequence_keys
from moe_retrieval.model import Model, build_from_scratch, build_retriever, fingerprint
from moe_retrieval.retriever import new_settings
from moe_retrieval.tokenizer import load_tokenizer
from tests.moe_retrieval.test_encoder import make_bert
from tests.moe_retrieval.tiny import SHAPE, VARIANTS, tiny_retriever, tiny_tokenizer, token_lists

CPU = torch.device("cpu")
SMALL = dict(vocab_size=400, hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    make_bert(**SMALL).save_pretrained(folder)
    tiny_tokenizer().save(folder)
    return folder


def embed(retriever, texts):
    with torch.no_grad():
        return retriever.eval()(*pack(texts))


# What a variant is.


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"sb-moe-all"}))
def test_every_variant_starts_as_its_backbone(name, backbone):
    texts = token_lists(9)
    dense = embed(build_retriever("b", backbone), texts)
    options = VARIANTS[name] | (
        {"expert_changes": {"layers": "every-2"}} if "moe" in (VARIANTS[name].get("control_of"), name) else {}
    )
    start = embed(build_retriever("b", backbone, **options), texts)
    assert ((start - dense).norm() / dense.norm()).item() < 1e-5


@pytest.mark.parametrize("family", ["sb-moe", "moe"])
def test_the_dense_control_has_as_many_parameters(family):
    routed = build_from_scratch(SHAPE, family)
    control = build_from_scratch(SHAPE, "dense-wide", family)
    dense = build_from_scratch(SHAPE)
    added = routed.count_parameters()[0] - dense.count_parameters()[0]
    assert abs(control.count_parameters()[0] - routed.count_parameters()[0]) <= 2 * SHAPE.hidden_size + 1
    assert added > 1000
    assert control.count_parameters()[0] == control.count_parameters()[1]


def test_active_parameters_are_those_of_the_chosen_experts():
    settings = dict(num_experts=4, top_k=1, layers=(0,))
    retriever = build_from_scratch(SHAPE, "moe", expert_changes=settings)
    one_expert = 2 * SHAPE.hidden_size * SHAPE.ffn_size + SHAPE.hidden_size + SHAPE.ffn_size
    total, active = retriever.count_parameters()
    assert total - active == 3 * one_expert


def test_random_routing_is_even_fixed_and_distinct():
    keys = torch.arange(5000)
    chosen = choose_by_hash(keys, num_experts=8, top_k=2, salt=3)
    shares = torch.bincount(chosen.flatten(), minlength=8) / chosen.numel()
    assert shares.min() > 0.115
    assert shares.max() < 0.135
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert not torch.equal(chosen, choose_by_hash(keys, 8, 2, salt=4))
    assert chosen[:3].tolist() == choose_by_hash(keys[:3], 8, 2, 3).tolist()
    # A saved model relies on the very numbers.
    assert choose_by_hash(torch.tensor([101, 2023]), 8, 2, 1).tolist() == [[2, 0], [0, 2]]


def test_a_sequence_key_knows_the_order_of_the_tokens_and_not_the_batch():
    def keys(*texts):
        ids, cu_seqlens, _ = pack(texts)
        positions = torch.cat([torch.arange(len(text)) for text in texts])
        return sequence_keys(ids, positions, cu_seqlens).tolist()

    assert keys([7, 8, 9], [9, 8, 7], [], [7, 8, 9])[::3] == keys([7, 8, 9]) * 2
    assert len(set(keys([7, 8, 9], [9, 8, 7], [8, 7, 9], [7, 8]))) == 4


def test_random_has_no_router():
    retriever = tiny_retriever("random")
    assert not kernels.losses.moe_layers(retriever)
    assert not [name for name, _ in retriever.named_parameters() if "router" in name]


def test_layers_are_parsed():
    assert parse_layers("all", 3) == (0, 1, 2)
    assert parse_layers("every-3", 6) == (2, 5)
    assert parse_layers("4,0", 6) == (0, 4)
    for bad in ("6", "-1", "a", "every-0", "every-", ""):
        with pytest.raises(InputError, match="layers must"):
            parse_layers(bad, 6)


def test_settings_that_make_no_sense_are_refused(backbone):
    shape = EncoderShape()
    with pytest.raises(InputError, match="control_of goes with variant dense-wide or random, got variant 'moe'"):
        new_settings(shape, "moe", "sb-moe")
    with pytest.raises(InputError, match="variant dense has no experts; it cannot take top_k"):
        new_settings(shape, "dense", expert_changes={"top_k": 2})
    with pytest.raises(InputError, match="variant must be one of dense, sb-moe"):
        new_settings(shape, "sparse")
    with pytest.raises(InputError, match=r"query_length must be 3 to 512 .* got 600"):
        new_settings(shape, "dense", query_length=600)
    with pytest.raises(InputError, match="moe: top_k must be 1 to 8"):
        build_from_scratch(SHAPE, "moe", expert_changes={"top_k": 9})
    with pytest.raises(InputError, match="renormalize must be on"):
        build_retriever("b", backbone, "moe", expert_changes={"renormalize": False})
    with pytest.raises(InputError, match="expert_size must be the backbone's 96"):
        build_retriever("b", backbone, "moe", expert_changes={"expert_size": 32})


# To disk and back.


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("pooling", ["mean", "mean-max"])
def test_a_round_trip_keeps_every_bit(name, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    usage = dict(pooling=pooling, query_prompt="query: ", query_length=9, doc_length=16)
    retriever = tiny_retriever(name, **usage)
    export.save(tmp_path, retriever, tiny_tokenizer(), model_card(retriever, "tiny", "words", {"steps": 3}))
    texts = ["sort a tensor", "", "Keep equal ROWS in order! " * 5]

    model = moe_retrieval.load(tmp_path, "fp32", "cpu")
    assert model.settings == retriever.settings
    assert model.fingerprint == Model(retriever, tiny_tokenizer(), "fp32", CPU).fingerprint
    ids = model.tokenizer.encode_batch(texts, model.doc_length)
    embeddings = model.embed_tokens(ids)
    assert torch.equal(embeddings, embed(retriever, ids))
    assert embeddings.shape == (3, model.hidden_size)
    assert model.hidden_size == (48 if "max" in pooling else 24)

    theirs = AutoModel.from_pretrained(tmp_path).eval()
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.no_grad():
        output = theirs(padded, mask)
    assert torch.equal(output.pooler_output, embeddings)
    assert torch.equal(output.last_hidden_state[mask.bool()], model.retriever.encoder(*pack(ids)))
    assert not output.last_hidden_state[~mask.bool()].any()

    sentences = SentenceTransformer(str(tmp_path), device="cpu")
    assert sentences.max_seq_length == 16
    again = torch.tensor(sentences.encode(texts))  # in its own order of length
    torch.testing.assert_close(again, embeddings, rtol=0, atol=1e-6)
    query = sentences.encode_query("sort a tensor", convert_to_tensor=True)
    (expected,) = model.embed_tokens(model.tokenizer.encode_batch(["query: sort a tensor"], 16))
    torch.testing.assert_close(query, expected, rtol=0, atol=1e-6)

    theirs.save_pretrained(tmp_path / "again")
    tiny_tokenizer().save(tmp_path / "again")
    assert torch.equal(moe_retrieval.load(tmp_path / "again", "fp32", "cpu").embed_tokens(ids), embeddings)


def test_what_automodel_loads_can_be_trained(tmp_path):
    from transformers import AutoModel

    export.save(tmp_path, tiny_retriever("moe"), tiny_tokenizer(), "card")
    model = AutoModel.from_pretrained(tmp_path).train()
    loss = model(torch.randint(5, 400, (2, 7))).pooler_output.sum() + kernels.aux_loss(model)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["dense", "sb-moe", "moe", "random"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_computes_what_autocast_computes(name, precision, tmp_path):
    retriever = tiny_retriever(name).eval()
    export.save(tmp_path, retriever, tiny_tokenizer(), "card")
    texts = token_lists(5)
    embeddings = moe_retrieval.load(tmp_path, precision, "cpu").embed_tokens(texts)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16 if precision == "bf16" else torch.float16):
        assert torch.equal(retriever(*pack(texts)), embeddings)
    exact = embed(retriever, texts)
    error = ((embeddings - exact).norm() / exact.norm()).item()
    assert 0 < error < (2e-2 if precision == "bf16" else 3e-3)


def test_the_batch_does_not_matter():
    model = Model(tiny_retriever("sb-moe"), tiny_tokenizer(), "fp32", CPU)
    texts = token_lists(17)
    alone = torch.cat([model.embed_tokens([text]) for text in texts])
    torch.testing.assert_close(model.embed_tokens(texts), alone, rtol=0, atol=1e-6)
    assert model.embed_tokens([]).shape == (0, 24)


def test_the_fingerprint_changes_with_a_weight_and_with_a_setting():
    retriever = tiny_retriever("sb-moe")
    first = fingerprint(retriever)
    assert fingerprint(tiny_retriever("sb-moe")) == first
    assert fingerprint(tiny_retriever("sb-moe", doc_length=17)) != first
    with torch.no_grad():
        retriever.encoder.norm.bias[3] += 1e-6
    assert fingerprint(retriever) != first


def test_a_broken_run_is_one_clear_line(tmp_path):
    export.save(tmp_path, tiny_retriever("moe"), tiny_tokenizer(), "card")
    config = json.loads((tmp_path / "config.json").read_text())
    config["retriever"]["shape"]["ffn_size"] = 41
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"the weights do not fit config.json") as caught:
        moe_retrieval.load(tmp_path)
    assert "\n" not in str(caught.value)
    del config["retriever"]["shape"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json does not describe a retriever"):
        moe_retrieval.load(tmp_path)
    with pytest.raises(InputError, match="precision must be one of bf16, fp16, fp32; got 'fp8'"):
        moe_retrieval.load(tmp_path, "fp8")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    export.save(tmp_path, tiny_retriever(), backbone_tokenizer(), "card")
    with pytest.raises(InputError, match="the tokenizer has 30522 tokens and the model embeds 400"):
        moe_retrieval.load(tmp_path)


def backbone_tokenizer():
    return load_tokenizer(backbones.find("minilm"))


# The import.

HOOK = """
import sys
{first}
import moe_retrieval
assert {heavy} or not {{"torch", "transformers"}} & set(sys.modules), "import moe_retrieval is heavy"
{second}
print(type(AutoModel.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.mark.parametrize(
    "first, second",
    [
        ("", "from transformers import AutoModel"),
        ("from transformers import AutoModel", ""),
        ("from transformers import AutoConfig", "from transformers import AutoModel"),
    ],
)
def test_automodel_knows_our_models_after_the_import(first, second, tmp_path):
    export.save(tmp_path, tiny_retriever(), tiny_tokenizer(), "card")
    code = HOOK.format(first=first, second=second, heavy=bool(first))
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "RetrieverModel", out.stderr


def test_another_kernels_package_is_told_apart(tmp_path):
    (tmp_path / "kernels.py").write_text("__all__ = ['get_kernel']\n")
    code = "import sys; sys.path.insert(0, sys.argv[1]); import moe_retrieval"
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    (last,) = out.stderr.strip().splitlines()[-1:]
    assert last.startswith("ImportError: the package kernels at")
    assert "pip uninstall kernels" in last


def test_the_alias_is_the_real_model():
    model = moe_retrieval.load("minilm", "fp32", "cpu")
    assert (model.query_length, model.doc_length, model.hidden_size) == (64, 256, 384)
    texts = ["a stable sort", "sorting that keeps equal elements in order", "boil the potatoes"]
    a, b, c = model.embed_tokens(model.tokenizer.encode_batch(texts, 64))
    assert a @ b > 0.6 > 0.2 > a @ c
    assert backbones.find("minilm").name == "model"
