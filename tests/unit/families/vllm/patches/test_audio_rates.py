"""Recordings at another rate than the model's are heard, or refused as the request's error."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.audio import AudioResampler

from deployments.vllm.patches.audio_rates import mend_audio_rates

RATE = 16000


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AudioResampler, "resample", AudioResampler.__dict__["resample"])
    mend_audio_rates()


def keep(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Leaves of the packages that change rates these."""
    find = importlib.util.find_spec
    others = {"torchaudio", "soxr"} - set(packages)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in others else find(name)
    )


def test_a_rate_is_changed_without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, "soxr")
    samples = np.sin(np.arange(8000) / 20).astype(np.float32)
    assert len(AudioResampler(RATE).resample(samples, orig_sr=8000)) == RATE


def test_a_rate_that_nothing_changes_is_an_error_of_the_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(monkeypatch)
    samples = np.zeros(8000, np.float32)
    with pytest.raises(VLLMValidationError, match=r"has 8000 samples a second.* 16000 only"):
        AudioResampler(RATE).resample(samples, orig_sr=8000)
    assert AudioResampler(RATE).resample(samples, orig_sr=RATE) is samples
