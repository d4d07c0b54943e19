"""Learning from preferences: the loops around trl's trainers for `dpo` and `grpo`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.config.training.methods import method_of, rows_per_example
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import Facts, StepCounts, count_steps
from truthgpt_serve.training.text import prepare as tables
from truthgpt_serve.training.text.arguments import trainer_arguments
from truthgpt_serve.training.text.messages import TOOLS_FIELD
from truthgpt_serve.training.text.models import adapter_config, load_base_model, load_tokenizer
from truthgpt_serve.training.text.reward import load_reward
from truthgpt_serve.training.text.trainer import Course, CourseTrainer

with warnings.catch_warnings():
    # trl can sample with vLLM, which it is not asked to here, and warns of releases new to it.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer


class PairTrainer(CourseTrainer, DPOTrainer):  # type: ignore[misc] # trl counts as Any
    """trl's DPO with our checkpoints and monitor."""


class RewardTrainer(CourseTrainer, GRPOTrainer):  # type: ignore[misc] # trl counts as Any
    """trl's GRPO with our checkpoints and monitor, and with the functions that a row describes."""

    _row_tools: Sequence[Any] = ()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Remembers what `_tokenize_prompts` is not given: the column `tools` of these rows."""
        self._row_tools = [row.get(TOOLS_FIELD) for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """Renders each chat with the functions of its row."""
        if not any(self._row_tools) or not isinstance(prompts[0], list):
            return super()._tokenize_prompts(prompts)
        ids = [
            self.processing_class.apply_chat_template(
                prompt, tools=tools or None, add_generation_prompt=True, return_dict=False
            )
            for prompt, tools in zip(prompts, self._row_tools, strict=True)
        ]
        return ids, None, {}

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """Counts the tokens of prompts and sampled answers on the way."""
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and isinstance(inputs, Mapping):
            masks = (inputs["prompt_mask"], inputs["completion_mask"])
            self.course.num_units += sum(int(mask.sum()) for mask in masks)
        return inputs


def prepare(job: TrainingJob) -> Facts:
    """Checks what only these methods need, and prepares the data; see `text.prepare`.

    Raises:
        TrainingError: The method cannot run with this configuration or data.
    """
    training, data = job.cfg["training"], job.cfg["data"]
    if training["reward"] is not None:
        load_reward(training["reward"])
    if not method_of(job.cfg).evaluates and (data["eval_dataset"] or data["eval_share"]):
        fix = "remove data.eval_dataset and data.eval_share"
        raise TrainingError(f"{training['method']} has no loss to evaluate ({fix}): watch reward")
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
    cfg = job.cfg
    examples, held_out = tables.train_table(job), tables.eval_table(job)
    grpo = cfg["training"]["method"] == "grpo"
    steps = count_steps(
        cfg["training"],
        len(examples),
        job.num_workers,
        rows_per_example=rows_per_example(cfg["training"]),
        drops_rest=method_of(cfg).samples,
    )
    tokenizer = load_tokenizer(cfg)
    if grpo:
        tokenizer.padding_side = "left"  # answers are sampled from the ends of the prompts
    model, dtype = load_base_model(cfg)
    shared: dict[str, Any] = {
        "model": model,
        "train_dataset": examples,
        "processing_class": tokenizer,
        "peft_config": adapter_config(cfg) if cfg["model_optim"]["lora"]["enabled"] else None,
    }
    trainer: Any
    if grpo:
        reward = load_reward(cfg["training"]["reward"])
        arguments = _grpo_arguments(job, steps)
        trainer = RewardTrainer(args=arguments, reward_funcs=reward, **shared)
    else:
        # With an adapter the model without it is what to compare with.
        other = None if shared["peft_config"] else copy.deepcopy(model)
        arguments = _dpo_arguments(job, steps)
        trainer = PairTrainer(args=arguments, ref_model=other, eval_dataset=held_out, **shared)
    trainer.follow(Course(job, monitor, steps, evaluates=held_out is not None))
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if not trainer.course.stopped:
        trainer.write_result(load_tokenizer(cfg), dtype)


def _dpo_arguments(job: TrainingJob, steps: StepCounts) -> DPOConfig:
    return DPOConfig(
        beta=job.cfg["training"]["beta"],
        max_length=job.cfg["data"]["max_seq_len"],
        **trainer_arguments(job, steps),
    )


def _grpo_arguments(job: TrainingJob, steps: StepCounts) -> GRPOConfig:
    training = job.cfg["training"]
    return GRPOConfig(
        beta=training["beta"],
        num_generations=training["num_generations"],
        max_completion_length=training["max_new_tokens"],
        **trainer_arguments(job, steps),
    )
