"""Text to token ids: a checkpoint's own tokenizer, or one trained on a corpus."""

import json
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenizers import Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from moe_retrieval.errors import InputError
from moe_retrieval.files import read_object
from moe_retrieval.models.ascii import AsciiNormalizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
"""Files beside tokenizer.json that other libraries read: copied as they are"""


class Tokenizer:
    def __init__(self, definition: str, source: Path | None = None):
        """`definition` is the text of a tokenizer.json; `source` the folder that its companions are copied from."""
        self.definition = definition
        self.source = source
        self._backend = Backend.from_str(definition)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._truncating: dict[tuple[int, bool], Backend] = {}

    def encode_batch(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Ids of each text, special tokens included, at most max_length; in parallel over the cores."""
        return self.encode_and_count(texts, max_length)[0]

    def encode_and_count(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """As `encode_batch`, and how many texts had more."""
        least = self._backend.num_special_tokens_to_add(is_pair=False) + 1
        if max_length < least:
            raise ValueError(f"max_length must be at least {least}, got {max_length}")
        if self._ascii is None:
            return _ids_and_cut(self._truncated_to(max_length).encode_batch_fast(list(texts)), max_length)
        after_ascii = self._truncated_to(max_length, self._ascii)
        ascii_texts = [self._ascii.normalize(text, max_length) for text in texts]
        others = [text for text, found in zip(texts, ascii_texts) if found is None]
        encoded = iter(self._truncated_to(max_length).encode_batch_fast(others) if others else ())
        encoded_ascii = iter(after_ascii.encode_batch_fast([found for found in ascii_texts if found is not None]))
        return _ids_and_cut([next(encoded if found is None else encoded_ascii) for found in ascii_texts], max_length)

    @cached_property
    def _ascii(self) -> AsciiNormalizer | None:
        """Made with the first batch: it reads the whole definition, a cost that loading and saving need not have."""
        return AsciiNormalizer.of(self._backend.to_str())

    def _truncated_to(self, max_length: int, normalizer: AsciiNormalizer | None = None) -> Backend:
        """For any text, or for what the normalizer returns.

        One copy for each: changing the limit of a tokenizer that another thread is using would be a race.
        """
        key = max_length, normalizer is not None
        if key not in self._truncating:
            copy = Backend.from_str(normalizer.rest if normalizer else self._backend.to_str())
            copy.enable_truncation(max_length)
            self._truncating[key] = copy
        return self._truncating[key]

    @property
    def vocab_size(self) -> int:
        """How many rows an embedding needs: the largest id + 1"""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def token_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that there is."""
        return next((found for name in names if (found := self._backend.token_to_id(name)) is not None), None)

    def token(self, token_id: int) -> str:
        """What the vocabulary calls it: in WordPiece ##ing continues a word, in byte-level BPE Ġthe begins one."""
        return self._backend.id_to_token(token_id) or f"[{token_id}]"

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Token ids -> the text that they stand for, without special tokens: what was read of each text."""
        return self._backend.decode_batch([list(sequence) for sequence in sequences])

    @property
    def fingerprint(self) -> str:
        return blake2b(self.definition.encode(), digest_size=8).hexdigest()

    def save(self, path: str | Path) -> None:
        """Into a folder, with what AutoTokenizer needs beside it."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.definition, encoding="utf-8")
        companions = [self.source / name for name in COMPANIONS] if self.source else []
        for companion in companions:
            if companion.is_file() and companion.resolve() != (folder / companion.name).resolve():
                shutil.copyfile(companion, folder / companion.name)
        if not (folder / "tokenizer_config.json").is_file():
            roles = ("pad", "unk", "cls", "sep", "mask")
            config = {f"{role}_token": name for role, name in zip(roles, SPECIAL) if self.token_id(name) is not None}
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _ids_and_cut(encodings: Sequence[Encoding], max_length: int) -> tuple[list[list[int]], int]:
    ids = [encoding.ids for encoding in encodings]
    return ids, sum(len(row) == max_length and bool(encoding.overflowing) for row, encoding in zip(ids, encodings))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer.json of a folder (or that file itself); else BERT's WordPiece over the folder's vocab.txt."""
    path = Path(path)
    folder = path.parent if path.is_file() else path
    file = path if path.is_file() else folder / "tokenizer.json"
    if file.is_file():
        try:
            return Tokenizer(file.read_text(encoding="utf-8"), folder)
        except Exception as error:  # the library raises nothing narrower
            reason = " ".join(str(error).split())
            raise InputError(f"{file}: not a tokenizer that the tokenizers library reads ({reason:.200})") from None
    if not (folder / "vocab.txt").is_file():
        raise InputError(f"{folder}: has neither a tokenizer.json nor a vocab.txt")
    config = folder / "tokenizer_config.json"
    lowercase = bool(read_object(config).get("do_lower_case", True)) if config.is_file() else True
    try:
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {folder / 'vocab.txt'}: {error}") from None
    vocab = {word.rstrip("\r"): row for row, word in enumerate(words) if row + 1 < len(words) or word}
    missing = [name for name in SPECIAL[:4] if name not in vocab]
    if missing:
        raise InputError(f"{folder / 'vocab.txt'}: has no {', '.join(missing)}")
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    _as_bert(backend, lowercase)
    return Tokenizer(backend.to_str(), folder)


def train_tokenizer(texts: Iterable[str], vocab_size: int, kind: str = "wordpiece") -> Tokenizer:
    """WordPiece as BERT has it (lower case), or byte-level BPE (every text has tokens, none is unknown)."""
    if kind not in ("wordpiece", "bpe"):
        raise ValueError(f"kind must be wordpiece or bpe, got {kind!r}")
    if vocab_size < 300:
        raise ValueError(f"vocab_size must be at least 300, got {vocab_size}")
    backend = _train_wordpiece(texts, vocab_size) if kind == "wordpiece" else _train_bpe(texts, vocab_size)
    _frame(backend)
    return Tokenizer(backend.to_str())


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _merge(backend, texts, vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    return backend


START = "\u2581"


def _train_wordpiece(texts: Iterable[str], vocab_size: int) -> Backend:
    """The library's own trainer numbers its pieces in the order of a hash table: other ids, and with equal counts
    other pieces, in every process. So the pieces are found by BPE over words that begin with `START`, which is
    deterministic, and then written as WordPiece does: a piece without `START` continues a word and gets "##".
    """
    merging = Backend(models.BPE())
    merging.normalizer = normalizers.BertNormalizer(lowercase=True)
    start = pre_tokenizers.Metaspace(replacement=START, prepend_scheme="always", split=False)
    merging.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), start])
    _merge(merging, texts, vocab_size)
    pieces = sorted(merging.get_vocab(), key=merging.get_vocab().__getitem__)
    letters = [piece for piece in pieces if len(piece) == 1 and piece != START]
    longer = [piece[1:] if piece.startswith(START) else f"##{piece}" for piece in pieces if len(piece) > 1]
    words = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *longer])
    backend = Backend(
        models.WordPiece({word: row for row, word in enumerate([*words][:vocab_size])}, unk_token="[UNK]")
    )
    _as_bert(backend, lowercase=True)
    return backend


def _merge(backend: Backend, texts: Iterable[str], vocab_size: int, **options: Any) -> None:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    backend.train_from_iterator(texts, trainer)


def _as_bert(backend: Backend, lowercase: bool) -> None:
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    if backend.token_to_id("[CLS]") is not None:
        _frame(backend)


def _frame(backend: Backend) -> None:
    """[CLS] text [SEP]; the special tokens are not split where a text names them."""
    backend.add_special_tokens([name for name in SPECIAL if backend.token_to_id(name) is not None])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
