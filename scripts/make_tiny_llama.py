"""Command for `deployments.vllm.tiny_model`, the small model that `make serve` starts with.

Knows nothing of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deployments.vllm.tiny_model import main

if __name__ == "__main__":
    main()
