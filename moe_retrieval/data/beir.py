"""Collections in BEIR format: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

A folder may also hold negatives.jsonl, lines {"_id": query id, "negatives": [document ids]}. Any of them may be
compressed and end in .gz. A data set of BEIR is looked for under the data directory and in the cache, and else
downloaded from the first mirror that has it.
"""

import logging
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from moe_retrieval.data.archives import fetch_archive
from moe_retrieval.data.cache import cache_dir, cached_folder
from moe_retrieval.data.collection import Collection, Qrels
from moe_retrieval.data.plain import existing
from moe_retrieval.data.records import Documents, decode, read_lines, read_objects, record_id, string_field
from moe_retrieval.errors import InputError

log = logging.getLogger("moe_retrieval")

MOST_RELEVANT = 2**31 - 1
"""What trec_eval has room for"""

MIRRORS = (
    "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip",
    "https://huggingface.co/datasets/BeIR/{name}/resolve/main/{name}.zip",
)

MD5: dict[str, str | None] = {
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "nq-train": None,
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}
"""Of NAME.zip, as BEIR publishes them; it publishes none for the pairs that go with nq."""

TRAINED_ON = {"nq": "nq-train"}
"""A data set without pairs to train on -> the one that has them."""

OTHERS = ("multi-domain/cs", "multi-domain/ps", "snli", "mnli", "stsb", "quora-pairs", "wikianswers", "hf:owner/name")
"""Names of data sets that other modules load."""

GROUPS = {
    "cqadupstack": (
        "android", "english", "gaming", "gis", "mathematica", "physics", "programmers", "stats", "tex", "unix",
        "webmasters", "wordpress",
    ),
}  # fmt: skip
"""A data set that is several collections -> their names behind a slash."""


def find(name_or_path: str, data_dir: str | os.PathLike | None = None) -> Path | None:
    """The folder of this data set if it is on this machine."""
    places = [Path(name_or_path)]
    places += [Path(place) / name_or_path for place in (data_dir, os.environ.get("MOE_RETRIEVAL_DATA")) if place]
    places.append(cache_dir() / "beir" / name_or_path)
    return next((place for place in places if existing(place / "corpus.jsonl").is_file()), None)


def load_folder(folder: str | os.PathLike, name: str | None = None) -> Collection:
    folder = Path(folder)
    documents = Documents(existing(folder / "corpus.jsonl"))
    digest = blake2b(documents.fingerprint.encode(), digest_size=8)
    asked = existing(folder / "queries.jsonl")
    queries = _read_queries(asked, digest) if asked.is_file() else {}
    found = [*folder.glob("qrels/*.tsv"), *folder.glob("qrels/*.tsv.gz")]
    judged = [existing(path) for path in sorted({path.with_name(f"{_split(path)}.tsv") for path in found})]
    qrels = {_split(path): _read_qrels(path, queries, documents, digest) for path in judged}
    negatives = _read_negatives(existing(folder / "negatives.jsonl"), documents, digest)
    return Collection(name or folder.name, documents, queries, qrels, digest.hexdigest(), negatives)


def _split(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tsv")


def _read_queries(path: Path, digest: blake2b) -> dict[str, str]:
    queries: dict[str, str] = {}
    empty = []
    for where, record in read_objects(path):
        query_id, text = record_id(record, where), string_field(record, "text", where)
        if query_id in queries:
            raise InputError(f'{where}: the "_id" {query_id!r} has come before')
        if not text.strip():
            empty.append(where)
        queries[query_id] = text
        digest.update(f"{query_id}\n{text}\n".encode())
    if empty:
        log.warning("%s: %d queries are empty (the first in %s)", path, len(empty), empty[0])
    return queries


def _read_qrels(path: Path, queries: dict[str, str], documents: Documents, digest: blake2b) -> Qrels:
    qrels: Qrels = {}
    unknown, repeated = [], []
    digest.update(f"{_split(path)}\n".encode())
    for number, _, line in read_lines(path):
        where = f"{path}:{number}"
        columns = decode(line, where).rstrip("\r\n").split("\t")
        if number == 1 and columns[-1] == "score":
            continue
        if len(columns) != 3:
            raise InputError(f"{where}: expected query-id, corpus-id, score between tabs, got {len(columns)} columns")
        query_id, document_id, score = columns
        try:
            relevance = int(score)
        except ValueError:
            raise InputError(f"{where}: expected a score that is an integer, got {score!r:.40}") from None
        if abs(relevance) > MOST_RELEVANT:
            raise InputError(f"{where}: expected a score of at most {MOST_RELEVANT} either way, got {score:.40}")
        if query_id not in queries:
            raise InputError(f"{where}: the query {query_id!r} is not in {path.parent.parent / 'queries.jsonl'}")
        judged = qrels.setdefault(query_id, {})
        if document_id in judged:
            if judged[document_id] != relevance:
                raise InputError(f"{where}: {query_id!r} with {document_id!r} was {judged[document_id]}, now {score}")
            repeated.append(number)
        elif documents.row(document_id) is None:
            unknown.append(number)
        judged[document_id] = relevance
        digest.update(line.strip())
    if unknown:
        log.warning(
            "%s: %d judgements name documents that are not in the corpus (the first in line %d); they count as missed",
            path,
            len(unknown),
            unknown[0],
        )
    if repeated:
        log.warning("%s: %d judgements come twice (the first in line %d)", path, len(repeated), repeated[0])
    return qrels


def write_qrels(folder: Path, split: str, rows: Iterable[tuple[str, str, int]]) -> None:
    """Rows of query id, document id, relevance."""
    (folder / "qrels").mkdir(exist_ok=True)
    with open(folder / "qrels" / f"{split}.tsv", "w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{query_id}\t{document_id}\t{score}\n" for query_id, document_id, score in rows)


def _read_negatives(path: Path, documents: Documents, digest: blake2b) -> dict[str, list[str]]:
    negatives: dict[str, list[str]] = {}
    if not path.is_file():
        return negatives
    for where, record in read_objects(path):
        named = record.get("negatives")
        if not isinstance(named, list) or not all(isinstance(document_id, str) for document_id in named):
            raise InputError(f'{where}: expected "negatives" that are a list of document ids, got {named!r:.40}')
        unknown = next((document_id for document_id in named if documents.row(document_id) is None), None)
        if unknown is not None:
            raise InputError(f"{where}: the document {unknown!r} is not in {documents.name}")
        negatives[record_id(record, where)] = named
        digest.update(repr(named).encode())
    return negatives


def members(name: str, data_dir: str | os.PathLike | None = None) -> list[str]:
    """The names of the collections that are called so together; of most names, the name itself.

    >>> members("cqadupstack")[:2], members("scifact")
    (['cqadupstack/android', 'cqadupstack/english'], ['scifact'])
    """
    if name not in GROUPS or find(name, data_dir) is not None:
        return [name]
    return [f"{name}/{member}" for member in GROUPS[name]]


def load(name: str, data_dir: str | os.PathLike | None = None) -> Collection:
    """A folder in BEIR format, or a data set of BEIR by its name ("scifact", "cqadupstack/android")."""
    folder = find(name, data_dir)
    if folder is None:
        if name in GROUPS:
            first, number = f"{name}/{GROUPS[name][0]}", len(GROUPS[name])
            raise InputError(f"{name} is {number} collections, like {first}: evaluate takes them together")
        archive = name.split("/")[0]
        if archive not in MD5:
            raise InputError(
                f"no data set {name!r}: it is no folder with a corpus.jsonl, not under the data directory, and not one "
                f"of docs, {', '.join((*sorted(MD5), *OTHERS))}"
            )
        download(archive)
        folder = find(name)
        if folder is None:
            raise InputError(f"{cache_dir() / 'beir' / archive} has no {name}")
    return load_folder(folder, name if folder != Path(name) else None)


def own_mirrors() -> list[str]:
    """The URLs of $MOE_RETRIEVAL_MIRRORS, with {name}, separated by white space: where one looks first."""
    return os.environ.get("MOE_RETRIEVAL_MIRRORS", "").split()


def mirrors(name: str) -> list[str]:
    """Where NAME.zip may be."""
    return [url.replace("{name}", name) for url in (*own_mirrors(), *MIRRORS)]


def download(name: str) -> Path:
    """Fetches NAME.zip into the cache, checks and unpacks it."""
    return cached_folder(
        cache_dir() / "beir" / name, lambda draft: fetch_archive(name, mirrors(name), draft, MD5[name])
    )
