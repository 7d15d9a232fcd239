"""python -m moe_retrieval.index: embeds a corpus and leaves a folder that can be searched."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from moe_retrieval.bounds import check_bounds, flag
from moe_retrieval.cli import parse, run_command
from moe_retrieval.retrieval.backend_settings import LIMITS, Backend, BackendSettings
from moe_retrieval.retrieval.limits import MAX_TOKENS


@dataclass
class IndexConfig:
    """Embeds a corpus and builds an index to search. A run that was stopped goes on with the embeddings it had."""

    model: str
    """A run, a Hugging Face directory, an alias (minilm), or a repository of the hub."""
    corpus: str
    """JSON lines {"_id": "1", "title": "...", "text": "..."}, title may be missing: a file, also .gz, or - for standard
    input; or a data set: docs, a name of BEIR, a BEIR-format folder."""
    output_dir: str
    """The folder that becomes the index."""
    data_dir: str | None = None
    """Where data sets lie by name, besides $MOE_RETRIEVAL_DATA."""
    kind: Backend = "exact"
    """hnsw and ivf are faster on many documents and miss some; how many is printed."""
    experts: str | None = None
    """What python -m moe_retrieval.genpoe.train left: the experts of all documents go to OUTPUT_DIR/experts, for
    python -m moe_retrieval.genpoe.answer; None is no experts."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """The type that is computed in; auto is bf16 where that is faster, else fp32."""
    query_length: int | None = None
    """Tokens read of a query; None is the model's own."""
    doc_length: int | None = None
    """Tokens read of a document; None is the model's own."""
    query_prompt: str | None = None
    """Put before a query; None is the model's own."""
    doc_prompt: str | None = None
    """Put before a document; None is the model's own."""
    max_tokens: int = MAX_TOKENS
    """Tokens that are encoded at a time."""
    hnsw_links: int = 32
    """hnsw: neighbours of a document."""
    hnsw_effort: int = 128
    """hnsw: candidates that a search keeps."""
    ivf_lists: int | None = None
    """ivf: lists that the documents are divided into; None is 4 times the square root of their number."""
    ivf_probes: int | None = None
    """ivf: lists that a search reads; None is an eighth of them."""

    def __post_init__(self) -> None:
        check_bounds(self, {**LIMITS, "max_tokens": (1, None)}, flag)


def main(arguments: Sequence[str] | None = None) -> None:
    config = parse(IndexConfig, sys.argv[1:] if arguments is None else arguments, "python -m moe_retrieval.index")
    settings = BackendSettings(**{field.name: getattr(config, field.name) for field in fields(BackendSettings)})
    from moe_retrieval import data
    from moe_retrieval.genpoe.expert_store import store_documents
    from moe_retrieval.genpoe.reader_files import open_reader
    from moe_retrieval.models.usage import reading
    from moe_retrieval.retrieval.hint import example_question, search_hint
    from moe_retrieval.retrieval.index import build_index
    from moe_retrieval.retrieval.model import load
    from moe_retrieval.training.distributed import main_first, running_world, sole_use

    with running_world() as world, sole_use(config.output_dir, world):
        with main_first(world):  # it may download what the others then find
            documents = data.load_documents(config.corpus, config.data_dir)
            model = load(config.model, config.precision, world.device).with_usage(**reading(config))
            if config.experts is not None and world.is_main:
                reader = open_reader(config.experts, world.device, config.precision)
        info = build_index(
            model, documents, config.output_dir, settings, model_path=config.model, max_tokens=config.max_tokens
        )
        if world.is_main:
            print(f"{info['documents']} documents in {config.output_dir} ({info['kind']})")
            if "recall@10" in info:
                print(f"recall@10 against exact search: {info['recall@10']:.4f} (documents as queries)")
            if config.experts is not None:
                size = store_documents(reader, documents, Path(config.output_dir) / "experts")
                print(f"an expert of each in {config.output_dir}/experts, {size:,} bytes each")
            print(search_hint(config.output_dir, example_question(documents[0][1])))


if __name__ == "__main__":
    run_command(main)
