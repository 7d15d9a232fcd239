"""python -m moe_retrieval.genpoe.download: the files and encoders of DPR, by name."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from moe_retrieval.cli import parse, run_command
from moe_retrieval.genpoe.catalogue import ENCODERS, FILES


@dataclass
class DownloadConfig:
    """Fetches what DPR publishes of Wikipedia, NQ and TriviaQA, or finds it where it lies already, and prints where.
    Without a name: what there is.

    A download that was stopped goes on. Files stay compressed: every command reads them so.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Of files, also by their beginning (data.retriever.qas is six), and of encoders on the hub."""
    data_dir: str | None = None
    """The folder for files, those included that DPR's own program left there; None is dpr in $MOE_RETRIEVAL_DATA, and
    in the cache."""
    verify: bool = False
    """Read what lies there already, and hold it against its checksum; else only its size is."""


def listing(data_dir: str | None) -> str:
    """What there is, and where it lies."""
    from moe_retrieval.genpoe.downloads import find, folders

    lines = []
    for file in FILES.values():
        size = f"{file.size / 1e6:,.0f} MB" if file.size else "size unknown"
        place = find(file, folders(data_dir)) or size
        lines.append(f"{file.name:<42} {file.what}; {place}")
    return "\n".join([*lines, *(f"{name:<42} {what}" for name, what in ENCODERS.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(DownloadConfig, arguments, "python -m moe_retrieval.genpoe.download")
    if not config.names:
        print(listing(config.data_dir))
        return
    from moe_retrieval.genpoe.downloads import folders, named, obtain
    from moe_retrieval.models import backbones

    files, encoders = named(config.names)
    for file in files:
        print(f"{file.name}  {obtain(file, folders(config.data_dir), config.verify)}")
    for encoder in encoders:
        print(f"{encoder}  {backbones.find(encoder)}")


if __name__ == "__main__":
    run_command(main)
