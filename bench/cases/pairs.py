"""What `bench.pairs` times in each of two checkouts: this file is run in both, as a script.

So it uses nothing of either but what is promised to users, and imports nothing of bench.
"""

import atexit
import json
import shutil
import statistics
import subprocess
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
        eval_every=0, save_every=0, resume="never", doc_length=128, precision="bf16",
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


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def whole(*arguments: str) -> float:
    """A command from its start to its end."""
    run = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return median_time(lambda: subprocess.run(command(*arguments), **run), 1)


def first_line() -> float:
    """Of a training, from its start to the first thing that it says."""
    folder = scratch_folder()
    flags = [f"--dataset={pairs_file(folder)}", f"--output-dir={folder / 'run'}"]

    def start() -> None:
        told = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with subprocess.Popen(command("moe_retrieval.train", *flags), **told) as process:
            process.stdout.readline()
            process.kill()

    return median_time(start, 1)


def search() -> float:
    """One question from the shell, to an index of as many documents as the main job has."""
    folder = scratch_folder()
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(23_000):
            file.write(json.dumps({"_id": str(number), "text": f"document {number} of many"}) + "\n")
    made = f"--model=minilm --corpus={folder / 'corpus.jsonl'} --output-dir={folder / 'index'}".split()
    subprocess.run(command("moe_retrieval.index", *made), check=True, capture_output=True)
    return whole("moe_retrieval.search", f"--index={folder / 'index'}", "a question")


CASES: dict[str, Callable[[], float]] = {
    "layer, T=1": lambda: layer(1, False, 500),
    "layer, T=4096 forward+backward": lambda: layer(4096, True, 2),
    "one query, sb-moe": lambda: query("sb-moe"),
    "one query, moe": lambda: query("moe"),
    "corpus, sb-moe": lambda: corpus("sb-moe"),
    "corpus, moe": lambda: corpus("moe"),
    "training step, sb-moe": lambda: training("sb-moe"),
    "training step, moe": lambda: training("moe"),
    "start: train --help": lambda: whole("moe_retrieval.train", "--help"),
    "start: evaluate --help": lambda: whole("moe_retrieval.evaluate", "--help"),
    "start: first line of a training": first_line,
    "start: one question from the shell": search,
}

if __name__ == "__main__":
    print(CASES[sys.argv[1]]())
