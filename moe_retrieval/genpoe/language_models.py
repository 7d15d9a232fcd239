"""Language models of transformers with their tokenizers, from a folder."""

from pathlib import Path
from typing import Any

import torch

from moe_retrieval.errors import InputError


def load_causal(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """-> a causal language model and its tokenizer"""
    return _load(folder, dtype, "AutoModelForCausalLM", "a causal language model")


def load_language(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """-> a language model, causal or from one text to another as T5 is, and its tokenizer"""
    from transformers import AutoConfig

    try:
        is_encoder_decoder = AutoConfig.from_pretrained(folder, local_files_only=True).is_encoder_decoder
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"model {folder}: not a language model: {_first_line(error):.200}") from None
    if is_encoder_decoder:
        return _load(folder, dtype, "AutoModelForSeq2SeqLM", "a language model")
    return load_causal(folder, dtype)


def positions(model: Any) -> int:
    """The most tokens that a model reads."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31 - 1


def _load(folder: Path, dtype: torch.dtype, kind: str, called: str) -> tuple[Any, Any]:
    import transformers
    from transformers.utils import logging as their_logging

    their_logging.disable_progress_bar()  # a command says itself how far it is
    try:
        model = getattr(transformers, kind).from_pretrained(folder, dtype=dtype, local_files_only=True)
        return model, transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:  # some tokenizers need a package
        raise InputError(f"model {folder}: not {called} with its tokenizer: {_first_line(error):.200}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
