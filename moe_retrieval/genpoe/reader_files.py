"""A reader's files: the hypernetworks with their bases, and what language model they belong to; not that model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object, write, write_json
from moe_retrieval.genpoe.language_models import load_language
from moe_retrieval.genpoe.reader import Reader, ReaderSettings, language_fingerprint
from moe_retrieval.models import backbones
from moe_retrieval.models.precision import PRECISIONS, for_training

WEIGHTS = "experts.safetensors"
SETTINGS = "experts.json"

WITHOUT_EXPERTS = ReaderSettings((), rank=1, bottleneck=1, titles=False, passage_length=1)


def make_reader(name: str, settings: ReaderSettings, device: torch.device, precision: str) -> Reader:
    """With hypernetworks that have learned nothing, and a language model: a directory, or a repository of the hub."""
    model, tokenizer = load_language(backbones.find(name), PRECISIONS[precision])
    return Reader(model, tokenizer, settings, device, precision)


def save_reader(reader: Reader, folder: Path, name: str) -> None:
    """`name` is where the language model is."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in reader.networks.state_dict().items()}
    write(folder / WEIGHTS, to_safetensors(tensors))
    place = str(Path(name).resolve()) if Path(name).is_dir() else name
    origin = {"model": place, "language": language_fingerprint(reader.model)}
    write_json(folder / SETTINGS, origin | asdict(reader.settings))


def open_reader(
    name: str, device: torch.device, precision: str, language_model: str | None = None, needs_experts: bool = True
) -> Reader:
    """What training left, or where no experts are needed any language model; "auto" is the faster precision."""
    precision = for_training(device) if precision == "auto" else precision
    if needs_experts or (Path(name) / SETTINGS).is_file():
        return load_reader(Path(name), device, precision, language_model)
    return make_reader(name, WITHOUT_EXPERTS, device, precision)


def load_reader(folder: Path, device: torch.device, precision: str, name: str | None = None) -> Reader:
    """What training left; `name`: where the language model is, if not where it was."""
    if not (folder / SETTINGS).is_file():
        raise InputError(f"{folder} has no {SETTINGS}: expected what python -m moe_retrieval.genpoe.train left")
    found = read_object(folder / SETTINGS)
    origin, language = found.pop("model", None), found.pop("language", None)
    settings = _settings(found, folder / SETTINGS)
    reader = make_reader(name or str(origin), settings, device, precision)
    if language_fingerprint(reader.model) != language:
        raise InputError(f"{folder} has experts for the language model {origin}, and {name or origin} is another one")
    try:
        reader.networks.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # of safetensors, of the system, or of shapes
        raise InputError(f"{folder / WEIGHTS}: does not fit {SETTINGS}: {' '.join(str(error).split()):.200}") from None
    reader.networks.requires_grad_(False)
    return reader


def _settings(found: dict[str, Any], path: Path) -> ReaderSettings:
    layers = found.get("layers")
    try:
        return ReaderSettings(**{**found, "layers": tuple(layers) if isinstance(layers, list) else layers})
    except TypeError:
        expected = ", ".join(("model", "language", *ReaderSettings.__dataclass_fields__))
        raise InputError(f"{path}: expected {expected}") from None
