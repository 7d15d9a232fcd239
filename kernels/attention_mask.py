"""Which tokens an attention mask keeps.

For B texts of L tokens, Q queries; a token that no query attends to is padding:

    None                                            no padding
    2-d bool, int [B, L]                            kept where it is not 0 (Longformer's 2 is a token, too)
    2-d float [B, L] of ones and zeros              kept where it is 1
    2-d numbers that are added to scores [B, L]     kept above NO_ATTENTION (Longformer's are -3e38, 0 and 3e38)
    4-d [B, heads or 1, Q or 1, L], 3-d [B, Q, L]   bool, int: true = attend; float: added to scores
    3-d [B * heads, Q, L]                           the same
    BlockMask of flex_attention                     what its mask_mod says

Zeros alone, as floats, are added to scores: a token that is taken for padding would change the output, and padding that
is taken for a token does not. B may be 1 in a mask. Where keys and tokens differ in number (a cache), every token is
kept. Anything else raises.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NO_ATTENTION = -1e3
"""Added to a score, this or less means that a key is not attended to."""


class _Memo(threading.local):
    """The last mask of a thread, and what it keeps: every layer of a forward gets the same one."""

    mask: Callable[[], Any] = staticmethod(lambda: None)
    version: tuple[Any, ...] = ()
    kept_BL: Tensor | None = None


_memo = _Memo()


def kept_tokens(mask: Any, texts: int, length: int) -> Tensor | None:
    """-> [B or 1, L] bool; None where every token is kept."""
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        _check_shape(mask, texts)
    else:
        _check_block_mask(mask)
    if mask.shape[-1] != length:
        return None
    if torch.compiler.is_compiling() or (isinstance(mask, Tensor) and (mask.ndim == 2 or mask.is_inference())):
        return _read(mask, texts)
    # What is written to a mask in place counts up its version.
    version = getattr(mask, "_version", 0), texts, torch.is_inference_mode_enabled()
    if _memo.mask() is not mask or _memo.version != version:
        _memo.mask, _memo.version, _memo.kept_BL = weakref.ref(mask), version, _read(mask, texts)
    return _memo.kept_BL


def _check_shape(mask: Tensor, texts: int) -> None:
    heads = mask.ndim == 3 and mask.shape[0] > 0 and texts > 0 and mask.shape[0] % texts == 0
    if mask.ndim not in (2, 3, 4) or not (mask.shape[0] in (1, texts) or heads):
        raise ValueError(
            f"attention_mask must be [{texts}, tokens], [{texts}, queries, tokens] or [{texts}, heads, queries, "
            f"tokens] for {texts} texts, so that the experts can tell padding; got shape {tuple(mask.shape)}"
        )


def _check_block_mask(mask: Any) -> None:
    from torch.nn.attention.flex_attention import BlockMask

    if not isinstance(mask, BlockMask):
        raise TypeError(
            "attention_mask must be None, a tensor or a BlockMask, so that the experts can tell padding; "
            f"got {type(mask).__name__}"
        )


def _read(mask: Any, texts: int) -> Tensor:
    if not isinstance(mask, Tensor):
        from torch.nn.attention.flex_attention import create_mask

        texts, heads, queries, keys = mask.shape
        mask = create_mask(mask.mask_mod, texts, heads, queries, keys, device=mask.kv_num_blocks.device)
    if mask.ndim == 2:
        return _read_2d(mask)
    attended = mask > NO_ATTENTION if mask.is_floating_point() else _read_2d(mask)
    if mask.ndim == 3:
        attended = attended.unflatten(0, (1 if mask.shape[0] == 1 else texts, -1))
    return attended.any(dim=2).any(dim=1)


def _read_2d(mask: Tensor) -> Tensor:
    """Without a branch on values: the mask may be on a GPU, or be traced."""
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        says_keep = ((mask == 0) | (mask == 1)).all() & (mask == 1).any()
    else:
        says_keep = (mask >= 0).all()
    return torch.where(says_keep, mask != 0, mask > NO_ATTENTION)
