"""What the tests of image training share: tiny pipelines, images, and runs without Ray.

Does not know what a test compares.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from accelerate.state import AcceleratorState, GradientState
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from tests.support.tiny_images import create_pipeline
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.generation.record import Sample
from truthgpt_serve.training.images import autoencoder, controlnet, denoiser, textual_inversion
from truthgpt_serve.training.job import TrainingJob, WorkerUse
from truthgpt_serve.training.run_folder import latest_checkpoint

COLORS = ("red", "green", "blue", "orange")
EDGE = 32
TIMEOUT_S = 100
LOOPS = {
    "denoiser": denoiser.train,
    "vae": autoencoder.train,
    "controlnet": controlnet.train,
    "textual_inversion": textual_inversion.train,
}


class Recorder:
    """A monitor that keeps what it is told, and asks to stop, or kills itself, when told to."""

    def __init__(self, stop_after: int = 0, die_after: int = 0) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.evaluations: list[float] = []
        self.samples: list[tuple[int, list[Sample]]] = []
        self.workers: list[Sequence[WorkerUse]] = []
        self.first_step = -1
        self.num_steps = -1
        self._step = 0
        self._stop_after = stop_after
        self._die_after = die_after

    def begin(self, *, num_steps: int, first_step: int, units: str) -> None:
        assert units == "images"
        self.num_steps, self.first_step = num_steps, first_step

    def step(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        num_units: int,
        workers: Sequence[WorkerUse] = (),
        **more: float,
    ) -> None:
        assert step == self.first_step + len(self.losses) + 1
        self.losses.append(loss)
        self.workers.append(workers)
        self.rates.append(learning_rate)
        self._step = step
        if step == self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluations.append(metrics["eval_loss"])

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        self.samples.append((step, list(samples)))

    def should_stop(self) -> bool:
        return self._step + 1 == self._stop_after

    def check_space(self, num_bytes: int) -> None:
        assert num_bytes > 0


def save_pipeline(kind: str, folder: Path, change: Callable[[Any], None] | None = None) -> Path:
    """Writes a tiny pipeline, changed as wished; returns the folder."""
    pipeline = create_pipeline(kind)
    if change is not None:
        change(pipeline)
    pipeline.save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int = 8) -> Path:
    """Writes images of one colored square each, with captions; returns the folder."""
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        color = COLORS[index % len(COLORS)]
        image = Image.new("RGB", (EDGE + 8, EDGE), "white")
        left = 4 + index % 8
        ImageDraw.Draw(image).rectangle((left, 4, left + 14, 20), fill=color)
        image.save(folder / f"{index}.png")
        caption = f"a {color} square {index}"
        lines.append(json.dumps({"file_name": f"{index}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def save_images_with_hints(folder: Path) -> Path:
    """Writes the same with hints beside them, the same square in gray; returns the folder."""
    save_images(folder)
    lines = []
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        hint = folder / "hints" / row["file_name"]
        hint.parent.mkdir(exist_ok=True)
        Image.open(folder / row["file_name"]).convert("L").save(hint)
        lines.append(json.dumps({**row, "conditioning_image": f"hints/{row['file_name']}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_cfg(weights: Path, images: Path, /, **sections: Any) -> dict[str, Any]:
    """Returns a whole configuration: float32, no warm-up, 8 steps of 4 images."""
    training = {
        "train_batch_size": 4,
        "grad_accum_steps": 1,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "scheduler": "constant",
        "warmup_ratio": 0.0,
        "mixed_precision": "no",
        "early_stopping_patience": 0,
    }
    optim = {"gradient_checkpointing": False}
    given = {
        "task": "image-generation",
        "model": {"name_or_path": str(weights)},
        "hardware": {"gpus": 0},
        "training": {**training, **sections.pop("training", {})},
        "model_optim": {**optim, **sections.pop("model_optim", {})},
        "data": {"dataset": str(images), "resolution": EDGE, **sections.pop("data", {})},
        **sections,
    }
    return load_model_config(given).to_cfg()


def run(
    cfg: dict[str, Any], folder: Path, monitor: Recorder | None = None, *, resume: bool = False
) -> Recorder:
    """Trains in this process, as the only worker; returns the monitor."""
    monitor = monitor or Recorder()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = latest_checkpoint(folder) if resume else None
    assert checkpoint is not None or not resume
    _train(cfg, folder, monitor, checkpoint, num_workers=1)
    return monitor


def _train(
    cfg: dict[str, Any],
    folder: Path,
    monitor: Recorder,
    checkpoint: Path | None,
    num_workers: int,
) -> None:
    # Each worker is a process of its own in the product; accelerate keeps one state of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    job = TrainingJob(cfg=cfg, folder=folder, checkpoint=checkpoint, num_workers=num_workers)
    LOOPS[cfg["training"]["component"]](job, monitor)


def run_until_killed(cfg: dict[str, Any], folder: Path, step: int) -> None:
    """Trains in a process of its own that is killed after a step."""
    process = _forkserver().Process(
        target=_run_as_worker, args=(cfg, folder, Recorder(die_after=step))
    )
    process.start()
    try:
        process.join(TIMEOUT_S)
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()
        process.join()
    assert latest_checkpoint(folder) is not None


def _forkserver() -> Any:
    """Returns how to start processes for which the libraries are imported once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run_as_worker(cfg: dict[str, Any], folder: Path, monitor: Recorder) -> None:
    # As in the product. Loaders of a fork server of this process's own would see that server as
    # what they belong to, which lives as long as they do: a kill would leave all of them.
    multiprocessing.set_start_method("fork", force=True)
    run(cfg, folder, monitor)


def run_workers(cfg: dict[str, Any], folder: Path, num_workers: int) -> list[list[float]]:
    """Trains in several processes joined by gloo; returns the losses that each was told."""
    folder.mkdir(parents=True)
    _forkserver()
    arguments = (cfg, folder, num_workers)
    multiprocessing.start_processes(_work, arguments, num_workers, start_method="forkserver")
    files = [folder / f"losses-{rank}.json" for rank in range(num_workers)]
    return [json.loads(file.read_text()) for file in files]


def _work(rank: int, cfg: dict[str, Any], folder: Path, num_workers: int) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_workers
    )
    try:
        monitor = Recorder()
        _train(cfg, folder, monitor, None, num_workers)
        (folder / f"losses-{rank}.json").write_text(json.dumps(monitor.losses))
    finally:
        distributed.destroy_process_group()


def load_result(folder: Path) -> Any:
    """Returns the pipeline that a run gave."""
    pipeline = DiffusionPipeline.from_pretrained(folder / "model")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_weights(part: Path) -> dict[str, Any]:
    """Returns the tensors of a saved part of a pipeline."""
    (file,) = part.glob("*.safetensors")
    tensors: dict[str, Any] = load_file(file)
    return tensors


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Returns the largest difference of a weight."""
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
