"""moe-retrieval COMMAND, or python -m moe_retrieval COMMAND: the commands under one name."""

from collections.abc import Sequence
from importlib import import_module

import kernels
from moe_retrieval.cli import run_command
from moe_retrieval.errors import InputError

COMMANDS = {
    "train": "trains a retriever, measures it, and indexes its corpus",
    "pretrain": "trains an encoder to guess hidden words, before it is a retriever",
    "evaluate": "measures a model's ranking of a collection, beside BM25's",
    "compare": "trains variants alike and measures them beside each other",
    "analyze": "tells what the experts of a run do on a collection",
    "report": "makes one HTML page of what these left",
    "index": "embeds a corpus and builds an index to search",
    "search": "searches an index",
    "triplets": "writes a data set's pairs with hard negatives as JSON lines",
    "similarity": "correlates a model's similarities with people's scores",
    "classification": "classifies texts by their nearest neighbours",
}


def usage() -> str:
    lines = [f"  {name:16}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(["moe-retrieval COMMAND ...; --help after a command lists its flags", "", *lines])


def dispatch(arguments: Sequence[str]) -> None:
    first, *rest = arguments or ["--help"]
    if first in ("-h", "--help"):
        print(usage())
    elif first == "--version":
        print(f"moe-retrieval {kernels.__version__}")
    elif first in COMMANDS:
        import_module(f"moe_retrieval.{first}").main(rest)
    else:
        raise InputError(f"expected a command, one of {', '.join(COMMANDS)}; got {first!r}")


def main() -> None:
    run_command(dispatch)


if __name__ == "__main__":
    main()
