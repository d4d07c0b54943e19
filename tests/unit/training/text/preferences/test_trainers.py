from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.config import load_model_config
from truthgpt_serve.runner import build_model
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.serving import serving_of
from truthgpt_serve.training.text.preferences.experimental import load_orpo

NUM_STEPS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def rows_for(method: str, number: int = 24) -> list[dict[str, Any]]:
    texts = sentences(2 * number)
    if method == "sft":
        return [{"text": text} for text in texts[:number]]
    if method == "kto":
        return [
            {"prompt": f"Who finds {n}? ", "completion": texts[n], "label": n % 2 == 0}
            for n in range(number)
        ]
    return [
        {"prompt": f"Who finds {n}? ", "chosen": texts[n], "rejected": f"No. {texts[number + n]}"}
        for n in range(number)
    ]


def bare_losses(method: str, model: Path, rows: list[dict[str, Any]], folder: Path) -> list[float]:
    """Trains with trl's own trainer, given only what the configuration of the run says."""
    import trl

    classes: dict[str, Any] = {
        "sft": lambda: (trl.SFTConfig, trl.SFTTrainer),
        "dpo": lambda: (trl.DPOConfig, trl.DPOTrainer),
        "kto": lambda: (trl.KTOConfig, trl.KTOTrainer),
        "orpo": load_orpo,
    }
    config_class, trainer_class = classes[method]()
    arguments = config_class(
        output_dir=str(folder),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        seed=42,
        max_length=64,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.long("trains each method several times")
@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo"])
def test_losses_are_those_of_the_library(method: str, model: Path, tmp_path: Path) -> None:
    rows = rows_for(method)
    sections = sections_of(
        model,
        write_rows(tmp_path / "rows.jsonl", rows),
        training={"method": method, "max_steps": NUM_STEPS, "warmup_ratio": 0.1},
    )
    ours = run(job_of(tmp_path / "run", sections))
    bare = bare_losses(method, model, rows, tmp_path / "bare")
    assert len(ours) == len(bare) == NUM_STEPS
    assert max(abs(a - b) for a, b in zip(ours, bare, strict=True)) <= 1e-5


@pytest.mark.long("trains each method several times")
@pytest.mark.parametrize("method", ["kto", "orpo", "reward"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_a_method_goes_on_with_the_same_losses(
    method: str, lora: bool, model: Path, tmp_path: Path
) -> None:
    sections = sections_of(
        model,
        write_rows(tmp_path / "rows.jsonl", rows_for(method, 16)),
        training={"method": method, "checkpoint_every": 2, "max_steps": 4},
        model_optim={"lora": {"enabled": lora, "r": 4}},
        data={"eval_share": 0.2},
    )
    job = job_of(tmp_path / "run", sections)
    whole = run(job)
    events = list(read_events(job.folder))
    assert any(event["event"] == "evaluated" for event in events)
    assert all(event["num_units"] > 0 for event in events if event["event"] == "step")
    checkpoint = checkpoints(job.folder)[0]
    assert checkpoint.name == "step-2"
    forget_after(job.folder, 2)
    assert run(job_of(job.folder, sections, checkpoint=checkpoint)) == whole == losses(job.folder)


def test_a_reward_model_is_served_and_scores_the_answers_of_grpo(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Who {n}? ", "chosen": "Ada does.", "rejected": "no"} for n in range(16)]
    sections = sections_of(
        model,
        write_rows(tmp_path / "pairs.jsonl", rows),
        training={"method": "reward", "epochs": 2},
    )
    job = job_of(tmp_path / "reward", sections)
    found = run(job)
    assert found[-1] < found[0]
    result = job.folder / "model"
    args = serving_of({"config": load_model_config(sections).to_cfg()}, result).args
    served = {**args, "hardware": {"gpus": 0}}
    with build_model("hf-transformers", served) as scorer:
        texts = ("Who 3? Ada does.<|im_end|>", "Who 3? no<|im_end|>")
        asked = [{"text": text, "function_to_apply": "none"} for text in texts]
        good, bad = (scorer.infer(inputs)[0]["score"] for inputs in asked)
    assert good > bad
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Who {n}?"} for n in range(8)])
    grpo = {"method": "grpo", "reward_model": str(result), "num_generations": 4}
    limits = {"train_batch_size": 4, "grad_accum_steps": 1, "max_new_tokens": 4, "max_steps": 2}
    job = job_of(tmp_path / "grpo", sections_of(model, prompts, training={**grpo, **limits}))
    run(job)
    steps = [event for event in read_events(job.folder) if event["event"] == "step"]
    assert all("reward" in step for step in steps)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"method": "kto", "train_batch_size": 1}, "kto compares the answers of a batch"),
        ({"method": "grpo", "reward_model": "MODEL"}, "cannot score answers: it gives no single"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(
    training: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    given = {k: str(model) if v == "MODEL" else v for k, v in training.items()}
    data = write_rows(tmp_path / "rows.jsonl", rows_for("kto", 8))
    job = job_of(tmp_path / "run", sections_of(model, data, training=given))
    with pytest.raises(TrainingError, match=message):
        load_loop(find_loop(job.cfg)).prepare(job)
