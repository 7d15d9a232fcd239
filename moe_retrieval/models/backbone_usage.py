"""How an encoder that others trained is to be used: what its files say, and what is known of its name."""

import re
from dataclasses import replace
from pathlib import Path

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_json, read_object
from moe_retrieval.models.pooling import POOLINGS
from moe_retrieval.models.usage import Usage

SEARCHING = "Represent this sentence for searching relevant passages: "

KNOWN_USAGE = (
    (r"\be5-(small|base|large)", Usage("mean", True, "query: ", "passage: ")),
    (r"\bbge-(small|base|large)-en", Usage("cls", True, SEARCHING)),
    (r"\b(snowflake-arctic-embed|mxbai-embed)", Usage("cls", True, SEARCHING)),
    (r"\bcontriever", Usage("mean", False)),
    (r"\bdpr\b|\bdpr-", Usage("cls", False)),
)
"""Backbones whose files do not say, or did not always say, how to use them; a name that matches decides."""


def read_usage(folder: Path, name: str = "") -> Usage:
    """What the directory says (sentence-transformers' files); where it is silent, what is known of its name."""
    config = read_object(folder / "config.json")
    names = " ".join([name, folder.resolve().name, str(config.get("_name_or_path", "")), str(config.get("model_type"))])
    usage = next((known for pattern, known in KNOWN_USAGE if re.search(pattern, names, re.IGNORECASE)), Usage())
    if (folder / "modules.json").is_file():
        kinds = _read_kinds(folder / "modules.json")
        if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise InputError(f"model {folder}: modules.json has {', '.join(sorted(unknown))}, which is not supported")
        usage = replace(usage, normalize="Normalize" in kinds)
    if (folder / "1_Pooling" / "config.json").is_file():
        usage = replace(usage, pooling=_read_pooling(folder / "1_Pooling" / "config.json"))
    if (folder / "sentence_bert_config.json").is_file():
        longest = _read_length(folder / "sentence_bert_config.json")
        usage = usage.changed(query_length=longest, doc_length=longest)
    if (folder / "config_sentence_transformers.json").is_file():
        prompts = _read_prompts(folder / "config_sentence_transformers.json")
        document = next(
            (prompts[key] for key in ("document", "passage", "corpus") if prompts.get(key)), usage.doc_prompt
        )
        usage = replace(usage, query_prompt=prompts.get("query") or usage.query_prompt, doc_prompt=document)
    return usage


def _read_kinds(path: Path) -> list[str]:
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and "type" in module for module in modules):
        raise InputError(f"{path}: expected a list of modules with a type, got {modules!r:.40}")
    return [str(module["type"]).rsplit(".", 1)[-1] for module in modules]


def _read_prompts(path: Path) -> dict[str, str]:
    prompts = read_object(path).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise InputError(f"{path}: expected prompts that are texts by name, got {prompts!r:.40}")
    return prompts


def _read_length(path: Path) -> int | None:
    longest = read_object(path).get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise InputError(f"{path}: expected a max_seq_length that is an int of at least 1, got {longest!r:.40}")
    return longest


def _read_pooling(path: Path) -> str:
    config = read_object(path)
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [ours for theirs, ours in modes.items() if config.get(theirs)]
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        chosen = named if isinstance(named, list) else [named]
    pooling = "-".join(map(str, chosen))
    if pooling not in POOLINGS:
        raise InputError(
            f"{path}: pooling by {pooling or 'nothing'} is not supported; expected mean, cls, max or mean-max"
        )
    return pooling
