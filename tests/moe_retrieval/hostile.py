"""python -m tests.moe_retrieval.hostile: what the real commands say to hostile input, as a table.

Each case runs in a fresh copy of a small collection, a trained run with its index, and a backbone. It passes where the
exit status and the words are as expected, there is no traceback, and a command that refuses leaves all files as they
were.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from safetensors.torch import load_file, save_file

from moe_retrieval.locks import locked
from tests.moe_retrieval.berts import make_bert
from tests.moe_retrieval.corpora import write_lines
from tests.moe_retrieval.rare_words import SCRATCH, write_collection
from tests.moe_retrieval.tiny import tiny_tokenizer

FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SCRATCH.items()]
FLAGS += ["--max-steps=12", "--batch-size=16", "--eval-every=4", "--save-every=4", "--lr=3e-3", "--precision=fp32"]
FLAGS += ["--no-eval"]
PATIENCE = 120
"""Seconds that a case may take on a slow machine."""

NEWEST = "run/checkpoints/step-00000012"


@dataclass
class Case:
    name: str
    arguments: list[str]
    """The command and its flags, with paths from the folder that it runs in."""
    says: str
    """Words of its last line of complaint, or of its output where it succeeds."""
    status: int = 2
    prepare: Callable[[Path], object] = field(default=lambda folder: None)
    meanwhile: Callable[[Path], AbstractContextManager] = field(default=lambda folder: nullcontext())
    reads: int | None = None
    """Lines after which the reader of its output goes away."""
    bytes_a_file: int | None = None
    """The largest file that the system lets it write: a full disk."""
    leaves: str | None = None
    """A file that must be there at the end."""


def train(*flags: str, run: str = "run") -> list[str]:
    return ["train", "--dataset", "words", "--output-dir", run, *FLAGS, *flags]


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_in_config(folder: Path, **values: object) -> None:
    path = folder / "bert" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def add_line(folder: Path, line: str) -> None:
    with open(folder / "words" / "corpus.jsonl", "a") as file:
        file.write(line + "\n")


def break_weights(folder: Path) -> None:
    state = load_file(folder / "run" / "model.safetensors")
    state["encoder.norm.weight"][0] = float("nan")
    save_file(state, folder / "run" / "model.safetensors", {"format": "pt"})


def two_indexes(folder: Path) -> None:
    write_collection(folder / "others", documents=150)
    run(folder, ["index", "--model", "run", "--corpus", "others/corpus.jsonl", "--output-dir", "other"])
    shutil.copy(folder / "other" / "index.faiss", folder / "run" / "index" / "index.faiss")


def evaluated(folder: Path) -> None:
    run(folder, ["evaluate", "--model", "run", "--dataset", "words", "--output-dir", "other", "--no-bm25"])


def evaluated_on_others(folder: Path) -> None:
    write_collection(folder / "others", documents=150)
    run(folder, ["evaluate", "--model", "run", "--dataset", "others", "--output-dir", "other", "--no-bm25"])


def evaluated_and_cut(folder: Path) -> None:
    evaluated(folder)
    cut(folder / "other" / "run.trec")


def write_passages(folder: Path, lines: str) -> None:
    """And a question about them."""
    (folder / "p.tsv").write_text(lines)
    write_lines(folder / "q.jsonl", [{"question": "q"}])


SEARCH = ["search", "--index", "run/index", "abcd", "--top-k", "120"]
INDEX = ["index", "--model", "run", "--corpus", "words/corpus.jsonl", "--output-dir", "new"]
ANALYZE = ["analyze", "--model", "run", "--dataset", "words", "--output-dir", "new"]
COMPARE = ["evaluate", "--model", "run", "--dataset", "words", "--no-bm25", "--against", "other/run.trec"]
RETRIEVE = ["genpoe.retrieve", "--model", "run", "--passages", "p.tsv", "--questions", "q.jsonl", "--output", "o.json"]
RERANK = ["genpoe.rerank", "--model", "run", "--input", "p.json", "--output", "o.json"]
TRAIN_RERANKER = ["genpoe.train_reranker", "--model", "bert", "--output-dir", "new"]
FROM_BERT = ["train", "--dataset", "words", "--output-dir", "new", "--model", "bert", "--max-steps", "2"]
OTHER_SEED = train("--seed", "1", run="new")
PRETRAIN = ["pretrain", "--corpus", "words", "--output-dir", "new", "--max-steps", "1"]
EXPERIMENT = ["genpoe.experiment", "--output-dir", "new", "--seeds", "1"]
GENERATE = ["genpoe.generate", "--model", "run", "--input", "p.tsv", "--output-dir", "new"]

CASES = [
    Case("back to an earlier step", train("--resume", "run/checkpoints/step-00000008"), "the best model is", 0,
         leaves=f"{NEWEST}/state.json"),
    Case("the folder is in use", train(), "is in use by process", meanwhile=lambda folder: locked(folder / "run")),
    Case("a lock that a kill left", train(), "the best model is", 0,
         lambda folder: (folder / "run" / ".lock").write_text("1 here\n")),
    Case("the newest checkpoint is damaged", train(), "goes on from run/checkpoints/step-00000008", 0,
         lambda folder: flip(folder / NEWEST / "model.safetensors"), leaves=f"{NEWEST}/state.json"),
    Case("every checkpoint is damaged", train(), "no checkpoint in run/checkpoints is whole",
         prepare=lambda folder: [cut(path) for path in folder.glob("run/checkpoints/*/state.json")]),
    Case("a learning rate of nan", train("--lr", "nan"), "--lr must be a finite number, got nan"),
    Case("a learning rate of 1e36", train("--lr", "1e36", "--clip", "0", run="new"), "not finite since step"),
    Case("a seed of 31 digits", train("--seed", "1" + "0" * 30), "--seed must be at most"),
    Case("a flag without a value in YAML", [*train(), "--config", "c.yaml"], "output_dir must have a value, got none",
         prepare=lambda folder: (folder / "c.yaml").write_text("output_dir:\n")),
    Case("YAML 100,000 deep", [*train(), "--config", "c.yaml"], "nested too deeply",
         prepare=lambda folder: (folder / "c.yaml").write_text("[" * 100_000)),
    Case("the output folder is a file", train(run="c.yaml"), "cannot write to c.yaml: File exists",
         prepare=lambda folder: (folder / "c.yaml").touch()),
    Case("the output folder is below a file", train(run="c.yaml/new"), "cannot write to c.yaml/new: Not a directory",
         prepare=lambda folder: (folder / "c.yaml").touch()),
    Case("the disk is full", OTHER_SEED, "safetensors: File too large", 1, bytes_a_file=100_000),
    Case("the reader of a training goes away", OTHER_SEED, "training ", 0, reads=1,
         leaves=NEWEST.replace("run", "new", 1)),
    Case("lines of sentence similarity", ["train", "--dataset", "sts.jsonl", "--output-dir", "new", *FLAGS],
         'sts.jsonl:1: unknown field "score"', prepare=lambda folder: write_lines(
             folder / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 0.5}])),
    Case("JSON 100,000 deep", OTHER_SEED, "corpus.jsonl:121: not JSON (nested too deeply)",
         prepare=lambda folder: add_line(folder, "[" * 100_000)),
    Case("a number of 10,000 digits", OTHER_SEED, "corpus.jsonl:121: not JSON (Exceeds the limit",
         prepare=lambda folder: add_line(folder, '{"_id": "x", "text": "y", "n": ' + "9" * 10_000 + "}")),
    Case("a vocabulary of 10^12 words", FROM_BERT, "vocab_size must be an int of at most 2147483647, got 10",
         prepare=lambda folder: set_in_config(folder, vocab_size=10**12)),
    Case("a billion layers", FROM_BERT, "encoder.layer.1.attention.self.query.weight is missing",
         prepare=lambda folder: set_in_config(folder, num_hidden_layers=10**9)),
    Case("a norm's eps of NaN", FROM_BERT, "norm_eps must be a finite number, got nan",
         prepare=lambda folder: set_in_config(folder, layer_norm_eps=float("nan"))),
    Case("weights that were cut off", FROM_BERT, "cannot read model.safetensors",
         prepare=lambda folder: cut(folder / "bert" / "model.safetensors")),
    Case("a config.json 100,000 deep", FROM_BERT, "config.json: nested too deeply",
         prepare=lambda folder: (folder / "bert" / "config.json").write_text('{"a":' * 100_000)),
    Case("a run of another data set", COMPARE, "is of dataset_fingerprint", prepare=evaluated_on_others),
    Case("a run of another setting", [*COMPARE, "--setting", "gold-pool"], "is of setting 'full'", prepare=evaluated),
    Case("a run that was cut off", COMPARE, "run.trec", prepare=evaluated_and_cut),
    Case("an analysis against another data set", [*ANALYZE, "--against", "other/run.trec"], "is of dataset_fingerprint",
         prepare=evaluated_on_others),
    Case("an analysis against nothing", [*ANALYZE, "--against", "nowhere"], "'nowhere' is no directory"),
    Case("an analysis into its own run", [*ANALYZE[:-1], "run"], "run/README.md is of something else, and would be"),
    Case("an analysis of a split that is not there", [*ANALYZE, "--split", "dev2"], "words has no split 'dev2'"),
    Case("a log of 100,000 brackets", ANALYZE, "effective experts", 0,
         lambda folder: (folder / "run" / "log.jsonl").write_text("[" * 100_000), leaves="new/analysis.json"),
    Case("a report of a comparison 100,000 deep", ["report", "--input", "run"], "comparison.json: nested too deeply",
         prepare=lambda folder: (folder / "run" / "comparison.json").write_text("[" * 100_000)),
    Case("a report of nothing", ["report", "--input", "words"], "words holds nothing to report on: expected"),
    Case("a model of NaN is analysed", ANALYZE, "the model's embeddings are not finite", prepare=break_weights),
    Case("a model of NaN is measured", COMPARE[:-2], "the model's embeddings are not finite", prepare=break_weights),
    Case("a model of NaN is indexed", INDEX, "the model's embeddings are not finite", prepare=break_weights),
    Case("an index folder in use", INDEX, "is in use by process", meanwhile=lambda folder: locked(folder / "new")),
    Case("vectors with a flipped byte", SEARCH, "index.faiss: is damaged",
         prepare=lambda folder: flip(folder / "run" / "index" / "index.faiss")),
    Case("the vectors of another index", SEARCH, "index.faiss: is damaged, or another's", prepare=two_indexes),
    Case("documents that were cut off", SEARCH, "documents.jsonl: is damaged",
         prepare=lambda folder: cut(folder / "run" / "index" / "documents.jsonl")),
    Case("an index without its starts", SEARCH, "starts.npy: No such file",
         prepare=lambda folder: (folder / "run" / "index" / "starts.npy").unlink()),
    Case("a document of 1 MB of one word", ["search", "--index", "new", "abcd", "--top-k", "121"], "abcd abcd", 0,
         lambda folder: (add_line(folder, json.dumps({"_id": "x", "text": "abcd " * 200_000})), run(folder, INDEX))),
    Case("the reader of a search goes away", [*SEARCH, "--json"], "", 141, reads=0),
    Case("questions with an empty list of answers", ["genpoe.evaluate", "--predictions", "p.json"],
         'p.json:entry 1: expected "answers" with at least one that is not empty, got []',
         prepare=lambda folder: (folder / "p.json").write_text('[{"question": "q", "answers": []}]')),
    Case("predictions that were cut off", ["genpoe.evaluate", "--predictions", "p.json"], "p.json:entry 1: not JSON",
         prepare=lambda folder: (folder / "p.json").write_text('[{"question": "q", "answ')),
    Case("a passage with an open quote", RETRIEVE, "p.tsv:1: not columns between tabs (unexpected end of data)",
         prepare=lambda folder: write_passages(folder, '1\t"text\ttitle\n2\ttext\ttitle\n')),
    Case("no questions about passages", RETRIEVE, "q.jsonl: holds no question",
         prepare=lambda folder: (write_passages(folder, "1\ttext\ttitle\n"), (folder / "q.jsonl").write_text("\n"))),
    Case("passages whose output is a folder", RETRIEVE, "cannot write to o.json: it is a folder",
         prepare=lambda folder: (write_passages(folder, "1\ttext\ttitle\n"), (folder / "o.json").mkdir())),
    Case("passages of a model of NaN", RETRIEVE, "the model's embeddings are not finite",
         prepare=lambda folder: (write_passages(folder, "1\ttext\ttitle\n"), break_weights(folder))),
    Case("a reranker that is a retriever", RERANK, "model run: not a causal language model with its tokenizer",
         prepare=lambda folder: (folder / "p.json").write_text('[{"question": "q", "ctxs": [{"text": "t"}]}]')),
    Case("passages to prepare without an answer", ["genpoe.prepare", "--input", "p.json", "--output", "g.jsonl"],
         "g.jsonl: none of 1 questions has passages with an answer and others without",
         prepare=lambda folder: (folder / "p.json").write_text(
             '[{"question": "q", "answers": ["a"], "ctxs": [{"text": "t"}]}]')),
    Case("groups 100,000 deep", [*TRAIN_RERANKER, "--data", "g.jsonl"], "g.jsonl:1: not JSON (nested too deeply)",
         prepare=lambda folder: (folder / "g.jsonl").write_text("[" * 100_000)),
    Case("facts of more people than names", ["genpoe.facts", "--output-dir", "new", "--train-people", "500000"],
         "expected 500000 at most"),
    Case("a file that DPR has not", ["genpoe.download", "data.retriever.q"], "nothing is called 'data.retriever.q'"),
    Case("an encoder with experts to read on", [*PRETRAIN, "--model", "run"], "is a run of variant"),
    Case("more tokens than an encoder has places", [*PRETRAIN, "--model", "bert", "--length", "513"],
         "--length must be at most 40, the positions of bert, got 513"),
    Case("nothing of a text to guess", [*PRETRAIN, "--mask-share", "0"], "--mask-share is a share of the tokens"),
    Case("a decoder of no head", [*EXPERIMENT, "--heads", "0"], "--heads must be at least 1, got 0"),
    Case("experts of a model that makes none", GENERATE, "run has no experts.json: expected what",
         prepare=lambda folder: write_passages(folder, "1\ttext\ttitle\n")),
    Case("a score of NaN", ["similarity", "--model", "run", "--data", "sts.jsonl"], "a score that is a finite number",
         prepare=lambda folder: write_lines(
             folder / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": float("nan")}])),
]  # fmt: skip


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", f"moe_retrieval.{arguments[0]}", *arguments[1:]]


def run(folder: Path, arguments: list[str]) -> None:
    """A command that prepares a case."""
    subprocess.run(command(arguments), cwd=folder, check=True, capture_output=True, text=True)


def make_home(folder: Path) -> None:
    """What every case begins with."""
    write_collection(folder / "words")
    sizes = dict(vocab_size=400, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=40)
    make_bert(**sizes).save_pretrained(folder / "bert")
    tiny_tokenizer().save(folder / "bert")
    run(folder, train())
    run(folder, ["index", "--model", "run", "--corpus", "words/corpus.jsonl", "--output-dir", "run/index"])


def contents(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in files}


@dataclass
class Outcome:
    case: Case
    status: int
    said: str
    seconds: float
    fault: str
    """Why the case did not pass; empty if it did."""


def try_case(case: Case, folder: Path) -> Outcome:
    case.prepare(folder)
    before = contents(folder)
    started = time.perf_counter()
    with case.meanwhile(folder):
        status, said = _talk(case, folder)
    seconds = time.perf_counter() - started
    lost = [str(path.relative_to(folder)) for path, content in before.items() if contents(folder).get(path) != content]
    lines = [line for line in said.splitlines() if line.strip()]
    shown = next((line for line in lines if case.says and case.says in line), lines[-1] if lines else "")
    faults = {
        f"status {case.status} expected": status != case.status,
        "a traceback": "Traceback" in said,
        "other words expected": case.says not in said,
        f"lost or changed: {', '.join(lost)}": case.status == 2 and bool(lost),
        f"{case.leaves} is missing": case.leaves is not None and not (folder / case.leaves).exists(),
        "more than one line": case.status in (1, 2) and sum("error:" in line for line in lines) != 1,
    }
    return Outcome(case, status, shown, seconds, "; ".join(fault for fault, holds in faults.items() if holds))


def _talk(case: Case, folder: Path) -> tuple[int, str]:
    """-> the status, and all that was said; to a reader that goes away after some lines of it, if the case has one."""

    def limit() -> None:
        if case.bytes_a_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.bytes_a_file, case.bytes_a_file))

    pipe = subprocess.PIPE
    errors = subprocess.STDOUT if case.reads is None else pipe
    process = subprocess.Popen(
        command(case.arguments), cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=errors, text=True,
        preexec_fn=limit,
    )  # fmt: skip
    try:
        if case.reads is None:
            said, _ = process.communicate(timeout=PATIENCE)
            return process.returncode, said
        read = "".join(process.stdout.readline() for _ in range(case.reads))
        process.stdout.close()
        said = read + process.stderr.read()
        return process.wait(PATIENCE), said
    finally:
        process.kill()


def outcomes(home: Path) -> Iterator[Outcome]:
    """Each in its own copy of what `make_home` made."""
    for number, case in enumerate(CASES):
        folder = home.parent / f"case-{number}"
        shutil.copytree(home, folder, symlinks=True)
        yield try_case(case, folder)
        shutil.rmtree(folder)


def main() -> None:
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) / "home"
        home.mkdir()
        make_home(home)
        print(f"| {'case':36} | status | seconds | what came")
        for outcome in outcomes(home):
            bad += bool(outcome.fault)
            print(f"| {outcome.case.name:36} | {outcome.status:6} | {outcome.seconds:7.1f} | {outcome.said:.110}")
            if outcome.fault:
                print(f"| {'':36} |   BAD: {outcome.fault}")
    print(f"{len(CASES) - bad} of {len(CASES)} cases pass")
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
