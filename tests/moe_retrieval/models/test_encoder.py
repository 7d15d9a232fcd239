"""Our encoder against the one of transformers, on random weights of every layout and on real ones."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

from moe_retrieval.errors import InputError
from moe_retrieval.models import backbones, bert
from moe_retrieval.models.backbone_usage import read_usage
from moe_retrieval.models.encoder import Encoder, EncoderShape, pack
from tests.moe_retrieval.berts import make_bert

LAYOUTS = {  # vocabularies are small, everything that shapes the arithmetic is real
    "bert": dict(hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072),
    "tinybert-4": dict(hidden_size=312, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1200),
    "tinybert-6": dict(hidden_size=768, num_hidden_layers=6, num_attention_heads=12, intermediate_size=3072),
    "e5-small": dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536),
    "bge-like": dict(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=6, intermediate_size=200, hidden_act="relu"
    ),
    "gelu_new": dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=100, hidden_act="gelu_new"
    ),
}


def sequences(vocab_size, lengths=(7, 1, 33, 12), first=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(first, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def theirs(model, texts):
    """Hidden states of real tokens, from a padded batch."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [model.config.pad_token_id] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


def ours(folder, texts):
    shape, state = bert.read_encoder(folder)
    encoder = Encoder(shape).eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder(*pack(texts))


def relative_error(out, reference):
    return ((out - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_bert_of_transformers(layout, tmp_path):
    model = make_bert(**LAYOUTS[layout])
    model.save_pretrained(tmp_path)
    texts = sequences(211)
    assert relative_error(ours(tmp_path, texts), theirs(model, texts)) < 1e-5


def test_contriever_layout_with_a_task_prefix(tmp_path):
    """Tensors under a prefix, beside heads that are not ours, with the norms' names of the first BERT."""
    model = make_bert(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    state = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in state.items()
    }
    torch.save(state | {"cls.predictions.bias": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    texts = sequences(211)
    assert relative_error(ours(tmp_path, texts), theirs(model, texts)) < 1e-5


def test_shards_are_read_and_stay_in_their_folder(tmp_path):
    model = make_bert(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    shards = json.loads(index.read_text())
    assert len(set(shards["weight_map"].values())) > 1
    texts = sequences(211)
    assert relative_error(ours(folder, texts), theirs(model, texts)) < 1e-5
    name = next(iter(shards["weight_map"]))
    for outside in ("../other.safetensors", str(tmp_path / "other.safetensors"), "deeper/other.safetensors", ".."):
        shards["weight_map"][name] = outside
        index.write_text(json.dumps(shards))
        with pytest.raises(InputError, match=r"not in the folder|cannot read"):
            bert.read_encoder(folder)


def test_roberta_layout_counts_positions_from_its_padding(tmp_path):
    model = make_bert("roberta", hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    model.save_pretrained(tmp_path)
    texts = sequences(211)
    assert relative_error(ours(tmp_path, texts), theirs(model, texts)) < 1e-5
    assert bert.read_shape(tmp_path).max_positions == 38


def test_dpr_layout(tmp_path):
    torch.manual_seed(0)
    shape = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    config = transformers.DPRConfig(vocab_size=211, max_position_embeddings=40, **shape)
    model = transformers.DPRQuestionEncoder(config).eval()
    model.save_pretrained(tmp_path)
    text = sequences(211)[:1]
    with torch.no_grad():
        reference = model(torch.tensor(text)).pooler_output[0]
    assert relative_error(ours(tmp_path, text)[0], reference) < 1e-5
    assert read_usage(tmp_path).pooling == "cls"


@pytest.mark.parametrize("prefix", ["", "distilbert."])
def test_distilbert_layout(prefix, tmp_path):
    """Its own names, and no token types."""
    model = make_bert("distilbert", dim=48, n_layers=3, n_heads=4, hidden_dim=96, activation="relu")
    model.save_pretrained(tmp_path)
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(state | {"vocab_projector.bias": torch.ones(3)}, tmp_path / "model.safetensors")
    texts = sequences(211)
    assert relative_error(ours(tmp_path, texts), theirs(model, texts)) < 1e-5
    shape = bert.read_shape(tmp_path)
    assert (shape.num_layers, shape.ffn_size, shape.activation, shape.norm_eps) == (3, 96, "relu", 1e-12)


def test_equals_minilm_on_its_real_weights():
    folder = backbones.find("minilm")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    texts = sequences(30522, (19, 64, 3), first=999)
    assert relative_error(ours(folder, texts), theirs(model, texts)) < 1e-5


def test_gradients_equal_those_of_transformers(tmp_path):
    model = make_bert(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    model.save_pretrained(tmp_path)
    shape, state = bert.read_encoder(tmp_path)
    encoder = Encoder(shape)
    encoder.load_state_dict(state)
    text = sequences(211)[2:3]
    probe = torch.randn(33, 48)
    (encoder(*pack(text)) * probe).sum().backward()
    (model(torch.tensor(text)).last_hidden_state[0] * probe).sum().backward()
    for name, names in bert._bert_names(2):
        if name != "positions.weight":
            expected = torch.cat([model.get_parameter(theirs).grad for theirs in names])
            if expected.norm() > 1e-4:  # the gradient of the keys' bias is zero
                assert relative_error(encoder.get_parameter(name).grad, expected) < 1e-4, name


def test_a_sequence_does_not_feel_its_neighbours():
    encoder = Encoder(EncoderShape(97, 24, 2, 3, 40, 20)).eval()
    texts = sequences(97, (5, 20, 1, 9))
    together = encoder(*pack(texts))
    alone = torch.cat([encoder(*pack([text])) for text in texts])
    assert relative_error(together, alone) < 1e-6


def test_no_token_at_all_passes_and_has_gradients():
    encoder = Encoder(EncoderShape(97, 24, 2, 3, 40, 20))
    encoder(*pack([])).sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())


def test_dropout_works_in_training_only():
    encoder = Encoder(EncoderShape(97, 24, 2, 3, 40, 20), dropout=0.5)
    batch = pack(sequences(97, (9, 4)))
    assert not torch.equal(encoder(*batch), encoder(*batch))
    encoder.eval()
    assert torch.equal(encoder(*batch), encoder(*batch))


def test_a_block_that_computes_again_keeps_its_input_alone():
    """Bytes that a forward keeps, as autograd packs them."""

    def kept(gradient_checkpointing):
        encoder = Encoder(EncoderShape(97, 24, 2, 3, 40, 20))
        encoder.gradient_checkpointing = gradient_checkpointing
        tensors = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda x: x):
            encoder(*pack(sequences(97, (20,) * 9)))
        parameters = {parameter.data_ptr() for parameter in encoder.parameters()}
        return sum(tensor.nbytes for tensor in tensors if tensor.data_ptr() not in parameters)

    assert kept(True) < 0.3 * kept(False)


def test_errors_say_what_came(tmp_path):
    with pytest.raises(InputError, match=r"hidden_size must be a multiple .* got 10 with 3"):
        EncoderShape(hidden_size=10, num_heads=3)
    with pytest.raises(InputError, match="activation must be one of gelu"):
        EncoderShape(activation="tanh")
    with pytest.raises(ValueError, match="has 21 tokens, the encoder has 20"):
        Encoder(EncoderShape(97, 24, 2, 3, 40, 20))(*pack([[1] * 21]))

    def model(weights=None, **config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(weights or {"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        return tmp_path

    with pytest.raises(
        InputError,
        match=r"model_type 'mpnet' is not supported \(its attention adds a bias by distance, .*; expected one of bert",
    ):
        bert.read_encoder(model(model_type="mpnet"))
    with pytest.raises(InputError, match="position_embedding_type 'relative_key'"):
        bert.read_encoder(model(model_type="bert", position_embedding_type="relative_key"))
    with pytest.raises(InputError, match=r"config.json has no 'vocab_size'"):
        bert.read_encoder(model(model_type="bert"))
    tiny = dict(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    with pytest.raises(InputError, match=r"no tensor is called ...embeddings.word_embeddings.weight"):
        bert.read_encoder(model(max_position_embeddings=9, **tiny))
    words = {"embeddings.word_embeddings.weight": torch.zeros(9, 4)}
    with pytest.raises(InputError, match=r"the tensor embeddings.position_embeddings.weight is missing"):
        bert.read_encoder(model(words, max_position_embeddings=9, **tiny))
