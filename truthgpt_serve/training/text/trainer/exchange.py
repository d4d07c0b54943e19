"""How workers tell each other what they did in a step."""

from __future__ import annotations

from typing import Any

import torch

from truthgpt_serve.training.job import WorkerUse
from truthgpt_serve.training.memory.use import peak_memory


def exchange_use(num_units: int, wish: bool, number: int, device: Any) -> tuple[bool, Any]:
    """Tells all workers what this one did in a step, and whether it was asked to stop.

    Args:
        num_units: What it has read.
        wish: Whether it was asked to stop.
        number: Of workers, at least 2, each of which calls this.
        device: Of this worker.

    Returns:
        Whether any was asked to stop; and the use of each by rank, a list of `WorkerUse`.
    """
    own = torch.tensor([num_units, int(wish), peak_memory()], dtype=torch.int64, device=device)
    found = [torch.empty_like(own) for _ in range(number)]
    torch.distributed.all_gather(found, own)
    rows = torch.stack(found).tolist()
    return any(row[1] for row in rows), [WorkerUse(units, memory) for units, _, memory in rows]
