"""Weights in 32, 16 and 8 bits on a CPU with `hf-transformers`: memory, and tokens a second.

Command: `python -m benchmarks.quantization`. A Llama of about 100 million random weights is loaded
by the family's own code, each time in a process of its own; the kinds take turns, medians count.
Decoding is transformers' greedy `generate`, for one text and for eight together. Writes
`benchmarks/results/quantization.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from benchmarks.sides import ROOT
from deployments.hf_transformers.loading import Source, load_model

KINDS: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "torchao-int8, bfloat16": ("bfloat16", "torchao-int8"),
    "torchao-int8, float32": ("float32", "torchao-int8"),
}
"""What `model_optim` says in each: `dtype` and `quantization`."""
SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
BATCHES = (1, 8)
NUM_PROMPT_TOKENS = 32
TIMEOUT_S = 300


def make_model(folder: Path) -> int:
    """Writes the model; returns the number of its weights."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def resident_bytes() -> int:
    """Returns the memory of this process, after what it has freed went back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def stored_bytes(model: Any) -> int:
    """Returns the bytes of the weights as they are kept.

    transformers' own count takes a quantized weight for one of the format that it stands for.
    """
    return sum(_bytes(weight) for weight in [*model.parameters(), *model.buffers()])


def _bytes(tensor: torch.Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(_bytes(getattr(tensor, name)) for name in names)


def measure(folder: Path, kind: str, num_tokens: int, threads: int) -> dict[str, float]:
    """Loads the model in this process; returns its memory in MB and its tokens a second."""
    dtype, quantization = KINDS[kind]
    torch.set_num_threads(threads)
    source = Source(str(folder), None, torch.device("cpu"), dtype, quantization)
    config = transformers.AutoConfig.from_pretrained(folder)
    before = resident_bytes()
    model = load_model(transformers.AutoModelForCausalLM, source, config)
    found = {"weights_mb": stored_bytes(model) / 1e6}
    ids = torch.arange(max(BATCHES) * NUM_PROMPT_TOKENS).reshape(max(BATCHES), -1)
    with torch.inference_mode():
        decode(model, ids[:1], 2)
        found["resident_mb"] = (resident_bytes() - before) / 1e6
        for size in BATCHES:
            decode(model, ids[:size], 2)
            seconds = decode(model, ids[:size], num_tokens)
            found[f"tokens_per_s_{size}"] = size * num_tokens / seconds
    return found


def decode(model: Any, ids: torch.Tensor, num_tokens: int) -> float:
    """Returns the seconds that so many tokens took, the prompt included."""
    started_s = time.perf_counter()
    options = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "do_sample": False}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return time.perf_counter() - started_s


def run(folder: Path, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Does the same in a process of its own."""
    arguments = ["--child", kind, "--folder", str(folder)]
    arguments += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantization", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures each kind in turn, some rounds of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        found = measure(options.folder, options.child, options.tokens, options.threads)
        print(json.dumps(found))
        return
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        num_weights = make_model(Path(name))
        rounds = [
            {kind: run(Path(name), kind, options) for kind in KINDS} for _ in range(options.rounds)
        ]
    report: dict[str, Any] = {
        "weights": num_weights,
        "threads": options.threads,
        "rounds": options.rounds,
        "tokens": options.tokens,
        "load_average_before_and_after": [round(each, 1) for each in (busy, os.getloadavg()[0])],
        "torch": torch.__version__,
        "medians": {
            kind: {
                key: round(statistics.median(each[kind][key] for each in rounds), 1)
                for key in rounds[0][kind]
            }
            for kind in KINDS
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    (options.out / "quantization.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
