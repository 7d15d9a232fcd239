"""Results as a run would leave them, made up."""

from bench.harness.record import Case, Run


def a_run(cases=None, **about):
    machine = {
        "device": "A CPU, 2 cores", "threads": 2, "mode": "full", "partial": False, "revision": "ac0a608b11db",
        "time": "2026-11-20T05:00:00+00:00", "versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "skipped": {},
    }  # fmt: skip
    peaks = {"gemm_fp32": 2e11, "gemm_bf16": 1e12, "copy": 3e10}
    return Run(machine | about, peaks, [a_layer()] if cases is None else cases)


def a_layer(ours=1.0, peer=2.0, spread=0.02, name="MoE T=4096", scale=1.0, **about):
    """Rounds of about these milliseconds; `scale` slows the whole machine."""
    wobble = [1 - spread, 1.0, 1 + spread, 1.0, 1.0 - spread / 2]
    samples = {
        "kernels": [round(1e-3 * scale * ours * w, 8) for w in wobble],
        "loop": [round(1e-3 * scale * peer, 8) for _ in wobble],
        "dense": [round(1e-3 * scale * 0.9, 8) for _ in wobble],
    }
    settings = {"layer": "MoE", "dtype": "bf16", "backward": False, "skewed": False, "activation": "gelu",
                "hidden": 384, "ffn": 1536, "top_k": 2, "tokens": 4096, "experts": 8}  # fmt: skip
    return Case("layer", name, samples, settings=settings, headline=True, **about)


def a_memory(ours=57e6, peer=145e6):
    samples = {"kernels": [ours], "loop": [peer]}
    return Case("memory", "saved for backward: MoE", samples, unit="bytes", headline=True)
