"""The random numbers of examples: noise, noise levels, cuts.

They follow from the seed and the position alone; see `sampling_order`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgpt_serve.training.images.data.image_files import CENTER, Cut, Size

_TRAIN, _EVAL, _PRIOR = 1, 2, 5
"""Keep the random numbers of one use apart from those of another, `sampling_order` included."""
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one example.

    Attributes:
        noise: Normal, of the latent's shape: what is added to the latent.
        posterior: Normal, of the same shape: which latent of the autoencoder's distribution.
        level: Uniform in (0, 1): how noisy the latent becomes.
        drop: Uniform in [0, 1): whether the caption is dropped.
        choice: Uniform in [0, 1): which of several captions.
        cut: How the image is cut; without augmentation in the center.
    """

    noise: NDArray[np.float32]
    posterior: NDArray[np.float32]
    level: float
    drop: float
    choice: float = 0.0
    cut: Cut = CENTER


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is drawn anew whenever an image is read.

    Attributes:
        flip: Whether every second image is mirrored.
        crop: Whether the place of the cut is drawn; else it is the center.
    """

    flip: bool = False
    crop: bool = False

    def cut(self, mirrored: float, left: float, top: float) -> Cut:
        """Returns the cut of three uniform numbers."""
        flip = self.flip and mirrored < 0.5
        return Cut(left, top, flip) if self.crop else Cut(flip=flip)


NONE = Augmentation()


def draw_for_training(
    seed: int,
    position: int,
    shape: tuple[int, ...],
    augmentation: Augmentation = NONE,
    *,
    prior: bool = False,
) -> Draws:
    """Returns the numbers of the example at a position in the order of training.

    Args:
        seed: Of the run.
        position: Of the example.
        shape: Of its latent.
        augmentation: What of its image is drawn.
        prior: Whether it is the image of the class beside the example.
    """
    generator = np.random.default_rng((seed, _PRIOR if prior else _TRAIN, position))
    noise = generator.standard_normal(shape, dtype=np.float32)
    posterior = generator.standard_normal(shape, dtype=np.float32)
    level, drop = generator.random(2)
    mirrored, left, top, choice = generator.random(4).tolist()
    cut = augmentation.cut(mirrored, left, top)
    return Draws(noise, posterior, _inside(float(level)), float(drop), choice, cut)


def draw_for_evaluation(seed: int, row: int, shape: tuple[int, ...]) -> Draws:
    """Returns the numbers of a row of the evaluation data: the same in every evaluation.

    The noise levels of the rows follow the golden ratio, so that few rows already cover all levels
    evenly. No caption is dropped, and no image is cut anywhere but in the center.
    """
    generator = np.random.default_rng((seed, _EVAL, row))
    noise = generator.standard_normal(shape, dtype=np.float32)
    posterior = generator.standard_normal(shape, dtype=np.float32)
    level = (0.5 + row * GOLDEN_RATIO) % 1.0
    return Draws(noise, posterior, _inside(level), 1.0, row * GOLDEN_RATIO % 1.0)


def _inside(level: float) -> float:
    return min(max(level, 1e-6), 1 - 1e-6)


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Shape of the latents of images.

    Attributes:
        channels: Of a latent.
        factor: Pixels that one element of it stands for, along an edge.
    """

    channels: int
    factor: int

    def __call__(self, size: Size) -> tuple[int, int, int]:
        """Returns the shape of the latent of an image of this size: channels, height, width."""
        return (self.channels, size.height // self.factor, size.width // self.factor)


@dataclass(frozen=True, slots=True)
class TrainingDraws:
    """Draws for training; attributes as the arguments of `draw_for_training`."""

    seed: int
    shape: LatentShape
    augmentation: Augmentation
    prior: bool = False

    def __call__(self, position: int, size: Size) -> Draws:
        """Returns the numbers at a position."""
        given = (self.seed, position, self.shape(size), self.augmentation)
        return draw_for_training(*given, prior=self.prior)


@dataclass(frozen=True, slots=True)
class EvaluationDraws:
    """Draws for evaluations; attributes as the arguments of `draw_for_evaluation`."""

    seed: int
    shape: LatentShape

    def __call__(self, row: int, size: Size) -> Draws:
        """Returns the numbers of a row."""
        return draw_for_evaluation(self.seed, row, self.shape(size))
