"""Finds NaN and infinite values in images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from deployments.hf_diffusers.stepping.errors import NotFiniteError


def not_finite(output: Any, place: str) -> NotFiniteError | None:
    """Returns an error if an image has NaN or infinite values, None if all are finite.

    Args:
        output: What a pipeline or a VAE's `decode` returned: an object with `images` or `sample`,
            or a tuple that begins with them. PIL images can hold no NaN and are not looked at.
        place: What made it, for the message.
    """
    images = output[0] if isinstance(output, tuple) and output else output
    images = getattr(images, "images", getattr(images, "sample", images))
    if all(bool(torch.isfinite(item).all()) for item in _float_tensors(images)):
        return None
    return NotFiniteError(
        f"the output of {place} has NaN or infinite values: use bfloat16 or float32 weights, a VAE "
        f"fixed for float16, or a lower guidance scale"
    )


def _float_tensors(images: Any) -> Iterator[torch.Tensor]:
    for image in images if isinstance(images, (list, tuple)) else [images]:
        # A numpy array has a `dtype` too; a PIL image has none.
        tensor = torch.as_tensor(image) if hasattr(image, "dtype") else None
        if tensor is not None and tensor.is_floating_point():
            yield tensor
