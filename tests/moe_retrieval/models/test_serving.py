"""Frozen models: a change of weights is noticed, and threads do not disturb each other."""

import copy
import threading

import pytest
import torch
from transformers import AutoModel

import moe_retrieval
from moe_retrieval.models import export
from moe_retrieval.models.encoder import pack
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer, token_lists


def padded(texts):
    width = max(map(len, texts))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in texts])


@pytest.fixture
def theirs(tmp_path):
    export.save(tmp_path, tiny_retriever("sb-moe"), tiny_tokenizer(), "card")
    return AutoModel.from_pretrained(tmp_path).eval()


def served(model, texts, dtype=torch.float32):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(*padded(texts)).pooler_output


def by_modules(model, texts):
    return model(*padded(texts)).pooler_output.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_hugging_face_model_notices_every_change_of_its_weights(theirs, dtype):
    texts, near = token_lists(5), 1e-5 if dtype == torch.float32 else 3e-2

    def scale():
        with torch.no_grad():
            theirs.encoder.blocks[0].qkv.weight.mul_(-1.5)

    def load():
        state = {name: tensor.flip(0) for name, tensor in theirs.state_dict().items()}
        theirs.load_state_dict(state)

    def assign():
        state = {name: tensor.flip(0).clone() for name, tensor in theirs.state_dict().items()}
        theirs.load_state_dict(state, assign=True)

    def replace():
        theirs.encoder.blocks[0].out = torch.nn.Linear(24, 24)

    for change in (scale, load, assign, replace):
        before = served(theirs, texts, dtype)
        change()
        after = served(theirs, texts, dtype)
        assert not torch.allclose(after, before, atol=1e-3), change.__name__
        torch.testing.assert_close(after, by_modules(theirs, texts), rtol=near, atol=near)


def test_a_copy_serves_its_own_weights(theirs):
    texts = token_lists(5)
    first = served(theirs, texts)
    twin = copy.deepcopy(theirs)
    assert torch.equal(served(twin, texts), first)
    with torch.no_grad():
        twin.encoder.norm.weight.mul_(3.0)
    assert not torch.equal(served(twin, texts), first)
    assert torch.equal(served(theirs, texts), first)


def test_threads_with_and_without_gradients_and_autocast_share_a_model(theirs):
    texts = token_lists(5)
    calls = {
        "fp32": lambda: served(theirs, texts),
        "bf16": lambda: served(theirs, texts, torch.bfloat16),
        "with gradients": lambda: by_modules(theirs, texts),
    }
    expected = {name: call() for name, call in calls.items()}
    wrong = []

    def work(name):
        for _ in range(60):
            got = calls[name]()
            if not torch.allclose(got, expected[name], rtol=1e-5, atol=1e-6):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=[name]) for name in (*calls, *calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_gradients_are_not_lost(tmp_path):
    export.save(tmp_path, tiny_retriever("dense"), tiny_tokenizer(), "card")
    retriever = moe_retrieval.load(tmp_path, "fp32", "cpu").retriever
    assert retriever.serving() is not None
    assert not retriever(*pack(token_lists(3))).requires_grad
    retriever.requires_grad_(True)
    retriever(*pack(token_lists(3))).sum().backward()
    assert retriever.encoder.tokens.weight.grad.abs().sum() > 0
