"""MoE and SBMoE against everything that runs experts today: sweeps around one BERT-size layer."""

from dataclasses import replace

import torch

from bench.cases import timed_layer
from bench.cases.layer import BASE, SBMOE, WIDE
from bench.contenders.layers import prepare
from bench.harness.record import OURS

GRAPHED = f"{OURS} in a CUDA graph"
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def cases(mode, device):
    on_gpu = device.type == "cuda"
    quick = [
        *_both(BASE),
        *_both(replace(BASE, dtype=FP32)),
        *_both(replace(BASE, tokens=512)),
        replace(BASE, tokens=1),
        replace(BASE, tokens=64),
        replace(BASE, tokens=16384),
        replace(BASE, skewed=True),
        WIDE,
        replace(WIDE, tokens=64, top_k=1, backward=True),
        *(replace(BASE, experts=e) for e in (4, 16, 64)),
        *(replace(SBMOE, tokens=t) for t in (1, 64, 1024)),
        replace(SBMOE, tokens=1024, backward=True),
        replace(SBMOE, top_k="all"),
    ]
    if on_gpu:
        gated = replace(BASE, activation="swiglu", bias=False)
        quick += [*_both(replace(gated, tokens=16384)), *_both(replace(BASE, tokens=16384))]
    if mode == "quick":
        return _unique(quick)
    full = [
        *(replace(BASE, tokens=t, dtype=d, backward=b) for t in _tokens(on_gpu) for d in (FP32, BF16)
          for b in (False, True)),
        *(replace(BASE, experts=e, dtype=d, backward=b) for e in (4, 16, 64) for d in (FP32, BF16)
          for b in (False, True)),
        *_both(replace(BASE, experts=256)),
        *(case for k in (1, 4) for case in _both(replace(BASE, top_k=k))),
        *(case for h, f in ((312, 1200), (768, 3072), (1024, 4096)) for case in _both(replace(BASE, hidden=h, ffn=f))),
        *(case for d in (FP32, BF16) for case in _both(replace(BASE, skewed=True, dtype=d))),
        *(case for d in (FP32, BF16)
          for case in _both(replace(BASE, activation="swiglu", bias=False, dtype=d))),
        *(replace(SBMOE, tokens=t, hidden=h, ffn=h // 2, dtype=d, top_k=k, backward=b) for t in (1, 64, 1024)
          for h in (384, 768) for d in (FP32, BF16) for k in (1, "all") for b in (False, True)),
    ]  # fmt: skip
    if on_gpu:
        full += [case for t in (4096, 16384) for case in _both(replace(BASE, tokens=t, dtype=FP16))]
    return _unique([*quick, *full])


def _both(case):
    return [case, replace(case, backward=True)]


def _tokens(on_gpu):
    return (1, 64, 512, 4096, 16384, *((65536,) if on_gpu else ()))


def _unique(cases):
    return list(dict.fromkeys(cases))


def test_layer(case, suite):
    if suite.device.type == "cpu" or case.tokens > 64 or case.backward:
        timed_layer.measure(suite, case)
        return
    prepared = prepare(case, suite.device, suite.smoke)
    calls = prepared.calls()
    try:
        calls[GRAPHED] = timed_layer.graphed(calls[OURS])
    except RuntimeError as error:
        prepared.skipped[GRAPHED] = str(error).partition("\n")[0]
    timed_layer.keep(suite, prepared, suite.time(calls), (), str(case))
