"""Command line: `python -m tests.fuzz.images --pipeline sdxl --requests 200 --seed 1`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import diffusers
import torch

from tests.fuzz.images.compare import PSNR_FLOOR, run_fuzz
from tests.support.tiny_images import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 after a mismatch, which it prints with its seed and request."""
    parser = argparse.ArgumentParser(description="Compare the step engine with stock pipelines.")
    parser.add_argument("--pipeline", default="sdxl", choices=(*KINDS, "all"))
    parser.add_argument("--requests", type=int, default=200, help="random requests for each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--psnr-floor", type=float, default=PSNR_FLOOR, help="dB, for bfloat16")
    parsed = parser.parse_args(arguments)
    # Hundreds of remarks on prompts cut and guidance left out, all of them meant.
    diffusers.utils.logging.set_verbosity_error()
    for kind in KINDS if parsed.pipeline == "all" else (parsed.pipeline,):
        started = time.monotonic()
        report = run_fuzz(
            kind,
            parsed.requests,
            parsed.seed,
            dtype=getattr(torch, parsed.dtype),
            psnr_floor=parsed.psnr_floor,
        )
        print(
            f"{kind}: {report.num_compared} compared, {report.num_cancelled} cancelled, largest "
            f"difference {report.worst_difference:.2e}, lowest PSNR {report.worst_psnr:.1f} dB, "
            f"{report.calls} denoiser calls in {report.forwards} forwards, "
            f"{time.monotonic() - started:.1f} s",
            flush=True,
        )
        if report.fault is not None:
            print(f"{kind}: MISMATCH, {report.fault}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
