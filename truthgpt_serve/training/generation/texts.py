"""Samples of text models: a callback of the trainer that has the model continue the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TrainerCallback,
    set_seed,
)

from truthgpt_serve.training.errors import TrainingError, one_line
from truthgpt_serve.training.generation.record import Sample
from truthgpt_serve.training.generation.undisturbed import Deadline, undisturbed
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import StepCounts

CUT = "cut: training.samples.timeout_s {seconds:g} was over"
LEFT_OUT = "left out: training.samples.timeout_s {seconds:g} was over"


def check_prompts(cfg: Mapping[str, Any], tokenizer: Any) -> None:
    """Checks that the prompts can be rendered.

    Raises:
        TrainingError: One is a chat, and the tokenizer has no template.
    """
    for index, prompt in enumerate(cfg["training"]["samples"]["prompts"]):
        if isinstance(prompt, str):
            continue
        place = f"training.samples.prompts[{index}]"
        if not getattr(tokenizer, "chat_template", None):
            fix = "write a text, or train a model that has one"
            raise TrainingError(f"{place}: the tokenizer has no chat template ({fix})")
        try:
            _render(prompt, tokenizer)
        except Exception as error:
            message = f"{place}: the chat template refuses it: {one_line(error)}"
            raise TrainingError(f"{message} (correct the messages)") from error


def _render(prompt: str | Sequence[Mapping[str, str]], tokenizer: Any) -> list[int]:
    """Returns the tokens of a prompt."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        # What is learned ends so; what is continued does not.
        return list(ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids)
    return list(
        tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
    )


def show_prompt(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Returns a prompt as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


class _Over(StoppingCriteria):  # type: ignore[misc] # transformers counts as Any
    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Returns for each row whether it ends."""
        over = self._deadline.is_over()
        return torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device)


class SampleCallback(TrainerCallback):  # type: ignore[misc] # transformers counts as Any
    """Makes the samples, on the first worker; the others wait for it in their next step.

    To be added behind `CourseCallback`, which reports a step: its time is without that of samples.

    Args:
        job: The run.
        monitor: Takes the samples.
        steps: How many the run has.
        tokenizer: The model's.
    """

    def __init__(
        self, job: TrainingJob, monitor: Monitor, steps: StepCounts, tokenizer: Any
    ) -> None:
        self._job, self._monitor, self._tokenizer = job, monitor, tokenizer
        self._settings = job.cfg["training"]["samples"]
        self._every = job.cfg["training"]["eval_every"] or steps.per_epoch
        self._last_step = steps.total

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Makes samples where the step is one that is evaluated, whether there is data or not."""
        step, is_last = state.global_step, state.global_step >= self._last_step
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        if (step % self._every and not is_last) or (control.should_training_stop and not is_last):
            return
        self._monitor.sampled(step, self._make(model))

    def _make(self, model: Any) -> list[Sample]:
        seconds = self._settings["timeout_s"]
        deadline = Deadline(seconds, self._monitor.should_stop)
        samples = []
        with undisturbed([model], model.device):
            for prompt in self._settings["prompts"]:
                shown = self._job.hidden.hide_long(show_prompt(prompt))
                if deadline.is_over():
                    samples.append(Sample(shown, fault=LEFT_OUT.format(seconds=seconds)))
                    continue
                try:
                    text = self._continue(model, prompt, deadline)
                except Exception as error:  # no sample is worth a run
                    samples.append(Sample(shown, fault=one_line(error)))
                    continue
                fault = CUT.format(seconds=seconds) if deadline.is_over() else ""
                samples.append(Sample(shown, text=text, fault=fault))
        return samples

    def _continue(self, model: Any, prompt: Any, deadline: Deadline) -> str:
        ids = _render(prompt, self._tokenizer)
        if not ids:
            raise ValueError("the prompt has no tokens")
        set_seed(self._job.cfg["seed"])
        found = model.generate(
            input_ids=torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            generation_config=self._generation(model, len(ids)),
            stopping_criteria=StoppingCriteriaList([_Over(deadline)]),
        )
        text: str = self._tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True)
        return text

    def _generation(self, model: Any, num_tokens: int) -> Any:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = self._settings["max_new_tokens"]
        if limit is not None:
            # Beyond its positions a GPU does not raise an error: it cannot be used any more.
            room = min(room, limit - num_tokens)
        if room < 1:
            raise ValueError(f"the prompt has {num_tokens:,} tokens, the model takes {limit:,}")
        temperature, tokenizer = self._settings["temperature"], self._tokenizer
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        stop = sorted(end for end in ends if end is not None)
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=temperature > 0,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}),
            num_beams=1,
            use_cache=True,
            eos_token_id=stop or None,
            pad_token_id=tokenizer.pad_token_id or (stop[0] if stop else 0),
        )
