"""lm-eval's `local-completions`: log likelihoods and answers, eight requests at a time."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager
from report import BASE_URL, MODEL, check, run

BEGINNINGS = ("Once upon a time there was", "Mia had a red boat.", "One day Tom", "The dog ran")
ENDINGS = (" a girl named Mia.", " She was happy.", " went to the park with his dog.", " home")
TASK = """
task: story_choice
dataset_path: json
dataset_kwargs: {data_files: {validation: DATA}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{beginning}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{endings}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def model(**options: object) -> LocalCompletionsAPI:
    """Returns lm-eval's model for the service."""
    return LocalCompletionsAPI(
        base_url=f"{BASE_URL}/completions", model=MODEL, tokenizer=os.environ["TOKENIZER"],
        num_concurrent=8, max_retries=1, max_length=1024, **options,
    )  # fmt: skip


@check("log likelihoods", "logprobs", "prompt_logprobs", "token_ids")
def _() -> str:
    requests = [
        Instance("loglikelihood", {}, (beginning, ending), 0)
        for beginning in BEGINNINGS
        for ending in ENDINGS
    ]
    found = [value for value, _ in model().loglikelihood(requests)]
    assert all(value < 0 and math.isfinite(value) for value in found)
    Path(os.environ["RESULTS"]).write_text(json.dumps(found))
    return f"sum {sum(found):.4f} nats"


@check("log likelihoods of texts", "logprobs", "prompt_logprobs")
def _() -> None:
    requests = [Instance("loglikelihood", {}, (BEGINNINGS[0], end), 0) for end in ENDINGS]
    assert all(value < 0 for value, _ in model(tokenized_requests=False).loglikelihood(requests))


@check("rolling log likelihoods", "logprobs", "prompt_logprobs", "token_ids")
def _() -> None:
    text = " ".join(BEGINNINGS * 8)
    (value,) = model().loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert value < 0


@check("answers until a text", "token_ids")
def _() -> None:
    options = {"until": ["."], "max_gen_toks": 24, "temperature": 0}
    requests = [Instance("generate_until", {}, (text, options), 0) for text in BEGINNINGS]
    assert all("." not in text for text in model().generate_until(requests))


@check("a task", "logprobs", "prompt_logprobs", "token_ids")
def _() -> str:
    folder = Path(tempfile.mkdtemp())
    rows = [
        {"beginning": beginning, "endings": list(ENDINGS), "answer": at % len(ENDINGS)}
        for at, beginning in enumerate(BEGINNINGS * 4)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "story_choice.yaml").write_text(TASK.replace("DATA", str(folder / "data.jsonl")))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model(), tasks=["story_choice"], task_manager=manager, bootstrap_iters=0
    )
    return f"acc {found['results']['story_choice']['acc,none']:.3f}"


run()
