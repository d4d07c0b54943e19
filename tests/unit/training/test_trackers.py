"""The trackers: TensorBoard and Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.generation.record import Sample
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.trackers import check_tracker, create_tracker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("none")
    check_tracker("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match="pip install wandb"):
        check_tracker("wandb")


def test_tensorboard_gets_the_curves(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(8)])
    curves = {"tracker": "tensorboard", "log_every": 1}
    job = job_of(tmp_path / "run", sections_of(model, data, training=curves))
    found = run(job)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(job.folder / "logs")).Reload()
    points = [point.value for point in accumulator.Scalars("train/loss")]
    assert points == pytest.approx(found)
    assert losses(job.folder) == found


def test_tensorboard_gets_samples_as_text_and_images(tmp_path: Path) -> None:
    cfg = {"training": {"tracker": "tensorboard"}}
    tracker = create_tracker(TrainingJob(cfg, tmp_path, None, 1), first_step=0)
    image = Image.new("RGB", (8, 8), "red")
    tracker.log_samples(3, [Sample("Ada", text="finds <b>"), Sample("red", image=image)])
    tracker.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "logs")).Reload()
    (text,) = found.Tensors("samples/0/text_summary")
    assert text.step == 3
    assert b"finds <b>" in text.tensor_proto.string_val[0]
    (painted,) = found.Images("samples/1")
    assert (painted.step, painted.width) == (3, 8)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Weights & Biases' real client, which writes into files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    yield wandb
    wandb.teardown()


@pytest.mark.long("starts wandb's service twice")
def test_wandb_gets_the_curves_and_a_resumed_run_goes_on_in_them(
    wandb: Any, model: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(8)])
    curves = {"tracker": "wandb", "log_every": 1, "max_steps": 2}
    job = job_of(tmp_path / "run", sections_of(model, data, training=curves))
    found = run(job)
    (first,) = (job.folder / "logs" / "wandb").glob("offline-run-*/*.wandb")
    record = first.read_bytes()
    assert all(f"{value!r}".encode() in record for value in found)
    assert b"train/loss" in record
    again = create_tracker(job, first_step=2)
    again.log_samples(2, [Sample("Ada", text="finds"), Sample("a", image=Image.new("L", (8, 8)))])
    again.close()
    media = (job.folder / "logs" / "wandb").glob("offline-run-*/files/media/*/*")
    assert {file.suffix for file in media} == {".json", ".png"}
    runs = {file.name for file in (job.folder / "logs" / "wandb").glob("offline-run-*/*.wandb")}
    assert runs == {first.name}
    assert len(list((job.folder / "logs" / "wandb").glob("offline-run-*"))) == 2


def test_wandb_without_an_account_is_told(
    wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would lie
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = {"run_name": "a", "training": {"tracker": "wandb"}}
    with pytest.raises(TrainingError, match=r"training.tracker: wandb: .*WANDB_MODE=offline"):
        create_tracker(TrainingJob(cfg, tmp_path, None, 1), first_step=0)
