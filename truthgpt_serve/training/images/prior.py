"""Images of the class for prior preservation: found in a folder, or made by the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truthgpt_serve.training.data import Inventory, Row
from truthgpt_serve.training.data.find import find_data
from truthgpt_serve.training.data.image_folder import is_file
from truthgpt_serve.training.data.splits import TRAIN
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.buckets import one_shape
from truthgpt_serve.training.images.data.image_files import Size
from truthgpt_serve.training.images.data.inspection import Columns
from truthgpt_serve.training.images.data.rows import ImageRows
from truthgpt_serve.training.images.loading import load_frozen
from truthgpt_serve.training.job import Monitor

FOLDER = "prior"
"""Of a run: the images of the class that it made."""
_SEEDS = 6
"""Keeps the seeds of these images apart from the run's other random numbers."""
_BYTES_PER_PIXEL = 4


@dataclass(frozen=True, slots=True)
class PriorImages:
    """The images of the class of one run.

    Attributes:
        given: Those of `training.prior.images`, no more than are wanted.
        made: The files of those that the model makes, whether they are there yet or not.
    """

    given: list[Path]
    made: list[Path]

    @property
    def missing(self) -> list[int]:
        """Which of `made` are not there."""
        return [index for index, file in enumerate(self.made) if not is_file(file)]

    def describe(self, prior: Mapping[str, Any]) -> str:
        """Returns the plan's line."""
        missing, wanted = len(self.missing), prior["num_images"]
        line = f"prior    {wanted:,} images of {prior['prompt']!r}"
        if self.given:
            line += f", {len(self.given):,} of them in {prior['images']}"
        if missing:
            steps = f"{prior['steps']} steps each" if prior["steps"] else "the pipeline's steps"
            line += f"; {missing:,} are made before training, {steps}"
        return line


def find_prior(cfg: Mapping[str, Any], run: Path) -> PriorImages:
    """Returns the images of the class; makes none.

    Raises:
        TrainingError: The folder of `training.prior.images` cannot be read, or holds no images.
    """
    prior = cfg["training"]["prior"]
    given: list[Path] = []
    if prior["images"] is not None:
        folder = Path(prior["images"])
        if not folder.is_dir():
            message = f"training.prior.images: {str(folder)!r} is no folder"
            raise TrainingError(f"{message} (correct it, or remove it to have images made)")
        found = find_data(folder, TRAIN, "images", Inventory())
        if not found.is_images:
            message = f"training.prior.images: {str(folder)!r} has no images"
            raise TrainingError(f"{message} (correct it, or remove it to have images made)")
        given = found.images[: prior["num_images"]]
    made = range(prior["num_images"] - len(given))
    return PriorImages(given, [run / FOLDER / f"{index:05d}.png" for index in made])


def load_prior(cfg: Mapping[str, Any], run: Path, size: Size) -> ImageRows:
    """Returns the images of the class, all of which are there, as rows with the class' caption."""
    found = find_prior(cfg, run)
    data = {**cfg["data"], "caption": cfg["training"]["prior"]["prompt"], "min_edge": None}
    files = [*found.given, *found.made]
    rows = [Row({data["image_field"]: str(file)}, str(file)) for file in files]
    return ImageRows(rows, range(len(rows)), one_shape(size, len(rows)), Columns(data))


def make_prior(
    cfg: Mapping[str, Any], folder: Path, run: Path, accelerator: Any, monitor: Monitor
) -> bool:
    """Makes the images of the class that are missing, each worker a share of them.

    The same image comes out whatever is there already, and however many workers there are.

    Args:
        cfg: The configuration.
        folder: Of the pipeline.
        run: The run's folder.
        accelerator: Of accelerate.
        monitor: Says when to stop, and checks the disk.

    Returns:
        Whether all are there; not if it was asked to stop.

    Raises:
        TrainingError: The pipeline cannot be loaded, or the disk is full.
    """
    prior = cfg["training"]["prior"]
    if prior is None:
        return True
    found = find_prior(cfg, run)
    missing = set(found.missing)
    accelerator.wait_for_everyone()
    if not missing:
        return True
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    monitor.check_space(len(missing) * _BYTES_PER_PIXEL * cfg["data"]["resolution"] ** 2)
    size = cfg["training"]["eval_batch_size"]
    count = len(found.made)
    groups = [range(start, min(start + size, count)) for start in range(0, count, size)]
    todo = [group for group in groups if missing.intersection(group)]
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    stopped = False
    # Loading draws weights that are replaced: not from the generator that training draws from.
    with torch.random.fork_rng(devices=devices):
        painter = _Painter(cfg, folder, accelerator.device)
        for group in todo[accelerator.process_index :: accelerator.num_processes]:
            if stopped := monitor.should_stop():
                break
            painter.paint(found.made, group)
    flag = torch.tensor(float(stopped), device=accelerator.device)
    return float(accelerator.reduce(flag, "sum")) == 0


class _Painter:
    """The pipeline in one number format; it is gone when training begins."""

    def __init__(self, cfg: Mapping[str, Any], folder: Path, device: Any) -> None:
        self._pipeline = load_frozen(cfg, folder, (), device).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        if getattr(self._pipeline, "safety_checker", None) is not None:
            # It would put black images in the place of some.
            self._pipeline.register_modules(safety_checker=None)
        self._cfg = cfg

    def paint(self, files: list[Path], group: range) -> None:
        """Makes the images of a group of numbers."""
        prior, edge = self._cfg["training"]["prior"], self._cfg["data"]["resolution"]
        more = {} if prior["steps"] is None else {"num_inference_steps": prior["steps"]}
        images = self._pipeline(
            prior["prompt"],
            width=edge,
            height=edge,
            num_images_per_prompt=len(group),
            generator=[self._generator(index) for index in group],
            **more,
        ).images
        for index, image in zip(group, images, strict=True):
            unfinished = files[index].with_suffix(".tmp")
            image.save(unfinished, "PNG")
            unfinished.replace(files[index])

    def _generator(self, index: int) -> Any:
        seed = np.random.default_rng((self._cfg["seed"], _SEEDS, index)).integers(2**62)
        return torch.Generator("cpu").manual_seed(int(seed))
