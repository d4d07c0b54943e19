"""The seconds of a recording that is recognized over `/v1/infer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.server.audio.decode import MAX_RATE, MIN_RATE, bounds_of
from truthgpt_serve.usage.counted import Usage, current_usage

OPERATIONS = frozenset({"transcription", "translation"})


class AudioCount:
    """Counts one recording by what the request says of it, if the model could read it.

    Args:
        model: The class's instance; nothing is counted for one that recognizes no speech.
    """

    def __init__(self, model: Any) -> None:
        is_speech = not OPERATIONS.isdisjoint(getattr(model, "operations", ()))
        self._used = current_usage() if is_speech else None
        self._model = model
        self._seconds = 0.0

    async def begin(self, inputs: Mapping[str, Any]) -> None:
        """Notes the inputs, as the client sent them: an array is `{"shape", "dtype", "b64"}`."""
        audio = inputs.get("audio")
        shape = audio.get("shape") if isinstance(audio, Mapping) else None
        rate = inputs.get("sampling_rate", bounds_of(self._model)[0])
        if self._used is None or not (isinstance(shape, list) and len(shape) == 1):
            return
        if type(shape[0]) is int and type(rate) in (int, float) and MIN_RATE <= rate <= MAX_RATE:
            self._seconds = max(shape[0], 0) / rate
            self._used.at_end.append(self._count)

    def add(self, outputs: Any) -> None:
        """Returns None: what was recognized counts for nothing."""

    def end(self) -> None:
        """Returns None: it counts when the request has ended."""

    def _count(self, usage: Usage) -> None:
        if not usage.failed:
            usage.audio_s += self._seconds
