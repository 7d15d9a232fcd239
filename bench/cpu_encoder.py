"""The native CPU path of a whole encoder against its targets: sentence-transformers, ONNX Runtime and OpenVINO on the
same weights; and what experts inside it add to it.

    python -m bench.cpu_encoder [--processes N] [--seconds S] [--only TEXT] [--smoke]    speed: MACHINE-cpu-encoder.json
    python -m bench.cpu_encoder --memory          resident memory: MACHINE-cpu-encoder-memory.json; about 25 minutes
    python -m bench.cpu_encoder --quality         NDCG@10 on SciFact: MACHINE-cpu-encoder-quality.json; about 3 minutes

in bench/results.

**Speed.** Every contender is held to transformers in fp32 (its embeddings, or its loss) before it is timed. GF/s count
real tokens: 2 * weights of the blocks * tokens, and 4 * length² * width * layers of attention.

**Memory.** The peak resident memory of a fresh process, interpreter and libraries included, that embeds 450,000
passages from a JSON-lines file, 2 to 5 short words each, so that this takes minutes. Like is compared with like: both
in bf16 from the file, window by window, to a file of embeddings (ours as moe_retrieval.index does; for
sentence-transformers a loop over its `encode`), and both in fp32 from a list of all texts to an array of all
embeddings. Nothing is extrapolated.

**Quality.** Ours in bf16 and in fp32, the whole corpus ranked for the test split.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench.cases import backbone, routed_encoder, texts
from bench.cases.encoder import (
    OURS_BF16,
    OURS_FP32,
    PEER,
    PEER_BF16,
    PEER_FP32,
    Encoders,
    encode,
    query,
)
from bench.cases.search import CORPUS
from bench.cases.workloads import WINDOW
from bench.contenders import our_model
from bench.contenders.embedding import BATCH, DOC_LENGTH, DTYPES
from bench.harness import command, resident
from bench.harness.record import OURS
from bench.harness.suite import Suite
from bench.harness.target import Target

MEMORY = [
    Target(f"{OURS_BF16} streamed", f"{PEER_BF16} streamed", most=0.5),
    Target(f"{OURS_FP32} listed", f"{PEER_FP32} listed", most=0.5),
]
QUALITY = [Target("bf16", "fp32", within=0.002)]


def speed(suite: Suite) -> dict[str, Callable[[str], None]]:
    encoders = Encoders(suite)
    count, pairs = (8, 4) if suite.smoke else (96, 32)
    return {
        f"encode {count} documents of {texts.source()}, {DOC_LENGTH} tokens": partial(
            encode, suite, encoders, texts.documents(count)
        ),
        f"one query end to end, exact search of {CORPUS} documents": partial(query, suite, encoders),
        f"experts in the encoder: encode {count} documents of {texts.source()}, bf16": partial(
            routed_encoder.encode, suite, encoders, texts.documents(count)
        ),
        f"experts in the encoder: {len(encoders.asked)} queries, one at a time, bf16": partial(
            routed_encoder.query, suite, encoders
        ),
        f"experts in the encoder: training step, {pairs} pairs, bf16": partial(
            routed_encoder.training_step, suite, encoders, pairs
        ),
    }


def memory(suite: Suite) -> dict[str, Callable[[str], None]]:
    passages = 100 if suite.smoke else 450_000
    name = f"resident memory while encoding {passages} passages of 2 to 5 short words"
    return {name: partial(measure_memory, suite, passages)}


def measure_memory(suite: Suite, passages: int, name: str) -> None:
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        texts.write_passages(corpus, passages)
        for contender in dict.fromkeys(name for target in MEMORY for name in (target.ours, target.peer)):
            start = time.perf_counter()
            workload = "bench.cases.workloads:encode_file"
            found[contender] = resident.measure(workload, contender, str(corpus), "smoke" if suite.smoke else "full")
            seconds[contender] = time.perf_counter() - start
    settings = {
        "method": "the peak (VmHWM) of a fresh process, interpreter and libraries included; streamed: from a file to "
        "a file; listed: from a list of all texts to an array",
        "documents": passages,
        "window": {OURS: f"{our_model.tokens_a_window()} tokens", PEER: f"{WINDOW} texts, {BATCH} a batch"},
    }
    figures = {"before_bytes": {contender: peak["before"] for contender, peak in found.items()}, "seconds": seconds}
    samples = {contender: [float(peak["peak"])] for contender, peak in found.items()}
    about = dict(unit="bytes", ours=MEMORY[0].ours, settings=settings, figures=figures)
    suite.keep("memory", name, samples, MEMORY, **about)


def quality(suite: Suite) -> dict[str, Callable[[str], None]]:
    return {"SciFact, test split, full corpus": partial(measure_quality, suite)}


def measure_quality(suite: Suite, name: str) -> None:
    folder = backbone.folder(suite.smoke)
    models = {precision: our_model.build(folder, "dense", precision, suite.device) for precision in DTYPES}
    samples = {precision: [our_model.scifact_ndcg(model)] for precision, model in models.items()}
    suite.keep("quality", name, samples, QUALITY, unit="NDCG@10", ours="")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--memory", action="store_true", help="resident memory instead of speed")
    parser.add_argument("--quality", action="store_true", help="NDCG@10 instead of speed")
    chosen = command.checked(parser, arguments)
    extra = [memory] * chosen.memory + [quality] * chosen.quality
    about = {"backbone": backbone.name(chosen.smoke)}
    if not extra:
        command.run("cpu-encoder", "bench.cpu_encoder:speed", chosen, **about)
    for cases in extra:
        command.run_once(f"cpu-encoder-{cases.__name__}", cases, chosen, **about)


if __name__ == "__main__":
    main()
