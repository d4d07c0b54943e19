from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.tiny_transformers.models import make_one_layer_llama
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.run_folder import checkpoints, latest_checkpoint
from truthgpt_serve.training.text.examples import IGNORED
from truthgpt_serve.training.text.sft import count_right

NUM_ROWS = 24
COMPILE_S = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return write_rows(file, [{"text": text} for text in sentences(NUM_ROWS)])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def test_accumulation_of_n_equals_a_batch_n_times_larger(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    found = {}
    for batch, accumulation in ((2, 4), (8, 1)):
        sizes = {"train_batch_size": batch, "grad_accum_steps": accumulation}
        job = job_of(tmp_path / f"{batch}", sections_of(model, texts, training=sizes))
        found[batch] = run(job), weights_of(job.folder / "model")
    (small, small_weights), (large, large_weights) = found[2], found[8]
    assert len(small) == len(large) == NUM_ROWS // 8
    assert small == pytest.approx(large, rel=1e-5)
    before = weights_of(model)
    for name, weight in small_weights.items():
        # Adam divides by the gradient's own size: a rounding of 1e-7 in it may move a weight by a
        # part of the step, 1e-3, and no more.
        torch.testing.assert_close(weight, large_weights[name], rtol=0, atol=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in small_weights.items())


def test_the_loss_falls_and_the_result_is_an_ordinary_folder(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path / "run", sections_of(model, texts, training={"epochs": 4}))
    found = run(job)
    assert found[-1] < found[0] / 2
    steps = [event for event in read_events(job.folder) if event["event"] == "step"]
    assert steps[-1]["token_accuracy"] > 0.3 > steps[0]["token_accuracy"]
    trained = AutoModelForCausalLM.from_pretrained(job.folder / "model")
    assert trained.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(job.folder / "model")
    inputs = tokenizer("Ada finds", return_tensors="pt")
    words = tokenizer.decode(trained.generate(**inputs, max_new_tokens=6, do_sample=False)[0])
    assert words.startswith("Ada finds the ")


@pytest.mark.long("trains several times")
def test_goes_on_from_any_checkpoint_with_the_same_losses(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    lora = {"lora": {"enabled": True, "r": 4, "dropout": 0.2}}  # so that random numbers matter
    sections = sections_of(
        model,
        texts,
        training={"epochs": 2, "checkpoint_every": 2, "keep_checkpoints": 9},
        model_optim=lora,
        data={"eval_share": 0.2},
    )
    job = job_of(tmp_path / "run", sections)
    whole = run(job)
    result = load_file(job.folder / "model" / "adapter_model.safetensors")
    evaluated = [event for event in read_events(job.folder) if event["event"] == "evaluated"]
    assert len(evaluated) == 2
    assert all(e["perplexity"] == pytest.approx(math.exp(e["loss"])) for e in evaluated)
    assert all(0 <= e["token_accuracy"] < 1 for e in evaluated)
    steps = [event for event in read_events(job.folder) if event["event"] == "step"]
    assert all(0 <= e["token_accuracy"] < 1 for e in steps)
    assert all(e["units_per_second"] > 0 and e["memory_bytes"] > 1 << 20 for e in steps)
    for checkpoint in checkpoints(job.folder):
        step = int(checkpoint.name.removeprefix("step-"))
        forget_after(job.folder, step)
        assert run(job_of(job.folder, sections, checkpoint=checkpoint)) == whole
        again = load_file(job.folder / "model" / "adapter_model.safetensors")
        assert all(torch.equal(again[name], weight) for name, weight in result.items())
    assert len(checkpoints(job.folder)) >= 3


def test_only_learned_tokens_are_counted() -> None:
    logits = torch.eye(4)[torch.tensor([[1, 2, 3, 0], [0, 0, 0, 0]])]  # the most probable next ones
    labels = torch.tensor([[9, 1, IGNORED, 0], [9, 0, 0, IGNORED]])
    assert count_right(logits, labels).tolist() == [3, 4]


def run_counting(job: TrainingJob) -> tuple[list[float], int]:
    """Returns the losses, and how many graphs Inductor compiled or had compiled before.

    What it keeps on disk is shared with other tests: to ask the compiler anew which instructions it
    has takes 8 s of a core.
    """
    found = run(job)
    counts = torch._dynamo.utils.counters["inductor"]
    return found, sum(counts[f"fxgraph_cache_{end}"] for end in ("hit", "miss", "bypass"))


@pytest.mark.long("compiles a model")
@pytest.mark.timeout(COMPILE_S + 30)
def test_a_compiled_model_learns_the_same_and_is_saved_as_it_was(
    texts: Path, tmp_path: Path
) -> None:
    model = make_one_layer_llama(tmp_path / "llama")
    training = {"max_steps": 2}
    plain = job_of(tmp_path / "plain", sections_of(model, texts, training=training))
    sections = sections_of(model, texts, training=training, model_optim={"compile": True})
    compiled = job_of(tmp_path / "compiled", sections)
    # In a process of its own, because accelerate keeps what the first Trainer of a process asks.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        found, num_graphs = process.submit(run_counting, compiled).result(timeout=COMPILE_S)
    assert num_graphs >= 2, "the model's and that of its gradients"
    assert found == pytest.approx(run(plain), rel=1e-4)
    assert weights_of(compiled.folder / "model").keys() == weights_of(plain.folder / "model").keys()


class StopsAt3(RunMonitor):
    """Asks to stop at the third step."""

    def should_stop(self) -> bool:
        return len(losses(self._job.folder)) == 2


def test_a_request_to_stop_saves_and_leaves_no_result(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path / "run", sections_of(model, texts))
    assert len(run(job, monitor_class=StopsAt3)) == 3
    assert [checkpoint.name for checkpoint in checkpoints(job.folder)] == ["step-3"]
    assert not (job.folder / "model").exists()


def test_early_stopping_ends_and_the_best_weights_are_the_result(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"text": "0 1 2 3 4 5 6 7 8 9"}] * 4)
    training = {
        "epochs": 20,
        "early_stopping_patience": 2,
        "eval_every": 3,
        "learning_rate": 0.01,
        "scheduler": "constant",
    }
    sections = sections_of(model, texts, training=training, data={"eval_dataset": str(other)})
    job = job_of(tmp_path / "run", sections)
    num_steps = len(run(job))
    evaluated = [
        (e["loss"], e["step"]) for e in read_events(job.folder) if e["event"] == "evaluated"
    ]
    _, step = min(evaluated)
    assert num_steps == step + 2 * 3 < 20 * 6
    assert f"step-{step}" in [checkpoint.name for checkpoint in checkpoints(job.folder)]
    saved = weights_of(job.folder / "checkpoints" / f"step-{step}")
    for name, weight in weights_of(job.folder / "model").items():
        assert torch.equal(weight, saved[name])


def test_a_loss_that_is_no_number_stops_and_the_last_checkpoint_is_sound(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    rates = {
        "epochs": 9,
        "learning_rate": 1e30,
        "warmup_ratio": 1.0,
        "checkpoint_every": 1,
        "max_grad_norm": 0.0,
    }
    job = job_of(tmp_path / "run", sections_of(model, texts, training=rates))
    with pytest.raises(TrainingError, match=r"last whole checkpoint|no checkpoint yet") as caught:
        run(job)
    assert "finite" in str(caught.value) or "nan" in str(caught.value) or "inf" in str(caught.value)
    assert "lower training.learning_rate" in str(caught.value)
    for checkpoint in checkpoints(job.folder):
        for weight in weights_of(checkpoint).values():
            assert torch.isfinite(weight).all()
    assert not (job.folder / "model").exists()
    assert not list((job.folder / "checkpoints").glob(".*.tmp"))


def test_a_full_disk_stops_before_the_checkpoint_and_the_last_one_is_left(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path / "run", sections_of(model, texts, training={"checkpoint_every": 2}))

    def free(folder: Path) -> int:
        return 10**12 if not checkpoints(folder) else 5_000_000

    with pytest.raises(TrainingError, match=r"the disk is full: \d.*, 5,000,000 are free"):
        run(job, free=free)
    last = latest_checkpoint(job.folder)
    assert last is not None
    assert last.name == "step-2"
    assert len(losses(job.folder)) == 4
    resumed = job_of(job.folder, sections_of(model, texts), checkpoint=last)
    forget_after(job.folder, 2)
    assert len(run(resumed)) == NUM_ROWS // 4


@pytest.mark.parametrize("length", [0, 100])
def test_a_checkpoint_that_is_cut_is_named(
    model: Path, texts: Path, tmp_path: Path, length: int
) -> None:
    job = job_of(tmp_path / "run", sections_of(model, texts, training={"checkpoint_every": 2}))
    run(job)
    last = checkpoints(job.folder)[0]
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    resumed = job_of(job.folder, sections_of(model, texts), checkpoint=last)
    for name in ("model.safetensors", *states):
        whole = (last / name).read_bytes()
        (last / name).write_bytes(whole[:length])
        forget_after(job.folder, 2)
        with pytest.raises(TrainingError, match=f"{last}: cannot continue from this checkpoint"):
            run(resumed)
        (last / name).write_bytes(whole)


def test_an_adapter_is_what_peft_loads(model: Path, texts: Path, tmp_path: Path) -> None:
    lora = {"enabled": True, "r": 4, "target_modules": ["q_proj", "v_proj"]}
    sections = sections_of(
        model, texts, training={"epochs": 3, "learning_rate": 0.01}, model_optim={"lora": lora}
    )
    job = job_of(tmp_path / "run", sections)
    found = run(job)
    assert found[-1] < found[0]
    adapter = load_file(job.folder / "model" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    assert not (job.folder / "model" / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(model)
    tokens = AutoTokenizer.from_pretrained(model)(sentences(1)[0], return_tensors="pt")
    with torch.no_grad():
        alone = base(**tokens, labels=tokens.input_ids).loss
        adapted = PeftModel.from_pretrained(base, job.folder / "model").eval()
        assert adapted(**tokens, labels=tokens.input_ids).loss < alone - 0.1


def test_weights_of_a_folder_without_any_begin_random_by_the_seed(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    found = []
    for name in ("one", "two"):
        sections = sections_of(bare, texts, training={"max_steps": 2})
        job = job_of(tmp_path / name, sections)
        found.append(run(job))
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(7.3, abs=0.5)  # ln(1536): it knows nothing yet


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_the_result_has_the_format_of_the_weights_that_came_in(
    precision: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(model).save_pretrained(half)
    training = {"max_steps": 2, "mixed_precision": precision, "checkpoint_every": 1}
    sections = sections_of(
        half, texts, training=training, model_optim={"gradient_checkpointing": True}
    )
    job = job_of(tmp_path / "run", sections)
    run(job)
    assert {w.dtype for w in weights_of(job.folder / "model").values()} == {torch.bfloat16}
    last = checkpoints(job.folder)[-1]
    assert {weight.dtype for weight in weights_of(last).values()} == {torch.float32}


def test_fp16_on_a_cpu_is_refused(model: Path, texts: Path, tmp_path: Path) -> None:
    sections = sections_of(model, texts, training={"mixed_precision": "fp16"})
    with pytest.raises(TrainingError, match="fp16 does not work on CPU"):
        run(job_of(tmp_path / "run", sections))


def test_only_the_newest_checkpoints_are_kept(model: Path, texts: Path, tmp_path: Path) -> None:
    training = {"checkpoint_every": 1, "keep_checkpoints": 2}
    job: TrainingJob = job_of(tmp_path / "run", sections_of(model, texts, training=training))
    run(job)
    assert [checkpoint.name for checkpoint in checkpoints(job.folder)] == ["step-5", "step-6"]


def test_loader_processes_change_nothing(model: Path, texts: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    for workers in (0, 2):
        sections = sections_of(
            model, texts, training={"max_steps": 3}, data={"num_loader_workers": workers}
        )
        found.append(run(job_of(tmp_path / str(workers), sections)))
    assert found[0] == found[1]
