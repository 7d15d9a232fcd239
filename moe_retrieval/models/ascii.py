"""BERT's normalizer for ASCII text, which needs no table of Unicode: a third of a tokenizer's time."""

import json
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any

SPACES = "\t\n\r"
CONTROLS = bytes(code for code in (*range(32), 127) if chr(code) not in SPACES)
MOST = 8
"""Special tokens, each of which is looked for in each text"""

WORD = 16
"""Characters: more than a text's words have, at the mean"""


@dataclass(frozen=True)
class AsciiNormalizer:
    """What a BERT tokenizer makes of ASCII text before it looks for words, and the rest of that tokenizer."""

    table: bytes
    special: tuple[str, ...]
    rest: str
    """The definition of a tokenizer for what `normalize` returns."""

    @classmethod
    def of(cls, definition: str) -> "AsciiNormalizer | None":
        """For the text of a tokenizer.json; None if that is not BERT's, or has many or unusual special tokens."""
        parts = json.loads(definition)
        normalizer, added = parts["normalizer"] or {}, parts["added_tokens"]
        kinds = [(parts[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or not normalizer["clean_text"]:
            return None
        special = tuple(token["content"] for token in added)
        in_a_word = all(name.split() == [name] for name in special)
        if len(added) > MOST or not in_a_word or any(token["normalized"] for token in added):
            return None
        letters = (ascii_uppercase, ascii_lowercase) if normalizer["lowercase"] else ("", "")
        table = bytes.maketrans((SPACES + letters[0]).encode(), (" " * len(SPACES) + letters[1]).encode())
        rest: dict[str, Any] = parts | {"normalizer": None, "added_tokens": []}
        return cls(table, special, json.dumps(rest))

    def normalize(self, text: str, max_words: int) -> str | None:
        """Its first `max_words` words and perhaps more; None if they are not ASCII, or have a special token in them.

        A tokenizer splits all of a text before it cuts its tokens, which are as many as the words or more.
        """
        head = text[: WORD * max_words]
        clean = self._clean(head)
        if clean is None or len(head) == len(text):
            return clean
        words = clean.split(None, max_words)
        return " ".join(words[:max_words]) if len(words) > max_words else self._clean(text)

    def _clean(self, text: str) -> str | None:
        if not text.isascii() or any(name in text for name in self.special):
            return None
        return text.encode().translate(self.table, CONTROLS).decode()
