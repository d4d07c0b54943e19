"""Trains one word of the text encoders of a pipeline: textual inversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.captions import Captioner
from truthgpt_serve.training.images.component import Component, refuse_settings
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.kinds.find import kind_of
from truthgpt_serve.training.images.latent_training import (
    add_noise,
    enable_checkpointing,
    move_parts,
    score,
)
from truthgpt_serve.training.images.objectives import Noised
from truthgpt_serve.training.images.pipelines import save_words
from truthgpt_serve.training.images.words import (
    add_words,
    check_words,
    load_tokenizer,
    tokenizer_of,
)
from truthgpt_serve.training.job import Monitor, TrainingJob


class _Trainee(torch.nn.Module):  # type: ignore[misc] # torch counts as Any here
    """Encodes captions with the learned word and denoises, in one call."""

    def __init__(self, kind: Kind, words: dict[str, Any], captioner: Captioner) -> None:
        super().__init__()
        self._kind = kind
        self._captioner = captioner
        self.words = torch.nn.ModuleDict({name: one.learned for name, one in words.items()})

    def forward(self, noised: Noised) -> Any:
        """Returns the denoiser's output."""
        conditions = self._captioner(noised.captions)
        return self._kind.predict(self._kind.denoiser, noised, conditions)


class WordLearner:
    """What is learned of a batch; see `Learner`.

    Args:
        kind: Of the pipeline, on the CPU; its parts are moved to the device.
        cfg: The configuration.
        device: Where to train.

    Attributes:
        words: The learned rows by the names of their text encoders.
    """

    def __init__(self, kind: Kind, cfg: dict[str, Any], device: Any) -> None:
        training, optim = cfg["training"], cfg["model_optim"]
        self._kind = kind
        self._objective = kind.objective(training["min_snr_gamma"])
        self.latent_shape = kind.latent_shape
        encoders = {name: getattr(kind.pipeline, name) for name in kind.encoder_names}
        self.words = {
            name: add_words(
                encoder,
                getattr(kind.pipeline, tokenizer_of(name)),
                training["textual_inversion"],
            )
            for name, encoder in encoders.items()
        }
        move_parts(kind, device)
        if optim["gradient_checkpointing"]:
            for part in (kind.denoiser, *encoders.values()):
                # It is done in training mode only; nothing in these parts is drawn by chance.
                part.train()
                enable_checkpointing(part)
        if optim["compile"]:
            kind.denoiser.compile()
        captioner = Captioner(kind, device, remember=False)
        self.module = _Trainee(kind, self.words, captioner)

    def losses(self, module: Any, batch: Batch) -> Any:
        """Returns the loss of each example; see `Learner`."""
        noised = add_noise(self._kind, self._objective, batch)
        count = len(batch["captions"])
        return score(self._objective, module(noised), noised, count, 0.0)


class WordComponent(Component[WordLearner]):
    """`training.component: textual_inversion`."""

    def check(self, cfg: dict[str, Any]) -> None:
        """See `Component`; a caption of the configuration must have the word."""
        refuse_settings(cfg)
        word, given = cfg["training"]["textual_inversion"]["placeholder"], cfg["data"]["caption"]
        captions = [given] if isinstance(given, str) else given or []
        for caption in captions:
            if word not in caption:
                message = f"data.caption: {caption!r} does not have the placeholder {word!r}"
                raise TrainingError(f"{message} (nothing would be learned from it: add it)")

    def check_pipeline(self, cfg: dict[str, Any], folder: Path) -> None:
        """Raises `TrainingError` for a pipeline that takes no words, or a word that is none."""
        kind, index = kind_of(folder)
        if not kind.learns_words:
            name = index["_class_name"]
            message = f"training.component: textual_inversion is not known for {name}"
            raise TrainingError(f"{message} (it is for Stable Diffusion 1, 2 and XL)")
        for name in kind.encoder_names:
            check_words(load_tokenizer(folder, name, index), cfg["training"]["textual_inversion"])

    def may_leave_out(self, cfg: dict[str, Any]) -> bool:
        """A batch whose captions are all dropped does not have the word."""
        return bool(cfg["training"]["caption_dropout"] > 0)

    def create_learner(self, kind: Kind, cfg: dict[str, Any], device: Any) -> WordLearner:
        """See `Component`."""
        return WordLearner(kind, cfg, device)

    def save(self, learner: WordLearner, folder: Path, job: TrainingJob, monitor: Monitor) -> None:
        """Writes the rows of the word."""
        word = job.cfg["training"]["textual_inversion"]["placeholder"]
        rows = {name: one.learned.weight for name, one in learner.words.items()}
        save_words(word, rows, job.folder, monitor)


_COMPONENT = WordComponent()
prepare, train = _COMPONENT.prepare, _COMPONENT.train
