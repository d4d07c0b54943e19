"""The plan of a run: how many steps, how much in each, how much memory, on what.

Computes from what a loop has found out about its model and data; loads neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from truthgpt_serve.config.training.methods import passes_per_answer

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loop's `prepare` found out.

    Attributes:
        units: What a step reads: `tokens` or `images`.
        num_examples: Training examples of one pass, after packing and without bad rows.
        num_units: Tokens or images of one pass.
        num_parameters: Of the whole model.
        num_trainable: Those of them that are trained, an adapter's included.
        weight_bytes: Memory of the weights while training.
        activation_bytes: Estimated memory of one forward and backward pass of one worker.
        optimizer_bytes: Memory of the optimizer's own numbers.
        num_shards: Workers that share weights, gradients and optimizer.
        gathered_bytes: Weights that a worker holds as a whole beside its share while it computes.
        num_eval_examples: Examples that are evaluated on.
        num_bad_rows: Rows that were skipped.
        bad_rows: Places and problems of the first of them.
        sources: Lines on what is read and what is left out.
        notes: Further lines for the plan.
        rows_per_example: Rows of a batch that one example becomes, such as the answers of `grpo`.
        drops_rest: Whether the last rows of an epoch are left out where they make no whole step.
        size_counts: How many examples each size of images has, where a batch is of one size.
    """

    units: str
    num_examples: int
    num_units: int
    num_parameters: int
    num_trainable: int
    weight_bytes: int
    activation_bytes: int
    optimizer_bytes: int
    num_eval_examples: int = 0
    num_bad_rows: int = 0
    bad_rows: Sequence[str] = ()
    sources: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    rows_per_example: int = 1
    drops_rest: bool = False
    size_counts: Sequence[int] = ()
    num_shards: int = 1
    gathered_bytes: int = 0

    def with_note(self, note: str) -> Facts:
        """Returns the same with one more line for the plan."""
        return replace(self, notes=[*self.notes, note])


@dataclass(frozen=True, slots=True)
class StepCounts:
    """How many optimizer steps a run has.

    Attributes:
        per_epoch: Of one pass over the data.
        total: Of the run.
        warmup: In which the learning rate rises.
        num_rows: Rows that all workers read in one step.
    """

    per_epoch: int
    total: int
    warmup: int
    num_rows: int


def count_steps(
    training: Mapping[str, Any],
    num_examples: int,
    num_workers: int,
    *,
    rows_per_example: int = 1,
    drops_rest: bool = False,
    size_counts: Sequence[int] = (),
) -> StepCounts:
    """Counts optimizer steps; the last of an epoch may have fewer rows.

    Args:
        training: The `training` section.
        num_examples: Training examples.
        num_workers: Workers that share each step.
        rows_per_example: See `Facts`.
        drops_rest: See `Facts`.
        size_counts: See `Facts`.
    """
    if drops_rest:
        rows = training["train_batch_size"] * training["grad_accum_steps"] * num_workers
        sampled = max(1, num_examples * rows_per_example // rows)
        per_epoch = sampled * passes_per_answer(training)
    else:
        batches = math.ceil(num_examples * rows_per_example / training["train_batch_size"])
        per_worker = math.ceil(batches / num_workers)
        per_epoch = max(1, math.ceil(per_worker / training["grad_accum_steps"]))
    total = training["max_steps"] or per_epoch * training["epochs"]
    if len(size_counts) > 1 and not training["max_steps"]:
        batches = count_batches(size_counts, training["train_batch_size"], training["epochs"])
        total = math.ceil(batches / (num_workers * training["grad_accum_steps"]))
    warmup = min(total, math.ceil(training["warmup_ratio"] * total))
    rows = training["train_batch_size"] * training["grad_accum_steps"] * num_workers
    return StepCounts(per_epoch, total, warmup, rows)


def count_batches(size_counts: Sequence[int], batch_size: int, num_epochs: int) -> int:
    """Returns how many batches of one size each the first epochs take.

    Args:
        size_counts: See `Facts`.
        batch_size: Examples of a batch.
        num_epochs: How many epochs.
    """
    return sum(math.ceil(num_epochs * count / batch_size) for count in size_counts)


def memory_bytes(facts: Facts) -> int:
    """Estimates the memory of one worker: weights, gradients, optimizer and activations."""
    training = facts.num_trainable * FLOAT_BYTES + facts.optimizer_bytes
    shared = math.ceil((facts.weight_bytes + training) / facts.num_shards)
    return shared + facts.gathered_bytes + facts.activation_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is printed before a run starts.

    Attributes:
        run_name: Of the configuration.
        folder: The run's folder, as it is shown.
        method: What is trained how, such as `sft of an adapter (LoRA r 16)`.
        devices: Where, such as `2 workers on CPU, 1 core each`.
        facts: About model and data.
        steps: How many.
        first_step: Steps that a resumed run has behind it.
    """

    run_name: str
    folder: str
    method: str
    devices: str
    facts: Facts
    steps: StepCounts
    first_step: int = 0

    @property
    def units_per_step(self) -> float:
        """Mean number of tokens or images of a full step, all workers together."""
        facts = self.facts
        rows = facts.num_examples * facts.rows_per_example
        return self.steps.num_rows * facts.num_units / max(1, rows)

    def lines(self) -> list[str]:
        """Returns the plan as text."""
        facts, steps = self.facts, self.steps
        done = f", {self.first_step:,} of them done" if self.first_step else ""
        lines = [
            f"run      {self.run_name}: {self.method}, in {self.folder}",
            f"model    {_count(facts.num_parameters)} parameters, "
            f"{_count(facts.num_trainable)} of them trained",
            f"data     {facts.num_examples:,} examples, {facts.num_units:,} {facts.units}; "
            f"{facts.num_eval_examples:,} examples to evaluate on",
            *facts.sources,
            f"steps    {steps.total:,}{done}; {steps.per_epoch:,} an epoch, "
            f"{steps.warmup:,} to warm up",
            f"a step   {steps.num_rows:,} rows, about {self.units_per_step:,.0f} {facts.units}",
            f"memory   about {_size(memory_bytes(facts))} for each worker",
            f"devices  {self.devices}",
        ]
        if facts.num_bad_rows:
            lines.append(f"skipped  {facts.num_bad_rows:,} bad rows:")
            lines += [f"           {row}" for row in facts.bad_rows]
            if facts.num_bad_rows > len(facts.bad_rows):
                lines.append(f"           and {facts.num_bad_rows - len(facts.bad_rows):,} more")
        return [*lines, *(f"note     {note}" for note in facts.notes)]


def _count(number: int) -> str:
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (10_000, "k")):
        if number >= size:
            return f"{number / (1000 if letter == 'k' else size):,.1f}{letter}"
    return f"{number:,}"


def _size(num_bytes: int) -> str:
    if num_bytes < 2**30:
        return f"{max(1, num_bytes >> 20):,} MiB"
    return f"{num_bytes / 2**30:,.1f} GiB"
