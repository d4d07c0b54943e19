"""Hashes of tensor contents, so that two requests find equal tensors without a GPU sync."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from typing import Any

import torch

DIGEST_BYTES = 16
"""A collision would mix two requests' position ids: at 128 bits it does not happen."""


class Digests:
    """Hashes each tensor object once for as long as it lives unchanged.

    Holds tensors by weak reference only and at most `max_entries` of them, the least recently used
    dropped first. For one thread. A write that torch does not count (through numpy or `.data`) goes
    unnoticed; pipelines make their position ids once, before the first denoising step.
    """

    def __init__(self, max_entries: int = 4096) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}: it must be at least 1")
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[int, bool], tuple[Any, tuple[int, int], bytes]] = (
            OrderedDict()
        )

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, tensor: torch.Tensor, *, first_row: bool = False) -> bytes:
        """Returns a hash of the tensor's bytes, or of its row 0 alone, without shape and dtype.

        Waits for the device when the tensor is not on the CPU and has not been seen before.
        """
        state = _state(tensor)
        if state is None:
            return _hash(tensor[0] if first_row else tensor)
        key = (id(tensor), first_row)
        entry = self._entries.get(key)
        if entry is not None and entry[0]() is tensor and entry[1] == state:
            self._entries.move_to_end(key)
            return entry[2]
        digest = _hash(tensor[0] if first_row else tensor)
        self._entries[key] = (weakref.ref(tensor, self._forget(key)), state, digest)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return digest

    def _forget(self, key: tuple[int, bool]) -> Any:
        # Bound to the table, not to this object, and checked by identity: by the time the callback
        # runs, another tensor may have taken the id.
        entries = self._entries

        def forget(reference: Any) -> None:
            entry = entries.get(key)
            if entry is not None and entry[0] is reference:
                del entries[key]

        return forget


def _state(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Returns what changes when torch writes to the tensor; None where torch does not count."""
    if tensor.is_inference():
        return None
    return tensor._version, tensor.data_ptr()


def _hash(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(memoryview(flat.numpy()), digest_size=DIGEST_BYTES).digest()
