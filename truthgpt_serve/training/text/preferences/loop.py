"""Learning from what is said of answers: the loop around trl's trainers."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.config.training.methods import method_of, rows_per_example
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.generation.texts import SampleCallback
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import Facts, count_steps
from truthgpt_serve.training.text import prepare as tables
from truthgpt_serve.training.text.models import adapter_config, load_base_model, load_tokenizer
from truthgpt_serve.training.text.preferences.reward_model import check_scorer
from truthgpt_serve.training.text.trainer import Course


def prepare(job: TrainingJob) -> Facts:
    """Checks what only these methods need, and prepares the data; see `text.prepare`.

    Raises:
        TrainingError: The method cannot run with this configuration or data.
    """
    training, data = job.cfg["training"], job.cfg["data"]
    check_scorer(job.cfg)
    if not method_of(job.cfg).evaluates and (data["eval_dataset"] or data["eval_share"]):
        fix = "remove data.eval_dataset and data.eval_share"
        raise TrainingError(f"{training['method']} has no loss to evaluate ({fix}): watch reward")
    if training["method"] == "kto" and training["train_batch_size"] < 2:
        message = "training.train_batch_size: kto compares the answers of a batch"
        raise TrainingError(f"{message} (write at least 2; grad_accum_steps does not help)")
    facts = tables.prepare(job)
    if facts.rows_per_example > 1:
        _check_group(job, facts)
    return facts


def _check_group(job: TrainingJob, facts: Facts) -> None:
    training, group = job.cfg["training"], job.cfg["training"]["num_generations"]
    rows = training["train_batch_size"] * training["grad_accum_steps"] * job.num_workers
    if rows % group:
        raise TrainingError(
            f"a step has {rows} answers (train_batch_size x grad_accum_steps x workers), which is "
            f"no multiple of training.num_generations {group} (change one of them)"
        )
    if facts.num_examples < rows // group:
        raise TrainingError(
            f"a step needs {rows // group} prompts, the data has {facts.num_examples} "
            "(lower training.train_batch_size or grad_accum_steps)"
        )


def train(job: TrainingJob, monitor: Monitor) -> None:
    """Trains by `training.method`; see `Monitor` for what is reported.

    Raises:
        TrainingError: The loss is no number, the disk is full, or the model cannot be trained.
    """
    # In a worker only: trl's trainers import vLLM, which imports Ray, and the command prepares the
    # data before it has set how a Ray of its own is started.
    from truthgpt_serve.training.text.preferences.trainers import CREATE

    cfg = job.cfg
    examples, held_out = tables.train_table(job), tables.eval_table(job)
    steps = count_steps(
        cfg["training"],
        len(examples),
        job.num_workers,
        rows_per_example=rows_per_example(cfg["training"]),
        drops_rest=method_of(cfg).samples,
    )
    tokenizer = load_tokenizer(cfg)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model, dtype = load_base_model(cfg)
    given: dict[str, Any] = {
        "model": model,
        "train_dataset": examples,
        "eval_dataset": held_out,
        "processing_class": tokenizer,
        "peft_config": adapter_config(cfg) if cfg["model_optim"]["lora"]["enabled"] else None,
    }
    trainer = CREATE[cfg["training"]["method"]](job, steps, given)
    trainer.follow(Course(job, monitor, steps, evaluates=held_out is not None))
    if cfg["training"]["samples"] is not None:
        trainer.add_callback(SampleCallback(job, monitor, steps, load_tokenizer(cfg)))
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if not trainer.course.stopped:
        trainer.write_result(load_tokenizer(cfg), dtype)
