"""python -m moe_retrieval.genpoe.rerank: retrieved passages, ordered by a language model that is asked Yes or No."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.retrieval.limits import MAX_TOKENS


@dataclass
class RerankConfig:
    """Scores each question's passages by the logit of Yes, and writes them with these scores, the best first. A run
    that was stopped goes on with the scores it had, which are in OUTPUT.scores until then."""

    model: str
    """What the command train_reranker left, or any causal language model of transformers: a directory, or a repository
    of the hub."""
    input: str
    """Questions and passages, as the command retrieve writes them; also .gz."""
    output: str
    """The file to write, .json or .jsonl."""
    top_k: int | None = None
    """Passages a question that are written; None is all."""
    by: Literal["passage", "title"] | None = None
    """What is shown of a passage; None is what the reranker was trained with, else the passage."""
    against_no: bool | None = None
    """The score is the logit of Yes less that of No; None is as the reranker was trained, else False."""
    max_length: int | None = None
    """Tokens read of question, passage and prompt together; None is as the reranker was trained, else 512."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""
    max_tokens: int = MAX_TOKENS
    """Tokens that are scored at a time."""

    def __post_init__(self) -> None:
        check_bounds(self, {"top_k": (1, None), "max_length": (1, None), "max_tokens": (1, None)}, flag)


def rerank(config: RerankConfig) -> dict[str, dict[str, float]]:
    """What the command does; -> top-k accuracy before and after ({} without answers)."""
    import torch

    from moe_retrieval.genpoe.accuracy import TopK, marked
    from moe_retrieval.genpoe.examples import Example, check_target, read_examples, write_examples
    from moe_retrieval.genpoe.kept_scores import KeptScores
    from moe_retrieval.genpoe.prompts import shown
    from moe_retrieval.genpoe.reranker import load_reranker, ranked
    from moe_retrieval.models import backbones
    from moe_retrieval.models.precision import PRECISIONS, for_training
    from moe_retrieval.progress import Meter

    check_target(config.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = for_training(device) if config.precision == "auto" else config.precision
    asked = {"by": config.by, "against_no": config.against_no, "max_length": config.max_length}
    folder = backbones.find(config.model)
    reranker = load_reranker(str(folder), device, PRECISIONS[precision], **asked)
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    model = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}
    of = {"model": model, **asdict(reranker.settings), "precision": precision, "max_tokens": config.max_tokens}
    before, after = TopK(), TopK()
    with Meter(f"reading {config.input}"):
        count = sum(1 for _ in read_examples(config.input))
    with KeptScores(Path(f"{config.output}.scores"), of) as kept, Meter("questions", count, "reranked") as meter:

        def reranked(example: Example) -> Example:
            texts = [shown(passage, reranker.settings.by) for passage in example.ctxs]
            question, score = example.question, reranker.score
            scores = kept.of(question, texts, lambda: score(question, texts, config.max_tokens))
            return example._replace(ctxs=ranked(example.ctxs, scores))

        found = before.watch(map(marked, read_examples(config.input)))
        best = after.watch(meter.over(map(reranked, found)))
        write_examples(config.output, (each._replace(ctxs=each.ctxs[: config.top_k]) for each in best))
    print(f"{count:,} questions, their passages in order, in {config.output}")
    reranker.say_what_was_cut()
    return {"before": before.shares(), "after": after.shares()}


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(RerankConfig, arguments, "python -m moe_retrieval.genpoe.rerank")
    measured = rerank(config)
    for name, share in measured["before"].items():
        print(f"{name:10} {share:.4f} before, {measured['after'][name]:.4f} after")


if __name__ == "__main__":
    run_command(main)
