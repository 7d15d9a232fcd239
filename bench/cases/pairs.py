"""What `bench.pairs` times in each of two checkouts: this file is run in both, as a script.

So it uses nothing of either but what is promised to users, and imports nothing of bench.
"""

import atexit
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPEATS = 5


def scratch_folder() -> Path:
    """Gone with this process."""
    folder = tempfile.mkdtemp(prefix="pairs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def median_time(call: Callable[[], object], calls: int) -> float:
    """Seconds a call, the median over repeats of `calls` calls."""
    for _ in range(max(1, calls // 4)):
        call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def layer(tokens: int, training: bool, calls: int) -> float:
    import torch

    import kernels

    torch.manual_seed(0)
    moe = kernels.MoE(384, 1536, num_experts=8, top_k=2).bfloat16()
    x = torch.randn(tokens, 384, dtype=torch.bfloat16, requires_grad=training)
    if not training:
        with torch.no_grad():
            return median_time(lambda: moe(x), calls)

    def step() -> None:
        (moe(x).float().square().mean() + kernels.aux_loss(moe)).backward()

    return median_time(step, calls)


def model(variant: str):
    import moe_retrieval

    folder = scratch_folder() / "run"
    moe_retrieval.train(training_config(folder, 1, variant))
    return moe_retrieval.load(folder, precision="bf16")


def training_config(folder: Path, steps: int, variant: str):
    from moe_retrieval.config import TrainConfig

    return TrainConfig(
        dataset=str(pairs_file(folder.parent)), variant=variant, output_dir=str(folder), max_steps=steps, no_eval=True,
        eval_every=0, save_every=0, resume="never", doc_length=128,
    )  # fmt: skip


def pairs_file(folder: Path) -> Path:
    """Questions and documents of ordinary words, 20 to 120 a document; always the same."""
    import random

    words, draw = Path(json.__file__).parent.parent.joinpath("argparse.py").read_text().split(), random.Random(0)
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for _ in range(640):
            text = " ".join(draw.choices(words, k=draw.randrange(20, 120)))
            file.write(json.dumps({"query": " ".join(draw.choices(text.split(), k=8)), "positive": text}) + "\n")
    return path


def query(variant: str) -> float:
    ours = model(variant)
    return median_time(lambda: ours.encode_query(["how does a parser of arguments print its help"]), 100)


def corpus(variant: str) -> float:
    ours = model(variant)
    texts = [json.loads(line)["positive"] for line in pairs_file(scratch_folder()).open()][:192]
    return median_time(lambda: ours.encode_document(texts), 1)


def training(variant: str) -> float:
    """The mean of the steps of one run but the first three, by the times of its log."""
    import moe_retrieval

    folder = scratch_folder() / "run"
    moe_retrieval.train(training_config(folder, 15, variant))
    events = [json.loads(line) for line in (folder / "log.jsonl").open()]
    times = [event["time"] for event in events if "loss" in event][2:]
    return (times[-1] - times[0]) / (len(times) - 1)


CASES: dict[str, Callable[[], float]] = {
    "layer, T=1": lambda: layer(1, False, 500),
    "layer, T=4096 forward+backward": lambda: layer(4096, True, 2),
    "one query, sb-moe": lambda: query("sb-moe"),
    "one query, moe": lambda: query("moe"),
    "corpus, sb-moe": lambda: corpus("sb-moe"),
    "corpus, moe": lambda: corpus("moe"),
    "training step, sb-moe": lambda: training("sb-moe"),
    "training step, moe": lambda: training("moe"),
}

if __name__ == "__main__":
    print(CASES[sys.argv[1]]())
