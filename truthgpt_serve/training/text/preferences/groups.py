"""trl's GRPO as both methods use it whose models sample answers while they learn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.training.text.messages import TOOLS_FIELD
from truthgpt_serve.training.text.trainer import CourseTrainer

with warnings.catch_warnings():
    # trl can sample with vLLM, which it is not asked to here, and warns of releases new to it.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    from trl import GRPOTrainer


class GroupTrainer(CourseTrainer, GRPOTrainer):  # type: ignore[misc] # trl counts as Any
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
