"""What a worker has taken of its machine so far."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """Returns the most bytes that this worker has held: on its GPU, or else of memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
