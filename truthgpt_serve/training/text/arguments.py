"""From the configuration to the arguments of a trainer of transformers or trl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.memory.optimizers import check_optimizer
from truthgpt_serve.training.plan import StepCounts
from truthgpt_serve.training.run_folder import CHECKPOINTS
from truthgpt_serve.training.text.models import is_on_cpu

PREFETCH = 4
"""Batches that each loader process reads ahead."""


def trainer_arguments(job: TrainingJob, steps: StepCounts) -> dict[str, Any]:
    """Returns the keyword arguments that `TrainingArguments` and trl's configurations share.

    Saving and evaluating are left to `CourseCallback`: both must happen at the same step, the
    evaluation first, or a resumed run would not repeat the random numbers of an uninterrupted one.

    Raises:
        TrainingError: fp16 on a CPU, or an optimizer that cannot run here.
    """
    cfg = job.cfg
    training, optim = cfg["training"], cfg["model_optim"]
    on_cpu = is_on_cpu(cfg)
    if on_cpu and training["mixed_precision"] == "fp16":
        fix = "write bf16 or no; fp16 needs a GPU"
        raise TrainingError(f"training.mixed_precision: fp16 does not work on CPU ({fix})")
    return {
        "output_dir": str(job.folder / CHECKPOINTS),
        "max_steps": steps.total,
        "per_device_train_batch_size": training["train_batch_size"],
        "per_device_eval_batch_size": training["eval_batch_size"],
        "gradient_accumulation_steps": training["grad_accum_steps"],
        "learning_rate": training["learning_rate"],
        "optim": check_optimizer(training, on_cpu=on_cpu).trainer_name,
        "weight_decay": training["weight_decay"],
        "lr_scheduler_type": training["scheduler"],
        "warmup_steps": steps.warmup,
        "max_grad_norm": training["max_grad_norm"],
        "bf16": training["mixed_precision"] == "bf16",
        "fp16": training["mixed_precision"] == "fp16",
        "gradient_checkpointing": optim["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "torch_compile": optim["compile"],
        "seed": cfg["seed"],
        "data_seed": cfg["seed"],
        "use_cpu": on_cpu,
        "ddp_find_unused_parameters": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "logging_steps": 1,  # the monitor sees every step; it thins out what is recorded
        "logging_nan_inf_filter": False,  # it would hide what the monitor looks for
        "report_to": "none",
        "disable_tqdm": True,
        **_loader(cfg["data"]["num_loader_workers"], on_cpu=on_cpu),
    }


def _loader(num_workers: int, *, on_cpu: bool) -> Mapping[str, Any]:
    settings: dict[str, Any] = {
        "dataloader_num_workers": num_workers,
        "dataloader_pin_memory": torch.cuda.is_available() and not on_cpu,
    }
    if num_workers:
        settings["dataloader_persistent_workers"] = True
        settings["dataloader_prefetch_factor"] = PREFETCH
    return settings
