"""Model folders that are damaged, or made to do harm: one line, soon, whatever they hold."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import moe_retrieval
from moe_retrieval.errors import InputError
from moe_retrieval.models.export import save
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

SIZES = dict(vocab_size=400, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_bert(**SIZES).save_pretrained(folder / "bert")
    tiny_tokenizer().save(folder / "bert")
    for variant in ("sb-moe", "moe"):
        save(folder / variant, tiny_retriever(variant), tiny_tokenizer(), "")
    return folder


@pytest.fixture
def model(originals, tmp_path, request):
    return shutil.copytree(originals / request.param, tmp_path / "model")


def refused(folder, match):
    """Loading says what is wrong, in one line and before anything large is allocated."""
    started = time.perf_counter()
    with pytest.raises(InputError, match=match) as caught:
        moe_retrieval.load(folder, "fp32", "cpu")
    assert time.perf_counter() - started < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def change(folder, *path, value):
    config = json.loads((folder / "config.json").read_text())
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_the_originals_are_fine(model, originals):
    for folder in (model, originals / "sb-moe", originals / "moe"):
        assert moe_retrieval.load(folder, "fp32", "cpu").encode(["sort"]).shape == (1, 24)


NO_SIZES = [10**4, 10**7, 10**12, 10**30, 0, -1, 1.5, "24", None, True, [24], {}, float("nan"), float("inf")]


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"]
)
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_sizes_of_a_backbone_that_its_weights_do_not_have(model, name, value):
    change(model, name, value=value)
    refused(model, "model .*: |encoder: ")


@pytest.mark.parametrize("value", NO_SIZES, ids=repr)
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_layers", "ffn_size", "max_positions"])
@pytest.mark.parametrize("model", ["sb-moe"], indirect=True)
def test_sizes_of_a_run_that_its_weights_do_not_have(model, name, value):
    change(model, "retriever", "shape", name, value=value)
    refused(model, "model .*: |encoder: ")


@pytest.mark.parametrize(
    "name, value",
    [
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", "tiny"),
        ("num_attention_heads", 0),
        ("num_attention_heads", "3"),
        ("num_attention_heads", 7),
        ("hidden_act", ["gelu"]),
        ("hidden_act", "evil"),
        ("model_type", ["bert"]),
        ("pad_token_id", "1"),
    ],
)
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_settings_of_a_backbone_that_make_no_sense(model, name, value):
    if name == "pad_token_id":
        change(model, "model_type", value="roberta")
    change(model, name, value=value)
    refused(model, "model .*: |encoder: ")


@pytest.mark.parametrize(
    "path, value",
    [
        (("num_experts",), 10**9),
        (("num_experts",), "4"),
        (("top_k",), 10**9),
        (("top_k",), "many"),
        (("expert_size",), 10**12),
        (("layers",), [99]),
        (("layers",), [-1]),
        (("layers",), "01"),
        (("layers",), [[0]]),
        (("activation",), "evil"),
        (("router",), ["softmax"]),
        (("balance_coef",), "much"),
        (("balance_coef",), float("nan")),
    ],
)
@pytest.mark.parametrize("model", ["moe"], indirect=True)
def test_experts_that_make_no_sense(model, path, value):
    change(model, "retriever", "experts", *path, value=value)
    refused(model, "model .*: |encoder: |moe: |layers |expert")


@pytest.mark.parametrize(
    "name, value",
    [
        ("pooling", ["mean"]),
        ("normalize", "no"),
        ("query_prompt", 5),
        ("doc_length", "32"),
        ("doc_length", 10**30),
        ("variant", {}),
        ("family", "evil"),
        ("shape", []),
        ("experts", "none"),
        ("unheard_of", 1),
    ],
)
@pytest.mark.parametrize("model", ["sb-moe"], indirect=True)
def test_settings_of_a_run_that_make_no_sense(model, name, value):
    change(model, "retriever", name, value=value)
    refused(model, "config.json")


CONFIGS = [b"", b"{", b"[]", b"3", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000]
CONFIGS += [b'{"vocab_size": ' + b"9" * 10_000 + b"}", b'{"model_type": null}', b'{"model_type": "moe_retrieval"}']


@pytest.mark.parametrize("content", CONFIGS, ids=lambda content: repr(content[:20]))
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_a_config_that_is_none(model, content):
    (model / "config.json").write_bytes(content)
    refused(model, "config.json|model_type")


@pytest.mark.parametrize("content", CONFIGS[:-3], ids=lambda content: repr(content[:20]))
@pytest.mark.parametrize(
    "name", ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"]
)
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_files_of_sentence_transformers_that_are_none(model, name, content):
    if (name, content) == ("modules.json", b"[]"):
        pytest.skip("no modules are a list of modules")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(content)
    refused(model, name)


@pytest.mark.parametrize(
    "name, content",
    [
        ("modules.json", [3]),
        ("modules.json", [{}]),
        ("1_Pooling/config.json", {"pooling_mode": 3}),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}),
        ("config_sentence_transformers.json", {"prompts": [3]}),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}),
    ],
)
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_fields_of_sentence_transformers_that_make_no_sense(model, name, content):
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(json.dumps(content))
    refused(model, name)


@pytest.mark.parametrize("model", ["bert", "sb-moe"], indirect=True)
def test_weights_that_are_damaged(model):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], b"evil" * 1000):
        path.write_bytes(content)
        refused(model, r"model .*model\.safetensors")
    path.unlink()
    refused(model, "neither model.safetensors nor pytorch_model.bin is there")
    for content in (b"", b"evil" * 1000):
        (model / "pytorch_model.bin").write_bytes(content)
        refused(model, r"model .*pytorch_model\.bin")


@pytest.mark.parametrize("model", ["bert", "sb-moe"], indirect=True)
def test_weights_of_another_shape_or_kind(model):
    state = load_file(model / "model.safetensors")
    name = next(name for name in state if name.endswith(("tokens.weight", "word_embeddings.weight")))
    for other in (state[name][:, :-1].contiguous(), state[name].flatten(), state[name].to(torch.int32)):
        save_file(state | {name: other}, model / "model.safetensors", {"format": "pt"})
        refused(model, "model ")
    save_file({key: value for key, value in state.items() if key != name}, model / "model.safetensors")
    refused(model, "model ")


@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_an_index_of_shards_that_is_none(model):
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "gone"}}'):
        index.write_text(content)
        refused(model, "model.safetensors.index.json|cannot read (3|gone)")
    index.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    refused(model, r"names '\.\./\.\./etc/passwd', which is not in the folder")


TOKENIZERS = [b"", b"{", b"[" * 100_000, b"{}", b'{"model": 3}']


@pytest.mark.parametrize("content", TOKENIZERS, ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize("model", ["bert"], indirect=True)
def test_a_tokenizer_that_is_none(model, content):
    (model / "tokenizer.json").write_bytes(content)
    refused(model, "tokenizer.json")


def test_a_device_that_is_not_there(originals):
    devices = ["nonsense", "cuda:99"] + ([] if torch.cuda.is_available() else ["cuda"])
    for device in devices:
        with pytest.raises(InputError, match=f"device '{device}' is not available here"):
            moe_retrieval.load(originals / "bert", "fp32", device)
