"""What an upcycled model's experts know about padding: every convention of a mask, in every call, in every thread."""

import threading

import pytest
import setuptools  # noqa: F401 (before any test: a compiler of torch wants it, and it wants to be before distutils)
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kernels
from kernels.attention_mask import kept_tokens
from tests.kernels.oracle import relative_error
from tests.kernels.upcycled_models import BERT, IDS, LED, LENGTHS, MASK, Encoder, bert, hidden_states, randomised

transformers = pytest.importorskip("transformers")

KEPT = MASK.bool()
NONE = torch.ones_like(KEPT)
SQUARE = KEPT[:, None, :].expand(3, 10, 10)
CAUSAL = SQUARE & torch.ones(10, 10).tril().bool()


def added(kept, least):
    """The numbers that are added to scores."""
    return torch.zeros(kept.shape).masked_fill(~kept, least)


def block_mask(mask_mod, texts=3):
    return flex_attention.create_block_mask(mask_mod, texts, None, 10, 10, device="cpu")


flex_attention = pytest.importorskip("torch.nn.attention.flex_attention")

LONGFORMER = added(KEPT, -10000.0)
LONGFORMER[:, 0] = 10000.0

CONVENTIONS = {
    "none": (None, None),
    "2-d bool": (KEPT, KEPT),
    "2-d int": (MASK, KEPT),
    "2-d int, 2 is global": (MASK + MASK * (torch.arange(10) == 0), KEPT),
    "2-d uint8": (MASK.byte(), KEPT),
    "2-d ones and zeros": (MASK.float(), KEPT),
    "2-d ones": (NONE.float(), NONE),
    "2-d added": (added(KEPT, torch.finfo(torch.float32).min), KEPT),
    "2-d added, -inf": (added(KEPT, -torch.inf), KEPT),
    "2-d added, half": (added(KEPT, torch.finfo(torch.float16).min).half(), KEPT),
    "2-d added, nothing masked": (torch.zeros(3, 10), NONE),
    "2-d added, int": ((1 - MASK) * -10000, KEPT),
    "2-d added, longformer": (LONGFORMER, KEPT),
    "2-d added, longformer, extremes": (LONGFORMER.sign() * torch.finfo(torch.float32).max, KEPT),
    "2-d added, longformer, nothing masked": (LONGFORMER.clamp(min=0), NONE),
    "2-d, one for all": (KEPT[:1], KEPT[:1]),
    "4-d bool": (SQUARE[:, None], KEPT),
    "4-d bool, one query": (KEPT[:, None, None], KEPT),
    "4-d bool, causal": (CAUSAL[:, None], KEPT),
    "4-d bool, heads": (CAUSAL[:, None].expand(3, 2, 10, 10), KEPT),
    "4-d int": (SQUARE[:, None].long(), KEPT),
    "4-d added": (added(SQUARE, -1e9)[:, None], KEPT),
    "4-d added, causal": (added(CAUSAL, torch.finfo(torch.float32).min)[:, None], KEPT),
    "4-d added, a bias": (added(CAUSAL, -torch.inf)[:, None] + torch.rand(3, 2, 10, 10), KEPT),
    "4-d added, one for all": (added(CAUSAL, -torch.inf)[:1, None], KEPT[:1]),
    "4-d added, ones and zeros": (MASK.float()[:, None, None], NONE),
    "3-d bool": (CAUSAL, KEPT),
    "3-d added": (added(CAUSAL, -1e4), KEPT),
    "3-d, a text's heads": (CAUSAL.repeat_interleave(2, 0), KEPT),
    "flex": (block_mask(lambda b, h, q, k: KEPT[b, k]), KEPT),
    "flex, causal": (block_mask(lambda b, h, q, k: KEPT[b, k] & (k <= q)), KEPT),
    "flex, one for all": (block_mask(lambda b, h, q, k: (k <= q) & (k < 6), 1), torch.arange(10)[None] < 6),
    "more keys than tokens": (torch.ones(3, 14).bool(), None),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name):
    mask, kept = CONVENTIONS[name]
    before = dict(getattr(mask, "__dict__", {}))
    for _ in range(2):  # the second time from memory
        got = kept_tokens(mask, 3, 10)
        assert got is None if kept is None else got.dtype == torch.bool and got.equal(kept)
    assert dict(getattr(mask, "__dict__", {})) == before  # nothing is left on what is the caller's


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if "flex" not in name])
def test_conventions_without_a_graph_break(name):
    mask, kept = CONVENTIONS[name]
    torch._dynamo.reset()
    got = torch.compile(kept_tokens, fullgraph=True, backend="eager")(mask, 3, 10)
    assert got is None if kept is None else got.equal(kept)


@pytest.mark.parametrize(
    "mask,error",
    [
        (torch.ones(10), ValueError),
        (torch.ones(2, 10), ValueError),
        (torch.ones(10, 10), ValueError),
        (torch.ones(4, 10, 10), ValueError),
        (torch.ones(2, 1, 10, 10), ValueError),
        (torch.ones(3, 1, 1, 1, 10), ValueError),
        ({"full_attention": KEPT}, TypeError),
        (KEPT.tolist(), TypeError),
    ],
)
def test_other_masks_are_refused(mask, error):
    with pytest.raises(error, match=r"attention_mask must be .*so that the experts can tell padding; got"):
        kept_tokens(mask, 3, 10)


LONG = dict(BERT | {"num_hidden_layers": 2}, attention_window=4)
WINDOWED = {
    "longformer": lambda: transformers.LongformerModel(transformers.LongformerConfig(**LONG)),
    "led": lambda: transformers.LEDModel(transformers.LEDConfig(**LED)).encoder,
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("global_tokens", [False, True])
@pytest.mark.parametrize("build", WINDOWED.values(), ids=WINDOWED)
def test_windowed_attention(build, global_tokens, padded):
    model = randomised(build())
    mask = MASK if padded else torch.ones_like(MASK)
    marks = torch.zeros_like(MASK)
    marks[:, 0] = global_tokens
    dense = model(IDS, attention_mask=mask, global_attention_mask=marks).last_hidden_state
    kernels.upcycle(model, num_experts=3, top_k=2)
    with kernels.record_routing(model) as log:
        got = model(IDS, attention_mask=mask, global_attention_mask=marks).last_hidden_state
    assert relative_error(got[mask.bool()], dense[mask.bool()]) < 1e-5
    assert all(routing.counts_E.sum() == 2 * mask.sum() for (routing,) in log.values())


@torch.no_grad()
@pytest.mark.slow
def test_flex_attention():
    model = randomised(bert(attn_implementation="flex_attention"))
    dense = hidden_states(model)
    kernels.upcycle(model, num_experts=3, top_k=2)
    with kernels.record_routing(model) as log:
        assert relative_error(hidden_states(model), dense) < 1e-5
    assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())


def test_experts_behind_a_flattened_sequence():
    config = dict(vocab_size=60, hidden_size=24, ffn_dim=40, num_hidden_layers=2, num_attention_heads=2,
                  word_embed_proj_dim=24, max_position_embeddings=34)  # fmt: skip
    model = kernels.upcycle(randomised(transformers.OPTModel(transformers.OPTConfig(**config))), num_experts=3, top_k=2)
    with kernels.record_routing(model) as log:
        hidden_states(model)
    assert all(routing.counts_E.sum() == 42 for (routing,) in log.values())


class Resized(Encoder):
    """Somebody's own model, whose layers get other tokens than its mask is about."""

    def forward(self, x, attention_mask=None):
        return super().forward(self.resize(x))


def resized(resize):
    model = kernels.upcycle(Resized(), num_experts=2, top_k=1, ffn=("expand", "contract"), layers=[1])
    model.resize = resize
    with kernels.record_routing(model) as log:
        model(torch.randn(3, 10, 12), attention_mask=MASK)
    return int(log["blocks.1.expand"][0].counts_E.sum())


def test_a_mask_of_other_tokens():
    assert resized(lambda x: x[:, :1]) == 3  # pooled
    for resize in (lambda x: torch.cat([x, x], 1), lambda x: x.transpose(0, 1)):
        with pytest.raises(ValueError, match="which of them are padding cannot be told"):
            resized(resize)


CALLS = {
    "keyword": lambda model: model(input_ids=IDS, attention_mask=MASK),
    "positional": lambda model: model(IDS, MASK),
    "bool": lambda model: model(IDS, MASK.bool()),
    "4-d bool": lambda model: model(IDS, MASK.bool()[:, None, None].expand(3, 1, 10, 10)),
    "4-d float": lambda model: model(IDS, torch.where(MASK.bool(), 0.0, -1e9)[:, None, None].expand(3, 1, 10, 10)),
    "embeddings": lambda model: model(attention_mask=MASK, inputs_embeds=model.embeddings.word_embeddings(IDS)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_way_to_pass_a_mask(call):
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    with kernels.record_routing(model) as log:
        call(model)
    assert all((routing.indices_TK.view(3, 10, 2) >= 0).all(-1).equal(MASK.bool()) for (routing,) in log.values())


def test_without_a_mask_everything_is_routed():
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    hidden_states(model)  # this call's mask must not stay
    with kernels.record_routing(model) as log:
        model(IDS)
        model(IDS, torch.ones_like(IDS))
    assert all(routing.counts_E.sum() == 60 for routings in log.values() for routing in routings)


def test_a_mask_that_changes_in_place():
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    mask = MASK.bool()[:, None, None].expand(3, 1, 10, 10).clone()
    model(IDS, mask)
    mask.copy_(MASK.flip(0).bool()[:, None, None])
    with kernels.record_routing(model) as log:
        model(IDS, mask)
    assert all(
        (routing.indices_TK.view(3, 10, 2) >= 0).all(-1).equal(MASK.flip(0).bool()) for (routing,) in log.values()
    )


def test_generation_with_a_cache_routes_each_new_token():
    model = transformers.BertLMHeadModel(transformers.BertConfig(**BERT, is_decoder=True))
    kernels.upcycle(randomised(model), num_experts=5, top_k=2)
    settings = dict(max_new_tokens=4, do_sample=False, attention_mask=MASK.flip(1), eos_token_id=None)
    with kernels.record_routing(model) as log:
        cached = model.generate(IDS, **settings)
    for routings in log.values():
        assert [int(routing.counts_E.sum()) for routing in routings] == [2 * LENGTHS.sum(), 6, 6, 6]
    assert cached.equal(model.generate(IDS, **settings, use_cache=False))


@pytest.mark.parametrize("two_batches", [False, True])
def test_checkpointing_recomputes_with_the_same_mask(two_batches):
    """A bi-encoder: two forwards with masks of their own, then one backward."""
    model = kernels.upcycle(randomised(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), num_experts=5,
                            top_k=2).train()  # fmt: skip
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        loss = hidden_states(model).square().sum()
        if two_batches:
            loss = loss + (model(IDS, MASK.flip(0)).last_hidden_state[MASK.flip(0).bool()] ** 3).sum()
        model.zero_grad()
        (loss + kernels.aux_loss(model)).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(relative_error(b, a) < 1e-5 for a, b in zip(*grads))


def test_checkpointing_without_the_mask_raises():
    """Here only the model sees a mask: a recomputation would not know whether it is that of its own batch."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Encoder):
        def forward(self, x, attention_mask=None):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    model = kernels.upcycle(Checkpointed(), num_experts=2, top_k=1, ffn=("expand", "contract"))
    y = model(torch.randn(3, 10, 12), MASK)
    with pytest.raises(RuntimeError, match="checkpoint whole Transformer layers"):
        y.sum().backward()


# Threads: each has its own calls.


def masks_of(count):
    generator = torch.Generator().manual_seed(1)
    lengths = [torch.randint(1, 11, (3, 1), generator=generator) for _ in range(count)]
    return [(torch.arange(10) < length).long() for length in lengths]


def in_threads(work, jobs):
    """-> work(job) of each, all at once; what a thread raises is raised here"""
    results, start = [None] * len(jobs), threading.Barrier(len(jobs))

    def run(index):
        start.wait()
        try:
            results[index] = work(jobs[index])
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


ATTENTIONS = ["eager", "sdpa"]


@pytest.mark.parametrize("name", [name for name in kernels.available_backends() if name != "triton"])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_threads_with_masks_of_their_own(attention, name):
    model = kernels.upcycle(randomised(bert(attn_implementation=attention)), num_experts=5, top_k=2)
    masks = masks_of(4)

    def forwards(mask, rounds=60):
        with torch.no_grad():
            return [model(IDS, mask).last_hidden_state for _ in range(rounds)]

    with kernels.use_backend(name):  # in every thread
        expected = [forwards(mask, 1)[0] for mask in masks]
        for got, want in zip(in_threads(forwards, masks), expected):
            assert all(y.equal(want) for y in got)


def test_threads_between_exceptions():
    """Every second forward of every thread ends in the middle of a layer."""
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)
    masks, failing = masks_of(4), threading.local()

    def fail(module, args):
        if getattr(failing, "now", False):
            raise InterruptedError

    model.encoder.layer[2].output.register_forward_pre_hook(fail)
    model.encoder.layer[1].attention.self.register_forward_pre_hook(fail)

    def forwards(mask):
        results = []
        for round in range(30):
            failing.now = round % 2 == 0
            try:
                with torch.no_grad():
                    results.append(model(IDS, mask).last_hidden_state)
            except InterruptedError:
                assert failing.now
        return results

    expected = [forwards(mask)[0] for mask in masks]
    for got, want in zip(in_threads(forwards, masks), expected):
        assert len(got) == 15
        assert all(y.equal(want) for y in got)


def gradients(model, mask):
    y = model(IDS, mask).last_hidden_state[mask.bool()]
    return torch.autograd.grad((y**3).sum(), list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_threads_that_train_one_model(checkpointing):
    model = kernels.upcycle(randomised(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), num_experts=5,
                            top_k=2, balance_coef=0).train()  # fmt: skip
    masks = masks_of(4)
    expected = [gradients(model, mask) for mask in masks]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for _ in range(4):
        for got, want in zip(in_threads(lambda mask: gradients(model, mask), masks), expected):
            assert all(a is b is None or relative_error(a, b) < 1e-5 for a, b in zip(got, want))


class Nested(nn.Module):
    """A model in a model: the inner one runs, with another mask, in the middle of a layer of the outer one."""

    def __init__(self, outer, inner):
        super().__init__()
        self.outer, self.inner = outer, inner
        outer.encoder.layer[1].intermediate.register_forward_pre_hook(self.run_inner)

    def run_inner(self, module, args):
        return (args[0] + self.inner(IDS, MASK.flip(0)).last_hidden_state,)

    def forward(self, mask):
        return self.outer(IDS, mask).last_hidden_state


def test_a_model_inside_a_model():
    outer, inner = (kernels.upcycle(randomised(bert()), num_experts=5, top_k=2) for _ in range(2))
    model = Nested(outer, inner)
    with kernels.record_routing(model) as log:
        model(MASK)
    for name, (routing,) in log.items():
        kept = KEPT.flip(0) if name.startswith("inner") else KEPT
        assert (routing.indices_TK.view(3, 10, 2) >= 0).all(-1).equal(kept)


def test_the_same_model_inside_its_own_backward():
    """A forward between a forward and its recomputation, with another mask."""
    model = kernels.upcycle(randomised(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), num_experts=5,
                            top_k=2, balance_coef=0).train()  # fmt: skip
    expected = gradients(model, MASK)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    y = model(IDS, MASK).last_hidden_state
    others = []

    def run_again(grad):
        with torch.no_grad():
            others.append(model(IDS, MASK.flip(0)).last_hidden_state)

    y.register_hook(run_again)
    got = torch.autograd.grad((y[KEPT] ** 3).sum(), list(model.parameters()), allow_unused=True)
    assert all(a is b is None or relative_error(a, b) < 1e-5 for a, b in zip(got, expected))
    with torch.no_grad():
        assert others[0].equal(model(IDS, MASK.flip(0)).last_hidden_state)


def test_a_call_leaves_nothing_on_the_modules():
    model = kernels.upcycle(randomised(bert()), num_experts=5, top_k=2)

    def attributes():
        found = {}
        for name, module in model.named_modules():
            found |= {(name, key): id(value) for key, value in vars(module).items()}
            found |= {(name, "padding", key): value for key, value in vars(getattr(module, "padding", Encoder)).items()}
        return found

    before = attributes()
    with torch.no_grad():
        hidden_states(model)
    assert attributes() == before


def test_layers_that_are_checkpointed_with_their_hooks():
    """As users do it, and transformers before 5.23: the whole call, and not the layer's forward, runs again."""
    model = kernels.upcycle(randomised(bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)), num_experts=5,
                            top_k=2, balance_coef=0).train()  # fmt: skip
    expected = [gradients(model, mask) for mask in (MASK, MASK.flip(0))]

    class Checkpointed(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, *args, **kwargs):
            return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)

    model.encoder.layer = nn.ModuleList(Checkpointed(layer) for layer in model.encoder.layer)
    for mask, want in zip((MASK, MASK.flip(0)), expected):
        assert all(a is b is None or relative_error(a, b) < 1e-5 for a, b in zip(gradients(model, mask), want))
