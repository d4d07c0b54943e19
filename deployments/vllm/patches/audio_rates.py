"""Has recordings at another rate than the model's heard with the packages that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.audio import AudioResampler

from deployments.vllm.patches.methods import replace_method

_METHODS = ("torchaudio", "soxr")
"""The packages that change rates, vLLM's own choice first."""


def mend_audio_rates() -> None:
    """Replaces how vLLM changes the rate of a recording, which fails with 500 without torchaudio.

    Raises:
        RuntimeError: vLLM moved a method.
    """
    replace_method(AudioResampler, "resample", ["audio", "orig_sr"], _of_installed)


def _of_installed(resample: Callable[..., Any]) -> Callable[..., Any]:
    def resample_by_installed(self: Any, audio: Any, *, orig_sr: float) -> Any:
        if orig_sr != self.target_sr and not _is_installed(self.method):
            other = next(filter(_is_installed, _METHODS), None)
            if other is None:
                raise VLLMValidationError(
                    f"`audio_url`: the recording has {orig_sr:g} samples a second; the model hears "
                    f"{self.target_sr:g} only, as the server has no package that changes rates "
                    "(`pip install soxr`)",
                    parameter="audio_url",
                )
            self.method = other
        return resample(self, audio, orig_sr=orig_sr)

    return resample_by_installed


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec("av" if package == "pyav" else package) is not None
