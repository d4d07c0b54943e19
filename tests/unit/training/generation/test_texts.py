"""Samples of text models: they change no loss, are bounded, and end no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.generation import texts
from truthgpt_serve.training.generation.record import KeptSample, read_samples
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.text.prepare import prepare

CHAT = [{"role": "user", "content": "Who finds the river?"}]
PROMPTS = ["Ada finds", CHAT]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def rows_for(method: str) -> list[dict[str, Any]]:
    words = sentences(16)
    if method == "sft":
        return [{"text": text} for text in words]
    if method in ("grpo", "ppo"):
        return [{"prompt": f"Who {n}?", "wanted": "the"} for n in range(8)]
    return [{"prompt": "Who? ", "chosen": text, "rejected": "No."} for text in words]


def training_of(method: str, **more: Any) -> dict[str, Any]:
    training = {"method": method, "max_steps": 4, "eval_every": 2, **more}
    if method in ("grpo", "ppo"):
        reward = "tests.support.training_rewards:counts_the"
        answers = {"num_generations": 2, "max_new_tokens": 4, "reward": reward}
        return {**training, **answers, "train_batch_size": 2, "grad_accum_steps": 1}
    return training


def sample(model: Path, folder: Path, method: str, **samples: Any) -> list[float]:
    """Trains with an adapter and dropout, which draws random numbers in each step."""
    lora = {"lora": {"enabled": True, "r": 4, "dropout": 0.2}}
    data = {} if method in ("grpo", "ppo") else {"eval_share": 0.2}
    given = {"samples": {"max_new_tokens": 6, "timeout_s": 600, **samples}} if samples else {}
    folder.mkdir()
    file = write_rows(folder / "rows.jsonl", rows_for(method))
    training = training_of(method, **given)
    sections = sections_of(model, file, training=training, model_optim=lora, data=data)
    return run(job_of(folder / "run", sections))


@pytest.mark.long("trains several times")
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo", "ppo"])
def test_losses_are_those_without_samples(method: str, model: Path, tmp_path: Path) -> None:
    plain = sample(model, tmp_path / "plain", method)
    found = sample(model, tmp_path / "sampled", method, prompts=PROMPTS, temperature=1.0)
    assert found == plain
    kept = read_samples(tmp_path / "sampled" / "run")
    assert [(one.step, one.prompt) for one in kept] == [
        (step, prompt) for step in (2, 4) for prompt in ("Ada finds", "user: Who finds the river?")
    ]
    assert not any(one.fault for one in kept), kept
    assert all(one.text is not None for one in kept)


def test_a_greedy_sample_is_what_the_result_writes(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows_for("sft"))
    training = {"epochs": 4, "samples": {"prompts": PROMPTS, "max_new_tokens": 8}}
    optim = {"gradient_checkpointing": True}  # which switches the cache off, for training
    job = job_of(tmp_path / "run", sections_of(model, file, training=training, model_optim=optim))
    run(job)
    events = read_events(job.folder)
    steps = [event["step"] for event in events if event["event"] == "sampled"]
    assert steps == [4, 8, 12, 16]
    text, chat = read_samples(job.folder)[-2:]
    trained = AutoModelForCausalLM.from_pretrained(job.folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(job.folder / "model")
    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    for prompt, kept in (("Ada finds", text), (rendered, chat)):
        ids = tokenizer(prompt, return_tensors="pt")
        found = trained.generate(**ids, max_new_tokens=8, do_sample=False)[0]
        wanted = tokenizer.decode(found[len(ids.input_ids[0]) :], skip_special_tokens=True)
        assert kept.text == wanted
    assert text.text


def test_a_sample_that_fails_or_takes_too_long_ends_no_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["\u4e2d" * 8000, "Ada"]
    found = sample(model, tmp_path / "long", "sft", prompts=prompts, max_new_tokens=64)
    assert len(found) == 4
    kept = read_samples(tmp_path / "long" / "run")
    assert "the model takes" in kept[0].fault
    assert kept[1].text

    monkeypatch.setattr(texts.SampleCallback, "_generation", fail)
    sample(model, tmp_path / "fault", "sft", prompts=["Ada"])
    assert {one.fault for one in read_samples(tmp_path / "fault" / "run")} == {"no memory"}
    monkeypatch.undo()
    quick = {"timeout_s": 1e-3, "max_new_tokens": 2048}
    sample(model, tmp_path / "late", "sft", prompts=["Ada", "Ben"], **quick)
    faults = [one.fault for one in read_samples(tmp_path / "late" / "run")]
    assert all("timeout_s 0.001 was over" in fault for fault in faults)
    assert faults[1].startswith("left out")


def fail(*_: Any) -> Any:
    raise RuntimeError("no memory")


def test_a_disk_without_room_for_samples_ends_no_run(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run").mkdir()
    (tmp_path / "a" / "run" / "samples").write_text("a file is where the folder should be")
    (tmp_path / "a").rename(tmp_path / "b")
    file = write_rows(tmp_path / "rows.jsonl", rows_for("sft"))
    training = training_of("sft", samples={"prompts": ["Ada"]})
    job = job_of(tmp_path / "b" / "run", sections_of(model, file, training=training))
    assert len(run(job)) == 4
    notes = [event["message"] for event in read_events(job.folder) if event["event"] == "note"]
    assert notes[0].startswith("samples of step 2: ")


def test_a_run_that_goes_on_makes_the_same_samples(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows_for("sft"))
    samples = {"prompts": ["Ada"], "temperature": 0.7}
    training = training_of("sft", samples=samples, checkpoint_every=2)
    sections = sections_of(model, file, training=training)
    job = job_of(tmp_path / "run", sections)
    run(job)
    before = read_samples(job.folder)
    forget_after(job.folder, 2)
    run(job_of(job.folder, sections, checkpoint=checkpoints(job.folder)[0]))
    assert texts_of(read_samples(job.folder)) == texts_of(before)
    assert len({one.text for one in before}) == len(before)


def texts_of(samples: list[KeptSample]) -> list[tuple[int, str | None]]:
    return [(one.step, one.text) for one in samples]


def test_a_chat_needs_a_template(model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = write_rows(tmp_path / "rows.jsonl", rows_for("sft"))
    training = {"samples": {"prompts": PROMPTS}}
    job = job_of(tmp_path / "run", sections_of(bare, rows, training=training))
    with pytest.raises(TrainingError, match=r"samples.prompts\[1\]: the tokenizer has no chat"):
        prepare(job)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"method": "reward"}, "samples: has no effect with method: reward"),
        ({"component": "vae"}, "samples: has no effect with component: vae"),
        ({"samples": {"prompts": []}}, "samples.prompts"),
        ({"samples": {"prompts": ["a"] * 17}}, "samples.prompts"),
        ({"samples": {"prompts": [[{"role": "tool", "content": "a"}]]}}, "role"),
        ({"samples": {"prompts": ["a"], "timeout_s": 601}}, "samples.timeout_s"),
    ],
)
def test_what_makes_no_samples_is_refused(training: dict[str, Any], message: str) -> None:
    given = {"samples": {"prompts": ["a"]}, **training}
    with pytest.raises(ConfigError) as caught:
        load_model_config({"training": given}, place="test")
    assert message in str(caught.value)
