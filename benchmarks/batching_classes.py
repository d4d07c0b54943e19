"""The two model classes that `benchmarks.batching` serves everywhere.

Needs numpy and onnxruntime only, so that an environment without this product can import it too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER_VARIABLE = "TRUTHGPT_BENCH_MODELS"
"""Names the folder with `vision.onnx` and `encoder.onnx`."""


def _load_session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread: the others of a small machine belong to the server around the model.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    path = Path(os.environ[FOLDER_VARIABLE]) / f"{name}.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Vision:
    """Classifies images: `image`, a uint8 array of 3 x 32 x 32, gives `label` and `score`."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Opens the network."""
        self._session = _load_session("vision")

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Classifies one image."""
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Classifies several images in one run of the network."""
        pixels = np.stack([inputs["image"] for inputs in batch]).astype(np.float32) / 255
        (scores,) = self._session.run(["scores"], {"pixels": pixels})
        labels = scores.argmax(axis=1)
        return [
            {"label": int(label), "score": float(row[label])}
            for label, row in zip(labels, scores, strict=True)
        ]


class Encoder:
    """Embeds texts: `ids`, a list of token ids, gives `embedding`, 128 numbers."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Opens the network."""
        self._session = _load_session("encoder")

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Embeds one text."""
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Embeds several texts, padded to the longest, in one run of the network."""
        lengths = [len(inputs["ids"]) for inputs in batch]
        ids = np.zeros((len(batch), max(lengths)), np.int64)
        mask = np.zeros(ids.shape, np.float32)
        for row, (inputs, length) in enumerate(zip(batch, lengths, strict=True)):
            ids[row, :length] = inputs["ids"]
            mask[row, :length] = 1
        (embeddings,) = self._session.run(["embedding"], {"ids": ids, "mask": mask})
        return [{"embedding": row.tolist()} for row in embeddings]


CLASSES: dict[str, type[Vision | Encoder]] = {"vision": Vision, "encoder": Encoder}
