"""The files of DPR for NQ and TriviaQA and where they are, under the names that DPR itself gives them.

Sizes and md5 are those that ir_datasets publishes, for the five files that it knows. Of the others nothing is
published: the sha256 that is seen when one is fetched is kept beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

HOME = "https://dl.fbaipublicfiles.com/dpr"


@dataclass(frozen=True)
class RemoteFile:
    name: str
    path: str
    """Below HOME"""
    ending: str
    what: str
    size: int | None = None
    md5: str | None = None

    @property
    def url(self) -> str:
        return f"{HOME}/{self.path}"

    @property
    def last(self) -> str:
        """The end of its URL, which a browser calls it."""
        return self.path.rpartition("/")[2]

    @property
    def places(self) -> list[str]:
        """Where it may lie in a folder: by its name, as DPR's own program leaves it, by the end of its URL, where that
        is the end of no other."""
        named = self.name.replace(".", "/") + self.ending
        alone = sum(file.last == self.last for file in FILES.values()) == 1
        return [named, f"downloads/{named}", *([self.last] if alone else [])]


KNOWN = {
    "nq-train": (2314892908, "a1c927b5adae71388eb064329387709f"),
    "nq-dev": (256239282, "2640483dbe0df7ae29c6da419c551a80"),
    "trivia-train": (1848559940, "5aa4d3577c91425cd20e239ed89a252b"),
    "trivia-dev": (207271749, "d559dffe09acfe5a6370adea55b8abf2"),
}
"""Of the retriever's data: size and md5"""

SPLITS = ("train", "dev", "test")


def _wikipedia() -> Iterator[RemoteFile]:
    path, size, md5 = "wikipedia_split/psgs_w100.tsv.gz", 4694541059, "612fe66e0b6b41ee28f806140226c563"
    what = "Wikipedia of December 2018: 21,015,324 passages of 100 words"
    yield RemoteFile("data.wikipedia_split.psgs_w100", path, ".tsv.gz", what, size, md5)


def _retriever_data() -> Iterator[RemoteFile]:
    folder = "data/retriever"
    for name, (size, md5) in KNOWN.items():
        what = "questions, passages with an answer, hard negatives"
        yield RemoteFile(f"data.retriever.{name}", f"{folder}/biencoder-{name}.json.gz", ".json.gz", what, size, md5)
    what = "the same, its hard negatives found by DPR"
    yield RemoteFile("data.retriever.nq-adv-hn-train", f"{folder}/biencoder-nq-adv-hn-train.json.gz", ".json.gz", what)
    for dataset, ending in {"nq": ".csv", "trivia": ".csv.gz"}.items():
        for name in (f"{dataset}-{split}" for split in SPLITS):
            path = f"{folder}/{name}.qa{ending}"
            yield RemoteFile(f"data.retriever.qas.{name}", path, ending, "questions and answers")


def _reader_data() -> Iterator[RemoteFile]:
    for split in SPLITS:
        path = f"data/retriever_results/single/nq-{split}.json.gz"
        what = "questions, and the passages that DPR found"
        yield RemoteFile(f"data.retriever_results.nq.single.{split}", path, ".json.gz", what)
    parts = {f"train_{number}": f"train.{number}" for number in range(8)} | {"dev": "dev.0", "test": "test.0"}
    for setting in ("nq.single", "trivia.multi-hybrid"):
        for part, file in parts.items():
            path = f"data/reader/{setting.replace('.', '/')}/{file}.pkl"
            what = "a pickle of DPR's own classes: no command here opens it"
            yield RemoteFile(f"data.reader.{setting}.{part}", path, ".pkl", what)


FILES = {file.name: file for files in (_wikipedia(), _retriever_data(), _reader_data()) for file in files}

ENCODERS = {
    "facebook/dpr-question_encoder-single-nq-base": "for --query-model; trained on NQ",
    "facebook/dpr-ctx_encoder-single-nq-base": "for --model; trained on NQ",
    "facebook/dpr-question_encoder-multiset-base": "for --query-model; trained on four data sets",
    "facebook/dpr-ctx_encoder-multiset-base": "for --model; trained on four data sets",
}
"""Repositories of the hub"""
