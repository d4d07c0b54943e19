"""One worker of `truthgpt train` against the bare Hugging Face `Trainer`: same model, same data.

Both start from the same random Llama of 3.6 million parameters, read the same rows in the same
order and come to the same loss. The sides take turns, pair by pair, so that a noisy machine is
noisy for both: the bare trainer with its own defaults, and the loop that a worker runs, with its
monitor, events and curves. With `--ray` the second side is the whole command, in a worker of Ray
Train. Compared are tokens per second from the end of step `--warmup` to the end of the last, so
without starting; and tokens per second of CPU time, which a busy neighbor hardly changes.
With `--method dpo`, `kto` or `orpo` the bare side is trl's own trainer of that method.
Prints medians; writes `benchmarks/results/training.json`, of a method `training_<method>.json`.
Command: `python -m benchmarks.training --pairs 7`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from benchmarks.sides import ROOT
from deployments.vllm.tiny_model import VOCABULARY, make_tiny_llama
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.text import sft
from truthgpt_serve.training.text.models import load_tokenizer
from truthgpt_serve.training.text.preferences.experimental import load_orpo
from truthgpt_serve.training.text.prepare import train_table

RESULTS = ROOT / "benchmarks" / "results" / "training.json"
REQUIRED_RATIO = 0.97
SEED = 42
NUM_ROWS = 256
WORDS = ("river", "clock", "garden", "letter", "lantern", "finds", "keeps", "loses", "the", "a")


def write_model(folder: Path) -> None:
    """Writes a random Llama with the tokenizer of the tiny one."""
    make_tiny_llama(folder)
    set_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_rows(file: Path, method: str) -> None:
    """Writes texts of about a hundred tokens, or prompts with one or two answers of half of it."""
    draw = random.Random(SEED)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    def row(index: int) -> dict[str, Any]:
        if method == "sft":
            return {"text": text(60, 120)}
        prompt = f"{text(10, 20)} "
        if method == "kto":
            return {"prompt": prompt, "completion": text(30, 60), "label": index % 2 == 0}
        return {"prompt": prompt, "chosen": text(30, 60), "rejected": text(30, 60)}

    file.write_text("".join(json.dumps(row(index)) + "\n" for index in range(NUM_ROWS)))


def sections_of(folder: Path, num_steps: int, method: str) -> dict[str, Any]:
    """Returns the configuration that both sides follow."""
    return {
        "run_name": "benchmark",
        "seed": SEED,
        "model": {"name_or_path": str(folder / "model")},
        "training": {
            "method": method,
            "max_steps": num_steps,
            "train_batch_size": 4,
            "grad_accum_steps": 2,
            "checkpoint_every": 100_000,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
            "mixed_precision": "no",
        },
        "model_optim": {"gradient_checkpointing": False},
        "hardware": {"gpus": 0, "cpus": 1},
        "data": {"dataset": str(folder / "rows.jsonl"), "max_seq_len": 128},
    }


@dataclass
class Times:
    """When each step of a side ended, on the wall's clock and on the process's, and its loss."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    loss: float = 0.0

    def note(self) -> None:
        """Notes the end of a step."""
        self.wall_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())


class Clock(TrainerCallback):
    """Notes when each step of the bare trainer ended."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes the time."""
        self._times.note()


class TimedMonitor(RunMonitor):
    """Notes when each step of the loop ended."""

    def __init__(self, job: TrainingJob, times: Times) -> None:
        super().__init__(job)
        self._times = times

    def step(self, step: int, **values: Any) -> None:
        """Reports the step, and then notes the time."""
        super().step(step, **values)
        self._times.note()


def run_bare(job: TrainingJob) -> Times:
    """Trains with the bare trainer."""
    training = job.cfg["training"]
    arguments = TrainingArguments(
        output_dir=str(job.folder / "bare"),
        max_steps=training["max_steps"],
        per_device_train_batch_size=training["train_batch_size"],
        gradient_accumulation_steps=training["grad_accum_steps"],
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["scheduler"],
        seed=SEED,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    times = Times()
    tokenizer = load_tokenizer(job.cfg)
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(job.cfg["model"]["name_or_path"]),
        args=arguments,
        train_dataset=train_table(job),
        data_collator=sft.PadBatch(tokenizer.pad_token_id),
        callbacks=[Clock(times)],
    )
    times.loss = trainer.train().training_loss
    return times


def run_bare_trl(job: TrainingJob) -> Times:
    """Trains with trl's own trainer of the method, on the same rows."""
    import trl

    training, method = job.cfg["training"], job.cfg["training"]["method"]
    pairs = {"dpo": (trl.DPOConfig, trl.DPOTrainer), "kto": (trl.KTOConfig, trl.KTOTrainer)}
    config_class, trainer_class = load_orpo() if method == "orpo" else pairs[method]
    arguments = config_class(
        output_dir=str(job.folder / "bare"),
        max_steps=training["max_steps"],
        per_device_train_batch_size=training["train_batch_size"],
        gradient_accumulation_steps=training["grad_accum_steps"],
        learning_rate=training["learning_rate"],
        lr_scheduler_type=training["scheduler"],
        max_length=job.cfg["data"]["max_seq_len"],
        seed=SEED,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    times = Times()
    name = job.cfg["model"]["name_or_path"]
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(name, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_json(job.cfg["data"]["dataset"]),
        processing_class=load_tokenizer(job.cfg),
        callbacks=[Clock(times)],
    )
    times.loss = trainer.train().training_loss
    return times


def run_loop(job: TrainingJob) -> Times:
    """Trains with the loop that a worker runs, in this process."""
    times = Times()
    with TimedMonitor(job, times) as monitor:
        load_loop(find_loop(job.cfg)).train(job, monitor)
    return times


def run_command(job: TrainingJob, folder: Path, sections: dict[str, Any]) -> Times:
    """Trains with the whole command and a Ray of its own; its CPU time is not known here."""
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(sections))
    program = Path(sys.executable).parent / "truthgpt"
    subprocess.run(
        [program, "train", str(file), "--out", str(job.folder)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        check=True,
        capture_output=True,
        timeout=600,
    )
    return Times(wall_s=[step["at"] for step in steps_of(job.folder)])


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Returns what a run has recorded of each step."""
    return [event for event in read_events(folder) if event["event"] == "step"]


def compare(job: TrainingJob, warmup: int, ours: Times, bare: Times) -> dict[str, float]:
    """Returns the rates of one pair, after checking that both sides have learned the same."""
    steps = steps_of(job.folder)
    mean = statistics.fmean(step["loss"] for step in steps)
    if abs(mean - bare.loss) > 1e-4 * bare.loss:
        raise RuntimeError(f"the sides differ: mean loss {mean} here, {bare.loss} bare")
    num_tokens = sum(step["num_units"] for step in steps[warmup:])

    def rate(ends: list[float]) -> float:
        return num_tokens / (ends[-1] - ends[warmup - 1]) if ends else 0.0

    return {
        "bare": rate(bare.wall_s),
        "ours": rate(ours.wall_s),
        "bare_cpu": rate(bare.cpu_s),
        "ours_cpu": rate(ours.cpu_s),
    }


def summarize(pairs: list[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the medians."""
    ratios = [pair["ours"] / pair["bare"] for pair in pairs]
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.training --method {options.method}"
        + (" --ray" if options.ray else ""),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "transformers", "ray")},
        "pairs": options.pairs,
        "steps": options.steps,
        "tokens_per_second": {
            side: round(statistics.median(pair[side] for pair in pairs))
            for side in ("bare", "ours")
        },
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "required": REQUIRED_RATIO,
    }
    if not options.ray:
        cpu = [pair["ours_cpu"] / pair["bare_cpu"] for pair in pairs]
        report["ratio_cpu"] = round(statistics.median(cpu), 3)
    return report


def main() -> None:
    """Alternates between the two sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="compare the whole command")
    parser.add_argument("--method", choices=["sft", "dpo", "kto", "orpo"], default="sft")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    named = RESULTS.with_name(f"training_{options.method}.json")
    out = options.out or (RESULTS if options.method == "sft" else named)
    torch.set_num_threads(1)
    pairs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_model(folder / "model")
        write_rows(folder / "rows.jsonl", options.method)
        sections = sections_of(folder, options.steps, options.method)
        cfg = load_model_config(sections, place="benchmark").to_cfg()
        for number in range(options.pairs):
            job = TrainingJob(cfg, folder / f"run-{number}", None, 1)
            ours = run_command(job, folder, sections) if options.ray else None
            load_loop(find_loop(cfg)).prepare(job)
            if number % 2 and not options.ray:
                ours = run_loop(job)
            bare = run_bare(job) if options.method == "sft" else run_bare_trl(job)
            pairs.append(compare(job, options.warmup, ours or run_loop(job), bare))
            print({name: round(value) for name, value in pairs[-1].items()})
    report = summarize(pairs, options)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(report["ratio"] < REQUIRED_RATIO)


if __name__ == "__main__":
    main()
