"""The native CPU path of a whole encoder against its targets: sentence-transformers on the same weights.

python -m bench.cpu_encoder [--seconds S] [--only TEXT]      speed; writes bench/results/cpu_encoder.json
python -m bench.cpu_encoder --memory                         resident memory, into the same file: about 15 minutes
python -m bench.cpu_encoder --quality                        NDCG@10 on SciFact, into the same file: about 3 minutes

**Speed.** All contenders live in one process and take turns, A B A B. A ratio is the median over rounds of the peer's
time divided by ours; the fastest call of each is kept beside it, which is what a machine that does other things
meanwhile still shows. Every contender is held to transformers in fp32 (its embeddings, or its loss) before it is timed.
GF/s count real tokens: 2 * weights of the blocks * tokens, and 4 * length² * width * layers of attention.

**Memory.** The peak resident memory of a fresh process, interpreter and libraries included, that embeds 450,000
passages from a JSON-lines file. They are 2 to 5 short words each, so that this takes minutes; longer ones would add
their text to sentence-transformers, whose `encode` takes a list of all texts and keeps all embeddings. Ours reads the
corpus through a memory map and writes embeddings to a file as they come, as moe_retrieval.index does. Nothing is
extrapolated.

**Quality.** Ours in bf16 and in fp32, the whole corpus ranked for the test split.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import kernels
from bench import backbone, embedders, resident, searches, stages, texts, training
from bench.embedders import BATCH, DOC_LENGTH, DTYPES, QUERY_LENGTH, TOLERANCE, relative_error
from bench.machine import describe, peaks
from bench.record import OURS
from bench.timing import Timings, interleave, one_at_a_time

if TYPE_CHECKING:
    from moe_retrieval.model import Model

RESULTS = Path(__file__).parent / "results" / "cpu_encoder.json"
CPU = torch.device("cpu")
PEER = "sentence-transformers"
OURS_BF16, OURS_FP32, PEER_BF16, PEER_FP32 = f"{OURS} bf16", f"{OURS} fp32", f"{PEER} bf16", f"{PEER} fp32"
DENSE, SB_MOE, READ = f"{OURS} dense", f"{OURS} sb-moe", f"{OURS} dense, then as many bytes read as the block has"
MEMORY_SHARE, NDCG_LOSS = 0.5, 0.002


@dataclass(frozen=True)
class Target:
    """`ours` is at least `least` times as fast as `peer`, or takes at most `most` times its time."""

    ours: str
    peer: str
    least: float | None = None
    most: float | None = None

    def judge(self, timings: Timings) -> dict[str, Any]:
        fastest = {name: timings.minimum(name) for name in (self.ours, self.peer)}
        if self.most is None:
            target = f"at least {self.least} times as fast as {self.peer}"
            median, minimum = timings.ratio(self.ours, self.peer), fastest[self.peer] / fastest[self.ours]
            holds = median >= self.least
        else:
            target = f"at most {self.most} times the time of {self.peer}"
            median, minimum = timings.ratio(self.peer, self.ours), fastest[self.ours] / fastest[self.peer]
            holds = median <= self.most
        return {
            "target": f"{self.ours}: {target}",
            "median": round(median, 3),
            "minimum": round(minimum, 3),
            "spread": round(timings.ratio_spread(self.ours, self.peer), 3),
            "holds": holds,
        }


ENCODE = [
    Target(OURS_BF16, PEER_FP32, least=5.0),
    Target(OURS_BF16, PEER_BF16, least=2.1),
    Target(OURS_FP32, PEER_FP32, least=1.8),
]
QUERY = [Target(OURS_BF16, PEER_FP32, least=2.5)]
TRAINING = [Target(OURS, PEER, least=3.0)]
BLOCK = [Target(SB_MOE, DENSE, most=1.03)]


@dataclass(frozen=True)
class Size:
    """How much is measured; smaller ones are for smoke tests."""

    documents: int = 480
    queries: int = 64
    pairs: int = 64
    rounds: int = 3
    """Of the cases whose calls take seconds."""
    passages: int = 450_000
    small: bool = False

    @property
    def folder(self) -> Path:
        return backbone.folder(self.small)


class Speed:
    """The cases, in one process. Each returns its result."""

    def __init__(self, size: Size, seconds: float):
        self.size, self.seconds = size, seconds
        self.models = {name: embedders.our_model(size.folder, "dense", name, CPU) for name in DTYPES}
        self.found = {f"{OURS} {name}": embedders.embed_with(model) for name, model in self.models.items()}
        for name in DTYPES:
            self.found[f"{PEER} {name}"] = embedders.sentence_transformers(size.folder, name, CPU)
        self.truth = embedders.transformers(size.folder, "fp32", CPU)
        self.asked = texts.queries(size.queries)
        self.peaks = peaks(CPU, tuple(DTYPES.values()), size.small)

    def cases(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """By name."""
        count, pairs = self.size.documents, self.size.pairs
        corpora = {texts.source(): texts.documents, "docs": texts.documentation}
        return {
            **{
                f"encode {count} documents of {name}, {DOC_LENGTH} tokens": partial(self.encode, read)
                for name, read in corpora.items()
            },
            f"one query end to end, exact search of {searches.CORPUS} documents": self.query,
            f"training step, {pairs} pairs, InfoNCE, bf16, dropout {training.DROPOUT}": self.training,
            f"sb-moe on {self.size.queries} queries, one at a time, tokens to embedding, bf16": self.block,
        }

    def encode(self, read: Callable[[int], list[str]]) -> dict[str, Any]:
        corpus = read(self.size.documents)
        self._prove(corpus[::8], False)
        calls = {name: partial(embed, corpus, False) for name, embed in self.found.items()}
        # The proof has warmed them up: it takes more than one of anyone's batches.
        timings = interleave(calls, seconds=self.seconds, min_rounds=self.size.rounds, min_sample=0.0, warm_ups=0)
        model = self.models["bf16"]
        flops = useful_flops(model, corpus)
        rates = {name: flops / timings.median(name) for name in calls}
        limits = {name: self.peaks[f"gemm_{name.split()[-1]}"] for name in calls}
        return result(timings, ENCODE) | {
            "documents_per_second": {name: round(len(corpus) / timings.median(name), 1) for name in calls},
            "gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
            "share_of_matrix_rate": {name: round(rates[name] / limits[name], 3) for name in calls},
            "profile": stages.profile(model, corpus),
        }

    def _prove(self, asked: Sequence[str], is_query: bool) -> None:
        for precision, dtype in DTYPES.items():
            found = {name: embed for name, embed in self.found.items() if name.endswith(precision)}
            embedders.check(found, asked, is_query, self.truth, dtype)

    def query(self) -> dict[str, Any]:
        self._prove(self.asked, True)
        vectors_NH = searches.vectors(self.models["bf16"].hidden_size)
        ways = searches.searches(self.found, vectors_NH, CPU)
        searches.check(ways, self.found, vectors_NH, self.asked)
        calls = {name: one_at_a_time(search, self.asked) for name, search in ways.items()}
        return result(interleave(calls, seconds=self.seconds, min_rounds=9, min_sample=0.0), QUERY)

    def training(self) -> dict[str, Any]:
        job = training.Job(self.size.folder, self.size.pairs, self.size.rounds, (OURS, PEER))
        return result(Timings(training.measure(CPU, job)), TRAINING)

    def block(self) -> dict[str, Any]:
        """The embeddings of queries that are token ids already: nothing hides the block's price. They go to one model
        in a row, as in a server: if the models took turns, each would find its weights driven out of the cache. Both
        have the same encoder in memory, so that nothing but the block differs.

        What a block cannot cost less than is measured beside it: one sum over as many bytes as a query reads of it.
        """
        asked = self.models["bf16"].tokenizer.encode_batch(self.asked, QUERY_LENGTH)
        dense, model = self.models["bf16"], _trained_block(self.size.folder)
        model.retriever.encoder = dense.retriever.encoder
        check_block(model, dense, self.size.folder, asked)
        weights = {"encoder": weight_bytes(dense.retriever.encoder.blocks), "block": bytes_of_a_query(model)}
        read = torch.ones(weights["block"] // 4)

        def embed_and_read(sequences: list[Sequence[int]]) -> None:
            dense.embed_tokens(sequences)
            read.sum()

        contenders = {DENSE: dense.embed_tokens, SB_MOE: model.embed_tokens, READ: embed_and_read}
        calls = {name: partial(each_alone, embed, asked) for name, embed in contenders.items()}
        seconds = 8 * self.seconds  # a claim of a few percent takes more rounds
        timings = interleave(calls, seconds=seconds, min_rounds=9, min_sample=0.0)
        return result(timings, BLOCK) | {
            "weight_bytes": weights,
            "times_of_dense": {name: round(timings.ratio(DENSE, name), 3) for name in (SB_MOE, READ)},
        }


def each_alone(embed: Callable[[list[Sequence[int]]], object], asked: Sequence[Sequence[int]]) -> None:
    for tokens in asked:
        embed([tokens])


def result(timings: Timings, targets: Sequence[Target]) -> dict[str, Any]:
    names = list(timings.seconds)
    return {
        "median_ms": {name: round(timings.median(name) * 1e3, 4) for name in names},
        "minimum_ms": {name: round(timings.minimum(name) * 1e3, 4) for name in names},
        "rounds": len(timings.seconds[names[0]]),
        "targets": [target.judge(timings) for target in targets],
    }


def useful_flops(model: "Model", corpus: Sequence[str]) -> int:
    """Of the blocks, on the tokens that the texts have: what any implementation must do."""
    lengths = [len(sequence) for sequence in model.tokenizer.encode_batch(list(corpus), model.doc_length)]
    encoder = model.retriever.encoder
    weights = sum(parameter.numel() for parameter in encoder.blocks.parameters() if parameter.ndim == 2)
    attention = 4 * encoder.shape.hidden_size * encoder.shape.num_layers
    return sum(2 * weights * length + attention * length**2 for length in lengths)


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def bytes_of_a_query(model: "Model") -> int:
    """Of the block's weights: its gate, without what draws noise in training, and the experts that are chosen."""
    block = model.retriever.block
    gate = sum(parameter.nbytes for parameter in block.gate_parameters() if parameter is not None)
    return gate + weight_bytes(block.experts) * block.number_chosen // block.num_experts


def _trained_block(folder: Path) -> "Model":
    """A new block is the identity, which would hide a wrong one."""
    torch.manual_seed(0)
    model = embedders.our_model(folder, "sb-moe", "bf16", CPU)
    model.retriever.block.experts.down_weight.normal_(std=0.5)
    return model


def check_block(model: "Model", dense: "Model", folder: Path, asked: Sequence[Sequence[int]]) -> None:
    """Against the same weights in fp32 on the eager backend; the block must make a difference that would be seen."""
    eager = embedders.our_model(folder, "sb-moe", "fp32", CPU)
    eager.retriever.block.load_state_dict(model.retriever.block.state_dict())
    with kernels.use_backend("eager"):
        expected = eager.embed_tokens(asked).numpy()
    error = relative_error(model.embed_tokens(asked).numpy(), expected)
    effect = relative_error(dense.embed_tokens(asked).numpy(), expected)
    assert error <= TOLERANCE[torch.bfloat16] < effect / 2, f"sb-moe is off by {error:.1e}; its block does {effect:.1e}"


def measure_memory(size: Size) -> dict[str, Any]:
    from moe_retrieval.encode import MAX_TOKENS

    found, seconds = {}, {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        texts.write_passages(corpus, size.passages)
        for name in (OURS_BF16, PEER_FP32):
            start = time.perf_counter()
            kind = "smoke" if size.small else "full"
            found[name] = resident.measure("bench.workloads:encode_file", name, str(corpus), kind)
            seconds[name] = round(time.perf_counter() - start, 1)
    return {
        "case": f"resident memory while encoding {size.passages} passages of 2 to 5 short words",
        "method": "the peak (VmHWM) of a fresh process, interpreter and libraries included; "
        "ours from a memory-mapped file to a file, theirs from a list of texts to an array",
        "batch": {OURS_BF16: f"{MAX_TOKENS} tokens", PEER_FP32: f"{BATCH} texts"},
        "peak_bytes": {name: peak["peak"] for name, peak in found.items()},
        "before_bytes": {name: peak["before"] for name, peak in found.items()},
        "seconds": seconds,
        "targets": [judge_memory(found[OURS_BF16]["peak"], found[PEER_FP32]["peak"])],
    }


def judge_memory(ours: int, peer: int) -> dict[str, Any]:
    share = ours / peer
    target = f"at most {MEMORY_SHARE} times the memory of {PEER_FP32}"
    return {"target": target, "share": round(share, 3), "holds": share <= MEMORY_SHARE}


def measure_quality(size: Size) -> dict[str, Any]:
    from moe_retrieval.data import load
    from moe_retrieval.evaluate import evaluate_model

    collection = load("scifact")
    found = {}
    for name in DTYPES:
        model = embedders.our_model(size.folder, "dense", name, CPU)
        found[name] = evaluate_model(model, collection, "test", progress=False)["NDCG@10"]
    return {
        "case": "SciFact, test split, full corpus",
        "NDCG@10": {name: round(value, 5) for name, value in found.items()},
        "targets": [judge_quality(found["bf16"], found["fp32"])],
    }


def judge_quality(bf16: float, fp32: float) -> dict[str, Any]:
    difference = bf16 - fp32
    target = f"NDCG@10 of bf16 within {NDCG_LOSS} of fp32"
    return {"target": target, "difference": round(difference, 5), "holds": abs(difference) <= NDCG_LOSS}


def merge(sections: dict[str, Any], path: Path) -> None:
    """Replaces these sections of the file, and leaves the others as another run wrote them."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | sections, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None, size: Size = Size(), path: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="a case (default: %(default)s)")
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is written then")
    parser.add_argument("--memory", action="store_true", help="resident memory instead of speed")
    parser.add_argument("--quality", action="store_true", help="NDCG@10 instead of speed")
    chosen = parser.parse_args(arguments)
    with kernels.use_backend("native"):
        from kernels.cpu import backend

        about = describe(CPU) | {"level": backend.level, "backbone": backbone.name(size.small)}
        extra = {"memory": measure_memory, "quality": measure_quality}
        extra = {name: measure for name, measure in extra.items() if getattr(chosen, name)}
        for name, measure in extra.items():
            found = {"run": about} | measure(size)
            show(found)
            merge({name: found}, path)
        if extra:
            return
        speed = Speed(size, chosen.seconds)
        cases = []
        for name, case in speed.cases().items():
            if chosen.only in name:
                cases.append({"case": name} | case())
                show(cases[-1])
        if not chosen.only:
            merge({"run": about, "peaks": speed.peaks, "cases": cases}, path)


def show(found: dict[str, Any]) -> None:
    print(found["case"])
    for target in found["targets"]:
        figures = ", ".join(f"{key} {value}" for key, value in target.items() if key not in ("target", "holds"))
        print(f"    {'holds' if target['holds'] else 'MISSED'}  {target['target']}: {figures}")
    for row in found.get("profile", {}).get("stages", ()):
        print(f"    {row['ms']:10.2f} ms {row['share']:7.1%}  {row['stage']}")
    for key, value in found.items():
        if key not in ("case", "run", "targets", "profile"):
            print(f"    {key:21} {value}")


if __name__ == "__main__":
    main()
